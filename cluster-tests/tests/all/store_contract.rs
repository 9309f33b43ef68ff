//! The contract of `store/contract.rs`, which the embedded store is held to by its unit tests, held against a real
//! Cassandra.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use cluster_tests::{cassandra::Cassandra, contract::check_store, turn, wait::wait_until};
use roost::{
    config::{StoreConfig, StoreKind},
    store::{Store, cassandra::CassandraStore},
};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn cassandra_keeps_the_contract() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cassandra = Cassandra::start(1).await?;
    let contact_points: Vec<String> = cassandra.contact_points().iter().map(ToString::to_string).collect();
    let keyspaces = AtomicU32::new(1);
    // A store without content is a keyspace of its own.
    let empty = async || {
        let mut config = StoreConfig { kind: StoreKind::Cassandra, ..StoreConfig::default() };
        config.cassandra.contact_points.clone_from(&contact_points);
        config.cassandra.replication = [("datacenter1".to_owned(), 1)].into();
        config.cassandra.keyspace = format!("contract_{}", keyspaces.fetch_add(1, Ordering::Relaxed));
        let store: Arc<dyn Store> = CassandraStore::open(&config, "contract");
        let connected = wait_until("a connection", LIMIT, async || store.store_id().await.is_ok()).await;
        connected.expect("the store answers");
        store
    };
    check_store(empty).await;
    Ok(())
}
