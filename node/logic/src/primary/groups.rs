//! What a primary does about groups: requests, and what comes of their entries.
//!
//! A publish may ask for a number of copies. While there are fewer, new ones are refused. One that is in the log already,
//! because copies were lost after it was ordered or because it is a repeat, is answered when enough copies have it. It is
//! delivered when it is committed all the same: a message that waits would hold up those that follow it in the group.
//!
//! What one request publishes is one entry, and has one answer. What is committed of a group in one step goes to each gateway
//! in one push.

use std::{collections::BTreeSet, mem};

use super::{SlotOutput, Ticket, joins::Following, reign::Reigning};
use crate::{
    Now,
    asking::ATTEMPT_MS,
    entry::{Entry, EphemeralMessage, GroupEntry, Message, Present},
    few::Few,
    id::{Epoch, GroupName, Member, Position},
    memory::Level,
    request::{
        Done, GroupInfo, GroupPush, GroupRequest, History, Join, Leave, MemberPage, PresentSession, Publish,
        PublishEphemeral, Published, Push, ReadGroup, ReadHistory, ReadMembers, SlotAnswer, SlotError, UpdateMember,
    },
    slot::{GroupEffect, SlotState},
};

/// The answer to a history has about this many bytes of messages; who wants what follows asks again.
const HISTORY_BYTES: usize = 4 << 20;

/// A push has about this many bytes of messages, unless those of one entry have more.
const PUSH_BYTES: usize = 256 << 10;

/// What waits for an entry of a group to be committed.
#[derive(Debug)]
pub(super) enum GroupPending {
    /// To be answered when this number of copies have it.
    Publish {
        ticket: Ticket,
        min_copies: u8,
    },
    /// Publishes that are not taken now: those that are repeats are told their places, the others this reason.
    Recall {
        ticket: Ticket,
        min_copies: u8,
        refusal: SlotError,
    },
    /// Whoever follows the group, or others that were opened before it.
    Follow(Following),
    Done(Ticket),
    /// The end of the group.
    Forget,
}

impl GroupPending {
    /// Whom to answer if nothing is heard of the entry any more, and whether it may be done all the same.
    pub(super) fn into_ticket(self) -> Option<(Ticket, bool)> {
        match self {
            Self::Publish { ticket, .. } | Self::Done(ticket) => Some((ticket, true)),
            Self::Follow(following) => Some((following.ticket(), true)),
            Self::Recall { ticket, .. } => Some((ticket, false)),
            Self::Forget => None,
        }
    }
}

/// Where the messages of one request stand: the log, and the offset of each, or why it was not taken.
type Places = (Epoch, Few<Result<u64, SlotError>>);

/// Publishes that are committed, and whose answer waits for more copies.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) ticket: Ticket,
    places: Places,
    min_copies: u8,
    /// Its gateway asks again by then.
    until_ms: u64,
}

/// Messages of a group that were committed in this step, and are about to be pushed.
#[derive(Debug)]
pub(super) struct Delivering {
    group: GroupName,
    epoch: Epoch,
    messages: Few<Message>,
    /// Of their data.
    bytes: usize,
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
            GroupRequest::Leave(Leave { seat }) => {
                let entry = GroupEntry::MemberLeave { seat };
                return self.order_group(group, entry, Some(GroupPending::Done(ticket)));
            }
            GroupRequest::UpdateMember(UpdateMember { member, enters }) => {
                let epoch = self.new_epoch();
                let entry =
                    if enters { GroupEntry::MemberJoin { epoch, member } } else { GroupEntry::MemberUpdate { member } };
                return self.order_group(group, entry, Some(GroupPending::Done(ticket)));
            }
            GroupRequest::ReadHistory(read) => self.history(&group, read).into(),
            GroupRequest::ReadMembers(read) => self.members(&group, read).into(),
            GroupRequest::ReadGroup(ReadGroup) => self.state().and_then(|state| info(state, &group)).into(),
            GroupRequest::PublishEphemeral(publish) => {
                self.pass_on(now, group, publish, out);
                Done.into()
            }
        };
        out.push(SlotOutput::Answer { ticket, result: Ok(answer) });
    }

    fn publish(&mut self, now: Now, ticket: Ticket, group: GroupName, publish: Publish) {
        let Publish { messages, from, retention, min_copies } = publish;
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
            let keys = messages.iter().map(|message| message.key).collect();
            return self.order_group(group, GroupEntry::Recall { keys }, Some(pending));
        }
        let epoch = self.new_epoch();
        let entry = GroupEntry::Publish { epoch, messages, from, at_ms: now.wall_ms, retention };
        self.order_group(group, entry, Some(GroupPending::Publish { ticket, min_copies }));
    }

    /// Publishes for which the queue has no room. Repeats need none: they are told their places, and the others are refused. While
    /// what one of them repeats is under way they all come again.
    pub(super) fn publish_beyond_queue(
        &mut self,
        now: Now,
        ticket: Ticket,
        (group, publish): (&GroupName, &Publish),
        out: &mut Vec<SlotOutput>,
    ) {
        let log = self.state().and_then(|state| state.group(group)).map(|there| &there.log);
        let keys = || publish.messages.iter().map(|message| message.key);
        let offsets: Vec<_> = keys().map(|key| log.and_then(|log| log.seen(key))).collect();
        let unknown: BTreeSet<_> =
            keys().zip(&offsets).filter(|(_, offset)| offset.is_none()).map(|(key, _)| key).collect();
        let known = log.map(|log| (log.epoch(), offsets));
        let is_under_way = |entry: &Entry| match entry {
            Entry::Group(other, GroupEntry::Publish { messages, .. }) => {
                other == group && messages.iter().any(|message| unknown.contains(&message.key))
            }
            Entry::Group(..) | Entry::Session(..) | Entry::Shed { .. } => false,
        };
        if !unknown.is_empty() && self.replica.uncommitted_entries().any(is_under_way) {
            return self.leave_open(ticket, out);
        }
        self.answer_recalled(now, (ticket, publish.min_copies), known, SlotError::Busy, out);
    }

    /// Answers publishes that are not taken: with their places those that are known, with the refusal the others.
    fn answer_recalled(
        &mut self,
        now: Now,
        asked: (Ticket, u8),
        known: Option<(Epoch, Vec<Option<u64>>)>,
        refusal: SlotError,
        out: &mut Vec<SlotOutput>,
    ) {
        match known {
            Some((epoch, offsets)) if offsets.iter().any(Option::is_some) => {
                let place = |offset: Option<u64>| offset.ok_or_else(|| refusal.clone());
                let places = (epoch, offsets.into_iter().map(place).collect());
                self.answer_publish(now, asked, places, out);
            }
            Some(_) | None => out.push(SlotOutput::Answer { ticket: asked.0, result: Err(refusal) }),
        }
    }

    /// Answers publishes that are committed. All in-sync members hold what is committed: where these are too few, the answer
    /// waits until a map names more.
    fn answer_publish(
        &mut self,
        now: Now,
        (ticket, min_copies): (Ticket, u8),
        places: Places,
        out: &mut Vec<SlotOutput>,
    ) {
        let copies = self.replica.copies();
        if min_copies <= copies {
            let (epoch, offsets) = places;
            let published = |offset| Published { position: Position { epoch, offset }, copies };
            let published = offsets.into_iter().map(|offset| offset.map(published)).collect();
            return out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Published(published)) });
        }
        if self.groups.held.len() >= self.settings.queue {
            return self.leave_open(ticket, out);
        }
        self.groups.held.push(Held { ticket, places, min_copies, until_ms: now.mono_ms + ATTEMPT_MS });
    }

    /// Answers those that enough copies have now. Whoever has waited for too long does not know what became of it.
    pub(super) fn answer_held(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        let copies = self.replica.copies();
        for held in mem::take(&mut self.groups.held) {
            if held.min_copies <= copies {
                self.answer_publish(now, (held.ticket, held.min_copies), held.places, out);
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
        let (mut placed, mut recalled) = (None, None);
        match effect {
            GroupEffect::Published { epoch, offsets, messages } => {
                self.gather(&group, epoch, messages, out);
                placed = Some((epoch, offsets));
            }
            GroupEffect::Recalled { epoch, offsets } => recalled = Some((epoch, offsets)),
            GroupEffect::Member { event, member } => {
                self.deliver(out);
                let present = self.present(&group);
                self.tell_followers(group.clone(), GroupPush::Member { event, member, present }, out);
            }
            GroupEffect::Quiet => {}
        }
        match pending {
            None => {}
            Some(GroupPending::Publish { ticket, min_copies }) => {
                let Some((epoch, offsets)) = placed else { unreachable!("a publish has come to no place") };
                let places = (epoch, offsets.into_iter().map(Ok).collect());
                self.answer_publish(now, (ticket, min_copies), places, out);
            }
            Some(GroupPending::Recall { ticket, min_copies, refusal }) => {
                self.answer_recalled(now, (ticket, min_copies), recalled, refusal, out);
            }
            Some(GroupPending::Follow(following)) => self.follow(now, following, out),
            Some(GroupPending::Done(ticket)) => {
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
            }
            Some(GroupPending::Forget) => {
                let was_ordered = self.groups.forgetting.remove(&group);
                assert!(was_ordered, "an end is committed once");
                self.groups.idle.remove(&group);
            }
        }
    }

    /// Committed messages wait for others of their group that are committed in the same step.
    fn gather(&mut self, group: &GroupName, epoch: Epoch, messages: Few<Message>, out: &mut Vec<SlotOutput>) {
        if messages.is_empty() || !self.groups.interests.contains_key(group) {
            return;
        }
        let bytes = |messages: &[Message]| messages.iter().map(|message| message.data.len()).sum::<usize>();
        match &mut self.groups.delivering {
            Some(Delivering { group: other, epoch: of, messages: gathered, bytes: sum })
                if other == group && *of == epoch && *sum + bytes(&messages) <= PUSH_BYTES =>
            {
                *sum += bytes(&messages);
                gathered.extend(messages);
            }
            _ => {
                self.deliver(out);
                let (group, bytes) = (group.clone(), bytes(&messages));
                self.groups.delivering = Some(Delivering { group, epoch, messages, bytes });
            }
        }
    }

    /// What has been gathered goes to those who follow the group now: called at the end of a step, and before anything else is
    /// told of groups, or others follow them.
    pub(super) fn deliver(&mut self, out: &mut Vec<SlotOutput>) {
        if let Some(Delivering { group, epoch, messages, bytes: _ }) = self.groups.delivering.take() {
            let contiguous = |pair: &[Message]| pair[0].offset + 1 == pair[1].offset;
            assert!(messages.windows(2).all(contiguous), "what is delivered follows each other");
            self.tell_followers(group, GroupPush::Deliver { epoch, messages }, out);
        }
    }

    fn tell_followers(&self, group: GroupName, push: GroupPush, out: &mut Vec<SlotOutput>) {
        let Some(gateways) = self.groups.interests.get(&group) else { return };
        let push = Push::Group(group, push);
        for (gateway, _) in gateways {
            self.push(gateway, push.clone(), out);
        }
    }

    /// To those that follow the group now, where it exists or not: it makes nothing exist.
    fn pass_on(&self, now: Now, group: GroupName, publish: PublishEphemeral, out: &mut Vec<SlotOutput>) {
        let PublishEphemeral { data, from } = publish;
        let message = |data| EphemeralMessage { data, from: from.clone(), at_ms: now.wall_ms };
        let messages = data.into_iter().map(message).collect();
        self.tell_followers(group, GroupPush::Ephemeral { messages }, out);
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

    /// How many are present.
    pub(super) fn present(&self, group: &GroupName) -> Present {
        self.state().and_then(|state| state.group(group)).map(|group| group.members.present()).unwrap_or_default()
    }

    fn members(&self, group: &GroupName, ReadMembers { after, limit }: ReadMembers) -> MemberPage {
        let members = self.state().and_then(|state| state.group(group)).map(|group| &group.members);
        let later = members.into_iter().flat_map(|members| members.sessions_after(after));
        let present = later.map(|(member, clients)| PresentSession { member: member.clone(), clients });
        let mut page: Vec<_> = present.take((limit as usize).saturating_add(1)).collect();
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
        present: group.members.present(),
    })
}
