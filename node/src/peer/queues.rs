//! What waits to be written to one connection. Bounded: when a peer does not keep up the link is reset, nothing else
//! waits for it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use quinn::{Connection, WriteError};
use tokio::sync::Notify;

/// Frames are gathered up to this many bytes for one write.
const BATCH_BYTES: usize = 64 << 10;

/// The frames of one lane, gathered into batches as they come: whoever writes takes all that is there.
#[derive(Debug, Default)]
pub(super) struct Lane {
    batches: Mutex<VecDeque<Vec<u8>>>,
    some: Notify,
}

impl Lane {
    /// Appends a frame, its length prefix included.
    pub(super) fn push(&self, frame: &[u8]) {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        match batches.back_mut() {
            Some(last) if last.len() + frame.len() <= BATCH_BYTES => last.extend_from_slice(frame),
            _ => batches.push_back(frame.to_vec()),
        }
        drop(batches);
        self.some.notify_one();
    }

    /// Waits for the next batch.
    pub(super) async fn next(&self) -> Vec<u8> {
        loop {
            if let Some(batch) = self.batches.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return batch;
            }
            self.some.notified().await;
        }
    }
}

/// Messages that each get a stream of their own.
#[derive(Debug)]
pub(super) struct Parcels {
    waiting: Mutex<VecDeque<Bytes>>,
    bytes: AtomicUsize,
    max_bytes: usize,
    some: Notify,
}

impl Parcels {
    pub(super) fn bounded(max_bytes: usize) -> Self {
        Self { waiting: Mutex::default(), bytes: AtomicUsize::new(0), max_bytes, some: Notify::new() }
    }

    /// Adds a message unless the bound is reached; one message is always taken.
    pub(super) fn push(&self, message: Bytes) -> bool {
        let before = self.bytes.fetch_add(message.len(), Ordering::Relaxed);
        if before > 0 && before + message.len() > self.max_bytes {
            self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
            return false;
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(message);
        self.some.notify_one();
        true
    }

    /// What waits, and what is being written.
    pub(super) fn queued_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits for the next message. It counts until it is written.
    async fn next(&self) -> Bytes {
        loop {
            if let Some(message) = self.take() {
                return message;
            }
            self.some.notified().await;
        }
    }

    fn take(&self) -> Option<Bytes> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let message = waiting.pop_front();
        if !waiting.is_empty() {
            // Several take from here, and several pushes may have left one permit.
            self.some.notify_one();
        }
        message
    }

    /// Sends now, if the message fits a datagram, or queues it; says whether either could be done.
    pub(super) fn send_or_queue(&self, connection: &Connection, message: Bytes) -> bool {
        let fits = connection.max_datagram_size().is_some_and(|max_bytes| message.len() <= max_bytes);
        (fits && connection.send_datagram(message.clone()).is_ok()) || self.push(message)
    }

    /// Writes each message to a stream of its own that begins with `kind`, until the connection is lost. Several may write
    /// at once.
    pub(super) async fn write_to(
        &self,
        connection: &Connection,
        kind: u8,
        priority: i32,
    ) -> Result<Infallible, WriteError> {
        loop {
            let message = self.next().await;
            let bytes = message.len();
            let mut stream = connection.open_uni().await?;
            let _ = stream.set_priority(priority);
            stream.write_all(&[kind]).await?;
            stream.write_chunk(message).await?;
            let _ = stream.finish();
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}
