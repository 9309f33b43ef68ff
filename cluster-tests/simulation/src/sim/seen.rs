//! What publishers sent and listeners were told, written down for the history checker: a second opinion on the promises,
//! which knows nothing of cores, slots and nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use roost_logic::{
    entry::Message,
    id::{ClientId, GroupName, Position, PublishKey, SessionId},
};

use super::checks::Told;
use crate::history::{
    Attempt, ConnectionLog, EphemeralLog, History, Outcome, PublishLog, Replay, Seen, Stamped, Welcome,
};

/// See the module.
#[derive(Debug)]
pub(super) struct ClientLog {
    history: History,
    /// The last connection of each listener.
    last: BTreeMap<usize, usize>,
    publishes: BTreeMap<PublishKey, usize>,
    sendings: u64,
}

impl ClientLog {
    pub(super) fn new() -> Self {
        let history = History { publishes_complete: true, ..History::default() };
        Self { history, last: BTreeMap::new(), publishes: BTreeMap::new(), sendings: 0 }
    }

    /// A publisher sends by a connection, for the first time or again. Which sending of this publish it is.
    pub(super) fn sends(
        &mut self,
        now: u64,
        (publisher, connection): (usize, u64),
        group: &GroupName,
        key: PublishKey,
    ) -> usize {
        self.sendings += 1;
        let publishes = &mut self.history.publishes;
        let index = *self.publishes.entry(key).or_insert_with(|| {
            publishes.push(PublishLog {
                publisher: format!("p{publisher}").into(),
                group: group.to_string().into(),
                key: Some(key.0.to_string().into()),
                payload: key.0.to_string().into(),
                attempts: Vec::new(),
            });
            publishes.len() - 1
        });
        let (connection, sequence, at_us) = (connection as u32, self.sendings, now * 1_000);
        let attempts = &mut self.history.publishes[index].attempts;
        let outcome = Outcome::Unknown;
        attempts.push(Attempt { connection, sequence, sent_us: at_us, answered_us: at_us, outcome });
        attempts.len() - 1
    }

    /// Somebody publishes what nobody keeps. Which they are.
    pub(super) fn sends_ephemeral(
        &mut self,
        now: u64,
        publisher: usize,
        group: &GroupName,
        data: &[Bytes],
    ) -> Range<usize> {
        let first = self.history.ephemerals.len();
        self.history.ephemerals.extend(data.iter().map(|data| EphemeralLog {
            publisher: format!("c{publisher}").into(),
            group: group.to_string().into(),
            payload: text(data),
            sent_us: now * 1_000,
            is_refused: false,
        }));
        first..self.history.ephemerals.len()
    }

    /// These were certainly not passed on.
    pub(super) fn refused_ephemeral(&mut self, messages: Range<usize>) {
        self.history.ephemerals[messages].iter_mut().for_each(|log| log.is_refused = true);
    }

    pub(super) fn answered(&mut self, now: u64, key: PublishKey, attempt: usize, at: Position, copies: u8) {
        if let Some(index) = self.publishes.get(&key) {
            let attempt = &mut self.history.publishes[*index].attempts[attempt];
            (attempt.answered_us, attempt.outcome) = (now * 1_000, Outcome::Acked { at, copies });
        }
    }

    /// A publisher is told that this sending was certainly not carried out.
    pub(super) fn refused(&mut self, now: u64, key: PublishKey, attempt: usize) {
        if let Some(index) = self.publishes.get(&key) {
            let attempt = &mut self.history.publishes[*index].attempts[attempt];
            (attempt.answered_us, attempt.outcome) = (now * 1_000, Outcome::Refused);
        }
    }

    /// A listener is told something; joining begins a connection.
    pub(super) fn told(
        &mut self,
        now: u64,
        (listener, node): (usize, &str),
        group: &GroupName,
        since: Option<Position>,
        told: &Told,
    ) {
        let seen = seen(group, since, told);
        if let Told::Joined { .. } = told {
            self.last.insert(listener, self.history.connections.len());
            self.history.connections.push(ConnectionLog {
                client: format!("l{listener}").into(),
                number: self.history.connections.len() as u32,
                node: node.into(),
                welcome: None,
                events: Vec::new(),
                settled: false,
            });
        }
        if let Some(connection) = self.last.get(&listener) {
            self.history.connections[*connection].events.push(Stamped { at_us: now * 1_000, seen });
        }
    }

    pub(super) fn reads(&mut self, now: u64, group: &GroupName, position: Position, messages: &[Message]) {
        self.history.replays.push(Replay {
            what: format!("a history of {group}"),
            group: group.to_string().into(),
            epoch: position.epoch,
            at_us: now * 1_000,
            messages: messages.iter().map(|message| (message.offset, text(&message.data))).collect(),
        });
    }

    /// A connection of a session's client is welcomed. Which log is its own.
    pub(super) fn welcomed(
        &mut self,
        now: u64,
        session: SessionId,
        client: &ClientId,
        (asked_ms, node): (u64, &str),
    ) -> usize {
        let connections = &mut self.history.connections;
        let (session, client): (Arc<str>, Arc<str>) = (session.to_string().into(), client.to_string().into());
        let welcome = Welcome { session: session.clone(), client, asked_us: asked_ms * 1_000, at_us: now * 1_000 };
        connections.push(ConnectionLog {
            client: session,
            number: connections.len() as u32,
            node: node.into(),
            welcome: Some(welcome),
            events: Vec::new(),
            settled: false,
        });
        connections.len() - 1
    }

    /// What was written to a connection of a session.
    pub(super) fn wrote(&mut self, now: u64, log: usize, seen: Seen) {
        self.history.connections[log].events.push(Stamped { at_us: now * 1_000, seen });
    }

    /// What is wrong with it. Those of `settled` have had time to hear all. Nothing is known of the attachments of `forgotten`.
    pub(super) fn violation(
        &mut self,
        settled: impl Iterator<Item = usize>,
        forgotten: &[SessionId],
    ) -> Option<String> {
        let forgotten: BTreeSet<_> = forgotten.iter().map(SessionId::to_string).collect();
        for connection in &mut self.history.connections {
            connection.welcome.take_if(|welcome| forgotten.contains(&*welcome.session));
        }
        for listener in settled {
            if let Some(connection) = self.last.get(&listener) {
                self.history.connections[*connection].settled = true;
            }
        }
        self.history.check().err().map(|violation| format!("history: {violation}"))
    }
}

/// What is told, as it is logged.
pub(super) fn seen(group: &GroupName, since: Option<Position>, told: &Told) -> Seen {
    let group: Arc<str> = group.to_string().into();
    match told {
        Told::Joined { at, recovered } => Seen::Joined { group, since, at: *at, recovered: *recovered },
        Told::Message(epoch, message) => {
            let at = Position { epoch: *epoch, offset: message.offset };
            Seen::Message { group, at, payload: text(&message.data) }
        }
        Told::Ephemeral(data) => Seen::Ephemeral { group, payload: text(data) },
        Told::Gap { epoch, from, to } => Seen::Gap { group, epoch: *epoch, from: *from, to: *to },
        Told::Reset(to) => Seen::Reset { group, to: *to },
        Told::Stale => Seen::Stale { group },
        Told::Live(at) => Seen::Live { group, at: *at },
    }
}

fn text(data: &Bytes) -> Arc<str> {
    // Without what only makes it long.
    String::from_utf8_lossy(data).trim_start_matches('0').into()
}
