//! The way from primaries to this node's clients: one bounded queue for each shard of the hub, and one for news of sessions.
//! They are made before the slots and the hub, so that slots push into them and know nothing of who delivers.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    id::{GroupName, Member, SessionId, SlotId, Term},
    logic::request::{EPHEMERAL_PART, GroupPush, Push, SessionPush},
    metrics::{EphemeralDrop, EphemeralMetrics},
};

/// What may wait for one shard; past it primaries and peers' lanes wait.
const SHARD_QUEUE: usize = 2_048;
/// What may wait of sessions' news; past it primaries and peers' lanes wait.
const SESSION_QUEUE: usize = 2_048;

/// What comes to a shard, in the order in which its sender sent it.
#[derive(Debug)]
pub enum Arrival {
    /// What has come about in a group.
    Push {
        /// The group's slot.
        slot: SlotId,
        /// The primary's term.
        term: Term,
        group: GroupName,
        push: GroupPush,
    },
    /// There is a new connection from this node; what it sent before may be lost.
    PeerConnected(Member),
    /// The connection from this node is gone.
    PeerLost(Member),
}

/// News of a session that is or was attached here.
#[derive(Debug)]
pub struct SessionNews {
    pub slot: SlotId,
    pub session: SessionId,
    /// What has become of it.
    pub push: SessionPush,
}

/// The ends that primaries and peers push into. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Deliveries {
    shards: Arc<[mpsc::Sender<Arrival>]>,
    sessions: mpsc::Sender<SessionNews>,
    ephemeral: EphemeralMetrics,
}

/// The ends that the hub takes from.
#[derive(Debug)]
pub struct Arrivals {
    /// One for each shard.
    pub shards: Vec<mpsc::Receiver<Arrival>>,
    /// For the attachments.
    pub sessions: mpsc::Receiver<SessionNews>,
}

/// The queues for a hub of `shards` shards.
pub fn queues(shards: usize, ephemeral: EphemeralMetrics) -> (Deliveries, Arrivals) {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..shards.max(1)).map(|_| mpsc::channel(SHARD_QUEUE)).unzip();
    let (sessions, news) = mpsc::channel(SESSION_QUEUE);
    (Deliveries { shards: senders.into(), sessions, ephemeral }, Arrivals { shards: receivers, sessions: news })
}

impl Deliveries {
    /// Something that a slot's primary has pushed. Waits while the queue is full; an ephemeral message does not wait.
    pub async fn deliver(&self, slot: SlotId, term: Term, push: Push) {
        // Sending fails only while the node stops.
        match push {
            Push::Group(group, push) => {
                let shard = &self.shards[usize::from(slot) % self.shards.len()];
                let used = shard.max_capacity() - shard.capacity();
                if push.ephemeral() > 0 && used > shard.max_capacity() / EPHEMERAL_PART {
                    return self.ephemeral.dropped(EphemeralDrop::Hub, push.ephemeral());
                }
                let _ = shard.send(Arrival::Push { slot, term, group, push }).await;
            }
            Push::Session(session, push) => {
                let _ = self.sessions.send(SessionNews { slot, session, push }).await;
            }
        }
    }

    /// There is a new connection from this node; what it sent before may be lost.
    pub async fn peer_connected(&self, from: &Member) {
        for shard in self.shards.iter() {
            let _ = shard.send(Arrival::PeerConnected(from.clone())).await;
        }
    }

    /// The connection from this node is gone.
    pub async fn peer_lost(&self, from: &Member) {
        for shard in self.shards.iter() {
            let _ = shard.send(Arrival::PeerLost(from.clone())).await;
        }
    }
}
