//! Sessions: the shell of a gateway's [`attachments::Attachments`], and the clients that open and close connections.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use roost_logic::{
    attachments,
    entry::{EndReason, Grant, SessionChange, SessionRecord},
    id::{AttachmentNumber, ClientId, ClientKey, GroupName, Member, Seat, SessionId, SlotId, Term},
    request::{
        Ask, Attach, Attached, ChangeSession, ConfirmDisplaced, CreateSession, Detach, EndSession, Leave, ReadSession,
        Renew, SessionRequest, SlotAnswer, SlotError, SlotRequest, Withdraw,
    },
    session::{Client, Session, Stage},
};
use uuid::Uuid;

use super::{
    asks::Purpose,
    clients::SessionClient,
    node::{self, Input},
    world::{Event, World},
};

/// A connection that is not over.
#[derive(Debug)]
pub(super) struct Live {
    gateway: Member,
    pub(super) connection: u64,
    pub(super) client: ClientKey,
    number: Option<AttachmentNumber>,
}

/// A cut connection's socket is gone after at most this time.
const CLOSE_MS: u64 = 50;
/// Of so many connections a backend disconnects one, after so long.
const DISCONNECTED: u64 = 19;
const DISCONNECT_MS: u64 = 700;

impl World {
    pub(super) fn connect(&mut self, node: usize, session: SessionId, connection: u64) {
        if self.gone.contains_key(&connection) {
            return;
        }
        self.opened_ms.insert(connection, self.now);
        let (slot, client) = (session.slot(self.profile.slots), self.client_of(connection));
        self.attachments(node, attachments::Input::Open { connection, session, client, slot });
    }

    /// Whose connection it is.
    pub(super) fn client_of(&self, connection: u64) -> ClientId {
        self.clients.get(&connection).cloned().unwrap_or_else(|| ClientId::made(0))
    }

    /// The client's socket closes.
    pub(super) fn disconnect(&mut self, node: usize, connection: u64) {
        self.gone.insert(connection, self.now);
        self.shut_mouth(connection);
        self.attachments(node, attachments::Input::Gone { connection });
    }

    pub(super) fn attached(&mut self, node: usize, connection: u64, result: Result<Attached, SlotError>) {
        let result = result.map(|Attached { view, attachment }| (attachment, Arc::new(view)));
        self.attachments(node, attachments::Input::Answered { connection, result });
    }

    pub(super) fn attachments(&mut self, node: usize, input: attachments::Input) {
        let now = self.now;
        let mut out = Vec::new();
        self.process(node).attachments.handle(now, input, &mut out);
        for output in out {
            self.perform_attachments(node, output);
        }
    }

    fn perform_attachments(&mut self, node: usize, output: attachments::Output) {
        use attachments::{Goodbye, Input, Output};
        match output {
            Output::Attach { connection, session, slot } => {
                let token = self.shown.get(&connection).copied().unwrap_or(0);
                let client = self.client_of(connection);
                let request = (session, Attach { client, connection, waited_ms: 0, token });
                self.ask(node, Purpose::Attach { connection }, slot, request);
            }
            Output::GiveUp { connection } => self.give_up(node, connection),
            Output::Attached { connection, number, view } => {
                let session = view.record.id;
                if connection % DISCONNECTED == 5 {
                    self.input_after(DISCONNECT_MS, node, node::Input::Attachments(Input::Disconnect { connection }));
                }
                self.check_opened(connection, session);
                self.views.insert(connection, view);
                self.open_mouth(node, (connection, number), session);
                if self.random.permille(700) {
                    let (after, group) = (self.random.waiting(300), self.random.index(self.groups.len()));
                    let group = self.groups[group].0.clone();
                    self.input_after(after, node, node::Input::Member { connection, group, joins: true });
                }
            }
            Output::Changed { connection, view } => {
                self.ledger.count("connections told of a change");
                self.views.insert(connection, view);
                self.move_mouth(node, connection);
                self.show_mouth(node, connection, false);
                self.reconcile_all(node, connection);
            }
            Output::Restored { connection } => {
                self.ledger.count("clients shown anew");
                self.show_mouth(node, connection, true);
            }
            Output::Confirmed { connection, episode } => self.confirm_mouth(node, connection, episode),
            Output::Cut { connection, why } => {
                self.shut_mouth(connection);
                if let attachments::Cut::Ended(reason) = why {
                    let what = "clients cut off from sessions that have lapsed";
                    self.ledger.count_if(reason == EndReason::Lapsed, what);
                    self.is_over(connection);
                }
                self.ledger.count_if(matches!(why, attachments::Cut::Displaced(_)), "attachments displaced");
                self.ledger.count_if(why == attachments::Cut::Disconnected, "clients disconnected by a backend");
                let after = self.random.below(CLOSE_MS);
                self.input_after(after, node, node::Input::Disconnect(connection));
            }
            Output::Unsubscribe { connection } => {
                self.unsubscribe_mouth(node, connection);
                let after = self.random.below(3);
                self.input_after(after, node, node::Input::Attachments(Input::Unsubscribed { connection }));
            }
            Output::Say { number, slot, goodbye } => {
                let request = match goodbye {
                    Goodbye::Detach((session, client), attachment) => {
                        (session, Detach { client, attachment }).into_request()
                    }
                    Goodbye::Confirm((session, client), attachment) => {
                        (session, ConfirmDisplaced { client, attachment }).into_request()
                    }
                    Goodbye::Withdraw((session, client), connection) => {
                        self.ledger.count("attaches withdrawn");
                        (session, Withdraw { client, connection }).into_request()
                    }
                };
                self.ask_slot(node, Purpose::Goodbye { number }, slot, request);
            }
            Output::Renew { number, slot, attachments } => {
                let says = attachments.iter().any(|renewal| renewal.joined.as_ref().is_some_and(|all| !all.is_empty()));
                self.ledger.count_if(says, "renewals that say what clients have joined");
                self.ask(node, Purpose::Renew { number }, slot, Renew(attachments));
            }
            Output::Refused { connection, error } => {
                self.ledger.count_if(error == SlotError::OldToken, "attaches refused for an old token");
                if error.session_over().is_some() {
                    self.is_over(connection);
                }
            }
        }
    }

    /// The client of this connection is told that its session is over. Where nothing but its slot remembers it, it is for good.
    fn is_over(&mut self, connection: u64) {
        let now = self.now;
        let is_it = |last: Option<(usize, u64)>| last.is_some_and(|(_, last)| last == connection);
        let has_it = |there: &&mut SessionClient| there.clients.iter().any(|(_, last)| is_it(*last));
        if let Some(client) = self.sessions.iter_mut().find(has_it).filter(|client| client.id.is_ephemeral()) {
            client.ended_ms.get_or_insert(now);
            self.ledger.count("ephemeral sessions that were over");
        }
    }

    fn check_opened(&mut self, connection: u64, session: SessionId) {
        self.ledger.count("attachments");
        let opened_ms = self.opened_ms.get(&connection).copied().unwrap_or(0);
        let over = |client: &&SessionClient| {
            client.id == session && client.ended_ms.is_some_and(|ended_ms| ended_ms < opened_ms)
        };
        if let Some(client) = self.sessions.iter().find(over) {
            let what = format!("a session that has ended attaches: {client:?}");
            self.ledger.fail(what);
        }
        let shown = self.shown.get(&connection).copied().unwrap_or(0);
        let old =
            |client: &&SessionClient| client.id == session && shown < client.token.0 && client.token.1 < opened_ms;
        if let Some(client) = self.sessions.iter().find(old) {
            let what = format!("rights: a connection attaches with token {shown} of {client:?}");
            self.ledger.fail(what);
        }
    }

    /// The later connection of a client wins: an attach is not sent for one that is gone.
    pub(super) fn check_asker(&mut self, request: &SlotRequest) {
        if let SlotRequest::Session(session, SessionRequest::Attach(Attach { connection, .. })) = request
            && let Some(gone_ms) = self.gone.get(connection)
        {
            let what = format!("S7: {session} is asked for connection {connection}, which is gone since {gone_ms} ms");
            self.ledger.fail(what);
        }
    }

    /// A slot wants a client's presences taken out of groups of other slots.
    pub(super) fn depart(
        &mut self,
        node: usize,
        slot: SlotId,
        (session, client): (SessionId, ClientKey),
        groups: Vec<(GroupName, AttachmentNumber)>,
    ) {
        for (group, attachment) in groups {
            let of_group = group.slot(self.profile.slots);
            let seat = Seat { session, client, attachment };
            let request = (group.clone(), Leave { seat });
            self.ask(node, Purpose::Depart { slot, group, seat }, of_group, request);
        }
    }

    /// A client does something with its session.
    pub(super) fn session_client(&mut self, session: usize) {
        if self.resting && self.sessions[session].created {
            return;
        }
        let wait = 100 + self.random.waiting(700);
        self.after(wait, Event::Session(session));
        let Some(node) = self.some_node() else { return };
        let id = self.sessions[session].id;
        if id.is_ephemeral() && self.sessions[session].ended_ms.is_some() && self.random.permille(200) {
            self.past_sessions.push(id);
            let names = self.sessions[session].clients.iter().map(|(name, _)| name.clone()).collect();
            self.sessions[session] = SessionClient::new(id, names);
        }
        let slot = id.slot(self.profile.slots);
        if !self.sessions[session].created {
            if self.sessions[session].creating_until_ms > self.now {
                return;
            }
            // With a new id each time: a creation of unknown outcome may be carried out late.
            let id = new_id(&mut self.random);
            let is_ephemeral = self.profile.ephemeral > 0 && self.random.permille(self.profile.ephemeral);
            self.sessions[session].id = if is_ephemeral { SessionId::ephemeral(id.0) } else { id };
            self.sessions[session].creating_until_ms = self.now + 10_000;
            let slot = self.sessions[session].id.slot(self.profile.slots);
            let record = self.record(session);
            let purpose = Purpose::Create { session, id: self.sessions[session].id };
            return self.input_after(
                1,
                node,
                Input::Client(purpose, slot, (record.id, CreateSession { record }).into_request()),
            );
        }
        match self.random.below(23) {
            0 => {
                let change = SessionChange { leave: vec![self.groups[0].0.clone()], ..SessionChange::default() };
                let request = (id, ChangeSession { change });
                self.input_after(1, node, Input::Client(Purpose::Nothing, slot, request.into_request()));
            }
            1 | 2 => {
                let change = SessionChange { join: vec![self.groups[0].0.clone()], ..SessionChange::default() };
                let request = (id, ChangeSession { change });
                self.input_after(1, node, Input::Client(Purpose::Nothing, slot, request.into_request()));
            }
            3 => {
                let request = (id, ReadSession);
                self.input_after(1, node, Input::Client(Purpose::Nothing, slot, request.into_request()));
            }
            4 if self.random.permille(400) => {
                self.sessions[session].ending = true;
                let request = (id, EndSession);
                self.input_after(1, node, Input::Client(Purpose::End { session, id }, slot, request.into_request()));
            }
            5..=9 => {
                let client = self.some_client(session);
                if let Some((node, connection)) = self.sessions[session].clients[client].1.take() {
                    self.input_after(1, node, Input::Disconnect(connection));
                }
            }
            10..=15 => {
                let connection = self.number();
                let (token, _) = self.sessions[session].token;
                let is_old = self.random.permille(200);
                self.shown.insert(connection, token.saturating_sub(u32::from(is_old)));
                let client = self.some_client(session);
                let (name, last) = &mut self.sessions[session].clients[client];
                *last = Some((node, connection));
                self.clients.insert(connection, name.clone());
                self.input_after(1, node, Input::Connect { session: id, connection });
            }
            16 => {
                let change = SessionChange { new_token: true, ..SessionChange::default() };
                let request = (id, ChangeSession { change }).into_request();
                self.input_after(1, node, Input::Client(Purpose::NewToken { session }, slot, request));
            }
            17 | 18 => {
                // All groups, or none but what a backend has put it into.
                let none = Grant { pattern: "-".to_owned(), join: true, publish: true };
                let grants = Some(if self.random.permille(500) { vec![none] } else { Vec::new() });
                let change = SessionChange { grants, ..SessionChange::default() };
                let request = (id, ChangeSession { change });
                self.input_after(1, node, Input::Client(Purpose::Nothing, slot, request.into_request()));
            }
            number @ 20..=22 => {
                let group = self.random.index(self.groups.len());
                let client = self.some_client(session);
                if let Some((node, connection)) = self.sessions[session].clients[client].1 {
                    let group = self.groups[group].0.clone();
                    self.input_after(1, node, Input::Member { connection, group, joins: number != 21 });
                }
            }
            _ => {}
        }
    }

    fn some_client(&mut self, session: usize) -> usize {
        self.random.index(self.sessions[session].clients.len())
    }

    fn record(&mut self, session: usize) -> SessionRecord {
        SessionRecord {
            id: self.sessions[session].id,
            user: format!("user{session}"),
            created_ms: 0,
            expires_ms: u64::MAX,
            idle_ttl_ms: 1_000_000,
            last_used_ms: 1_700_000_000_000 + self.now,
            attributes: Bytes::from_static(b"{}"),
            groups: BTreeSet::from([self.groups[0].0.clone()]),
            grants: Vec::new(),
            revision: 0,
            token: 0,
            clients_max: None,
        }
    }

    pub(super) fn has_new_token(&mut self, session: usize, result: Result<SlotAnswer, SlotError>) {
        if let Ok(SlotAnswer::Session(view)) = result {
            let now = self.now;
            let client = &mut self.sessions[session];
            let record = &view.record;
            if record.id == client.id && client.token.0 < record.token {
                client.token = (record.token, now);
            }
            self.ledger.count("tokens renewed");
        }
    }

    pub(super) fn created(&mut self, session: usize, id: SessionId, result: &Result<SlotAnswer, SlotError>) {
        if self.sessions[session].id == id {
            self.sessions[session].created = result.is_ok();
            self.sessions[session].creating_until_ms = 0;
        }
    }

    pub(super) fn ended(&mut self, session: usize, id: SessionId, result: &Result<SlotAnswer, SlotError>) {
        let is_over = matches!(result, Ok(_) | Err(SlotError::SessionEnded(_) | SlotError::NoSession));
        // Its client may have got another one meanwhile.
        if is_over && self.sessions[session].id == id {
            let now = self.now;
            self.sessions[session].ended_ms.get_or_insert(now);
            self.ledger.count("sessions ended");
        }
    }

    /// An end that was answered is in the store.
    pub(super) fn check_ended(&mut self, session: SessionId) {
        if self.store.sessions.get(&session).is_some_and(|row| row.record.is_some()) {
            self.ledger.fail(format!("sessions: {session} is answered to have ended, and the store has it still"));
        }
    }

    /// S7: when a session is given to a connection, nothing is delivered to earlier ones of its client any more.
    pub(super) fn check_attached(
        &mut self,
        (node, slot): (usize, SlotId),
        gateway: &Member,
        whose: (SessionId, ClientKey),
        attachment: AttachmentNumber,
    ) {
        let Some(process) = &self.nodes[node].process else { return };
        let life = (slot, process.cores[usize::from(slot)].replica().lineage().unwrap_or(0));
        self.ledger.gives(whose, attachment, life);
        let replica = process.cores[usize::from(slot)].replica();
        let last = replica.state().and_then(|state| Some(&state.session(whose.0)?.client(whose.1)?.last));
        if let (Some(last), Some(term)) = (last.filter(|last| last.number == attachment), replica.serving()) {
            self.ledger.gives_to(whose, attachment, last.connection, term);
        }
        let mut open = Vec::new();
        for (number, other) in self.nodes.iter().enumerate() {
            let Some(other) = &other.process else { continue };
            // That the attachment is on one node only, its gateway sees to when it hears the answer.
            if other.member == *gateway {
                continue;
            }
            let (now_ms, may) = (self.clock(number).mono_ms, other.lease.permission());
            // Whatever comes from here it holds back until it knows the map.
            if may.map_version < process.lease.voters_since() {
                continue;
            }
            for (connection, _, number) in other.attachments.connections().filter(|(_, of, _)| *of == whose) {
                let delivers =
                    self.mouths.get(&connection).is_some_and(|mouth| may.allows(mouth.confirmed, now_ms, &other.ahead));
                if let Some(number) = number.filter(|number| *number < attachment)
                    && delivers
                    && !self.ledger.may_be_open(whose, number, life)
                {
                    open.push(format!("{number} at {}", other.member));
                }
            }
        }
        if !open.is_empty() {
            let open = open.join(", ");
            let what = format!("S7: {whose:?} is given to {gateway} as {attachment}, and is open as {open}");
            self.ledger.fail(what);
        }
    }

    /// The later connection of a client wins, not the later attempt: the one that it opened last keeps what it was given in
    /// this term. What another term gave comes back by renewals.
    pub(super) fn check_displaced(
        &mut self,
        (node, slot): (usize, SlotId),
        whose: (SessionId, ClientKey),
        number: AttachmentNumber,
        term: Term,
    ) {
        let Some(process) = &self.nodes[node].process else { return };
        let state = process.cores[usize::from(slot)].replica().state();
        let Some(now) = state.and_then(|state| Some(&state.session(whose.0)?.client(whose.1)?.last)) else { return };
        let Some((connection, given_in)) = self.ledger.given_to(whose, number) else { return };
        let came = |connection| self.opened_ms.get(connection);
        if given_in != term
            || came(&now.connection) >= came(&connection)
            || self.ledger.given_to(whose, now.number).is_some()
        {
            return;
        }
        let has_it = |there: &SessionClient| {
            there.clients.iter().any(|(_, last)| last.is_some_and(|(_, last)| last == connection))
        };
        if self.sessions.iter().any(|there| there.id == whose.0 && has_it(there)) {
            let what = format!("S7: connection {connection}, the last of its client, loses {whose:?} to {now:?}");
            self.ledger.fail(what);
        }
    }

    /// A client whose session's slot has it as attached to a connection that its living gateway does not have.
    pub(super) fn unattended(&self) -> Option<String> {
        self.sessions.iter().find_map(|client| {
            let state = self.serving_core(client.id.slot(self.profile.slots))?.replica().state()?;
            state.session(client.id)?.attachments().find_map(|(_, known)| {
                let gateway = self.nodes[self.running(&known.gateway)?].process.as_ref()?;
                let is_there = gateway.attachments.connections().any(|(connection, ..)| connection == known.connection);
                (!is_there).then(|| {
                    format!("nobody has told the slot of {} that its attachment is over: {known:?}", client.id)
                })
            })
        })
    }

    /// The connections of a session that are not over.
    fn live(&self, session: SessionId) -> Vec<Live> {
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let live = processes.flat_map(|process| {
            let of_session = process.attachments.connections().filter(|(_, whose, _)| whose.0 == session);
            of_session.map(|(connection, whose, number)| Live {
                gateway: process.member.clone(),
                connection,
                client: whose.1,
                number,
            })
        });
        live.collect()
    }

    /// What is not well yet with a session, when all should be.
    pub(super) fn session_unrest(&self, client: &SessionClient) -> Option<String> {
        let session = client.id;
        let live = self.live(session);
        let slot = session.slot(self.profile.slots);
        let state = self.serving_core(slot)?.replica().state()?.session(session);
        if let Some(state) = state {
            let departs = state.clients.values().any(|client| !client.departing.is_empty() && !client.is_present());
            if state.is_unsaved() || departs {
                return Some(format!("session {session} is not saved or departed: {state:?}"));
            }
            let may = |group: &GroupName, needs_grant: &bool| state.record.may_join(group, *needs_grant);
            let mut joined = state.clients.values().flat_map(|client| &client.joined);
            if let Some((group, _)) = joined.find(|(group, of)| !may(group, of)) {
                return Some(format!("rights: session {session} is in {group} without a right to: {state:?}"));
            }
            for Live { connection, .. } in live.iter().filter(|live| live.number.is_some()) {
                if let Some(told) = self.views.get(connection)
                    && told.record.revision < state.record.revision
                {
                    return Some(format!("rights: connection {connection} was told {told:?}, its slot says {state:?}"));
                }
            }
            if let Some(what) = self.joins_unrest(state, &live) {
                return Some(what);
            }
        }
        if let Some(state) = state.filter(|_| session.is_ephemeral() && live.is_empty())
            && self.has_lapsed(slot, state)
        {
            return Some(format!("ephemeral session {session} outlives its client: {state:?}"));
        }
        let row = self.store.sessions.get(&session);
        if let (Some(state), Some(process)) = (state, self.process_of(slot).filter(|_| !session.is_ephemeral()))
            && state.ended.is_none()
            && !client.ending
        {
            let life = (slot, process.cores[usize::from(slot)].replica().lineage().unwrap_or(0));
            // A write of the slot's last life may come late, and then it has more than the slot's memory.
            let old = row.is_some_and(|row| row.version.0 < self.ledger.begun(life));
            if !old && !is_saved(state, row.and_then(|row| row.record.as_ref())) {
                return Some(format!("session {session} is saved as {row:?}, its slot says {state:?}"));
            }
        }
        if client.ended_ms.is_some() && row.is_some_and(|row| row.record.is_some()) {
            return Some(format!("session {session} is over, and the store has it: {row:?}"));
        }
        let attached = state.map_or(0, |state| state.attachments().count());
        if client.ended_ms.is_some() && (!live.is_empty() || attached > 0) {
            return Some(format!("session {session} is over and attached: {live:?}, {state:?}"));
        }
        let is_known = |live: &Live| match state {
            Some(state) => state
                .client(live.client)
                .and_then(Client::attachment)
                .is_some_and(|known| known.is_of(&live.gateway, live.connection) && Some(known.number) == live.number),
            // Its slot has lost its memory, and the session has not been asked for since. Nobody else has one that is ephemeral.
            None => live.number.is_some() && !session.is_ephemeral(),
        };
        let agree = live.iter().all(is_known) && (state.is_none() || live.len() == attached);
        (!agree).then(|| format!("session {session} is connected as {live:?}, its slot says {state:?}"))
    }

    /// Somebody who is present in the group that mouths take part in, and is not there, or the other way round. Where a slot of sessions has lost its
    /// memory nobody knows whom to take out.
    pub(super) fn ghost(&self) -> Option<String> {
        let (group, slot) = self.groups.first()?;
        let replica = self.serving_core(*slot)?.replica();
        let members = &replica.state()?.group(group)?.members;
        let sessions: BTreeSet<_> = members.iter().map(|member| member.session).collect();
        if members.present().sessions != sessions.len() as u64 {
            return Some(format!(
                "presence: {group} counts {} sessions, there are {sessions:?}",
                members.present().sessions
            ));
        }
        // Where clocks differ, a slot that has lost its memory may give lower numbers than it had given.
        let is_sure = self.profile.skew_ms == 0 && self.ledger.begun((*slot, replica.lineage()?)) == 0;
        let is_sure = |seat: &Seat| {
            let slot = seat.session.slot(self.profile.slots);
            let lineage = self.serving_core(slot).and_then(|core| core.replica().lineage());
            is_sure && lineage.is_some_and(|lineage| self.ledger.begun((slot, lineage)) == 0)
        };
        let is_new = self.ledger.begun((*slot, replica.lineage()?)) > 0;
        let outdated = members.iter().find_map(|member| {
            let known = self.seen_by.get(&(member.session, member.client, member.attachment))?;
            (member.revision < *known).then(|| format!("presence: {member:?} is shown, revision {known} is known"))
        });
        if outdated.is_some() && !is_new {
            return outdated;
        }
        let is_lost = |seat: &Seat| is_sure(seat) && !members.iter().any(|there| there.seat() == *seat);
        if let Some(lost) = self.seated().find(is_lost) {
            return Some(format!("presence: {lost:?} takes part in {group} and is not present"));
        }
        members.iter().find_map(|member| {
            let slot = member.session.slot(self.profile.slots);
            let replica = self.serving_core(slot)?.replica();
            if self.ledger.begun((slot, replica.lineage()?)) > 0 {
                return None;
            }
            let known = replica.state()?.session(member.session).and_then(|state| state.client(member.client));
            let attached = known.and_then(Client::attachment).map(|attachment| attachment.number);
            (attached != Some(member.attachment))
                .then(|| format!("presence: {member:?} is in {group}, its session's slot says {known:?}"))
        })
    }
}

impl World {
    /// Whether an ephemeral session without a client is to be over by now, by the clock of its slot's primary.
    fn has_lapsed(&self, slot: SlotId, state: &Session) -> bool {
        let primary = self.store.map.as_ref().and_then(|map| map.slot(slot)).map(|slot| &slot.primary);
        let Some(node) = primary.and_then(|primary| self.running(primary)) else { return false };
        let wall_ms = self.clock(node).wall_ms;
        let until_ms = state.clients.values().filter_map(|client| match client.stage {
            Stage::Attached => Some(u64::MAX),
            Stage::Grace { until_ms } => Some(until_ms),
            Stage::Gone { .. } => None,
        });
        match (state.ended, until_ms.max()) {
            (Some(_), _) => true,
            (None, Some(until_ms)) => until_ms <= wall_ms,
            (None, None) => {
                !state.clients.is_empty() || state.record.last_used_ms + self.profile.slot.unclaimed_ms <= wall_ms
            }
        }
    }
}

/// Of a session that is stored.
pub(super) fn new_id(random: &mut super::random::Random) -> SessionId {
    let id = SessionId(Uuid::from_u64_pair(random.number(), random.number()));
    if id.is_ephemeral() { SessionId(uuid::Builder::from_random_bytes(id.0.into_bytes()).into_uuid()) } else { id }
}

/// Whether the store has what it should have. That a session was used again it may learn later, while somebody remembers it.
fn is_saved(state: &Session, row: Option<&SessionRecord>) -> bool {
    let used_ms = state.record.last_used_ms;
    let known_ms = if state.is_present() { state.noted_ms..=used_ms } else { used_ms..=used_ms };
    row.is_some_and(|row| {
        let as_if_used = SessionRecord { last_used_ms: used_ms, ..row.clone() };
        as_if_used == state.record && known_ms.contains(&row.last_used_ms) && !state.should_note(used_ms)
    })
}
