//! Readers of server-sent events: what they are refused, what ends them, and that nothing is missed and nothing comes twice,
//! whichever node they come back to.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    api::Api,
    cluster::{Cluster, Kind},
    gauges::metric,
    lone::Lone,
    reader::{Event, Reader, Refusal},
    socket::Socket,
    turn,
    wait::wait_until,
};
use roost::wire::events::{GROUPS_MAX, ID_MAX_BYTES};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    process::Command,
    task::JoinSet,
};

const LIMIT: Duration = Duration::from_secs(120);
/// Until a changed right, or the end of a session, is noticed.
const NOTICED: Duration = Duration::from_secs(25);

fn refused(opened: Result<Reader, Refusal>) -> Result<Refusal> {
    match opened {
        Ok(_) => bail!("a stream was opened"),
        Err(refusal) => Ok(refusal),
    }
}

fn opened(opened: Result<Reader, Refusal>) -> Result<Reader> {
    opened.map_err(|refusal| anyhow::anyhow!("refused: {refusal:?}"))
}

async fn open(cluster: &Cluster, node: usize, path: &str, headers: &[(&str, &str)]) -> Result<Reader> {
    opened(Reader::open(&cluster.url(node), path, headers).await?)
}

// --- A node is killed ------------------------------------------------------------------------------------------------

const MESSAGES: u64 = 400;
const EACH: Duration = Duration::from_millis(20);

/// How a reader reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Curl,
    Socket,
}

/// Follows until each group's last message has come, from one node after the other. Everything has to come once, in order.
async fn follow(nodes: Vec<String>, path: String, by: By, groups: &'static [&'static str]) -> Result<usize> {
    let (mut last, mut streams, mut seen) = (String::new(), 0, vec![0; groups.len()]);
    for node in nodes.iter().cycle().take(200) {
        let headers = [("Last-Event-ID", last.as_str())];
        let headers = if last.is_empty() { &[][..] } else { &headers };
        let reader = match by {
            By::Curl => Ok(Reader::by_curl(node, &path, headers)?),
            By::Socket => {
                Reader::open(node, &path, headers).await.map_err(|_| ()).and_then(|open| open.map_err(|_| ()))
            }
        };
        let Ok(mut reader) = reader else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        streams += 1;
        while let Some(Event { kind, data, id }) = reader.next().await? {
            match kind.as_str() {
                "message" => {
                    let at = groups
                        .iter()
                        .position(|group| data["group"] == *group)
                        .context("a group that was asked for")?;
                    seen[at] += 1;
                    ensure!(
                        data["offset"] == seen[at] && data["data"] == seen[at],
                        "{by:?}: {data} is not {}",
                        seen[at]
                    );
                }
                "gap" | "reset" => bail!("{by:?}: {data}"),
                "joined" => ensure!(last.is_empty() || data["recovered"] == true, "{by:?}: {data}"),
                _ => {}
            }
            last = id;
            if seen.iter().all(|seen| *seen == MESSAGES) {
                return Ok(streams);
            }
        }
        // One that has nothing to go on from would begin with what comes next.
        ensure!(!last.is_empty(), "{by:?}: {node} ended before it had told where it begins");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{by:?}: only {seen:?} of {MESSAGES} came")
}

/// With a key, so that a repeat is no second message.
async fn publish_all(api: Api, groups: &'static [&'static str]) {
    for number in 1..=MESSAGES {
        for group in groups {
            let key = format!("{group}-{number}");
            while api.publish(group, &json!(number), Some(&key)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        tokio::time::sleep(EACH).await;
    }
}

const ONE: &[&str] = &["news:one"];
const MANY: &[&str] = &["chat:two", "news:one", "news:three"];

/// Whoever follows at the node that is killed goes on at another with the id of the last event.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_and_nothing_comes_twice_when_a_node_is_killed() -> Result<()> {
    let _turn = turn::take(module_path!());
    let mut cluster = Cluster::start(Kind::Program, 3).await?;
    let one = "/v1/groups/news:one/events".to_owned();
    let many = "/v1/events?group=news:three&group=chat:two&group=news:one".to_owned();
    let (mut readers, mut publishing) = (JoinSet::new(), JoinSet::new());
    for node in 0..3 {
        for by in [By::Curl, By::Socket] {
            readers.spawn(follow(cluster.urls_from(node), one.clone(), by, ONE));
            readers.spawn(follow(cluster.urls_from(node), many.clone(), by, MANY));
        }
    }
    let api = cluster.api(2);
    let all_follow = wait_until("all follow", LIMIT, async || {
        let Ok(answer) = api.get("/v1/groups/news:one").await else { return false };
        let of = |node: &Value| node["subscribers"].as_u64().unwrap_or(0);
        answer.body["nodes"].as_array().into_iter().flatten().map(of).sum::<u64>() >= 12
    });
    all_follow.await?;
    publishing.spawn(publish_all(cluster.api(2), MANY));
    tokio::time::sleep(EACH * 60).await;
    cluster.crash(0).await?;
    tokio::time::sleep(EACH * 60).await;
    cluster.restart(0).await?;
    publishing.join_all().await;
    let mut streams = 0;
    while let Some(reader) =
        tokio::time::timeout(LIMIT, readers.join_next()).await.context("a reader has not got everything")?
    {
        streams += reader??;
    }
    eprintln!("12 readers, {streams} streams, {MESSAGES} messages in each group");
    ensure!(streams >= 16, "nobody had to come back: {streams} streams of 12 readers");
    cluster.shut_down().await
}

// --- Refusals and rights ---------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn what_readers_are_refused() -> Result<()> {
    let _turn = turn::take(module_path!());
    // A node as it comes, without `session.anonymous`, which `roost dev` sets; for pages of one origin.
    let allows = "[store]\nkind = \"embedded\"\n[session]\nallowed_origins = [\"http://app.example\"]\n";
    let node = Lone::start(|_| allows.to_owned()).await?;
    let url = node.url.clone();
    let api = Api::new(&url);
    wait_until("the node is ready", LIMIT, async || api.is_ready().await).await?;
    let grants = json!([{"pattern": "chat:*", "join": true, "publish": false}]);
    let session = api.create_session_with(json!({"user": "ann", "grants": grants})).await?;
    let bearer = format!("Bearer {}", session.token);
    let cookie = format!("session_id={}", session.token);
    let long = "A".repeat(ID_MAX_BYTES + 1);
    let groups: String = (0..=GROUPS_MAX).map(|number| format!("&group=chat:{number}")).collect();
    let (one, many) = ("/v1/groups/chat:a/events", "/v1/events?group=chat:a&group=chat:b");

    let check = async |path: &str, headers: &[(&str, &str)], status: u16, place: Value, words: &str| {
        let refusal = refused(Reader::open(&url, path, headers).await?).context(path.to_owned())?;
        let detail = &refusal.body["detail"][0];
        ensure!(refusal.status == status && detail["loc"] == place, "{path} {headers:?}: {refusal:?}");
        ensure!(detail["msg"].as_str().is_some_and(|msg| msg.contains(words)), "{path}: {refusal:?}");
        ensure!(refusal.head.contains("connection: close") && refusal.head.contains("no-store"), "{}", refusal.head);
        Ok(())
    };
    let by_bearer = ("Authorization", bearer.as_str());
    let (authorization, id) = (json!(["header", "authorization"]), json!(["header", "last-event-id"]));
    check(one, &[], 401, authorization.clone(), "a session is needed").await?;
    check(one, &[("Authorization", "Bearer v2.x")], 401, authorization, "").await?;
    check(&format!("{one}?token={}", session.token), &[], 422, json!(["query", "token"]), "").await?;
    for origin in ["http://evil.example", "null"] {
        check(one, &[("Cookie", &cookie), ("Origin", origin)], 403, json!(["header", "origin"]), "origin").await?;
    }
    let by_image = [("Cookie", cookie.as_str()), ("Sec-Fetch-Site", "cross-site")];
    check(one, &by_image, 403, json!(["header", "origin"]), "origin").await?;
    check("/v1/groups/news/events", &[by_bearer], 403, json!(["path", "group"]), "grants").await?;
    check("/v1/events?group=chat:a&group=news", &[by_bearer], 403, json!(["query", "group"]), "grants").await?;
    check("/v1/groups/@user:bob/events", &[by_bearer], 403, json!(["path", "group"]), "").await?;
    for bad in ["x", "0000000000000001", "0000000000000001-", "0000000000000001-9007199254740992", long.as_str()] {
        check(one, &[by_bearer, ("Last-Event-ID", bad)], 422, id.clone(), "no id").await?;
        check(many, &[by_bearer, ("Last-Event-ID", bad)], 422, id.clone(), "send").await?;
        let in_url = format!("{one}?last_event_id={bad}");
        check(&in_url, &[by_bearer], 422, json!(["query", "last_event_id"]), "no id").await?;
    }
    check("/v1/events", &[by_bearer], 422, json!(["query", "group"]), "1 to 16 groups").await?;
    check(&format!("/v1/events?{}", &groups[1..]), &[by_bearer], 422, json!(["query", "group"]), "1 to 16 groups")
        .await?;
    check("/v1/events?group=a&group=a", &[by_bearer], 422, json!(["query", "group"]), "twice").await?;
    check("/v1/events?group=", &[by_bearer], 422, json!(["query", "group"]), "").await?;

    // What is right is taken, the private groups of the session among it, and an allowed page is told that it may read it.
    let page = [("Cookie", cookie.as_str()), ("Origin", "http://app.example")];
    let private = format!("/v1/groups/@session:{}/events", session.id);
    for (path, headers) in
        [(one, &[by_bearer][..]), (many, &page), (&private, &page), ("/v1/groups/@user:ann/events", &page)]
    {
        opened(Reader::open(&url, path, headers).await?)?.event("joined").await?;
    }
    let mut old = TcpStream::connect(url.trim_start_matches("http://")).await?;
    let answer = exchange(&mut old, &format!("GET {one} HTTP/1.0\r\nAuthorization: {bearer}\r\n\r\n")).await?;
    ensure!(answer.contains(" 426 ") && answer.contains("proxy_http_version"), "{answer}");
    let mut head = TcpStream::connect(url.trim_start_matches("http://")).await?;
    let answer =
        exchange(&mut head, &format!("HEAD {one} HTTP/1.1\r\nHost: x\r\nOrigin: http://app.example\r\n\r\n")).await?;
    let allows = "access-control-allow-origin: http://app.example";
    ensure!(answer.contains(" 200 ") && answer.contains("text/event-stream") && answer.contains(allows), "{answer}");
    node.end().await
}

async fn exchange(socket: &mut TcpStream, request: &str) -> Result<String> {
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, socket.read_to_string(&mut answer)).await.context("the answer has no end")??;
    Ok(answer.to_ascii_lowercase())
}

/// A reader displaces nobody and is seen by nobody; what its session may not read any more it does not get for long, and it ends
/// with its session. Who needs no session gets one no more than a group.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_for_its_session() -> Result<()> {
    let _turn = turn::take(module_path!());
    let settings = [("ROOST_NAMESPACES__CHAT__PRESENCE", "true"), ("ROOST_NAMESPACES__CLOSED__JOIN", "granted")];
    let cluster = Cluster::program_with(3, &settings).await?;
    let api = cluster.api(2);
    let session = api.create_session("ann").await?;
    let mut socket = Socket::connect(&cluster.url(0)).await?;
    socket.send(&json!({"type": "hello", "session": &*session.token})).await?;
    socket.frame_of("welcome").await?;
    socket.ask(&json!({"type": "join", "id": 1, "group": "chat:a"})).await?;
    let bearer = format!("Bearer {}", session.token);
    let headers = [("Authorization", bearer.as_str())];
    let mut two = open(&cluster, 1, "/v1/events?group=chat:a&group=news:a", &headers).await?;
    let mut one = open(&cluster, 1, "/v1/groups/news:a/events", &headers).await?;
    let mut anyone = open(&cluster, 1, "/v1/groups/news:a/events", &[]).await?;
    two.event("joined").await?;
    two.event("joined").await?;
    one.event("joined").await?;
    anyone.event("joined").await?;
    let closed = refused(Reader::open(&cluster.url(1), "/v1/groups/closed:a/events", &[]).await?)?;
    ensure!(closed.status == 403, "{closed:?}");
    let members = api.get("/v1/groups/chat:a/members").await?;
    ensure!(members.body["members"].as_array().is_some_and(|members| members.len() == 1), "{members:?}");

    // A line end in the text of a message ends no event.
    let spread = api.raw(
        "POST".parse()?,
        "/v1/groups/news:a/messages",
        Some("application/json"),
        b"{\"data\": [1,\n\r\n2]}".to_vec(),
    );
    ensure!(spread.await?.status() == 200);
    for reader in [&mut two, &mut one, &mut anyone] {
        ensure!(reader.event("message").await?.data["data"] == json!([1, 2]));
    }
    let grants = json!({"grants": [{"pattern": "chat:*", "join": true, "publish": false}]});
    ensure!(api.patch(&format!("/v1/sessions/{}", session.id), grants).await?.status == 200);
    let left = tokio::time::timeout(NOTICED, two.event("left")).await??;
    ensure!(left.data["group"] == "news:a" && left.data["reason"] == "grants", "{left:?}");
    let bye = tokio::time::timeout(NOTICED, one.event("bye")).await??;
    ensure!(bye.data["code"] == "unauthorized" && bye.data["reconnect"] == false, "{bye:?}");
    ensure!(one.next().await?.is_none() && one.ended_whole(), "nothing comes after `bye`");
    api.publish("news:a", &json!("later"), None).await?;
    api.publish("chat:a", &json!("later"), None).await?;
    ensure!(two.event("message").await?.data["group"] == "chat:a");
    ensure!(anyone.event("message").await?.data["group"] == "news:a");
    ensure!(socket.frame_of("message").await?["group"] == "chat:a", "its session's WebSocket was not displaced");

    ensure!(api.delete(&format!("/v1/sessions/{}", session.id)).await?.status == 204);
    let bye = tokio::time::timeout(NOTICED, two.event("bye")).await??;
    ensure!(bye.data["code"] == "session_ended" && bye.data["reconnect"] == false, "{bye:?}");
    let gone = refused(Reader::open(&cluster.url(1), "/v1/groups/news:a/events", &headers).await?)?;
    ensure!(gone.status == 401, "{gone:?}");
    cluster.shut_down().await
}

// --- Draining, silence, slowness -------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_sends_its_readers_elsewhere() -> Result<()> {
    let _turn = turn::take(module_path!());
    let mut cluster =
        Cluster::program_with(3, &[("ROOST_LIMITS__HEARTBEAT_S", "1"), ("ROOST_LIMITS__IDLE_S", "3")]).await?;
    let mut reader = open(&cluster, 0, "/v1/groups/news:a/events", &[]).await?;
    let joined = reader.event("joined").await?;
    ensure!(!joined.id.is_empty() && reader.retry_ms.is_some(), "{joined:?}");
    // It says nothing itself, and stays for as long as it takes comments.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let api = cluster.api(1);
    api.publish("news:a", &json!(1), None).await?;
    let message = reader.event("message").await?;
    ensure!(reader.comments >= 3, "{} heartbeats in 6 s", reader.comments);
    cluster.drain(0).await?;
    let bye = reader.event("bye").await?;
    ensure!(bye.data["code"] == "draining" && bye.data["reconnect"] == true, "{bye:?}");
    ensure!(bye.data["after_ms"].as_u64() == reader.retry_ms && bye.id == message.id, "{bye:?}, {:?}", reader.retry_ms);
    ensure!(reader.next().await?.is_none() && reader.ended_whole());
    api.publish("news:a", &json!(2), None).await?;
    let path = format!("/v1/groups/news:a/events?last_event_id={}", bye.id);
    let mut again = open(&cluster, 1, &path, &[]).await?;
    ensure!(again.event("message").await?.data["data"] == 2);
    cluster.shut_down().await
}

/// More than the buffers of two sockets and an outbox.
const FILLING: usize = 400;
const FILLING_BYTES: usize = 32 << 10;

/// Who reads nothing lags where its namespace lets it, and is sent away elsewhere; what waits for it is bounded, and it misses
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_slow_reader_is_bounded() -> Result<()> {
    let _turn = turn::take(module_path!());
    let settings = [
        ("ROOST_LIMITS__OUTBOX_BYTES", "262144"),
        ("ROOST_LIMITS__WRITE_TIMEOUT_MS", "300000"),
        ("ROOST_NAMESPACES__LAG__SLOW_CONSUMER", "lag"),
        ("ROOST_NAMESPACES__LAG__HISTORY_BYTES", "67108864"),
        ("ROOST_NAMESPACES__CLOSE__HISTORY_BYTES", "67108864"),
    ];
    let cluster = Cluster::program_with(1, &settings).await?;
    let narrow = || -> Result<TcpSocket> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4 << 10)?;
        Ok(socket)
    };
    let url = cluster.url(0);
    let mut lags = opened(Reader::open_over(narrow()?, &url, "/v1/events?group=lag:a&group=lag:b", &[]).await?)?;
    let mut ends = opened(Reader::open_over(narrow()?, &url, "/v1/groups/close:a/events", &[]).await?)?;
    lags.event("joined").await?;
    lags.event("joined").await?;
    ends.event("joined").await?;
    let api = cluster.api(0);
    let mut most = 0;
    for number in 0..FILLING {
        let text = json!(format!("{number:0>FILLING_BYTES$}"));
        for group in ["lag:a", "close:a"] {
            api.publish(group, &text, None).await?;
        }
        most = most.max(waiting(&cluster).await?);
    }
    // A node weighs what waits now and then; for who lags it goes on waiting.
    for _ in 0..100 {
        if most >= 100 << 10 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(waiting(&cluster).await?);
    }
    eprintln!("{most} bytes waited at most");
    ensure!((100 << 10..2 * 262_144).contains(&most), "{most} bytes waited for two readers");

    for number in 0..FILLING {
        let message = lags.event("message").await?;
        ensure!(message.data["offset"] == number as u64 + 1, "{} is not {}", message.data["offset"], number + 1);
    }
    // What had left before it was sent away, then the rest, by the id of the last of these.
    let mut seen = 0;
    while let Some(event) = ends.next().await? {
        if event.kind == "message" {
            seen += 1;
            ensure!(event.data["offset"] == seen, "{} is not {seen}", event.data["offset"]);
        }
    }
    ensure!(seen < FILLING as u64, "it was not sent away");
    let id = ends.last_id().to_owned();
    ends = open(&cluster, 0, "/v1/groups/close:a/events", &[("Last-Event-ID", &id)]).await?;
    for offset in seen + 1..=FILLING as u64 {
        let message = ends.event("message").await?;
        ensure!(message.data["offset"] == offset, "{} is not {offset}", message.data["offset"]);
    }
    let metrics = cluster.api(0).raw("GET".parse()?, "/metrics", None, Vec::new()).await?.text().await?;
    ensure!(metric(&metrics, "roost_limit_hits_total{limit=\"outbox_bytes\"}")? == 1, "one was sent away");
    ensure!(metric(&metrics, "roost_lagged_total")? >= 1, "one lagged");
    cluster.shut_down().await
}

async fn waiting(cluster: &Cluster) -> Result<usize> {
    let metrics = cluster.api(0).raw("GET".parse()?, "/metrics", None, Vec::new()).await?.text().await?;
    Ok(usize::try_from(metric(&metrics, "roost_memory_bytes{account=\"outboxes\"}")?)?)
}

// --- Its document ----------------------------------------------------------------------------------------------------

/// What the document shows that `curl` prints is what it prints, but for the numbers.
#[tokio::test(flavor = "multi_thread")]
async fn the_document_of_events_is_true() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(1, &[]).await?;
    let document = std::fs::read_to_string(super::elsewhere::repository().join("node/clients/sse/README.md"))?;
    let mut blocks = document.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let mut block =
        |kind: &str| blocks.find(|(given, _)| *given == kind).map(|(_, text)| text).context(kind.to_owned());
    let (command, expected) = (block("sh")?, block("text")?);
    let command = command.trim().replace("http://localhost:8000", &cluster.url(0));
    let mut curl = Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(curl.stdout.take().context("it prints")?).lines();
    let mut printed = Vec::new();
    let count = expected.lines().count();
    while printed.len() < count {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.context("curl prints too little")??;
        let line = line.with_context(|| format!("curl ends after {printed:#?}"))?;
        if line.contains("\"joined\"") {
            cluster.api(0).publish("chat:lobby", &json!({"text": "hello"}), None).await?;
        }
        printed.push(numberless(&line));
    }
    let expected: Vec<_> = expected.lines().map(numberless).collect();
    ensure!(printed == expected, "{printed:#?}\nis not\n{expected:#?}");
    curl.kill().await?;
    cluster.shut_down().await
}

/// Epochs and times as one sign.
fn numberless(line: &str) -> String {
    let mut parts: Vec<&str> = line.split_inclusive(|letter: char| !letter.is_ascii_hexdigit()).collect();
    for part in &mut parts {
        let digits = part.trim_end_matches(|letter: char| !letter.is_ascii_hexdigit());
        if digits.len() >= 13 {
            *part = if part.len() > digits.len() { "#." } else { "#" };
        }
    }
    parts.concat()
}
