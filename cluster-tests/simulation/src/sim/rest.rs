//! What must be so when the faults are over and time has passed, and what must be so all the time of who holds what.

use roost_logic::{
    id::{Member, SlotId},
    map::SlotAssignment,
    primary::SlotCore,
};

use super::{node::Process, world::World};

impl World {
    /// The core of a slot's current primary, if it serves.
    pub(super) fn serving_core(&self, slot: SlotId) -> Option<&SlotCore> {
        let assignment = self.store.map.as_ref()?.slot(slot)?;
        let node = self.running(&assignment.primary)?;
        let core = &self.nodes[node].process.as_ref()?.cores[usize::from(slot)];
        (core.replica().serving() == Some(assignment.term)).then_some(core)
    }

    /// The process that the map has as a slot's primary, if it runs.
    pub(super) fn process_of(&self, slot: SlotId) -> Option<&Process> {
        let assignment = self.store.map.as_ref()?.slot(slot)?;
        self.nodes[self.running(&assignment.primary)?].process.as_ref()
    }

    /// Rules 2 and 3, as they show: every living in-sync member of the confirmed map holds all that is committed.
    pub(super) fn check_copies(&mut self, slot: SlotId) {
        let Some(map) = self.store.map.clone() else { return };
        let Some(assignment) = map.slot(slot) else { return };
        let committed = self.ledger.committed((slot, assignment.lineage));
        for member in &assignment.in_sync {
            let Some(node) = self.running(member) else { continue };
            let Some(process) = &self.nodes[node].process else { continue };
            let replica = process.cores[usize::from(slot)].replica();
            let holds = replica.applied() + replica.uncommitted() as u64;
            // A slot that starts again has nothing yet where its new primary has not read so.
            let knows = replica.lineage() == Some(assignment.lineage);
            if (knows && holds < committed) || (!knows && committed > 0) {
                let what = format!(
                    "{member} is in-sync of slot {slot} and holds {holds} entries of lineage {:?}; {committed} are \
                     committed in {assignment:?}",
                    replica.lineage()
                );
                self.ledger.fail(what);
            }
        }
    }

    /// S3: an answer counts only nodes that hold what it acknowledges, or held it and have failed since.
    pub(super) fn check_holders(&mut self, node: usize, slot: SlotId, copies: u8) {
        let Some(process) = &self.nodes[node].process else { return };
        let (Some(known), Some(map)) = (process.map.as_ref().and_then(|map| map.slot(slot)), &self.store.map) else {
            return;
        };
        let primary = process.cores[usize::from(slot)].replica();
        let (applied, lineage) = (primary.applied(), primary.lineage());
        let counts = |member: &&Member| {
            let Some(there) = self.running(member).and_then(|node| self.nodes[node].process.as_ref()) else {
                return true;
            };
            let replica = there.cores[usize::from(slot)].replica();
            let holds = replica.applied() + replica.uncommitted() as u64;
            // Whoever was dropped has failed, though it lives.
            (replica.lineage() == lineage && holds >= applied)
                || map.slot(slot).is_none_or(|now| !now.in_sync.contains(member))
        };
        let holders = known.in_sync.iter().filter(counts).count();
        if holders < usize::from(copies) {
            let what = format!("S3: an answer of slot {slot} counts {copies} copies, there are {holders} in {known:?}");
            self.ledger.fail(what);
        }
    }

    /// The first thing that is not well yet.
    pub(super) fn unrest(&mut self) -> Option<String> {
        let Some(map) = self.store.map.clone() else {
            return Some("there is no map".to_owned());
        };
        for (slot, assignment) in map.slots.iter().enumerate() {
            if let Some(reason) = self.slot_unrest(slot as SlotId, assignment) {
                return Some(reason);
            }
        }
        if let Some(reason) = self.undelivered() {
            return Some(reason);
        }
        // Who knows an older map may refuse the last publish, for want of copies.
        if let Some(reason) = self.unknown_map() {
            return Some(reason);
        }
        for node in &self.nodes {
            let Some(process) = &node.process else {
                return Some(format!("{} does not run", node.id));
            };
            if let Some((outside, _)) = process.liveness.shown().outside.first_key_value() {
                return Some(format!("{} finds {outside} there and in no map", node.id));
            }
        }
        let unrest = self.sessions.iter().find_map(|client| self.session_unrest(client));
        unrest.or_else(|| self.ghost()).or_else(|| self.overfull())
    }

    /// Who does not know the newest map. A change that was long under way can come as late as this.
    pub(super) fn unknown_map(&self) -> Option<String> {
        let version = self.store.map.as_ref()?.version;
        self.nodes.iter().find_map(|node| {
            let known = node.process.as_ref()?.map.as_ref().map_or(0, |map| map.version);
            (known != version).then(|| format!("{} knows the map {known}, there is {version}", node.id))
        })
    }

    /// Who waits for an answer, or for a message.
    pub(super) fn undelivered(&self) -> Option<String> {
        if let Some(publisher) = self.publishers.iter().find(|publisher| publisher.waits()) {
            return Some(format!("a publish is not answered: {publisher:?}"));
        }
        for listener in &self.listeners {
            let (group, slot) = &self.groups[listener.group];
            let state = self.serving_core(*slot).and_then(|core| core.replica().state());
            let head = state.and_then(|state| state.group(group)).map(|group| group.log.position());
            if !listener.live || listener.stale || head != listener.position {
                return Some(format!("the head of {group} is {head:?}, and there is {listener:?}"));
            }
        }
        None
    }

    fn slot_unrest(&mut self, slot: SlotId, assignment: &SlotAssignment) -> Option<String> {
        let copies = usize::from(self.profile.copies).min(self.nodes.len());
        let Some(core) = self.serving_core(slot) else {
            return Some(format!("slot {slot} has no serving primary: {assignment:?}"));
        };
        if assignment.in_sync.len() != copies || assignment.learner.is_some() {
            return Some(format!("slot {slot} is not to have {copies} copies: {assignment:?}"));
        }
        if core.replica().uncommitted() > 0 {
            return Some(format!("slot {slot} has entries that are not committed"));
        }
        let life = (slot, assignment.lineage);
        for member in &assignment.in_sync {
            let node = self.running(member)?;
            let process = self.nodes[node].process.as_ref()?;
            let replica = process.cores[usize::from(slot)].replica();
            let state = replica.state()?;
            self.ledger.state(member, life, replica.applied(), state);
            self.ledger.agrees(state);
            if *member == assignment.primary {
                self.ledger.holds_acknowledged(member, life, state);
            }
        }
        None
    }
}
