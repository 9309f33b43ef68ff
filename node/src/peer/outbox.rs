//! What waits to be written to one connection. Bounded: when a peer does not keep up the link is reset, nothing else
//! waits for it.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
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

    /// Waits for the next message. It counts until [`Parcels::written`].
    pub(super) async fn next(&self) -> Bytes {
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

    /// A message taken has gone.
    pub(super) fn written(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
