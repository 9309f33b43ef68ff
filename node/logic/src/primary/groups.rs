//! Requests about groups.

use super::{Asked, Pending, SlotCore, SlotOutput};
use crate::{
    Now,
    entry::Entry,
    id::{GroupName, Member},
    request::{GroupInfo, Interest, JoinPoint, MESSAGE_OVERHEAD_BYTES, PAGE_BYTES, SlotAnswer, SlotError, SlotRequest},
};

/// One answer carries about so many bytes of messages; the gateway asks again for what follows.
const REPLAY_BYTES: usize = 4 << 20;

impl SlotCore {
    pub(super) fn group_request(&mut self, now: Now, asked: Asked, out: &mut Vec<SlotOutput>) {
        let Asked { ticket, from, request } = asked;
        let result = match request {
            SlotRequest::Publish { group, key, data, from, retention, min_copies } => {
                let copies = self.replica.copies();
                if copies < min_copies {
                    Err(SlotError::NotEnoughCopies { copies, min_copies })
                } else {
                    let epoch = self.new_epoch();
                    let entry = Entry::Publish { group, epoch, key, data, from, at_ms: now.wall_ms, retention };
                    return self.order(entry, Pending::Publish(ticket));
                }
            }
            SlotRequest::Register { interests } => {
                return self.group_committed(now, Pending::Register { ticket, gateway: from, interests }, out);
            }
            SlotRequest::Unregister { groups } => {
                for group in &groups {
                    if let Some(gateways) = self.interests.get_mut(group) {
                        gateways.remove(&from);
                        if gateways.is_empty() {
                            self.interests.remove(group);
                        }
                    }
                }
                Ok(SlotAnswer::Done)
            }
            SlotRequest::Join { group, member, since } => {
                let pending =
                    Pending::Join { ticket, gateway: from, interest: Interest { group: group.clone(), since } };
                let Some(member) = member else {
                    return self.group_committed(now, pending, out);
                };
                let epoch = self.new_epoch();
                return self.order(Entry::MemberJoin { group, epoch, member }, pending);
            }
            SlotRequest::Leave { group, session, attachment } => {
                return self.order(Entry::MemberLeave { group, session, attachment }, Pending::Done(ticket));
            }
            SlotRequest::History { group, since, limit } => Ok(self.history(&group, since, limit)),
            SlotRequest::Members { group, after, limit } => Ok(self.members(&group, after, limit)),
            SlotRequest::Group { group } => Ok(SlotAnswer::Group(self.group_info(&group))),
            _ => Err(SlotError::Unavailable),
        };
        out.push(SlotOutput::Answer { ticket, result });
    }

    /// Whether the group exists, and no end of it is under way: what is said of it may be said at once.
    pub(super) fn stays(&self, group: &GroupName) -> bool {
        !self.forgetting.contains(group) && self.state().is_some_and(|state| state.group(group).is_some())
    }

    /// What a request about groups waited for is committed, or there was nothing to wait for. Of the groups that it follows,
    /// those that do not exist are opened first, so that their epoch stands.
    pub(super) fn group_committed(&mut self, now: Now, pending: Pending, out: &mut Vec<SlotOutput>) {
        let interests = match &pending {
            Pending::Register { interests, .. } => interests.as_slice(),
            Pending::Join { interest, .. } => std::slice::from_ref(interest),
            _ => &[],
        };
        let groups = interests.iter().map(|interest| &interest.group);
        let missing: Vec<_> = groups.filter(|group| !self.stays(group)).cloned().collect();
        let mut last = None;
        for group in missing {
            let epoch = self.new_epoch();
            last = self.replica.order(Entry::OpenGroup { group, epoch });
        }
        if let Some(index) = last {
            self.pending.insert(index, pending);
            return;
        }
        let (ticket, answer) = match pending {
            Pending::Register { ticket, gateway, interests } => {
                let mut budget = REPLAY_BYTES;
                let points =
                    interests.into_iter().map(|interest| self.join_point(now, &gateway, interest, &mut budget));
                (ticket, points.collect::<Option<Vec<_>>>().map(SlotAnswer::Registered))
            }
            Pending::Join { ticket, gateway, interest } => {
                let mut page = PAGE_BYTES;
                (ticket, self.join_point(now, &gateway, interest, &mut page).map(SlotAnswer::Joined))
            }
            Pending::Done(ticket) => (ticket, Some(SlotAnswer::Done)),
            Pending::Forget(group) => {
                self.forgetting.remove(&group);
                self.idle.remove(&group);
                return;
            }
            _ => return,
        };
        out.push(SlotOutput::Answer { ticket, result: answer.ok_or(SlotError::Busy) });
    }

    /// Registers the gateway's interest and says where it begins, in one step: what is committed later is pushed.
    fn join_point(&mut self, now: Now, gateway: &Member, interest: Interest, budget: &mut usize) -> Option<JoinPoint> {
        let Interest { group, since } = interest;
        let log = &self.replica.state()?.group(&group)?.log;
        let (epoch, mut head) = (log.epoch(), log.head());
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
        if fitting < messages.len() {
            // The gateway sees that this is not all by what it knows of the group, or the next message's offset, or its
            // own clock, and asks for the rest.
            messages.truncate(fitting);
            head = messages.last().map_or_else(|| since.map_or(head, |since| since.offset), |message| message.offset);
        }
        self.idle.remove(&group);
        self.interests.entry(group.clone()).or_default().insert(gateway.clone(), now.mono_ms);
        Some(JoinPoint { group, epoch, head, recovered, messages })
    }

    fn history(&self, group: &GroupName, since: Option<crate::id::Position>, limit: u32) -> SlotAnswer {
        let Some(group) = self.state().and_then(|state| state.group(group)) else {
            return SlotAnswer::History { position: None, complete: since.is_none(), messages: Vec::new() };
        };
        let offset = match since {
            Some(since) if since.epoch == group.log.epoch() => since.offset,
            _ => group.log.head() - group.log.kept(),
        };
        let found = group.log.since(offset, limit as usize);
        let same_epoch = since.is_none_or(|since| since.epoch == group.log.epoch());
        let mut bytes = 0;
        let messages = found.messages.into_iter().take_while(|message| {
            let before = bytes;
            bytes += message.data.len();
            before < REPLAY_BYTES
        });
        SlotAnswer::History {
            position: Some(group.log.position()),
            complete: found.complete && same_epoch,
            messages: messages.collect(),
        }
    }

    fn members(&self, group: &GroupName, after: Option<crate::id::SessionId>, limit: u32) -> SlotAnswer {
        let members = self.state().and_then(|state| state.group(group)).map(|group| &group.members);
        let later = members.into_iter().flatten().filter(|(session, _)| after.is_none_or(|after| **session > after));
        let mut page: Vec<_> =
            later.map(|(_, member)| member.clone()).take((limit as usize).saturating_add(1)).collect();
        let more = page.len() > limit as usize;
        page.truncate(limit as usize);
        SlotAnswer::Members { members: page, more }
    }

    /// What there is to say about a group, if it exists.
    pub fn group_info(&self, name: &GroupName) -> Option<GroupInfo> {
        let group = self.state()?.group(name)?;
        Some(GroupInfo {
            group: name.clone(),
            epoch: group.log.epoch(),
            head: group.log.head(),
            kept: group.log.kept(),
            members: group.members.len() as u64,
        })
    }
}
