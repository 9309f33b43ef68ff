//! The shell of [`logic::lease`](crate::logic::lease): whether this node may deliver to its clients, and what its slots want to
//! know of other gateways.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    time::{Duration, MissedTickBehavior},
};

use crate::{
    clock,
    id::Member,
    logic::{
        lease::{Lease, LeaseInput, LeaseMessage, LeaseOutput, TICK_MS},
        map::SharedMap,
    },
    peer::mesh::Mesh,
    permit::Permit,
    slots::{Fence, Slots},
    tasks::Tasks,
    wire::peer::PeerFrame,
};

/// Messages of peers that wait; past it they are dropped, and said again.
const INBOX: usize = 1_024;

/// Where peers' messages go.
#[derive(Debug)]
pub struct LeaseInbox(mpsc::Sender<(Member, LeaseMessage)>);

impl LeaseInbox {
    /// A peer says something. Never waits.
    pub fn receive(&self, from: &Member, message: LeaseMessage) {
        let _ = self.0.try_send((from.clone(), message));
    }
}

/// Starts the task, which says in `permit` what may be done.
pub fn start(
    me: Member,
    mesh: Mesh,
    mut maps: watch::Receiver<Option<SharedMap>>,
    (slots, fences): (Slots, mpsc::Receiver<Fence>),
    permit: Arc<Permit>,
    tasks: &Tasks,
) -> LeaseInbox {
    maps.mark_changed();
    let (inbox, messages) = mpsc::channel(INBOX);
    let core = Lease::new(me, clock::mono_ms());
    let shell = Shell { core, mesh, slots, permit };
    tasks.spawn("lease", shell.run(messages, fences, maps));
    LeaseInbox(inbox)
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
                self.permit.set(permission, self.core.voters_since());
            }
            LeaseOutput::Gone { gateway, since_ms } => {
                tracing::debug!(%gateway, "the gateway has to confirm its attachments before it delivers");
                self.slots.gone(&gateway, since_ms);
            }
        }
    }
}
