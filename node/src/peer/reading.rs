//! Reads what a greeted peer sends: cuts its lanes into frames, and hands these to the inbox.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Inbox,
    gossip_inbox::GossipSender,
    greeting::{self, Goodbye, Purpose, STREAM_BULK, STREAM_GOSSIP, STREAM_LANE},
};
use crate::{
    id::{Generation, Member},
    metrics::Metrics,
    seldom::Seldom,
    tasks::Tasks,
    wire::peer::{self as codec, FRAME_MAX_BYTES},
};

/// Large frames of one peer held in memory at once, while they arrive.
const BULK_AT_ONCE: usize = 4;

/// The largest gossip message: chitchat's own bound, and room for the address before it.
const GOSSIP_MAX_BYTES: usize = 65_507 + 64;

const READ_BYTES: usize = 64 << 10;

/// Where that which is read goes.
pub(super) struct Sinks {
    pub(super) inbox: Arc<dyn Inbox>,
    pub(super) gossip: GossipSender,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tasks: Tasks,
}

/// One connection while it is read.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) sinks: Arc<Sinks>,
    pub(super) member: Member,
    pub(super) connection: Connection,
    /// No further frame is to be handed over.
    pub(super) stop: CancellationToken,
    bulk: Arc<Semaphore>,
}

impl Reading {
    pub(super) fn new(sinks: Arc<Sinks>, member: Member, connection: Connection) -> Self {
        Self { sinks, member, connection, stop: CancellationToken::new(), bulk: Arc::new(Semaphore::new(BULK_AT_ONCE)) }
    }

    /// Answers the hello with this node's generation, and reads all streams and datagrams; when this returns nothing more is handed over.
    pub(super) async fn read(&self, generation: Generation, answer: quinn::SendStream, purpose: Purpose) {
        if !greeting::welcome(answer, generation).await {
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
                    self.sinks.tasks.spawn_detached("peer-stream", readers.track_future(reader));
                }
                message = self.connection.read_datagram() => {
                    let Ok(message) = message else { break };
                    self.sinks.gossip.push(&self.member, message);
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
                    self.sinks.gossip.push(&self.member, message.into());
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
        if let Some(frame) = self.read_whole(stream, FRAME_MAX_BYTES).await {
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
        static COMPLAIN: Seldom = Seldom::new();
        if self.stop.is_cancelled() {
            return;
        }
        match codec::decode(frame) {
            Ok(frame) => {
                self.sinks.metrics.peer.frames_received.inc();
                self.sinks.inbox.receive(&self.member, frame).await;
            }
            Err(error) => {
                self.sinks.metrics.peer.frames_undecodable.inc();
                if let Some(left_out) = COMPLAIN.now() {
                    tracing::warn!(peer = %self.member, bytes = frame.len(), %error, left_out, "a frame was dropped");
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
pub(super) struct Frames {
    buffer: BytesMut,
}

impl Frames {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; the announced length where that is too long.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, usize> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > FRAME_MAX_BYTES {
            return Err(length);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let _prefix = self.buffer.split_to(4);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}
