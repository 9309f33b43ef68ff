//! What a node holds of a slot: the state as of the last entry known to be committed, and the log from there on.

use std::{collections::VecDeque, sync::Arc};

use super::Reconcile;
use crate::{
    entry::Entry,
    id::{Index, Term},
    slot::{Effect, SlotState},
};

/// What this node holds of the slot.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) lineage: u64,
    /// The term and episode whose primary's log this is a prefix of.
    pub(super) synced_term: Term,
    pub(super) sync: u64,
    pub(super) state: SlotState,
    /// The last entry applied to `state`; all up to it are committed.
    pub(super) applied: Index,
    /// Entries from `log_first` on; those after `applied` are not known to be committed.
    pub(super) log: VecDeque<Arc<Entry>>,
    pub(super) log_first: Index,
    /// What all of `log` takes, and what those take that are not known to be committed.
    pub(super) log_bytes: u64,
    pub(super) uncommitted_bytes: u64,
    /// The new primary's log from its base on, until it is all here (rule 5).
    pub(super) staged: Option<Staged>,
}

/// A part of the new primary's log.
#[derive(Clone, Debug)]
pub(super) struct Staged {
    term: Term,
    sync: u64,
    pub(super) entries: Vec<Arc<Entry>>,
}

impl Held {
    /// What a snapshot has, or a slot that starts empty: nothing follows it yet.
    pub(super) fn new(lineage: u64, term: Term, sync: u64, state: SlotState, applied: Index) -> Self {
        let (log, log_first) = (VecDeque::new(), applied + 1);
        let (log_bytes, uncommitted_bytes) = (0, 0);
        let synced_term = term;
        Self { lineage, synced_term, sync, state, applied, log, log_first, log_bytes, uncommitted_bytes, staged: None }
    }

    /// The last entry that it holds.
    pub(super) fn last(&self) -> Index {
        self.log_first + self.log.len() as u64 - 1
    }

    /// Applies up to `index` where held; what it came to goes to `effects`.
    pub(super) fn apply_to(&mut self, index: Index, mut effects: impl FnMut(Index, Effect)) {
        while self.applied < index.min(self.last()) {
            self.applied += 1;
            assert!(self.log_first <= self.applied, "an entry that is not applied is not released");
            let entry = &self.log[(self.applied - self.log_first) as usize];
            self.uncommitted_bytes -= entry.held_bytes();
            let effect = self.state.apply(self.applied, Entry::clone(entry));
            effects(self.applied, effect);
        }
    }

    /// Forgets entries up to `index`; only applied ones.
    pub(super) fn release(&mut self, index: Index) {
        while self.log_first <= index.min(self.applied)
            && let Some(entry) = self.log.pop_front()
        {
            self.log_first += 1;
            self.log_bytes -= entry.held_bytes();
        }
        assert!(self.log_first <= self.applied + 1, "only applied entries are released");
        assert!(self.applied <= self.last(), "what is applied is held");
    }

    /// Rule 5: what it holds uncommitted gives way to what the new primary holds, once that is all here. Whether it is.
    pub(super) fn reconcile(
        &mut self,
        term: Term,
        sync: u64,
        with: Reconcile,
        first: Index,
        entries: Vec<Arc<Entry>>,
    ) -> bool {
        // An in-sync member holds all that is committed. Up to `base` that is what the primary has as well; what this one
        // has applied beyond was committed too, and stands in the primary's log.
        if self.last() < with.base {
            return false;
        }
        let staged = self.staged.take().filter(|staged| staged.term == term && staged.sync == sync);
        let mut staged = staged.unwrap_or(Staged { term, sync, entries: Vec::new() });
        let have = with.base + staged.entries.len() as u64;
        if first <= have + 1 {
            staged.entries.extend(entries.into_iter().skip((have + 1 - first) as usize));
        }
        if with.base + (staged.entries.len() as u64) < with.until {
            self.staged = Some(staged);
            return false;
        }
        let keep = with.base.max(self.applied);
        assert!(self.synced_term < term, "it reconciles once with each primary");
        self.log.truncate((keep + 1).saturating_sub(self.log_first) as usize);
        (self.log_bytes, self.uncommitted_bytes) = self.recounted();
        self.extend(with.base + 1, staged.entries);
        assert!(with.until <= self.last(), "all that the new primary took over is here");
        assert!(self.applied <= self.last(), "what is applied stays");
        (self.synced_term, self.sync) = (term, sync);
        true
    }

    /// Takes the entries that it does not have yet; those it has are the same ones.
    pub(super) fn extend(&mut self, first: Index, entries: Vec<Arc<Entry>>) {
        assert!(first <= self.last() + 1, "entries follow each other: {first} after {}", self.last());
        let have = (self.last() + 1).saturating_sub(first) as usize;
        for entry in entries.into_iter().skip(have) {
            self.push(entry);
        }
    }

    /// The next entry.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        let bytes = entry.held_bytes();
        (self.log_bytes, self.uncommitted_bytes) = (self.log_bytes + bytes, self.uncommitted_bytes + bytes);
        self.log.push_back(entry);
    }

    /// What its log takes, and what of that is not known to be committed, counted anew.
    pub(super) fn recounted(&self) -> (u64, u64) {
        let applied = (self.applied + 1).saturating_sub(self.log_first) as usize;
        let bytes = |from: usize| self.log.iter().skip(from).map(|entry| entry.held_bytes()).sum();
        (bytes(0), bytes(applied))
    }
}
