//! The QUIC mesh between nodes: one UDP port, mutual TLS, one connection for each direction of a pair of nodes.
//!
//! Each node dials every peer for what it sends; what it receives comes over the connection that the peer dialled. So no
//! two connections compete, and each end knows at once when something it sent or was to be sent may be lost: its own link
//! went down, or a new connection from the peer came in. `peer` knows nothing of slots: it hands frames to an [`Inbox`].
//!
//! The files, each of which uses earlier ones only: `reset`, `tls`, `gate` (the socket), `belongs` and `greeting` (how a
//! connection begins), `queues`, `dial`; to peers `link` and `links`, to those of whom only the address is known `addresses`; from peers
//! `gossip_inbox`, `reading` and `accept`; and `mesh`, which is all of it.

mod accept;
mod addresses;
pub mod belongs;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
mod dial;
mod gate;
pub mod gossip_inbox;
mod greeting;
mod link;
mod links;
pub mod mesh;
mod queues;
mod reading;
mod reset;
#[cfg(test)]
mod tests;
pub mod tls;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{id::Member, wire::peer::PeerFrame};

/// What is done with that which arrives. Implemented by `node/dispatch.rs`, which is there before anything arrives.
#[async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// A frame from this peer. Frames of one lane arrive in order, one after the other. Waiting here holds that lane back.
    async fn receive(&self, from: &Member, frame: PeerFrame);
    /// A new connection from this peer is there: whatever it sent over an earlier one and has not arrived never will.
    /// No frame of an earlier connection is handed over after this.
    async fn peer_connected(&self, from: &Member);
    /// The connection from this peer is gone.
    async fn peer_lost(&self, from: &Member);
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
    /// The frame is longer than any that the other end would take: it is logged and counted, and the link goes on.
    #[error("the frame is too long")]
    TooLong,
}

/// A link to a peer, as a node sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct LinkView {
    /// This node can send to the peer.
    pub sends: bool,
    /// This node hears the peer.
    pub hears: bool,
    /// Round trip, in microseconds; 0 where not known.
    pub rtt_us: u64,
}
