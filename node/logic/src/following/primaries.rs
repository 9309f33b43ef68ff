//! The primaries of the slots whose groups are followed here: which they are, and whether what they push gets here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Following, Group, Output};
use crate::{
    feed::{self, FeedSettings},
    id::{GroupName, Member, SlotId, Term},
    map::SharedMap,
};

/// A slot with groups that are followed here.
#[derive(Debug)]
pub(super) struct Slot {
    primary: Option<(Term, Member)>,
    /// When the primary was last heard, while it is not.
    pub(super) unreachable_since_ms: Option<u64>,
    /// What all of its feeds share.
    pub(super) feeds: Arc<FeedSettings>,
    pub(super) groups: BTreeMap<GroupName, Group>,
}

/// What is known of all nodes.
#[derive(Debug)]
pub(super) struct Primaries {
    me: Member,
    map: Option<SharedMap>,
    /// Members that have a connection to this node.
    heard: BTreeSet<Member>,
    alive: Arc<BTreeSet<Member>>,
}

impl Primaries {
    pub(super) fn new(me: Member) -> Self {
        Self { me, map: None, heard: BTreeSet::new(), alive: Arc::default() }
    }

    /// A slot of which nothing was followed until now.
    pub(super) fn look_up(&self, now_ms: u64, slot: SlotId, feeds: FeedSettings) -> Slot {
        let primary = self.primary(slot);
        let unreachable_since_ms = (!self.reaches(primary.as_ref())).then_some(now_ms);
        Slot { primary, unreachable_since_ms, feeds: Arc::new(feeds), groups: BTreeMap::new() }
    }

    fn primary(&self, slot: SlotId) -> Option<(Term, Member)> {
        let assignment = self.map.as_ref()?.slot(slot)?;
        Some((assignment.term, assignment.primary.clone()))
    }

    /// Whether what this primary pushes can get here. Without a map nothing is known yet.
    fn reaches(&self, primary: Option<&(Term, Member)>) -> bool {
        primary.is_none_or(|(_, primary)| {
            *primary == self.me || self.heard.contains(primary) && self.alive.contains(primary)
        })
    }
}

impl Following {
    pub(super) fn map_changed(&mut self, now_ms: u64, map: SharedMap, out: &mut Vec<Output>) {
        self.primaries.map = Some(map);
        let mut changed = Vec::new();
        for (id, slot) in &mut self.slots {
            let primary = self.primaries.primary(*id);
            if primary != slot.primary {
                slot.primary = primary;
                changed.push(*id);
            }
        }
        for slot in changed {
            self.step_all(now_ms, slot, &feed::Input::Disrupted, out);
        }
        self.look_at_primaries(now_ms, now_ms, out);
    }

    pub(super) fn alive_changed(&mut self, now_ms: u64, alive: Arc<BTreeSet<Member>>, out: &mut Vec<Output>) {
        self.primaries.alive = alive;
        self.look_at_primaries(now_ms, now_ms, out);
    }

    pub(super) fn peer_connected(&mut self, now_ms: u64, peer: Member, out: &mut Vec<Output>) {
        let is_primary = |slot: &Slot| slot.primary.as_ref().is_some_and(|(_, primary)| *primary == peer);
        let slots: Vec<_> = self.slots.iter().filter(|(_, slot)| is_primary(slot)).map(|(id, _)| *id).collect();
        self.primaries.heard.insert(peer);
        for slot in slots {
            self.step_all(now_ms, slot, &feed::Input::Disrupted, out);
        }
        self.look_at_primaries(now_ms, now_ms, out);
    }

    pub(super) fn peer_lost(&mut self, now_ms: u64, peer: &Member, out: &mut Vec<Output>) {
        self.primaries.heard.remove(peer);
        self.look_at_primaries(now_ms, now_ms.saturating_sub(self.settings.noticed_after_ms), out);
    }

    /// Tells the feeds whose primary has become unreachable, or reachable again.
    fn look_at_primaries(&mut self, now_ms: u64, last_heard_ms: u64, out: &mut Vec<Output>) {
        let mut changed = Vec::new();
        for (id, slot) in &mut self.slots {
            let reachable = self.primaries.reaches(slot.primary.as_ref());
            match slot.unreachable_since_ms {
                None if !reachable => {
                    slot.unreachable_since_ms = Some(last_heard_ms);
                    changed.push((*id, feed::Input::PrimaryUnreachable { since_ms: last_heard_ms }));
                }
                Some(_) if reachable => {
                    slot.unreachable_since_ms = None;
                    changed.push((*id, feed::Input::PrimaryReachable));
                }
                Some(_) | None => {}
            }
        }
        for (slot, input) in changed {
            self.step_all(now_ms, slot, &input, out);
        }
    }
}
