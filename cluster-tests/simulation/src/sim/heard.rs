//! L2: who is live in a group whose primary its gateway has not heard for a while has been told that it is stale. And whoever
//! has not been told so hears what is acknowledged, without waiting for a renewal to bring to light that it is deaf.

use std::collections::BTreeMap;

use roost_logic::id::{Member, SlotId, Term};

use super::world::World;

/// A process looks at its clocks this much too late at most.
const LATE_MS: u64 = 500;
/// A message is at most this long under way.
const UNDER_WAY_MS: u64 = 1_500;

/// Which primaries a process hears, as the world knows it.
#[derive(Debug, Default)]
pub(super) struct HeardPrimaries {
    /// Those that it does not hear, and since when.
    cut_off: BTreeMap<SlotId, (Member, u64)>,
    /// Those that serve and that it knows and hears, and since when.
    well: BTreeMap<SlotId, ((Member, Term), u64)>,
}

impl HeardPrimaries {
    /// It has stood still: nothing is asked of the time before.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl World {
    /// Whether what this member sends reaches the node.
    fn reaches(&self, member: &Member, node: usize) -> bool {
        let Some(from) = self.running(member) else { return false };
        from == node || (!self.nodes[from].paused && self.links[from][node].carries(member))
    }

    /// Since when nothing of its primary has reached the node: at the latest.
    fn cut_off_since(&mut self, node: usize, slot: SlotId) -> Option<u64> {
        let (primary, _) = self.primary(node, slot)?;
        if self.reaches(&primary, node) {
            self.process(node).heard.cut_off.remove(&slot);
            return None;
        }
        let (now, from) = (self.now, self.node_number(&primary));
        let good_ms = self.links[from][node].good_ms;
        let there = self.process(node).heard.cut_off.entry(slot).or_insert_with(|| (primary.clone(), now));
        if there.0 != primary {
            *there = (primary, now);
        }
        there.1 = there.1.max(good_ms);
        Some(there.1)
    }

    /// Since when the slot's true primary serves and is known and heard: at the latest.
    fn well_since(&mut self, node: usize, slot: SlotId) -> Option<u64> {
        let known = self.primary(node, slot)?;
        let serves = self.serving_core(slot).is_some_and(|core| core.replica().serving() == Some(known.1));
        if !serves || !self.reaches(&known.0, node) {
            self.process(node).heard.well.remove(&slot);
            return None;
        }
        let (now, from) = (self.now, self.node_number(&known.0));
        let good_ms = self.links[from][node].good_ms;
        let there = self.process(node).heard.well.entry(slot).or_insert_with(|| (known.clone(), now));
        if there.0 != known {
            *there = (known, now);
        }
        there.1 = there.1.max(good_ms);
        Some(there.1)
    }

    pub(super) fn check_heard(&mut self, node: usize) {
        self.check_stale(node);
        let Some(generation) = self.generation(node) else { return };
        let within_ms = self.profile.following.feed.stale_after_ms + UNDER_WAY_MS;
        let Some(until_ms) = self.now.checked_sub(within_ms) else { return };
        for slot in 0..self.profile.slots {
            if self.well_since(node, slot).is_none_or(|since_ms| since_ms > until_ms) {
                continue;
            }
            for (number, listener) in self.listeners.iter().enumerate() {
                let (group, of) = &self.groups[listener.group];
                if *of != slot || !listener.trusts(node, generation) || listener.trusts_since_ms > until_ms {
                    continue;
                }
                let (Some(due), Some(at)) = (self.ledger.acknowledged_until(group, until_ms), listener.position) else {
                    continue;
                };
                if due.epoch == at.epoch && due.offset > at.offset {
                    let node = &self.nodes[node].id;
                    let what = format!(
                        "L2: listener {number} of {group} at {node} is at {at:?}, {due:?} was acknowledged {within_ms} ms ago"
                    );
                    self.ledger.fail(what);
                }
            }
        }
    }

    fn check_stale(&mut self, node: usize) {
        let told_after_ms = self.profile.keep_alive_ms + self.profile.following.feed.stale_after_ms + LATE_MS;
        let Some(generation) = self.generation(node) else { return };
        for slot in 0..self.profile.slots {
            let Some(since_ms) = self.cut_off_since(node, slot).filter(|since| since + told_after_ms < self.now) else {
                continue;
            };
            self.ledger.count("gateways cut off from a primary");
            for (number, listener) in self.listeners.iter().enumerate() {
                if self.groups[listener.group].1 == slot && listener.trusts(node, generation) {
                    let (node, group) = (&self.nodes[node].id, &self.groups[listener.group].0);
                    let what = format!(
                        "L2: {node} has not heard the primary of {group} since {since_ms} ms, and listener {number} \
                         was not told so"
                    );
                    self.ledger.fail(what);
                }
            }
        }
    }
}
