//! What the edge does for clients and backends alike, each thing once: who may do it, under which options of the
//! namespace, what is asked of the primary, and what its answer means. The socket and HTTP only decode and encode.

pub mod pages;
mod publish_key;
mod sessions;

use std::{fmt, future::Future, iter, sync::Arc};

use bytes::Bytes;
use tracing::Instrument;

pub use self::sessions::SessionsOfUser;
use self::{pages::newest, publish_key::publish_key};
use super::{
    ask::Ask,
    door::{access, reasons::Refused},
};
use crate::{
    config::{Config, NamespaceConfig},
    id::{GroupName, Position, Seat, SessionId},
    logic::{
        batch,
        entry::{self, Grant, Presence, Present, Publisher},
        few::Few,
        request::{
            Done, GroupInfo, History, Leave, MemberPage, Publish, PublishEphemeral, Published, ReadGroup, ReadHistory,
            ReadMembers, SlotError, UpdateMember,
        },
    },
    memory::{Account, Ledger},
    metrics::Metrics,
    store::Store,
    wire::{command::ReadFrom, reason::Reason},
};

/// What the last messages of a group take that are read at once.
const LAST_BYTES: usize = 4 << 20;

/// On whose behalf something is done.
#[derive(Clone, Debug)]
pub enum By<'a> {
    /// A backend with an API key: it may do everything.
    Server,
    /// A client, with the rights of its session.
    Client(Caller<'a>),
}

/// A client that asks for something about a group.
#[derive(Clone, Debug)]
pub struct Caller<'a> {
    pub session: SessionId,
    /// The session's user.
    pub user: &'a Arc<str>,
    /// What the session may do beyond what its namespaces allow to everyone.
    pub grants: Arc<[Grant]>,
    /// The session is in the group.
    pub member: bool,
}

/// A message to be published; its size was checked where it was read.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// JSON text.
    pub data: Bytes,
    /// Repeats by the same publisher with it are one publish.
    pub key: Option<String>,
}

/// Messages to be published to one group, one after the other.
#[derive(Clone, Debug)]
pub struct Publication {
    /// One, or as many as [`Service::fitting`] says.
    pub messages: Few<NewMessage>,
    /// Refused where fewer nodes would hold them, answered when that number do; the namespace's own bound holds in any case.
    pub min_copies: u8,
}

/// Does it. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    ask: Ask,
    config: Arc<Config>,
    store: Arc<dyn Store>,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("ask", &self.ask).finish_non_exhaustive()
    }
}

impl Service {
    /// `store` lists a user's sessions; the sessions themselves are read from their slots.
    pub fn new(
        ask: Ask,
        config: Arc<Config>,
        store: Arc<dyn Store>,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { ask, config, store, ledger, metrics }
    }

    /// What clients make this node hold.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// How many slots the cluster has.
    pub fn slot_count(&self) -> u16 {
        self.ask.slot_count()
    }

    /// The options of the namespace that the group is in.
    pub fn options(&self, group: &GroupName) -> NamespaceConfig {
        self.config.namespace(group.namespace())
    }

    /// How many of the messages that wait for a group go in one request, by the bytes of each; one at least.
    pub fn fitting(&self, group: &GroupName, waiting: impl IntoIterator<Item = usize>) -> usize {
        batch::fitting(waiting, &self.options(group).retention())
    }

    /// Publishes one message; see [`Service::publish`].
    pub async fn publish_one(
        &self,
        by: &By<'_>,
        group: &GroupName,
        message: NewMessage,
        min_copies: u8,
    ) -> Result<Published, Refused> {
        let publication = Publication { messages: Few::one(message), min_copies };
        let published = self.publish(by, group, publication).await;
        published.into_iter().next().unwrap_or_else(|| Err(SlotError::Unknown.into()))
    }

    /// Publishes, and counts what came of it: of each message, in their order.
    pub async fn publish(
        &self,
        by: &By<'_>,
        group: &GroupName,
        publication: Publication,
    ) -> Few<Result<Published, Refused>> {
        let bytes = publication.messages.iter().map(|message| message.data.len()).sum();
        let _held = self.ledger.hold(Account::Requests, bytes);
        let span = tracing::trace_span!("publish", %group);
        let published = self.try_publish(by, group, publication).instrument(span).await;
        for published in &published {
            self.metrics.publish_outcome(outcome(published));
        }
        published
    }

    /// Passes messages on to who follows the group now, and counts what came of it. At most once: nobody repeats it.
    pub async fn publish_ephemeral(&self, by: &By<'_>, group: &GroupName, data: Few<Bytes>) -> Result<(), Refused> {
        let count = data.len();
        let _held = self.ledger.hold(Account::Requests, data.iter().map(Bytes::len).sum());
        let passed_on = match self.publisher(by, group) {
            Ok(from) => match self.ask.of_group(group, PublishEphemeral { data, from }).await {
                Ok(Done) => Ok(()),
                Err(SlotError::Unknown) => {
                    let words = "no answer in time: it may or may not have been passed on. A repeat is another publish";
                    Err(Refused::saying(Reason::UnknownOutcome, words))
                }
                Err(error) => Err(error.into()),
            },
            Err(refused) => Err(refused),
        };
        for _ in 0..count {
            self.metrics.publish_outcome(outcome(&passed_on));
        }
        passed_on
    }

    /// Who publishes, where that is allowed.
    fn publisher(&self, by: &By<'_>, group: &GroupName) -> Result<Option<Publisher>, Refused> {
        match by {
            By::Server => Ok(None),
            By::Client(caller) => {
                access::may_publish(&self.options(group), &caller.grants, caller.member, group)?;
                Ok(Some(Publisher { session: caller.session, user: caller.user.clone() }))
            }
        }
    }

    async fn try_publish(
        &self,
        by: &By<'_>,
        group: &GroupName,
        publication: Publication,
    ) -> Few<Result<Published, Refused>> {
        let Publication { messages, min_copies } = publication;
        let count = messages.len();
        if count == 0 {
            return Few::default();
        }
        let options = self.options(group);
        let from = match self.publisher(by, group) {
            Ok(from) => from,
            Err(refused) => return iter::repeat_n(Err(refused), count).collect(),
        };
        let session = from.as_ref().map(|from| from.session);
        let new = |NewMessage { data, key }: NewMessage| entry::NewMessage {
            key: publish_key(session, key.as_deref()),
            data,
        };
        let messages = messages.into_iter().map(new).collect();
        let (retention, min_copies) = (options.retention(), options.min_copies.max(min_copies));
        let publish = Publish { messages, from, retention, min_copies };
        match self.ask.of_group(group, publish).await {
            Ok(published) if published.len() == count => {
                published.into_iter().map(|result| result.map_err(Refused::from)).collect()
            }
            // A mistake of the node that sent it, which says nothing about what was done.
            Ok(_) => iter::repeat_n(Err(SlotError::Unknown.into()), count).collect(),
            Err(error) => iter::repeat_n(Err(error.into()), count).collect(),
        }
    }

    /// Reads messages.
    pub async fn history(
        &self,
        by: &By<'_>,
        group: &GroupName,
        from: ReadFrom,
        limit: u32,
    ) -> Result<History, Refused> {
        self.check_read(by, group)?;
        let since = match from {
            ReadFrom::Oldest => None,
            ReadFrom::After(since) => Some(since),
            ReadFrom::Last => return self.last(group, limit).await,
        };
        Ok(self.ask.of_group(group, ReadHistory { since, limit }).await?)
    }

    /// Reads the last messages: the newest that have room, where they do not all have.
    async fn last(&self, group: &GroupName, limit: u32) -> Result<History, Refused> {
        let there = self.ask.of_group(group, ReadGroup).await?;
        let since = there.map(|there| Position { epoch: there.epoch, offset: there.head.saturating_sub(limit.into()) });
        let mut read = self.ask.of_group(group, ReadHistory { since, limit }).await?;
        // A page ends where it has its bytes, and the newest stand on the last one. What is published meanwhile is not waited for.
        let Some(end) = read.position else { return Ok(read) };
        while let Some(offset) = read.messages.last().map(|last| last.offset).filter(|offset| *offset < end.offset) {
            let since = Some(Position { epoch: end.epoch, offset });
            let next = self.ask.of_group(group, ReadHistory { since, limit }).await?;
            if next.messages.is_empty() || next.position.is_none_or(|position| position.epoch != end.epoch) {
                break;
            }
            read.messages.extend(next.messages);
            let left_out = newest(&mut read.messages, limit as usize, LAST_BYTES);
            read.complete &= next.complete && !left_out;
            read.position = next.position;
        }
        Ok(read)
    }

    /// Reads who is present. A client is refused where the namespace keeps no presence; a backend finds nobody there.
    pub async fn members(
        &self,
        by: &By<'_>,
        group: &GroupName,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<MemberPage, Refused> {
        self.check_read(by, group)?;
        if matches!(by, By::Client(_)) && (group.is_private() || !self.options(group).presence.is_known()) {
            return Err(Refused::new(Reason::NoPresence).at("group"));
        }
        Ok(self.ask.of_group(group, ReadMembers { after, limit }).await?)
    }

    /// Reads about a group.
    pub async fn group(&self, group: &GroupName) -> Result<GroupInfo, Refused> {
        self.ask.of_group(group, ReadGroup).await?.ok_or_else(|| Refused::new(Reason::NoGroup))
    }

    /// How many are present in a group; nobody where there is no such group.
    pub async fn present(&self, group: &GroupName) -> Result<Present, Refused> {
        Ok(self.ask.of_group(group, ReadGroup).await?.map(|info| info.present).unwrap_or_default())
    }

    /// Takes a client out of a group's presence.
    pub async fn leave_presence(&self, group: &GroupName, seat: Seat) -> Result<(), SlotError> {
        self.ask.of_group(group, Leave { seat }).await.map(|Done| ())
    }

    /// Tells a group that a client's attributes are others, where it is present, or where it is not (`enters`) that it is.
    pub async fn update_member(&self, group: &GroupName, member: Presence, enters: bool) -> Result<(), SlotError> {
        self.ask.of_group(group, UpdateMember { member, enters }).await.map(|Done| ())
    }

    fn check_read(&self, by: &By<'_>, group: &GroupName) -> Result<(), Refused> {
        match by {
            By::Server => Ok(()),
            By::Client(caller) => {
                access::may_read(&self.options(group), &caller.grants, caller.member, group).map_err(Refused::from)
            }
        }
    }
}

/// As it is counted.
fn outcome<T>(of: &Result<T, Refused>) -> &'static str {
    match of {
        Ok(_) => "accepted",
        Err(refused) if refused.reason == Reason::UnknownOutcome => "unknown",
        Err(_) => "refused",
    }
}

/// Runs futures, at most `at_once` at a time, and gives their results in the order of the futures.
pub async fn in_order<T>(at_once: usize, futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    use futures_util::StreamExt;
    futures_util::stream::iter(futures).buffered(at_once).collect().await
}
