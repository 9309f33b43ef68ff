//! The tables, as migrations: a numbered list of statements, each of which may be run again without harm.
//!
//! Several nodes may start at once. Statements that change the schema race in Cassandra when they arrive at different
//! coordinators, also `IF NOT EXISTS` ones (each makes a table with an id of its own). So all Roost nodes send them to the
//! same one, the lowest host id that is up, which carries them out one after the other.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use scylla::{
    client::{execution_profile::ExecutionProfileHandle, session::Session},
    errors::{DbError, ExecutionError, RequestAttemptError},
    policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy},
    statement::{Consistency, Statement},
    value::{CqlTimestamp, Row},
};

use super::{StoreError, all, connect::unavailable, first, query};
use crate::{clock, config::CassandraConfig};

/// Making a table takes seconds on a busy cluster.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Copies where the configuration does not say.
const COPIES: u8 = 3;

struct Migration {
    version: i32,
    statements: &'static [&'static str],
}

/// `{keyspace}` is replaced. Never change one that was released: add another.
const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        // Which migrations were applied.
        "CREATE TABLE IF NOT EXISTS {keyspace}.schema_version (version int PRIMARY KEY, applied_at timestamp)",
        // One row: which cluster this is.
        "CREATE TABLE IF NOT EXISTS {keyspace}.cluster_identity (key text PRIMARY KEY, store_id uuid, cluster_name text)",
        // One row: who owns which slot. Written conditionally only.
        "CREATE TABLE IF NOT EXISTS {keyspace}.cluster_map (key text PRIMARY KEY, version bigint, content blob)",
        // Written conditionally only.
        "CREATE TABLE IF NOT EXISTS {keyspace}.node_generations (node text PRIMARY KEY, generation bigint)",
        // Rows are overwritten and read one by one. Not time-window compaction: the write timestamps are no times.
        "CREATE TABLE IF NOT EXISTS {keyspace}.sessions (session uuid PRIMARY KEY, user_name text, expires_at timestamp, \
         record blob) WITH compaction = {'class': 'LeveledCompactionStrategy'}",
        // Which sessions a user may have; the session's own row decides, so that its tombstones may go early.
        "CREATE TABLE IF NOT EXISTS {keyspace}.sessions_by_user (user_name text, session uuid, PRIMARY KEY (user_name, \
         session)) WITH CLUSTERING ORDER BY (session ASC) AND compaction = {'class': 'LeveledCompactionStrategy'} AND \
         gc_grace_seconds = 86400",
    ],
}];

/// The version that this program works with.
pub fn known_version() -> i32 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// What an operator without Roost's help would run, statement by statement.
pub fn script(config: &CassandraConfig) -> Vec<String> {
    let mut replication = config.replication.clone();
    if replication.is_empty() {
        let datacenter = if config.local_datacenter.is_empty() { "datacenter1" } else { &config.local_datacenter };
        replication.insert(datacenter.to_owned(), COPIES);
    }
    let mut script = vec![create_keyspace(&config.keyspace, &replication, "")];
    for migration in MIGRATIONS {
        script.extend(statements(migration, &config.keyspace));
        script.push(format!(
            "INSERT INTO {}.schema_version (version, applied_at) VALUES ({}, toTimestamp(now()))",
            config.keyspace, migration.version
        ));
    }
    script
}

fn statements(migration: &Migration, keyspace: &str) -> impl Iterator<Item = String> {
    migration.statements.iter().map(move |statement| statement.replace("{keyspace}", keyspace))
}

fn create_keyspace(keyspace: &str, replication: &BTreeMap<String, u8>, options: &str) -> String {
    let copies: Vec<String> =
        replication.iter().map(|(datacenter, copies)| format!("'{datacenter}': {copies}")).collect();
    format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', {}}}{options}",
        copies.join(", ")
    )
}

/// The version of the tables that are there; 0: none.
pub async fn version(session: &Session, config: &CassandraConfig) -> Result<i32, StoreError> {
    let mut columns = Statement::new(
        "SELECT column_name FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ? AND column_name = ?",
    );
    columns.set_consistency(Consistency::LocalOne);
    let ours = (config.keyspace.as_str(), "schema_version", "version");
    if first::<Row>(query(session, columns, ours).await?)?.is_none() {
        return Ok(0);
    }
    let versions = query(session, format!("SELECT version FROM {}.schema_version", config.keyspace), ()).await;
    let versions = versions.map_err(|error| match error {
        // A table is in the schema for a moment before it can be read.
        StoreError::Corrupt(why) => StoreError::Unavailable(format!("its tables are being made ({why}): trying again")),
        error => error,
    })?;
    Ok(all::<(i32,)>(versions)?.into_iter().map(|(version,)| version).max().unwrap_or(0))
}

/// Whether this program can work with these tables.
pub fn fits(version: i32, config: &CassandraConfig) -> Result<(), StoreError> {
    let (known, keyspace) = (known_version(), &config.keyspace);
    match version {
        _ if version == known => Ok(()),
        _ if version > known => Err(StoreError::Refused(format!(
            "the tables in keyspace {keyspace} are of version {version}, made by a newer roost; this one knows {known}: \
             run that version here too"
        ))),
        0 => Err(StoreError::Refused(format!(
            "keyspace {keyspace} has no tables of Roost: run `roost store migrate` with a role that may make them, or set \
             store.cassandra.create_schema = true"
        ))),
        _ => Err(StoreError::Refused(format!(
            "the tables in keyspace {keyspace} are of version {version}, this roost needs {known}: run `roost store \
             migrate` with a role that may change them, or set store.cassandra.create_schema = true"
        ))),
    }
}

/// Makes and changes what is missing; `tell` hears each step.
pub async fn migrate(
    session: &Session,
    config: &CassandraConfig,
    tell: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), StoreError> {
    let from = version(session, config).await?;
    if from >= known_version() {
        return fits(from, config);
    }
    let state = session.get_cluster_state();
    let Some(node) = state.get_nodes_info().iter().filter(|node| node.is_connected()).min_by_key(|node| node.host_id)
    else {
        return Err(StoreError::Unavailable("none of its nodes is up".to_owned()));
    };
    let target = SingleTargetLoadBalancingPolicy::new(NodeIdentifier::Node(Arc::clone(node)), None);
    let profile = session
        .get_default_execution_profile_handle()
        .pointee_to_builder()
        .load_balancing_policy(target)
        .request_timeout(Some(TIMEOUT))
        .build()
        .into_handle();
    if !has_keyspace(session, &config.keyspace).await? {
        let replication = replication(session, config)?;
        tell(&format!("keyspace {} with copies {replication:?}", config.keyspace));
        // ScyllaDB's tablets do not take conditional writes in all its versions.
        let scylla = node.sharder().is_some();
        let plain = create_keyspace(&config.keyspace, &replication, "");
        let made = if scylla {
            let without_tablets = create_keyspace(&config.keyspace, &replication, " AND tablets = {'enabled': false}");
            match change(session, &without_tablets, &profile).await {
                // Before it had any.
                Err(StoreError::Refused(_)) => change(session, &plain, &profile).await,
                made => made,
            }
        } else {
            change(session, &plain, &profile).await
        };
        made?;
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > from) {
        tell(&format!("tables of version {}", migration.version));
        for statement in statements(migration, &config.keyspace) {
            change(session, &statement, &profile).await?;
        }
        let insert = format!("INSERT INTO {}.schema_version (version, applied_at) VALUES (?, ?)", config.keyspace);
        let now_ms = i64::try_from(clock::wall_ms()).unwrap_or(i64::MAX);
        query(session, insert, (migration.version, CqlTimestamp(now_ms))).await?;
    }
    Ok(())
}

async fn change(session: &Session, cql: &str, profile: &ExecutionProfileHandle) -> Result<(), StoreError> {
    let mut statement = Statement::new(cql);
    statement.set_execution_profile_handle(Some(profile.clone()));
    match session.query_unpaged(statement, ()).await {
        Ok(_) => {}
        Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Unauthorized, message))) => {
            return Err(StoreError::Refused(format!(
                "this role may not make or change tables ({message}): grant it that, or set \
                 store.cassandra.create_schema = false and run `roost store migrate` with one that may"
            )));
        }
        Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(
            DbError::SyntaxError | DbError::Invalid | DbError::ConfigError,
            message,
        ))) => return Err(StoreError::Refused(format!("{message} (of: {cql})"))),
        Err(error) => return Err(unavailable(&error)),
    }
    session.await_schema_agreement().await.map_err(|error| {
        StoreError::Unavailable(format!("its nodes do not agree on the schema yet ({error}): trying again"))
    })?;
    Ok(())
}

pub(super) async fn has_keyspace(session: &Session, keyspace: &str) -> Result<bool, StoreError> {
    let mut keyspaces = Statement::new("SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?");
    keyspaces.set_consistency(Consistency::LocalOne);
    Ok(first::<Row>(query(session, keyspaces, (keyspace,)).await?)?.is_some())
}

/// Copies by datacenter, none with more than it has nodes: such a keyspace would not take a write.
pub(super) fn replication(session: &Session, config: &CassandraConfig) -> Result<BTreeMap<String, u8>, StoreError> {
    let mut nodes: BTreeMap<String, usize> = BTreeMap::new();
    for node in session.get_cluster_state().get_nodes_info() {
        *nodes.entry(node.datacenter.clone().unwrap_or_default()).or_default() += 1;
    }
    let mut replication = config.replication.clone();
    if replication.is_empty() {
        let only = nodes.keys().next().cloned().unwrap_or_default();
        let local = if config.local_datacenter.is_empty() { only } else { config.local_datacenter.clone() };
        replication.insert(local, COPIES);
    }
    for (datacenter, copies) in &replication {
        let Some(there) = nodes.get(datacenter).copied() else {
            return Err(StoreError::Refused(format!(
                "store.cassandra.replication names datacenter {datacenter:?}, but its nodes are in {}",
                nodes.keys().cloned().collect::<Vec<_>>().join(", ")
            )));
        };
        if there < usize::from(*copies) {
            // They may still be starting.
            return Err(StoreError::Unavailable(format!(
                "it has too few nodes: keyspace {} is to have {copies} copies in datacenter {datacenter}, where {there} are \
                 known so far: start more, or set store.cassandra.replication = {{ {datacenter} = {there} }} (fewer than \
                 three for a trial only)",
                config.keyspace,
            )));
        }
    }
    Ok(replication)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_names_the_keyspace_and_ends_with_the_version() {
        let mut config = CassandraConfig { keyspace: "chat".to_owned(), ..CassandraConfig::default() };
        let text = script(&config);
        assert_eq!(
            text[0],
            "CREATE KEYSPACE IF NOT EXISTS chat WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 3}"
        );
        assert!(text.iter().all(|statement| !statement.contains("{keyspace}") && statement.contains("chat")));
        assert!(text.last().unwrap().contains(&format!("VALUES ({}", known_version())));
        config.replication = BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]);
        assert!(script(&config)[0].contains("'a': 3, 'b': 2"));
    }

    #[test]
    fn migrations_are_in_order_and_can_be_repeated() {
        let versions: Vec<i32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=known_version()).collect::<Vec<_>>());
        for statement in MIGRATIONS.iter().flat_map(|migration| migration.statements) {
            assert!(statement.contains(" IF NOT EXISTS {keyspace}."), "{statement}");
        }
    }

    #[test]
    fn other_versions_are_refused_with_what_to_do() {
        let config = CassandraConfig::default();
        assert!(fits(known_version(), &config).is_ok());
        assert!(fits(0, &config).unwrap_err().to_string().contains("roost store migrate"));
        assert!(fits(known_version() + 1, &config).unwrap_err().to_string().contains("newer roost"));
    }
}
