//! The store for more than one machine: Apache Cassandra 4.1 or later, or ScyllaDB.
//!
//! - Sessions are plain rows, read and written at LOCAL_QUORUM. Each write carries a timestamp that is made of its
//!   [`WriteVersion`], so that of two writes the later entry wins, whatever the clocks say; an end is a deletion with a
//!   timestamp above all of those. Rows go by their TTL.
//! - The map, the generations and the identity are single rows that are only ever written conditionally (SERIAL), and read
//!   at SERIAL. A conditional write without an answer has an unknown outcome, and is never sent again.
//! - It connects when it can: until then every request says why it has not.
//!
//! `config/cassandra.md` is for operators.

mod connect;
mod inspect;
mod policies;
pub mod schema;
mod statements;

use std::{fmt::Display, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use rand::RngExt;
use scylla::{
    client::session::Session,
    deserialize::row::DeserializeRow,
    response::query_result::QueryResult,
    serialize::row::SerializeRow,
    statement::{Statement, prepared::PreparedStatement},
    value::{CqlTimestamp, Row},
};
use tokio::sync::watch;
use uuid::Uuid;

pub use self::{
    connect::connect,
    inspect::{Check, checks, checks_before_making, generations, identity, replication, stored_map},
};
use self::{connect::unavailable, statements::Statements};
use super::{MapChange, Store, StoreError, WriteVersion, rows};
use crate::{
    clock,
    config::StoreConfig,
    id::{Generation, NodeId, SessionId},
    logic::{entry::SessionRecord, map::ClusterMap},
    tasks::Tasks,
};

/// Between attempts to connect.
const AGAIN: Duration = Duration::from_secs(1);
/// The key of the tables with one row.
const KEY: &str = "cluster";
/// A write timestamp is the term times 2^32 plus the index. Neither wraps: while a slot has a copy its index grows, and
/// when all are lost its term does.
const INDEX_BITS: u32 = 32;
/// An end wins over every write of a session. In microseconds since 1970 this lies in 2025: ScyllaDB refuses timestamps of
/// the future.
const END_TIMESTAMP: i64 = 1_750_000_000_000_000;
/// Above a row's expiry, which the record has to the millisecond: Cassandra counts in whole seconds, and may be early.
const TTL_MARGIN_S: u64 = 2;
/// Rows live no longer than this after they were last written: Cassandra's older formats end in 2038.
const LONGEST_TTL_S: u64 = 5 * 365 * 24 * 3_600;
/// Rows of a user's sessions that are looked at together.
const LOOK_UPS: usize = 16;
/// Ids in a page at most.
const PAGE: usize = 1_000;

/// See the module.
#[expect(missing_debug_implementations, reason = "holds a driver session")]
pub struct CassandraStore {
    /// Nothing until the first attempt to connect has ended.
    link: watch::Receiver<Option<Link>>,
    tasks: Tasks,
}

/// Whether there is a connection.
#[derive(Clone)]
enum Link {
    Up(Arc<Connected>),
    /// The last error.
    Down(StoreError),
}

struct Connected {
    session: Session,
    statements: Statements,
    store_id: Uuid,
}

impl CassandraStore {
    /// Begins to connect, and returns at once.
    pub fn open(config: &StoreConfig, cluster_name: &str) -> Arc<Self> {
        let (sender, link) = watch::channel(None);
        let tasks = Tasks::new();
        let (config, cluster_name) = (config.clone(), cluster_name.to_owned());
        tasks.spawn_detached("connect to the store", async move {
            loop {
                match Connected::make(&config, &cluster_name).await {
                    Ok(connected) => {
                        tracing::info!(store = %connected.store_id, "connected to the store");
                        sender.send_replace(Some(Link::Up(Arc::new(connected))));
                        // From here on the driver keeps the connections.
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "not connected to the store");
                        sender.send_replace(Some(Link::Down(error)));
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        Arc::new(Self { link, tasks })
    }

    /// Waits for the first attempt only. Whoever calls bounds the time.
    async fn connected(&self) -> Result<Arc<Connected>, StoreError> {
        let mut link = self.link.clone();
        let link = link.wait_for(Option::is_some).await.map(|link| link.clone());
        match link {
            Ok(Some(Link::Up(connected))) => Ok(connected),
            Ok(Some(Link::Down(error))) => Err(error),
            // The task that connects has ended.
            Ok(None) | Err(_) => Err(StoreError::Unavailable("the node stops".to_owned())),
        }
    }
}

impl Drop for CassandraStore {
    fn drop(&mut self) {
        // Ends the attempts to connect.
        self.tasks.stop();
    }
}

impl Connected {
    async fn make(config: &StoreConfig, cluster_name: &str) -> Result<Self, StoreError> {
        let session = connect(config).await?;
        let cassandra = &config.cassandra;
        let version = schema::version(&session, cassandra).await?;
        if version < schema::known_version() && cassandra.create_schema {
            let tell = |what: &str| tracing::info!(what, "making what the store lacks");
            schema::migrate(&session, cassandra, &tell).await?;
        } else {
            schema::fits(version, cassandra)?;
        }
        let statements = Statements::prepare(&session, cassandra).await?;
        let store_id = identify(&session, &statements, &cassandra.keyspace, cluster_name).await?;
        Ok(Self { session, statements, store_id })
    }

    async fn execute(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult, StoreError> {
        self.session.execute_unpaged(statement, values).await.map_err(|error| unavailable(&error))
    }

    async fn generation(&self, node: &NodeId) -> Result<Option<Generation>, StoreError> {
        let result = self.execute(&self.statements.generation, (node.as_str(),)).await?;
        first::<(i64,)>(result)?.map(|(generation,)| u64::try_from(generation).map_err(corrupt)).transpose()
    }

    async fn map(&self) -> Result<Option<ClusterMap>, StoreError> {
        let result = self.execute(&self.statements.map, (KEY,)).await?;
        let Some((version, content)) = first::<(i64, Vec<u8>)>(result)? else {
            return Ok(None);
        };
        let map = rows::decode_map(&content)?;
        if i64::try_from(map.version) != Ok(version) {
            return Err(StoreError::Corrupt(format!(
                "the row of the cluster map says version {version}, its content {}",
                map.version
            )));
        }
        Ok(Some(map))
    }

    /// Whether the session's own row says that it is this user's.
    async fn is_of_user(&self, session: Uuid, user: &str) -> Result<bool, StoreError> {
        let result = self.execute(&self.statements.session_user, (session,)).await?;
        Ok(first::<(Option<String>,)>(result)?.is_some_and(|(found,)| found.as_deref() == Some(user)))
    }
}

/// Which cluster's tables these are: settled by the first node that comes.
async fn identify(
    session: &Session,
    statements: &Statements,
    keyspace: &str,
    cluster_name: &str,
) -> Result<Uuid, StoreError> {
    for _ in 0..10 {
        let found = session.execute_unpaged(&statements.identity, (KEY,)).await.map_err(|error| unavailable(&error))?;
        if let Some((store_id, owner)) = first::<(Uuid, String)>(found)? {
            if owner != cluster_name {
                return Err(StoreError::Refused(format!(
                    "keyspace {keyspace} belongs to cluster {owner:?}, and this node to {cluster_name:?} (cluster.name): \
                     give each cluster a keyspace of its own (store.cassandra.keyspace)"
                )));
            }
            return Ok(store_id);
        }
        let made = session.execute_unpaged(&statements.make_identity, (KEY, Uuid::new_v4(), cluster_name)).await;
        if let Err(error) = made {
            tracing::debug!(%error, "the outcome of naming the store is unknown: reading it");
        }
    }
    Err(StoreError::Unavailable("it neither takes nor gives this cluster's identity".to_owned()))
}

/// Asks what is not asked often enough to be prepared.
async fn query(
    session: &Session,
    statement: impl Into<Statement>,
    values: impl SerializeRow,
) -> Result<QueryResult, StoreError> {
    session.query_unpaged(statement, values).await.map_err(|error| unavailable(&error))
}

/// The first row, if any.
fn first<R>(result: QueryResult) -> Result<Option<R>, StoreError>
where
    R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
{
    result.into_rows_result().map_err(corrupt)?.maybe_first_row::<R>().map_err(corrupt)
}

/// All rows.
fn all<R>(result: QueryResult) -> Result<Vec<R>, StoreError>
where
    R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
{
    let rows = result.into_rows_result().map_err(corrupt)?;
    rows.rows::<R>().map_err(corrupt)?.collect::<Result<_, _>>().map_err(corrupt)
}

fn corrupt(error: impl Display) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

/// Whether a conditional write was applied: the first column of its answer. The others vary.
fn was_applied(result: QueryResult) -> Result<bool, StoreError> {
    let row = first::<Row>(result)?;
    let column = row.and_then(|row| row.columns.into_iter().next().flatten());
    column
        .and_then(|value| value.as_boolean())
        .ok_or_else(|| StoreError::Corrupt("a conditional write was answered without its outcome".to_owned()))
}

/// The write timestamp of a put.
fn timestamp(version: WriteVersion) -> Result<i64, StoreError> {
    let of = || -> Option<i64> {
        let term = i64::try_from(version.term).ok()?.checked_mul(1 << INDEX_BITS)?;
        term.checked_add(i64::try_from(version.index).ok()?).filter(|timestamp| *timestamp < END_TIMESTAMP)
    };
    of().ok_or_else(|| {
        StoreError::Refused(format!(
            "a session's write of term {} and index {} is beyond what write timestamps can order",
            version.term, version.index
        ))
    })
}

/// Seconds until the row may go.
fn ttl_s(expires_ms: u64, now_ms: u64) -> i32 {
    let left_s = expires_ms.saturating_sub(now_ms).div_ceil(1_000).saturating_add(TTL_MARGIN_S);
    i32::try_from(left_s.min(LONGEST_TTL_S)).unwrap_or(i32::MAX)
}

fn number(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Corrupt(format!("{value} does not fit into a row")))
}

#[async_trait]
impl Store for CassandraStore {
    async fn store_id(&self) -> Result<Uuid, StoreError> {
        Ok(self.connected().await?.store_id)
    }

    /// A number whose write has an unknown outcome is left out.
    async fn next_generation(&self, node: &NodeId) -> Result<Generation, StoreError> {
        let connected = self.connected().await?;
        // Whoever calls bounds the time.
        loop {
            let last = connected.generation(node).await?;
            let next = last.unwrap_or(0) + 1;
            let Statements { first_generation, next_generation, .. } = &connected.statements;
            let written = match last {
                None => connected.execute(first_generation, (node.as_str(), number(next)?)).await,
                Some(last) => connected.execute(next_generation, (number(next)?, node.as_str(), number(last)?)).await,
            };
            match written.and_then(was_applied) {
                Ok(true) => return Ok(next),
                Ok(false) => {}
                Err(error @ (StoreError::Refused(_) | StoreError::Corrupt(_))) => return Err(error),
                Err(error) => tracing::debug!(%error, "the outcome of allotting a generation is unknown: reading it"),
            }
            // Others are at it too.
            let pause = Duration::from_millis(rand::rng().random_range(1..20));
            tokio::time::sleep(pause).await;
        }
    }

    async fn generation(&self, node: &NodeId) -> Result<Option<Generation>, StoreError> {
        self.connected().await?.generation(node).await
    }

    async fn read_map(&self) -> Result<Option<ClusterMap>, StoreError> {
        self.connected().await?.map().await
    }

    async fn change_map(&self, expected: u64, next: &ClusterMap) -> Result<MapChange, StoreError> {
        let connected = self.connected().await?;
        let content = rows::encode_map(next)?;
        let version = number(next.version)?;
        let Statements { first_map, change_map, .. } = &connected.statements;
        let written = match expected {
            0 => connected.execute(first_map, (KEY, version, content)).await,
            _ => connected.execute(change_map, (version, content, KEY, number(expected)?)).await,
        };
        match written.and_then(was_applied) {
            Ok(true) => Ok(MapChange::Applied),
            Ok(false) => Ok(MapChange::Conflict(connected.map().await?)),
            // Perhaps it was never sent; whoever asked reads in either case.
            Err(StoreError::Unavailable(reason)) => {
                tracing::debug!(reason, "a change of the cluster map has an unknown outcome");
                Ok(MapChange::Unknown)
            }
            Err(error) => Err(error),
        }
    }

    /// Both rows at once. Where one of them alone is written, nobody was told that the session is stored: a user's row
    /// without the session's is skipped when it is read, and the write is repeated or ended by whoever asked for it.
    async fn put_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError> {
        let connected = self.connected().await?;
        let (timestamp, ttl_s) = (timestamp(version)?, ttl_s(record.expires_ms, clock::wall_ms()));
        let (row, expires_at) = (rows::encode_session(record)?, CqlTimestamp(number(record.expires_ms)?));
        let Statements { put_session, put_session_of_user, .. } = &connected.statements;
        let id = record.id.0;
        let put = connected.execute(put_session, (id, record.user.as_str(), expires_at, row, timestamp, ttl_s));
        let listed = async {
            match record.user.as_str() {
                "" => Ok(()),
                user => connected.execute(put_session_of_user, (user, id, timestamp, ttl_s)).await.map(|_| ()),
            }
        };
        tokio::try_join!(put, listed).map(|_| ())
    }

    async fn end_session(&self, record: &SessionRecord, _version: WriteVersion) -> Result<(), StoreError> {
        let connected = self.connected().await?;
        let Statements { end_session, end_session_of_user, .. } = &connected.statements;
        let id = record.id.0;
        let ended = connected.execute(end_session, (END_TIMESTAMP, id));
        let listed = async {
            match record.user.as_str() {
                "" => Ok(()),
                user => connected.execute(end_session_of_user, (END_TIMESTAMP, user, id)).await.map(|_| ()),
            }
        };
        tokio::try_join!(ended, listed).map(|_| ())
    }

    async fn session(&self, session: SessionId, now_ms: u64) -> Result<Option<SessionRecord>, StoreError> {
        let connected = self.connected().await?;
        let result = connected.execute(&connected.statements.session, (session.0,)).await?;
        let Some((Some(row),)) = first::<(Option<Vec<u8>>,)>(result)? else {
            return Ok(None);
        };
        let record = rows::decode_session(&row)?;
        Ok((record.expires_ms > now_ms).then_some(record))
    }

    async fn sessions_of_user(
        &self,
        user: &str,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, StoreError> {
        let connected = self.connected().await?;
        let limit = limit.min(PAGE);
        let (mut found, mut after) = (Vec::new(), after.map(|session| session.0));
        // An empty name is no partition key.
        while !user.is_empty() && found.len() < limit {
            let missing = limit - found.len();
            let page = i32::try_from(missing).unwrap_or(i32::MAX);
            let Statements { sessions_of_user, sessions_of_user_after, .. } = &connected.statements;
            let result = match after {
                None => connected.execute(sessions_of_user, (user, page)).await?,
                Some(after) => connected.execute(sessions_of_user_after, (user, after, page)).await?,
            };
            let listed: Vec<Uuid> = all::<(Uuid,)>(result)?.into_iter().map(|(session,)| session).collect();
            let is_last = listed.len() < missing;
            after = listed.last().copied().or(after);
            let checks = stream::iter(listed).map(|session| {
                let connected = &connected;
                async move { Ok::<_, StoreError>((session, connected.is_of_user(session, user).await?)) }
            });
            let checked: Vec<(Uuid, bool)> = checks.buffered(LOOK_UPS).try_collect().await?;
            found.extend(checked.into_iter().filter(|(_, is)| *is).map(|(session, _)| SessionId(session)));
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// Asks for a row at LOCAL_QUORUM: one node that answers is not enough. The clock is that of the node that was asked.
    async fn ping(&self) -> Result<Option<u64>, StoreError> {
        let connected = self.connected().await?;
        let answer = connected.execute(&connected.statements.ping, (KEY,)).await?;
        let clock = first::<(CqlTimestamp,)>(answer)?;
        Ok(clock.and_then(|(CqlTimestamp(ms),)| u64::try_from(ms).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_follow_the_versions() {
        let of = |term, index| timestamp(WriteVersion { term, index }).unwrap();
        let ordered = [of(1, 1), of(1, 2), of(1, u64::from(u32::MAX)), of(2, 0), of(2, 1), of(300_000, 5)];
        assert!(ordered.is_sorted_by(|one, two| one < two), "{ordered:?}");
        assert!(ordered.iter().all(|timestamp| *timestamp < END_TIMESTAMP));
        assert!(timestamp(WriteVersion { term: 1 << 31, index: 0 }).is_err());
        assert!(timestamp(WriteVersion { term: u64::MAX, index: u64::MAX }).is_err());
    }

    #[test]
    fn rows_outlive_their_sessions_a_little() {
        assert_eq!(ttl_s(10_000, 10_000), 2);
        assert_eq!(ttl_s(10_000, 50_000), 2);
        assert_eq!(ttl_s(10_001, 10_000), 3);
        assert_eq!(u64::try_from(ttl_s(u64::MAX, 0)).unwrap(), LONGEST_TTL_S);
    }
}
