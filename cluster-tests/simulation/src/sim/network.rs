//! Links between nodes as the product has them: one connection for each direction of a pair; what goes by the same lane
//! arrives in order or is lost together with the connection, and then both ends know.

use std::collections::{BTreeMap, VecDeque};

use roost_logic::{
    id::{Member, SlotId, Term},
    lease::LeaseMessage,
    map::MapRequest,
    memory::Level,
    replication::ReplicationMessage,
    request::{Push, SlotAnswer, SlotError, SlotRequest},
};

use super::{
    node::Input,
    world::{Event, SharedMap, World},
};

/// What nodes send each other.
#[derive(Clone, Debug)]
pub(super) enum Frame {
    Replication {
        slot: SlotId,
        message: ReplicationMessage,
    },
    Request {
        id: u64,
        slot: SlotId,
        term: Term,
        sent_ms: u64,
        request: SlotRequest,
    },
    Response {
        id: u64,
        voters: u64,
        result: Result<SlotAnswer, SlotError>,
    },
    Push {
        slot: SlotId,
        term: Term,
        voters: u64,
        push: Push,
    },
    FetchMap {
        newer_than: u64,
    },
    Map(SharedMap),
    MapRequest(MapRequest),
    Lease(LeaseMessage),
    /// How pressed for memory its sender is.
    Memory(Level),
}

impl Frame {
    /// The ordered lane that it goes by; answers go by ways of their own.
    fn lane(&self) -> Option<SlotId> {
        match self {
            // Pieces of snapshots go beside the lanes: they are overtaken, and they overtake.
            Self::Replication { message: ReplicationMessage::Piece { .. }, .. } => None,
            Self::Replication { slot, .. } | Self::Push { slot, .. } | Self::Request { slot, .. } => Some(*slot),
            _ => None,
        }
    }
}

/// One direction of a pair.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// The number of the present connection.
    connection: u64,
    pub(super) up: bool,
    /// Who has dialled it.
    dialled_by: Option<Member>,
    /// When it last began to carry anything.
    pub(super) good_ms: u64,
    /// Nothing gets through.
    pub(super) blocked: bool,
    /// What waits at the block; it gets through when that ends before the connection does.
    held: VecDeque<(Member, Member, Frame)>,
    lanes: BTreeMap<SlotId, u64>,
    /// When the last of what the world treats harshly arrives.
    latest: BTreeMap<SlotId, u64>,
}

impl Link {
    /// Whether what this member sends gets through.
    pub(super) fn carries(&self, sender: &Member) -> bool {
        self.up && !self.blocked && self.dialled_by.as_ref() == Some(sender)
    }
}

impl World {
    /// Sends a frame, without any promise. Whether there was a way at least.
    pub(super) fn send(&mut self, from: usize, receiver: &Member, frame: Frame) -> bool {
        let Some(process) = &self.nodes[from].process else { return false };
        let (sender, receiver) = (process.member.clone(), receiver.clone());
        let to = self.node_number(&receiver);
        let harsh = self.profile.harsh.filter(|_| from != to && matches!(frame, Frame::Replication { .. }));
        let closed = self.nodes[from].closed || self.nodes[to].closed;
        if (!self.links[from][to].up || closed) && from != to {
            self.ledger.count("frames without a link");
            return false;
        }
        let mut delay = if from == to { self.random.below(2) } else { self.random.waiting(self.profile.delay_ms) };
        if from != to && self.random.permille(self.profile.slow) {
            self.ledger.count("messages slow");
            delay += self.random.below(300);
        }
        if let Some(harsh) = harsh {
            if self.random.permille(harsh.lose) {
                self.ledger.count("replication messages lost");
                return true;
            }
            if self.random.permille(harsh.repeat) {
                self.ledger.count("replication messages repeated");
                let later = delay + self.random.below(harsh.repeat_ms);
                let (sender, receiver, frame) = (sender.clone(), receiver.clone(), frame.clone());
                self.after(later, Event::Arrive { from, to, sender, receiver, connection: None, frame });
            }
            if harsh.reorder_ms > 0 {
                let delay = delay + self.random.below(harsh.reorder_ms);
                let lane = frame.lane().unwrap_or_default();
                let latest = self.links[from][to].latest.entry(lane).or_default();
                self.ledger.count_if(self.now + delay < *latest, "replication messages reordered");
                *latest = (self.now + delay).max(*latest);
                self.after(delay, Event::Arrive { from, to, sender, receiver, connection: None, frame });
                return true;
            }
        }
        let mut at = self.now + delay;
        if let Some(lane) = frame.lane() {
            let last = self.links[from][to].lanes.entry(lane).or_default();
            at = at.max(*last);
            *last = at;
        }
        let connection = Some(self.links[from][to].connection);
        self.after(at - self.now, Event::Arrive { from, to, sender, receiver, connection, frame });
        true
    }

    pub(super) fn arrive(
        &mut self,
        (from, to): (usize, usize),
        sender: Member,
        receiver: Member,
        connection: Option<u64>,
        frame: Frame,
    ) {
        let link = &mut self.links[from][to];
        if connection.is_some_and(|connection| connection != link.connection) {
            self.ledger.count("frames lost with a link");
            return;
        }
        if self.nodes[to].closed && from != to {
            self.ledger.count("frames without a link");
            return;
        }
        if link.blocked && from != to {
            self.ledger.count("frames held up by a partition");
            if connection.is_some() {
                link.held.push_back((sender, receiver, frame));
            }
            return;
        }
        let generation = receiver.generation;
        self.give(to, generation, Input::Frame { from: sender, frame });
    }

    /// The connection ends, with all that is under way on it; it is dialled again.
    pub(super) fn reset_link(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        self.ledger.count("link resets");
        let link = &mut self.links[from][to];
        link.connection += 1;
        link.up = false;
        link.held.clear();
        link.lanes.clear();
        let connection = link.connection;
        if let (Some(peer), Some(process)) = (link.dialled_by.take(), &self.nodes[to].process) {
            let generation = process.member.generation;
            self.give(to, generation, Input::PeerLost(peer));
        }
        let after = 1 + self.random.waiting(100);
        self.after(after, Event::Dial { from, to, connection });
    }

    /// The sender's end dials: both ends learn that what was sent earlier and has not arrived never will.
    pub(super) fn dial(&mut self, from: usize, to: usize, connection: u64) {
        if self.links[from][to].connection != connection || self.links[from][to].up {
            return;
        }
        let can = |node: &super::world::Node| node.process.is_some() && !node.paused && !node.closed;
        let blocked = self.links[from][to].blocked || self.links[to][from].blocked;
        if blocked || !can(&self.nodes[from]) || !can(&self.nodes[to]) {
            let again = 50 + self.random.below(200);
            self.after(again, Event::Dial { from, to, connection });
            return;
        }
        self.links[from][to].up = true;
        let (sender, receiver) = (self.process(from).member.clone(), self.process(to).member.clone());
        self.links[from][to].dialled_by = Some(sender.clone());
        self.links[from][to].good_ms = self.now;
        self.give(to, receiver.generation, Input::PeerConnected(sender.clone()));
        self.give(from, sender.generation, Input::LinkReset(receiver));
    }

    /// To be called when something begins to keep a link from working.
    pub(super) fn watch_link(&mut self, from: usize, to: usize) {
        let connection = self.links[from][to].connection;
        self.after(self.profile.keep_alive_ms, Event::KeepAlive { from, to, connection });
    }

    pub(super) fn keep_alive(&mut self, from: usize, to: usize, connection: u64) {
        let link = &self.links[from][to];
        let dead = link.blocked
            || self.links[to][from].blocked
            || [from, to].iter().any(|end| self.nodes[*end].paused || self.nodes[*end].process.is_none());
        if link.connection == connection && link.up && dead {
            self.reset_link(from, to);
        }
    }

    /// The links of a node that has stopped or started: all anew.
    pub(super) fn reset_links_of(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.reset_link(node, other);
            self.reset_link(other, node);
        }
    }

    /// Blocks end.
    pub(super) fn heal(&mut self, links: &[(usize, usize)]) {
        for &(from, to) in links {
            let link = &mut self.links[from][to];
            if std::mem::take(&mut link.blocked) {
                self.disturbs(from);
                self.disturbs(to);
            }
            let link = &mut self.links[from][to];
            link.good_ms = self.now;
            for (sender, receiver, frame) in std::mem::take(&mut link.held) {
                let generation = receiver.generation;
                self.give(to, generation, Input::Frame { from: sender, frame });
            }
        }
    }
}
