//! Tells where an invariant of a slot's core was broken.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use crate::{
    id::SlotId,
    logic::{primary::SlotCore, replication::Replica},
};

/// Has the core do something. Where a broken invariant ends that, the log says in which slot; the panic goes on, and ends the
/// node ([`crate::tasks::Tasks::spawn`]): a state that cannot be must not be replicated.
pub(super) fn watched(slot: SlotId, core: &mut SlotCore, work: impl FnOnce(&mut SlotCore)) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(core))) {
        tracing::error!("{}", broken(slot, core.replica(), panic.as_ref()));
        resume_unwind(panic);
    }
}

fn broken(slot: SlotId, replica: &Replica, panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let (term, entry, uncommitted) = (replica.term(), replica.applied(), replica.uncommitted());
    let what = said.unwrap_or("a panic that says nothing");
    format!("slot {slot}, term {term}, entry {entry} ({uncommitted} after it): {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{Member, NodeId},
        logic::{
            primary::SlotSettings,
            session::{Room, WhenFull},
        },
    };

    #[test]
    fn a_broken_invariant_is_told_with_its_place_and_goes_on() {
        let me = Member { node: NodeId::parse("n1").unwrap(), generation: 1 };
        let settings = SlotSettings {
            replica_timeout_ms: 1,
            resume_grace_ms: 1,
            memory_ttl_ms: 1,
            unclaimed_ms: 1,
            group_idle_ms: 1,
            group_idle_tight_ms: 1,
            queue: 1,
            groups_per_session: 1,
            room: Room { clients_max: 16, when_full: WhenFull::Displace },
        };
        let mut core = SlotCore::new(7, me, settings, 1);
        let panic = catch_unwind(AssertUnwindSafe(|| watched(7, &mut core, |_| panic!("offsets follow each other"))));
        let panic = panic.unwrap_err();
        let told = broken(7, core.replica(), panic.as_ref());
        assert_eq!(told, "slot 7, term 0, entry 0 (0 after it): offsets follow each other");
    }
}
