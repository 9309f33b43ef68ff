//! The store as nodes see it: late, sometimes down, sometimes silent about what it has done. Its rows are the truth.

use std::collections::BTreeMap;

use roost_logic::{
    entry::SessionRecord,
    id::{Generation, Index, NodeId, SessionId, SlotId, Term},
    map::{ClusterMap, MapChange},
};

use super::{
    node::Input,
    world::{Event, SharedMap, World},
};

/// The rows.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) map: Option<SharedMap>,
    pub(super) generations: BTreeMap<NodeId, Generation>,
    pub(super) sessions: BTreeMap<SessionId, SessionRow>,
    pub(super) down: bool,
}

/// A session's row: the write with the highest version has it, and an end for ever.
#[derive(Debug)]
pub(super) struct SessionRow {
    pub(super) version: (Term, Index),
    /// See [`SessionWrite::order`].
    order: (u64, Index),
    wall_ms: u64,
    /// Nothing where the session ended.
    pub(super) record: Option<SessionRecord>,
}

/// A plain write of a session.
#[derive(Clone, Debug)]
pub(super) struct SessionWrite {
    pub(super) record: SessionRecord,
    pub(super) ended: bool,
    /// As the core gives it.
    pub(super) version: (Term, Index),
    /// In truth: the slot's life, and how far that had come.
    pub(super) order: (u64, Index),
    /// What the writer's clock said.
    pub(super) wall_ms: u64,
}

/// What nodes ask of it.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    ReadMap { number: u64 },
    ChangeMap { number: u64, expected: u64, next: SharedMap },
    Save { slot: SlotId, write: SessionWrite },
    Load { slot: SlotId, session: SessionId },
}

impl World {
    pub(super) fn ask_store(&mut self, node: usize, operation: Operation) {
        let of = match &operation {
            Operation::Save { write, .. } => Some(write.record.id),
            Operation::Load { session, .. } => Some(*session),
            Operation::ReadMap { .. } | Operation::ChangeMap { .. } => None,
        };
        if let Some(session) = of.filter(|session| session.is_ephemeral()) {
            self.ledger.fail(format!("sessions: the store is asked for {session}, which is ephemeral: {operation:?}"));
        }
        let generation = self.process(node).member.generation;
        let mut after = self.random.waiting(8);
        if self.random.permille(self.profile.store_slow) {
            self.ledger.count("slow requests to the store");
            after += self.random.below(3_000);
        }
        self.after(after, Event::Store { node, generation, operation });
    }

    /// Carried out whether the asker still lives or not.
    pub(super) fn store_operation(&mut self, node: usize, generation: Generation, operation: Operation) {
        let down = self.store.down;
        let input = match operation {
            Operation::ReadMap { number } => {
                Input::MapRead(number, if down { Err(()) } else { Ok(self.store.map.clone()) })
            }
            Operation::ChangeMap { number, expected, next } => {
                Input::MapChanged(number, self.change_map(expected, next))
            }
            Operation::Save { slot, write } => {
                let (session, index, order) = (write.record.id, write.version.1, write.order);
                let fails = self.random.permille(self.profile.store_fails);
                // A failed write may have been done all the same.
                let done = !down && (!fails || self.random.permille(500));
                let ok = done && !fails;
                self.ledger.count_if(done && !ok, "session writes failed, done");
                self.ledger.count_if(!done, "session writes failed, not done");
                if done {
                    self.save(write);
                }
                if ok {
                    self.check_saved(session, order);
                }
                Input::Saved { slot, session, index, ok }
            }
            Operation::Load { slot, session } => {
                let fails = down || self.random.permille(self.profile.store_fails);
                let row = self.store.sessions.get(&session).and_then(|row| row.record.clone());
                self.ledger.count_if(fails, "session reads failed");
                self.ledger.count_if(!fails && row.is_some(), "sessions loaded");
                Input::Loaded { slot, session, result: if fails { Err("down".to_owned()) } else { Ok(row) } }
            }
        };
        let after = self.random.waiting(8);
        self.after(after, Event::Input { node, generation, input });
    }

    fn change_map(&mut self, expected: u64, next: SharedMap) -> MapChange {
        let unknown = self.random.permille(self.profile.unknown);
        if self.store.down || (unknown && self.random.permille(500)) {
            self.ledger.count("map changes of unknown outcome, not done");
            return MapChange::Unknown;
        }
        let version = self.store.map.as_ref().map_or(0, |map| map.version);
        if version == expected {
            self.map_changes(self.store.map.clone().as_deref(), &next);
            self.store.map = Some(next);
            for slot in 0..self.profile.slots {
                self.check_copies(slot);
            }
        }
        match (version == expected, unknown) {
            (_, true) => {
                self.ledger.count_if(version == expected, "map changes of unknown outcome, done");
                self.ledger.count_if(version != expected, "map changes of unknown outcome, not done");
                MapChange::Unknown
            }
            (true, false) => MapChange::Applied,
            (false, false) => {
                self.ledger.count("map conflicts");
                MapChange::Conflict(self.store.map.as_deref().cloned())
            }
        }
    }

    fn save(&mut self, write: SessionWrite) {
        let SessionWrite { record, ended, version, order, wall_ms } = write;
        let session = record.id;
        if record.groups.iter().any(|group| *group != self.groups[0].0) {
            self.ledger.fail(format!("sessions: what no backend has put {session} into is written: {record:?}"));
        }
        let new = SessionRow { version, order, wall_ms, record: (!ended).then_some(record) };
        let Some(row) = self.store.sessions.get_mut(&session) else {
            self.store.sessions.insert(session, new);
            return;
        };
        let (later, by_clock) = (row.version < version, row.wall_ms < wall_ms);
        self.ledger.count_if(
            later != by_clock && row.version != version,
            "session writes whose clocks contradict their order",
        );
        self.ledger.count_if(!ended && version < row.version, "session writes that came late and lost");
        if row.record.is_some() && (ended || later) {
            *row = new;
        }
    }

    /// A write that is said to be done has its place, or a later one.
    fn check_saved(&mut self, session: SessionId, order: (u64, Index)) {
        let row = self.store.sessions.get(&session);
        if row.is_none_or(|row| row.order < order && row.record.is_some()) {
            let what = format!("sessions: {session} was written as of {order:?}, and an earlier write stands: {row:?}");
            self.ledger.fail(what);
        }
    }

    /// The rules for every change of the map (`node/ALGORITHM.md`), whoever proposed it.
    fn map_changes(&mut self, before: Option<&ClusterMap>, next: &ClusterMap) {
        self.ledger.count("map changes");
        let Some(before) = before else {
            return self.ledger.map_changed(next);
        };
        if next.version != before.version + 1 || next.slots.len() != before.slots.len() {
            self.ledger.fail(format!("map {next:?} cannot follow {before:?}"));
        }
        for (slot, (old, new)) in before.slots.iter().zip(&next.slots).enumerate() {
            if old == new {
                continue;
            }
            let mut wrong = Vec::new();
            let mut rule = |kept: bool, what: &'static str| {
                if !kept {
                    wrong.push(what);
                }
            };
            rule(new.changed_at == next.version, "changed_at is not the version");
            rule(new.in_sync.contains(&new.primary), "the primary is not in-sync");
            rule((old.primary == new.primary) == (old.term == new.term), "the term does not go with the primary");
            rule(new.term == old.term || new.term == old.term + 1, "the term jumps");
            if new.lineage == old.lineage {
                rule(old.in_sync.contains(&new.primary), "who was not in-sync takes over");
                let from = |member| old.in_sync.contains(member) || old.learner.as_ref() == Some(member);
                rule(new.in_sync.iter().all(from), "the in-sync set grew by others than the learner");
                let nodes = new.in_sync.iter().chain(&new.learner).map(|member| &member.node);
                let mut names: Vec<_> = nodes.collect();
                names.sort();
                names.dedup();
                let holders = new.in_sync.len() + usize::from(new.learner.is_some());
                rule(names.len() == holders, "two copies on one node");
            } else {
                rule(
                    old.in_sync.iter().all(|member| self.running(member).is_none()),
                    "a slot with a living copy starts again",
                );
                rule(new.lineage == old.lineage + 1 && new.term > old.term, "a slot starts again in the old term");
            }
            if !wrong.is_empty() {
                self.ledger.fail(format!("slot {slot}: {} in {old:?} -> {new:?}", wrong.join(", ")));
            }
            self.count_change(slot as SlotId, old, new);
        }
        self.ledger.map_changed(next);
    }

    fn count_change(
        &mut self,
        slot: SlotId,
        old: &roost_logic::map::SlotAssignment,
        new: &roost_logic::map::SlotAssignment,
    ) {
        let life = (slot, old.lineage);
        // The limit of S3: a member that was dropped, being slow or wrongly suspected, has failed, though it lives.
        let lives = self.ledger.holders(life).iter().any(|member| self.running(member).is_some());
        let draining = new.in_sync.iter().any(|member| self.nodes[self.node_number(member)].draining);
        let copies = self.profile.copies;
        let ledger = &mut self.ledger;
        ledger.count_if(lives && new.lineage > old.lineage, "slots started again while a dropped copy lived");
        if new.in_sync.len() > old.in_sync.len() {
            ledger.replicated_again(life);
        }
        if new.lineage > old.lineage {
            ledger.begins((slot, new.lineage), new.term);
        }
        let learns = new.learner.is_some() && old.learner.is_none() && new.in_sync.len() >= usize::from(copies);
        ledger.count_if(learns && draining, "copies moved from a draining node");
        ledger.count_if(learns && !draining, "copies moved for balance");
        ledger.count_if(new.lineage > old.lineage, "slots started again");
        ledger.count_if(new.term > old.term && new.in_sync.contains(&old.primary), "hand-overs");
        ledger.count_if(new.term > old.term && !new.in_sync.contains(&old.primary), "take-overs");
        ledger.count_if(new.in_sync.len() > old.in_sync.len(), "promotions");
        ledger.count_if(new.in_sync.len() < old.in_sync.len(), "members dropped");
    }
}
