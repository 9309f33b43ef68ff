//! Which session is attached to which connection of this node, and what becomes of it when it is not any more.
//!
//! A displaced connection is cut when the news is taken in, so that nothing reaches it afterwards (S7); then its
//! subscriptions end, and only then is the slot's primary told, which lets the new attachment proceed. News may overtake the
//! answer that made the attachment, since the two come by different ways: it is remembered for as long as such an answer
//! can be late.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, mpsc, watch};

use super::outbox::{Closing, Outbox};
use crate::{
    clock,
    config::Config,
    deliveries::SessionNews,
    gateway::{ask::Ask, door::reasons::ended, hub::Shards},
    id::{AttachmentNumber, SessionId, SlotId},
    logic::{
        entry::{EndReason, SessionRecord},
        request::{ConfirmDisplaced, Renew, SessionPush},
    },
    tasks::Tasks,
    wire::{command::Event, plain, reason::Reason},
};

/// Connections whose end is under way. Past it one is only cut, and the new attachment waits for its time-out.
const ENDINGS: usize = 8_192;
const ENDINGS_AT_ONCE: usize = 256;

/// Every attachment is renewed once in this time; a part of the slots at each step.
const RENEW: Duration = Duration::from_secs(5);
const RENEW_STEPS: u16 = 20;
const RENEWALS_AT_ONCE: usize = 128;
const ATTACHMENTS_IN_ONE: usize = 500;

/// News of attachments that are not here (yet) that are kept at once; past it the oldest goes, and the renewal finds out.
const NEWS: usize = 16_384;

/// A session's connection on this node.
pub struct Attachment {
    /// The session.
    pub session: SessionId,
    /// The number that its primary gave.
    pub number: AttachmentNumber,
    /// The connection's outbox.
    pub outbox: Arc<Outbox>,
    /// Tells the connection's task of each new record; holds the one that came with the attachment.
    pub record: watch::Sender<Arc<SessionRecord>>,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} on connection {}", self.session, self.number, self.outbox.connection)
    }
}

/// The attachment is over already: the connection has been told why and is closing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotAttached {
    /// The session has attached elsewhere meanwhile.
    #[error("the session has attached elsewhere")]
    Displaced,
    /// The session has ended meanwhile.
    #[error("the session is over")]
    Ended(EndReason),
}

/// The attachments of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Attachments {
    registry: Arc<Mutex<Registry>>,
    endings: mpsc::Sender<Ending>,
    shards: Shards,
    news_ms: u64,
}

/// Session, attachment and connection.
type Renewal = (SessionId, AttachmentNumber, u64);

#[derive(Debug, Default)]
struct Registry {
    attached: BTreeMap<SlotId, BTreeMap<SessionId, Attachment>>,
    count: usize,
    /// What was heard of sessions that are not attached here.
    news: BTreeMap<SessionId, News>,
    /// The same, by when it was heard first.
    news_by_age: BTreeMap<(u64, SessionId), ()>,
}

#[derive(Debug, Default)]
struct News {
    heard_ms: u64,
    displaced: AttachmentNumber,
    ended: Option<EndReason>,
    record: Option<Arc<SessionRecord>>,
}

/// A connection to be ended: its subscriptions, then the primary's wait.
#[derive(Debug)]
struct Ending {
    connection: Option<u64>,
    confirm: Option<(SlotId, SessionId, AttachmentNumber)>,
}

impl Attachments {
    pub(in crate::gateway) fn start(
        ask: Ask,
        shards: Shards,
        news: mpsc::Receiver<SessionNews>,
        config: &Config,
        tasks: Tasks,
    ) -> Self {
        let (endings, inbox) = mpsc::channel(ENDINGS);
        // Twice the time that an answer can be under way.
        let news_ms = config.limits.request_ms * 2;
        let this = Self { registry: Arc::default(), endings, shards, news_ms };
        let upkeep = Upkeep { ask, attachments: this.clone(), tasks: tasks.clone() };
        tasks.spawn("attachments_news", this.clone().take_news(news));
        tasks.spawn("attachments_endings", upkeep.clone().end(inbox));
        tasks.spawn("attachments_renewal", upkeep.renew());
        this
    }

    /// Takes an attachment that a primary has given in. An earlier one of the same session on this node is displaced. Where
    /// it is over already the connection has been told so, and is closing.
    pub fn insert(&self, attachment: Attachment) -> Result<(), NotAttached> {
        let slot = attachment.session.slot(self.shards.slot_count());
        let mut registry = self.lock();
        registry.forget_old_news(clock::mono_ms().saturating_sub(self.news_ms));
        let news = registry.take_news(attachment.session).unwrap_or_default();
        let here = registry.attached.get(&slot).and_then(|sessions| sessions.get(&attachment.session));
        let later_here = here.is_some_and(|here| here.number > attachment.number);
        let refused = match news.ended {
            Some(reason) => Err(NotAttached::Ended(reason)),
            None if news.displaced >= attachment.number || later_here => Err(NotAttached::Displaced),
            None => Ok(()),
        };
        if let Err(why) = refused {
            registry.put_news(attachment.session, news);
            drop(registry);
            say_goodbye(&attachment.outbox, why);
            return Err(why);
        }
        if let Some(record) = news.record
            && record.last_used_ms > attachment.record.borrow().last_used_ms
        {
            attachment.record.send_replace(record);
        }
        let connection = attachment.outbox.connection;
        let earlier = registry.attached.entry(slot).or_default().insert(attachment.session, attachment);
        match earlier {
            None => registry.count += 1,
            Some(earlier) if earlier.outbox.connection != connection => {
                drop(registry);
                say_goodbye(&earlier.outbox, NotAttached::Displaced);
                self.end(Ending { connection: Some(earlier.outbox.connection), confirm: None });
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// The connection of this attachment is gone. A later attachment stays.
    pub fn remove(&self, session: SessionId, number: AttachmentNumber) {
        let slot = session.slot(self.shards.slot_count());
        self.lock().take(slot, session, |here| here.number == number);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn take_news(self, mut news: mpsc::Receiver<SessionNews>) {
        while let Some(SessionNews { slot, session, push }) = news.recv().await {
            self.push(slot, session, push);
        }
    }

    /// Something that a session's primary has sent. Never waits: what takes time is queued.
    fn push(&self, slot: SlotId, session: SessionId, push: SessionPush) {
        match push {
            SessionPush::Displace { attachment } => self.displace(slot, session, attachment),
            SessionPush::Ended { reason } => self.session_ended(slot, session, reason),
            SessionPush::Changed { record } => self.session_changed(slot, record),
        }
    }

    fn displace(&self, slot: SlotId, session: SessionId, number: AttachmentNumber) {
        let mut registry = self.lock();
        let displaced = registry.take(slot, session, |here| here.number <= number);
        if displaced.is_none() {
            registry.hear(session, |news| news.displaced = news.displaced.max(number));
        }
        drop(registry);
        if let Some(displaced) = &displaced {
            say_goodbye(&displaced.outbox, NotAttached::Displaced);
        }
        let connection = displaced.map(|displaced| displaced.outbox.connection);
        self.end(Ending { connection, confirm: Some((slot, session, number)) });
    }

    fn session_ended(&self, slot: SlotId, session: SessionId, reason: EndReason) {
        let mut registry = self.lock();
        let ended = registry.take(slot, session, |_| true);
        if ended.is_none() {
            registry.hear(session, |news| news.ended = Some(reason));
        }
        drop(registry);
        if let Some(ended) = ended {
            say_goodbye(&ended.outbox, NotAttached::Ended(reason));
            self.end(Ending { connection: Some(ended.outbox.connection), confirm: None });
        }
    }

    fn session_changed(&self, slot: SlotId, record: SessionRecord) {
        let mut registry = self.lock();
        let (session, record) = (record.id, Arc::new(record));
        match registry.attached.get(&slot).and_then(|sessions| sessions.get(&session)) {
            Some(here) => {
                here.record.send_replace(record);
            }
            None => registry.hear(session, |news| news.record = Some(record)),
        }
    }

    fn end(&self, ending: Ending) {
        if let Err(error) = self.endings.try_send(ending) {
            tracing::warn!(%error, "too many connections end at once: one is only cut, its session's new attachment waits");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // No code panics while it holds this lock, and each step leaves the maps whole.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says why, as the last thing that the client gets.
fn say_goodbye(outbox: &Outbox, why: NotAttached) {
    match why {
        NotAttached::Displaced => {
            outbox.cut_with(plain::encode(&Event::Displaced), Closing::new(Reason::Displaced));
        }
        NotAttached::Ended(reason) => outbox.close(Closing::saying(Reason::SessionEnded, ended(reason))),
    }
}

impl Registry {
    fn take(
        &mut self,
        slot: SlotId,
        session: SessionId,
        which: impl FnOnce(&Attachment) -> bool,
    ) -> Option<Attachment> {
        let sessions = self.attached.get_mut(&slot)?;
        if !which(sessions.get(&session)?) {
            return None;
        }
        let taken = sessions.remove(&session);
        if sessions.is_empty() {
            self.attached.remove(&slot);
        }
        self.count -= 1;
        taken
    }

    fn hear(&mut self, session: SessionId, what: impl FnOnce(&mut News)) {
        let mut news = self.take_news(session).unwrap_or_default();
        news.heard_ms = clock::mono_ms();
        what(&mut news);
        self.put_news(session, news);
    }

    fn take_news(&mut self, session: SessionId) -> Option<News> {
        let news = self.news.remove(&session)?;
        self.news_by_age.remove(&(news.heard_ms, session));
        Some(news)
    }

    fn put_news(&mut self, session: SessionId, news: News) {
        self.news_by_age.insert((news.heard_ms, session), ());
        self.news.insert(session, news);
        while self.news.len() > NEWS {
            self.forget_oldest_news();
        }
    }

    fn forget_old_news(&mut self, before_ms: u64) {
        while self.news_by_age.first_key_value().is_some_and(|((heard_ms, _), ())| *heard_ms < before_ms) {
            self.forget_oldest_news();
        }
    }

    fn forget_oldest_news(&mut self) {
        if let Some(((_, session), ())) = self.news_by_age.pop_first() {
            self.news.remove(&session);
        }
    }
}

/// What takes time.
#[derive(Clone)]
struct Upkeep {
    ask: Ask,
    attachments: Attachments,
    tasks: Tasks,
}

impl Upkeep {
    async fn end(self, mut inbox: mpsc::Receiver<Ending>) {
        let permits = Arc::new(Semaphore::new(ENDINGS_AT_ONCE));
        while let Some(Ending { connection, confirm }) = inbox.recv().await {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let this = self.clone();
            self.tasks.spawn_detached("attachment_ending", async move {
                if let Some(connection) = connection {
                    this.attachments.shards.left_all(connection).await;
                }
                if let Some((slot, session, attachment)) = confirm {
                    let request = (session, ConfirmDisplaced { attachment });
                    // Where it does not arrive, the new attachment waits for its time-out.
                    if let Err(error) = this.ask.upkeep(slot, request).await {
                        tracing::debug!(%session, ?error, "a displacement could not be confirmed");
                    }
                }
                drop(permit);
            });
        }
    }

    /// Says again and again which attachments are here: a primary that has lost sight of one learns of it, and one that
    /// was displaced without our hearing of it is told so.
    async fn renew(self) {
        let permits = Arc::new(Semaphore::new(RENEWALS_AT_ONCE));
        let mut ticks = tokio::time::interval(RENEW / u32::from(RENEW_STEPS));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for step in (0..RENEW_STEPS).cycle() {
            ticks.tick().await;
            for (slot, attachments) in self.due(step) {
                // Under pressure some slots wait for the next round.
                let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                    break;
                };
                let this = self.clone();
                self.tasks.spawn_detached("attachment_renewal", async move {
                    let _ = this.ask.upkeep(slot, Renew(attachments)).await;
                    drop(permit);
                });
            }
        }
    }

    fn due(&self, step: u16) -> Vec<(SlotId, Vec<Renewal>)> {
        let mut registry = self.attachments.lock();
        registry.forget_old_news(clock::mono_ms().saturating_sub(self.attachments.news_ms));
        let mut due = Vec::new();
        for (slot, sessions) in registry.attached.iter().filter(|(slot, _)| *slot % RENEW_STEPS == step) {
            let all: Vec<_> =
                sessions.values().map(|here| (here.session, here.number, here.outbox.connection)).collect();
            due.extend(all.chunks(ATTACHMENTS_IN_ONE).map(|some| (*slot, some.to_vec())));
        }
        due
    }
}
