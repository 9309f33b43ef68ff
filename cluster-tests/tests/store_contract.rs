//! The contract of `store/contract.rs`, held against a real Cassandra, and what operators ask of one.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use roost::{
    config::{StoreConfig, StoreKind},
    store::{Store, cassandra::CassandraStore, contract::check_store},
};

#[tokio::test(flavor = "multi_thread")]
async fn cassandra_keeps_the_contract() {
    let point = std::env::var("ROOST_TEST_CASSANDRA").unwrap();
    let keyspaces = AtomicU32::new(0);
    let base: u32 = std::process::id();
    check_store(async || {
        let mut config = StoreConfig { kind: StoreKind::Cassandra, ..StoreConfig::default() };
        config.cassandra.contact_points = vec![point.clone()];
        config.cassandra.replication = [("datacenter1".to_owned(), 1)].into();
        config.cassandra.keyspace = format!("contract_{base}_{}", keyspaces.fetch_add(1, Ordering::SeqCst));
        let store: Arc<dyn Store> = CassandraStore::open(&config, "test");
        for _ in 0..600 {
            match store.store_id().await {
                Ok(_) => return store,
                Err(error) => eprintln!("{error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("not connected");
    })
    .await;
}
