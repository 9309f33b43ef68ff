//! One outbound link: dials a peer again and again, and writes what is due to it. Frames are only taken while the link is
//! up; what waits when it goes down is lost, which the other end learns from the next connection.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use quinn::{Connection, WriteError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    SendError,
    dial::{Dialler, Pause},
    greeting::{DialError, Goodbye, Purpose, STREAM_BULK, STREAM_GOSSIP, STREAM_LANE},
    queues::{Lane, Parcels},
};
use crate::{
    clock,
    id::{Generation, NodeId},
    logic::request::EPHEMERAL_PART,
    metrics::{Limit, LinkReset, Metrics},
    seldom::Seldom,
};

/// Ordered streams of a link; a slot always uses the same one.
const LANES: u16 = 4;
/// One more stream, for frames that nothing else may keep waiting.
const PROMPT: u16 = LANES;

/// Above gossip's, which is above that of the lanes.
const PROMPT_PRIORITY: i32 = 2;

/// Large frames written at once.
const BULK_AT_ONCE: usize = 4;

/// Gossip messages waiting for a link, past which new ones are dropped: gossip says it again.
const GOSSIP_QUEUE_BYTES: usize = 512 << 10;

/// A connection that lasted this long lets the next dial start without delay.
const STABLE_MS: u64 = 1_000;

/// How much may wait for one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkBounds {
    /// On the lanes; past it the link is reset.
    pub(super) lanes_bytes: usize,
    /// Of large frames; past it [`SendError::Busy`].
    pub(super) bulk_bytes: usize,
}

pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) generation: Generation,
    pub(super) addr: SocketAddr,
    bounds: LinkBounds,
    metrics: Arc<Metrics>,
    up: Mutex<Option<Arc<Up>>>,
    closed: CancellationToken,
    retry: Notify,
    overflows: Seldom,
}

/// A link that has a connection.
pub(super) struct Up {
    pub(super) connection: Connection,
    lanes: [Lane; LANES as usize + 1],
    queued_bytes: AtomicUsize,
    bulk: Parcels,
    gossip: Parcels,
}

impl Link {
    pub(super) fn new(
        peer: NodeId,
        (generation, addr): (Generation, SocketAddr),
        bounds: LinkBounds,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (up, closed, retry) = (Mutex::default(), CancellationToken::new(), Notify::new());
        Self { peer, generation, addr, bounds, metrics, up, closed, retry, overflows: Seldom::new() }
    }

    pub(super) fn up(&self) -> Option<Arc<Up>> {
        self.lock().clone()
    }

    /// Ends the link; nothing is sent over it from now on.
    pub(super) fn close(&self) {
        self.closed.cancel();
        let up = self.lock().take();
        if let Some(up) = up {
            Goodbye::Done.close(&up.connection);
        }
    }

    /// Drops the connection, and dials anew.
    pub(super) fn reset(&self, why: LinkReset) {
        let up = self.lock().take();
        if let Some(up) = up {
            self.metrics.peer.link_reset(why);
            let goodbye = if why == LinkReset::Overflow { Goodbye::Overflow } else { Goodbye::Done };
            goodbye.close(&up.connection);
        }
        self.retry();
    }

    /// Dials now, where the link is down.
    pub(super) fn retry(&self) {
        self.retry.notify_one();
    }

    /// Appends a frame (`bytes` begins with its length) to a lane.
    pub(super) fn send(&self, lane: u16, bytes: &[u8]) -> Result<(), SendError> {
        self.append(lane % LANES, bytes)
    }

    /// Whether little waits on the lanes, also with a frame of this length.
    pub(super) fn has_much_room(&self, bytes: usize) -> bool {
        let waiting_bytes = self.up().map_or(0, |up| up.queued_bytes.load(Ordering::Relaxed));
        waiting_bytes + bytes <= self.bounds.lanes_bytes / EPHEMERAL_PART
    }

    /// Appends a small frame to the stream that is kept free.
    pub(super) fn send_promptly(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.append(PROMPT, bytes)
    }

    fn append(&self, lane: u16, bytes: &[u8]) -> Result<(), SendError> {
        let up = self.up().ok_or(SendError::Down)?;
        let (before, max_bytes) = (up.queued_bytes.fetch_add(bytes.len(), Ordering::Relaxed), self.bounds.lanes_bytes);
        if before + bytes.len() > max_bytes {
            if let Some(left_out) = self.overflows.now() {
                tracing::warn!(
                    peer = %self.peer, waiting_bytes = before, max_bytes, left_out,
                    "the peer does not keep up: the link is reset"
                );
            }
            self.metrics.limit_hit(Limit::PeerQueueBytes);
            self.reset(LinkReset::Overflow);
            return Err(SendError::Full);
        }
        up.lanes[usize::from(lane)].push(bytes);
        self.metrics.peer.sent(bytes.len());
        Ok(())
    }

    /// Queues a large frame for a stream of its own.
    pub(super) fn send_bulk(&self, bytes: Vec<u8>) -> Result<(), SendError> {
        let length = bytes.len();
        let up = self.up().ok_or(SendError::Down)?;
        if !up.bulk.push(bytes.into()) {
            return Err(SendError::Busy);
        }
        self.metrics.peer.sent(length);
        Ok(())
    }

    /// The link's task: ends when the link is closed.
    pub(super) async fn run(self: Arc<Self>, dialler: Arc<Dialler>) {
        let mut pause = Pause::default();
        let complain = Seldom::new();
        loop {
            let dialled = tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                dialled = dialler.dial(self.addr, Purpose::Everything, Some((&self.peer, self.generation))) => dialled,
            };
            match dialled {
                Ok((connection, ..)) => {
                    let since_ms = clock::mono_ms();
                    self.serve(connection).await;
                    if clock::mono_ms() - since_ms >= STABLE_MS {
                        pause.reset();
                    }
                }
                Err(DialError::Refused(why)) => {
                    if let Some(left_out) = complain.now() {
                        tracing::warn!(peer = %self.peer, addr = %self.addr, why, left_out, "no connection to the peer");
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = %self.peer, addr = %self.addr, %error, "no connection to the peer");
                }
            }
            tokio::select! {
                () = self.closed.cancelled() => return,
                () = self.retry.notified() => {}
                () = tokio::time::sleep(pause.next()) => {}
            }
        }
    }

    async fn serve(&self, connection: Connection) {
        let up = Arc::new(Up::new(connection.clone(), self.bounds.bulk_bytes));
        {
            let mut place = self.lock();
            // Under the lock: `close` cancels first and then empties the place.
            if self.closed.is_cancelled() {
                return Goodbye::Done.close(&connection);
            }
            *place = Some(up.clone());
        }
        tracing::info!(peer = %self.peer, generation = self.generation, addr = %self.addr, "the link is up");
        let ended = tokio::select! {
            biased;
            ended = connection.closed() => ended.to_string(),
            error = up.write() => error.to_string(),
        };
        Goodbye::Done.close(&connection);
        let was_there = self.lock().take_if(|current| Arc::ptr_eq(current, &up)).is_some();
        if was_there {
            // Neither closed nor reset by this node.
            self.metrics.peer.link_reset(LinkReset::Lost);
        }
        tracing::info!(peer = %self.peer, generation = self.generation, ended, "the link is down");
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Up>>> {
        // No code panics while it holds this lock.
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// What waits to be written, gossip apart.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed) + self.bulk.queued_bytes()
    }

    pub(super) fn gossip(&self, message: Bytes) -> bool {
        self.gossip.send_or_queue(&self.connection, message)
    }

    /// Writes until something fails, which only a lost connection makes.
    async fn write(&self) -> WriteError {
        let mut writers = FuturesUnordered::<BoxFuture<'_, WriteError>>::new();
        for (number, lane) in self.lanes.iter().enumerate() {
            writers.push(self.write_lane(number as u8, lane).map(failure).boxed());
        }
        for _ in 0..BULK_AT_ONCE {
            writers.push(self.bulk.write_to(&self.connection, STREAM_BULK, -1).map(failure).boxed());
        }
        writers.push(self.gossip.write_to(&self.connection, STREAM_GOSSIP, 1).map(failure).boxed());
        writers.next().await.unwrap_or(WriteError::ClosedStream)
    }

    async fn write_lane(&self, number: u8, lane: &Lane) -> Result<Infallible, WriteError> {
        let mut stream = self.connection.open_uni().await?;
        if u16::from(number) == PROMPT {
            stream.set_priority(PROMPT_PRIORITY).map_err(|_| WriteError::ClosedStream)?;
        }
        stream.write_all(&[STREAM_LANE, number]).await?;
        loop {
            let batch = lane.next().await;
            let bytes = batch.len();
            stream.write_chunk(batch.into()).await?;
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

fn failure(ended: Result<Infallible, WriteError>) -> WriteError {
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
