//! What clients join and leave by themselves, as the product's client does it: one thing after the other for each group.

use roost_logic::{
    attachments,
    id::{AttachmentNumber, ClientKey, GroupName, SessionId},
    request::{ReadSession, RecordJoin, RecordLeave, SlotAnswer, SlotError},
    session::Session,
};

use super::{asks::Purpose, node::Input, sessions::Live, world::World};

/// Between attempts at what has to be done in the end.
const AGAIN_MS: u64 = 500;

/// What is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MemberStep {
    Join,
    Leave,
    Reconcile,
}

impl World {
    pub(super) fn member(&mut self, node: usize, connection: u64, group: GroupName, joins: bool) {
        let Some(((session, client), attachment)) = self.attached_here(node, connection) else { return };
        let there = (connection, group.clone());
        if self.joining.contains_key(&there) || (joins && self.is_in(node, &there)) {
            return;
        }
        self.joining.insert(there, false);
        let slot = session.slot(self.profile.slots);
        if joins {
            let joins = attachments::Input::Joins { connection, group: group.clone(), needs_grant: false };
            self.attachments(node, joins);
            let purpose = Purpose::Member { connection, group: group.clone(), step: MemberStep::Join };
            self.ask(node, purpose, slot, (session, RecordJoin { client, group, needs_grant: false }));
        } else {
            let purpose = Purpose::Member { connection, group: group.clone(), step: MemberStep::Leave };
            self.ask(node, purpose, slot, (session, RecordLeave { client, attachment, group }));
        }
    }

    /// The session of a connection was changed: the groups in which they differ are looked at.
    pub(super) fn reconcile_all(&mut self, node: usize, connection: u64) {
        let joined = self.process(node).attachments.joined(connection);
        let groups: Vec<_> = joined.into_iter().flat_map(|joined| joined.keys().cloned()).collect();
        for group in groups {
            if !self.views.get(&connection).is_some_and(|view| view.is_in(&group)) {
                self.reconcile(node, connection, group);
            }
        }
    }

    pub(super) fn reconcile(&mut self, node: usize, connection: u64, group: GroupName) {
        let Some(((session, _), _)) = self.attached_here(node, connection) else { return };
        if let Some(again) = self.joining.get_mut(&(connection, group.clone())) {
            *again = true;
            return;
        }
        self.joining.insert((connection, group.clone()), false);
        let purpose = Purpose::Member { connection, group, step: MemberStep::Reconcile };
        self.ask(node, purpose, session.slot(self.profile.slots), (session, ReadSession));
    }

    pub(super) fn member_answered(
        &mut self,
        node: usize,
        (connection, group): (u64, GroupName),
        step: MemberStep,
        result: Result<SlotAnswer, SlotError>,
    ) {
        let client = self.client_of(connection).key();
        let mut again = self.joining.remove(&(connection, group.clone())).unwrap_or(false);
        self.ledger.count_if(
            step != MemberStep::Reconcile && result == Err(SlotError::Busy),
            "joins and leaves of clients whose slots had lost sight of them",
        );
        let is_out = match (step, result) {
            (MemberStep::Join, Ok(_)) => false,
            (MemberStep::Join, Err(_)) | (MemberStep::Leave, Ok(_)) => true,
            (MemberStep::Reconcile, Ok(SlotAnswer::Session(view))) => !view.of_client(client).is_in(&group),
            // A leave of unknown outcome may be done.
            (MemberStep::Reconcile | MemberStep::Leave, _) => {
                again = true;
                false
            }
        };
        if is_out {
            self.attachments(node, attachments::Input::Leaves { connection, group: group.clone() });
        }
        if again {
            self.input_after(AGAIN_MS, node, Input::Reconcile { connection, group });
        }
    }

    /// What is not well with what a session's clients have joined, when all should be.
    pub(super) fn joins_unrest(&self, state: &Session, live: &[Live]) -> Option<String> {
        let outlives = state.clients.values().find(|client| !client.is_present() && !client.joined.is_empty());
        if let Some(client) = outlives {
            return Some(format!("sessions: what a client has joined outlives it: {client:?}"));
        }
        live.iter().find_map(|Live { connection, client, .. }| {
            let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
            let joined = processes.filter_map(|process| process.attachments.joined(*connection)).flatten();
            let lost = joined.map(|(group, _)| group).find(|group| !state.groups_of(*client, group).1)?;
            Some(format!("sessions: the client of connection {connection} has joined {lost}, its slot says {state:?}"))
        })
    }

    fn attached_here(&self, node: usize, connection: u64) -> Option<((SessionId, ClientKey), AttachmentNumber)> {
        let mut connections = self.nodes[node].process.as_ref()?.attachments.connections();
        connections.find_map(|(there, whose, number)| Some((whose, number?)).filter(|_| there == connection))
    }

    fn is_in(&self, node: usize, (connection, group): &(u64, GroupName)) -> bool {
        let joined = self.nodes[node].process.as_ref().and_then(|process| process.attachments.joined(*connection));
        joined.is_some_and(|joined| joined.contains_key(group))
    }
}
