//! The statements, prepared once for each connection.

use std::sync::Arc;

use scylla::{
    client::session::Session,
    errors::{DbError, PrepareError, RequestAttemptError},
    policies::{load_balancing::LoadBalancingPolicy, retry::FallthroughRetryPolicy},
    statement::{Consistency, SerialConsistency, prepared::PreparedStatement},
};

use super::{StoreError, policies::OneCoordinator};
use crate::config::CassandraConfig;

pub(super) struct Statements {
    pub(super) make_identity: PreparedStatement,
    pub(super) identity: PreparedStatement,
    pub(super) first_generation: PreparedStatement,
    pub(super) next_generation: PreparedStatement,
    pub(super) generation: PreparedStatement,
    pub(super) first_map: PreparedStatement,
    pub(super) change_map: PreparedStatement,
    pub(super) map: PreparedStatement,
    pub(super) put_session: PreparedStatement,
    pub(super) put_session_of_user: PreparedStatement,
    pub(super) end_session: PreparedStatement,
    pub(super) end_session_of_user: PreparedStatement,
    pub(super) session: PreparedStatement,
    pub(super) session_user: PreparedStatement,
    pub(super) sessions_of_user: PreparedStatement,
    pub(super) sessions_of_user_after: PreparedStatement,
    pub(super) ping: PreparedStatement,
}

impl Statements {
    pub(super) async fn prepare(session: &Session, config: &CassandraConfig) -> Result<Self, StoreError> {
        let prepare = Prepare { session, keyspace: &config.keyspace, one_coordinator: OneCoordinator::policy() };
        Ok(Self {
            make_identity: prepare
                .conditional("INSERT INTO {}.cluster_identity (key, store_id, cluster_name) VALUES (?, ?, ?) IF NOT EXISTS")
                .await?,
            identity: prepare.serial("SELECT store_id, cluster_name FROM {}.cluster_identity WHERE key = ?").await?,
            first_generation: prepare
                .conditional("INSERT INTO {}.node_generations (node, generation) VALUES (?, ?) IF NOT EXISTS")
                .await?,
            next_generation: prepare
                .conditional("UPDATE {}.node_generations SET generation = ? WHERE node = ? IF generation = ?")
                .await?,
            generation: prepare.serial("SELECT generation FROM {}.node_generations WHERE node = ?").await?,
            first_map: prepare
                .conditional("INSERT INTO {}.cluster_map (key, version, content) VALUES (?, ?, ?) IF NOT EXISTS")
                .await?,
            change_map: prepare
                .conditional("UPDATE {}.cluster_map SET version = ?, content = ? WHERE key = ? IF version = ?")
                .await?,
            map: prepare.serial("SELECT version, content FROM {}.cluster_map WHERE key = ?").await?,
            put_session: prepare
                .plain(
                    "INSERT INTO {}.sessions (session, user_name, expires_at, record) VALUES (?, ?, ?, ?) USING TIMESTAMP ? \
                     AND TTL ?",
                )
                .await?,
            put_session_of_user: prepare
                .plain("INSERT INTO {}.sessions_by_user (user_name, session) VALUES (?, ?) USING TIMESTAMP ? AND TTL ?")
                .await?,
            end_session: prepare.plain("DELETE FROM {}.sessions USING TIMESTAMP ? WHERE session = ?").await?,
            end_session_of_user: prepare
                .plain("DELETE FROM {}.sessions_by_user USING TIMESTAMP ? WHERE user_name = ? AND session = ?")
                .await?,
            session: prepare.plain("SELECT record FROM {}.sessions WHERE session = ?").await?,
            session_user: prepare.plain("SELECT user_name FROM {}.sessions WHERE session = ?").await?,
            sessions_of_user: prepare
                .plain("SELECT session FROM {}.sessions_by_user WHERE user_name = ? LIMIT ?")
                .await?,
            sessions_of_user_after: prepare
                .plain("SELECT session FROM {}.sessions_by_user WHERE user_name = ? AND session > ? LIMIT ?")
                .await?,
            ping: prepare.plain("SELECT toTimestamp(now()) FROM {}.cluster_identity WHERE key = ?").await?,
        })
    }
}

struct Prepare<'a> {
    session: &'a Session,
    keyspace: &'a str,
    one_coordinator: Arc<dyn LoadBalancingPolicy>,
}

impl Prepare<'_> {
    /// May be sent again without harm: reads, and writes with a timestamp of their own.
    async fn plain(&self, cql: &str) -> Result<PreparedStatement, StoreError> {
        let mut statement = self.prepare(cql).await?;
        statement.set_is_idempotent(true);
        Ok(statement)
    }

    /// Never sent again by the driver: without an answer its outcome is unknown.
    async fn conditional(&self, cql: &str) -> Result<PreparedStatement, StoreError> {
        let mut statement = self.prepare(cql).await?;
        statement.set_is_idempotent(false);
        statement.set_serial_consistency(Some(SerialConsistency::Serial));
        statement.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy)));
        statement.set_load_balancing_policy(Some(Arc::clone(&self.one_coordinator)));
        Ok(statement)
    }

    /// Sees every conditional write that was answered, and settles those that were not.
    async fn serial(&self, cql: &str) -> Result<PreparedStatement, StoreError> {
        let mut statement = self.prepare(cql).await?;
        statement.set_is_idempotent(true);
        statement.set_consistency(Consistency::Serial);
        statement.set_load_balancing_policy(Some(Arc::clone(&self.one_coordinator)));
        Ok(statement)
    }

    async fn prepare(&self, cql: &str) -> Result<PreparedStatement, StoreError> {
        let cql = cql.replace("{}", self.keyspace);
        self.session.prepare(cql.as_str()).await.map_err(|error| match error {
            PrepareError::AllAttemptsFailed {
                first_attempt:
                    RequestAttemptError::DbError(
                        error @ (DbError::Invalid | DbError::SyntaxError | DbError::Unauthorized),
                        message,
                    ),
            } => {
                StoreError::Refused(format!("{error}: {message} (of: {cql}). `roost store check` says what is missing"))
            }
            error => StoreError::Unavailable(error.to_string()),
        })
    }
}
