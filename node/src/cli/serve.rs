//! `roost serve`: one node, until a signal ends it.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{logging, print};
use crate::{
    config::{Config, StoreKind},
    id::NodeId,
    node::{Node, NodeInputs},
    open_files::OpenFiles,
    peer::tls::Identity,
    store::{Store, cassandra::CassandraStore, embedded::EmbeddedStore},
    tasks::Tasks,
    token::Keyring,
    watchdog::Watchdog,
};

/// Arguments of `roost serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// The configuration (config/node.toml is an example); the defaults and the environment unless given
    #[arg(long, short)]
    pub config: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT, which drain the node first; a second one ends it at once.
///
/// # Errors
/// Where the node does not start, or stops by itself; the text says why and how to mend it.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    logging::init(&config.log)?;
    anyhow::ensure!(
        !config.auth.api_keys.is_empty(),
        "auth.api_keys is empty: nobody could call the API. Add a key of at least 16 characters"
    );
    let watched = Tasks::new();
    let _watchdog = Watchdog::start(config.node.watchdog_ms, &watched).context("the watchdog could not be started")?;
    let id = NodeId::parse(&config.node.id).map_err(|error| anyhow::anyhow!("node.id: {error}"))?;
    let identity = Identity::load(&config.tls, &id)?;
    let keyring = Keyring::load(&config.auth.keyring).with_context(|| {
        format!("auth.keyring = {}: `roost keys new --file {0}` makes one", config.auth.keyring.display())
    })?;
    let store: Arc<dyn Store> = match config.store.kind {
        StoreKind::Embedded => EmbeddedStore::open(&config.store.path)?,
        StoreKind::Cassandra => CassandraStore::open(&config.store, &config.cluster.name),
    };
    let files = OpenFiles::of_process()?;
    let inputs = NodeInputs { config: Arc::new(config), identity, keyring: Arc::new(keyring), store, files };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // It may wait for the store for as long as that takes.
    let node = tokio::select! {
        node = Box::pin(Node::start(inputs)) => node?,
        _ = terminate.recv() => return stopped_early(),
        _ = interrupt.recv() => return stopped_early(),
    };
    // A node whose output nobody takes (a full disk) serves all the same.
    let _ = print::line(format_args!(
        "node {} serves clients at http://{} and peers at {}",
        node.member(),
        node.http(),
        node.peer()
    ));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = node.drain_asked().cancelled() => {}
        () = node.failed().cancelled() => {
            node.shut_down().await;
            anyhow::bail!("the node has stopped by itself: the log above says why");
        }
    }
    print::note(format_args!("draining: slots and clients go to the other nodes; a second signal ends this at once"));
    tokio::select! {
        () = node.drain() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    node.shut_down().await;
    Ok(())
}

fn stopped_early() -> anyhow::Result<()> {
    print::note(format_args!("stopped before it had started"));
    Ok(())
}
