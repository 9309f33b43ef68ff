//! What primaries have asked of the steward and the map does not show yet. Kept on every node that is asked: whoever is
//! steward by then carries it out.

use std::collections::BTreeMap;

use crate::{
    id::{Member, SlotId},
    map::{ClusterMap, MapRequest, SlotAssignment},
};

/// A steward that was told carries a request out long before.
const OVERDUE_MS: u64 = 1_500;

/// A primary asks for a drop again and again while it waits for the member. One that it has not repeated for this long
/// is over: the member was heard again.
const DROP_LAPSES_MS: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct Asked {
    requests: BTreeMap<(SlotId, bool, Member), Request>,
}

#[derive(Debug)]
struct Request {
    request: MapRequest,
    /// When it was asked first, and last.
    since_ms: u64,
    last_ms: u64,
}

impl Request {
    fn lapsed(&self, now_ms: u64) -> bool {
        matches!(self.request, MapRequest::Drop { .. }) && self.last_ms + DROP_LAPSES_MS <= now_ms
    }
}

impl Asked {
    /// Remembers the request, in the place of one of the same kind for the same member under an older assignment. Only what the
    /// slot's primary asks about one of the slot's members: so there are few, and who asks too early asks again.
    pub(super) fn add(&mut self, map: &ClusterMap, from: &Member, request: MapRequest, now_ms: u64) {
        let (key, changed_at) = match &request {
            MapRequest::Promote { slot, learner, changed_at } => ((*slot, true, learner.clone()), *changed_at),
            MapRequest::Drop { slot, member, changed_at } => ((*slot, false, member.clone()), *changed_at),
        };
        let may_ask = |of: &SlotAssignment| of.primary == *from && of.concerns(&key.2);
        if !map.slot(key.0).is_some_and(may_ask) {
            return;
        }
        match self.requests.get_mut(&key) {
            Some(known) if assignment_of(&known.request) > changed_at => {}
            Some(known) if assignment_of(&known.request) == changed_at => known.last_ms = now_ms,
            _ => {
                self.requests.insert(key, Request { request, since_ms: now_ms, last_ms: now_ms });
            }
        }
    }

    /// Lets go of what was asked under an assignment that is over (it was carried out, or never will be), and of drops that
    /// nobody asks for any more.
    pub(super) fn prune(&mut self, map: &ClusterMap, now_ms: u64) {
        self.requests.retain(|(slot, ..), known| {
            let stands = |of: &SlotAssignment| of.changed_at <= assignment_of(&known.request);
            map.slot(*slot).is_some_and(stands) && !known.lapsed(now_ms)
        });
    }

    pub(super) fn list(&self) -> Vec<MapRequest> {
        self.requests.values().map(|known| known.request.clone()).collect()
    }

    /// Whether something has waited for longer than a steward takes: who asked cannot reach it, perhaps.
    pub(super) fn is_overdue(&self, now_ms: u64) -> bool {
        self.requests.values().any(|known| known.since_ms + OVERDUE_MS <= now_ms)
    }
}

fn assignment_of(request: &MapRequest) -> u64 {
    match request {
        MapRequest::Promote { changed_at, .. } | MapRequest::Drop { changed_at, .. } => *changed_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    fn member(number: u64) -> Member {
        Member { node: NodeId::parse("n1").unwrap(), generation: number }
    }

    fn drop_member(slot: SlotId, changed_at: u64, number: u64) -> MapRequest {
        MapRequest::Drop { slot, changed_at, member: member(number) }
    }

    /// Two slots, of which these members are in sync; the first leads.
    fn map() -> ClusterMap {
        let mut map = ClusterMap::first(&member(1), 2);
        for slot in &mut map.slots {
            slot.in_sync = (1..=9).map(member).collect();
        }
        map
    }

    fn add(asked: &mut Asked, request: MapRequest, now_ms: u64) {
        asked.add(&map(), &member(1), request, now_ms);
    }

    #[test]
    fn what_is_over_is_let_go() {
        let mut asked = Asked::default();
        let mut map = map();
        map.slots[0].changed_at = 5;
        for request in [drop_member(0, 4, 2), drop_member(0, 5, 3), drop_member(0, 9, 4), drop_member(1, 1, 2)] {
            add(&mut asked, request, 0);
        }
        asked.prune(&map, 0);
        assert_eq!(asked.list(), [drop_member(0, 5, 3), drop_member(0, 9, 4), drop_member(1, 1, 2)]);
    }

    #[test]
    fn a_drop_stands_for_as_long_as_it_is_repeated() {
        let (mut asked, map) = (Asked::default(), map());
        let promote = MapRequest::Promote { slot: 1, changed_at: 9, learner: member(3) };
        add(&mut asked, drop_member(0, 9, 2), 1_000);
        add(&mut asked, promote.clone(), 1_000);
        add(&mut asked, drop_member(0, 9, 2), 1_250);
        asked.prune(&map, 1_249 + DROP_LAPSES_MS);
        assert_eq!(asked.list(), [drop_member(0, 9, 2), promote.clone()]);
        // Whoever asked to promote may be dead by now: the learner then takes its place.
        asked.prune(&map, 1_250 + DROP_LAPSES_MS);
        assert_eq!(asked.list(), [promote]);
    }

    #[test]
    fn only_the_primary_asks_and_only_for_members_of_the_slot() {
        let mut asked = Asked::default();
        for number in 0..100 {
            add(&mut asked, drop_member(0, 1, number), 0);
            add(&mut asked, drop_member(7, 1, number), 0);
        }
        assert_eq!(asked.list().len(), 9, "those of the slot");
        for request in [
            drop_member(1, u64::MAX, 2),
            MapRequest::Promote { slot: 1, changed_at: 1, learner: member(3) },
            drop_member(0, u64::MAX, 2),
        ] {
            asked.add(&map(), &member(2), request, 0);
        }
        assert_eq!(asked.list().len(), 9, "another than the primary asks for nothing");
        // The newer of two alike stays.
        add(&mut asked, drop_member(0, 3, 2), 0);
        add(&mut asked, drop_member(0, 2, 2), 0);
        assert!(asked.list().contains(&drop_member(0, 3, 2)));
    }

    #[test]
    fn what_is_not_carried_out_is_overdue_however_often_it_is_repeated() {
        let mut asked = Asked::default();
        add(&mut asked, drop_member(0, 5, 2), 1_000);
        add(&mut asked, drop_member(0, 5, 2), 2_000);
        assert!(!asked.is_overdue(OVERDUE_MS + 999));
        assert!(asked.is_overdue(OVERDUE_MS + 1_000));
        // Another assignment is another request.
        add(&mut asked, drop_member(0, 6, 2), 2_000);
        assert!(!asked.is_overdue(OVERDUE_MS + 1_000));
    }
}
