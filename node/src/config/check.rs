//! What the types of the configuration cannot say: ranges, forms, and how settings must relate to each other.

use std::{fmt::Display, ops::RangeInclusive};

use tracing_subscriber::filter::Targets;

use super::{
    CassandraConfig, Config, JwtConfig, LimitsConfig, Network, NodeConfig, Problem, SessionConfig, StoreConfig,
    StoreKind,
};
use crate::{
    id::NodeId,
    wire::peer::{FRAME_MAX_BYTES, MESSAGE_MAX_BYTES, SESSION_GROUPS_MAX, SETTINGS_MAX_BYTES, slots_max},
};

/// What the configuration is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A real node: keys must be worth their name.
    Serve,
    /// A cluster on one machine, to try things out: short API keys are fine.
    Dev,
}

const SHORTEST_API_KEY: usize = 16;
/// The output of the shortest hash (RFC 7518, 3.2): a shorter secret is found by trying, from any one token.
const SHORTEST_JWT_SECRET: usize = 32;
/// The longest `kid`, in bytes.
const KID_MAX_BYTES: usize = 128;
/// Keys in the configuration: a token without a `kid` is held against each.
const JWT_KEYS_MAX: usize = 64;
/// Clients of one session: its slot holds them in memory, and each change of the session is told to all.
const CLIENTS_MAX: u16 = 1_000;
const DAY_S: u64 = 24 * 3_600;
/// Long enough for everyone, short enough that milliseconds of it never overflow.
const LONGEST_S: u64 = 100 * 365 * DAY_S;
/// Above any message that the limits allow, a peer's queue must still hold a few.
const SMALLEST_PEER_QUEUE_BYTES: usize = 1 << 20;
/// A few pages of any replay.
const SMALLEST_REPLAY_BYTES: usize = 1 << 20;
/// Below this a node could hold next to nothing.
const SMALLEST_MEMORY_BYTES: usize = 16 << 20;
/// The largest that a budget may be.
const LARGEST_REPLAY_BYTES: usize = 1 << 40;
/// Below what a busy group publishes while a request is repeated, a repeat could be made twice.
const FEWEST_RECOGNISED: u32 = 10_000;
/// Some 100 MB for one group.
const MOST_RECOGNISED: u32 = 1_000_000;
/// What a frame around the largest message takes.
const ENVELOPE_BYTES: usize = 2_048;

/// Everything that is wrong, with empty sources.
pub(super) fn problems(config: &Config, purpose: Purpose) -> Vec<Problem> {
    let mut found = Found(Vec::new());
    node(&mut found, &config.node);
    cluster(&mut found, config);
    files(&mut found, config);
    store(&mut found, &config.store);
    auth(&mut found, config, purpose);
    jwt(&mut found, &config.jwt, purpose);
    session(&mut found, &config.session);
    limits(&mut found, &config.limits);
    timing(&mut found, config);
    namespaces(&mut found, config);
    shared(&mut found, config);
    log(&mut found, config);
    found.0
}

struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, key: &str, message: impl Into<String>) {
        self.0.push(Problem { source: String::new(), key: key.to_owned(), message: message.into() });
    }

    fn unless(&mut self, right: bool, key: &str, message: impl FnOnce() -> String) {
        if !right {
            self.add(key, message());
        }
    }

    fn range<T: PartialOrd + Display>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        self.unless(range.contains(&value), key, || {
            format!("must be from {} to {}, it is {value}", range.start(), range.end())
        });
    }
}

fn node(found: &mut Found, node: &NodeConfig) {
    if let Err(message) = NodeId::parse(&node.id) {
        found.add("node.id", message);
    }
    if !node.http_advertise.is_empty() {
        found.unless(is_origin(&node.http_advertise), "node.http_advertise", || {
            format!("must be like http://host:8000, without a path; it is {:?}", node.http_advertise)
        });
    }
    if node.peer_advertise.is_empty() {
        found.unless(!node.peer_listen.ip().is_unspecified(), "node.peer_advertise", || {
            format!("is needed, as host:port: nobody can dial {}, on which peer_listen listens", node.peer_listen)
        });
    } else {
        found.unless(is_host_and_port(&node.peer_advertise), "node.peer_advertise", || {
            format!("must be host:port, it is {:?}", node.peer_advertise)
        });
    }
    found.unless(node.watchdog_ms == 0 || (3_000..=600_000).contains(&node.watchdog_ms), "node.watchdog_ms", || {
        format!("must be 0 (off) or from 3000 to 600000, it is {}", node.watchdog_ms)
    });
    let (cert, key) = (&node.http_tls_cert, &node.http_tls_key);
    for (name, path, other) in [("node.http_tls_cert", cert, key), ("node.http_tls_key", key, cert)] {
        found.unless(!path.as_os_str().is_empty() || other.as_os_str().is_empty(), name, || {
            format!("is needed where there is {}: a certificate and its key go together", other.display())
        });
    }
    for proxy in &node.proxies {
        if let Err(message) = Network::parse(proxy) {
            found.add("node.proxies", message);
        }
    }
    found.unless(node.zone.len() <= 64 && !node.zone.chars().any(char::is_control), "node.zone", || {
        "must have at most 64 bytes and no control characters".to_owned()
    });
}

fn cluster(found: &mut Found, config: &Config) {
    let cluster = &config.cluster;
    if NodeId::parse(&cluster.name).is_err() {
        found
            .add("cluster.name", format!("must be 1 to 64 letters, digits, '.', '_' or '-', it is {:?}", cluster.name));
    }
    for seed in &cluster.seeds {
        found.unless(is_host_and_port(seed), "cluster.seeds", || format!("each must be host:port, {seed:?} is not"));
    }
    found.range("cluster.copies", cluster.copies, 1..=9);
    let most = slots_max(cluster.copies.min(9));
    found.unless((1..=most).contains(&cluster.slots), "cluster.slots", || {
        let (copies, slots) = (cluster.copies, cluster.slots);
        format!("must be from 1 to {most} where cluster.copies is {copies}: nodes send each other the map of all slots in one frame; it is {slots}")
    });
}

fn files(found: &mut Found, config: &Config) {
    let files = [
        ("tls.ca", &config.tls.ca, "the cluster's CA (`roost certs init`)"),
        ("tls.cert", &config.tls.cert, "this node's certificate (`roost certs node NAME`)"),
        ("tls.key", &config.tls.key, "this node's key (`roost certs node NAME`)"),
        ("store.path", &config.store.path, "the embedded store"),
        ("auth.keyring", &config.auth.keyring, "the token keys (`roost keys new`)"),
    ];
    for (key, path, what) in files {
        found.unless(!path.as_os_str().is_empty(), key, || format!("must name the file with {what}"));
    }
}

fn store(found: &mut Found, store: &StoreConfig) {
    found.range("store.request_timeout_ms", store.request_timeout_ms, 100..=600_000);
    found.range("store.max_in_flight", store.max_in_flight, 1..=100_000);
    found.range("store.max_queue", store.max_queue, 1..=10_000_000);
    found.range("store.breaker_failures", store.breaker_failures, 1..=1_000_000);
    found.range("store.breaker_open_ms", store.breaker_open_ms, 10..=600_000);
    if store.kind == StoreKind::Cassandra {
        cassandra(found, &store.cassandra);
    }
}

fn cassandra(found: &mut Found, cassandra: &CassandraConfig) {
    let key = |name: &str| format!("store.cassandra.{name}");
    found.unless(!cassandra.contact_points.is_empty(), &key("contact_points"), || {
        "must name at least one node of the store, as host:port".to_owned()
    });
    for point in &cassandra.contact_points {
        found.unless(is_host_and_port(point), &key("contact_points"), || {
            format!("each must be host:port, {point:?} is not (the port is 9042 as a rule)")
        });
    }
    // What needs no quotes in CQL, so that operators need none either.
    let name = cassandra.keyspace.as_str();
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(fits);
    found.unless(plain && name.len() <= 48, &key("keyspace"), || {
        format!("must be 1 to 48 of a-z, 0-9 and _, a letter first; it is {name:?}")
    });
    found.unless(!name.starts_with("system"), &key("keyspace"), || {
        format!("names that begin with system are the store's own; it is {name:?}")
    });
    for (datacenter, copies) in &cassandra.replication {
        let fits = !datacenter.is_empty() && datacenter.len() <= 128 && !datacenter.contains(['\'', '\\']);
        found.unless(fits && !datacenter.chars().any(char::is_control), &key("replication"), || {
            format!("{datacenter:?} is no datacenter's name")
        });
        found.range(&key(&format!("replication.{datacenter}")), *copies, 1..=15);
    }
    found.unless(!cassandra.username.is_empty() || cassandra.password.is_empty(), &key("username"), || {
        "is empty, but there is a password: set both or neither".to_owned()
    });
    let (ca, cert, own_key) = (&cassandra.tls_ca, &cassandra.tls_cert, &cassandra.tls_key);
    found.unless(cert.as_os_str().is_empty() == own_key.as_os_str().is_empty(), &key("tls_cert"), || {
        "tls_cert and tls_key belong together: set both or neither".to_owned()
    });
    found.unless(!ca.as_os_str().is_empty() || cert.as_os_str().is_empty(), &key("tls_ca"), || {
        "is needed where tls_cert is set: without it there is no TLS at all".to_owned()
    });
    found.range(&key("connections_per_node"), cassandra.connections_per_node, 1..=256);
    found.range(&key("connections_per_shard"), cassandra.connections_per_shard, 0..=64);
    found.range(&key("connect_timeout_ms"), cassandra.connect_timeout_ms, 100..=600_000);
    found.range(&key("keep_alive_ms"), cassandra.keep_alive_ms, 100..=600_000);
    found.range(&key("retries"), cassandra.retries, 0..=10);
}

fn auth(found: &mut Found, config: &Config, purpose: Purpose) {
    let shortest = if purpose == Purpose::Dev { 1 } else { SHORTEST_API_KEY };
    for (at, key) in config.auth.api_keys.iter().enumerate() {
        // Never the key itself: this text is logged.
        found.unless(key.len() >= shortest, "auth.api_keys", || {
            format!(
                "key {} has {} characters, at least {shortest} are needed: `openssl rand -hex 24` makes one",
                at + 1,
                key.len()
            )
        });
        found.unless(key.bytes().all(|byte| byte.is_ascii_graphic()), "auth.api_keys", || {
            format!("key {} has a character that cannot stand in a header: only visible ASCII, no spaces", at + 1)
        });
    }
}

fn jwt(found: &mut Found, jwt: &JwtConfig, purpose: Purpose) {
    let shortest = if purpose == Purpose::Dev { 1 } else { SHORTEST_JWT_SECRET };
    for (kid, secret) in &jwt.secrets {
        // Never the secret itself: this text is logged.
        found.unless(secret.len() >= shortest, "jwt.secrets", || {
            let it = secret.len();
            format!("{kid:?} has {it} bytes, at least {shortest} are needed: `openssl rand -hex 32` makes one")
        });
        found.unless(!jwt.public_keys.contains_key(kid), "jwt.secrets", || {
            format!("{kid:?} stands under public_keys too: a token would name both")
        });
    }
    for (key, kids) in
        [("jwt.secrets", jwt.secrets.keys().collect::<Vec<_>>()), ("jwt.public_keys", jwt.public_keys.keys().collect())]
    {
        for kid in &kids {
            found.unless((1..=KID_MAX_BYTES).contains(&kid.len()) && !kid.chars().any(char::is_control), key, || {
                format!("a key's id has 1 to {KID_MAX_BYTES} bytes and no control characters, {kid:?} is none")
            });
        }
        found.unless(kids.len() <= JWT_KEYS_MAX, key, || {
            format!("there are {} keys, {JWT_KEYS_MAX} are taken", kids.len())
        });
    }
    for (kid, path) in &jwt.public_keys {
        found.unless(!path.as_os_str().is_empty(), "jwt.public_keys", || format!("{kid:?} must name a file (PEM)"));
    }
    found.range("jwt.jwks_refresh_s", jwt.jwks_refresh_s, 5..=DAY_S);
    found.range("jwt.jwks_timeout_ms", jwt.jwks_timeout_ms, 100..=60_000);
    found.range("jwt.leeway_s", jwt.leeway_s, 0..=300);
}

fn session(found: &mut Found, session: &SessionConfig) {
    found.range("session.ttl_s", session.ttl_s, 1..=LONGEST_S);
    found.range("session.idle_ttl_s", session.idle_ttl_s, 1..=LONGEST_S);
    found.range("session.resume_grace_s", session.resume_grace_s, 0..=DAY_S);
    found.range("session.clients_max", session.clients_max, 1..=CLIENTS_MAX);
    found.range("session.memory_ttl_s", session.memory_ttl_s, 0..=LONGEST_S);
    found.unless(session.resume_grace_s <= session.idle_ttl_s, "session.resume_grace_s", || {
        format!("must not be above session.idle_ttl_s ({}), it is {}", session.idle_ttl_s, session.resume_grace_s)
    });
    found.unless(session.memory_ttl_s >= session.resume_grace_s, "session.memory_ttl_s", || {
        format!("must not be below session.resume_grace_s ({}), it is {}", session.resume_grace_s, session.memory_ttl_s)
    });
    let name = &session.cookie_name;
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
    found.unless(!name.is_empty() && name.bytes().all(fits), "session.cookie_name", || {
        format!("must be a cookie's name (visible ASCII without ;,=\"/()[]{{}}<>@:?\\), it is {name:?}")
    });
    let same_site = session.cookie_same_site.as_str();
    found.unless(matches!(same_site, "lax" | "strict" | "none"), "session.cookie_same_site", || {
        format!("must be lax, strict or none, it is {same_site:?}")
    });
    found.unless(same_site != "none" || session.cookie_secure, "session.cookie_same_site", || {
        "none needs session.cookie_secure = true: browsers drop such a cookie otherwise".to_owned()
    });
    for origin in &session.allowed_origins {
        found.unless(origin == "*" || is_origin(origin), "session.allowed_origins", || {
            format!("each must be \"*\" or like https://app.example.com, without a path or slash at its end; {origin:?} is not")
        });
    }
}

fn limits(found: &mut Found, limits: &LimitsConfig) {
    found.range("limits.request_head_ms", limits.request_head_ms, 100..=600_000);
    found.range("limits.handshake_ms", limits.handshake_ms, 100..=600_000);
    found.range("limits.heartbeat_s", limits.heartbeat_s, 1..=DAY_S);
    found.range("limits.idle_s", limits.idle_s, 2..=2 * DAY_S);
    found.unless(limits.heartbeat_s < limits.idle_s, "limits.heartbeat_s", || {
        format!("must be below limits.idle_s ({}), it is {}", limits.idle_s, limits.heartbeat_s)
    });
    found.unless((1..=MESSAGE_MAX_BYTES).contains(&limits.message_bytes), "limits.message_bytes", || {
        let (most, frame, it) = (MESSAGE_MAX_BYTES, FRAME_MAX_BYTES >> 20, limits.message_bytes);
        format!("must be from 1 to {most}: a frame between nodes has at most {frame} MiB, with what goes along with a message; it is {it}")
    });
    found.unless(limits.groups_per_session <= SESSION_GROUPS_MAX, "limits.groups_per_session", || {
        let it = limits.groups_per_session;
        format!("must be from 1 to {SESSION_GROUPS_MAX}: a session goes between nodes in one frame; it is {it}")
    });
    let at_least = [
        ("limits.frame_bytes", limits.frame_bytes, limits.message_bytes, "limits.message_bytes"),
        ("limits.body_bytes", limits.body_bytes, limits.message_bytes, "limits.message_bytes"),
        (
            "limits.outbox_bytes",
            limits.outbox_bytes,
            limits.message_bytes.saturating_add(ENVELOPE_BYTES),
            "limits.message_bytes and 2048 for what is around it",
        ),
        ("limits.replay_bytes", limits.replay_bytes, SMALLEST_REPLAY_BYTES, "1 MiB"),
        (
            "limits.replay_bytes",
            limits.replay_bytes,
            limits.message_bytes.saturating_mul(4),
            "four times limits.message_bytes",
        ),
        ("limits.peer_queue_bytes", limits.peer_queue_bytes, SMALLEST_PEER_QUEUE_BYTES, "1 MiB"),
        (
            "limits.peer_queue_bytes",
            limits.peer_queue_bytes,
            limits.message_bytes.saturating_mul(4),
            "four times limits.message_bytes",
        ),
    ];
    let per_s = limits.publish_bytes_per_s as usize;
    found.unless(per_s >= limits.message_bytes, "limits.publish_bytes_per_s", || {
        format!("must be at least limits.message_bytes ({}), it is {per_s}", limits.message_bytes)
    });
    for (key, value, least, what) in at_least {
        found.unless(value >= least, key, || format!("must be at least {what} ({least}), it is {value}"));
    }
    found.unless(limits.replay_bytes <= LARGEST_REPLAY_BYTES, "limits.replay_bytes", || {
        format!("must not be above 1 TiB, it is {}", limits.replay_bytes)
    });
    let memory = limits.memory_bytes;
    found.unless(memory == 0 || memory >= SMALLEST_MEMORY_BYTES, "limits.memory_bytes", || {
        format!("must be 0 (half of what the machine has) or at least 16 MiB, it is {memory}")
    });
    found.unless(memory == 0 || limits.replay_bytes <= memory / 2, "limits.replay_bytes", || {
        format!("must be at most half of limits.memory_bytes ({memory}), it is {}", limits.replay_bytes)
    });
    let counts = [
        ("limits.new_groups_per_s", limits.new_groups_per_s as usize),
        ("limits.replay_queue", limits.replay_queue),
        ("limits.groups_per_session", limits.groups_per_session),
        ("limits.operations_per_s", limits.operations_per_s as usize),
        ("limits.operations_burst", limits.operations_burst as usize),
        ("limits.connects_per_s", limits.connects_per_s as usize),
        ("limits.connections", limits.connections),
        ("limits.connections_per_address", limits.connections_per_address),
        ("limits.requests_in_flight", limits.requests_in_flight),
        ("limits.slot_queue", limits.slot_queue),
    ];
    for (key, value) in counts {
        found
            .unless(value >= 1, key, || "must be at least 1; a limit cannot be switched off, only set high".to_owned());
    }
    found.range("limits.write_timeout_ms", limits.write_timeout_ms, 100..=3_600_000);
    found.range("limits.request_ms", limits.request_ms, 100..=600_000);
    found.range("limits.gossip_groups_bytes", limits.gossip_groups_bytes, 1 << 10..=256 << 10);
}

fn timing(found: &mut Found, config: &Config) {
    let timing = &config.timing;
    found.range("timing.gossip_interval_ms", timing.gossip_interval_ms, 20..=10_000);
    found.range("timing.keep_alive_ms", timing.keep_alive_ms, 20..=10_000);
    found.range("timing.replica_timeout_ms", timing.replica_timeout_ms, 100..=60_000);
    found.range("timing.clock_skew_max_ms", timing.clock_skew_max_ms, 1_000..=3_600_000);
    found.range("timing.stale_after_ms", timing.stale_after_ms, 100..=60_000);
    found.range("timing.steward_interval_ms", timing.steward_interval_ms, 20..=10_000);
    found.unless(timing.replica_timeout_ms > timing.keep_alive_ms, "timing.replica_timeout_ms", || {
        format!("must be above timing.keep_alive_ms ({}), it is {}", timing.keep_alive_ms, timing.replica_timeout_ms)
    });
    found.unless(timing.stale_after_ms > timing.keep_alive_ms, "timing.stale_after_ms", || {
        format!("must be above timing.keep_alive_ms ({}), it is {}", timing.keep_alive_ms, timing.stale_after_ms)
    });
}

fn namespaces(found: &mut Found, config: &Config) {
    for (name, options) in &config.namespaces {
        let key = format!("namespaces.{name}");
        let fits = !name.is_empty() && name.len() < 200 && !name.contains(':') && !name.chars().any(char::is_control);
        found.unless(fits, &key, || {
            "a namespace is the part of a group's name before the first ':': 1 to 199 bytes, no ':', no control characters"
                .to_owned()
        });
        let min_copies = format!("{key}.min_copies");
        found.unless((1..=config.cluster.copies.max(1)).contains(&options.min_copies), &min_copies, || {
            format!("must be from 1 to cluster.copies ({}), it is {}", config.cluster.copies, options.min_copies)
        });
        found.range(&format!("{key}.history_age_s"), options.history_age_s, 0..=LONGEST_S);
        let window_s = &format!("{key}.idempotency_s");
        found.range(window_s, options.idempotency_s, 1..=DAY_S);
        // A node repeats a publish by itself until its deadline.
        let least_ms = config.limits.request_ms.saturating_mul(2);
        found.unless(options.idempotency_s.saturating_mul(1_000) >= least_ms, window_s, || {
            format!(
                "must be at least twice limits.request_ms ({}), it is {} s",
                config.limits.request_ms, options.idempotency_s
            )
        });
        let publishes = options.idempotency_publishes;
        found.range(&format!("{key}.idempotency_publishes"), publishes, FEWEST_RECOGNISED..=MOST_RECOGNISED);
    }
}

/// What nodes tell each other of their settings when they connect.
fn shared(found: &mut Found, config: &Config) {
    let bytes = config.shared_digest().json.len();
    found.unless(bytes <= SETTINGS_MAX_BYTES, "namespaces", || {
        format!(
            "what all nodes must share (cluster, session, namespaces) may have {SETTINGS_MAX_BYTES} bytes as JSON, it has \
             {bytes}: use fewer or shorter namespaces"
        )
    });
}

fn log(found: &mut Found, config: &Config) {
    if let Err(error) = config.log.level.parse::<Targets>() {
        found
            .add("log.level", format!("must be like info or roost=debug,warn, it is {:?} ({error})", config.log.level));
    }
    found.unless(matches!(config.log.format.as_str(), "text" | "json"), "log.format", || {
        format!("must be text or json, it is {:?}", config.log.format)
    });
}

/// `scheme://host[:port]` and nothing after it, as browsers send it in `Origin`.
fn is_origin(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else { return false };
    let host = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        plain || is_bracketed_ipv6(text)
    };
    host(rest) || rest.rsplit_once(':').is_some_and(|(name, port)| host(name) && is_port(port))
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let name = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        (name || is_bracketed_ipv6(host)) && is_port(port)
    })
}

fn is_bracketed_ipv6(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0) && text.bytes().all(|byte| byte.is_ascii_digit())
}
