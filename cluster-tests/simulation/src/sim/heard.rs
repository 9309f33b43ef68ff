//! L2: who is live in a group whose primary its gateway has not heard for a while has been told that it is stale.

use std::collections::BTreeMap;

use roost_logic::id::{Member, SlotId};

use super::world::World;

/// A process looks at its clocks this much too late at most.
const LATE_MS: u64 = 500;

/// Which primaries a process has not heard, and since when, as the world knows it.
#[derive(Debug, Default)]
pub(super) struct CutOff(BTreeMap<SlotId, (Member, u64)>);

impl CutOff {
    /// It has stood still: nothing is asked of the time before.
    pub(super) fn clear(&mut self) {
        self.0.clear();
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
            self.process(node).cut_off.0.remove(&slot);
            return None;
        }
        let (now, from) = (self.now, self.node_number(&primary));
        let good_ms = self.links[from][node].good_ms;
        let there = self.process(node).cut_off.0.entry(slot).or_insert_with(|| (primary.clone(), now));
        if there.0 != primary {
            *there = (primary, now);
        }
        there.1 = there.1.max(good_ms);
        Some(there.1)
    }

    pub(super) fn check_stale(&mut self, node: usize) {
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
