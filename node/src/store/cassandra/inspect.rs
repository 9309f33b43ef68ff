//! What operators ask (`roost store check`, `roost store status`). Not for nodes.

use std::collections::{BTreeMap, BTreeSet};

use scylla::{
    client::session::Session,
    statement::{Consistency, Statement},
    value::{CqlValue, Row},
};
use uuid::Uuid;

use super::{KEY, StoreError, connect::unavailable, first, schema};
use crate::config::CassandraConfig;

/// One thing that was looked at.
#[derive(Debug)]
pub struct Check {
    /// What.
    pub what: String,
    /// What is wrong with it, if so.
    pub problem: Option<String>,
}

/// Tries what a node does with each table, without changing anything.
pub async fn checks(session: &Session, config: &CassandraConfig) -> Result<Vec<Check>, StoreError> {
    let keyspace = &config.keyspace;
    let nobody = Uuid::nil();
    let mut checks = Vec::new();
    let reads: [(&str, String, Consistency); 5] = [
        (
            "cluster_identity",
            "SELECT store_id, cluster_name FROM {} WHERE key = 'nobody'".to_owned(),
            Consistency::Serial,
        ),
        ("cluster_map", "SELECT version FROM {} WHERE key = 'nobody'".to_owned(), Consistency::Serial),
        ("node_generations", "SELECT generation FROM {} WHERE node = 'nobody'".to_owned(), Consistency::Serial),
        (
            "sessions",
            format!("SELECT user_name, expires_at, record FROM {{}} WHERE session = {nobody}"),
            Consistency::LocalQuorum,
        ),
        ("sessions_by_user", "SELECT session FROM {} WHERE user_name = 'nobody'".to_owned(), Consistency::LocalQuorum),
    ];
    for (table, cql, consistency) in reads {
        let cql = cql.replace("{}", &format!("{keyspace}.{table}"));
        let mut statement = Statement::new(cql);
        statement.set_consistency(consistency);
        let problem = session.query_unpaged(statement, ()).await.err().map(|error| unavailable(&error).to_string());
        checks.push(Check { what: format!("{keyspace}.{table} is read at {consistency}"), problem });
    }
    for (table, cql) in [
        // Conditions that never hold: the right to write is needed all the same.
        ("cluster_map", "UPDATE {} SET version = 0 WHERE key = 'nobody' IF version = -1"),
        ("node_generations", "UPDATE {} SET generation = 0 WHERE node = 'nobody' IF generation = -1"),
    ] {
        let statement = Statement::new(cql.replace("{}", &format!("{keyspace}.{table}")));
        let problem = session.query_unpaged(statement, ()).await.err().map(|error| unavailable(&error).to_string());
        checks.push(Check { what: format!("{keyspace}.{table} is written conditionally"), problem });
    }
    for (table, cql) in [
        ("sessions", format!("DELETE FROM {{}} USING TIMESTAMP 1 WHERE session = {nobody}")),
        (
            "sessions_by_user",
            format!("DELETE FROM {{}} USING TIMESTAMP 1 WHERE user_name = 'nobody' AND session = {nobody}"),
        ),
    ] {
        let statement = Statement::new(cql.replace("{}", &format!("{keyspace}.{table}")));
        let problem = session.query_unpaged(statement, ()).await.err().map(|error| unavailable(&error).to_string());
        checks.push(Check { what: format!("{keyspace}.{table} is written"), problem });
    }
    Ok(checks)
}

/// Whether a node that is to make or change the tables could do so, without doing it.
pub async fn checks_before_making(session: &Session, config: &CassandraConfig) -> Result<Vec<Check>, StoreError> {
    let keyspace = &config.keyspace;
    let mut checks = Vec::new();
    let has_keyspace = schema::has_keyspace(session, keyspace).await?;
    if !has_keyspace {
        let problem = schema::replication(session, config).err().map(|error| error.to_string());
        checks.push(Check { what: format!("keyspace {keyspace} has enough nodes for its copies"), problem });
    }
    let Some(granted) = granted(session, config).await else {
        return Ok(checks);
    };
    // Whoever makes a keyspace may do everything in it.
    let needed: &[&str] = if has_keyspace { &["CREATE", "ALTER", "SELECT", "MODIFY"] } else { &["CREATE"] };
    let own = format!("<keyspace {keyspace}>");
    for right in needed {
        let holds = |resource: &str| granted.contains(&(resource.to_owned(), (*right).to_owned()));
        let has = holds("<all keyspaces>") || (has_keyspace && holds(&own));
        let on = if has_keyspace { format!("KEYSPACE {keyspace}") } else { "ALL KEYSPACES".to_owned() };
        let problem = (!has).then(|| {
            format!(
                "role {user} has no {right} right there: GRANT {right} ON {on} TO {user}, or set \
                 store.cassandra.create_schema = false and run `roost store migrate` with a role that has it",
                user = config.username
            )
        });
        checks.push(Check { what: format!("{right} on {}", on.to_lowercase()), problem });
    }
    Ok(checks)
}

/// The role's rights, as (resource, right); nothing where it may do everything, or the store does not tell.
async fn granted(session: &Session, config: &CassandraConfig) -> Option<BTreeSet<(String, String)>> {
    if config.username.is_empty() {
        return None;
    }
    let role = config.username.replace('\'', "''");
    let roles = session.query_unpaged(format!("LIST ROLES OF '{role}'"), ()).await.ok()?.into_rows_result().ok()?;
    // What the columns are depends on the store: some of those after the second are others.
    let mut roles = roles.rows::<Row>().ok()?.flatten();
    if roles.any(|row| row.columns.get(1).and_then(|value| value.as_ref()?.as_boolean()) != Some(false)) {
        return None;
    }
    let list = format!("LIST ALL PERMISSIONS OF '{role}'");
    // To a role without any it answers without rows.
    let Ok(rights) = session.query_unpaged(list, ()).await.ok()?.into_rows_result() else {
        return Some(BTreeSet::new());
    };
    let text = |value: Option<CqlValue>| value.and_then(CqlValue::into_string);
    let rights = rights.rows::<Row>().ok()?.flatten().filter_map(|row| {
        let mut last = row.columns.into_iter().rev();
        let (right, resource) = (text(last.next()?)?, text(last.next()?)?);
        Some((resource, right))
    });
    Some(rights.collect())
}

/// The store's id and the name of the cluster that it belongs to.
pub async fn identity(session: &Session, config: &CassandraConfig) -> Result<Option<(Uuid, String)>, StoreError> {
    let cql = format!("SELECT store_id, cluster_name FROM {}.cluster_identity WHERE key = ?", config.keyspace);
    first(session.query_unpaged(cql, (KEY,)).await.map_err(|error| unavailable(&error))?)
}

/// The keyspace's replication, as the store describes it; nothing where there is no such keyspace.
pub async fn replication(session: &Session, keyspace: &str) -> Result<Option<String>, StoreError> {
    let mut query = Statement::new("SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?");
    query.set_consistency(Consistency::LocalOne);
    let found = session.query_unpaged(query, (keyspace,)).await.map_err(|error| unavailable(&error))?;
    let options: Option<(BTreeMap<String, String>,)> = first(found)?;
    Ok(options.map(|(options,)| {
        let options = options
            .iter()
            .map(|(key, value)| format!("{key} {}", value.rsplit_once('.').map_or(value.as_str(), |(_, class)| class)));
        options.collect::<Vec<_>>().join(", ")
    }))
}

/// All nodes that ever started, with their latest generation. Few rows: one for each name.
pub async fn generations(session: &Session, config: &CassandraConfig) -> Result<Vec<(String, i64)>, StoreError> {
    let cql = format!("SELECT node, generation FROM {}.node_generations", config.keyspace);
    let found = session.query_unpaged(cql, ()).await.map_err(|error| unavailable(&error))?;
    let rows = found.into_rows_result().map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let rows = rows.rows::<(String, i64)>().map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let mut generations: Vec<(String, i64)> = rows.flatten().collect();
    generations.sort();
    Ok(generations)
}

/// The row of the cluster map.
pub async fn stored_map(session: &Session, config: &CassandraConfig) -> Result<Option<Vec<u8>>, StoreError> {
    let mut query = Statement::new(format!("SELECT content FROM {}.cluster_map WHERE key = ?", config.keyspace));
    query.set_consistency(Consistency::Serial);
    let found: Option<(Vec<u8>,)> =
        first(session.query_unpaged(query, (KEY,)).await.map_err(|error| unavailable(&error))?)?;
    Ok(found.map(|(content,)| content))
}
