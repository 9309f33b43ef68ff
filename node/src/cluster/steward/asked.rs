//! What primaries have asked of the steward and the map does not show yet. Kept on every node that is asked: whoever is
//! steward by then carries it out.

use std::collections::BTreeMap;

use crate::{
    id::{Member, SlotId},
    logic::map::{ClusterMap, MapRequest},
};

/// At most so many for each slot of the map. More is dropped: primaries ask again.
const EACH: usize = 4;

/// The steward takes much less to carry out what it was asked.
const OVERDUE_MS: u64 = 1_500;

#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Each with the time since when it is known.
    requests: BTreeMap<(SlotId, bool, Member), (MapRequest, u64)>,
}

impl Asked {
    /// Remembers the request, in the place of an older one of the same kind for the same member.
    pub(super) fn add(&mut self, request: MapRequest, slots: u16, now_ms: u64) {
        let (key, changed_at) = match &request {
            MapRequest::Promote { slot, learner, changed_at } => ((*slot, true, learner.clone()), *changed_at),
            MapRequest::Drop { slot, member, changed_at } => ((*slot, false, member.clone()), *changed_at),
        };
        let room = self.requests.len() < EACH * usize::from(slots);
        let older = self.requests.get(&key).map(|(request, _)| assignment_of(request));
        if older.map_or(room, |older| older < changed_at) && key.0 < slots {
            self.requests.insert(key, (request, now_ms));
        }
    }

    /// Lets go of what was asked under an assignment that is over: it was carried out, or never will be.
    pub(super) fn prune(&mut self, map: &ClusterMap) {
        self.requests.retain(|(slot, ..), (request, _)| {
            map.slot(*slot).is_some_and(|assignment| assignment.changed_at <= assignment_of(request))
        });
    }

    pub(super) fn list(&self) -> Vec<MapRequest> {
        self.requests.values().map(|(request, _)| request.clone()).collect()
    }

    /// Whether something waits for so long that the steward may not have been told: who asked cannot reach it, perhaps.
    pub(super) fn is_overdue(&self, now_ms: u64) -> bool {
        self.requests.values().any(|(_, since_ms)| since_ms + OVERDUE_MS <= now_ms)
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
        asked.prune(&map);
        assert_eq!(asked.list(), [drop_member(0, 5, 2), drop_member(0, 9, 3), drop_member(1, 1, 1)]);
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
