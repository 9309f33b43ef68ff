//! Who follows which group: gateways register their interest and are told where it begins.

use super::{SlotOutput, Ticket, groups::GroupPending, reign::Reigning};
use crate::{
    Now,
    entry::{Entry, GroupEntry},
    id::{GroupName, Member, Position},
    request::{Done, Interest, JoinPoint, MESSAGE_OVERHEAD_BYTES, PAGE_BYTES, SlotAnswer, SlotError},
};

/// The answer to a registration has about this many bytes of messages; the gateway asks again for what follows.
const REPLAY_BYTES: usize = 4 << 20;

/// A gateway that is to follow groups, and waits until they exist.
#[derive(Debug)]
pub(super) enum Following {
    Register { ticket: Ticket, gateway: Member, interests: Vec<Interest> },
    Join { ticket: Ticket, gateway: Member, interest: Interest },
}

impl Following {
    pub(super) fn join(ticket: Ticket, gateway: Member, group: GroupName, since: Option<Position>) -> Self {
        Self::Join { ticket, gateway, interest: Interest { group, since } }
    }

    pub(super) fn ticket(&self) -> Ticket {
        match self {
            Self::Register { ticket, .. } | Self::Join { ticket, .. } => *ticket,
        }
    }

    fn interests(&self) -> &[Interest] {
        match self {
            Self::Register { interests, .. } => interests,
            Self::Join { interest, .. } => std::slice::from_ref(interest),
        }
    }
}

impl Reigning<'_> {
    pub(super) fn register(
        &mut self,
        now: Now,
        (ticket, gateway): (Ticket, Member),
        interests: Vec<Interest>,
        out: &mut Vec<SlotOutput>,
    ) {
        self.follow(now, Following::Register { ticket, gateway, interests }, out);
    }

    pub(super) fn unregister(
        &mut self,
        gateway: &Member,
        groups: &[GroupName],
        ticket: Ticket,
        out: &mut Vec<SlotOutput>,
    ) {
        for group in groups {
            if let Some(gateways) = self.groups.interests.get_mut(group) {
                gateways.retain(|(other, _)| other != gateway);
                if gateways.is_empty() {
                    self.groups.interests.remove(group);
                }
            }
        }
        out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
    }

    /// Whether the group exists, and no end of it is under way: what is said of it may be said at once.
    pub(super) fn stays(&self, group: &GroupName) -> bool {
        !self.groups.forgetting.contains(group) && self.state().is_some_and(|state| state.group(group).is_some())
    }

    /// Has the gateway follow the groups and answers it. Those that do not exist are opened first, so that their epoch
    /// stands.
    pub(super) fn follow(&mut self, now: Now, following: Following, out: &mut Vec<SlotOutput>) {
        let groups = following.interests().iter().map(|interest| &interest.group);
        let missing: Vec<_> = groups.filter(|group| !self.stays(group)).cloned().collect();
        let mut last = None;
        for group in missing {
            let epoch = self.new_epoch();
            last = self.replica.order(Entry::Group(group, GroupEntry::Open { epoch }));
        }
        if let Some(index) = last {
            let earlier = self.groups.pending.insert(index, GroupPending::Follow(following));
            assert!(earlier.is_none(), "one waits for an entry");
            return;
        }
        self.deliver(out);
        let (ticket, answer) = match following {
            Following::Register { ticket, gateway, interests } => {
                let mut budget = REPLAY_BYTES;
                let points =
                    interests.into_iter().map(|interest| self.join_point(now, &gateway, interest, &mut budget));
                (ticket, points.collect::<Option<Vec<_>>>().map(SlotAnswer::Registered))
            }
            Following::Join { ticket, gateway, interest } => {
                let mut page = PAGE_BYTES;
                (ticket, self.join_point(now, &gateway, interest, &mut page).map(SlotAnswer::Joined))
            }
        };
        out.push(SlotOutput::Answer { ticket, result: answer.ok_or(SlotError::Busy) });
    }

    /// Registers the gateway's interest and says where it begins, in one step: what is committed later is pushed.
    fn join_point(&mut self, now: Now, gateway: &Member, interest: Interest, budget: &mut usize) -> Option<JoinPoint> {
        let Interest { group, since } = interest;
        let log = &self.replica.state()?.group(&group)?.log;
        let (epoch, head) = (log.epoch(), log.head());
        let (recovered, mut messages) = match since {
            None => (true, Vec::new()),
            Some(since) if since.epoch == epoch => {
                // One more than can fit, so that it shows where some do not.
                let missed = log.since(since.offset, *budget / MESSAGE_OVERHEAD_BYTES + 2);
                (missed.complete, missed.messages)
            }
            Some(_) => (false, Vec::new()),
        };
        let fits = messages.iter().take_while(|message| {
            let before = *budget;
            *budget = budget.saturating_sub(message.data.len() + MESSAGE_OVERHEAD_BYTES);
            before > 0
        });
        let fitting = fits.count();
        let mut up_to = head;
        if fitting < messages.len() {
            messages.truncate(fitting);
            up_to = messages.last().map_or_else(|| since.map_or(head, |since| since.offset), |message| message.offset);
        }
        assert!(up_to <= head, "an answer accounts for what there is");
        assert!(messages.last().is_none_or(|last| last.offset == up_to), "its messages end where it says");
        let present = self.present(&group);
        self.groups.idle.remove(&group);
        let gateways = self.groups.interests.entry(group.clone()).or_default();
        match gateways.binary_search_by(|(other, _)| other.cmp(gateway)) {
            Ok(at) => gateways[at].1 = now.mono_ms,
            Err(at) => {
                gateways.reserve_exact(1);
                gateways.insert(at, (gateway.clone(), now.mono_ms));
            }
        }
        Some(JoinPoint { group, epoch, head, up_to, recovered, messages, present })
    }
}
