//! What operators ask (`roost store check`, `roost store status`). Not for nodes.

use std::collections::{BTreeMap, BTreeSet};

use scylla::{
    client::session::Session,
    statement::{Consistency, Statement},
    value::{CqlValue, Row},
};
use uuid::Uuid;

use super::{KEY, StoreError, all, first, query, rows, schema};
use crate::{config::CassandraConfig, logic::map::ClusterMap};

/// One thing that was looked at.
#[derive(Debug)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// What is wrong with it, if so.
    pub problem: Option<String>,
}

/// Tries what a node does with each table, without changing anything.
pub async fn checks(session: &Session, config: &CassandraConfig) -> Result<Vec<Check>, StoreError> {
    let nobody = Uuid::nil();
    // Rows that are never there; conditions that never hold, and deletions before all time: the rights are needed all the
    // same.
    let (serial, quorum) = (Some(Consistency::Serial), Some(Consistency::LocalQuorum));
    let tries: [(&str, &str, String, Option<Consistency>); 9] = [
        ("cluster_identity", "read", "SELECT store_id, cluster_name FROM {} WHERE key = 'nobody'".to_owned(), serial),
        ("cluster_map", "read", "SELECT version FROM {} WHERE key = 'nobody'".to_owned(), serial),
        ("node_generations", "read", "SELECT generation FROM {} WHERE node = 'nobody'".to_owned(), serial),
        (
            "sessions",
            "read",
            format!("SELECT user_name, expires_at, record FROM {{}} WHERE session = {nobody}"),
            quorum,
        ),
        ("sessions_by_user", "read", "SELECT session FROM {} WHERE user_name = 'nobody'".to_owned(), quorum),
        (
            "cluster_map",
            "written conditionally",
            "UPDATE {} SET version = 0 WHERE key = 'nobody' IF version = -1".to_owned(),
            None,
        ),
        (
            "node_generations",
            "written conditionally",
            "UPDATE {} SET generation = 0 WHERE node = 'nobody' IF generation = -1".to_owned(),
            None,
        ),
        ("sessions", "written", format!("DELETE FROM {{}} USING TIMESTAMP 1 WHERE session = {nobody}"), None),
        (
            "sessions_by_user",
            "written",
            format!("DELETE FROM {{}} USING TIMESTAMP 1 WHERE user_name = 'nobody' AND session = {nobody}"),
            None,
        ),
    ];
    let mut checks = Vec::new();
    for (table, how, cql, consistency) in tries {
        let table = format!("{}.{table}", config.keyspace);
        let mut statement = Statement::new(cql.replace("{}", &table));
        if let Some(consistency) = consistency {
            statement.set_consistency(consistency);
        }
        let problem = query(session, statement, ()).await.err().map(|error| error.to_string());
        let at = consistency.map(|consistency| format!(" at {consistency}")).unwrap_or_default();
        checks.push(Check { what: format!("{table} is {how}{at}"), problem });
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
    first(query(session, cql, (KEY,)).await?)
}

/// The keyspace's replication, as the store describes it; nothing where there is no such keyspace.
pub async fn replication(session: &Session, keyspace: &str) -> Result<Option<String>, StoreError> {
    let mut keyspaces = Statement::new("SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?");
    keyspaces.set_consistency(Consistency::LocalOne);
    let options: Option<(BTreeMap<String, String>,)> = first(query(session, keyspaces, (keyspace,)).await?)?;
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
    let mut generations: Vec<(String, i64)> = all(query(session, cql, ()).await?)?;
    generations.sort();
    Ok(generations)
}

/// The cluster map.
pub async fn stored_map(session: &Session, config: &CassandraConfig) -> Result<Option<ClusterMap>, StoreError> {
    let mut map = Statement::new(format!("SELECT content FROM {}.cluster_map WHERE key = ?", config.keyspace));
    map.set_consistency(Consistency::Serial);
    let found: Option<(Vec<u8>,)> = first(query(session, map, (KEY,)).await?)?;
    found.map(|(content,)| rows::decode_map(&content)).transpose()
}
