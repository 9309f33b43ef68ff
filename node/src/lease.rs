//! The shell of [`logic::lease`](crate::logic::lease): whether this node may deliver to its clients, and what its slots want to
//! know of other gateways.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Duration, MissedTickBehavior},
};

use crate::{
    clock,
    id::Member,
    logic::{
        lease::{Lease, LeaseInput, LeaseMessage, LeaseOutput, Permission, TICK_MS},
        map::SharedMap,
    },
    peer::mesh::Mesh,
    slots::{Fence, Slots},
    tasks::Tasks,
    wire::peer::PeerFrame,
};

/// Messages of peers that wait; past it they are dropped, and said again.
const INBOX: usize = 1_024;

/// Whether this node may deliver, as whoever writes to a client asks right before that. By default it always may.
#[derive(Debug)]
pub struct Permit {
    episode: AtomicU64,
    until_ms: AtomicU64,
    episodes: watch::Sender<u64>,
    /// When the task looked last; 0 before it has.
    looked_ms: AtomicU64,
    /// When it had looked last before this process stood still, and when it did again.
    still_ms: AtomicU64,
    thawed_ms: AtomicU64,
}

/// Between two looks of the task: past it the process stood still.
const STILL_MS: u64 = 500;
/// What was sent to a process that stood still is read within this time.
const READ_MS: u64 = 1_000;

impl Default for Permit {
    fn default() -> Self {
        let none = || AtomicU64::new(0);
        Self {
            episode: none(),
            until_ms: AtomicU64::new(u64::MAX),
            episodes: watch::Sender::new(0),
            looked_ms: none(),
            still_ms: none(),
            thawed_ms: none(),
        }
    }
}

impl Permit {
    /// Whether a write may begin now to a connection whose attachment was confirmed in this episode.
    pub fn allows(&self, confirmed: u64) -> bool {
        // Whoever sees a lease sees its episode too: that is written first.
        let until_ms = self.until_ms.load(Ordering::Acquire);
        let episode = self.episode.load(Ordering::Acquire);
        Permission { episode, until_ms }.allows(confirmed, clock::mono_ms())
    }

    /// The episodes as they begin.
    pub fn episodes(&self) -> watch::Receiver<u64> {
        self.episodes.subscribe()
    }

    /// How long what is read from a client now may have lain there, in milliseconds: as long as this process stood still.
    pub fn late_ms(&self) -> u64 {
        self.late_at(clock::mono_ms())
    }

    fn late_at(&self, now_ms: u64) -> u64 {
        let looked_ms = self.looked_ms.load(Ordering::Acquire);
        let since_ms = match self.thawed_ms.load(Ordering::Acquire) {
            _ if looked_ms > 0 && looked_ms + STILL_MS < now_ms => looked_ms,
            thawed_ms if thawed_ms > 0 && now_ms < thawed_ms + READ_MS => self.still_ms.load(Ordering::Acquire),
            _ => now_ms,
        };
        now_ms.saturating_sub(since_ms)
    }

    fn look(&self, now_ms: u64) {
        let looked_ms = self.looked_ms.load(Ordering::Acquire);
        if looked_ms > 0 && looked_ms + STILL_MS < now_ms {
            self.still_ms.store(looked_ms, Ordering::Release);
            self.thawed_ms.store(now_ms, Ordering::Release);
        }
        self.looked_ms.store(now_ms, Ordering::Release);
    }

    fn set(&self, permission: Permission) {
        self.episode.store(permission.episode, Ordering::Release);
        self.until_ms.store(permission.until_ms, Ordering::Release);
        self.episodes.send_if_modified(|shown| std::mem::replace(shown, permission.episode) != permission.episode);
    }
}

/// Where peers' messages go.
#[derive(Debug)]
pub struct LeaseInbox(mpsc::Sender<(Member, LeaseMessage)>);

impl LeaseInbox {
    /// A peer says something. Never waits.
    pub fn receive(&self, from: &Member, message: LeaseMessage) {
        let _ = self.0.try_send((from.clone(), message));
    }
}

/// Starts the task. The node may not deliver yet.
pub fn start(
    me: Member,
    mesh: Mesh,
    mut maps: watch::Receiver<Option<SharedMap>>,
    (slots, fences): (Slots, mpsc::Receiver<Fence>),
    tasks: &Tasks,
) -> (LeaseInbox, Arc<Permit>) {
    maps.mark_changed();
    let (inbox, messages) = mpsc::channel(INBOX);
    let permit = Arc::new(Permit::default());
    permit.set(Permission::default());
    let core = Lease::new(me, clock::mono_ms());
    let shell = Shell { core, mesh, slots, permit: permit.clone() };
    tasks.spawn("lease", shell.run(messages, fences, maps));
    (LeaseInbox(inbox), permit)
}

struct Shell {
    core: Lease,
    mesh: Mesh,
    slots: Slots,
    permit: Arc<Permit>,
}

impl Shell {
    async fn run(
        mut self,
        mut messages: mpsc::Receiver<(Member, LeaseMessage)>,
        mut fences: mpsc::Receiver<Fence>,
        mut maps: watch::Receiver<Option<SharedMap>>,
    ) {
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut out = Vec::new();
        loop {
            let input = tokio::select! {
                Some((from, message)) = messages.recv() => LeaseInput::Message { from, message },
                Some(Fence { gateway, since_ms }) = fences.recv() => LeaseInput::Wanted { gateway, since_ms },
                Ok(()) = maps.changed() => match maps.borrow_and_update().clone() {
                    Some(map) => LeaseInput::Map(map),
                    None => continue,
                },
                _ = ticks.tick() => LeaseInput::Tick,
            };
            let now_ms = clock::mono_ms();
            self.permit.look(now_ms);
            self.core.handle(now_ms, input, &mut out);
            for output in out.drain(..) {
                self.perform(output);
            }
        }
    }

    fn perform(&self, output: LeaseOutput) {
        match output {
            LeaseOutput::Send { to, message } => {
                // Lost where the link is down: all of it is said again.
                let _ = self.mesh.send_promptly(&to.node, &PeerFrame::Lease(message));
            }
            LeaseOutput::May(permission) => {
                tracing::trace!(?permission, "the lease");
                self.permit.set(permission);
            }
            LeaseOutput::Gone { gateway, since_ms } => {
                tracing::debug!(%gateway, "the gateway has to confirm its attachments before it delivers");
                self.slots.gone(&gateway, since_ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_after_a_freeze_may_have_lain_there_for_as_long() {
        let permit = Permit::default();
        assert_eq!(permit.late_at(9_000), 0, "nobody looks");
        permit.look(1_000);
        permit.look(1_100);
        assert_eq!(permit.late_at(1_200), 0);
        assert_eq!(permit.late_at(5_100), 4_000, "before anybody has noticed");
        permit.look(5_100);
        permit.look(5_200);
        assert_eq!(permit.late_at(5_300), 4_200);
        permit.look(6_050);
        permit.look(6_200);
        assert_eq!(permit.late_at(6_250), 0, "all has been read by now");
    }

    #[test]
    fn a_lease_is_good_for_its_episode_until_it_runs_out() {
        let permit = Permit::default();
        assert!(permit.allows(0), "it always may by default");
        let mut episodes = permit.episodes();
        permit.set(Permission { episode: 2, until_ms: u64::MAX });
        assert!(!permit.allows(1) && permit.allows(2));
        assert_eq!(*episodes.borrow_and_update(), 2);
        permit.set(Permission { episode: 2, until_ms: 0 });
        assert!(!permit.allows(2));
        assert!(!episodes.has_changed().unwrap());
    }
}
