//! Which session is attached to which connection of this node: the shell of [`crate::logic::attachments`].
//!
//! The core decides. A connection is cut, and told of a new record, in the very call that brings the news (S7). What takes
//! time runs in tasks of its own, bounded by the core, and what comes of it is an input again. A connection's own task asks
//! for its session, since it waits for that.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::outbox::{Closing, Outbox};
use crate::{
    clock,
    deliveries::SessionNews,
    gateway::{ask::Ask, door::reasons::ended, hub::Hub},
    id::{AttachmentNumber, ClientId, GroupName, SessionId, SlotId},
    logic::{
        attachments::{self, Cut, Goodbye, Input, Output, TICK_MS},
        entry::EndReason,
        request::{
            Attach, Attached, ClientView, ConfirmDisplaced, Detach, Displaced, Done, Renew, Renewal, SessionPush,
            SlotError, Withdraw,
        },
    },
    tasks::Tasks,
    token::Signed,
    wire::{
        command::Event,
        peer::{Farewell, Whom},
        plain,
        reason::Reason,
    },
};

/// The attachments of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Attachments {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    ask: Ask,
    hub: Hub,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Registry {
    core: attachments::Attachments,
    /// Those that the core knows, by number.
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    outbox: Arc<Outbox>,
    /// Cancelled where its session is not to be asked for any longer.
    over: CancellationToken,
    /// As which of its session's clients.
    client: ClientId,
    /// Its session was made of a backend's token, which is over when that is.
    backed: bool,
    /// It was told `welcome`.
    is_welcomed: bool,
    /// Tells of each change of the session, from when it is attached.
    view: Option<watch::Sender<Known>>,
    /// What a backend has it told that disconnects it.
    farewell: Option<Box<Farewell>>,
}

/// What is known of a connection's session.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) view: Arc<ClientView>,
    /// How often its slot had lost sight of the client, and has it again.
    pub(super) restored: u32,
}

/// A connection has its session.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) number: AttachmentNumber,
    /// The session, and what it becomes.
    pub(super) changes: watch::Receiver<Known>,
}

/// A connection does not have its session.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum NotAttached {
    /// The slot has said so, or nothing.
    Refused(SlotError),
    /// It is over: the outbox has what is to be said, unless the client is gone.
    Over,
}

impl Attachments {
    /// Nobody is attached yet. What comes in are the news that sessions' primaries send, and the episodes of this node's lease.
    pub(crate) fn start(
        ask: Ask,
        hub: Hub,
        (news, episodes): (mpsc::Receiver<SessionNews>, watch::Receiver<u64>),
        tasks: &Tasks,
    ) -> Self {
        let this = Self { shared: Arc::new(Shared { registry: Mutex::default(), ask, hub, tasks: tasks.clone() }) };
        tasks.spawn("attachments", this.clone().run(news, episodes));
        this
    }

    async fn run(self, mut news: mpsc::Receiver<SessionNews>, mut episodes: watch::Receiver<u64>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let input = tokio::select! {
                Ok(()) = episodes.changed() => Input::Episode(*episodes.borrow_and_update()),
                Some(news) = news.recv() => input_of(news),
                _ = ticks.tick() => Input::Tick,
            };
            self.handle(input);
        }
    }

    /// Asks for the session of a token for a connection of this client. Once `over` is cancelled nothing is tried again. The connection is to say when
    /// it is [`gone`](Self::gone), before this returns or after.
    pub(super) async fn attach(
        &self,
        (Signed { session, number }, client): (Signed, &ClientId),
        outbox: &Arc<Outbox>,
        over: &CancellationToken,
    ) -> Result<Held, NotAttached> {
        let connection = outbox.connection;
        let opening = self.open((session, client.clone()), outbox.clone(), over.clone());
        // A `hello` that has lain there while this node stood still is not the later of two.
        let waited_ms = u32::try_from(outbox.late_ms()).unwrap_or(u32::MAX);
        let attach = Attach { client: client.clone(), connection, waited_ms, token: number };
        let result = self.shared.ask.of_session(session, attach, Some(over)).await;
        opening.answered(result)
    }

    fn open(
        &self,
        (session, client): (SessionId, ClientId),
        outbox: Arc<Outbox>,
        over: CancellationToken,
    ) -> Opening<'_> {
        let connection = outbox.connection;
        let slot = session.slot(self.shared.ask.slot_count());
        let (of, backed) = (client.clone(), session.is_made_of_token());
        let opening = Connection { outbox, over, client: of, backed, is_welcomed: false, view: None, farewell: None };
        self.lock().connections.insert(connection, opening);
        self.handle(Input::Open { connection, session, client, slot });
        Opening { attachments: self, connection, is_answered: false }
    }

    /// The client of this connection is gone, and with it all that it had asked for.
    pub(super) fn gone(&self, connection: u64) {
        self.handle(Input::Gone { connection });
    }

    /// The client of this connection joins a group, which its slot is asked for next.
    pub(super) fn joins(&self, connection: u64, group: &GroupName, needs_grant: bool) {
        self.handle(Input::Joins { connection, group: group.clone(), needs_grant });
    }

    /// The client of this connection is not in a group, or not any more, as far as its slot was heard.
    pub(super) fn leaves(&self, connection: u64, group: &GroupName) {
        self.handle(Input::Leaves { connection, group: group.clone() });
    }

    /// Has clients go that are attached here. How many.
    pub fn disconnect(&self, whom: &Whom, farewell: &Farewell) -> usize {
        let mut registry = self.lock();
        let meant = registry.connections.iter_mut().filter(|(_, there)| there.is_meant(whom));
        let meant: Vec<u64> = meant
            .map(|(connection, there)| {
                there.farewell = Some(Box::new(farewell.clone()));
                *connection
            })
            .collect();
        drop(registry);
        for connection in &meant {
            self.handle(Input::Disconnect { connection: *connection });
        }
        meant.len()
    }

    /// The client of this connection was told `welcome`, which comes before all else.
    pub(super) fn welcomed(&self, connection: u64) {
        self.lock().with(connection, |there| there.is_welcomed = true);
    }

    /// Queues an event for a client that is attached here. Whether there is one that takes it.
    pub fn tell(&self, session: SessionId, client: &ClientId, event: &Event) -> bool {
        let whom = Whom::Session { session, client: Some(client.clone()) };
        let registry = self.lock();
        let there = registry.connections.values().find(|there| there.is_meant(&whom));
        let push = |outbox: &Outbox| outbox.push(outbox.counted(outbox.codec().encode(event)));
        there.is_some_and(|there| there.is_welcomed && push(&there.outbox))
    }

    /// How many clients are attached.
    pub fn len(&self) -> usize {
        self.lock().core.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has the core decide and does what it says. What it says to who waits for an answer is given back.
    fn handle(&self, input: Input) -> Option<Result<Held, SlotError>> {
        let about = match &input {
            Input::Answered { connection, .. } | Input::Gone { connection } => Some(*connection),
            _ => None,
        };
        let (mut out, mut answer) = (Vec::new(), None);
        let mut registry = self.lock();
        registry.core.handle(clock::mono_ms(), input, &mut out);
        for output in out {
            match output {
                // By who has opened it.
                Output::Attach { .. } => {}
                Output::GiveUp { connection } => registry.with(connection, |there| there.over.cancel()),
                Output::Attached { connection, number, view } => {
                    let (sender, changes) = watch::channel(Known { view, restored: 0 });
                    registry.with(connection, |there| {
                        there.view = Some(sender);
                        there.outbox.hold();
                    });
                    answer = Some(Ok(Held { number, changes }));
                }
                Output::Confirmed { connection, episode } => {
                    registry.with(connection, |there| there.outbox.confirm(episode));
                }
                Output::Refused { connection: _, error } => answer = Some(Err(error)),
                Output::Cut { connection, why } => registry.with(connection, |there| say_goodbye(there, why)),
                Output::Changed { connection, view } => registry.with(connection, |there| {
                    if let Some(sender) = &there.view {
                        sender.send_modify(|known| known.view = view);
                    }
                }),
                Output::Restored { connection } => registry.with(connection, |there| {
                    if let Some(sender) = &there.view {
                        sender.send_modify(|known| known.restored += 1);
                    }
                }),
                Output::Unsubscribe { connection } => self.unsubscribe(connection),
                Output::Say { number, slot, goodbye } => self.say(number, slot, goodbye),
                Output::Renew { number, slot, attachments } => self.renew(number, slot, attachments),
            }
        }
        if let Some(connection) = about.filter(|connection| !registry.core.knows(*connection)) {
            registry.connections.remove(&connection);
        }
        answer
    }

    fn unsubscribe(&self, connection: u64) {
        self.spawn("attachment_end", move |this| async move {
            this.shared.hub.left_all(connection).await;
            this.handle(Input::Unsubscribed { connection });
        });
    }

    fn say(&self, number: u64, slot: SlotId, goodbye: Goodbye) {
        self.spawn("attachment_goodbye", move |this| async move {
            let ask = &this.shared.ask;
            let said = match goodbye {
                Goodbye::Detach((session, client), attachment) => {
                    ask.upkeep(slot, (session, Detach { client, attachment })).await
                }
                Goodbye::Confirm((session, client), attachment) => {
                    ask.upkeep(slot, (session, ConfirmDisplaced { client, attachment })).await
                }
                Goodbye::Withdraw((session, client), connection) => {
                    ask.upkeep(slot, (session, Withdraw { client, connection })).await
                }
            };
            if let Err(error) = &said {
                tracing::debug!(slot, ?goodbye, ?error, "a slot has not heard the end of an attachment");
            }
            this.handle(Input::Said { number, result: said.map(|Done| ()) });
        });
    }

    fn renew(&self, number: u64, slot: SlotId, attachments: Vec<Renewal>) {
        self.spawn("attachment_renewal", move |this| async move {
            let renewed = this.shared.ask.upkeep(slot, Renew(attachments)).await.unwrap_or_default();
            this.handle(Input::Renewed { number, renewed });
        });
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, name: &'static str, task: impl FnOnce(Self) -> F) {
        // When this node stops the others notice that it is gone.
        if !self.shared.tasks.stopping().is_cancelled() {
            self.shared.tasks.spawn_detached(name, task(self.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.shared.registry.lock().expect("the core of attachments has failed: its own task ends the node")
    }
}

impl Registry {
    fn with(&mut self, connection: u64, act: impl FnOnce(&mut Connection)) {
        if let Some(there) = self.connections.get_mut(&connection) {
            act(there);
        }
    }
}

/// A connection that waits for its session. Dropped before the answer, it is gone.
struct Opening<'a> {
    attachments: &'a Attachments,
    connection: u64,
    is_answered: bool,
}

impl Opening<'_> {
    fn answered(mut self, result: Result<Attached, SlotError>) -> Result<Held, NotAttached> {
        self.is_answered = true;
        let result = result.map(|Attached { view, attachment }| (attachment, Arc::new(view)));
        match self.attachments.handle(Input::Answered { connection: self.connection, result }) {
            Some(answer) => answer.map_err(NotAttached::Refused),
            None => Err(NotAttached::Over),
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.attachments.gone(self.connection);
            self.attachments.handle(Input::Answered { connection: self.connection, result: Err(SlotError::Unknown) });
        }
    }
}

fn input_of(SessionNews { slot, session, push }: SessionNews) -> Input {
    match push {
        SessionPush::Displace { client, why, attachment } => {
            Input::Displaced { slot, session, client, number: attachment, why }
        }
        SessionPush::Ended { reason } => Input::Ended { slot, session, reason },
        SessionPush::Changed { client, view } => Input::Changed { slot, client, view: Arc::new(view) },
    }
}

impl Connection {
    /// Whether it is attached, as one of these clients.
    fn is_meant(&self, whom: &Whom) -> bool {
        let Some(view) = self.view.as_ref().filter(|_| !self.outbox.is_closing()) else { return false };
        let record = &view.borrow().view.record;
        match whom {
            Whom::Session { session, client } => {
                record.id == *session && client.as_ref().is_none_or(|client| *client == self.client)
            }
            Whom::User(user) => !user.is_empty() && record.user == *user,
        }
    }
}

/// Says why, as the last thing that the client gets.
fn say_goodbye(Connection { outbox, backed, farewell, .. }: &Connection, why: Cut) {
    match why {
        Cut::Displaced(why) => {
            let reason = match why {
                Displaced::Elsewhere => Reason::Displaced,
                Displaced::CrowdedOut => Reason::CrowdedOut,
            };
            outbox.cut_with(plain::encode(&Event::Displaced), Closing::new(reason));
        }
        Cut::Disconnected => outbox.close(Closing::by_backend(&farewell.as_deref().cloned().unwrap_or_default())),
        Cut::Ended(EndReason::Expired) if *backed => outbox.close(Closing::new(Reason::TokenExpired)),
        Cut::Ended(reason) => outbox.close(Closing::saying(Reason::SessionEnded, ended(reason))),
    }
}
