//! One outbound link: dials a peer again and again, and writes what is due to it. Frames are only taken while the link is
//! up; what waits when it goes down is lost, which the other end learns from the next connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use quinn::{Connection, WriteError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Seldom, SendError,
    hello::{self, DialError, Goodbye, Hello, Purpose, STREAM_BULK, STREAM_GOSSIP, STREAM_LANE},
    mesh::Shared,
    outbox::{Lane, Parcels},
    tls,
};
use crate::{
    clock,
    id::{Generation, NodeId},
    wire::peer::{BULK_FRAME_MAX_BYTES, LANE_FRAME_MAX_BYTES},
};

/// Ordered streams of a link; a slot always uses the same one.
pub(super) const LANES: u16 = 4;

/// Large frames written at once.
const BULK_AT_ONCE: usize = 4;

/// Gossip messages waiting for a link or an address, past which new ones are dropped: gossip says it again.
pub(super) const GOSSIP_QUEUE_BYTES: usize = 512 << 10;

/// A connection that lasted so long lets the next dial start without delay.
const STABLE_MS: u64 = 1_000;

pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) generation: Generation,
    pub(super) addr: SocketAddr,
    up: Mutex<Option<Arc<Up>>>,
    closed: CancellationToken,
    retry: Notify,
}

/// A link that has a connection.
pub(super) struct Up {
    pub(super) connection: Connection,
    lanes: [Lane; LANES as usize],
    queued_bytes: AtomicUsize,
    bulk: Parcels,
    gossip: Parcels,
}

impl Link {
    pub(super) fn new(peer: NodeId, generation: Generation, addr: SocketAddr) -> Self {
        Self { peer, generation, addr, up: Mutex::default(), closed: CancellationToken::new(), retry: Notify::new() }
    }

    pub(super) fn up(&self) -> Option<Arc<Up>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the link; nothing is sent over it from now on.
    pub(super) fn close(&self) {
        self.closed.cancel();
        if let Some(up) = self.take_up() {
            Goodbye::Done.close(&up.connection);
        }
    }

    /// Drops the connection, and dials anew.
    pub(super) fn reset(&self, goodbye: Goodbye) {
        if let Some(up) = self.take_up() {
            goodbye.close(&up.connection);
        }
        self.retry.notify_one();
    }

    /// Dials now, where the link is down.
    pub(super) fn retry(&self) {
        self.retry.notify_one();
    }

    fn take_up(&self) -> Option<Arc<Up>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Appends a frame (`bytes` begins with its length) to a lane.
    pub(super) fn send(&self, lane: u16, bytes: &[u8], max_bytes: usize) -> Result<(), SendError> {
        if bytes.len() > LANE_FRAME_MAX_BYTES {
            return Err(SendError::TooLong);
        }
        let up = self.up().ok_or(SendError::Down)?;
        let before = up.queued_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        if before + bytes.len() > max_bytes {
            tracing::warn!(peer = %self.peer, waiting_bytes = before, max_bytes, "the peer does not keep up: the link is reset");
            self.reset(Goodbye::Overflow);
            return Err(SendError::Full);
        }
        up.lanes[usize::from(lane % LANES)].push(bytes);
        Ok(())
    }

    /// Queues a large frame for a stream of its own.
    pub(super) fn send_bulk(&self, bytes: Vec<u8>) -> Result<(), SendError> {
        if bytes.len() > BULK_FRAME_MAX_BYTES {
            return Err(SendError::TooLong);
        }
        let up = self.up().ok_or(SendError::Down)?;
        if up.bulk.push(bytes.into()) { Ok(()) } else { Err(SendError::Busy) }
    }
}

impl Up {
    fn new(connection: Connection, bulk_max_bytes: usize) -> Self {
        Self {
            connection,
            lanes: Default::default(),
            queued_bytes: AtomicUsize::new(0),
            bulk: Parcels::bounded(bulk_max_bytes),
            gossip: Parcels::bounded(GOSSIP_QUEUE_BYTES),
        }
    }

    pub(super) fn gossip(&self, message: Bytes) -> bool {
        send_gossip(&self.connection, &self.gossip, message)
    }

    /// Writes until something fails, which only a lost connection makes.
    async fn write(&self) -> WriteError {
        let mut writers = FuturesUnordered::<BoxFuture<'_, WriteError>>::new();
        for (number, lane) in self.lanes.iter().enumerate() {
            writers.push(self.write_lane(number as u8, lane).map(unfail).boxed());
        }
        for _ in 0..BULK_AT_ONCE {
            writers.push(write_parcels(&self.connection, &self.bulk, STREAM_BULK, -1).map(unfail).boxed());
        }
        writers.push(write_parcels(&self.connection, &self.gossip, STREAM_GOSSIP, 1).map(unfail).boxed());
        writers.next().await.unwrap_or(WriteError::ClosedStream)
    }

    async fn write_lane(&self, number: u8, lane: &Lane) -> Result<Never, WriteError> {
        let mut stream = self.connection.open_uni().await?;
        stream.write_all(&[STREAM_LANE, number]).await?;
        loop {
            let batch = lane.next().await;
            let bytes = batch.len();
            stream.write_chunk(batch.into()).await?;
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// Sends now, if the message fits a datagram, or queues it for a stream; says whether either could be done.
pub(super) fn send_gossip(connection: &Connection, queue: &Parcels, message: Bytes) -> bool {
    let fits = connection.max_datagram_size().is_some_and(|max_bytes| message.len() <= max_bytes);
    (fits && connection.send_datagram(message.clone()).is_ok()) || queue.push(message)
}

/// Writes each message to a stream of its own.
pub(super) async fn write_parcels(
    connection: &Connection,
    queue: &Parcels,
    kind: u8,
    priority: i32,
) -> Result<Never, WriteError> {
    loop {
        let message = queue.next().await;
        let bytes = message.len();
        let mut stream = connection.open_uni().await?;
        let _ = stream.set_priority(priority);
        stream.write_all(&[kind]).await?;
        stream.write_chunk(message).await?;
        let _ = stream.finish();
        queue.written(bytes);
    }
}

pub(super) enum Never {}

fn unfail(ended: Result<Never, WriteError>) -> WriteError {
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// The link's task: ends when the link is closed.
pub(super) async fn run(shared: Arc<Shared>, link: Arc<Link>) {
    let mut pause = Pause::default();
    let complain = Seldom::every(Duration::from_secs(10));
    loop {
        let dialled = tokio::select! {
            biased;
            () = link.closed.cancelled() => return,
            dialled = dial(&shared, link.addr, Purpose::Everything, Some((&link.peer, link.generation))) => dialled,
        };
        match dialled {
            Ok((connection, ..)) => {
                let since_ms = clock::mono_ms();
                serve(&shared, &link, connection).await;
                if clock::mono_ms() - since_ms >= STABLE_MS {
                    pause.reset();
                }
            }
            Err(DialError::Refused(why)) if complain.now() => {
                tracing::warn!(peer = %link.peer, addr = %link.addr, why, "no connection to the peer");
            }
            Err(error) => tracing::debug!(peer = %link.peer, addr = %link.addr, %error, "no connection to the peer"),
        }
        tokio::select! {
            () = link.closed.cancelled() => return,
            () = link.retry.notified() => {}
            () = tokio::time::sleep(pause.next()) => {}
        }
    }
}

async fn serve(shared: &Shared, link: &Link, connection: Connection) {
    let up = Arc::new(Up::new(connection.clone(), shared.settings.bulk_queue_bytes));
    {
        let mut slot = link.up.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: `close` cancels first and then empties the slot.
        if link.closed.is_cancelled() {
            return Goodbye::Done.close(&connection);
        }
        *slot = Some(up.clone());
    }
    tracing::info!(peer = %link.peer, generation = link.generation, addr = %link.addr, "the link is up");
    let ended = tokio::select! {
        biased;
        ended = connection.closed() => ended.to_string(),
        error = up.write() => error.to_string(),
    };
    Goodbye::Done.close(&connection);
    let mut slot = link.up.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, &up)) {
        *slot = None;
    }
    drop(slot);
    tracing::info!(peer = %link.peer, generation = link.generation, ended, "the link is down");
}

/// Makes a connection and says hello.
pub(super) async fn dial(
    shared: &Shared,
    addr: SocketAddr,
    purpose: Purpose,
    expected: Option<(&NodeId, Generation)>,
) -> Result<(Connection, NodeId, Generation), DialError> {
    let connecting = shared.endpoint.connect_with(shared.client.clone(), addr, tls::COMMON_NAME);
    let connecting = connecting.map_err(|error| match error {
        // This node is the one that stops.
        quinn::ConnectError::EndpointStopping => DialError::Lost(quinn::ConnectionError::LocallyClosed),
        error => DialError::Refused(error.to_string()),
    })?;
    let connection = connecting.await.map_err(DialError::Lost)?;
    let hello = Hello {
        purpose,
        generation: shared.me.generation,
        to_generation: expected.map_or(0, |(_, generation)| generation),
        cluster: shared.cluster.to_string(),
    };
    let greeted = hello::greet(&connection, &shared.me.node, expected.map(|(node, _)| node), &hello).await;
    let (node, generation) = greeted.map_err(explain)?;
    Ok((connection, node, generation))
}

/// Turns a refusal that a person must mend into words.
fn explain(error: DialError) -> DialError {
    let DialError::Lost(lost) = &error else { return error };
    match Goodbye::of(lost) {
        Some(Goodbye::WrongCluster) => DialError::Refused(
            "the node there belongs to a cluster of another name: see cluster.name and cluster.seeds".to_owned(),
        ),
        Some(Goodbye::WrongNode) => {
            DialError::Refused("the node there refuses this node's certificate or name".to_owned())
        }
        _ => error,
    }
}

/// The pause before the next dial: 50 ms, doubled up to 1 s, each shortened by up to a half at random.
#[derive(Default)]
pub(super) struct Pause {
    failures: u32,
}

impl Pause {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let ms = (50_u64 << self.failures.min(5)).min(1_000);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(rand::random_range(ms / 2..=ms))
    }
}
