//! The gossip shell: chitchat over the mesh. Says what this node says of itself, and keeps a view of what the others say
//! and of who is alive.
//!
//! chitchat's task never dials or waits for a peer: what it sends is handed to the mesh, what it receives comes from a
//! bounded queue and has passed the guard. Each message begins with the address that its sender is reached at, which is
//! where chitchat answers; the guard holds it against what the sender gossips of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable, FailureDetectorConfig, Serializable,
    spawn_chitchat,
    transport::{Socket, Transport},
};
use tokio::sync::{Notify, watch};

pub use super::{claims::OwnState, gossip_settings::GossipSettings};
use super::{
    guard::Guard,
    observer::{Ends, Observer},
    seeds,
    spoken::Spoken,
    view::{ClusterView, SharedView},
};
use crate::{
    clock,
    id::{Generation, Member, NodeId},
    logic::{
        liveness::{Picture, SharedPicture},
        map::SharedMap,
    },
    metrics::{GossipDrop, Metrics},
    peer::{gossip_inbox::GossipInbox, mesh::Mesh},
    seldom::Seldom,
    tasks::Tasks,
};

/// Of heartbeat intervals without a heartbeat, before a node counts as dead.
const PHI: f64 = 8.0;

/// A dead start of a node is remembered for this time; then, if it lives after all, it is learned anew.
const DEAD_GRACE: Duration = Duration::from_secs(600);

/// Keys are never deleted, only set; this is chitchat's wish.
const DELETION_GRACE: Duration = Duration::from_secs(3_600);

/// Why gossip did not start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// Nobody could answer there.
    #[error("{0} is no address that others can reach: set node.peer_advertise to one")]
    Advertise(SocketAddr),
    /// chitchat's word.
    #[error("gossip did not start: {0}")]
    Start(String),
}

/// What the store has, as far as it matters to who is alive.
#[derive(Debug)]
pub struct Stored {
    /// The map that this node knows.
    pub maps: watch::Receiver<Option<SharedMap>>,
    /// The generations that the store has allotted last, of the nodes of which it was asked.
    pub generations: watch::Receiver<BTreeMap<NodeId, Generation>>,
}

/// Gossip's handle. Cheap to clone.
#[derive(Clone)]
pub struct Gossip {
    own: Arc<Mutex<OwnState>>,
    changed: Arc<Notify>,
    view: watch::Receiver<SharedView>,
    pictures: watch::Receiver<SharedPicture>,
    alive: watch::Receiver<Arc<BTreeSet<Member>>>,
}

impl Gossip {
    /// Starts gossip over the mesh. It ends with the tasks, and should it end before, so does the node.
    pub async fn start(
        me: Member,
        settings: GossipSettings,
        mesh: Mesh,
        inbox: GossipInbox,
        stored: Stored,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, GossipError> {
        if settings.advertise.ip().is_unspecified() || settings.advertise.port() == 0 {
            return Err(GossipError::Advertise(settings.advertise));
        }
        let id = ChitchatId::new(me.node.as_str(), me.generation, settings.advertise);
        let spoken = Arc::new(Spoken::default());
        let socket = MeshSocket {
            mesh: mesh.clone(),
            advertise: settings.advertise,
            inbox,
            metrics: metrics.clone(),
            guard: Guard::new(id.clone(), spoken.clone()),
            complain: Seldom::new(),
        };
        let transport = MeshTransport(Mutex::new(Some(socket)));
        let handle = spawn_chitchat(chitchat_config(&settings, id), Vec::new(), &transport).await;
        let chitchat = Running(handle.map_err(|error| GossipError::Start(error.to_string()))?);
        let own = Arc::new(Mutex::new(settings.own.clone()));
        let changed = Arc::new(Notify::new());
        let first = Arc::new(ClusterView { me: me.clone(), nodes: BTreeMap::new() });
        let (view_sender, view) = watch::channel(first);
        let (addresses_sender, addresses) = watch::channel(Vec::new());
        if !settings.seeds.is_empty() {
            let resolve = seeds::resolve(settings.seeds.clone(), settings.advertise, view.clone(), addresses_sender);
            tasks.spawn_until_done("gossip-seeds", resolve);
        }
        let (picture_sender, pictures) = watch::channel(Arc::new(Picture::before_any(&me)));
        let (alive_sender, alive) = watch::channel(Arc::new(BTreeSet::from([me.clone()])));
        let ends =
            Ends { view: view_sender, pictures: picture_sender, alive: alive_sender, seeds: addresses, stored, spoken };
        let mut observer = Observer::new(me, &settings, mesh, own.clone(), ends, metrics);
        // The view holds this node from the start.
        observer.begin(&chitchat.0).await;
        let look = Duration::from_millis(settings.liveness.look_ms);
        tasks.spawn("gossip", run(chitchat, observer, (settings.interval, look), changed.clone()));
        Ok(Self { own, changed, view, pictures, alive })
    }

    /// Changes what this node says of itself. What the others must know soon is said at once, the rest is gathered.
    pub fn set(&self, change: impl FnOnce(&mut OwnState)) {
        change(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// The cluster as this node sees it; itself included from the start.
    pub fn view(&self) -> watch::Receiver<SharedView> {
        self.view.clone()
    }

    /// What the judge of liveness says: a new picture after each look.
    pub fn pictures(&self) -> watch::Receiver<SharedPicture> {
        self.pictures.clone()
    }

    /// Whom the judge takes for alive: this process, and others.
    pub fn alive(&self) -> watch::Receiver<Arc<BTreeSet<Member>>> {
        self.alive.clone()
    }
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip").field("me", &self.view.borrow().me).finish_non_exhaustive()
    }
}

pub(super) fn chitchat_config(settings: &GossipSettings, id: ChitchatId) -> ChitchatConfig {
    ChitchatConfig {
        listen_addr: id.gossip_advertise_addr,
        chitchat_id: id,
        cluster_id: settings.cluster.clone(),
        gossip_interval: settings.interval,
        // Seeds are resolved and spoken to here: chitchat looks names up once a minute only.
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: PHI,
            sampling_window_size: 200,
            max_interval: Duration::from_secs(10),
            initial_interval: settings.interval,
            dead_node_grace_period: DEAD_GRACE,
        },
        marked_for_deletion_grace_period: DELETION_GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

/// Stops chitchat's task when it goes.
struct Running(ChitchatHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(chitchat: Running, mut observer: Observer, (interval, look): (Duration, Duration), changed: Arc<Notify>) {
    let mut live = chitchat.0.chitchat().lock().await.live_nodes_watcher();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looks = tokio::time::interval(look);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ended = chitchat.0.termination_watcher();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            biased;
            ended = &mut ended => {
                tracing::error!(?ended, "chitchat's task has ended");
                return;
            }
            _ = looks.tick() => observer.look(&chitchat.0).await,
            _ = ticks.tick() => observer.tick(&chitchat.0).await,
            () = changed.notified() => observer.own_changed(&chitchat.0).await,
            heard = live.changed() => match heard {
                Ok(()) => observer.heard(&chitchat.0).await,
                Err(_) => return,
            },
        }
    }
}

/// chitchat opens its transport once; this is what it gets.
struct MeshTransport(Mutex<Option<MeshSocket>>);

struct MeshSocket {
    mesh: Mesh,
    advertise: SocketAddr,
    inbox: GossipInbox,
    metrics: Arc<Metrics>,
    guard: Guard,
    complain: Seldom,
}

#[async_trait]
impl Transport for MeshTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Box::new(socket.ok_or_else(|| anyhow::anyhow!("the mesh is in use already"))?))
    }
}

#[async_trait]
impl Socket for MeshSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let mut bytes = self.advertise.serialize_to_vec();
        message.serialize(&mut bytes);
        self.mesh.gossip_to(to, bytes.into());
        Ok(())
    }

    /// Dropped and called anew all the time: nothing may be lost by that, so the only wait is for the queue.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let Some((from, message)) = self.inbox.next().await else {
                // The mesh is gone, the node is about to be.
                return std::future::pending().await;
            };
            if let Some(good) = self.admit(&from, &message) {
                return Ok(good);
            }
            self.metrics.peer.gossip_drop(GossipDrop::Refused);
        }
    }
}

impl MeshSocket {
    fn admit(&mut self, from: &Member, message: &[u8]) -> Option<(SocketAddr, ChitchatMessage)> {
        let mut rest = message;
        let addr = SocketAddr::deserialize(&mut rest).ok()?;
        match self.guard.check(from, addr, rest, clock::mono_ms()) {
            Ok(message) => Some((addr, message)),
            Err(refused) => {
                if let Some(left_out) = self.complain.now() {
                    tracing::debug!(%from, %addr, %refused, left_out, "a gossip message was dropped");
                }
                None
            }
        }
    }
}
