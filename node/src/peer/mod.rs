//! The QUIC mesh between nodes: one UDP port, mutual TLS, one connection for each direction of a pair of nodes.
//!
//! Each node dials every peer for what it sends; what it receives comes over the connection that the peer dialled. So no
//! two connections compete, and each end knows at once when something it sent or was to be sent may be lost: its own link
//! went down, or a new connection from the peer came in. `peer` knows nothing of slots: it hands frames to an [`Inbox`].

mod accept;
mod hello;
mod link;
pub mod mesh;
mod outbox;
mod reset;
mod seed;
mod socket;
#[cfg(test)]
mod tests;
pub mod tls;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;

use crate::{id::Member, wire::peer::PeerFrame};

/// What is done with that which arrives. Implemented by `node.rs`.
#[async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// A frame from this peer. Frames of one lane arrive in order, one after the other. Waiting here holds that lane back.
    async fn receive(&self, from: &Member, frame: PeerFrame);
    /// A new connection from this peer is there: whatever it sent over an earlier one and has not arrived never will.
    /// No frame of an earlier connection is handed over after this.
    async fn peer_connected(&self, from: &Member);
    /// The connection from this peer is gone.
    async fn peer_lost(&self, from: &Member);
    /// A gossip message (chitchat's bytes) from this peer.
    async fn gossip(&self, from: &Member, message: bytes::Bytes);
}

/// Why a frame was not sent. What was sent may still be lost: then `Inbox::peer_connected` is called at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// There is no connection to that node (yet, or any more).
    #[error("no connection to the peer")]
    Down,
    /// The peer does not keep up: the link was reset, and the other end will notice.
    #[error("the peer does not keep up")]
    Full,
    /// Too many large frames (snapshots) wait for that peer already; the link goes on: try again later.
    #[error("too many snapshots wait for the peer")]
    Busy,
    /// The frame is longer than any that the other end would take; the link goes on.
    #[error("the frame is too long")]
    TooLong,
}

/// Lets a log line through once in a while.
#[derive(Debug)]
pub(crate) struct Seldom {
    every_ms: u64,
    next_ms: AtomicU64,
}

impl Seldom {
    pub(crate) const fn every(interval: Duration) -> Self {
        Self { every_ms: interval.as_millis() as u64, next_ms: AtomicU64::new(0) }
    }

    /// Whether it is time again.
    pub(crate) fn now(&self) -> bool {
        let now_ms = crate::clock::mono_ms();
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        now_ms >= next_ms
            && self
                .next_ms
                .compare_exchange(next_ms, now_ms + self.every_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
