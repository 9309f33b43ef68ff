//! The node's end of the mesh: one endpoint, a link to each peer, what peers send. See the module above for the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use quinn::{Endpoint, TokioRuntime, VarInt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Inbox, LinkView, SendError,
    accept::{Acceptor, Heard, Refused},
    addresses::Addresses,
    belongs::{Belongs, CLUSTER_NAME_MAX_BYTES},
    dial::Dialler,
    gate::Gate,
    gossip_inbox::{self, GossipInbox, GossipSender},
    link::{Link, LinkBounds},
    links::Links,
    reading::Sinks,
    tls::{self, Identity},
};
use crate::{
    config::Config,
    id::{Generation, Member, NodeId},
    metrics::{GossipDrop, Metrics},
    seldom::Seldom,
    tasks::Tasks,
    wire::peer::{self as codec, FRAME_MAX_BYTES, PeerFrame, SETTINGS_MAX_BYTES},
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
    /// They do not fit the greeting.
    #[error(
        "the settings that all nodes must share (session, namespaces) have {0} bytes as JSON, at most {SETTINGS_MAX_BYTES} are \
         possible: use fewer or shorter namespaces"
    )]
    Settings(usize),
}

/// What a mesh is made of.
#[derive(Debug)]
pub struct MeshInputs<'a> {
    pub me: Member,
    /// Nodes that belong elsewhere are refused, and refuse this one.
    pub belongs: Belongs,
    /// The node's certificate.
    pub identity: &'a Identity,
    /// The address of the port.
    pub listen: SocketAddr,
    /// From the configuration.
    pub settings: MeshSettings,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Spawns.
    pub tasks: Tasks,
}

/// The mesh. Cheap to clone.
#[derive(Clone)]
pub struct Mesh(Arc<Shared>);

struct Shared {
    dialler: Arc<Dialler>,
    links: Arc<Links>,
    addresses: Arc<Addresses>,
    heard: Arc<Heard>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    closing: CancellationToken,
    expires_ms: u64,
}

/// The way in: nothing is heard from peers until it is opened, which is done once.
pub struct Entrance {
    mesh: Mesh,
    gossip: GossipSender,
    tasks: Tasks,
}

impl Entrance {
    /// Begins to accept. What arrives goes to the inbox, and gossip to the [`GossipInbox`].
    pub fn open(self, inbox: Arc<dyn Inbox>) {
        let Self { mesh: Mesh(shared), gossip, tasks } = self;
        let acceptor = Arc::new(Acceptor {
            dialler: shared.dialler.clone(),
            links: shared.links.clone(),
            heard: shared.heard.clone(),
            sinks: Arc::new(Sinks { inbox, gossip, metrics: shared.metrics.clone(), tasks: tasks.clone() }),
            closing: shared.closing.clone(),
        });
        tasks.spawn("peer-accept", acceptor.run());
    }
}

impl Mesh {
    /// Opens the port. This node can send from now on; it hears what is said to it when the [`Entrance`] is opened. Within a
    /// tokio runtime.
    pub fn bind(inputs: MeshInputs<'_>) -> Result<(Self, GossipInbox, Entrance), MeshError> {
        let MeshInputs { me, belongs, identity, listen, settings, metrics, tasks } = inputs;
        if *identity.node() != me.node {
            return Err(MeshError::WrongIdentity { certificate: identity.node().clone(), me: me.node });
        }
        if belongs.cluster.len() > CLUSTER_NAME_MAX_BYTES {
            return Err(MeshError::ClusterName);
        }
        if belongs.settings.len() > SETTINGS_MAX_BYTES {
            return Err(MeshError::Settings(belongs.settings.len()));
        }
        let server = identity.server_config(Arc::new(tls::receiving(settings.keep_alive)))?;
        let client = identity.client_config(Arc::new(tls::sending(settings.keep_alive)))?;
        let gate = Gate::bind(listen).map_err(|error| MeshError::Bind { listen, error })?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new_with_abstract_socket(identity.endpoint_config(), Some(server), gate.clone(), runtime)
                .map_err(|error| MeshError::Bind { listen, error })?;
        let dialler = Arc::new(Dialler { me, belongs, endpoint, client, misfit: watch::Sender::new(None) });
        let bounds = LinkBounds { lanes_bytes: settings.peer_queue_bytes, bulk_bytes: settings.bulk_queue_bytes };
        let mesh = Self(Arc::new(Shared {
            links: Arc::new(Links::new(dialler.clone(), bounds, metrics.clone(), tasks.clone())),
            addresses: Addresses::new(dialler.clone(), tasks.clone()),
            heard: Arc::default(),
            dialler,
            gate,
            metrics: metrics.clone(),
            closing: CancellationToken::new(),
            expires_ms: identity.expires_ms(),
        }));
        let (gossip, gossip_inbox) = gossip_inbox::queue(metrics);
        Ok((mesh.clone(), gossip_inbox, Entrance { mesh, gossip, tasks }))
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
        self.0.links.set_peers(peers);
    }

    /// Sends a frame, in order with the others of its lane (`slot_lane` modulo 4). Never waits. What was sent over a link
    /// that then breaks may be lost, also in part.
    pub fn send(&self, to: &NodeId, slot_lane: u16, frame: &PeerFrame) -> Result<(), SendError> {
        let link = self.link_up(to)?;
        link.send(slot_lane, &self.with_length(to, frame)?)
    }

    /// The same for a frame that can be done without: it is refused as `Busy` where much waits for the peer already, and so
    /// never the one for which a link is reset.
    pub fn send_ephemeral(&self, to: &NodeId, slot_lane: u16, frame: &PeerFrame) -> Result<(), SendError> {
        let link = self.link_up(to)?;
        let bytes = self.with_length(to, frame)?;
        if link.has_much_room(bytes.len()) { link.send(slot_lane, &bytes) } else { Err(SendError::Busy) }
    }

    /// Sends a small frame by a stream of its own, in order with others of its kind: what waits on the lanes does not keep it.
    /// Never waits. Lost as others are.
    pub fn send_promptly(&self, to: &NodeId, frame: &PeerFrame) -> Result<(), SendError> {
        let link = self.link_up(to)?;
        link.send_promptly(&self.with_length(to, frame)?)
    }

    /// Sends a large frame on a stream of its own, out of order with all others. Never waits; a few are under way at
    /// once, others queue.
    pub fn send_bulk(&self, to: &NodeId, frame: &PeerFrame) -> Result<(), SendError> {
        let link = self.link_up(to)?;
        let mut bytes = Vec::new();
        self.encode(to, frame, &mut bytes)?;
        link.send_bulk(bytes)
    }

    /// The frame's bytes after their length.
    fn with_length(&self, to: &NodeId, frame: &PeerFrame) -> Result<Vec<u8>, SendError> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        let length = self.encode(to, frame, &mut bytes)?;
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(bytes)
    }

    /// Appends the frame's bytes; how many. One that no peer takes is a mistake in this program or its configuration: what it
    /// was for waits in vain, so that it is said and counted.
    fn encode(&self, to: &NodeId, frame: &PeerFrame, bytes: &mut Vec<u8>) -> Result<usize, SendError> {
        static COMPLAIN: Seldom = Seldom::new();
        let before = bytes.len();
        let encoded = codec::encode_into(frame, bytes);
        let length = bytes.len() - before;
        if encoded.is_ok() && length <= FRAME_MAX_BYTES {
            return Ok(length);
        }
        self.0.metrics.peer.frames_too_long.inc();
        if let Some(left_out) = COMPLAIN.now() {
            let (error, kind) = (encoded.err().map(|error| error.to_string()), frame.kind());
            tracing::error!(
                peer = %to, kind, bytes = length, max_bytes = FRAME_MAX_BYTES, error, left_out,
                "a frame was not sent: it is longer than any node takes"
            );
        }
        Err(SendError::TooLong)
    }

    /// Nothing is encoded for a link that is down.
    fn link_up(&self, to: &NodeId) -> Result<Arc<Link>, SendError> {
        self.0.links.get(to).filter(|link| link.up().is_some()).ok_or(SendError::Down)
    }

    /// Sends a gossip message to whoever has that address. Never waits; without a way or room the message is dropped.
    pub fn gossip_to(&self, addr: SocketAddr, message: Bytes) {
        let is_sent = addr != self.0.gate.addr()
            && !self.0.closing.is_cancelled()
            && match self.0.links.up_at(addr) {
                Some(up) => up.gossip(message),
                // Also where there is a link that is down: the node there may have been started again, which only gossip
                // tells.
                None => self.0.addresses.gossip(addr, message),
            };
        if !is_sent {
            self.0.metrics.peer.gossip_drop(GossipDrop::NoWay);
        }
    }

    /// What waits to be written to other nodes, in bytes.
    pub fn queued_bytes(&self) -> u64 {
        self.0.links.all().iter().filter_map(|link| link.up()).map(|up| up.queued_bytes() as u64).sum()
    }

    /// The links, by peer: those that this node is to have, and those that peers have to it.
    pub fn links(&self) -> BTreeMap<NodeId, LinkView> {
        let mut views: BTreeMap<NodeId, LinkView> = BTreeMap::new();
        for link in self.0.links.all() {
            let up = link.up();
            let rtt_us = up.as_ref().map_or(0, |up| up.connection.rtt().as_micros() as u64);
            views.insert(link.peer.clone(), LinkView { sends: up.is_some(), hears: false, rtt_us });
        }
        for node in self.0.heard.peers() {
            views.entry(node).or_default().hears = true;
        }
        views
    }

    /// Why another node refuses this one: it belongs to another store, or has other settings.
    pub fn misfit(&self) -> watch::Receiver<Option<String>> {
        self.0.dialler.misfit.subscribe()
    }

    /// Whom this node has refused lately since they do not belong here, and why.
    pub fn refused(&self) -> BTreeMap<NodeId, Refused> {
        self.0.heard.refused()
    }

    /// Who is welcome here and has other keys to sign tokens with.
    pub fn with_other_keys(&self) -> BTreeSet<NodeId> {
        self.0.heard.with_other_keys()
    }

    /// For each link that is up a number that changes with each answer: the estimate of the round trip, which quinn makes anew
    /// from each acknowledgement of something that was not acknowledged before. A peer that is there answers each keep-alive:
    /// where the number stands still, nothing comes through, there or back. Packets tell less: a peer has keep-alives of its own,
    /// and says in them again what it acknowledged last, also while nothing reaches it.
    pub fn answers(&self) -> BTreeMap<NodeId, u64> {
        let mark = |link: &Link| Some(link.up()?.connection.rtt().as_nanos() as u64);
        self.0.links.all().iter().filter_map(|link| Some((link.peer.clone(), mark(link)?))).collect()
    }

    /// Says goodbye to all peers and frees the port.
    pub async fn shut_down(&self) {
        self.0.closing.cancel();
        self.set_peers(BTreeMap::new());
        self.0.dialler.endpoint.close(VarInt::from_u32(0), b"the node stops");
        let _ = tokio::time::timeout(GOODBYE_LIMIT, self.0.dialler.endpoint.wait_idle()).await;
        self.0.gate.shut();
    }

    /// Vanishes as a killed process does: nothing is said to anyone, and the port is free.
    pub fn abort(&self) {
        self.0.closing.cancel();
        self.0.gate.shut();
        self.0.dialler.endpoint.close(VarInt::from_u32(0), b"");
    }
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entrance").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("me", &self.0.dialler.me)
            .field("local_addr", &self.local_addr())
            .finish_non_exhaustive()
    }
}
