//! `roost store`: the tables in Cassandra or ScyllaDB, for operators who give the nodes a role without rights on the schema.

use std::path::PathBuf;

use anyhow::{bail, ensure};
use scylla::client::session::Session;

use super::print;
use crate::{
    config::{CassandraConfig, Config, StoreKind},
    store::{
        cassandra,
        cassandra::{Check, schema},
    },
};

/// Subcommands of `roost store`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum StoreCommand {
    /// Make and change what is missing: the keyspace, the tables. Can be repeated; `create_schema` does not matter here
    Migrate(StoreArgs),
    /// Say whether a node with this configuration could use the store, and what is missing
    Check(StoreArgs),
    /// Show its nodes, the keyspace, the version of the tables, and the cluster that they belong to
    Status(StoreArgs),
    /// Print the CQL that `migrate` would run, for those who apply it by hand; does not connect
    Schema(StoreArgs),
}

/// Arguments of all of them.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct StoreArgs {
    /// The configuration of a node; the defaults and the environment unless given
    #[arg(long, short)]
    config: Option<PathBuf>,
}

pub(super) async fn run(command: StoreCommand) -> anyhow::Result<()> {
    let (StoreCommand::Migrate(args)
    | StoreCommand::Check(args)
    | StoreCommand::Status(args)
    | StoreCommand::Schema(args)) = &command;
    let config = Config::load(args.config.as_deref())?;
    ensure!(
        config.store.kind == StoreKind::Cassandra,
        "store.kind is not \"cassandra\" in this configuration: an embedded store makes what it needs by itself"
    );
    let settings = &config.store.cassandra;
    match command {
        StoreCommand::Migrate(_) => migrate(&connect(&config).await?, settings).await,
        StoreCommand::Check(_) => check(&connect(&config).await?, &config).await,
        StoreCommand::Status(_) => status(&connect(&config).await?, settings).await,
        StoreCommand::Schema(_) => print_schema(settings),
    }
}

async fn connect(config: &Config) -> anyhow::Result<Session> {
    print::note(format_args!("connecting to {}", config.store.cassandra.contact_points.join(", ")));
    Ok(cassandra::connect(&config.store).await?)
}

fn print_schema(settings: &CassandraConfig) -> anyhow::Result<()> {
    print::line(format_args!("-- ScyllaDB before 2025.4: add AND tablets = {{'enabled': false}} to the keyspace"))?;
    for statement in schema::script(settings) {
        print::line(format_args!("{statement};"))?;
    }
    Ok(())
}

async fn migrate(session: &Session, settings: &CassandraConfig) -> anyhow::Result<()> {
    let tell = |what: &str| print::note(format_args!("making {what}"));
    schema::migrate(session, settings, &tell).await?;
    print::line(format_args!("keyspace {} has tables of version {}", settings.keyspace, schema::known_version()))
}

/// Reads each table as a node would, so that a missing right or table is found before a node needs it.
async fn check(session: &Session, config: &Config) -> anyhow::Result<()> {
    let settings = &config.store.cassandra;
    let version = schema::version(session, settings).await?;
    if version < schema::known_version() && settings.create_schema {
        let wrong = tell(cassandra::checks_before_making(session, settings).await?)?;
        ensure!(wrong == 0, "no node can make the tables in keyspace {}: see above", settings.keyspace);
        return print::line(format_args!(
            "keyspace {} has {}; the next node that starts makes them of version {}",
            settings.keyspace,
            if version == 0 { "no tables of Roost yet".to_owned() } else { format!("tables of version {version}") },
            schema::known_version()
        ));
    }
    schema::fits(version, settings)?;
    let mut wrong = tell(cassandra::checks(session, settings).await?)?;
    if let Some((_, owner)) = cassandra::identity(session, settings).await? {
        if owner == config.cluster.name {
            print::line(format_args!("right  it belongs to cluster {owner}"))?;
        } else {
            wrong += 1;
            print::line(format_args!(
                "WRONG  it belongs to cluster {owner}, cluster.name is {}: give each cluster a keyspace of its own",
                config.cluster.name
            ))?;
        }
    }
    match wrong {
        0 => Ok(()),
        1 => bail!("one thing is wrong with keyspace {}: see above", settings.keyspace),
        _ => bail!("{wrong} things are wrong with keyspace {}: see above", settings.keyspace),
    }
}

/// Shows what was looked at, and says how much of it is wrong.
fn tell(checks: Vec<Check>) -> anyhow::Result<usize> {
    let mut wrong = 0;
    for check in checks {
        match check.problem {
            None => print::line(format_args!("right  {}", check.what))?,
            Some(problem) => {
                wrong += 1;
                print::line(format_args!("WRONG  {}: {problem}", check.what))?;
            }
        }
    }
    Ok(wrong)
}

async fn status(session: &Session, settings: &CassandraConfig) -> anyhow::Result<()> {
    let state = session.get_cluster_state();
    print::line(format_args!("store cluster   {}", state.cluster_name()))?;
    for node in state.get_nodes_info() {
        print::line(format_args!(
            "store node      {}  datacenter {}  rack {}  {}",
            node.address,
            node.datacenter.as_deref().unwrap_or("-"),
            node.rack.as_deref().unwrap_or("-"),
            if node.is_connected() { "connected" } else { "NOT connected" },
        ))?;
    }
    let keyspace = &settings.keyspace;
    match cassandra::replication(session, keyspace).await? {
        Some(replication) => print::line(format_args!("keyspace        {keyspace}  {replication}"))?,
        None => {
            return print::line(format_args!(
                "keyspace        {keyspace} is not there: `roost store migrate` makes it"
            ));
        }
    }
    let version = schema::version(session, settings).await?;
    print::line(format_args!("tables          version {version}, this roost knows {}", schema::known_version()))?;
    if version == 0 {
        return Ok(());
    }
    match cassandra::identity(session, settings).await? {
        Some((id, owner)) => print::line(format_args!("belongs to      cluster {owner}, store {id}"))?,
        None => print::line(format_args!("belongs to      no cluster yet"))?,
    }
    for (node, generation) in cassandra::generations(session, settings).await? {
        print::line(format_args!("node            {node}  generation {generation}"))?;
    }
    match cassandra::stored_map(session, settings).await? {
        None => print::line(format_args!("cluster map     none yet")),
        Some(map) => {
            let members: Vec<String> =
                map.members.iter().map(|(node, generation)| format!("{node}#{generation}")).collect();
            print::line(format_args!(
                "cluster map     version {}, {} slots, members {}",
                map.version,
                map.slots.len(),
                members.join(" ")
            ))
        }
    }
}
