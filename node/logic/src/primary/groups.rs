//! What a primary does about groups: requests, and what comes of their entries.
//!
//! A publish may ask for a number of copies. While there are fewer, new ones are refused. One that is in the log already,
//! because copies were lost after it was ordered or because it is a repeat, is answered when enough copies have it. It is
//! delivered when it is committed all the same: a message that waits would hold up those that follow it in the group.

use std::{collections::BTreeMap, mem};

use super::{SlotOutput, Ticket, joins::Following, reign::Reigning};
use crate::{
    Now,
    asking::ATTEMPT_MS,
    entry::GroupEntry,
    id::{GroupName, Member, Position, PublishKey},
    memory::Level,
    request::{
        Done, GroupInfo, GroupPush, GroupRequest, History, Join, Leave, MemberPage, Publish, Published, Push,
        ReadGroup, ReadHistory, ReadMembers, SlotAnswer, SlotError,
    },
    slot::{GroupEffect, SlotState},
};

/// The answer to a history has about this many bytes of messages; who wants what follows asks again.
const HISTORY_BYTES: usize = 4 << 20;

/// What waits for an entry of a group to be committed.
#[derive(Debug)]
pub(super) enum GroupPending {
    /// To be answered when this number of copies have it.
    Publish {
        ticket: Ticket,
        group: GroupName,
        key: PublishKey,
        min_copies: u8,
    },
    /// A publish that is not taken now: answered if it is a repeat, else refused for this reason.
    Recall {
        ticket: Ticket,
        min_copies: u8,
        refusal: SlotError,
    },
    /// Whoever follows the group, or others that were opened before it.
    Follow(Following),
    Leave(Ticket),
    /// The end of the group.
    Forget,
}

impl GroupPending {
    /// Whom to answer if nothing is heard of the entry any more, and whether it may be done all the same.
    pub(super) fn into_ticket(self) -> Option<(Ticket, bool)> {
        match self {
            Self::Publish { ticket, .. } | Self::Leave(ticket) => Some((ticket, true)),
            Self::Follow(following) => Some((following.ticket(), true)),
            Self::Recall { ticket, .. } => Some((ticket, false)),
            Self::Forget => None,
        }
    }
}

/// A publish that is committed, and whose answer waits for more copies.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) ticket: Ticket,
    position: Position,
    min_copies: u8,
    /// Its gateway asks again by then.
    until_ms: u64,
}

impl Reigning<'_> {
    pub(super) fn group_request(
        &mut self,
        now: Now,
        (ticket, from): (Ticket, Member),
        group: GroupName,
        request: GroupRequest,
        out: &mut Vec<SlotOutput>,
    ) {
        let answer: SlotAnswer = match request {
            GroupRequest::Publish(publish) => return self.publish(now, ticket, group, publish),
            GroupRequest::Join(join) => return self.join(now, (ticket, from), group, join, out),
            GroupRequest::Leave(Leave { session, attachment }) => {
                let entry = GroupEntry::MemberLeave { session, attachment };
                return self.order_group(group, entry, Some(GroupPending::Leave(ticket)));
            }
            GroupRequest::ReadHistory(read) => self.history(&group, read).into(),
            GroupRequest::ReadMembers(read) => self.members(&group, read).into(),
            GroupRequest::ReadGroup(ReadGroup) => self.state().and_then(|state| info(state, &group)).into(),
        };
        out.push(SlotOutput::Answer { ticket, result: Ok(answer) });
    }

    fn publish(&mut self, now: Now, ticket: Ticket, group: GroupName, publish: Publish) {
        let Publish { key, data, from, retention, min_copies } = publish;
        let copies = self.replica.copies();
        let refusal = match self.memory {
            Level::Full => Some(SlotError::Full),
            Level::Calm | Level::Tight => {
                (copies < min_copies).then_some(SlotError::NotEnoughCopies { copies, min_copies })
            }
        };
        if let Some(refusal) = refusal {
            // What is ordered and not committed counts as well, so the log is asked, in its order.
            let pending = GroupPending::Recall { ticket, min_copies, refusal };
            return self.order_group(group, GroupEntry::Recall { key }, Some(pending));
        }
        let epoch = self.new_epoch();
        let entry = GroupEntry::Publish { epoch, key, data, from, at_ms: now.wall_ms, retention };
        let pending = GroupPending::Publish { ticket, group: group.clone(), key, min_copies };
        self.order_group(group, entry, Some(pending));
    }

    /// A publish for which the queue has no room. A repeat needs none: it is told its place, or comes again while the publish
    /// that it repeats is under way. Any other is refused.
    pub(super) fn publish_beyond_queue(
        &mut self,
        now: Now,
        ticket: Ticket,
        (group, publish): (&GroupName, &Publish),
        out: &mut Vec<SlotOutput>,
    ) {
        let there = self.state().and_then(|state| state.group(group));
        if let Some(position) = there.and_then(|there| there.log.place(publish.key)) {
            return self.answer_publish(now, (ticket, publish.min_copies), position, out);
        }
        let is_it = |pending: &GroupPending| match pending {
            GroupPending::Publish { group: other, key, .. } => (other, *key) == (group, publish.key),
            GroupPending::Recall { .. } | GroupPending::Follow(_) | GroupPending::Leave(_) | GroupPending::Forget => {
                false
            }
        };
        if self.groups.pending.values().any(is_it) {
            return self.leave_open(ticket, out);
        }
        out.push(SlotOutput::Answer { ticket, result: Err(SlotError::Busy) });
    }

    /// Answers a publish that is committed. All in-sync members hold what is committed: where these are too few, the answer
    /// waits until a map names more.
    fn answer_publish(
        &mut self,
        now: Now,
        (ticket, min_copies): (Ticket, u8),
        position: Position,
        out: &mut Vec<SlotOutput>,
    ) {
        let copies = self.replica.copies();
        if min_copies <= copies {
            let published = Published { position, copies };
            return out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Published(published)) });
        }
        if self.groups.held.len() >= self.settings.queue {
            return self.leave_open(ticket, out);
        }
        self.groups.held.push(Held { ticket, position, min_copies, until_ms: now.mono_ms + ATTEMPT_MS });
    }

    /// Answers those that enough copies have now. Whoever has waited for too long does not know what became of it.
    pub(super) fn answer_held(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        let copies = self.replica.copies();
        for held in mem::take(&mut self.groups.held) {
            if held.min_copies <= copies {
                self.answer_publish(now, (held.ticket, held.min_copies), held.position, out);
            } else if held.until_ms <= now.mono_ms {
                self.leave_open(held.ticket, out);
            } else {
                self.groups.held.push(held);
            }
        }
    }

    fn join(
        &mut self,
        now: Now,
        (ticket, gateway): (Ticket, Member),
        group: GroupName,
        Join { member, since }: Join,
        out: &mut Vec<SlotOutput>,
    ) {
        let following = Following::join(ticket, gateway, group.clone(), since);
        match member {
            None => self.follow(now, following, out),
            Some(member) => {
                let epoch = self.new_epoch();
                self.order_group(
                    group,
                    GroupEntry::MemberJoin { epoch, member },
                    Some(GroupPending::Follow(following)),
                );
            }
        }
    }

    /// An entry of a group is committed. Gateways are told also of what an earlier primary had ordered.
    pub(super) fn group_committed(
        &mut self,
        now: Now,
        group: GroupName,
        effect: GroupEffect,
        pending: Option<GroupPending>,
        out: &mut Vec<SlotOutput>,
    ) {
        let position = match effect {
            GroupEffect::Published { position, message } => {
                if let Some(message) = message {
                    self.tell_followers(&group, &GroupPush::Deliver { epoch: position.epoch, message }, out);
                }
                Some(position)
            }
            GroupEffect::Member { joined, member } => {
                self.tell_followers(&group, &GroupPush::Member { joined, member }, out);
                None
            }
            GroupEffect::Quiet => None,
        };
        match pending {
            None => {}
            Some(GroupPending::Publish { ticket, min_copies, .. }) => {
                let Some(position) = position else { unreachable!("a publish has come to no position") };
                self.answer_publish(now, (ticket, min_copies), position, out);
            }
            Some(GroupPending::Recall { ticket, min_copies, refusal }) => match position {
                Some(position) => self.answer_publish(now, (ticket, min_copies), position, out),
                None => out.push(SlotOutput::Answer { ticket, result: Err(refusal) }),
            },
            Some(GroupPending::Follow(following)) => self.follow(now, following, out),
            Some(GroupPending::Leave(ticket)) => {
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
            }
            Some(GroupPending::Forget) => {
                let was_ordered = self.groups.forgetting.remove(&group);
                assert!(was_ordered, "an end is committed once");
                self.groups.idle.remove(&group);
            }
        }
    }

    fn tell_followers(&self, group: &GroupName, push: &GroupPush, out: &mut Vec<SlotOutput>) {
        for gateway in self.groups.interests.get(group).into_iter().flat_map(BTreeMap::keys) {
            self.push(gateway, Push::Group(group.clone(), push.clone()), out);
        }
    }

    fn history(&self, group: &GroupName, ReadHistory { since, limit }: ReadHistory) -> History {
        let Some(group) = self.state().and_then(|state| state.group(group)) else {
            return History { position: None, complete: since.is_none(), messages: Vec::new() };
        };
        let offset = match since {
            Some(since) if since.epoch == group.log.epoch() => since.offset,
            Some(_) | None => group.log.head() - group.log.kept(),
        };
        let found = group.log.since(offset, limit as usize);
        let same_epoch = since.is_none_or(|since| since.epoch == group.log.epoch());
        let mut bytes = 0;
        let messages = found.messages.into_iter().take_while(|message| {
            let before = bytes;
            bytes += message.data.len();
            before < HISTORY_BYTES
        });
        History {
            position: Some(group.log.position()),
            complete: found.complete && same_epoch,
            messages: messages.collect(),
        }
    }

    fn members(&self, group: &GroupName, ReadMembers { after, limit }: ReadMembers) -> MemberPage {
        let members = self.state().and_then(|state| state.group(group)).map(|group| &group.members);
        let later = members.into_iter().flatten().filter(|(session, _)| after.is_none_or(|after| **session > after));
        let mut page: Vec<_> =
            later.map(|(_, member)| member.clone()).take((limit as usize).saturating_add(1)).collect();
        let more = page.len() > limit as usize;
        page.truncate(limit as usize);
        MemberPage { members: page, more }
    }
}

/// What there is to say about a group, if it exists.
pub(super) fn info(state: &SlotState, name: &GroupName) -> Option<GroupInfo> {
    let group = state.group(name)?;
    Some(GroupInfo {
        group: name.clone(),
        epoch: group.log.epoch(),
        head: group.log.head(),
        kept: group.log.kept(),
        members: group.members.len() as u64,
    })
}
