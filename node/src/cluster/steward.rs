//! The shell of the steward's core ([`core::Steward`]): brings it what happens, and does what it wants done.

#[cfg(test)]
mod tests;
mod watch_store;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{clocks::ClockWatch, maps::MapCell, view::StoreView};
pub use crate::logic::steward::StewardSettings;
use crate::{
    clock,
    config::Config,
    id::{Member, NodeId},
    logic::{
        liveness::SharedPicture,
        map::{MapChange, MapRequest, SharedMap},
        steward::{self as core, ForgetError, StewardInput, StewardOutput, Ticket},
    },
    seldom::Seldom,
    store::{Store, StoreError},
    tasks::Tasks,
};

/// Batches of requests waiting for the steward's loop.
const REQUESTS: usize = 1_024;
/// Operators' words waiting for it.
const FORGETS: usize = 16;
/// Slots under way at once for balance (`PlanInput::max_moves`).
const MAX_MOVES: usize = 32;

/// What is told of a change that this node made.
pub type OnChange = Arc<dyn Fn(SharedMap) + Send + Sync>;

/// What a steward works with.
pub struct StewardInputs {
    pub me: Member,
    /// Where the map is kept.
    pub store: Arc<dyn Store>,
    /// What the judge of liveness says.
    pub pictures: watch::Receiver<SharedPicture>,
    /// The map that this node knows; kept up to date from the store.
    pub map: MapCell,
    /// From the configuration.
    pub settings: StewardSettings,
    /// Is called with each map that this node has brought about. Must not block.
    pub on_change: OnChange,
    /// Hears the store's clock.
    pub clocks: ClockWatch,
    /// Where it runs.
    pub tasks: Tasks,
}

/// A handle to the running steward. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Steward {
    requests: mpsc::Sender<Asked>,
    forget: mpsc::Sender<Forget>,
    store: watch::Receiver<StoreView>,
    fault: watch::Receiver<Option<String>>,
    retired: CancellationToken,
}

/// Who asks, and for what.
type Asked = (Member, Vec<MapRequest>);

#[derive(Debug)]
struct Forget {
    node: NodeId,
    answer: oneshot::Sender<Result<Member, ForgetError>>,
}

/// A steward that has not been started.
pub struct IdleSteward(Shell);

impl IdleSteward {
    /// Starts it. The map appears in the cell as soon as the store gives one, or, on the steward of a new cluster, takes the
    /// first.
    pub fn start(self) {
        let Self(shell) = self;
        let StewardInputs { me, store, map, clocks, tasks, .. } = &shell.inputs;
        let (view, fault) = (shell.store_view.clone(), shell.fault.clone());
        let watched = watch_store::run(me.clone(), store.clone(), map.clone(), clocks.clone(), view, fault);
        tasks.spawn("store watch", watched);
        let tasks = tasks.clone();
        tasks.spawn("steward", shell.run());
    }
}

impl fmt::Debug for IdleSteward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleSteward").finish_non_exhaustive()
    }
}

/// What the configuration says of the steward.
pub fn settings_of(config: &Config) -> StewardSettings {
    StewardSettings { slots: config.cluster.slots, copies: config.cluster.copies, max_moves: MAX_MOVES }
}

impl Steward {
    /// A steward that does nothing yet: what is asked of it waits until it is started.
    pub fn new(inputs: StewardInputs) -> (Self, IdleSteward) {
        let (requests, requested) = mpsc::channel(REQUESTS);
        let (forget, forgets) = mpsc::channel(FORGETS);
        let (store_view, store) = watch::channel(StoreView::Down);
        let (fault_sender, fault) = watch::channel(None);
        let retired = CancellationToken::new();
        let shell = Shell {
            core: core::Steward::new(inputs.me.clone(), inputs.settings),
            inputs,
            retired: retired.clone(),
            requested,
            forgets,
            forgetting: BTreeMap::new(),
            last_ticket: 0,
            store_view,
            fault: fault_sender,
        };
        (Self { requests, forget, store, fault, retired }, IdleSteward(shell))
    }

    /// What a primary asks for, here or elsewhere. To be told to every node that may be steward; what is
    /// stale, or was carried out, does no harm. When too much is waiting it is dropped: primaries ask again.
    pub fn request(&self, from: Member, requests: Vec<MapRequest>) {
        if self.requests.try_send((from, requests)).is_err() {
            tracing::debug!("the steward is behind: requests of primaries were dropped");
        }
    }

    /// How the store answers this node; for gossip.
    pub fn store_view(&self) -> watch::Receiver<StoreView> {
        self.store.clone()
    }

    /// Why this node cannot take part in this cluster, once that is known. The steward's task then ends, which stops the
    /// node.
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.clone()
    }

    /// Proposes nothing from now on. To be called before the node leaves the mesh: it would take all others for dead, and
    /// their copies out of the map.
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// An operator's word: the dead node's copies are lost for good. To be told to every node that may be steward; each
    /// remembers it until the map no longer names that start of the node, the node is back, or this process ends.
    ///
    /// # Errors
    /// With the reason, while the node is not dead for certain.
    pub async fn forget(&self, node: &NodeId) -> Result<(), String> {
        match self.try_forget(node).await {
            Some(result) => result.map(|_| ()).map_err(|error| error.to_string()),
            None => Err("this node is stopping".to_owned()),
        }
    }

    /// Nothing where this node stops.
    async fn try_forget(&self, node: &NodeId) -> Option<Result<Member, ForgetError>> {
        let (answer, answered) = oneshot::channel();
        self.forget.send(Forget { node: node.clone(), answer }).await.ok()?;
        answered.await.ok()
    }
}

struct Shell {
    inputs: StewardInputs,
    core: core::Steward,
    retired: CancellationToken,
    requested: mpsc::Receiver<Asked>,
    forgets: mpsc::Receiver<Forget>,
    /// Who waits for the answer to an operator's word.
    forgetting: BTreeMap<Ticket, oneshot::Sender<Result<Member, ForgetError>>>,
    last_ticket: Ticket,
    store_view: watch::Sender<StoreView>,
    fault: watch::Sender<Option<String>>,
}

/// What the store was asked: beside the loop, which goes on however long that takes.
type Asking = Option<BoxFuture<'static, StewardInput>>;

impl Shell {
    async fn run(mut self) {
        let (mut maps, mut pictures) = (self.inputs.map.subscribe(), self.inputs.pictures.clone());
        maps.mark_changed();
        pictures.mark_changed();
        let mut asking: Asking = None;
        while self.fault.borrow().is_none() {
            let wake_at_ms = self.core.wake_at_ms();
            let woken = async {
                match wake_at_ms {
                    Some(at_ms) => {
                        let pause_ms = at_ms.saturating_sub(clock::mono_ms());
                        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let answered = async {
                match &mut asking {
                    Some(asking) => asking.await,
                    None => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                Ok(()) = pictures.changed() => StewardInput::Picture(pictures.borrow_and_update().clone()),
                Ok(()) = maps.changed() => match maps.borrow_and_update().clone() {
                    Some(map) => StewardInput::Map(map),
                    None => continue,
                },
                Some((from, requests)) = self.requested.recv() => StewardInput::Requested { from, requests },
                Some(Forget { node, answer }) = self.forgets.recv() => {
                    self.last_ticket += 1;
                    self.forgetting.insert(self.last_ticket, answer);
                    StewardInput::Forget { ticket: self.last_ticket, node }
                }
                input = answered => {
                    asking = None;
                    input
                }
                () = woken => StewardInput::Wake,
            };
            self.handle(input, &mut asking);
        }
    }

    fn handle(&mut self, input: StewardInput, asking: &mut Asking) {
        if let StewardInput::Changed(Ok(MapChange::Unknown)) = input {
            static COMPLAIN: Seldom = Seldom::new();
            if let Some(left_out) = COMPLAIN.now() {
                tracing::warn!(left_out, "whether the cluster map was changed is not known; reading it");
            }
        }
        let (now, mut out) = (clock::now(), Vec::new());
        if self.retired.is_cancelled() {
            // Before anything else: whoever retired it counts on that.
            self.core.handle(now, StewardInput::Retire, &mut out);
        }
        self.core.handle(now, input, &mut out);
        for output in out {
            self.perform(output, asking);
        }
    }

    fn perform(&mut self, output: StewardOutput, asking: &mut Asking) {
        match output {
            StewardOutput::ReadMap => {
                let store = Arc::clone(&self.inputs.store);
                let reading = async move { StewardInput::Read(store.read_map().await.map_err(in_words)) };
                *asking = Some(Box::pin(reading));
            }
            StewardOutput::ChangeMap { expected, next } => {
                let (store, store_view) = (Arc::clone(&self.inputs.store), self.store_view.clone());
                let changing = async move {
                    let result = watch_store::timed(&store_view, store.change_map(expected, &next)).await;
                    StewardInput::Changed(result.map_err(in_words))
                };
                *asking = Some(Box::pin(changing));
            }
            StewardOutput::Learned(map) => {
                self.inputs.map.offer(map);
            }
            StewardOutput::Announce(map) => {
                tracing::info!(version = map.version, "the cluster map was changed");
                (self.inputs.on_change)(map);
            }
            StewardOutput::Forgotten { ticket, result } => {
                if let Ok(member) = &result {
                    tracing::warn!(%member, "an operator counts this node as lost for good");
                }
                if let Some(answer) = self.forgetting.remove(&ticket) {
                    // Whoever asked may have gone.
                    let _ = answer.send(result);
                }
            }
            StewardOutput::Failed { reason, retry_ms } => {
                static COMPLAIN: Seldom = Seldom::new();
                if let Some(left_out) = COMPLAIN.now() {
                    tracing::warn!(
                        error = reason,
                        retry_ms,
                        left_out,
                        "the store did not do what the steward asked of it"
                    );
                }
            }
            StewardOutput::WrongSlots { has } => self.cannot_take_part(has),
        }
    }

    fn cannot_take_part(&self, has: u16) {
        let fault = format!(
            "this cluster was created with {has} slots, but the configuration of {} says {}: set cluster.slots = {has} (it \
             cannot be changed later), or use another store",
            self.inputs.me.node, self.inputs.settings.slots
        );
        tracing::error!("{fault}");
        self.fault.send_replace(Some(fault));
    }
}

fn in_words(error: StoreError) -> String {
    error.to_string()
}
