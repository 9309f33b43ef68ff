//! What a primary does when those that hold its slot are short of memory: the oldest messages leave every copy by an entry, and
//! nothing new is begun.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::reign::Reigning;
use crate::{
    entry::{Entry, Message},
    id::GroupName,
    request::{GroupRequest, SessionRequest, SlotRequest, UpdateMember},
    slot::SlotState,
};

/// One in this number of bytes of the slot's messages goes at a time.
const SHED_SHARE: u64 = 8;

impl Reigning<'_> {
    /// Orders the oldest messages out of all copies. Those of one slot go by their age, whatever their group. What stays is
    /// what makes a repeat one publish, and the groups' epochs: who resumes is told of a gap.
    pub(super) fn shed(&mut self) {
        if self.replica.applied() < *self.shed_at {
            return;
        }
        let Some(until_ms) = self.state().and_then(oldest_share) else { return };
        if let Some(index) = self.replica.order(Entry::Shed { until_ms }) {
            *self.shed_at = index;
        }
    }

    /// Whether what is asked would be held besides what there is: a session, or a group that is not there. Gateways
    /// go on to follow what their clients are in, and private groups belong to sessions. A publish is looked at where it is
    /// ordered, since it may be a repeat.
    pub(super) fn begins_something(&self, request: &SlotRequest) -> bool {
        let is_there = |group: &GroupName| self.state().is_some_and(|state| state.group(group).is_some());
        match request {
            SlotRequest::Session(_, SessionRequest::CreateSession(_)) => true,
            SlotRequest::Group(
                group,
                GroupRequest::Join(_) | GroupRequest::UpdateMember(UpdateMember { enters: true, .. }),
            ) => !group.is_private() && !is_there(group),
            SlotRequest::Group(..)
            | SlotRequest::Session(..)
            | SlotRequest::Register { .. }
            | SlotRequest::Unregister { .. }
            | SlotRequest::Renew { .. } => false,
        }
    }
}

/// The time up to which the oldest messages make up a share of all.
fn oldest_share(state: &SlotState) -> Option<u64> {
    let mut logs: Vec<_> = state.groups().values().map(|group| group.log.messages()).collect();
    let front = |at: usize, message: &Message| Reverse((message.at_ms, at, message.held_bytes()));
    let fronts = logs.iter_mut().enumerate().filter_map(|(at, log)| Some(front(at, log.next()?)));
    let mut fronts: BinaryHeap<_> = fronts.collect();
    let mut left = state.held_bytes().history / SHED_SHARE;
    let mut until_ms = None;
    while let Some(Reverse((at_ms, at, bytes))) = fronts.pop() {
        until_ms = until_ms.max(Some(at_ms));
        if left <= bytes {
            break;
        }
        left -= bytes;
        fronts.extend(logs[at].next().map(|message| front(at, message)));
    }
    until_ms
}
