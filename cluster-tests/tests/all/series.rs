//! Everything that a node counts is counted: each series that `/metrics` shows differs from 0 at some time, in the real
//! program, while clients and other nodes do what each series is about.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::Api,
    client::{Client, ClientOptions},
    process::Program,
    socket::Socket,
    turn,
};
use futures_util::future::join_all;
use roost::tasks::Tasks;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    process::Command,
};

/// Between two looks at the metrics.
const LOOK: Duration = Duration::from_millis(50);
/// Until a series has moved.
const LIMIT: Duration = Duration::from_secs(60);
const NODES: usize = 3;
/// As it is configured below.
const WRITE_TIMEOUT: Duration = Duration::from_secs(8);

const SLOW: &str = "who_stops_reading_lags_or_is_closed_and_loses_nothing_unannounced";
const GREEDY: &str = "a_greedy_client_does_not_take_the_nodes_memory";

/// What no client and no operator can bring about from outside: the series, and the file and test that move it instead.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "roost_http_certificate_expires_seconds",
        "node/src/gateway/door/certificate/tests.rs",
        "new_files_are_shown_to_who_comes_and_bad_ones_to_nobody",
    ),
    (
        "roost_ephemeral_deliveries_total",
        "node/src/gateway/hub/tests/ephemeral.rs",
        "it_is_told_to_who_is_there_and_moves_nobody",
    ),
    (
        r#"roost_ephemeral_dropped_total{reason="client"}"#,
        "node/src/gateway/hub/tests/ephemeral.rs",
        "who_reads_slowly_does_without_it_and_stays_as_it_was",
    ),
    (
        r#"roost_ephemeral_dropped_total{reason="hub"}"#,
        "node/src/gateway/hub/tests/ephemeral.rs",
        "it_waits_for_no_shard",
    ),
    (
        r#"roost_ephemeral_dropped_total{reason="peer"}"#,
        "node/src/slots/tests.rs",
        "what_is_ephemeral_and_finds_no_way_to_a_node_is_dropped_and_counted",
    ),
    (
        r#"roost_gossip_dropped_total{reason="refused"}"#,
        "node/src/cluster/tests.rs",
        "three_nodes_find_each_other_and_tell_what_changes",
    ),
    (
        r#"roost_gossip_dropped_total{reason="too_much"}"#,
        "node/src/peer/gossip_inbox.rs",
        "what_is_too_much_is_dropped_and_counted",
    ),
    ("roost_peer_frames_too_long_total", "node/src/peer/tests.rs", "large_frames_go_beside_the_lanes"),
    (
        "roost_snapshot_incoming_bytes",
        "node/src/slots/tests.rs",
        "half_a_snapshot_is_counted_and_goes_with_its_episode",
    ),
    ("roost_peer_frames_undecodable_total", "node/src/peer/tests.rs", "garbage_is_dropped_or_ends_its_connection_only"),
    (
        "roost_peer_connections_refused_total",
        "node/src/peer/tests.rs",
        "who_is_not_of_the_cluster_can_neither_gossip_nor_send",
    ),
    ("roost_peer_refused_nodes", "node/src/node/tests.rs", "a_ghost_of_another_store_is_told_why_and_takes_nothing"),
    ("roost_peer_other_keyrings", "node/src/node/tests.rs", "other_keys_are_told_and_refuse_nobody"),
    ("roost_peer_nodes_outside", "node/src/node/tests.rs", "who_is_up_and_is_never_taken_in_is_told"),
    (r#"roost_memory_bytes{account="links"}"#, "cluster-tests/tests/all/slow_consumers.rs", SLOW),
    (r#"roost_memory_bytes{account="outboxes"}"#, "node/src/memory.rs", "a_frame_counts_once_wherever_it_is"),
    (r#"roost_memory_bytes{account="requests"}"#, "node/src/memory.rs", "what_is_held_counts_until_it_is_given_back"),
    (r#"roost_memory_bytes{account="retained"}"#, "node/src/memory.rs", "a_copy_replaces_what_it_took"),
    (r#"roost_memory_bytes{account="uncommitted"}"#, "node/src/memory.rs", "a_copy_replaces_what_it_took"),
    ("roost_memory_shed_total", "cluster-tests/tests/all/memory.rs", GREEDY),
    ("roost_memory_shed_bytes_total", "cluster-tests/tests/all/memory.rs", GREEDY),
    (r#"roost_limit_hits_total{limit="memory_bytes"}"#, "cluster-tests/tests/all/memory.rs", GREEDY),
    (
        r#"roost_limit_hits_total{limit="publish_bytes_per_s"}"#,
        "node/src/gateway/client/allowances.rs",
        "who_publishes_too_much_is_refused_and_told_when_to_try_again",
    ),
    (
        r#"roost_limit_hits_total{limit="new_groups_per_s"}"#,
        "node/src/gateway/client/allowances.rs",
        "who_begins_too_many_groups_is_refused",
    ),
    (
        r#"roost_store_state{state="slow"}"#,
        "cluster-tests/tests/all/store_faults.rs",
        "a_store_of_one_node_that_fails_in_every_way",
    ),
];

/// For what one node refuses at its door: bounds that a few clients reach.
const DOOR: &str = "
export ROOST_CLUSTER__COPIES=1
export ROOST_LIMITS__REQUEST_HEAD_MS=3000 ROOST_LIMITS__HANDSHAKE_MS=500 ROOST_LIMITS__HEARTBEAT_S=1 ROOST_LIMITS__IDLE_S=3
export ROOST_LIMITS__MESSAGE_BYTES=1000 ROOST_LIMITS__FRAME_BYTES=2000 ROOST_LIMITS__BODY_BYTES=2000
export ROOST_LIMITS__GROUPS_PER_SESSION=2 ROOST_LIMITS__REQUESTS_IN_FLIGHT=4
export ROOST_LIMITS__OPERATIONS_PER_S=20 ROOST_LIMITS__OPERATIONS_BURST=40
export ROOST_LIMITS__CONNECTIONS=12 ROOST_LIMITS__CONNECTIONS_PER_ADDRESS=10 ROOST_LIMITS__CONNECTS_PER_S=20
exec \"$@\"";

/// For what three nodes do with each other and with clients that do not keep up. Its store is on a disk that can be filled.
const FLOW: &str = r#"
export ROOST_LIMITS__OUTBOX_BYTES=262144 ROOST_LIMITS__WRITE_TIMEOUT_MS=8000 ROOST_LIMITS__REQUEST_MS=1000
export ROOST_LIMITS__REPLAY_BYTES=1048576 ROOST_LIMITS__REPLAY_QUEUE=30
export ROOST_LIMITS__SLOT_QUEUE=8 ROOST_LIMITS__PEER_QUEUE_BYTES=1048576 ROOST_LIMITS__GOSSIP_GROUPS_BYTES=1024
export ROOST_NAMESPACES__LAG__SLOW_CONSUMER=lag ROOST_NAMESPACES__LAG__HISTORY_BYTES=262144
export ROOST_NAMESPACES__KEEP__HISTORY_BYTES=16777216
export ROOST_STORE__MAX_IN_FLIGHT=1 ROOST_STORE__MAX_QUEUE=8 ROOST_STORE__REQUEST_TIMEOUT_MS=500
export ROOST_STORE__BREAKER_FAILURES=2
exec unshare -rm sh -c 'mount -t tmpfs -o size=8m tmpfs "$DATA" && exec "$@"' sh "$@""#;

/// What only the long scenes move.
const LONG: &[&str] = &[
    "roost_event_loop_lag_ms",
    r#"roost_gossip_dropped_total{reason="no_way"}"#,
    "roost_hub_dropped_total",
    "roost_hub_gaps_total",
    "roost_hub_joins_failed_total",
    "roost_hub_registrations_total",
    "roost_hub_resets_total",
    "roost_hub_stale_total",
    "roost_lagged_total",
    r#"roost_limit_hits_total{limit="gossip_groups_bytes"}"#,
    r#"roost_limit_hits_total{limit="outbox_bytes"}"#,
    r#"roost_limit_hits_total{limit="peer_queue_bytes"}"#,
    r#"roost_limit_hits_total{limit="replay_bytes"}"#,
    r#"roost_limit_hits_total{limit="replay_queue"}"#,
    r#"roost_limit_hits_total{limit="request_ms"}"#,
    r#"roost_limit_hits_total{limit="slot_queue"}"#,
    r#"roost_limit_hits_total{limit="write_timeout_ms"}"#,
    r#"roost_peer_link_resets_total{reason="lost"}"#,
    r#"roost_peer_link_resets_total{reason="overflow"}"#,
    r#"roost_peer_link_resets_total{reason="restart"}"#,
    r#"roost_publishes_total{outcome="unknown"}"#,
    "roost_replay_bytes",
    "roost_replays_waiting",
    "roost_requests_too_late_total",
    r#"roost_slots{role="learner"}"#,
    "roost_store_breaker",
    "roost_store_in_flight",
    r#"roost_store_refused_total{reason="breaker"}"#,
    r#"roost_store_refused_total{reason="queue"}"#,
    r#"roost_store_refused_total{reason="wait"}"#,
    r#"roost_store_state{state="down"}"#,
    "roost_store_waiting",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_series_moves_or_is_one_that_takes_long() -> Result<()> {
    let _turn = turn::take(module_path!());
    let seen = Seen::default();
    at_the_door(&seen).await.context("at the door")?;
    let program = Program::dev(NODES).await?;
    let tasks = Tasks::new();
    seen.look_at(&program, &tasks);
    let urls: Vec<String> = (0..NODES).map(|node| program.http_url(node)).collect();
    usual(&seen, &urls).await.context("the usual")?;
    tasks.shut_down(Duration::from_secs(5)).await;
    ensure!(program.shut_down().await?.success());
    for series in LONG {
        ensure!(seen.lock().contains_key(*series), "{series} is not declared");
    }
    check_elsewhere(&seen)?;
    seen.check_still(LONG)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes some minutes: scripts/series"]
async fn every_series_moves() -> Result<()> {
    let _turn = turn::take(module_path!());
    let seen = Seen::default();
    at_the_door(&seen).await.context("at the door")?;
    in_the_flow(&seen).await.context("in the flow")?;
    seen.check_still(&[])
}

fn check_elsewhere(seen: &Seen) -> Result<()> {
    for (series, file, test) in ELSEWHERE {
        ensure!(seen.lock().contains_key(*series), "{series} is not declared");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("it is in the workspace")?.join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ensure!(text.contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
    Ok(())
}

/// Every series that was declared by some node, and whether it was seen to differ from 0.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<String, bool>>>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a node shows.
    fn take(&self, text: &str) {
        let mut all = self.lock();
        let samples = || text.lines().filter(|line| !line.starts_with('#'));
        for line in samples() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or(series);
            if name.ends_with("_bucket") || name.ends_with("_sum") {
                continue;
            }
            *all.entry(series.to_owned()).or_default() |= value.parse::<f64>().is_ok_and(|value| value != 0.0);
        }
        // A family of which nothing was counted yet has no sample: it is declared all the same.
        for line in text.lines() {
            let Some(family) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) else { continue };
            if !samples().any(|sample| sample.starts_with(&format!("{family} "))) {
                *all.entry(family.to_owned()).or_default() |= samples().any(|sample| sample.starts_with(family));
            }
        }
    }

    fn has_moved(&self, series: &str) -> bool {
        self.lock().iter().any(|(name, moved)| *moved && (name == series || name.starts_with(&format!("{series}{{"))))
    }

    /// Nothing has stood at 0 all the time but these and what is moved elsewhere.
    fn check_still(&self, but: &[&str]) -> Result<()> {
        let all = self.lock();
        let still = all.iter().filter(|(_, moved)| !**moved).map(|(series, _)| series);
        let elsewhere = |series: &str| ELSEWHERE.iter().any(|(other, ..)| *other == series);
        let still: Vec<_> = still.filter(|series| !elsewhere(series) && !but.contains(&series.as_str())).collect();
        ensure!(still.is_empty(), "nothing has moved {still:#?}");
        Ok(())
    }

    /// Looks at all nodes until the tasks stop.
    fn look_at(&self, program: &Program, tasks: &Tasks) {
        for node in 0..program.nodes() {
            let (this, api) = (self.clone(), Api::new(program.http_url(node)));
            tasks.spawn_detached("look", async move {
                loop {
                    if let Ok(answer) = api.raw(reqwest::Method::GET, "/metrics", None, Vec::new()).await
                        && let Ok(text) = answer.text().await
                    {
                        this.take(&text);
                    }
                    tokio::time::sleep(LOOK).await;
                }
            });
        }
    }

    /// Does it again and again until each of these has moved.
    async fn until<F: Future<Output = Result<()>>>(&self, series: &[&str], mut act: impl FnMut() -> F) -> Result<()> {
        let missing = || series.iter().filter(|series| !self.has_moved(series)).copied().collect::<Vec<_>>();
        let mut last = Ok(());
        let all = async {
            while !missing().is_empty() {
                last = act().await;
                tokio::time::sleep(LOOK * 2).await;
            }
        };
        let in_time = tokio::time::timeout(LIMIT, all).await;
        ensure!(in_time.is_ok(), "{:?} did not move within {LIMIT:?}; the last attempt: {last:?}", missing());
        Ok(())
    }
}

fn limit(key: &str) -> String {
    format!("roost_limit_hits_total{{limit=\"{key}\"}}")
}

async fn at_the_door(seen: &Seen) -> Result<()> {
    let program = Program::dev_in(1, DOOR).await?;
    let tasks = Tasks::new();
    seen.look_at(&program, &tasks);
    let (url, api) = (&program.http_url(0), &Api::new(program.http_url(0)));
    let large = |bytes: usize| json!({"type": "publish", "id": "large", "group": "g", "data": "x".repeat(bytes)});

    let (late, gone) = (limit("heartbeat_s"), limit("idle_s"));
    seen.until(&[&late, &gone, "roost_connections", "roost_sessions", "roost_pings_total"], || async {
        let mut silent = attached(url).await?;
        // Whoever reads answers pings, and stays.
        tokio::time::sleep(Duration::from_secs(4)).await;
        silent.until_closed().await.map(drop)
    })
    .await?;
    seen.until(&[&limit("message_bytes"), &limit("groups_per_session"), &limit("requests_in_flight")], || async {
        let mut socket = attached(url).await?;
        socket.send(&large(1_100)).await?;
        for number in 0..20 {
            socket.feed(json!({"type": "join", "id": number, "group": format!("g:{number}")}).to_string()).await?;
        }
        // Joins beyond the bound of groups are answered at once; these wait for each other.
        for number in 20..40 {
            socket.feed(json!({"type": "history", "id": number, "group": "g:0"}).to_string()).await?;
        }
        socket.flush().await?;
        socket.answer_to(&json!(39)).await?;
        for number in 0..3 {
            socket.send(&json!({"type": "join", "id": "one", "group": format!("one:{number}")})).await?;
            socket.answer_to(&json!("one")).await?;
        }
        socket.close().await;
        Ok(())
    })
    .await?;
    seen.until(&[&limit("frame_bytes"), "roost_outbox_closed_total"], || async {
        let mut socket = attached(url).await?;
        socket.send(&large(5_000)).await?;
        socket.until_closed().await.map(drop)
    })
    .await?;
    seen.until(&[&limit("operations_burst"), &limit("operations_per_s")], || async {
        let mut socket = attached(url).await?;
        for _ in 0..500 {
            socket.feed(json!({"type": "heartbeat"}).to_string()).await?;
        }
        // The node may close before all of it is sent.
        let _ = socket.flush().await;
        socket.until_closed().await.map(drop)
    })
    .await?;
    seen.until(&[&limit("body_bytes"), r#"roost_publishes_total{outcome="refused"}"#], || async {
        let body = json!({"user": "x".repeat(3_000)});
        api.post("/v1/sessions", body).await?;
        let mut socket = attached(url).await?;
        socket.ask(&json!({"type": "publish", "id": 1, "group": "not:joined", "data": 1})).await?;
        socket.close().await;
        Ok(())
    })
    .await?;
    seen.until(&[&limit("handshake_ms"), "roost_connects_refused_total"], || async {
        let mut silent = upgraded(url, 1).await?;
        // Until it is closed.
        while silent.read(&mut [0; 64]).await? > 0 {}
        Ok(())
    })
    .await?;
    seen.until(&[&limit("request_head_ms")], || async {
        let mut silent = TcpStream::connect(url.trim_start_matches("http://")).await?;
        // Until it is closed.
        while silent.read(&mut [0; 64]).await? > 0 {}
        Ok(())
    })
    .await?;
    seen.until(&[&limit("connections_per_address"), &limit("connections")], || async {
        let mut open = Vec::new();
        for host in [[1; 12], [2; 12]].concat() {
            open.push(upgraded(url, host).await?);
        }
        Ok(())
    })
    .await?;
    seen.until(&[&limit("connects_per_s")], || async {
        for _ in 0..10 {
            join_all((0..6).map(|_| upgraded(url, 1))).await;
        }
        Ok(())
    })
    .await?;
    tasks.shut_down(Duration::from_secs(5)).await;
    ensure!(program.shut_down().await?.success());
    Ok(())
}

/// A connection with a session of its own. Tried again while the node has no room.
async fn attached(url: &str) -> Result<Socket> {
    let mut socket = Socket::connect(url).await;
    for _ in 0..50 {
        if socket.is_ok() {
            break;
        }
        tokio::time::sleep(LOOK * 2).await;
        socket = Socket::connect(url).await;
    }
    let mut socket = socket?;
    socket.send(&json!({"type": "hello"})).await?;
    socket.frame_of("welcome").await?;
    Ok(socket)
}

/// A WebSocket that says nothing, from an address of this machine; or what is left of one that was refused.
async fn upgraded(url: &str, host: u8) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, host], 0).into())?;
    let mut stream = socket.connect(url.trim_start_matches("http://").parse()?).await?;
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let _status = stream.read(&mut [0; 64]).await?;
    Ok(stream)
}

async fn in_the_flow(seen: &Seen) -> Result<()> {
    let mut program = Program::dev_in(NODES, FLOW).await?;
    let tasks = Tasks::new();
    seen.look_at(&program, &tasks);
    let urls: Vec<String> = (0..NODES).map(|node| program.http_url(node)).collect();
    let id = program.id().context("it runs")?;
    usual(seen, &urls).await.context("the usual")?;
    slow_readers(seen, &urls).await.context("slow readers")?;
    too_much_at_once(seen, &urls).await.context("too much at once")?;
    many_replays(seen, &urls).await.context("many replays")?;
    frozen(seen, &urls, id).await.context("frozen")?;
    full_disk(seen, &urls, id, program.data()).await.context("a full disk")?;
    nodes_die(seen, &urls, &mut program).await.context("nodes die")?;
    tasks.shut_down(Duration::from_secs(5)).await;
    ensure!(program.shut_down().await?.success());
    Ok(())
}

async fn usual(seen: &Seen, urls: &[String]) -> Result<()> {
    let client = Client::connect(ClientOptions::new("usual", urls.to_vec())).await?;
    client.join("chat:usual").await?;
    let names: Vec<&str> =
        "roost_deliveries_total roost_hub_messages_total roost_hub_joins_total roost_publishes_ordered_total \
         roost_commit_seconds_count roost_request_seconds_count roost_map_version roost_http_requests_total \
         roost_peer_frames_sent_total roost_peer_bytes_sent_total roost_peer_frames_received_total \
         roost_store_requests_total roost_store_seconds_count"
            .split_whitespace()
            .chain([
                r#"roost_publishes_total{outcome="accepted"}"#,
                r#"roost_slots{role="primary"}"#,
                r#"roost_slots{role="replica"}"#,
                r#"roost_store_state{state="up"}"#,
                r#"roost_memory_bytes{account="history"}"#,
                r#"roost_memory_bytes{account="repeats"}"#,
            ])
            .collect();
    seen.until(&names, || async { client.publish_now("chat:usual", "hello").await.map(drop) }).await
}

/// One lags and is caught up past what is gone, one is closed for what waits for it, one for reading nothing at all.
async fn slow_readers(seen: &Seen, urls: &[String]) -> Result<()> {
    let api = &Api::new(urls[0].clone());
    let (outbox, write) = (&limit("outbox_bytes"), &limit("write_timeout_ms"));
    for (group, series) in [
        ("chat:slow", &[outbox, "roost_hub_dropped_total"]),
        ("lag:slow", &["roost_lagged_total", "roost_hub_gaps_total"]),
        ("lag:asleep", &[write, write]),
    ] {
        let groups = &[group.to_owned()];
        seen.until(series, || async move {
            let mut socket = attached(&urls[0]).await?;
            socket.ask(&json!({"type": "join", "id": 1, "group": group})).await?;
            // More than the buffers of two sockets take.
            for _ in 0..40 {
                burst(api, groups, 8).await?;
            }
            match group {
                "lag:slow" => drop(socket.frame_of("gap").await?),
                "lag:asleep" => tokio::time::sleep(WRITE_TIMEOUT).await,
                _ => {}
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Publishes of 60 KB, all at once; some may be refused.
async fn burst(api: &Api, groups: &[String], each: usize) -> Result<()> {
    let data = Value::String("x".repeat(60_000));
    let publishes = groups.iter().flat_map(|group| std::iter::repeat_n(group, each));
    join_all(publishes.map(|group| api.publish(group, &data, None))).await;
    Ok(())
}

async fn too_much_at_once(seen: &Seen, urls: &[String]) -> Result<()> {
    let api = &Api::new(urls[0].clone());
    seen.until(&[&limit("gossip_groups_bytes")], || async {
        // In turn: so many at once would be refused.
        let crowd = (0..2).map(|client| async move {
            let mut socket = attached(&urls[0]).await?;
            for number in 0..250 {
                let join = json!({"type": "join", "id": number, "group": format!("crowd:{client}:{number}")});
                socket.ask(&join).await?;
            }
            anyhow::Ok(socket)
        });
        let crowd = join_all(crowd).await;
        // Groups are gossiped once in a while.
        tokio::time::sleep(Duration::from_secs(3)).await;
        crowd.into_iter().collect::<Result<Vec<_>>>().map(drop)
    })
    .await?;
    let groups: Vec<String> = (0..40).map(|number| format!("keep:{number}")).collect();
    seen.until(&[&limit("slot_queue")], || burst(api, &groups[..1], 60)).await?;
    let overflow = r#"roost_peer_link_resets_total{reason="overflow"}"#;
    seen.until(&[overflow, &limit("peer_queue_bytes")], || burst(api, &groups, 6)).await?;
    let waits = ["roost_store_in_flight", "roost_store_waiting", r#"roost_store_refused_total{reason="queue"}"#];
    seen.until(&waits, || create_sessions(api, 60)).await
}

async fn create_sessions(api: &Api, count: usize) -> Result<()> {
    // Some may be refused.
    join_all((0..count).map(|_| api.create_session("crowd"))).await;
    Ok(())
}

/// Many come at once for all that a group has.
async fn many_replays(seen: &Seen, urls: &[String]) -> Result<()> {
    let api = &Api::new(urls[0].clone());
    let (head, _) = api.publish("keep:all", &json!("first"), None).await?;
    for _ in 0..10 {
        burst(api, &["keep:all".to_owned()], 6).await?;
    }
    let since = json!({"epoch": head.epoch.to_string(), "offset": head.offset});
    let (bytes, queue) = (&limit("replay_bytes"), &limit("replay_queue"));
    seen.until(&[bytes, queue, "roost_replay_bytes", "roost_replays_waiting"], || async {
        let mut sockets = Vec::new();
        for _ in 0..100 {
            sockets.push(attached(&urls[0]).await?);
        }
        let replays = sockets.iter_mut().map(|socket| async {
            socket.send(&json!({"type": "join", "id": 1, "group": "keep:all", "since": since})).await?;
            for _ in 0..55 {
                socket.frame_of("message").await?;
            }
            anyhow::Ok(())
        });
        // Those that find too much waiting are refused.
        join_all(replays).await;
        Ok(())
    })
    .await
}

/// The whole program stands still while requests are under way.
async fn frozen(seen: &Seen, urls: &[String], id: u32) -> Result<()> {
    let api = &Api::new(urls[0].clone());
    let request_ms = limit("request_ms");
    let series: [&str; 5] = [
        &request_ms,
        "roost_requests_too_late_total",
        r#"roost_publishes_total{outcome="unknown"}"#,
        r#"roost_store_refused_total{reason="wait"}"#,
        "roost_event_loop_lag_ms",
    ];
    seen.until(&series, || async {
        let groups: Vec<String> = (0..20).map(|number| format!("frozen:{number}")).collect();
        let freeze = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            signal(id, "STOP").await?;
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            signal(id, "CONT").await
        };
        let (_, _, frozen) = tokio::join!(burst(api, &groups, 6), create_sessions(api, 9), freeze);
        frozen
    })
    .await
}

async fn signal(id: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").args([format!("-{name}"), id.to_string()]).status().await?;
    ensure!(status.success(), "no signal {name}");
    Ok(())
}

async fn full_disk(seen: &Seen, urls: &[String], id: u32, data: &Path) -> Result<()> {
    let api = &Api::new(urls[0].clone());
    // As the program sees it.
    let filler = PathBuf::from(format!("/proc/{id}/root{}/filler", data.display()));
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[0; 1 << 12]).is_ok() {}
    let series =
        ["roost_store_breaker", r#"roost_store_refused_total{reason="breaker"}"#, r#"roost_store_state{state="down"}"#];
    seen.until(&series, || create_sessions(api, 5)).await?;
    fs::remove_file(&filler)?;
    Ok(())
}

async fn nodes_die(seen: &Seen, urls: &[String], program: &mut Program) -> Result<()> {
    let client = Client::connect(ClientOptions::new("survivor", urls.to_vec())).await?;
    let groups: Vec<String> = (0..60).map(|number| format!("chat:{number}")).collect();
    for group in &groups {
        client.join(group).await?;
        client.publish_now(group, "hello").await?;
    }
    let lost = r#"roost_peer_link_resets_total{reason="lost"}"#;
    let restart = r#"roost_peer_link_resets_total{reason="restart"}"#;
    let no_way = r#"roost_gossip_dropped_total{reason="no_way"}"#;
    let series = [lost, restart, no_way, "roost_hub_stale_total", "roost_hub_registrations_total"];
    let series = [&series[..], &["roost_hub_resets_total", "roost_hub_joins_failed_total"]].concat();
    let learner = r#"roost_slots{role="learner"}"#;
    for round in 0..4 {
        let missing = series.iter().chain([&learner]).filter(|series| !seen.has_moved(series)).count();
        if missing == 0 {
            return Ok(());
        }
        // One comes back before it is missed.
        program.kill(1).await?;
        program.start(1).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut socket = attached(&urls[0]).await?;
        // With two of them go both copies of some slots.
        program.kill(1).await?;
        program.kill(2).await?;
        for number in 0..100 {
            socket.feed(json!({"type": "join", "group": format!("late:{round}:{number}")}).to_string()).await?;
        }
        socket.flush().await?;
        tokio::time::sleep(Duration::from_secs(8)).await;
        program.start(1).await?;
        program.start(2).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    Ok(())
}
