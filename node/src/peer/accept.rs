//! The receiving side: what peers dial to send to this node. A peer is known by its certificate, greeted, and read from;
//! its newer connection takes the place of the older only when nothing more is read from that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, ConnectionError, Incoming, RecvStream};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Seldom,
    hello::{self, Goodbye, Hello, Purpose, STREAM_BULK, STREAM_GOSSIP, STREAM_LANE},
    mesh::Shared,
    tls,
};
use crate::{
    id::Member,
    wire::peer::{self as codec, BULK_FRAME_MAX_BYTES, LANE_FRAME_MAX_BYTES},
};

/// Handshakes and greetings under way at once; past it connections are refused.
const GREETINGS_MAX: usize = 256;

/// A stranger's time to prove itself.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Connections for gossip only, of one peer.
const GOSSIP_ONLY_MAX: usize = 8;

/// Large frames of one peer held in memory at once, while they arrive.
const BULK_AT_ONCE: usize = 4;

/// The largest gossip message: chitchat's own bound, and room for the address before it.
const GOSSIP_MAX_BYTES: usize = 65_507 + 64;

const READ_BYTES: usize = 64 << 10;

/// What is known of one peer's inbound connections.
#[derive(Default)]
pub(super) struct Inbound {
    /// The connection that is read from. Locked while one takes the place of another.
    current: Mutex<Option<Current>>,
    pub(super) hears: AtomicBool,
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

/// One connection while it is read.
#[derive(Clone)]
struct Reading {
    shared: Arc<Shared>,
    member: Member,
    connection: Connection,
    stop: CancellationToken,
    bulk: Arc<Semaphore>,
}

/// Accepts for as long as the endpoint is open.
pub(super) async fn run(shared: Arc<Shared>) {
    let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        let Ok(permit) = greetings.clone().try_acquire_owned() else {
            shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            incoming.refuse();
            continue;
        };
        let one = shared.clone();
        shared.tasks.spawn_detached("peer-inbound", async move {
            let greeted = greet(&one, incoming).await;
            drop(permit);
            match greeted {
                Some((connection, node, hello, answer)) => admit(&one, connection, node, hello, answer).await,
                None => {
                    one.counters.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    if shared.closing.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Handshake, certificate, hello. Nothing is refused without a line in the log, but not each time.
async fn greet(shared: &Shared, incoming: Incoming) -> Option<(Connection, Member, Hello, quinn::SendStream)> {
    static COMPLAIN: Seldom = Seldom::every(Duration::from_secs(5));
    let from = incoming.remote_address();
    let complain = |why: &str| {
        if COMPLAIN.now() {
            tracing::warn!(%from, why, "a connection was refused");
        }
    };
    let connection = match tokio::time::timeout(HANDSHAKE_LIMIT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            match error {
                // Nobody's fault: a peer that was killed or thought better of it.
                ConnectionError::TimedOut | ConnectionError::Reset | ConnectionError::LocallyClosed => {}
                _ => complain(&format!("the handshake failed: {error}")),
            }
            return None;
        }
        Err(_) => {
            complain("the handshake took too long");
            return None;
        }
    };
    let refuse = |goodbye: Goodbye, why: &str| {
        complain(why);
        goodbye.close(&connection);
    };
    let node = match tls::peer_of(&connection) {
        Ok(node) if node == shared.me.node => {
            // A seed that is this node's own address: the dialling side knows.
            Goodbye::WrongNode.close(&connection);
            return None;
        }
        Ok(node) => node,
        Err(why) => {
            refuse(Goodbye::WrongNode, &why);
            return None;
        }
    };
    let Some((hello, answer)) = hello::hear(&connection).await else {
        if connection.close_reason().is_none() {
            refuse(Goodbye::Garbage, &format!("node {node} did not say hello"));
        }
        return None;
    };
    if hello.cluster != *shared.cluster {
        let why =
            format!("node {node} belongs to cluster {:?}, not {:?}: see cluster.name", hello.cluster, shared.cluster);
        refuse(Goodbye::WrongCluster, &why);
        return None;
    }
    if hello.to_generation != 0 && hello.to_generation != shared.me.generation {
        // Ordinary after a restart: the peer will hear of the new generation by gossip.
        Goodbye::WrongGeneration.close(&connection);
        return None;
    }
    let member = Member { node, generation: hello.generation };
    Some((connection, member, hello, answer))
}

async fn admit(shared: &Arc<Shared>, connection: Connection, member: Member, hello: Hello, answer: quinn::SendStream) {
    let inbound = shared.inbound(&member.node);
    let reading = Reading {
        shared: shared.clone(),
        member,
        connection,
        stop: CancellationToken::new(),
        bulk: Arc::new(Semaphore::new(BULK_AT_ONCE)),
    };
    match hello.purpose {
        Purpose::GossipOnly => {
            if inbound.gossip_only.fetch_add(1, Ordering::Relaxed) >= GOSSIP_ONLY_MAX {
                Goodbye::TooMany.close(&reading.connection);
            } else {
                reading.read(answer, Purpose::GossipOnly).await;
            }
            inbound.gossip_only.fetch_sub(1, Ordering::Relaxed);
        }
        Purpose::Everything => take_over(&inbound, reading, answer).await,
    }
}

/// Takes the place of the peer's earlier connection, and reads until the end.
async fn take_over(inbound: &Inbound, reading: Reading, answer: quinn::SendStream) {
    let Reading { shared, member, connection, .. } = &reading;
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
    shared.inbox.peer_connected(member).await;
    inbound.hears.store(true, Ordering::Relaxed);
    shared.heard_from(member);
    *current =
        Some(Current { member: member.clone(), connection: connection.clone(), stop: reading.stop.clone(), ended });
    drop(current);
    tracing::info!(peer = %member, "the peer's connection is here");
    reading.read(answer, Purpose::Everything).await;
    inbound.hears.store(false, Ordering::Relaxed);
    let why = connection.close_reason().map(|reason| reason.to_string()).unwrap_or_default();
    tracing::info!(peer = %member, why, "the peer's connection is gone");
    shared.inbox.peer_lost(member).await;
}

impl Reading {
    /// Answers the hello, and reads all streams and datagrams; when this returns nothing more is handed over.
    async fn read(&self, answer: quinn::SendStream, purpose: Purpose) {
        if !hello::welcome(answer, self.shared.me.generation).await {
            // Not read from, so it must not stay open either: the peer would go on sending to nobody.
            return Goodbye::Garbage.close(&self.connection);
        }
        let readers = TaskTracker::new();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                stream = self.connection.accept_uni() => {
                    let Ok(stream) = stream else { break };
                    let reader = self.clone().read_stream(stream, purpose);
                    self.shared.tasks.spawn_detached("peer-stream", readers.track_future(reader));
                }
                message = self.connection.read_datagram() => {
                    let Ok(message) = message else { break };
                    self.shared.inbox.gossip(&self.member, message).await;
                }
            }
        }
        Goodbye::Done.close(&self.connection);
        self.stop.cancel();
        readers.close();
        readers.wait().await;
    }

    async fn read_stream(self, mut stream: RecvStream, purpose: Purpose) {
        let mut kind = [0];
        if stream.read_exact(&mut kind).await.is_err() {
            return;
        }
        match (kind[0], purpose) {
            (STREAM_LANE, Purpose::Everything) => {
                // A lane ends only with its connection: if its reader ends first, even by a panic, the peer must know.
                let _closes = CloseOnDrop(self.connection.clone());
                self.read_lane(stream).await;
            }
            (STREAM_BULK, Purpose::Everything) => self.read_bulk(stream).await,
            (STREAM_GOSSIP, _) => {
                if let Some(message) = self.read_whole(stream, GOSSIP_MAX_BYTES).await {
                    self.shared.inbox.gossip(&self.member, message.into()).await;
                }
            }
            // Of a later wire version, perhaps: not an error of the connection.
            _ => drop(stream.stop(quinn::VarInt::from_u32(0))),
        }
    }

    async fn read_lane(&self, mut stream: RecvStream) {
        let mut number = [0];
        if stream.read_exact(&mut number).await.is_err() {
            return;
        }
        let mut frames = Frames::default();
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                chunk = stream.read_chunk(READ_BYTES, true) => chunk,
            };
            let Ok(Some(chunk)) = chunk else { return };
            frames.add(&chunk.bytes);
            loop {
                match frames.next() {
                    Ok(Some(frame)) => self.hand_over(&frame).await,
                    Ok(None) => break,
                    Err(length) => {
                        tracing::warn!(peer = %self.member, length, "a frame that is too long: the connection is closed");
                        return Goodbye::Garbage.close(&self.connection);
                    }
                }
                if self.stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    async fn read_bulk(&self, stream: RecvStream) {
        let Ok(_permit) = self.bulk.acquire().await else { return };
        if let Some(frame) = self.read_whole(stream, BULK_FRAME_MAX_BYTES).await {
            self.hand_over(&frame).await;
        }
    }

    /// Reads up to the stream's end; grows with what arrives.
    async fn read_whole(&self, mut stream: RecvStream, max_bytes: usize) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                chunk = stream.read_chunk(READ_BYTES, true) => chunk,
            };
            match chunk.ok()? {
                Some(chunk) if whole.len() + chunk.bytes.len() <= max_bytes => whole.extend_from_slice(&chunk.bytes),
                Some(_) => {
                    tracing::warn!(peer = %self.member, max_bytes, "a message that is too long: the connection is closed");
                    Goodbye::Garbage.close(&self.connection);
                    return None;
                }
                None => return Some(whole),
            }
        }
    }

    async fn hand_over(&self, frame: &[u8]) {
        static COMPLAIN: Seldom = Seldom::every(Duration::from_secs(5));
        if self.stop.is_cancelled() {
            return;
        }
        match codec::decode(frame) {
            Ok(frame) => {
                self.shared.counters.frames_received.fetch_add(1, Ordering::Relaxed);
                self.shared.inbox.receive(&self.member, frame).await;
            }
            Err(error) => {
                self.shared.counters.undecodable.fetch_add(1, Ordering::Relaxed);
                if COMPLAIN.now() {
                    tracing::warn!(peer = %self.member, bytes = frame.len(), %error, "a frame was dropped");
                }
            }
        }
    }
}

struct CloseOnDrop(Connection);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        Goodbye::Done.close(&self.0);
    }
}

/// Cuts a lane's bytes into frames. Holds one frame that is not whole yet, at most, besides what was last read.
#[derive(Default)]
struct Frames {
    buffer: BytesMut,
}

impl Frames {
    fn add(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; the announced length where that is too long.
    fn next(&mut self) -> Result<Option<Bytes>, usize> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > LANE_FRAME_MAX_BYTES {
            return Err(length);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let _prefix = self.buffer.split_to(4);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}
