//! What this node has asked of its peers and is not answered yet.

use std::collections::BTreeMap;

use crate::id::NodeId;

/// The questions, each with a number that its answer carries, and with `T`, who is to have the answer. A number is given
/// once, so that an answer that comes late is nobody's.
#[derive(Debug)]
pub struct Outstanding<T> {
    last: u64,
    asked: BTreeMap<u64, (NodeId, T)>,
}

impl<T> Default for Outstanding<T> {
    fn default() -> Self {
        Self { last: 0, asked: BTreeMap::new() }
    }
}

impl<T> Outstanding<T> {
    /// Notes a question to a peer; its number.
    pub fn ask(&mut self, peer: &NodeId, who: T) -> u64 {
        self.last += 1;
        let before = self.asked.insert(self.last, (peer.clone(), who));
        assert!(before.is_none(), "the number {} is given twice", self.last);
        self.last
    }

    /// A peer answers. Nothing where nobody waits for it, or where another peer was asked.
    pub fn answered(&mut self, from: &NodeId, number: u64) -> Option<T> {
        self.asked.get(&number).filter(|(peer, _)| peer == from)?;
        self.asked.remove(&number).map(|(_, who)| who)
    }

    /// Answers of this peer may be lost: those who wait for one.
    pub fn disrupted(&mut self, peer: &NodeId) -> Vec<T> {
        let lost: Vec<_> = self.asked.extract_if(.., |_, (asked, _)| asked == peer).collect();
        lost.into_iter().map(|(_, (_, who))| who).collect()
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&mut self, number: u64) {
        self.asked.remove(&number);
    }
}
