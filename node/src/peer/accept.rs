//! The receiving side: what peers dial to send to this node. A peer is known by its certificate, greeted, and read from;
//! its newer connection takes the place of the older only when nothing more is read from that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use quinn::{Connection, ConnectionError, Incoming, SendStream};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    dial::Dialler,
    greeting::{self, Goodbye, Hello, Purpose},
    links::Links,
    reading::{Reading, Sinks},
    tls,
};
use crate::{
    clock,
    id::{Member, NodeId},
    seldom::Seldom,
};

/// Handshakes and greetings under way at once; past it connections are refused.
const GREETINGS_MAX: usize = 256;

/// A stranger's time to prove itself.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Connections for gossip only, of one peer.
const GOSSIP_ONLY_MAX: usize = 8;

/// A node that was refused is named as such for this long after it came last.
const REFUSED_MS: u64 = 30_000;
/// At most this many are remembered; certificates of the cluster name them.
const REFUSED_MAX: usize = 64;

/// Whom this node hears, and whom it has refused since they do not belong here.
#[derive(Default)]
pub(super) struct Heard {
    inbound: StdMutex<BTreeMap<NodeId, Arc<Inbound>>>,
    refused: StdMutex<BTreeMap<NodeId, Refused>>,
    /// Those that are welcome, and said last that they have other keys.
    other_keys: StdMutex<BTreeSet<NodeId>>,
}

/// That a node was refused, since it does not belong here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The first time, by the monotonic clock in milliseconds.
    pub since_ms: u64,
    last_ms: u64,
    /// In words.
    pub why: String,
}

impl Heard {
    /// The peers from which a connection is here.
    pub(super) fn peers(&self) -> Vec<NodeId> {
        let heard = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = heard.iter().filter(|(_, inbound)| inbound.hears.load(Ordering::Relaxed));
        heard.map(|(node, _)| node.clone()).collect()
    }

    fn of(&self, node: &NodeId) -> Arc<Inbound> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default().clone()
    }

    /// Who was refused lately, and why.
    pub(super) fn refused(&self) -> BTreeMap<NodeId, Refused> {
        let since_ms = clock::mono_ms().saturating_sub(REFUSED_MS);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|_, refused| refused.last_ms >= since_ms);
        refused.clone()
    }

    fn refuse(&self, node: &NodeId, why: &str) {
        let now_ms = clock::mono_ms();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = refused.get(node).map_or(now_ms, |earlier| earlier.since_ms);
        if refused.contains_key(node) || refused.len() < REFUSED_MAX {
            refused.insert(node.clone(), Refused { since_ms, last_ms: now_ms, why: why.to_owned() });
        }
    }

    /// The peers that have other keys than this node, as they said when they last came.
    pub(super) fn with_other_keys(&self) -> BTreeSet<NodeId> {
        self.other_keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_keys(&self, node: &NodeId, are_mine: bool) {
        let mut other_keys = self.other_keys.lock().unwrap_or_else(PoisonError::into_inner);
        // Certificates of the cluster name them: there are not many.
        if are_mine {
            other_keys.remove(node);
        } else {
            other_keys.insert(node.clone());
        }
    }
}

/// What is known of one peer's inbound connections.
#[derive(Default)]
struct Inbound {
    /// The connection that is read from. Locked while one takes the place of another.
    current: Mutex<Option<Current>>,
    hears: AtomicBool,
    gossip_only: AtomicUsize,
}

struct Current {
    member: Member,
    connection: Connection,
    /// No further frame is to be handed over.
    stop: CancellationToken,
    /// None will be.
    ended: CancellationToken,
}

/// Lets peers in.
pub(super) struct Acceptor {
    /// Who this node is, and its port.
    pub(super) dialler: Arc<Dialler>,
    /// Are told who has come.
    pub(super) links: Arc<Links>,
    pub(super) heard: Arc<Heard>,
    pub(super) sinks: Arc<Sinks>,
    /// The node closes its port itself.
    pub(super) closing: CancellationToken,
}

impl Acceptor {
    /// Accepts for as long as the endpoint is open.
    pub(super) async fn run(self: Arc<Self>) {
        let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
        while let Some(incoming) = self.dialler.endpoint.accept().await {
            let Ok(permit) = greetings.clone().try_acquire_owned() else {
                self.sinks.metrics.peer.connections_refused.inc();
                incoming.refuse();
                continue;
            };
            let this = self.clone();
            self.sinks.tasks.spawn_detached("peer-inbound", async move {
                let greeted = this.greet(incoming).await;
                drop(permit);
                match greeted {
                    Some((connection, node, hello, answer)) => this.admit(connection, node, hello, answer).await,
                    None => {
                        this.sinks.metrics.peer.connections_refused.inc();
                    }
                }
            });
        }
        if self.closing.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// Handshake, certificate, hello. Nothing is refused without a line in the log, but not each time.
    async fn greet(&self, incoming: Incoming) -> Option<(Connection, Member, Hello, SendStream)> {
        static COMPLAIN: Seldom = Seldom::new();
        let from = incoming.remote_address();
        let complain = |why: &str| {
            if let Some(left_out) = COMPLAIN.now() {
                tracing::warn!(%from, why, left_out, "a connection was refused");
            }
        };
        let connection = match tokio::time::timeout(HANDSHAKE_LIMIT, incoming).await {
            Ok(Ok(connection)) => connection,
            // Nobody's fault: a peer that was killed or thought better of it.
            Ok(Err(ConnectionError::TimedOut | ConnectionError::Reset | ConnectionError::LocallyClosed)) => {
                return None;
            }
            Ok(Err(error)) => {
                complain(&format!("the handshake failed: {error}"));
                return None;
            }
            Err(_) => {
                complain("the handshake took too long");
                return None;
            }
        };
        match self.hear(&connection).await {
            Ok((member, hello, answer)) => Some((connection, member, hello, answer)),
            Err(Refusal { goodbye, told, why }) => {
                match told {
                    Some(told) => goodbye.close_saying(&connection, &told),
                    None => goodbye.close(&connection),
                }
                if let Some(why) = why {
                    complain(&why);
                }
                None
            }
        }
    }

    /// Who is at the other end of a connection whose handshake is done, and what it says.
    async fn hear(&self, connection: &Connection) -> Result<(Member, Hello, SendStream), Refusal> {
        let me = &self.dialler.me;
        let node = tls::peer_of(connection).map_err(|why| Refusal::told(Goodbye::WrongNode, why))?;
        if node == me.node {
            // A seed that is this node's own address: the dialling side knows.
            return Err(Refusal::untold(Goodbye::WrongNode));
        }
        let Some((hello, answer)) = greeting::hear(connection).await else {
            let is_gone = connection.close_reason().is_some();
            let refused = Refusal::told(Goodbye::Garbage, format!("node {node} did not say hello"));
            return Err(if is_gone { Refusal::untold(Goodbye::Garbage) } else { refused });
        };
        if let Some((goodbye, told)) = self.dialler.belongs.refuses(&me.node, &hello.belongs) {
            let why = format!("node {node} does not belong here, and is told so: {told}");
            self.heard.refuse(&node, &why);
            return Err(Refusal { goodbye, told: Some(told), why: Some(why) });
        }
        if hello.to_generation != 0 && hello.to_generation != me.generation {
            // Ordinary after a restart: the peer will hear of the new generation by gossip.
            return Err(Refusal::untold(Goodbye::WrongGeneration));
        }
        self.heard.note_keys(&node, hello.belongs.keyring == self.dialler.belongs.keyring);
        Ok((Member { node, generation: hello.generation }, hello, answer))
    }

    async fn admit(&self, connection: Connection, member: Member, hello: Hello, answer: SendStream) {
        let inbound = self.heard.of(&member.node);
        let reading = Reading::new(self.sinks.clone(), member, connection);
        match hello.purpose {
            Purpose::GossipOnly => {
                if inbound.gossip_only.fetch_add(1, Ordering::Relaxed) >= GOSSIP_ONLY_MAX {
                    Goodbye::TooMany.close(&reading.connection);
                } else {
                    reading.read(self.dialler.me.generation, answer, Purpose::GossipOnly).await;
                }
                inbound.gossip_only.fetch_sub(1, Ordering::Relaxed);
            }
            Purpose::Everything => self.take_over(&inbound, reading, answer).await,
        }
    }

    /// Takes the place of the peer's earlier connection, and reads until the end.
    async fn take_over(&self, inbound: &Inbound, reading: Reading, answer: SendStream) {
        let Reading { member, connection, .. } = &reading;
        let mut current = inbound.current.lock().await;
        if let Some(earlier) = &*current
            && earlier.member.generation > member.generation
            && earlier.connection.close_reason().is_none()
        {
            return Goodbye::WrongGeneration.close(connection);
        }
        if let Some(earlier) = current.take() {
            earlier.stop.cancel();
            Goodbye::Replaced.close(&earlier.connection);
            earlier.ended.cancelled().await;
        }
        let ended = CancellationToken::new();
        // However this task ends, the next connection must not wait for it.
        let _ended = ended.clone().drop_guard();
        self.sinks.inbox.peer_connected(member).await;
        inbound.hears.store(true, Ordering::Relaxed);
        self.links.heard_from(member);
        *current =
            Some(Current { member: member.clone(), connection: connection.clone(), stop: reading.stop.clone(), ended });
        drop(current);
        tracing::info!(peer = %member, "the peer's connection is here");
        reading.read(self.dialler.me.generation, answer, Purpose::Everything).await;
        inbound.hears.store(false, Ordering::Relaxed);
        let why = connection.close_reason().map(|reason| reason.to_string()).unwrap_or_default();
        tracing::info!(peer = %member, why, "the peer's connection is gone");
        self.sinks.inbox.peer_lost(member).await;
    }
}

/// Why a connection is not let in: what the other end is told, and what the log is, if anything.
struct Refusal {
    goodbye: Goodbye,
    /// In words, where the reason's name is not enough.
    told: Option<String>,
    why: Option<String>,
}

impl Refusal {
    fn told(goodbye: Goodbye, why: String) -> Self {
        Self { goodbye, told: None, why: Some(why) }
    }

    fn untold(goodbye: Goodbye) -> Self {
        Self { goodbye, told: None, why: None }
    }
}
