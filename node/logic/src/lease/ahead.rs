//! Newer maps than its own that a gateway hears of from those who deliver to it.

use std::collections::BTreeMap;

use crate::id::NodeId;

/// What primaries say with all that they send: since which map the voters are those that they fence with. A gateway that does
/// not know that map delivers nothing before it does, for it may have been fenced without anybody that it hears.
///
/// Whoever tells of a map that there is not is not heeded for a while: it must not keep a gateway silent.
#[derive(Debug, Default)]
pub struct Ahead {
    told: BTreeMap<NodeId, u64>,
    /// Not heeded until then, by the monotonic clock in milliseconds.
    distrusted: BTreeMap<NodeId, u64>,
}

impl Ahead {
    /// A peer's voters are those of the map of this version, which this node does not know.
    pub fn hear(&mut self, now_ms: u64, by: &NodeId, version: u64) {
        if self.distrusted.get(by).is_some_and(|until_ms| now_ms < *until_ms) {
            return;
        }
        match self.told.get_mut(by) {
            Some(before) => *before = version.max(*before),
            None => {
                self.told.insert(by.clone(), version);
            }
        }
    }

    /// The store does not have the map that the peer told of ([`HintOutput::Lied`](crate::hints::HintOutput::Lied)).
    pub fn lied(&mut self, by: &NodeId, until_ms: u64) {
        self.told.remove(by);
        self.distrusted.insert(by.clone(), until_ms);
    }

    /// The map of this version is known.
    pub fn know(&mut self, version: u64) {
        self.told.retain(|_, told| *told > version);
    }

    /// The newest that was told of; 0 where none is.
    pub fn version(&self) -> u64 {
        self.told.values().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_holds_until_it_is_known_or_found_to_be_a_lie() {
        let node = |name| NodeId::parse(name).unwrap();
        let mut ahead = Ahead::default();
        ahead.hear(0, &node("n1"), 7);
        ahead.hear(0, &node("n1"), 6);
        ahead.hear(0, &node("n2"), 1 << 50);
        assert_eq!(ahead.version(), 1 << 50);
        ahead.lied(&node("n2"), 5_000);
        assert_eq!(ahead.version(), 7);
        ahead.hear(4_999, &node("n2"), 1 << 50);
        ahead.know(7);
        assert_eq!(ahead.version(), 0);
        ahead.hear(5_000, &node("n2"), 8);
        assert_eq!(ahead.version(), 8);
    }
}
