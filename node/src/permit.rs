//! Whether this node may deliver to its clients, as `lease.rs` has it and everybody who writes to one asks.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

use crate::{
    clock,
    id::NodeId,
    logic::{
        lease::{Ahead, Permission},
        liveness::Pace,
    },
};

/// Whether this node may deliver, as whoever writes to a client asks right before that. By default it always may.
#[derive(Debug)]
pub struct Permit {
    given: RwLock<Given>,
    /// Since which map the voters are those that this node knows.
    voters_since: AtomicU64,
    episodes: watch::Sender<u64>,
    still: Mutex<Still>,
}

#[derive(Debug)]
struct Given {
    permission: Permission,
    ahead: Ahead,
}

/// Whether this process stood still.
#[derive(Debug, Default)]
struct Still {
    /// Of the task's looks; nothing before the first.
    pace: Option<Pace>,
    /// When it last began to stand still, and when it was noticed that it goes on.
    last: Option<(u64, u64)>,
}

/// Between two looks of the task: past it the process stood still.
const STILL_MS: u64 = 500;
/// What was sent to a process that stood still is read within this time.
const READ_MS: u64 = 1_000;

impl Default for Permit {
    fn default() -> Self {
        Self {
            given: RwLock::new(Given {
                permission: Permission { episode: 0, until_ms: u64::MAX, map_version: u64::MAX },
                ahead: Ahead::default(),
            }),
            voters_since: AtomicU64::new(0),
            episodes: watch::Sender::new(0),
            still: Mutex::default(),
        }
    }
}

impl Still {
    fn look(&mut self, now_ms: u64) {
        let pace = self.pace.get_or_insert_with(|| Pace::new(STILL_MS, now_ms));
        if let Some(still_ms) = pace.look(now_ms) {
            self.last = Some((now_ms - still_ms, now_ms));
        }
    }

    /// How long what is read now may have lain there.
    fn late_ms(&self, now_ms: u64) -> u64 {
        // It may stand still no more before the task has noticed that it did.
        let not_noticed = self.pace.and_then(|mut pace| pace.look(now_ms));
        let lately = self.last.filter(|(_, until_ms)| now_ms < until_ms + READ_MS);
        not_noticed.or(lately.map(|(since_ms, _)| now_ms - since_ms)).unwrap_or(0)
    }
}

impl Permit {
    /// Whether a write may begin now to a connection whose attachment was confirmed in this episode.
    pub fn allows(&self, confirmed: u64) -> bool {
        let given = self.given();
        given.permission.allows(confirmed, clock::mono_ms(), &given.ahead)
    }

    /// Whether a write may begin now to a connection that has no attachment.
    pub fn allows_any(&self) -> bool {
        let given = self.given();
        given.permission.allows(given.permission.episode, clock::mono_ms(), &given.ahead)
    }

    /// Nothing may be delivered yet.
    pub fn none() -> Arc<Self> {
        let this = Self::default();
        this.set(Permission::default(), 0);
        Arc::new(this)
    }

    /// Since which map the voters are those that this node knows.
    pub fn voters_since(&self) -> u64 {
        self.voters_since.load(Ordering::Acquire)
    }

    /// A peer says since which map the voters are those that it knows. Whether this node does not know that map: then it delivers
    /// nothing until it does, or until the peer is found to [lie](Self::lied).
    #[must_use]
    pub fn hear_ahead(&self, by: &NodeId, version: u64) -> bool {
        let is_ahead = self.given().permission.map_version < version;
        if is_ahead {
            self.change(|given| given.ahead.hear(clock::mono_ms(), by, version));
        }
        is_ahead
    }

    /// The store does not have the map that the peer told of, which is not heeded until then.
    pub fn lied(&self, by: &NodeId, until_ms: u64) {
        self.change(|given| given.ahead.lied(by, until_ms));
    }

    /// The episodes as they begin, and the present one once more when something may be delivered in it again.
    pub fn episodes(&self) -> watch::Receiver<u64> {
        self.episodes.subscribe()
    }

    /// How long what is read from a client now may have lain there, in milliseconds: as long as this process stood still.
    pub fn late_ms(&self) -> u64 {
        self.still().late_ms(clock::mono_ms())
    }

    /// The task of the lease looks.
    pub(crate) fn look(&self, now_ms: u64) {
        self.still().look(now_ms);
    }

    fn still(&self) -> MutexGuard<'_, Still> {
        self.still.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the lease says now.
    pub(crate) fn set(&self, permission: Permission, voters_since: u64) {
        self.voters_since.store(voters_since, Ordering::Release);
        self.change(|given| {
            given.permission = permission;
            given.ahead.know(permission.map_version);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Given)) {
        let mut given = self.given.write().unwrap_or_else(PoisonError::into_inner);
        let was_behind = given.permission.is_behind(&given.ahead);
        change(&mut given);
        let goes_on = was_behind && !given.permission.is_behind(&given.ahead);
        let episode = given.permission.episode;
        drop(given);
        self.episodes.send_if_modified(|shown| std::mem::replace(shown, episode) != episode || goes_on);
    }

    fn given(&self) -> RwLockReadGuard<'_, Given> {
        self.given.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_after_a_freeze_may_have_lain_there_for_as_long() {
        let mut still = Still::default();
        assert_eq!(still.late_ms(9_000), 0, "nobody looks");
        still.look(1_000);
        still.look(1_100);
        assert_eq!(still.late_ms(1_200), 0);
        assert_eq!(still.late_ms(5_100), 4_000, "before anybody has noticed");
        still.look(5_100);
        still.look(5_200);
        assert_eq!(still.late_ms(5_300), 4_200);
        (5_300..6_200).step_by(100).for_each(|now_ms| still.look(now_ms));
        assert_eq!(still.late_ms(6_150), 0, "all has been read by now");
    }

    #[test]
    fn a_lease_is_good_for_its_episode_until_it_runs_out() {
        let permit = Permit::default();
        assert!(permit.allows(0) && permit.allows_any(), "it always may by default");
        let mut episodes = permit.episodes();
        permit.set(Permission { episode: 2, until_ms: u64::MAX, map_version: 3 }, 3);
        assert!(!permit.allows(1) && permit.allows(2) && permit.allows_any());
        assert_eq!((*episodes.borrow_and_update(), permit.voters_since()), (2, 3));
        permit.set(Permission { episode: 2, until_ms: 0, map_version: 3 }, 3);
        assert!(!permit.allows(2) && !permit.allows_any());
        assert!(!episodes.has_changed().unwrap());
    }

    #[test]
    fn a_newer_map_than_is_known_holds_deliveries_back_until_it_is_known_or_was_a_lie() {
        let (permit, peer) = (Permit::none(), NodeId::parse("n1").unwrap());
        let mut episodes = permit.episodes();
        permit.set(Permission { episode: 2, until_ms: u64::MAX, map_version: 3 }, 3);
        episodes.mark_unchanged();
        assert!(!permit.hear_ahead(&peer, 3) && permit.allows(2));
        assert!(permit.hear_ahead(&peer, 4) && !permit.allows(2));
        assert!(!episodes.has_changed().unwrap());
        permit.set(Permission { episode: 2, until_ms: u64::MAX, map_version: 4 }, 4);
        assert!(permit.allows(2));
        assert!(episodes.has_changed().unwrap(), "who has something to deliver is told");
        episodes.mark_unchanged();
        assert!(permit.hear_ahead(&peer, 1 << 50) && !permit.allows(2));
        permit.lied(&peer, u64::MAX);
        assert!(permit.allows(2) && episodes.has_changed().unwrap());
        assert!(permit.hear_ahead(&peer, 1 << 50) && permit.allows(2));
    }
}
