//! What primaries have asked of the steward and the map does not show yet. Kept on every node that is asked: whoever is
//! steward by then carries it out.

use std::collections::BTreeMap;

use crate::{
    id::{Member, SlotId},
    map::{ClusterMap, MapRequest, SlotAssignment},
};

/// At most this many for each slot of the map. More is dropped: primaries ask again.
const EACH: usize = 4;

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
    /// Remembers the request, in the place of one of the same kind for the same member under an older assignment.
    pub(super) fn add(&mut self, request: MapRequest, slots: u16, now_ms: u64) {
        let (key, changed_at) = match &request {
            MapRequest::Promote { slot, learner, changed_at } => ((*slot, true, learner.clone()), *changed_at),
            MapRequest::Drop { slot, member, changed_at } => ((*slot, false, member.clone()), *changed_at),
        };
        let room = self.requests.len() < EACH * usize::from(slots);
        match self.requests.get_mut(&key) {
            Some(known) if assignment_of(&known.request) > changed_at => {}
            Some(known) if assignment_of(&known.request) == changed_at => known.last_ms = now_ms,
            None if !room || key.0 >= slots => {}
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

    #[test]
    fn what_is_over_is_let_go() {
        let mut asked = Asked::default();
        let mut map = ClusterMap::first(&member(1), 2);
        map.slots[0].changed_at = 5;
        for request in [drop_member(0, 4, 1), drop_member(0, 5, 2), drop_member(0, 9, 3), drop_member(1, 1, 1)] {
            asked.add(request, 2, 0);
        }
        asked.prune(&map, 0);
        assert_eq!(asked.list(), [drop_member(0, 5, 2), drop_member(0, 9, 3), drop_member(1, 1, 1)]);
    }

    #[test]
    fn a_drop_stands_for_as_long_as_it_is_repeated() {
        let (mut asked, map) = (Asked::default(), ClusterMap::first(&member(1), 2));
        let promote = MapRequest::Promote { slot: 1, changed_at: 9, learner: member(3) };
        asked.add(drop_member(0, 9, 2), 2, 1_000);
        asked.add(promote.clone(), 2, 1_000);
        asked.add(drop_member(0, 9, 2), 2, 1_250);
        asked.prune(&map, 1_249 + DROP_LAPSES_MS);
        assert_eq!(asked.list(), [drop_member(0, 9, 2), promote.clone()]);
        // Whoever asked to promote may be dead by now: the learner then takes its place.
        asked.prune(&map, 1_250 + DROP_LAPSES_MS);
        assert_eq!(asked.list(), [promote]);
    }

    #[test]
    fn it_is_bounded() {
        let mut asked = Asked::default();
        for number in 0..100 {
            asked.add(drop_member(0, 1, number), 2, 0);
            asked.add(drop_member(7, 1, number), 2, 0);
        }
        assert_eq!(asked.list().len(), 2 * EACH);
        // The newer of two alike stays.
        asked.add(drop_member(0, 3, 0), 2, 0);
        asked.add(drop_member(0, 2, 0), 2, 0);
        assert!(asked.list().contains(&drop_member(0, 3, 0)));
    }

    #[test]
    fn what_is_not_carried_out_is_overdue_however_often_it_is_repeated() {
        let mut asked = Asked::default();
        asked.add(drop_member(0, 5, 1), 2, 1_000);
        asked.add(drop_member(0, 5, 1), 2, 2_000);
        assert!(!asked.is_overdue(OVERDUE_MS + 999));
        assert!(asked.is_overdue(OVERDUE_MS + 1_000));
        // Another assignment is another request.
        asked.add(drop_member(0, 6, 1), 2, 2_000);
        assert!(!asked.is_overdue(OVERDUE_MS + 1_000));
    }
}
