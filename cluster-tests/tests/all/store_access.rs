//! Who gets into the store, and what they are told who do not: TLS, passwords, rights on tables, versions of tables. The
//! library and the program, against a real Cassandra with everything locked.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    cassandra::Cassandra,
    contract::sample_session,
    ports::free_block,
    process::binary,
    servers::{ServerSettings, Servers},
    turn,
    wait::{wait_for, wait_until},
};
use roost::{
    clock,
    config::{StoreConfig, StoreKind},
    id::{Member, NodeId},
    logic::map::ClusterMap,
    store::{MapChange, Store, StoreError, WriteVersion, cassandra, cassandra::CassandraStore},
};
use tokio::{process::Command, sync::Mutex};
use uuid::Uuid;

/// One test at a time: a Cassandra of three nodes wants the machine for itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

const LIMIT: Duration = Duration::from_secs(40);
/// So many nodes that start at the same moment.
const AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_ca_a_password_and_the_rights_gets_in() -> Result<()> {
    let _turn = turn::take(module_path!());
    let _machine = MACHINE.lock().await;
    let cassandra = Cassandra::secure(1).await?;
    works(&cassandra).await.context("with everything right")?;
    strangers(&cassandra).await.context("strangers")?;
    roles(&cassandra).await.context("roles")?;
    tables_by_hand(&cassandra).await.context("tables by hand")?;
    newer_tables(&cassandra).await.context("newer tables")?;
    programs(&cassandra).await.context("roost serve")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_at_once_make_one_schema() -> Result<()> {
    let _turn = turn::take(module_path!());
    let _machine = MACHINE.lock().await;
    let cassandra = Cassandra::start(3).await?;
    let config = plain(&cassandra, "at_once");
    let stores: Vec<_> = (0..AT_ONCE).map(|_| CassandraStore::open(&config, "test")).collect();
    let mut ids = Vec::new();
    for store in &stores {
        ids.push(opened(store).await?);
    }
    ids.dedup();
    ensure!(ids.len() == 1, "the nodes see different stores: {ids:?}");
    for (number, store) in stores.iter().enumerate() {
        let record = sample_session(number as u128 + 1, "ann");
        store.put_session(&record, WriteVersion { term: 1, index: 1 }).await?;
        let other = &stores[(number + 1) % AT_ONCE];
        ensure!(other.session(record.id, 0).await?.is_some(), "the session of node {number} is not there for the next");
    }
    let admin = cassandra::connect(&config).await?;
    admin.await_schema_agreement().await?;
    for what in cassandra::checks(&admin, &config.cassandra).await? {
        ensure!(what.problem.is_none(), "{}: {:?}", what.what, what.problem);
    }
    let log = cassandra.log()?;
    let errors: Vec<&str> =
        log.lines().filter(|line| line.contains(" ERROR ") || line.contains("ID mismatch")).collect();
    ensure!(errors.is_empty(), "Cassandra complains: {errors:#?}");
    Ok(())
}

/// The configuration of a node that anybody lets in.
fn plain(cassandra: &Cassandra, keyspace: &str) -> StoreConfig {
    let mut config = StoreConfig { kind: StoreKind::Cassandra, ..StoreConfig::default() };
    config.cassandra.contact_points = cassandra.contact_points().iter().map(ToString::to_string).collect();
    config.cassandra.keyspace = keyspace.to_owned();
    config.cassandra.replication = [("datacenter1".to_owned(), cassandra.nodes() as u8)].into();
    config
}

/// With the CA, and a role whose password is its name.
fn as_role(cassandra: &Cassandra, keyspace: &str, role: &str) -> StoreConfig {
    let mut config = plain(cassandra, keyspace);
    config.cassandra.tls_ca = cassandra.ca();
    role.clone_into(&mut config.cassandra.username);
    role.clone_into(&mut config.cassandra.password);
    config
}

fn superuser(cassandra: &Cassandra, keyspace: &str) -> StoreConfig {
    as_role(cassandra, keyspace, "cassandra")
}

/// Waits for the store; an error at once where waiting does not help.
async fn opened(store: &CassandraStore) -> Result<Uuid> {
    let mut last = None;
    let id = wait_for("the store", LIMIT, async || match store.store_id().await {
        Err(error @ StoreError::Unavailable(_)) => {
            last = Some(error);
            None
        }
        other => Some(other),
    })
    .await;
    Ok(id.with_context(|| format!("{last:?}"))?.0?)
}

/// Opens it as a starting node does: so far that it has a generation.
async fn started(config: &StoreConfig) -> Result<Arc<CassandraStore>> {
    let store = CassandraStore::open(config, "test");
    opened(&store).await?;
    store.next_generation(&n1()?).await?;
    Ok(store)
}

fn n1() -> Result<NodeId> {
    NodeId::parse("n1").map_err(anyhow::Error::msg)
}

/// What a node that is refused is told.
async fn refused(config: &StoreConfig, texts: &[&str]) -> Result<()> {
    let Err(error) = started(config).await else { bail!("it was let in, instead of: {texts:?}") };
    ensure!(
        matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Refused(_))),
        "it would be waited for: {error:#}"
    );
    let said = format!("{error:#}");
    ensure!(texts.iter().all(|text| said.contains(text)), "no {texts:?} in: {said}");
    Ok(())
}

/// `roost store …`, with its exit code and all that it said.
async fn program(config: &StoreConfig, command: &str) -> Result<(Option<i32>, String)> {
    let cassandra = &config.cassandra;
    let copies: Vec<_> = cassandra.replication.iter().map(|(name, copies)| format!("{name} = {copies}")).collect();
    let output = Command::new(binary()?)
        .args(["store", command])
        .env_clear()
        .env("ROOST_CLUSTER__NAME", "test")
        .env("ROOST_STORE__KIND", "cassandra")
        .envs(
            [
                ("CONTACT_POINTS", format!("{:?}", cassandra.contact_points)),
                ("KEYSPACE", cassandra.keyspace.clone()),
                ("REPLICATION", format!("{{ {} }}", copies.join(", "))),
                ("CREATE_SCHEMA", cassandra.create_schema.to_string()),
                ("USERNAME", cassandra.username.clone()),
                ("PASSWORD", cassandra.password.clone()),
                ("TLS_CA", cassandra.tls_ca.display().to_string()),
            ]
            .map(|(key, value)| (format!("ROOST_STORE__CASSANDRA__{key}"), value)),
        )
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, output).await.with_context(|| format!("roost store {command}"))??;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    Ok((output.status.code(), said))
}

/// `roost store …` ends with that exit code and says all of it.
async fn says(config: &StoreConfig, command: &str, code: i32, texts: &[&str]) -> Result<()> {
    let (ended, said) = program(config, command).await?;
    ensure!(
        ended == Some(code) && texts.iter().all(|text| said.contains(text)),
        "roost store {command} ended with {ended:?} instead of {code}, or without {texts:?}:\n{said}"
    );
    Ok(())
}

async fn run(config: &StoreConfig, statements: &[&str]) -> Result<()> {
    let admin = cassandra::connect(config).await?;
    for statement in statements {
        admin.query_unpaged(*statement, ()).await.with_context(|| (*statement).to_owned())?;
    }
    Ok(())
}

async fn works(cassandra: &Cassandra) -> Result<()> {
    let config = superuser(cassandra, "whole");
    let store = started(&config).await?;
    let (record, version) = (sample_session(1, "ann"), WriteVersion { term: 1, index: 1 });
    store.put_session(&record, version).await?;
    ensure!(store.session(record.id, 0).await? == Some(record.clone()), "it reads what was written");
    ensure!(store.sessions_of_user("ann", None, 10).await? == [record.id], "it lists what was written");
    store.end_session(&record, WriteVersion { term: 1, index: 2 }).await?;
    ensure!(store.session(record.id, 0).await?.is_none(), "what was ended is gone");
    ensure!(store.sessions_of_user("ann", None, 10).await?.is_empty(), "what was ended is listed nowhere");
    let map = ClusterMap::first(&Member { node: n1()?, generation: 1 }, 16);
    ensure!(store.change_map(0, &map).await? == MapChange::Applied, "the map is changed");
    ensure!(store.read_map().await? == Some(map), "the map is read");
    says(&config, "check", 0, &["right  it belongs to cluster test"]).await?;
    says(&config, "status", 0, &["belongs to      cluster test", "n1  generation 1", "version 1, 16 slots"]).await
}

async fn strangers(cassandra: &Cassandra) -> Result<()> {
    let right = superuser(cassandra, "whole");
    let with = |change: fn(&mut StoreConfig)| {
        let mut config = right.clone();
        change(&mut config);
        config
    };
    let folder = tempfile::tempdir()?;
    let other = folder.path().join("certs");
    let made = Command::new(binary()?).args(["certs", "init", "--dir"]).arg(&other).output().await?;
    ensure!(made.status.success(), "roost certs init: {}", String::from_utf8_lossy(&made.stderr));
    let mut other_ca = right.clone();
    other_ca.cassandra.tls_ca = other.join("ca.pem");
    for (config, texts) in [
        (
            with(|config| config.cassandra.password = "wrong".to_owned()),
            ["store.cassandra.username and password", "incorrect"],
        ),
        (
            with(|config| config.cassandra.username = "unknown".to_owned()),
            ["store.cassandra.username and password", "incorrect"],
        ),
        (
            with(|config| config.cassandra.password.clear()),
            ["the password is empty", "ROOST_STORE__CASSANDRA__PASSWORD"],
        ),
        (
            with(|config| {
                config.cassandra.username.clear();
                config.cassandra.password.clear();
            }),
            ["it wants a password", "ROOST_STORE__CASSANDRA__PASSWORD"],
        ),
        (with(|config| config.cassandra.tls_ca.clear()), ["it wants TLS", "store.cassandra.tls_ca"]),
        (other_ca, ["not issued by the CA", "store.cassandra.tls_ca"]),
    ] {
        refused(&config, &texts).await?;
        says(&config, "check", 1, &texts).await?;
    }
    Ok(())
}

/// What config/cassandra.md says about roles.
async fn roles(cassandra: &Cassandra) -> Result<()> {
    let admin = superuser(cassandra, "locked");
    let make = |role: &str| format!("CREATE ROLE {role} WITH LOGIN = true AND PASSWORD = '{role}'");
    let grant = |right: &str, on: &str, role: &str| format!("GRANT {right} ON {on} TO {role}");
    let keyspace = "KEYSPACE locked";
    // Grants are remembered for seconds, the lack of them too: each role does one thing.
    let roles = ["nobody", "migrator", "roost", "reader", "maker"];
    for statement in roles.map(make) {
        run(&admin, &[&statement]).await?;
    }
    let mut nobody = as_role(cassandra, "locked", "nobody");
    let schema = ["CREATE permission", "create_schema = false", "roost store migrate"];
    refused(&nobody, &schema).await.context("a role without rights, nothing there")?;
    says(&nobody, "migrate", 1, &schema).await?;
    says(&nobody, "check", 1, &["WRONG", "CREATE"]).await?;
    nobody.cassandra.create_schema = false;
    refused(&nobody, &["has no tables of Roost", "roost store migrate"]).await?;
    says(&nobody, "check", 1, &["has no tables of Roost", "roost store migrate"]).await?;

    // 1. Another role makes the tables.
    run(&admin, &[&grant("CREATE", "ALL KEYSPACES", "migrator")]).await?;
    let migrator = as_role(cassandra, "locked", "migrator");
    for _ in 0..2 {
        says(&migrator, "migrate", 0, &["tables of version 1"]).await?;
    }
    refused(&nobody, &["SELECT permission", "lacks a right"]).await.context("a role that may not even read")?;
    let mut nodes = as_role(cassandra, "locked", "roost");
    nodes.cassandra.create_schema = false;
    run(&admin, &[&grant("SELECT", keyspace, "roost"), &grant("MODIFY", keyspace, "roost")]).await?;
    run(&admin, &[&grant("SELECT", keyspace, "reader")]).await?;
    let store = started(&nodes).await.context("the grants of the document")?;
    store.put_session(&sample_session(1, "ann"), WriteVersion { term: 1, index: 1 }).await?;
    says(&nodes, "check", 0, &["right  locked.sessions is written"]).await?;
    says(&nodes, "status", 0, &["belongs to      cluster test"]).await?;

    let reader = StoreConfig { cassandra: as_role(cassandra, "locked", "reader").cassandra, ..nodes.clone() };
    refused(&reader, &["lacks a right", "MODIFY permission", "node_generations"])
        .await
        .context("a role that may read")?;
    says(&reader, "check", 1, &["WRONG  locked.sessions is written", "MODIFY permission", "things are wrong"]).await?;

    // 2. The nodes make tables in a keyspace that is there.
    let copies = "replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}";
    run(&admin, &[&format!("CREATE KEYSPACE made WITH {copies}")]).await?;
    for right in ["CREATE", "ALTER", "SELECT", "MODIFY"] {
        run(&admin, &[&grant(right, "KEYSPACE made", "maker")]).await?;
    }
    let maker = as_role(cassandra, "made", "maker");
    says(&maker, "check", 0, &["the next node that starts makes them", "right  MODIFY"]).await?;
    started(&maker).await.context("a role that may make tables")?;
    says(&maker, "check", 0, &["right  made.cluster_map is written conditionally"]).await
}

async fn tables_by_hand(cassandra: &Cassandra) -> Result<()> {
    let mut config = superuser(cassandra, "by_hand");
    let (code, script) = program(&config, "schema").await?;
    ensure!(code == Some(0), "{script}");
    let statements: String = script.lines().filter(|line| !line.starts_with("--")).collect();
    let statements: Vec<&str> = statements.split_terminator(';').collect();
    ensure!(statements.len() > 6, "the script is whole: {statements:?}");
    for _ in 0..2 {
        run(&config, &statements).await.context("the script may be run twice")?;
    }
    config.cassandra.create_schema = false;
    says(&config, "check", 0, &["right  by_hand.sessions is written"]).await?;
    started(&config).await.map(drop)
}

async fn newer_tables(cassandra: &Cassandra) -> Result<()> {
    let config = superuser(cassandra, "whole");
    let at = clock::wall_ms();
    run(&config, &[&format!("INSERT INTO whole.schema_version (version, applied_at) VALUES (99, {at})")]).await?;
    let texts = ["version 99", "newer roost"];
    refused(&config, &texts).await?;
    says(&config, "check", 1, &texts).await?;
    says(&config, "migrate", 1, &texts).await?;
    says(&config, "status", 0, &["tables          version 99, this roost knows 1"]).await
}

/// The whole program ends where waiting is in vain, and waits where it is not.
async fn programs(cassandra: &Cassandra) -> Result<()> {
    let ca = cassandra.ca().display().to_string();
    let settings = ServerSettings::over(cassandra, "locked")
        .with("store.cassandra.tls_ca", ca)
        .with("store.cassandra.username", "roost")
        .with("store.cassandra.password", "roost")
        .with("store.cassandra.create_schema", "false");
    // The tables belong to the cluster of the library's nodes.
    let mut settings = ServerSettings { cluster: "test".to_owned(), ..settings };
    let mut nodes = Servers::prepare(settings.clone(), 1).await?;
    nodes.start(0).await.context("a role with the grants of the document")?;
    nodes.shut_down().await?;
    for (key, value, text) in [
        ("store.cassandra.password", "wrong", "it refuses store.cassandra.username and password"),
        ("store.cassandra.tls_ca", "certs/ca.pem", "not issued by the CA"),
        ("store.cassandra.tls_ca", "", "it wants TLS"),
        ("store.cassandra.keyspace", "nothing", "has no tables of Roost"),
        ("cluster.name", "other", "belongs to cluster \"test\""),
    ] {
        nodes.configure(0, key, value);
        nodes.spawn(0)?;
        let status = nodes.ended(0).await?;
        let end = nodes.last_words(0);
        ensure!(status.code() == Some(1) && end.contains(text), "{key} = {value}: {status}, no {text:?} in:\n{end}");
        nodes.restore(0);
    }
    settings.contact_points = vec![([127, 0, 0, 1], free_block(1)?).into()];
    let mut nodes = Servers::prepare(settings, 1).await?;
    nodes.spawn(0)?;
    wait_until("a node to wait for its store", LIMIT, async || {
        nodes.log(0).matches("the store is needed to start").count() > 1
    })
    .await
    .with_context(|| nodes.last_words(0))?;
    ensure!(nodes.is_running(0), "it does not wait: {}", nodes.last_words(0));
    nodes.kill(0).await
}
