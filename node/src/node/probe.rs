//! Every node sends itself a probe through each peer and looks whether it comes back: a node that can send but is not
//! heard, or the other way round, finds out by itself, in seconds.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    clock,
    id::{Member, NodeId},
};

/// A peer through which nothing has come back for this long counts as unheard.
const DEAF_MS: u64 = 3_000;

/// What this node knows of its probes.
#[derive(Debug)]
pub(super) struct Probes {
    me: Member,
    back: Mutex<BTreeMap<NodeId, u64>>,
}

impl Probes {
    /// None sent yet.
    pub(super) fn new(me: Member) -> Self {
        Self { me, back: Mutex::default() }
    }

    /// Whether this process sent it.
    pub(super) fn is_mine(&self, origin: &Member) -> bool {
        self.me == *origin
    }

    /// One has come back through this peer. Its nonce is the time when it was sent.
    pub(super) fn came_back(&self, through: &NodeId, nonce: u64) {
        let mut back = self.lock();
        let latest = back.entry(through.clone()).or_default();
        *latest = (*latest).max(nonce.min(clock::mono_ms()));
    }

    /// Whether probes went out through these peers and none of them has come back lately.
    pub(super) fn is_deaf(&self, peers: &[NodeId]) -> bool {
        let now_ms = clock::mono_ms();
        let mut back = self.lock();
        // A peer that is new is counted from now on.
        let recent = |peer: &NodeId, back: &mut BTreeMap<NodeId, u64>| {
            *back.entry(peer.clone()).or_insert(now_ms) + DEAF_MS >= now_ms
        };
        let heard = peers.iter().filter(|peer| recent(peer, &mut back)).count();
        back.retain(|peer, _| peers.contains(peer));
        heard == 0
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, u64>> {
        // No code panics while it holds this lock.
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
