//! How long a request has been under way, without clocks that agree.
//!
//! Each request carries the time of its sending by its sender's own clock. What lies between that and its arrival by ours is
//! the clocks' difference, the same for all, and the time under way; the least of it that was seen lately stands for the
//! difference and the shortest way. What a request has more than that it has spent in queues.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::id::Member;

/// The least is remembered for one to two times this: clocks drift, and a queue may stand for a while.
const WINDOW_MS: u64 = 60_000;

/// What was seen of each peer. Shared by the lanes of all peers.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    peers: Mutex<BTreeMap<Member, Least>>,
}

#[derive(Clone, Copy, Debug)]
struct Least {
    since_ms: u64,
    now: i128,
    before: i128,
}

impl Lateness {
    /// How much longer than others of this peer something took that was sent and received then, in milliseconds.
    pub(super) fn of(&self, peer: &Member, sent_ms: u64, received_ms: u64) -> u64 {
        let took = i128::from(received_ms) - i128::from(sent_ms);
        let new = Least { since_ms: received_ms, now: took, before: took };
        let mut peers = self.lock();
        let least = match peers.get_mut(peer) {
            Some(least) => least,
            None => peers.entry(peer.clone()).or_insert(new),
        };
        if least.since_ms + WINDOW_MS <= received_ms {
            *least = Least { since_ms: received_ms, now: took, before: least.now };
        }
        least.now = least.now.min(took);
        // Both are differences to the same clocks, and `took` is not below either: it fits.
        u64::try_from(took - least.now.min(least.before)).unwrap_or(0)
    }

    /// The peer's connection is a new one: its process may be, and its clock may have stood still.
    pub(super) fn forget(&self, peer: &Member) {
        self.lock().remove(peer);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Member, Least>> {
        // No code panics while it holds this lock.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    fn peer() -> Member {
        Member { node: NodeId::parse("n2").unwrap(), generation: 1 }
    }

    #[test]
    fn what_waited_longer_than_others_is_late_by_that() {
        for difference in [0_i64, 1_000_000, -4_000] {
            let lateness = Lateness::default();
            let of = |sent: i64, took: i64| {
                lateness.of(&peer(), (10_000 + sent) as u64, (10_000 + sent + took + difference) as u64)
            };
            assert_eq!(of(0, 3), 0, "the first is the best so far");
            assert_eq!(of(10, 1), 0);
            assert_eq!(of(20, 1), 0);
            assert_eq!(of(30, 2_001), 2_000);
            assert_eq!(of(40, 2_001), 2_000);
            assert_eq!(of(50, 1), 0);
        }
    }

    #[test]
    fn clocks_may_drift_and_stand_still() {
        let lateness = Lateness::default();
        assert_eq!(lateness.of(&peer(), 0, 0), 0);
        // A clock that loses a millisecond each second.
        let most = (1..1_000).map(|second| lateness.of(&peer(), second * 999, second * 1_000)).max();
        assert!(most <= Some(2 * WINDOW_MS / 1_000), "{most:?}");
        // One that stood still for an hour, and a new connection.
        assert!(lateness.of(&peer(), 999_000, 4_600_000) > 3_000_000);
        lateness.forget(&peer());
        assert_eq!(lateness.of(&peer(), 999_001, 4_600_001), 0);
    }

    #[test]
    fn no_time_that_a_peer_may_send_does_harm() {
        let lateness = Lateness::default();
        for sent in [0, u64::MAX, 1, u64::MAX - 1] {
            lateness.of(&peer(), sent, 5);
            lateness.of(&peer(), sent, u64::MAX / 2);
        }
    }
}
