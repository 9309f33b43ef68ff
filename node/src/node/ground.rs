//! What a node stands on: who it is, its store, and its place in the mesh, which it does not hear yet.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::STOP_LIMIT;
use crate::{
    clock,
    cluster::{
        clocks::ClockWatch,
        generations,
        gossip::{Gossip, GossipError, GossipSettings, OwnState, Stored},
        maps::MapCell,
    },
    config::Config,
    gateway::{
        door::{
            certificate::{Files, Shown},
            listener::{Door, DoorInputs, listen},
        },
        http::starting,
        jwt::Jwts,
    },
    id::{Member, NodeId},
    logic::clocks::Voice,
    metrics::Metrics,
    open_files::OpenFiles,
    peer::{
        belongs::Belongs,
        mesh::{Entrance, Mesh, MeshError, MeshInputs},
        tls::Identity,
    },
    seldom::Seldom,
    store::{Store, StoreError, guarded::GuardedStore},
    tasks::Tasks,
    token::Keyring,
};

/// The store is asked again after this, until it answers.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// What a node is made of.
#[expect(missing_debug_implementations, reason = "holds keys and a trait object")]
pub struct NodeInputs {
    pub config: Arc<Config>,
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
    Http { address: SocketAddr, error: std::io::Error },
    /// The others would not find it.
    #[error(
        "node.peer_advertise = {0:?} is no address that can be resolved: it is `host:port` as other nodes reach this one"
    )]
    Advertise(String),
    /// What clients are shown over TLS.
    #[error("{0}")]
    HttpTls(String),
    /// A key for the tokens of backends.
    #[error("{0}")]
    Jwt(String),
    /// It does not belong to those that it was sent to.
    #[error("this node may not join the others: {0}")]
    Misfit(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error(transparent)]
    Gossip(#[from] GossipError),
}

/// What a node stands on: who it is, and its place in the mesh.
pub(super) struct Ground {
    pub(super) config: Arc<Config>,
    pub(super) keyring: Arc<Keyring>,
    pub(super) jwts: Arc<Jwts>,
    pub(super) store: Arc<dyn Store>,
    /// Has heard the store's, where it has one.
    pub(super) clocks: ClockWatch,
    pub(super) files: Arc<OpenFiles>,
    pub(super) me: Member,
    /// Answers probes until the node serves.
    pub(super) door: Door,
    /// What clients are shown over TLS.
    pub(super) certificate: Option<watch::Receiver<Shown>>,
    /// What the node waits for until then, in words.
    pub(super) waiting: watch::Sender<String>,
    pub(super) http: SocketAddr,
    pub(super) advertise: SocketAddr,
    pub(super) mesh: Mesh,
    pub(super) gossip: Gossip,
    pub(super) maps: MapCell,
    pub(super) entrance: Entrance,
    pub(super) tasks: Tasks,
    pub(super) metrics: Arc<Metrics>,
}

impl Ground {
    /// Where it fails, or is given up, its tasks stop.
    pub(super) async fn lay(inputs: NodeInputs) -> Result<Self, StartError> {
        let tasks = Tasks::new();
        let given_up = tasks.stopping().clone().drop_guard();
        let laid = Self::lay_with(inputs, tasks.clone()).await;
        match &laid {
            Ok(_) => drop(given_up.disarm()),
            Err(_) => drop(tasks.shut_down(STOP_LIMIT).await),
        }
        laid
    }

    async fn lay_with(inputs: NodeInputs, tasks: Tasks) -> Result<Self, StartError> {
        let NodeInputs { config, identity, keyring, store, files } = inputs;
        warn_of_few_files(&config, &files);
        let id = NodeId::parse(&config.node.id).map_err(StartError::NodeId)?;
        if *identity.node() != id {
            return Err(StartError::Certificate { certificate: identity.node().clone(), configured: id });
        }
        let jwts = Arc::new(Jwts::load(&config).map_err(StartError::Jwt)?);
        jwts.start(&tasks);
        let address = config.node.http_listen;
        let listener = listen(address).await.map_err(|error| StartError::Http { address, error })?;
        let http = listener.local_addr().map_err(|error| StartError::Http { address, error })?;
        let metrics = Metrics::new();
        let certificate = Files::of(&config.node).map(|files| files.follow(&metrics, &tasks)).transpose();
        let certificate = certificate.map_err(StartError::HttpTls)?;
        let (waiting, words) = watch::channel("the store has not been asked yet".to_owned());
        let routes = starting::routes(words);
        let inputs = DoorInputs {
            config: &config,
            files: files.clone(),
            certificate: certificate.clone(),
            routes,
            metrics: metrics.clone(),
            tasks: &tasks,
        };
        let door = Door::open(listener, inputs);
        let store: Arc<dyn Store> = GuardedStore::new(store, &config.store, metrics.store.clone());
        let clocks = ClockWatch::new(config.timing.clock_skew_max_ms);
        let (store_id, generation) = until_store_answers(store.as_ref(), &id, &clocks, &waiting).await?;
        let me = Member { node: id, generation };

        let (mesh, gossip_inbox, entrance) = Mesh::bind(MeshInputs {
            me: me.clone(),
            belongs: Belongs {
                cluster: config.cluster.name.clone(),
                store_id: store_id.to_string(),
                settings: config.shared_digest().json,
                keyring: keyring.fingerprint(),
            },
            identity: &identity,
            listen: config.node.peer_listen,
            settings: (&*config).into(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        })?;
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
        let (maps, meter) = (MapCell::new(), metrics.clone());
        let (known, generations) = watch::channel(BTreeMap::new());
        let stored = Stored { maps: maps.subscribe(), generations };
        let gossip = Gossip::start(me.clone(), settings, mesh.clone(), gossip_inbox, stored, meter, &tasks).await?;
        tasks.spawn("generations", generations::run(store.clone(), gossip.pictures(), known));
        Ok(Self {
            config,
            keyring,
            jwts,
            store,
            clocks,
            files,
            me,
            door,
            certificate,
            waiting,
            http,
            advertise,
            mesh,
            gossip,
            maps,
            entrance,
            tasks,
            metrics,
        })
    }
}

/// The store's identity, and this start's generation; its clock is heard first. Nothing can be done without them, so this waits.
async fn until_store_answers(
    store: &dyn Store,
    id: &NodeId,
    clocks: &ClockWatch,
    waiting: &watch::Sender<String>,
) -> Result<(uuid::Uuid, u64), StartError> {
    let complain = Seldom::new();
    waiting.send_replace("waiting for the store, which has not answered yet".to_owned());
    loop {
        let answers = async {
            let asked_ms = clock::mono_ms();
            if let Some(theirs_ms) = store.ping().await? {
                clocks.heard(Voice::Store, theirs_ms, asked_ms);
            }
            Ok::<_, StoreError>((store.store_id().await?, store.next_generation(id).await?))
        };
        match answers.await {
            Ok(answers) => return Ok(answers),
            Err(StoreError::Unavailable(reason)) => {
                waiting.send_replace("waiting for the store, which does not answer: the log says more".to_owned());
                if let Some(left_out) = complain.now() {
                    tracing::warn!(reason, left_out, "the store is needed to start; trying again until it answers");
                }
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
    let scheme = if Files::of(&config.node).is_some() { "https" } else { "http" };
    if configured.is_empty() { format!("{scheme}://{http}") } else { configured.clone() }
}
