//! The node's end of the mesh: one endpoint, a link to each peer, what peers send. See the module above for the model.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn::{Endpoint, TokioRuntime, VarInt};

use super::{
    Inbox, SendError,
    accept::{self, Inbound},
    hello::CLUSTER_NAME_MAX_BYTES,
    link::{self, Link},
    seed::{self, SEEDS_MAX, Seed},
    socket::Gate,
    tls::{self, Identity},
};
use crate::{
    cluster::view::LinkView,
    config::Config,
    id::{Generation, Member, NodeId},
    tasks::Tasks,
    wire::peer::{self as codec, PeerFrame},
};

/// For goodbyes to arrive when the node stops.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);

/// The mesh's settings, from the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MeshSettings {
    /// Between QUIC keep-alives; four missed and a connection is lost.
    pub keep_alive: Duration,
    /// Bytes waiting for one peer; past it the link is reset.
    pub peer_queue_bytes: usize,
    /// Bytes of large frames waiting for one peer; past it [`SendError::Busy`].
    pub bulk_queue_bytes: usize,
}

impl From<&Config> for MeshSettings {
    fn from(config: &Config) -> Self {
        Self {
            keep_alive: Duration::from_millis(config.timing.keep_alive_ms.max(10)),
            peer_queue_bytes: config.limits.peer_queue_bytes,
            bulk_queue_bytes: config.limits.peer_queue_bytes,
        }
    }
}

/// Why the mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The address cannot be had.
    #[error(
        "node.peer_listen {listen} cannot be used: {error}; is another process there, or is the address not this machine's?"
    )]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// The system's word.
        error: std::io::Error,
    },
    /// rustls does not take the identity.
    #[error("the node's certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The identity is another node's.
    #[error("the certificate is node {certificate}'s, and this is node {me}: see node.id and tls.cert")]
    WrongIdentity {
        /// The name in the certificate.
        certificate: NodeId,
        /// The name in the configuration.
        me: NodeId,
    },
    /// The name does not fit the greeting.
    #[error("cluster.name has at most {CLUSTER_NAME_MAX_BYTES} bytes")]
    ClusterName,
}

/// How often what has happened since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MeshCounts {
    /// Frames put on lanes, or queued for streams of their own.
    pub frames_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Frames received and understood.
    pub frames_received: u64,
    /// Frames received that are none.
    pub undecodable: u64,
    /// Links reset because the peer did not keep up.
    pub overflows: u64,
    /// Connections refused.
    pub refused: u64,
    /// Gossip messages that had no room or no way.
    pub gossip_dropped: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) frames_sent: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) frames_received: AtomicU64,
    pub(super) undecodable: AtomicU64,
    pub(super) overflows: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) gossip_dropped: AtomicU64,
}

/// The mesh. Cheap to clone.
#[derive(Clone)]
pub struct Mesh(Arc<Shared>);

pub(super) struct Shared {
    pub(super) me: Member,
    pub(super) cluster: Box<str>,
    pub(super) settings: MeshSettings,
    pub(super) endpoint: Endpoint,
    pub(super) client: quinn::ClientConfig,
    pub(super) inbox: Arc<dyn Inbox>,
    pub(super) tasks: Tasks,
    pub(super) counters: Counters,
    pub(super) closing: AtomicBool,
    gate: Arc<Gate>,
    expires_ms: u64,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    seeds: Mutex<BTreeMap<SocketAddr, Arc<Seed>>>,
    inbound: Mutex<BTreeMap<NodeId, Arc<Inbound>>>,
}

impl Mesh {
    /// Opens the port and begins to accept. Within a tokio runtime.
    pub fn start(
        me: Member,
        cluster: &str,
        identity: &Identity,
        listen: SocketAddr,
        settings: MeshSettings,
        inbox: Arc<dyn Inbox>,
        tasks: Tasks,
    ) -> Result<Self, MeshError> {
        if *identity.node() != me.node {
            return Err(MeshError::WrongIdentity { certificate: identity.node().clone(), me: me.node });
        }
        if cluster.len() > CLUSTER_NAME_MAX_BYTES {
            return Err(MeshError::ClusterName);
        }
        let server = identity.server_config(Arc::new(tls::receiving(settings.keep_alive)))?;
        let client = identity.client_config(Arc::new(tls::sending(settings.keep_alive)))?;
        let gate = Gate::bind(listen).map_err(|error| MeshError::Bind { listen, error })?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new_with_abstract_socket(identity.endpoint_config(), Some(server), gate.clone(), runtime)
                .map_err(|error| MeshError::Bind { listen, error })?;
        let shared = Arc::new(Shared {
            me,
            cluster: cluster.into(),
            settings,
            endpoint,
            client,
            inbox,
            tasks: tasks.clone(),
            counters: Counters::default(),
            closing: AtomicBool::new(false),
            gate,
            expires_ms: identity.expires_ms(),
            links: Mutex::default(),
            seeds: Mutex::default(),
            inbound: Mutex::default(),
        });
        tasks.spawn("peer-accept", accept::run(shared.clone()));
        Ok(Self(shared))
    }

    /// The address that the port has.
    pub fn local_addr(&self) -> SocketAddr {
        // The gate keeps it, so that asking cannot fail.
        self.0.gate.addr()
    }

    /// When this node's certificate ends, in milliseconds since 1970.
    pub fn certificate_expires_ms(&self) -> u64 {
        self.0.expires_ms
    }

    /// Whom to have links to, from now on. A link to another start or address of a node than before is a new one.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, (Generation, SocketAddr)>) {
        let mut links = self.0.links();
        links.retain(|node, link| {
            let stays =
                peers.get(node).is_some_and(|(generation, addr)| link.generation == *generation && link.addr == *addr);
            if !stays {
                link.close();
            }
            stays
        });
        for (node, (generation, addr)) in peers {
            if node == self.0.me.node || links.contains_key(&node) {
                continue;
            }
            let link = Arc::new(Link::new(node.clone(), generation, addr));
            links.insert(node, link.clone());
            self.0.tasks.spawn_detached("peer-link", link::run(self.0.clone(), link));
        }
    }

    /// Sends a frame, in order with the others of its lane (`slot_lane` modulo 4). Never waits. What was sent over a link
    /// that then breaks may be lost, also in part.
    pub fn send(&self, to: &NodeId, slot_lane: u16, frame: &PeerFrame) -> Result<(), SendError> {
        let link = self.0.links().get(to).cloned().ok_or(SendError::Down)?;
        if link.up().is_none() {
            return Err(SendError::Down);
        }
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        encode(frame, &mut bytes)?;
        let length = u32::try_from(bytes.len() - 4).map_err(|_| SendError::TooLong)?;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let sent = link.send(slot_lane, &bytes, self.0.settings.peer_queue_bytes);
        match sent {
            Ok(()) => self.0.count_sent(bytes.len()),
            Err(SendError::Full) => {
                self.0.counters.overflows.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        sent
    }

    /// Sends a large frame on a stream of its own, out of order with all others. Never waits; a few are under way at
    /// once, others queue.
    pub fn send_bulk(&self, to: &NodeId, frame: &PeerFrame) -> Result<(), SendError> {
        let link = self.0.links().get(to).cloned().ok_or(SendError::Down)?;
        if link.up().is_none() {
            return Err(SendError::Down);
        }
        let mut bytes = Vec::new();
        encode(frame, &mut bytes)?;
        let length = bytes.len();
        link.send_bulk(bytes)?;
        self.0.count_sent(length);
        Ok(())
    }

    /// Sends a gossip message to whoever has that address. Never waits; without a way or room the message is dropped.
    pub fn gossip_to(&self, addr: SocketAddr, message: Bytes) {
        if !self.0.gossip_to(addr, message) {
            self.0.counters.gossip_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The links, by peer: those that this node is to have, and those that peers have to it.
    pub fn links(&self) -> BTreeMap<NodeId, LinkView> {
        let mut views: BTreeMap<NodeId, LinkView> = BTreeMap::new();
        for (node, link) in &*self.0.links() {
            let up = link.up();
            let rtt_us = up.as_ref().map_or(0, |up| up.connection.rtt().as_micros() as u64);
            views.insert(node.clone(), LinkView { sends: up.is_some(), hears: false, rtt_us });
        }
        for (node, inbound) in &*self.0.inbound.lock().unwrap_or_else(PoisonError::into_inner) {
            if inbound.hears.load(Ordering::Relaxed) {
                views.entry(node.clone()).or_default().hears = true;
            }
        }
        views
    }

    /// How many packets have come in over each link that is up. A peer that is there answers each keep-alive: where the number
    /// stands still, nothing comes through.
    pub fn packets_received(&self) -> BTreeMap<NodeId, u64> {
        let received = |link: &Link| Some(link.up()?.connection.stats().udp_rx.datagrams);
        self.0.links().iter().filter_map(|(node, link)| Some((node.clone(), received(link)?))).collect()
    }

    /// How often what has happened.
    pub fn counts(&self) -> MeshCounts {
        let counters = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MeshCounts {
            frames_sent: read(&counters.frames_sent),
            bytes_sent: read(&counters.bytes_sent),
            frames_received: read(&counters.frames_received),
            undecodable: read(&counters.undecodable),
            overflows: read(&counters.overflows),
            refused: read(&counters.refused),
            gossip_dropped: read(&counters.gossip_dropped),
        }
    }

    /// Says goodbye to all peers and frees the port.
    pub async fn shut_down(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        self.set_peers(BTreeMap::new());
        self.0.endpoint.close(VarInt::from_u32(0), b"the node stops");
        let _ = tokio::time::timeout(GOODBYE_LIMIT, self.0.endpoint.wait_idle()).await;
        self.0.gate.shut();
    }

    /// Vanishes as a killed process does: nothing is said to anyone, and the port is free.
    pub fn abort(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        self.0.gate.shut();
        self.0.endpoint.close(VarInt::from_u32(0), b"");
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("me", &self.0.me).field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

impl Shared {
    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inbound(&self, node: &NodeId) -> Arc<Inbound> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default().clone()
    }

    /// A peer has connected: if it was started again, what this node has to its earlier start is no use; if the link is
    /// down, now is a good time to dial.
    pub(super) fn heard_from(&self, member: &Member) {
        let Some(link) = self.links().get(&member.node).cloned() else { return };
        if link.generation < member.generation {
            link.reset(super::hello::Goodbye::Done);
        } else if link.up().is_none() {
            link.retry();
        }
    }

    /// Removes an address that `given_up` says is not needed.
    pub(super) fn forget_seed(&self, addr: &SocketAddr, given_up: impl Fn(&Seed) -> bool) -> bool {
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        match seeds.get(addr) {
            Some(seed) if !given_up(seed) => false,
            _ => {
                seeds.remove(addr);
                true
            }
        }
    }

    fn gossip_to(self: &Arc<Self>, addr: SocketAddr, message: Bytes) -> bool {
        if addr == self.gate.addr() || self.closing.load(Ordering::Relaxed) {
            return false;
        }
        let link = self.links().values().find(|link| link.addr == addr).cloned();
        if let Some(up) = link.and_then(|link| link.up()) {
            return up.gossip(message);
        }
        // Also where there is a link that is down: the node there may have been started again, which only gossip tells.
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        let seed = match seeds.get(&addr) {
            Some(seed) => seed.clone(),
            None if seeds.len() >= SEEDS_MAX => return false,
            None => {
                let seed = Arc::new(Seed::new(addr));
                seeds.insert(addr, seed.clone());
                self.tasks.spawn_detached("peer-seed", seed::run(self.clone(), seed.clone()));
                seed
            }
        };
        // Under the lock, so that an address just given up is not spoken to.
        seed.gossip(message)
    }

    fn count_sent(&self, bytes: usize) {
        self.counters.frames_sent.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A frame that cannot be encoded is a mistake in this program.
fn encode(frame: &PeerFrame, bytes: &mut Vec<u8>) -> Result<(), SendError> {
    codec::encode_into(frame, bytes).map_err(|error| {
        tracing::error!(%error, "a frame was not sent");
        SendError::TooLong
    })
}
