//! The composition root: builds one node in the order of what needs what, and is the only file that knows all parts.

mod beat;
mod belonging;
mod control;
mod dispatch;
mod lateness;
mod probe;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use self::{
    beat::Beat,
    control::Control,
    dispatch::{Dispatch, Local, Wired},
    probe::Probes,
};
use crate::{
    clock,
    cluster::{
        gossip::{self, Gossip, GossipError, GossipSettings, OwnState},
        maps::MapCell,
        steward::{OnChange, PacketCounts, Steward, StewardInputs, StewardSettings},
        view::NodeState,
    },
    config::Config,
    gateway::{
        self, Gateway,
        ask::Ask,
        client::{connections::Connections, replays::Replays},
        door::{admission::Admission, listener},
        http::Api,
        hub::Hub,
        service::Service,
    },
    id::{Member, NodeId},
    logic::primary::SlotSettings,
    metrics::Metrics,
    open_files::OpenFiles,
    peer::{
        mesh::{Mesh, MeshError},
        tls::Identity,
    },
    router::Router,
    slots::{Slots, SlotsInputs},
    store::{Store, StoreError, guarded::GuardedStore},
    tasks::Tasks,
    token::Keyring,
    wire::peer::PeerFrame,
};

/// The store is asked again after so long, until it answers.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// An empty group is not forgotten sooner than this, whatever the sessions' memory is set to: a client whose node died is to
/// find it again.
const GROUP_IDLE_MIN_MS: u64 = 60_000;
/// What is left of the tasks after a stop is given so long.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Slots that cannot be handed over (no other node takes them) hold a drain up no longer than this.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// A draining node sends away so many clients a second, each of which is to come back at a time of its own within this.
const DRAIN_PER_S: u32 = 2_000;
const DRAIN_SPREAD: Duration = Duration::from_secs(2);
/// A node that was given seeds looks so long for others before it serves, to find out whether it may.
const LOOK_AROUND: Duration = Duration::from_secs(3);

/// What a node is made of.
#[expect(missing_debug_implementations, reason = "holds keys and a trait object")]
pub struct NodeInputs {
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its certificate.
    pub identity: Identity,
    /// Signs and verifies session tokens.
    pub keyring: Arc<Keyring>,
    /// Where sessions and the map are kept.
    pub store: Arc<dyn Store>,
    /// What this process may have open.
    pub files: Arc<OpenFiles>,
}

/// Why a node did not start: what is wrong, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The name in the configuration.
    #[error("node.id: {0}")]
    NodeId(String),
    /// The certificate is another node's.
    #[error(
        "the certificate is that of node {certificate}, but node.id is {configured}: make one with `roost certs node {configured}`, or mend node.id"
    )]
    Certificate {
        /// Whose it is.
        certificate: NodeId,
        /// Who this is.
        configured: NodeId,
    },
    /// The HTTP port.
    #[error("node.http_listen = {address} cannot be listened on ({error}): is another process using it?")]
    Http {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The others would not find it.
    #[error(
        "node.peer_advertise = {0:?} is no address that can be resolved: it is `host:port` as other nodes reach this one"
    )]
    Advertise(String),
    /// It does not belong to those that it was sent to.
    #[error("this node may not join the others: {0}")]
    Misfit(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The mesh.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The gossip.
    #[error(transparent)]
    Gossip(#[from] GossipError),
}

/// A running node.
#[expect(missing_debug_implementations, reason = "holds everything")]
pub struct Node {
    me: Member,
    http: SocketAddr,
    peer: SocketAddr,
    tasks: Tasks,
    mesh: Mesh,
    gossip: Gossip,
    maps: MapCell,
    steward: Steward,
    gateway: Arc<Gateway>,
    drain: CancellationToken,
}

/// What a node stands on: who it is, and its place in the mesh.
struct Ground {
    config: Arc<Config>,
    keyring: Arc<Keyring>,
    store: Arc<dyn Store>,
    files: Arc<OpenFiles>,
    me: Member,
    listener: TcpListener,
    http: SocketAddr,
    advertise: SocketAddr,
    mesh: Mesh,
    gossip: Gossip,
    dispatch: Arc<Dispatch>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

impl Ground {
    async fn lay(inputs: NodeInputs) -> Result<Self, StartError> {
        let NodeInputs { config, identity, keyring, store, files } = inputs;
        warn_of_few_files(&config, &files);
        let id = NodeId::parse(&config.node.id).map_err(StartError::NodeId)?;
        if *identity.node() != id {
            return Err(StartError::Certificate { certificate: identity.node().clone(), configured: id });
        }
        let address = config.node.http_listen;
        let listener = TcpListener::bind(address).await.map_err(|error| StartError::Http { address, error })?;
        let http = listener.local_addr().map_err(|error| StartError::Http { address, error })?;
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let store: Arc<dyn Store> = GuardedStore::new(store, &config.store, metrics.store.clone());
        let (store_id, generation) = until_store_answers(store.as_ref(), &id).await?;
        let me = Member { node: id, generation };

        let (gossip_in, gossip_out) = gossip::queue();
        let dispatch = Arc::new(Dispatch::new(gossip_in));
        let (name, listen) = (&config.cluster.name, config.node.peer_listen);
        let mesh =
            Mesh::start(me.clone(), name, &identity, listen, (&*config).into(), dispatch.clone(), tasks.clone())?;
        let advertise = advertised(&config, mesh.local_addr()).await?;
        let own = OwnState {
            http: http_advertised(&config, http),
            zone: config.node.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_id: store_id.to_string(),
            settings: config.shared_digest().json,
            ..OwnState::default()
        };
        let settings = GossipSettings::new(&config, advertise, own);
        let gossip = Gossip::start(me.clone(), settings, mesh.clone(), gossip_out, &tasks).await?;
        Ok(Self {
            config,
            keyring,
            store,
            files,
            me,
            listener,
            http,
            advertise,
            mesh,
            gossip,
            dispatch,
            tasks,
            metrics,
        })
    }
}

impl Node {
    /// Starts a node. It serves at once; its slots come as the cluster gives them.
    ///
    /// Boxed, so that the node's code is compiled once, and not again in each program and test that starts one.
    pub fn start(inputs: NodeInputs) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(Self::start_here(inputs))
    }

    async fn start_here(inputs: NodeInputs) -> Result<Self, StartError> {
        let ground = Ground::lay(inputs).await?;
        if let Err(error) = look_around(&ground.config, &ground.gossip).await {
            ground.mesh.shut_down().await;
            ground.tasks.shut_down(STOP_LIMIT).await;
            return Err(error);
        }
        Ok(Self::build(ground).await)
    }

    /// What keeps the slots, then what serves clients, then the tasks that keep it going.
    async fn build(ground: Ground) -> Self {
        let (files, http) = (ground.files.clone(), ground.http);
        let Ground { config, keyring, store, me, listener, advertise, mesh, gossip, dispatch, tasks, metrics, .. } =
            ground;
        let maps = MapCell::new();
        let steward = Steward::start(StewardInputs {
            me: me.clone(),
            store: store.clone(),
            view: gossip.view(),
            map: maps.clone(),
            settings: StewardSettings::new(&config),
            packets: packets_of(&mesh),
            on_change: tell_peers(&mesh, &gossip),
            tasks: tasks.clone(),
        });
        let (ask, asked) = mpsc::channel(4_096);
        let local = Arc::new(Local::new(config.cluster.slots));
        let slots = Slots::start(SlotsInputs {
            me: me.clone(),
            settings: slot_settings(&config),
            slots: config.cluster.slots,
            mesh: mesh.clone(),
            store: store.clone(),
            gateway: local.clone(),
            steward: ask,
            departures: local.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        });
        let router = Router::new(me.clone(), maps.subscribe(), mesh.clone(), slots.clone());
        let ask = Ask::new(Arc::new(router.clone()), maps.subscribe(), &config, metrics.clone());
        let service = Service::new(ask.clone(), config.clone(), store, metrics.clone());
        let hub = Hub::start(ask, maps.subscribe(), gossip.view(), config.clone(), metrics.hub.clone(), tasks.clone());
        local.wire(hub.clone(), router.clone());
        let gateway = Arc::new(Gateway {
            node: me.node.clone(),
            config: config.clone(),
            service: service.clone(),
            hub: hub.clone(),
            keyring: keyring.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            admission: Admission::new(&config.limits, files.clone()),
            replays: Replays::new(&config.limits, metrics.clone()),
            connections: Connections::new(),
        });
        let (probes, drain) = (Arc::new(Probes::new(me.clone())), CancellationToken::new());
        let control = Arc::new(Control {
            me: me.clone(),
            copies: config.cluster.copies,
            certificate_expires_ms: mesh.certificate_expires_ms(),
            mesh: mesh.clone(),
            router: router.clone(),
            slots: slots.clone(),
            steward: steward.clone(),
            view: gossip.view(),
            probes: probes.clone(),
            deaf: AtomicBool::new(false),
            drain: drain.clone(),
            tasks: tasks.clone(),
        });
        let wired = Wired {
            mesh: mesh.clone(),
            maps: maps.clone(),
            steward: steward.clone(),
            view: gossip.view(),
            slots: slots.clone(),
            router: router.clone(),
            hub,
            probes,
            control: control.clone(),
        };
        dispatch.wire(wired).await;
        let api = Api {
            service,
            config,
            keyring,
            maps: maps.subscribe(),
            view: gossip.view(),
            metrics: metrics.clone(),
            control: control.clone(),
        };
        let routes = gateway::routes(gateway.clone(), api);
        tasks.spawn("http", listener::serve(listener, routes, files, tasks.clone()));
        tasks.spawn("idle connections", gateway.clone().close_idle());
        let beat = Beat {
            mesh: mesh.clone(),
            gossip: gossip.clone(),
            maps: maps.clone(),
            steward: steward.clone(),
            slots,
            gateway: gateway.clone(),
            control,
            metrics,
            lag_ms: Arc::default(),
        };
        beat.start(asked, &tasks);
        Self { me, http, peer: advertise, tasks, mesh, gossip, maps, steward, gateway, drain }
    }

    /// This process.
    pub fn member(&self) -> &Member {
        &self.me
    }

    /// Where clients and the API are served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where the other nodes reach this one.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Is cancelled when the node cannot go on; the log says why.
    pub fn failed(&self) -> &CancellationToken {
        self.tasks.fatal()
    }

    /// Is cancelled when someone has asked this node to drain, over HTTP. Whoever runs the node carries it out.
    pub fn drain_asked(&self) -> &CancellationToken {
        &self.drain
    }

    /// Not ready any more; hands its slots over, then sends its clients to the other nodes. Returns when that is done.
    pub fn drain(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.drain_here())
    }

    async fn drain_here(&self) {
        self.gossip.set(|own| own.state = NodeState::Draining);
        self.gateway.admission.close();
        let view = self.gossip.view();
        let someone_takes_them = || {
            let view = view.borrow();
            view.nodes.values().any(|node| node.alive && node.state == NodeState::Serving && node.member != self.me)
        };
        let holds_slots = || self.maps.current().is_some_and(|map| beat::slots_held(&map, &self.me.node) > 0);
        let until = clock::deadline(DRAIN_LIMIT);
        while holds_slots() && someone_takes_them() && clock::deadline(Duration::ZERO) < until {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        if holds_slots() {
            tracing::warn!(
                "some slots could not be handed over: they are taken over, where there are copies, when this node is gone"
            );
        }
        self.gateway.drain(DRAIN_PER_S, DRAIN_SPREAD).await;
    }

    /// Ends the node: peers are told, tasks awaited.
    pub fn shut_down(self) -> BoxFuture<'static, ()> {
        Box::pin(self.shut_down_here())
    }

    async fn shut_down_here(self) {
        self.steward.retire();
        self.mesh.shut_down().await;
        if !self.tasks.shut_down(STOP_LIMIT).await {
            tracing::warn!("some tasks did not end in time");
        }
    }

    /// Ends the node's part in the mesh without a word, as a crash would. What it runs in has to be dropped by the caller.
    pub fn abort(&self) {
        self.mesh.abort();
    }
}

/// Finds out whether those that this node is to live with share its store and settings, before it does anything.
async fn look_around(config: &Config, gossip: &Gossip) -> Result<(), StartError> {
    if config.cluster.seeds.is_empty() {
        return Ok(());
    }
    let mut views = gossip.view();
    let until = clock::deadline(LOOK_AROUND);
    loop {
        let view = views.borrow_and_update().clone();
        if let Some(reason) = belonging::misfit(&view) {
            return Err(StartError::Misfit(reason));
        }
        let met = view.nodes.values().any(|node| node.alive && node.member != view.me && !node.store_id.is_empty());
        let changed = async {
            let _ = views.changed().await;
        };
        tokio::select! {
            () = async {}, if met => return Ok(()),
            () = changed => {}
            () = tokio::time::sleep_until(until) => {
                tracing::warn!(seeds = ?config.cluster.seeds, "no other node was found; this one goes on alone, and looks on");
                return Ok(());
            }
        }
    }
}

/// The store's identity, and this start's generation. Nothing can be done without them, so this waits.
async fn until_store_answers(store: &dyn Store, id: &NodeId) -> Result<(uuid::Uuid, u64), StartError> {
    loop {
        let answers = async { Ok::<_, StoreError>((store.store_id().await?, store.next_generation(id).await?)) };
        match answers.await {
            Ok(answers) => return Ok(answers),
            Err(error @ StoreError::Unavailable(_)) => {
                tracing::warn!(%error, "the store is needed to start; trying again");
            }
            // Waiting will not mend it.
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(STORE_AGAIN).await;
    }
}

fn warn_of_few_files(config: &Config, files: &OpenFiles) {
    let (room, wanted) = (files.clients(), config.limits.connections);
    if room < wanted {
        tracing::warn!(
            room,
            wanted,
            "the limit of open files leaves room for fewer clients than limits.connections: raise it (`ulimit -n`, LimitNOFILE)"
        );
    }
}

/// `node.peer_advertise`, resolved; or where the mesh listens.
async fn advertised(config: &Config, listening: SocketAddr) -> Result<SocketAddr, StartError> {
    let configured = &config.node.peer_advertise;
    if configured.is_empty() {
        return Ok(listening);
    }
    let resolved = tokio::net::lookup_host(configured.as_str()).await.map(|mut found| found.next());
    resolved.ok().flatten().ok_or_else(|| StartError::Advertise(configured.clone()))
}

fn http_advertised(config: &Config, http: SocketAddr) -> String {
    let configured = &config.node.http_advertise;
    if configured.is_empty() { format!("http://{http}") } else { configured.clone() }
}

fn slot_settings(config: &Config) -> SlotSettings {
    SlotSettings {
        replica_timeout_ms: config.timing.replica_timeout_ms,
        resume_grace_ms: config.session.resume_grace_s * 1_000,
        memory_ttl_ms: config.session.memory_ttl_s * 1_000,
        group_idle_ms: (config.session.memory_ttl_s * 1_000).max(GROUP_IDLE_MIN_MS),
        queue: config.limits.slot_queue,
        groups_per_session: config.limits.groups_per_session,
    }
}

fn packets_of(mesh: &Mesh) -> PacketCounts {
    let mesh = mesh.clone();
    Arc::new(move || mesh.packets_received())
}

/// Whoever changed the map sends it to all at once; who misses it hears the version by gossip and fetches it.
fn tell_peers(mesh: &Mesh, gossip: &Gossip) -> OnChange {
    let (mesh, view) = (mesh.clone(), gossip.view());
    Arc::new(move |map| {
        let view = view.borrow().clone();
        for peer in view.nodes.values().filter(|node| node.alive && node.member != view.me) {
            let _ = mesh.send(&peer.member.node, 0, &PeerFrame::Map(map.clone()));
        }
    })
}
