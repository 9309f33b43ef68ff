//! One node's copy of a slot. `node/ALGORITHM.md` tells the algorithm: the words, the six rules that the comments here name
//! by number, the race that each prevents, and the life of a publish, a take-over and a move.
//!
//! What is asked of the steward under one assignment, which `changed_at` names, is never carried out under another.
//!
//! Every episode in which the primary brings a member up to date has a number, `sync` (the `changed_at` that began it),
//! which appends carry and acknowledgements echo: an acknowledgement from before a member was dropped and came back
//! counts for nothing.

mod held;
mod look;
mod message;
mod pieces;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use self::{
    held::Held,
    pieces::{Origin, Piece, Receiving, Sending},
};
pub use self::{
    look::Incoming,
    message::{Reconcile, ReplicationMessage},
};
use super::{
    Now,
    entry::Entry,
    map::{MapRequest, SlotAssignment},
    slot::{Effect, SlotState},
};
use crate::id::{Index, Member, SlotId, Term};

/// Without progress for this time, what was sent is sent again.
const RESEND_MS: u64 = 300;
/// All appends that are under way behind a lost one tell of it: it is gone back once in this time.
const BACK_MS: u64 = 50;
/// More snapshots than this to one learner in one episode may not be followed by more entries each.
const RESTARTS: u32 = 10;
/// Between repeats of a request to the steward.
const ASK_AGAIN_MS: u64 = 250;

/// Bounds that change nothing but how soon the rarer ways are taken; the simulation makes them small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaLimits {
    /// At most this number of entries in one append.
    pub append_entries: usize,
    /// And about this number of bytes of them.
    pub append_bytes: usize,
    /// A learner this close to the end of the log becomes required.
    pub nearly_there: u64,
    /// A learner that falls further behind than this while it is sent a snapshot gets a new one; twice as far each time.
    pub retained_entries: usize,
    /// About this number of bytes of a snapshot in a piece.
    pub piece_bytes: usize,
    /// At most this number of pieces are sent to a learner before it acknowledges the first of them.
    pub pieces_under_way: usize,
}

impl Default for ReplicaLimits {
    fn default() -> Self {
        Self {
            append_entries: 512,
            append_bytes: 1 << 20,
            nearly_there: 64,
            retained_entries: 100_000,
            piece_bytes: 256 << 10,
            pieces_under_way: 4,
        }
    }
}

/// What a copy wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicaOutput {
    /// To another member.
    Send { to: Member, message: ReplicationMessage },
    /// On the primary: an entry is committed and applied, in the order of the log.
    Committed {
        index: Index,
        /// What it came to.
        effect: Effect,
    },
    /// To the steward.
    Ask(MapRequest),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Replica {
    slot: SlotId,
    me: Member,
    replica_timeout_ms: u64,
    limits: ReplicaLimits,
    /// The highest term whose primary this node has followed or been.
    accepted_term: Term,
    /// Of the map that it knows, and what that says of the slot.
    map_version: u64,
    assignment: Option<SlotAssignment>,
    held: Option<Held>,
    receiving: Option<Receiving>,
    primary: Option<Primary>,
}

/// What only a primary has.
#[derive(Clone, Debug)]
struct Primary {
    term: Term,
    /// What it had not committed when it took over is committed before it serves.
    barrier: Index,
    members: BTreeMap<Member, Progress>,
}

#[derive(Clone, Debug)]
struct Progress {
    sync: u64,
    mode: Mode,
    /// It holds everything up to here.
    acked: Index,
    /// The log is kept from after here for it.
    floor: Index,
    sent: Index,
    told_commit: Index,
    /// Commits wait for it.
    required: bool,
    /// The end of the log when it became required.
    required_from: Index,
    /// Since when it owes an acknowledgement, counted anew with each one that comes.
    waiting_ms: Option<u64>,
    sent_ms: u64,
    back_until_ms: u64,
    asked_ms: u64,
    /// The snapshot that it is sent, and how often a later one has taken its place.
    sending: Option<Box<Sending>>,
    restarts: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// In-sync under an earlier primary; its log is to be made ours first.
    Reconcile,
    /// Holds nothing; it is sent a snapshot.
    Snapshot,
    /// Follows.
    Stream,
}

impl Progress {
    fn new(now: Now, sync: u64, mode: Mode, base: Index, required: bool) -> Self {
        Self {
            sync,
            mode,
            acked: 0,
            floor: base,
            sent: base,
            told_commit: 0,
            required,
            required_from: base,
            waiting_ms: Some(now.mono_ms),
            sent_ms: 0,
            back_until_ms: 0,
            asked_ms: 0,
            sending: None,
            restarts: 0,
        }
    }
}

impl Replica {
    /// A node that holds nothing of the slot.
    pub fn new(slot: SlotId, me: Member, replica_timeout_ms: u64) -> Self {
        let limits = ReplicaLimits::default();
        Self {
            slot,
            me,
            replica_timeout_ms,
            limits,
            accepted_term: 0,
            map_version: 0,
            assignment: None,
            held: None,
            receiving: None,
            primary: None,
        }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn with_limits(mut self, limits: ReplicaLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The state as of the last entry known to be committed, if this node has a copy.
    pub fn state(&self) -> Option<&SlotState> {
        self.held.as_ref().map(|held| &held.state)
    }

    /// Of the copy that this node has.
    pub fn lineage(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.lineage)
    }

    /// The term under which this node is primary, has read its own win, and has committed what it took over.
    pub fn serving(&self) -> Option<Term> {
        let (primary, held) = (self.primary.as_ref()?, self.held.as_ref()?);
        (held.applied >= primary.barrier).then_some(primary.term)
    }

    /// The term under which this node is primary, serving or about to.
    pub fn primary_term(&self) -> Option<Term> {
        self.primary.as_ref().map(|primary| primary.term)
    }

    /// The highest term whose primary this node has followed or been.
    pub fn term(&self) -> Term {
        self.accepted_term
    }

    /// Whether this node is to become a member of the slot's in-sync set.
    pub fn is_learner(&self) -> bool {
        self.assignment.as_ref().is_some_and(|assignment| assignment.learner.as_ref() == Some(&self.me))
    }

    /// The highest term that this node knows of; lower ones are over.
    fn known_term(&self) -> Term {
        self.accepted_term.max(self.assignment.as_ref().map_or(0, |assignment| assignment.term))
    }

    /// How many nodes could take over with every committed entry (the primary included): the `copies` of an answer.
    pub fn copies(&self) -> u8 {
        self.assignment.as_ref().map_or(0, |assignment| assignment.in_sync.len().min(255) as u8)
    }

    /// Entries ordered and not committed.
    pub fn uncommitted(&self) -> usize {
        self.held.as_ref().map_or(0, |held| (held.last() - held.applied) as usize)
    }

    /// Those that hold the slot, or are about to.
    pub fn holders(&self) -> impl Iterator<Item = &Member> {
        self.assignment.iter().flat_map(|assignment| assignment.in_sync.iter().chain(&assignment.learner))
    }

    /// The last committed entry that this node knows of.
    pub fn applied(&self) -> Index {
        self.held.as_ref().map_or(0, |held| held.applied)
    }

    /// Orders an entry; its index. Only a serving primary may be asked; others do nothing.
    pub fn order(&mut self, entry: Entry) -> Option<Index> {
        self.serving()?;
        let held = self.held.as_mut()?;
        let before = held.last();
        held.push(Arc::new(entry));
        assert_eq!(held.last(), before + 1, "indexes follow each other");
        Some(held.last())
    }

    /// A confirmed map of this version says this of the slot. Maps come with growing versions.
    pub fn on_map(&mut self, now: Now, version: u64, assignment: &SlotAssignment, out: &mut Vec<ReplicaOutput>) {
        self.map_version = version;
        let before = self.assignment.replace(assignment.clone());
        self.drop_incoming();
        if before.as_ref() == Some(assignment) {
            return;
        }
        if self.primary.as_ref().is_some_and(|primary| primary.term < assignment.term) {
            self.primary = None;
        }
        let holds_other_lineage = self.held.as_ref().is_some_and(|held| held.lineage != assignment.lineage);
        if holds_other_lineage || !assignment.concerns(&self.me) {
            // A snapshot may have come ahead of the map that makes this node a learner.
            if self.held.as_ref().is_some_and(|held| held.sync <= version) {
                self.held = None;
            }
        }
        if assignment.primary != self.me {
            self.accepted_term = self.accepted_term.max(assignment.term);
            return;
        }
        if self.primary.is_some() {
            self.follow_assignment(now, assignment);
        } else if assignment.term > self.accepted_term {
            self.become_primary(now, before.as_ref(), assignment);
        }
        self.advance(now, out);
    }

    fn become_primary(&mut self, now: Now, before: Option<&SlotAssignment>, assignment: &SlotAssignment) {
        let starts_empty = before.is_none_or(|before| before.lineage < assignment.lineage);
        if self.held.is_none() && starts_empty && assignment.in_sync == [self.me.clone()] {
            self.held =
                Some(Held::new(assignment.lineage, assignment.term, assignment.changed_at, SlotState::default(), 0));
        }
        // A member of the in-sync set holds a copy; one that does not must not pretend to (rule 4).
        let Some(held) = self.held.as_mut() else {
            return;
        };
        assert!(self.accepted_term < assignment.term, "terms never go back");
        (self.accepted_term, self.receiving) = (assignment.term, None);
        held.synced_term = assignment.term;
        held.sync = assignment.changed_at;
        let mut members = BTreeMap::new();
        for member in assignment.in_sync.iter().filter(|member| **member != self.me) {
            members
                .insert(member.clone(), Progress::new(now, assignment.changed_at, Mode::Reconcile, held.applied, true));
        }
        self.primary = Some(Primary { term: assignment.term, barrier: held.last(), members });
        self.follow_assignment(now, assignment);
    }

    /// Under an unchanged term: members that left are no longer required now that the map confirms it (rule 2), a learner
    /// begins anew under each assignment.
    fn follow_assignment(&mut self, now: Now, assignment: &SlotAssignment) {
        let (Some(primary), Some(held)) = (self.primary.as_mut(), self.held.as_ref()) else {
            return;
        };
        primary.members.retain(|member, _| assignment.is_in_sync(member));
        if let Some(learner) = &assignment.learner {
            primary.members.insert(
                learner.clone(),
                Progress::new(now, assignment.changed_at, Mode::Snapshot, held.applied, false),
            );
        }
    }

    /// A message from another member.
    pub fn on_message(&mut self, now: Now, from: &Member, message: ReplicationMessage, out: &mut Vec<ReplicaOutput>) {
        if let ReplicationMessage::Ack { term, sync, index, gap } = message {
            self.on_ack(now, from, (term, sync, index, gap));
            self.advance(now, out);
            return;
        }
        if let ReplicationMessage::PieceAck { term, sync, index, count } = message {
            return self.on_piece_ack(now, from, (term, sync, index), count);
        }
        let term = message.term();
        if term < self.known_term() || self.primary.as_ref().is_some_and(|primary| primary.term >= term) {
            return;
        }
        assert!(self.accepted_term <= term, "terms never go back");
        self.accepted_term = term;
        self.primary = None;
        self.drop_incoming();
        let answer = match message {
            ReplicationMessage::Append { sync, reconcile, first, commit, entries, .. } => self
                .on_append(term, sync, reconcile, first, commit, entries)
                .map(|(sync, index, gap)| ReplicationMessage::Ack { term, sync, index, gap }),
            ReplicationMessage::Piece { sync, lineage, index, number, is_last, part, .. } => {
                self.on_piece(Origin { term, sync, index, lineage }, Piece { number, is_last, part })
            }
            ReplicationMessage::Ack { .. } | ReplicationMessage::PieceAck { .. } => None,
        };
        out.extend(answer.map(|message| ReplicaOutput::Send { to: from.clone(), message }));
    }

    /// The acknowledgement to an append: episode, index, gap.
    fn on_append(
        &mut self,
        term: Term,
        sync: u64,
        reconcile: Option<Reconcile>,
        first: Index,
        commit: Index,
        entries: Vec<Arc<Entry>>,
    ) -> Option<(u64, Index, bool)> {
        let held = self.held.as_mut()?;
        if held.synced_term < term {
            if !held.reconcile(term, sync, reconcile?, first, entries) {
                return None;
            }
            held.apply_to(commit, |_, _| {});
            held.release(held.applied);
            return Some((sync, held.last(), false));
        }
        if held.sync != sync || held.synced_term != term {
            return None;
        }
        if first > held.last() + 1 {
            return Some((sync, held.last(), true));
        }
        // What only tells the commit brings nothing that could be acknowledged.
        let brings = !entries.is_empty() || reconcile.is_some();
        held.extend(first, entries);
        held.apply_to(commit, |_, _| {});
        held.release(held.applied);
        brings.then(|| (sync, held.last(), false))
    }

    fn on_ack(&mut self, now: Now, from: &Member, (term, sync, index, gap): (Term, u64, Index, bool)) {
        let (Some(primary), Some(held)) = (self.primary.as_mut(), self.held.as_ref()) else {
            return;
        };
        let Some(progress) = primary.members.get_mut(from) else {
            return;
        };
        if primary.term != term || progress.sync != sync || index > held.last() {
            return;
        }
        if progress.mode != Mode::Stream {
            // What follows an older snapshot than the last one sent may be gone already: then only the newer will do.
            if index + 1 < held.log_first {
                return;
            }
            (progress.mode, progress.sending) = (Mode::Stream, None);
            progress.sent = index;
        }
        if index > progress.acked || index == held.last() {
            progress.waiting_ms = (index < held.last()).then_some(now.mono_ms);
        }
        progress.acked = progress.acked.max(index);
        progress.floor = progress.acked;
        let goes_back = gap && progress.back_until_ms <= now.mono_ms;
        if goes_back {
            progress.back_until_ms = now.mono_ms + BACK_MS;
        }
        progress.sent = if goes_back { progress.acked } else { progress.sent.max(progress.acked) };
        assert!(progress.acked <= progress.sent, "nothing is acknowledged that was not sent");
        assert!(progress.sent <= held.last(), "nothing is sent that is not held");
        if !progress.required && progress.acked + self.limits.nearly_there >= held.last() {
            // Rule 3: required from here on, before anyone is asked to make it in-sync.
            progress.required = true;
            progress.required_from = held.last();
        }
    }

    /// Commits what all required members hold, and asks for the promotion of a learner that is ready.
    fn advance(&mut self, now: Now, out: &mut Vec<ReplicaOutput>) {
        let (Some(primary), Some(held)) = (self.primary.as_mut(), self.held.as_mut()) else {
            return;
        };
        let required = primary.members.values().filter(|progress| progress.required);
        let everywhere = required.map(|progress| if progress.mode == Mode::Stream { progress.acked } else { 0 });
        let commit = everywhere.min().unwrap_or_else(|| held.last());
        assert!(commit <= held.last(), "nothing is committed that is not held: {commit} of {}", held.last());
        held.apply_to(commit, |index, effect| out.push(ReplicaOutput::Committed { index, effect }));
        let kept_for = primary.members.values().map(|progress| progress.floor).min().unwrap_or(held.applied);
        held.release(kept_for);
        let Some(assignment) = &self.assignment else {
            return;
        };
        let Some(learner) = &assignment.learner else {
            return;
        };
        let Some(progress) = primary.members.get_mut(learner) else {
            return;
        };
        let ready = progress.required && progress.mode == Mode::Stream && progress.acked >= progress.required_from;
        if ready && (progress.asked_ms == 0 || progress.asked_ms + ASK_AGAIN_MS <= now.mono_ms) {
            assert!(progress.required, "a member is required before it is in-sync (rule 3)");
            assert!(progress.acked >= progress.required_from, "it has acknowledged a sync (rule 3)");
            progress.asked_ms = now.mono_ms.max(1);
            let (slot, changed_at) = (self.slot, assignment.changed_at);
            out.push(ReplicaOutput::Ask(MapRequest::Promote { slot, changed_at, learner: learner.clone() }));
        }
    }

    /// Sends what is due, commits what can be. To be called after every batch of inputs.
    pub fn flush(&mut self, now: Now, out: &mut Vec<ReplicaOutput>) {
        self.advance(now, out);
        let (Some(primary), Some(held)) = (self.primary.as_mut(), self.held.as_ref()) else {
            return;
        };
        for (member, progress) in &mut primary.members {
            let term = primary.term;
            let mut send = |message| out.push(ReplicaOutput::Send { to: member.clone(), message });
            match progress.mode {
                Mode::Snapshot => {
                    let freeze = || Box::new(Sending::new(held.applied, held.state.clone()));
                    let sending = progress.sending.get_or_insert_with(freeze);
                    (progress.floor, progress.sent) = (sending.index, sending.index);
                    let origin = sending.origin(term, progress.sync, held.lineage);
                    while let Some(piece) = sending.due(now, self.limits) {
                        send(piece.of(origin));
                    }
                }
                Mode::Reconcile if progress.sent_ms != 0 => {}
                Mode::Reconcile => {
                    (progress.sent, progress.sent_ms) = (progress.floor, now.mono_ms.max(1));
                    let reconcile = Reconcile { base: progress.floor, until: primary.barrier };
                    send(append(held, term, progress, Some(reconcile), self.limits));
                    while progress.sent < primary.barrier {
                        send(append(held, term, progress, Some(reconcile), self.limits));
                    }
                }
                Mode::Stream => {
                    while progress.sent < held.last() {
                        progress.waiting_ms.get_or_insert(now.mono_ms);
                        progress.sent_ms = now.mono_ms;
                        send(append(held, term, progress, None, self.limits));
                    }
                }
            }
        }
    }

    /// Time has passed (to be called every 50–100 ms): repeats what was lost, tells commits, reports the slow.
    pub fn on_tick(&mut self, now: Now, out: &mut Vec<ReplicaOutput>) {
        let (Some(primary), Some(held)) = (self.primary.as_mut(), self.held.as_ref()) else {
            return;
        };
        let Some(assignment) = &self.assignment else {
            return;
        };
        for (member, progress) in &mut primary.members {
            let silent_ms = now.mono_ms.saturating_sub(progress.sent_ms.max(progress.waiting_ms.unwrap_or(0)));
            match progress.mode {
                // What would follow it is too much: a later one takes its place. Twice as much may follow that one, so that one
                // comes to its end where entries come faster than pieces.
                Mode::Snapshot if held.log.len() > self.limits.retained_entries << progress.restarts.min(RESTARTS) => {
                    (progress.sending, progress.restarts) = (None, progress.restarts + 1);
                }
                Mode::Snapshot => {
                    let overdue = progress.sending.as_mut().and_then(|sending| {
                        let origin = sending.origin(primary.term, progress.sync, held.lineage);
                        Some(sending.overdue(now, self.limits)?.of(origin))
                    });
                    out.extend(overdue.map(|message| ReplicaOutput::Send { to: member.clone(), message }));
                }
                Mode::Reconcile if silent_ms >= RESEND_MS => progress.sent_ms = 0,
                Mode::Stream if progress.acked < held.last() && silent_ms >= RESEND_MS => {
                    progress.sent = progress.acked;
                }
                Mode::Stream if progress.told_commit < held.applied && progress.sent == held.last() => {
                    let message = append(held, primary.term, progress, None, self.limits);
                    out.push(ReplicaOutput::Send { to: member.clone(), message });
                }
                Mode::Reconcile | Mode::Stream => {}
            }
            // Nothing waits for a learner that is not required: it has more time.
            let patience_ms = self.replica_timeout_ms * if progress.required { 1 } else { 20 };
            let slow = progress.waiting_ms.is_some_and(|since| since + patience_ms <= now.mono_ms);
            if slow && progress.asked_ms + ASK_AGAIN_MS <= now.mono_ms {
                progress.asked_ms = now.mono_ms;
                let (slot, changed_at) = (self.slot, assignment.changed_at);
                out.push(ReplicaOutput::Ask(MapRequest::Drop { slot, changed_at, member: member.clone() }));
            }
        }
        self.flush(now, out);
    }

    /// What was sent to this member and is not acknowledged may be lost: send it again at once.
    pub fn link_reset(&mut self, member: &Member) {
        let Some(progress) = self.primary.as_mut().and_then(|primary| primary.members.get_mut(member)) else {
            return;
        };
        match progress.mode {
            Mode::Snapshot => progress.sending.iter_mut().for_each(|sending| sending.link_reset()),
            Mode::Reconcile => progress.sent_ms = 0,
            Mode::Stream => progress.sent = progress.acked,
        }
    }
}

/// The next append for a member: what follows `sent`, as much as goes into one.
fn append(
    held: &Held,
    term: Term,
    progress: &mut Progress,
    reconcile: Option<Reconcile>,
    limits: ReplicaLimits,
) -> ReplicationMessage {
    let first = progress.sent + 1;
    assert!(held.log_first <= first, "what a member needs is not released: {first} before {}", held.log_first);
    assert!(first <= held.last() + 1, "nothing is sent that is not held");
    let mut bytes = 0;
    let skip = (first - held.log_first) as usize;
    let fits = |entry: &&Arc<Entry>| {
        let before = bytes;
        bytes += entry.held_bytes() as usize;
        before < limits.append_bytes
    };
    let entries: Vec<_> = held.log.iter().skip(skip).take(limits.append_entries).take_while(fits).cloned().collect();
    progress.sent += entries.len() as u64;
    assert!(!entries.is_empty() || progress.sent == held.last(), "an append brings a member on");
    progress.told_commit = held.applied;
    ReplicationMessage::Append { term, sync: progress.sync, reconcile, first, commit: held.applied, entries }
}
