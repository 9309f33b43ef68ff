//! What nodes say to each other, and how it becomes bytes (bincode 2, fixed-width integers).
//!
//! The only file that names bincode, so that it can be replaced. The wire's version is in the ALPN (`peer::tls`), and a
//! frame of a kind that this version does not know is an error of that frame alone.

use serde::{Deserialize, Serialize};

use crate::{
    id::{Member, SlotId, Term},
    logic::{
        map::{MapRequest, SharedMap},
        replication::ReplicationMessage,
        request::{Push, SlotAnswer, SlotError, SlotRequest},
    },
};

/// One message between nodes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum PeerFrame {
    /// Between the members of a slot.
    Replication {
        /// The slot.
        slot: SlotId,
        /// The message; it carries its term.
        message: ReplicationMessage,
    },
    /// From a gateway to a slot's primary.
    Request {
        /// Unique for the asking process.
        id: u64,
        /// The slot.
        slot: SlotId,
        /// The term under which the asker believes the receiver to be primary.
        term: Term,
        /// What is asked.
        request: SlotRequest,
    },
    /// The answer.
    Response {
        /// Of the request.
        id: u64,
        /// The answer.
        result: Result<SlotAnswer, SlotError>,
    },
    /// From a slot's primary to a gateway.
    Push {
        /// The slot.
        slot: SlotId,
        /// The primary's term.
        term: Term,
        /// What happened.
        push: Push,
    },
    /// Asks for the cluster map if the receiver's is newer than this version.
    FetchMap {
        /// What the asker has.
        newer_than: u64,
    },
    /// A confirmed cluster map.
    Map(SharedMap),
    /// To the steward.
    MapRequests(Vec<MapRequest>),
    /// Asks one node, not a slot.
    NodeRequest {
        /// Unique for the asking process.
        id: u64,
        /// What is asked.
        request: NodeRequest,
    },
    /// The answer; nothing where it could not be carried out.
    NodeResponse {
        /// Of the request.
        id: u64,
        /// The answer.
        answer: NodeAnswer,
    },
    /// On its way from `origin` through the receiver back to `origin`: proves that the node can be heard.
    Probe {
        /// Who sent it first.
        origin: Member,
        /// The origin's number for it.
        nonce: u64,
    },
}

/// Asked of a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum NodeRequest {
    /// The groups of all slots that the node is primary of, by name. → `Groups`
    ListGroups {
        /// After this name.
        after: String,
        /// At most so many.
        limit: u32,
    },
    /// Begin to drain. → `Done`
    Drain,
    /// Count this node's present start as lost for good (operator's word). Asked of the steward. → `Done`
    Forget {
        /// The node's name.
        node: String,
    },
}

/// The answer to a [`NodeRequest`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum NodeAnswer {
    /// Sorted by name.
    Groups {
        /// What there is.
        groups: Vec<crate::logic::request::GroupInfo>,
        /// There are more after the last.
        more: bool,
    },
    /// Done.
    Done,
    /// Refused, with the reason.
    Refused(String),
}
