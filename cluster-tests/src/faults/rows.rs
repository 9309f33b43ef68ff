//! The rows of a scene's cluster, past Roost: how the store has them, and what others than Roost do to them.

use anyhow::{Context, Result, bail, ensure};
use roost::{id::Generation, logic::map::ClusterMap, store::rows};
use serde_json::json;
use uuid::Uuid;

use super::scene::Scene;
use crate::socket::Socket;

/// The rows of a scene's cluster, as the store has them.
pub(super) struct Rows {
    pub(super) keyspace: String,
}

/// The map's row: its values, as CQL writes them.
pub(super) struct StoredMap {
    pub(super) version: u64,
    content: String,
}

impl Rows {
    pub(super) fn of(scene: &Scene<'_>) -> Result<Self> {
        Ok(Self { keyspace: scene.cluster.servers()?.keyspace().to_owned() })
    }

    pub(super) async fn map(&self, scene: &Scene<'_>) -> Result<StoredMap> {
        let select = format!("SELECT version, content FROM {}.cluster_map WHERE key = 'cluster'", self.keyspace);
        let rows = scene.cassandra.cql(&select).await?;
        let [version, content] = rows.first().map(Vec::as_slice).context("there is a map")? else {
            bail!("two values were asked for: {rows:?}")
        };
        let version = number(version)?;
        Ok(StoredMap { version, content: content.clone() })
    }

    /// The map itself.
    pub(super) async fn cluster_map(&self, scene: &Scene<'_>) -> Result<ClusterMap> {
        Ok(rows::decode_map(&bytes(&self.map(scene).await?.content)?)?)
    }

    /// What tells this store from others.
    pub(super) async fn store_id(&self, scene: &Scene<'_>) -> Result<Uuid> {
        let rows = scene.cassandra.cql(&format!("SELECT store_id FROM {}.cluster_identity", self.keyspace)).await?;
        let id = rows.first().and_then(|row| row.first()).context("a store has an identity")?;
        Ok(Uuid::from_slice(&bytes(id)?)?)
    }

    /// Allots its first start to a node that never was.
    pub(super) async fn first_start(&self, scene: &Scene<'_>, node: &str) -> Result<Generation> {
        let insert = format!(
            "INSERT INTO {}.node_generations (node, generation) VALUES ('{node}', 1) IF NOT EXISTS",
            self.keyspace
        );
        let done = scene.cassandra.cql(&insert).await?;
        ensure!(done == [["0x01"]], "{node} was there already: {done:?}");
        Ok(1)
    }

    pub(super) async fn put_back(&self, scene: &Scene<'_>, map: &StoredMap, how: &str) -> Result<()> {
        let StoredMap { version, content } = map;
        let insert = format!(
            "INSERT INTO {}.cluster_map (key, version, content) VALUES ('cluster', {version}, {content}) {how}",
            self.keyspace
        );
        let done = scene.cassandra.cql(&insert).await?;
        ensure!(done.iter().all(|row| row[0] == "0x01"), "the map was not put back: {done:?}");
        Ok(())
    }

    /// Ends a session, puts its row back, and says whether it attaches then.
    pub(super) async fn session_that_was_ended(&self, scene: &Scene<'_>) -> Result<&'static str> {
        let api = scene.cluster.api(1);
        let session = api.create_session("ended").await?;
        let id = &session.id;
        let table = format!("{}.sessions", self.keyspace);
        let select = format!("SELECT user_name, expires_at, record FROM {table} WHERE session = {id}");
        let rows = scene.cassandra.cql(&select).await?;
        let values = rows.first().map(Vec::as_slice).context("a session that was answered is stored")?;
        let [_, expires_at, record] = values else { bail!("three values were asked for: {rows:?}") };
        let expires_at = number(expires_at)?;
        let ended = api.delete(&format!("/v1/sessions/{id}")).await?;
        ensure!(ended.status == 204, "ending a session: {ended:?}");
        // What marks the end goes with the rest, as it does in time.
        scene.cassandra.cql(&format!("TRUNCATE {table}")).await?;
        let insert = format!(
            "INSERT INTO {table} (session, user_name, expires_at, record) VALUES ({id}, 'ended', {expires_at}, {record})"
        );
        scene.cassandra.cql(&insert).await?;
        let mut socket = Socket::connect(&scene.cluster.url(2)).await?;
        socket.send(&json!({"type": "hello", "session": session.token})).await?;
        Ok(match socket.frame().await?["type"].as_str() {
            Some("welcome") => "it attaches again",
            _ => "it does not attach",
        })
    }
}

fn number(value: &str) -> Result<u64> {
    u64::from_str_radix(value.trim_start_matches("0x"), 16).with_context(|| format!("no number: {value}"))
}

fn bytes(value: &str) -> Result<Vec<u8>> {
    let digits = value.trim_start_matches("0x").as_bytes();
    let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.chunks(2).map(byte).collect()
}
