//! The configuration: a mirror of the file (TOML, `ROOST_…` overrides, unknown keys refused) and what it means.
//!
//! Later wins: the defaults below, then the file, then the environment: `ROOST_SECTION__KEY`, all in capitals, with two
//! underscores between the parts (`ROOST_LIMITS__IDLE_S=60`, `ROOST_NAMESPACES__CHAT__PRESENCE=false`; a list is separated
//! by commas or written as in TOML). All problems are found before any is reported. `config/node.toml` explains every key
//! and is held equal to the defaults by a test.

mod check;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
mod load;
mod network;
mod presence;
mod shared;

pub use check::Purpose;
pub use load::{ConfigError, Problem};
pub use network::Network;
pub use presence::PresenceMode;
pub use shared::{SharedSettings, differences};

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::logic::{entry::Retention, session::WhenFull};

/// The whole file. Times end in `_ms` or `_s`, sizes in `_bytes`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What only this node has.
    pub node: NodeConfig,
    /// What all nodes of the cluster share; a node that differs is refused.
    pub cluster: ClusterConfig,
    /// Certificates for the mesh.
    pub tls: TlsConfig,
    /// Where sessions and the map are kept.
    pub store: StoreConfig,
    /// API keys and the keyring.
    pub auth: AuthConfig,
    /// Tokens that backends make themselves.
    pub jwt: JwtConfig,
    /// A session's life.
    pub session: SessionConfig,
    /// Bounds, each with a metric.
    pub limits: LimitsConfig,
    /// How fast failures are noticed.
    pub timing: TimingConfig,
    /// What groups do, by the part of their name before the first `:`. `default` is for groups without a listed namespace.
    pub namespaces: BTreeMap<String, NamespaceConfig>,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// This node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Its name; must be in its certificate.
    pub id: String,
    /// Where clients and the API are served (TCP).
    pub http_listen: SocketAddr,
    /// What other nodes' people should open to reach `http_listen`; made from it where empty.
    pub http_advertise: String,
    /// Where the mesh listens (UDP).
    pub peer_listen: SocketAddr,
    /// What the others dial; `peer_listen` where empty.
    pub peer_advertise: String,
    /// Availability zone: copies go to different ones.
    pub zone: String,
    /// PEM files: what clients are shown over TLS, and its key; plain HTTP where empty.
    pub http_tls_cert: PathBuf,
    pub http_tls_key: PathBuf,
    /// Addresses and networks of proxies in front of this node, which are believed whom they speak for.
    pub proxies: Vec<String>,
    /// Where they say it.
    pub proxy_header: ProxyHeader,
    /// A runtime that runs no task for this time ends the process; 0: never.
    pub watchdog_ms: u64,
}

/// What all nodes share.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Nodes of another cluster name are not listened to.
    pub name: String,
    /// Peers to start from: `host:port`, resolved again and again.
    pub seeds: Vec<String>,
    /// Partitions; fixed when the cluster is created.
    pub slots: u16,
    /// How many nodes hold each slot.
    pub copies: u8,
}

/// Certificates for the mesh, PEM files.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The cluster's CA.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// The private key of the certificate, as PEM.
    pub key: PathBuf,
}

/// Where sessions and the map are kept.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// `embedded`: a file of one machine; `cassandra`: Apache Cassandra or ScyllaDB.
    pub kind: StoreKind,
    /// The embedded store's file.
    pub path: PathBuf,
    /// A request without an answer after this time has failed; the wait for its turn is part of that.
    pub request_timeout_ms: u64,
    /// Requests about sessions that are under way at once, from this node.
    pub max_in_flight: usize,
    /// Requests about sessions that wait for their turn; past it they are refused at once.
    pub max_queue: usize,
    /// So many failures in a row, and requests about sessions are refused at once.
    pub breaker_failures: u32,
    /// Between the attempts to find out whether that is over.
    pub breaker_open_ms: u64,
    /// The Cassandra- or Scylla-compatible store.
    pub cassandra: CassandraConfig,
}

/// How to reach Cassandra or ScyllaDB, and what to make there.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CassandraConfig {
    /// Some of its nodes, `host:port`; it names the others.
    pub contact_points: Vec<String>,
    /// The datacenter to use; may be empty where there is one only.
    pub local_datacenter: String,
    /// Where the tables are.
    pub keyspace: String,
    /// Copies by datacenter, for when Roost makes the keyspace; empty: three in the local one.
    pub replication: BTreeMap<String, u8>,
    /// Whether a starting node may make and change the tables.
    pub create_schema: bool,
    /// For password authentication; empty: none.
    pub username: String,
    /// For password authentication.
    pub password: String,
    /// The CA of its nodes' certificates, PEM; set: TLS.
    pub tls_ca: PathBuf,
    /// A client certificate, where it asks for one.
    pub tls_cert: PathBuf,
    /// The client certificate's key.
    pub tls_key: PathBuf,
    /// Connections to each of its nodes.
    pub connections_per_node: usize,
    /// ScyllaDB: connections to each shard, instead of `connections_per_node`; 0: not.
    pub connections_per_shard: usize,
    /// A connection that is not made by then is given up.
    pub connect_timeout_ms: u64,
    /// Between the signs of life on a silent connection; without an answer for as long it is closed.
    pub keep_alive_ms: u64,
    /// How often a request that may be repeated without harm is sent to another of its nodes.
    pub retries: u32,
}

impl std::fmt::Debug for CassandraConfig {
    /// Without the password: configurations end up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CassandraConfig")
            .field("contact_points", &self.contact_points)
            .field("keyspace", &self.keyspace)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Where a proxy says whom it speaks for. One is believed, since a proxy that writes one of them passes on what a client says in another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyHeader {
    /// The header that most write.
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
    /// Before all else on a connection, versions 1 and 2.
    ProxyProtocol,
}

/// The kind of store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A redb file.
    #[default]
    Embedded,
    /// Cassandra or ScyllaDB.
    Cassandra,
}

/// API keys and the keyring.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Keys for the HTTP API, at least 16 characters each (`roost dev` excepted).
    pub api_keys: Vec<String>,
    /// The file with the token keys (`roost keys new`).
    pub keyring: PathBuf,
}

/// Tokens that backends make themselves: JWTs, and whose signatures count. Without any key none is taken.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtConfig {
    /// Secrets for HS256, HS384 and HS512, by the `kid` of the tokens that they sign.
    pub secrets: BTreeMap<String, String>,
    /// Files with public keys, PEM, for RS256, ES256 and EdDSA, by the `kid` of the tokens that they verify.
    pub public_keys: BTreeMap<String, PathBuf>,
    /// Where the public keys are that change; empty: nowhere.
    pub jwks_url: String,
    /// The CA of that URL's certificate, PEM; the machine's own ones where empty.
    pub jwks_ca: PathBuf,
    /// Between two looks at it.
    pub jwks_refresh_s: u64,
    /// An answer that has not come by then does not come. A client whose key is not known waits for that long at most.
    pub jwks_timeout_ms: u64,
    /// Must be among the `aud` of a token; empty: any may be.
    pub audience: String,
    /// Must be the `iss` of a token; empty: any may be.
    pub issuer: String,
    /// How far the clocks of those that make tokens may be apart from this cluster's.
    pub leeway_s: u64,
}

impl JwtConfig {
    /// Whether there is anything by which a token could be verified.
    pub fn has_keys(&self) -> bool {
        !self.secrets.is_empty() || !self.public_keys.is_empty() || !self.jwks_url.is_empty()
    }
}

impl std::fmt::Debug for JwtConfig {
    /// Without the secrets: configurations end up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtConfig")
            .field("secrets", &self.secrets.keys().collect::<Vec<_>>())
            .field("public_keys", &self.public_keys)
            .field("jwks_url", &self.jwks_url)
            .field("audience", &self.audience)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// A session's life.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// A session ends this time after its creation, unless it is created with another `ttl_s`.
    pub ttl_s: u64,
    /// A session ends when it is neither attached nor used for this time.
    pub idle_ttl_s: u64,
    /// A client stays present for this time after its socket drops. A session that is ephemeral is over after that of its last.
    pub resume_grace_s: u64,
    /// Clients (tabs, devices) that a session may have at once, on all nodes.
    pub clients_max: u16,
    /// What becomes of one more.
    pub when_full: WhenFull,
    /// A session leaves the memory when it is detached for this time; the store keeps it. An empty group that nobody
    /// follows is forgotten after the same time, at least a minute.
    pub memory_ttl_s: u64,
    /// A client without a session gets one that is ephemeral.
    pub anonymous: bool,
    /// The cookie's name.
    pub cookie_name: String,
    /// `Secure` on the cookie: for when TLS ends in front of Roost.
    pub cookie_secure: bool,
    /// `SameSite`: `lax`, `strict` or `none`.
    pub cookie_same_site: String,
    /// Origins that browsers may connect from (`https://app.example.com`); empty: the same host only; `*`: any.
    pub allowed_origins: Vec<String>,
}

/// Bounds, each with a metric.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// A connection on which no whole head of a request has come by then is closed, and one that was idle for as long
    /// since its last answer.
    pub request_head_ms: u64,
    /// A connection that has not said hello by then is closed.
    pub handshake_ms: u64,
    /// The client is asked to send something at least once in this time, and pinged where it does not.
    pub heartbeat_s: u64,
    /// A connection that is silent for this time is closed.
    pub idle_s: u64,
    /// The largest frame and message from a client.
    pub frame_bytes: usize,
    /// The largest `data` of a publish.
    pub message_bytes: usize,
    /// The largest body of an HTTP request.
    pub body_bytes: usize,
    /// Groups of one client, those of its session among them.
    pub groups_per_session: usize,
    /// Operations per second of one connection, averaged; `operations_burst` at once.
    pub operations_per_s: u32,
    /// See `operations_per_s`.
    pub operations_burst: u32,
    /// Connections accepted per second by this node; past it 503 with Retry-After.
    pub connects_per_s: u32,
    /// Connections at once on this node.
    pub connections: usize,
    /// Connections at once from one address, requests over HTTP among them.
    pub connections_per_address: usize,
    /// Bytes waiting for one connection; past it the connection is closed. Messages of namespaces that let a slow consumer
    /// lag take half of it at most.
    pub outbox_bytes: usize,
    /// Bytes of replays that this node holds at once; past it they take turns.
    pub replay_bytes: usize,
    /// Pages of replays that wait for their turn; past it new clients get 503 with Retry-After.
    pub replay_queue: usize,
    /// What clients may make this node hold, in bytes; 0: half of what the machine or its control group has. From 80 % on the
    /// oldest messages go, past it new ones are refused.
    pub memory_bytes: usize,
    /// Bytes a second that one session may publish, averaged; sessions without a user share theirs by address.
    pub publish_bytes_per_s: u32,
    /// Groups a second that one session may begin, averaged; sessions without a user share theirs by address.
    pub new_groups_per_s: u32,
    /// A client that reads nothing of what is sent to it for this time is closed, over HTTP too.
    pub write_timeout_ms: u64,
    /// A request's deadline on its way through the cluster.
    pub request_ms: u64,
    /// Requests of one connection that are under way at once.
    pub requests_in_flight: usize,
    /// Publishes of one slot waiting for their commit; past it `busy`.
    pub slot_queue: usize,
    /// Bytes waiting for one peer; past it the link is reset.
    pub peer_queue_bytes: usize,
    /// What a node gossips of its group membership.
    pub gossip_groups_bytes: usize,
}

/// How fast failures are noticed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingConfig {
    /// Between gossip rounds.
    pub gossip_interval_ms: u64,
    /// QUIC keep-alive between nodes; four missed and the link is down.
    pub keep_alive_ms: u64,
    /// A replica that does not acknowledge within this time is dropped from its in-sync sets.
    pub replica_timeout_ms: u64,
    /// Nothing ends by the wall clock of a node that differs by more than this from most of what it hears, nodes and store.
    pub clock_skew_max_ms: u64,
    /// Clients are told `stale` when a group's primary was last heard this time ago.
    pub stale_after_ms: u64,
    /// Between looks at who is alive, on which the steward acts. A node that hears fewer than half of those in the cluster map
    /// changes the map only after 17 of them.
    pub steward_interval_ms: u64,
}

/// Who may do something with the groups of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allow {
    /// Every session may.
    Any,
    /// Sessions that have joined the group (for publishing).
    Members,
    /// Sessions with a grant that matches.
    Granted,
    /// No client; only the server over HTTP.
    Nobody,
}

/// What becomes of a client that does not read the messages of a namespace as fast as they come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlowConsumer {
    /// Its connection is closed; it comes back and resumes.
    Close,
    /// It keeps its connection, and is caught up from the history when it has read what waits for it.
    Lag,
}

/// What the groups of a namespace do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamespaceConfig {
    /// Messages kept for each group.
    pub history_messages: u32,
    /// Bytes of data kept for each group.
    pub history_bytes: u32,
    /// How long messages are kept.
    pub history_age_s: u64,
    /// How long a publish is recognised by its key: a repeat within this time is not made again.
    pub idempotency_s: u64,
    /// Publishes of each group that are recognised at most, the latest ones.
    pub idempotency_publishes: u32,
    /// Whether it is known who is there, and how that is told.
    pub presence: PresenceMode,
    /// Who may join, read history and members. A session with grants needs a matching one in any case.
    pub join: Allow,
    /// Who may publish. A session with grants needs a matching one in any case.
    pub publish: Allow,
    /// Fewer copies than this and publishes are refused; one that is under way is answered when this number have it.
    pub min_copies: u8,
    /// What becomes of clients that do not keep up.
    pub slow_consumer: SlowConsumer,
    /// Whether messages are compressed for the WebSocket clients that offer it.
    pub compress: bool,
}

/// Logging, to standard error.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace` or `off`, or by part: `roost=debug,warn`.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: NodeConfig::default(),
            cluster: ClusterConfig::default(),
            tls: TlsConfig::default(),
            store: StoreConfig::default(),
            auth: AuthConfig::default(),
            jwt: JwtConfig::default(),
            session: SessionConfig::default(),
            limits: LimitsConfig::default(),
            timing: TimingConfig::default(),
            namespaces: BTreeMap::from([("default".to_owned(), NamespaceConfig::default())]),
            log: LogConfig::default(),
        }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            id: "n1".to_owned(),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            http_advertise: String::new(),
            peer_listen: SocketAddr::from(([127, 0, 0, 1], 7000)),
            peer_advertise: String::new(),
            zone: String::new(),
            http_tls_cert: PathBuf::new(),
            http_tls_key: PathBuf::new(),
            proxies: Vec::new(),
            proxy_header: ProxyHeader::default(),
            watchdog_ms: 30_000,
        }
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { name: "roost".to_owned(), seeds: Vec::new(), slots: 1024, copies: 2 }
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self { ca: "certs/ca.pem".into(), cert: "certs/node.pem".into(), key: "certs/node.key".into() }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            path: "data/roost.redb".into(),
            request_timeout_ms: 4_000,
            max_in_flight: 256,
            max_queue: 4_096,
            breaker_failures: 10,
            breaker_open_ms: 1_000,
            cassandra: CassandraConfig::default(),
        }
    }
}

impl Default for CassandraConfig {
    fn default() -> Self {
        Self {
            contact_points: vec!["127.0.0.1:9042".to_owned()],
            local_datacenter: String::new(),
            keyspace: "roost".to_owned(),
            replication: BTreeMap::new(),
            create_schema: true,
            username: String::new(),
            password: String::new(),
            tls_ca: PathBuf::new(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            connections_per_node: 2,
            connections_per_shard: 0,
            connect_timeout_ms: 3_000,
            keep_alive_ms: 2_000,
            retries: 2,
        }
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { api_keys: Vec::new(), keyring: "keyring.toml".into() }
    }
}

impl std::fmt::Debug for AuthConfig {
    /// Without the API keys: configurations end up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("api_keys", &format_args!("{} keys", self.api_keys.len()))
            .field("keyring", &self.keyring)
            .finish()
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            secrets: BTreeMap::new(),
            public_keys: BTreeMap::new(),
            jwks_url: String::new(),
            jwks_ca: PathBuf::new(),
            jwks_refresh_s: 300,
            jwks_timeout_ms: 3_000,
            audience: String::new(),
            issuer: String::new(),
            leeway_s: 10,
        }
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            ttl_s: 30 * 24 * 3600,
            idle_ttl_s: 7 * 24 * 3600,
            resume_grace_s: 30,
            clients_max: 16,
            when_full: WhenFull::Displace,
            memory_ttl_s: 600,
            anonymous: false,
            cookie_name: "session_id".to_owned(),
            cookie_secure: false,
            cookie_same_site: "lax".to_owned(),
            allowed_origins: Vec::new(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            request_head_ms: 15_000,
            handshake_ms: 10_000,
            heartbeat_s: 30,
            idle_s: 120,
            frame_bytes: 128 << 10,
            message_bytes: 64 << 10,
            body_bytes: 1 << 20,
            groups_per_session: 256,
            operations_per_s: 1_000,
            operations_burst: 5_000,
            connects_per_s: 2_000,
            connections: 15_000,
            connections_per_address: 10_000,
            outbox_bytes: 4 << 20,
            replay_bytes: 64 << 20,
            replay_queue: 65_536,
            memory_bytes: 0,
            publish_bytes_per_s: 8 << 20,
            new_groups_per_s: 100,
            write_timeout_ms: 30_000,
            request_ms: 5_000,
            requests_in_flight: 256,
            slot_queue: 4_096,
            peer_queue_bytes: 64 << 20,
            gossip_groups_bytes: 32 << 10,
        }
    }
}

impl Default for TimingConfig {
    fn default() -> Self {
        Self {
            gossip_interval_ms: 200,
            keep_alive_ms: 250,
            replica_timeout_ms: 1_000,
            clock_skew_max_ms: 10_000,
            stale_after_ms: 1_500,
            steward_interval_ms: 200,
        }
    }
}

impl Default for NamespaceConfig {
    fn default() -> Self {
        Self {
            history_messages: 1_000,
            history_bytes: 1 << 20,
            history_age_s: 600,
            idempotency_s: 300,
            idempotency_publishes: 100_000,
            presence: PresenceMode::Each,
            join: Allow::Any,
            publish: Allow::Members,
            min_copies: 1,
            slow_consumer: SlowConsumer::Close,
            compress: false,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: "text".to_owned() }
    }
}

impl NamespaceConfig {
    /// What is written into each publish.
    pub fn retention(&self) -> Retention {
        Retention {
            messages: self.history_messages,
            bytes: self.history_bytes,
            age_ms: self.history_age_s.saturating_mul(1_000),
            window_ms: self.idempotency_s.saturating_mul(1_000),
            window_publishes: self.idempotency_publishes,
        }
    }
}

impl Config {
    /// Reads the file (or nothing but the defaults), applies the environment and checks the whole for `roost serve`.
    ///
    /// # Errors
    /// All problems at once, each with its source and key.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        load::load(path, std::env::vars_os())
    }

    /// Checks what the types cannot say: ranges, forms, and how settings must relate.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(&self, purpose: Purpose) -> Result<(), ConfigError> {
        let problems = check::problems(self, purpose);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    /// The settings that all nodes of a cluster must share.
    pub fn shared_digest(&self) -> SharedSettings {
        SharedSettings::of(self)
    }

    /// Whether any namespace has messages compressed.
    pub fn compresses(&self) -> bool {
        self.namespaces.values().any(|options| options.compress)
    }

    /// The options of the groups with this namespace.
    pub fn namespace(&self, namespace: &str) -> NamespaceConfig {
        self.namespaces.get(namespace).or_else(|| self.namespaces.get("default")).cloned().unwrap_or_default()
    }
}
