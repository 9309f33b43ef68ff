//! What nodes have said of themselves over connections of their own, so that their certificates vouch for it. What others say
//! of a node is held against this: nobody is missed who speaks for itself, and nobody else says where it is reached.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::id::{Generation, Member, NodeId};

/// A node whose own heartbeat moved within this time is there, whatever others say. Below the time after which gossip alone
/// takes a silent node for dead, so that no death is noticed later for it.
const SPEAKS_MS: u64 = 800;

/// What a node said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Said {
    generation: Generation,
    /// Where it is reached.
    pub(super) addr: SocketAddr,
    pub(super) heartbeat: u64,
    /// When its heartbeat moved.
    moved_ms: u64,
}

impl Said {
    /// Whether it was there lately.
    pub(super) fn speaks(&self, now_ms: u64) -> bool {
        now_ms <= self.moved_ms + SPEAKS_MS
    }
}

/// By node: certificates of the cluster name them, so there are not many.
#[derive(Debug, Default)]
pub(super) struct Spoken(Mutex<BTreeMap<NodeId, Said>>);

impl Spoken {
    /// A member has said this of itself.
    pub(super) fn hear(&self, from: &Member, addr: SocketAddr, heartbeat: u64, now_ms: u64) {
        let mut spoken = self.lock();
        let new = Said { generation: from.generation, addr, heartbeat, moved_ms: now_ms };
        let said = spoken.entry(from.node.clone()).or_insert(new);
        if said.generation != from.generation || said.heartbeat < heartbeat {
            *said = new;
        }
        said.addr = addr;
    }

    /// What this start of a node said last.
    pub(super) fn of(&self, member: &Member) -> Option<Said> {
        self.lock().get(&member.node).copied().filter(|said| said.generation == member.generation)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Said>> {
        // No code panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
