//! What is due to one connection: bounded, pushed to from anywhere without waiting, emptied in one write by the
//! connection's own task.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::Notify;

use crate::wire::command::ByeCode;

/// One connection's queue. Its bound is in bytes; crossing it ends the connection (`SlowConsumer`).
#[derive(Debug)]
pub struct Outbox {
    /// The connection's number on this node; unique for the process.
    pub connection: u64,
    limit_bytes: usize,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Utf8Bytes>,
    bytes: usize,
    closing: Option<Closing>,
    cut: bool,
}

/// Why the connection is to end; the owner's task writes what is queued, then `bye`, and closes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closing {
    /// The close code.
    pub code: ByeCode,
    /// For people.
    pub reason: String,
    /// Whether the client is to come back.
    pub reconnect: bool,
    /// When.
    pub after_ms: u64,
}

/// What the connection's task finds.
#[derive(Debug, Default)]
pub struct Batch {
    /// To be written, in this order, in one write.
    pub frames: Vec<Utf8Bytes>,
    /// Then the connection ends.
    pub closing: Option<Closing>,
}

impl Outbox {
    /// An empty queue.
    pub fn new(connection: u64, limit_bytes: usize) -> Self {
        Self { connection, limit_bytes, state: Mutex::default(), wake: Notify::new() }
    }

    /// Queues a frame. False where the connection is ending (now or before): nothing more reaches it.
    pub fn push(&self, frame: Utf8Bytes) -> bool {
        let mut state = self.lock();
        if state.closing.is_some() {
            return false;
        }
        if state.bytes + frame.len() > self.limit_bytes {
            let (queued, limit) = (state.bytes, self.limit_bytes);
            state.frames.clear();
            state.cut = true;
            state.closing = Some(Closing {
                code: ByeCode::SlowConsumer,
                reason: format!(
                    "{queued} bytes were waiting for this connection, the limit is {limit}: read faster, or join fewer groups"
                ),
                reconnect: true,
                after_ms: 0,
            });
            drop(state);
            self.wake.notify_one();
            return false;
        }
        state.bytes += frame.len();
        state.frames.push_back(frame);
        let first = state.frames.len() == 1;
        drop(state);
        if first {
            self.wake.notify_one();
        }
        true
    }

    /// Ends the connection after what is queued. The first reason stands.
    pub fn close(&self, closing: Closing) {
        self.lock().closing.get_or_insert(closing);
        self.wake.notify_one();
    }

    /// Ends the connection and drops what is queued: nothing more reaches the client but the `bye`.
    pub fn cut(&self, closing: Closing) {
        let mut state = self.lock();
        state.frames.clear();
        state.bytes = 0;
        state.cut = true;
        state.closing.get_or_insert(closing);
        drop(state);
        self.wake.notify_one();
    }

    /// Ends the connection, drops what is queued and says one last thing before the `bye`.
    pub fn cut_with(&self, frame: Utf8Bytes, closing: Closing) {
        let mut state = self.lock();
        state.bytes = frame.len();
        state.frames.clear();
        state.frames.push_back(frame);
        state.cut = true;
        state.closing.get_or_insert(closing);
        drop(state);
        self.wake.notify_one();
    }

    /// Whether the connection is ending.
    pub fn is_closing(&self) -> bool {
        self.lock().closing.is_some()
    }

    /// Whether nothing more but the `bye` may reach the client, also of what was taken before.
    pub fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// Waits until the connection is ending. Only the owner's task waits; cancel-safe.
    pub async fn ending(&self) {
        while !self.is_closing() {
            self.wake.notified().await;
        }
    }

    /// How many bytes are queued.
    pub fn queued_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Waits until there is something to do. Only the owner's task waits; cancel-safe.
    pub async fn ready(&self) {
        loop {
            {
                let state = self.lock();
                if !state.frames.is_empty() || state.closing.is_some() {
                    return;
                }
            }
            self.wake.notified().await;
        }
    }

    /// Takes all that is queued.
    pub fn take(&self) -> Batch {
        let mut state = self.lock();
        state.bytes = 0;
        Batch { frames: std::mem::take(&mut state.frames).into(), closing: state.closing.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock, and the queue is whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
