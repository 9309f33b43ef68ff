//! A snapshot in pieces: what the primary has sent of one and what a learner has received of one.
//!
//! The primary freezes the slot's state at an index and cuts pieces from it as they are asked for. A few are under way at
//! once; the learner says how many it has without a hole. What is lost is sent again: the first piece that is missing after
//! [`RESEND_MS`], then after twice the time, or all that are under way when the link is reset. Entries follow the snapshot.

use std::collections::{BTreeMap, VecDeque};

use super::{Held, RESEND_MS, Replica, ReplicaLimits, ReplicationMessage};
use crate::{
    Now, encoded,
    id::{Index, Member, Term},
    map::SlotAssignment,
    slot::{Place, SlotSnapshot, SlotState},
};

/// The pauses between repeats of a piece double up to this many times.
const SLOWER: u32 = 4;

/// Which snapshot a piece is of. Later ones are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Origin {
    pub(super) term: Term,
    pub(super) sync: u64,
    pub(super) index: Index,
    pub(super) lineage: u64,
}

/// A piece: its number, from 0 on, whether none follows, and what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) number: u64,
    pub(super) is_last: bool,
    pub(super) part: SlotSnapshot,
}

impl Piece {
    pub(super) fn of(self, origin: Origin) -> ReplicationMessage {
        let (Self { number, is_last, part }, Origin { term, sync, index, lineage }) = (self, origin);
        ReplicationMessage::Piece { term, sync, lineage, index, number, is_last, part }
    }
}

/// On the primary: a snapshot on its way to a learner.
#[derive(Clone, Debug)]
pub(super) struct Sending {
    pub(super) index: Index,
    /// As of `index`; it shares with the slot's state what has not changed since.
    frozen: SlotState,
    /// The learner has this number of pieces.
    acked: u64,
    /// Where each piece begins that was sent and is not acknowledged.
    under_way: VecDeque<Place>,
    /// How many of these need not be sent again now.
    sent: usize,
    /// Where the piece after these begins; nothing where there is none.
    next: Option<Place>,
    /// When it was last sent something, or has said that it has more.
    heard_ms: u64,
    repeats: u32,
}

impl Sending {
    pub(super) fn new(index: Index, frozen: SlotState) -> Self {
        let (under_way, next) = (VecDeque::new(), Some(Place::default()));
        Self { index, frozen, acked: 0, under_way, sent: 0, next, heard_ms: 0, repeats: 0 }
    }

    pub(super) fn origin(&self, term: Term, sync: u64, lineage: u64) -> Origin {
        Origin { term, sync, index: self.index, lineage }
    }

    /// A piece that is due; nothing where as many are under way as may be.
    pub(super) fn due(&mut self, now: Now, limits: ReplicaLimits) -> Option<Piece> {
        let piece = if self.sent < self.under_way.len() {
            self.cut(self.sent, limits)
        } else {
            let place = self.next.take_if(|_| self.under_way.len() < limits.pieces_under_way)?;
            let (part, next) = self.frozen.piece(&place, limits.piece_bytes);
            self.under_way.push_back(place);
            self.next = next;
            Piece { number: self.acked + self.sent as u64, is_last: self.next.is_none(), part }
        };
        self.sent += 1;
        self.heard_ms = now.mono_ms;
        assert!(self.under_way.len() <= limits.pieces_under_way, "no more is under way than may be");
        Some(piece)
    }

    /// The first piece that the learner lacks, where nothing was heard of it for long.
    pub(super) fn overdue(&mut self, now: Now, limits: ReplicaLimits) -> Option<Piece> {
        let pause_ms = RESEND_MS << self.repeats.min(SLOWER);
        if self.sent == 0 || now.mono_ms < self.heard_ms + pause_ms {
            return None;
        }
        self.heard_ms = now.mono_ms;
        self.repeats += 1;
        Some(self.cut(0, limits))
    }

    /// The learner has this number of pieces of the snapshot. Whether that is news. The last piece counts as under way until
    /// the snapshot is acknowledged as a whole.
    pub(super) fn has(&mut self, now: Now, count: u64) -> bool {
        let at_most = self.acked + self.under_way.len() as u64 - u64::from(self.next.is_none());
        if count <= self.acked || count > at_most {
            return false;
        }
        let more = (count - self.acked) as usize;
        self.under_way.drain(..more);
        self.sent = self.sent.saturating_sub(more);
        (self.acked, self.heard_ms, self.repeats) = (count, now.mono_ms, 0);
        true
    }

    /// What is under way may be lost.
    pub(super) fn link_reset(&mut self) {
        (self.sent, self.repeats) = (0, 0);
    }

    /// For whoever explores all states: there any time-out may come at any moment.
    pub(super) fn level_times(&mut self) {
        (self.heard_ms, self.repeats) = (0, 0);
    }

    fn cut(&self, nth: usize, limits: ReplicaLimits) -> Piece {
        let (part, next) = self.frozen.piece(&self.under_way[nth], limits.piece_bytes);
        Piece { number: self.acked + nth as u64, is_last: next.is_none(), part }
    }
}

/// On a learner: a snapshot of which not all pieces are here.
#[derive(Clone, Debug)]
pub(super) struct Receiving {
    pub(super) origin: Origin,
    /// The pieces up to the first that is missing.
    state: SlotSnapshot,
    pieces: u64,
    /// Pieces that have overtaken others, and whether each is the last.
    ahead: BTreeMap<u64, (bool, SlotSnapshot)>,
    /// What all of these take, as frames have them.
    pub(super) bytes: usize,
}

/// What came of a piece.
pub(super) enum Received {
    /// This number of pieces are here without a hole.
    Pieces(u64),
    /// All of them.
    Whole(SlotSnapshot),
    /// One cannot follow the other: no primary has cut them from one state.
    Garbled,
}

impl Receiving {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, state: SlotSnapshot::default(), pieces: 0, ahead: BTreeMap::new(), bytes: 0 }
    }

    /// Takes a piece. What a primary would not have sent yet is left out, so that no more waits than may be under way.
    pub(super) fn take(&mut self, piece: Piece, limits: ReplicaLimits) -> Received {
        let Piece { number, is_last, part } = piece;
        let expected = self.pieces..self.pieces + limits.pieces_under_way as u64;
        if expected.contains(&number) && !self.ahead.contains_key(&number) {
            self.bytes += encoded::bytes(&part);
            self.ahead.insert(number, (is_last, part));
        }
        while let Some((is_last, part)) = self.ahead.remove(&self.pieces) {
            if !self.state.extend(part) {
                return Received::Garbled;
            }
            self.pieces += 1;
            if is_last {
                return Received::Whole(std::mem::take(&mut self.state));
            }
        }
        Received::Pieces(self.pieces)
    }

    pub(super) fn pieces(&self) -> u64 {
        self.pieces + self.ahead.len() as u64
    }
}

impl Replica {
    /// The answer to a piece. What this copy holds stays until a later snapshot is here as a whole.
    pub(super) fn on_piece(&mut self, origin: Origin, piece: Piece) -> Option<ReplicationMessage> {
        let Origin { term, sync, index, lineage } = origin;
        if self.held.as_ref().is_some_and(|held| (held.synced_term, held.sync, held.last()) >= (term, sync, index)) {
            let held = self.held.as_ref().filter(|held| held.sync == sync)?;
            return Some(ReplicationMessage::Ack { term, sync, index: held.last(), gap: false });
        }
        if !self.expects(origin) || self.receiving.as_ref().is_some_and(|receiving| receiving.origin > origin) {
            return None;
        }
        let begun = self.receiving.take().filter(|receiving| receiving.origin == origin);
        let mut receiving = begun.unwrap_or_else(|| Receiving::new(origin));
        match receiving.take(piece, self.limits) {
            Received::Pieces(count) => {
                self.receiving = Some(receiving);
                Some(ReplicationMessage::PieceAck { term, sync, index, count })
            }
            Received::Whole(state) if state.is_sound(index) => {
                self.held = Some(Held::new(lineage, term, sync, SlotState::restore(state), index));
                Some(ReplicationMessage::Ack { term, sync, index, gap: false })
            }
            Received::Whole(_) | Received::Garbled => None,
        }
    }

    pub(super) fn on_piece_ack(&mut self, now: Now, from: &Member, of: (Term, u64, Index), count: u64) {
        let Some(primary) = self.primary.as_mut() else { return };
        let Some(progress) = primary.members.get_mut(from) else { return };
        let Some(sending) = progress.sending.as_mut() else { return };
        if of == (primary.term, progress.sync, sending.index) && sending.has(now, count) {
            progress.waiting_ms = Some(now.mono_ms);
        }
    }

    /// Whether this may be a snapshot that its primary sends this node: of an episode that makes it a learner, by the map or,
    /// as far as is known, by a later one.
    fn expects(&self, Origin { term, sync, .. }: Origin) -> bool {
        let is_known = |known: &SlotAssignment| known.changed_at == sync && known.learner.as_ref() == Some(&self.me);
        let (known, known_term) = (self.assignment.as_ref(), self.known_term());
        known_term <= term && (sync > self.map_version || known.is_some_and(is_known))
    }

    /// A snapshot whose episode is over never becomes whole.
    pub(super) fn drop_incoming(&mut self) {
        if self.receiving.as_ref().is_some_and(|receiving| !self.expects(receiving.origin)) {
            self.receiving = None;
        }
    }
}
