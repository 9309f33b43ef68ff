//! What the edge does for clients and backends alike, each thing once: who may do it, under which options of the
//! namespace, what is asked of the primary, and what its answer means. The socket and HTTP only decode and encode.

mod publish_key;
mod sessions;

use std::{fmt, future::Future, sync::Arc};

use bytes::Bytes;
use tracing::Instrument;

use self::publish_key::publish_key;
pub use self::sessions::SessionsOfUser;
use super::{
    ask::Ask,
    door::{access, reasons::Refused},
};
use crate::{
    config::{Config, NamespaceConfig},
    id::{GroupName, Position, SessionId},
    logic::{
        entry::{Grant, Publisher},
        request::{GroupInfo, History, MemberPage, Publish, Published, ReadGroup, ReadHistory, ReadMembers},
    },
    memory::{Account, Ledger},
    metrics::Metrics,
    store::Store,
    wire::reason::Reason,
};

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
    pub user: &'a str,
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
    /// Refused where fewer nodes would hold it, answered when that number do; the namespace's own bound holds in any case.
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

    /// Publishes, and counts what came of it.
    pub async fn publish(&self, by: &By<'_>, group: &GroupName, message: NewMessage) -> Result<Published, Refused> {
        let _held = self.ledger.hold(Account::Requests, message.data.len());
        let span = tracing::trace_span!("publish", %group);
        let published = self.try_publish(by, group, message).instrument(span).await;
        self.metrics.publish_outcome(match &published {
            Ok(_) => "accepted",
            Err(refused) if refused.reason == Reason::UnknownOutcome => "unknown",
            Err(_) => "refused",
        });
        published
    }

    async fn try_publish(&self, by: &By<'_>, group: &GroupName, message: NewMessage) -> Result<Published, Refused> {
        let options = self.options(group);
        let from = match by {
            By::Server => None,
            By::Client(caller) => {
                access::may_publish(&options, &caller.grants, caller.member, group)?;
                Some(Publisher { session: caller.session, user: caller.user.to_owned() })
            }
        };
        let request = Publish {
            key: publish_key(from.as_ref().map(|from| from.session), message.key.as_deref()),
            data: message.data,
            from,
            retention: options.retention(),
            min_copies: options.min_copies.max(message.min_copies),
        };
        Ok(self.ask.of_group(group, request).await?)
    }

    /// Reads messages after `since`, or from the oldest kept.
    pub async fn history(
        &self,
        by: &By<'_>,
        group: &GroupName,
        since: Option<Position>,
        limit: u32,
    ) -> Result<History, Refused> {
        self.check_read(by, group)?;
        Ok(self.ask.of_group(group, ReadHistory { since, limit }).await?)
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
        if matches!(by, By::Client(_)) && (group.is_private() || !self.options(group).presence) {
            return Err(Refused::new(Reason::NoPresence).at("group"));
        }
        Ok(self.ask.of_group(group, ReadMembers { after, limit }).await?)
    }

    /// Reads about a group.
    pub async fn group(&self, group: &GroupName) -> Result<GroupInfo, Refused> {
        self.ask.of_group(group, ReadGroup).await?.ok_or_else(|| Refused::new(Reason::NoGroup))
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

/// Runs futures, at most `at_once` at a time, and gives their results in the order of the futures.
pub async fn in_order<T>(at_once: usize, futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    use futures_util::StreamExt;
    futures_util::stream::iter(futures).buffered(at_once).collect().await
}
