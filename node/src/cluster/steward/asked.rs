//! What primaries have asked of the steward and the map does not show yet. Kept on every node that is asked: whoever is
//! steward by then carries it out.

use std::collections::BTreeMap;

use crate::{
    id::{Member, SlotId},
    logic::map::{ClusterMap, MapRequest},
};

/// At most so many for each slot of the map. More is dropped: primaries ask again.
const EACH: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Asked {
    requests: BTreeMap<(SlotId, bool, Member), MapRequest>,
}

impl Asked {
    /// Remembers the request, in the place of an older one of the same kind for the same member.
    pub(super) fn add(&mut self, request: MapRequest, slots: u16) {
        let (key, changed_at) = match &request {
            MapRequest::Promote { slot, learner, changed_at } => ((*slot, true, learner.clone()), *changed_at),
            MapRequest::Drop { slot, member, changed_at } => ((*slot, false, member.clone()), *changed_at),
        };
        let room = self.requests.len() < EACH * usize::from(slots);
        let older = self.requests.get(&key).map(assignment_of);
        if older.map_or(room, |older| older < changed_at) && key.0 < slots {
            self.requests.insert(key, request);
        }
    }

    /// Lets go of what was asked under an assignment that is over: it was carried out, or never will be.
    pub(super) fn prune(&mut self, map: &ClusterMap) {
        self.requests.retain(|(slot, ..), request| {
            map.slot(*slot).is_some_and(|assignment| assignment.changed_at <= assignment_of(request))
        });
    }

    pub(super) fn list(&self) -> Vec<MapRequest> {
        self.requests.values().cloned().collect()
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
            asked.add(request, 2);
        }
        asked.prune(&map);
        assert_eq!(asked.list(), [drop_member(0, 5, 2), drop_member(0, 9, 3), drop_member(1, 1, 1)]);
    }

    #[test]
    fn it_is_bounded() {
        let mut asked = Asked::default();
        for number in 0..100 {
            asked.add(drop_member(0, 1, number), 2);
            asked.add(drop_member(7, 1, number), 2);
        }
        assert_eq!(asked.list().len(), 2 * EACH);
        // The newer of two alike stays.
        asked.add(drop_member(0, 3, 0), 2);
        asked.add(drop_member(0, 2, 0), 2);
        assert!(asked.list().contains(&drop_member(0, 3, 0)));
    }
}
