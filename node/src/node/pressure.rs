//! Looks at what this node holds, and tells the others how pressed it is: primaries of slots that it holds a copy of spare it.
//! Its own slots look for themselves, after each batch.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::spread::living_peers;
use crate::{
    clock,
    cluster::view::SharedView,
    logic::memory::{Level, TIGHT_PERCENT, Teller},
    memory::{Account, Ledger},
    metrics::Metrics,
    peer::mesh::Mesh,
    seldom::Seldom,
    wire::peer::PeerFrame,
};

const LOOK: Duration = Duration::from_millis(50);

/// What is looked at, and who is told.
pub(super) struct Pressed {
    pub(super) ledger: Arc<Ledger>,
    pub(super) mesh: Mesh,
    pub(super) view: watch::Receiver<SharedView>,
    pub(super) metrics: Arc<Metrics>,
}

impl Pressed {
    /// For as long as the node runs.
    pub(super) async fn run(self) {
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut teller, complain) = (Teller::default(), Seldom::new());
        loop {
            every.tick().await;
            self.ledger.set(Account::Links, self.mesh.queued_bytes());
            let level = self.ledger.level();
            let Some(level) = teller.look(clock::mono_ms(), level) else { continue };
            if level != Level::Calm
                && let Some(left_out) = complain.now()
            {
                self.say(left_out);
            }
            for peer in living_peers(&self.view.borrow().clone()) {
                // Said again soon where the link is down.
                let _ = self.mesh.send(&peer, 0, &PeerFrame::Memory(level));
            }
        }
    }

    fn say(&self, left_out: u64) {
        let Self { ledger, metrics, .. } = self;
        tracing::warn!(
            held_bytes = ledger.held_bytes(),
            budget_bytes = ledger.budget_bytes(),
            shed = metrics.memory.shed.get(),
            left_out,
            "memory is short (limits.memory_bytes): above {TIGHT_PERCENT} % the oldest messages go, at 100 % new ones are refused"
        );
    }
}
