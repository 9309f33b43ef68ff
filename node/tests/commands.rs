//! The commands against a stand-in for a node: what they send, and what they say when things go wrong.
#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use roost::{clock, watchdog};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::server::create_response_with_body, protocol::Role},
};

const EPOCH: &str = "00000000000000ab";
const LIMIT: Duration = Duration::from_secs(30);

/// One group, one log; enough of the protocol for the commands.
#[derive(Debug)]
struct Stub {
    log: Mutex<Vec<Value>>,
    news: broadcast::Sender<Value>,
    /// Frames that clients sent.
    heard: Mutex<Vec<Value>>,
    /// A message with this data ends the connections after it.
    cut_after: Value,
}

impl Stub {
    async fn start() -> (Arc<Self>, u16) {
        let stub = Arc::new(Self {
            log: Mutex::default(),
            news: broadcast::channel(10_000).0,
            heard: Mutex::default(),
            cut_after: json!("cut"),
        });
        let routes = Router::new()
            .route("/ws", any(upgrade))
            .route("/v1/groups/{group}/messages", post(publish))
            .route(
                "/v1/sessions",
                post(|| async { (StatusCode::CREATED, Json(json!({"session": {"id": "s"}, "token": "v1.t"}))) }),
            )
            .route(
                "/v1/cluster/health",
                get(|| async { Json(json!({"status": "green", "nodes": [{"node": "n1", "alive": true}]})) }),
            )
            .with_state(stub.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        roost::tasks::Tasks::new().spawn_detached("stub", async move { axum::serve(listener, routes).await.unwrap() });
        (stub, port)
    }

    fn append(&self, group: &str, data: &Value) -> u64 {
        let mut log = self.log.lock().unwrap();
        let offset = log.len() as u64 + 1;
        let message = json!({"type": "message", "group": group, "epoch": EPOCH, "offset": offset, "data": data});
        log.push(message.clone());
        let _ = self.news.send(message);
        offset
    }
}

async fn publish(
    State(stub): State<Arc<Stub>>,
    Path(group): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    if headers.get("authorization").is_none_or(|value| value != "Bearer dev-key") {
        let detail = json!({"detail": [{"loc": [], "msg": "this key is not known", "type": "unauthorized"}]});
        return (StatusCode::UNAUTHORIZED, Json(detail)).into_response();
    }
    let body: Value = serde_json::from_str(&body).unwrap();
    stub.heard.lock().unwrap().push(body.clone());
    let first = stub.heard.lock().unwrap().iter().filter(|heard| heard["data"] == body["data"]).count() == 1;
    if body["data"] == "busy" && first {
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")], "busy").into_response();
    }
    Json(json!({"epoch": EPOCH, "offset": stub.append(&group, &body["data"]), "copies": 2})).into_response()
}

async fn upgrade(State(stub): State<Arc<Stub>>, mut request: Request) -> Response {
    let answer = create_response_with_body(&request, Body::empty).unwrap();
    let upgraded = hyper::upgrade::on(&mut request);
    roost::tasks::Tasks::new().spawn_detached("socket", async move {
        let connection = TokioIo::new(upgraded.await.unwrap());
        talk(stub, WebSocketStream::from_raw_socket(connection, Role::Server, None).await).await;
    });
    answer
}

async fn talk(stub: Arc<Stub>, mut socket: WebSocketStream<TokioIo<Upgraded>>) {
    let mut news = stub.news.subscribe();
    let mut group = None;
    loop {
        let answer = tokio::select! {
            frame = socket.next() => {
                let Some(Ok(Message::Text(text))) = frame else { return };
                let frame: Value = serde_json::from_str(&text).unwrap();
                stub.heard.lock().unwrap().push(frame.clone());
                match frame["type"].as_str().unwrap() {
                    "hello" => vec![json!({"type": "welcome", "session": "s", "token": "v1.t", "node": "n1", "heartbeat_s": 30, "groups": []})],
                    "join" => {
                        group = frame["group"].as_str().map(str::to_owned);
                        let log = stub.log.lock().unwrap().clone();
                        let mut answer = vec![json!({"type": "joined", "id": frame["id"], "group": group, "epoch": EPOCH, "offset": log.len(), "recovered": true})];
                        if let Some(since) = frame["since"]["offset"].as_u64() {
                            answer.extend(log.into_iter().skip(since as usize));
                        }
                        answer
                    }
                    "publish" => {
                        let group = frame["group"].as_str().unwrap();
                        let offset = stub.append(group, &frame["data"]);
                        vec![json!({"type": "published", "id": frame["id"], "group": group, "epoch": EPOCH, "offset": offset, "copies": 2})]
                    }
                    _ => vec![json!({"type": "heartbeat"})],
                }
            }
            Ok(message) = news.recv() => {
                if group.as_deref() == message["group"].as_str() { vec![message] } else { continue }
            }
        };
        for frame in answer {
            if socket.send(Message::text(frame.to_string())).await.is_err() {
                return;
            }
            if frame["data"] == stub.cut_after && frame["type"] == "message" {
                return;
            }
        }
    }
}

fn roost(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    command.args(arguments).env_remove("ROOST_API_KEY").env_remove("ROOST_URL").env_remove("ROOST_TOKEN");
    command.stdin(Stdio::null());
    command
}

/// A command that runs on; killed when dropped.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = roost(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines_out = BufReader::new(child.stdout.take().unwrap()).lines();
        let (line_in, lines) = mpsc::channel(100);
        std::thread::spawn(move || lines_out.map_while(Result::ok).try_for_each(|line| line_in.blocking_send(line)));
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        tokio::time::timeout(LIMIT, self.lines.recv()).await.expect("a line in time").expect("the command runs on")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn output(arguments: &[&str]) -> (Output, String, String) {
    let mut command = roost(arguments);
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(LIMIT, output).await.unwrap().unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

#[tokio::test]
async fn publish_prints_the_answer_and_explains_refusals() {
    let (stub, port) = Stub::start().await;
    let url = format!("http://127.0.0.1:{port}");
    let (done, out, err) = output(&["publish", "chat/1 ü", "{\"a\":1.50}", "--url", &url, "--key", "k"]).await;
    assert!(done.status.success(), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), json!({"epoch": EPOCH, "offset": 1, "copies": 2}));
    assert_eq!(stub.log.lock().unwrap()[0]["group"], "chat/1 ü");
    assert_eq!(stub.heard.lock().unwrap()[0], json!({"data": {"a": 1.5}, "key": "k"}));

    let (done, ..) = output(&["publish", "chat", "typing", "--url", &url, "--ephemeral"]).await;
    let heard = stub.heard.lock().unwrap().last().cloned();
    assert_eq!((done.status.success(), heard), (true, Some(json!({"data": "typing", "ephemeral": true}))));
    let (done, _, err) = output(&["publish", "chat", "x", "--url", &url, "--ephemeral", "--key", "k"]).await;
    assert!(!done.status.success() && err.contains("--key"), "{err}");

    let (done, _, err) = output(&["publish", "chat", "busy", "--url", &url]).await;
    assert!(done.status.success() && err.contains("503"), "{err}");
    let keys: Vec<Value> = stub
        .heard
        .lock()
        .unwrap()
        .iter()
        .filter(|heard| heard["data"] == "busy")
        .map(|heard| heard["key"].clone())
        .collect();
    assert!(keys.len() == 2 && keys[0] == keys[1] && keys[0].is_string(), "a retry has the key of the first: {keys:?}");

    let (done, out, err) = output(&["publish", "chat", "x", "--url", &url, "--api-key", "wrong"]).await;
    assert!(!done.status.success() && out.is_empty(), "{out}");
    assert!(err.contains("401") && err.contains("this key is not known") && err.contains("ROOST_API_KEY"), "{err}");
    let (done, _, err) = output(&["publish", "chat", "x", "--url", "https://localhost"]).await;
    assert!(!done.status.success() && err.contains("not TLS"), "{err}");
    let (done, _, err) = output(&["publish", "bad\u{1}", "x", "--url", &url]).await;
    assert!(!done.status.success() && err.contains("control characters"), "{err}");
}

#[tokio::test]
async fn tail_goes_on_where_it_stopped() {
    let (stub, port) = Stub::start().await;
    let url = format!("ws://127.0.0.1:{port}/ws");
    stub.append("g", &json!("before"));
    let since = format!("{EPOCH}:0");
    let mut tail = Running::start(&["tail", "g", "--url", &url, "--since", &since]);
    let mut next = async || -> (u64, Value) {
        let message: Value = serde_json::from_str(&tail.line().await).unwrap();
        (message["offset"].as_u64().unwrap(), message["data"].clone())
    };
    assert_eq!(next().await, (1, json!("before")));
    stub.append("other", &json!("not ours"));
    stub.append("g", &json!({"a": "line\nend"}));
    assert_eq!(next().await, (3, json!({"a": "line\nend"})));
    stub.append("g", &json!("cut"));
    stub.append("g", &json!("while away"));
    assert_eq!(next().await, (4, json!("cut")));
    assert_eq!(next().await, (5, json!("while away")));
    let heard = stub.heard.lock().unwrap().clone();
    let hellos: Vec<&Value> = heard.iter().filter(|frame| frame["type"] == "hello").collect();
    assert_eq!(hellos.len(), 2, "{heard:?}");
    assert_eq!(
        (&hellos[1]["session"], &hellos[1]["resume"]["g"]),
        (&json!("v1.t"), &json!({"epoch": EPOCH, "offset": 4}))
    );
}

#[tokio::test]
async fn tail_without_a_node_says_what_to_try() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("ws://127.0.0.1:{port}/ws");
    let (done, _, err) = output(&["tail", "g", "--url", &url]).await;
    assert!(done.status.code() == Some(1) && err.contains("roost dev"), "{err}");
}

#[tokio::test]
async fn bench_counts_what_arrives() {
    let (_stub, port) = Stub::start().await;
    let url = format!("http://127.0.0.1:{port}");
    for via in ["ws", "http"] {
        let arguments =
            ["bench", "fanout", "--urls", &url, "--members", "3", "--window", "4", "--seconds", "0.5", "--json"];
        let (done, out, err) = output(&[&arguments[..], &["--via", via]].concat()).await;
        assert!(done.status.success(), "{via}: {out} {err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        for fault in ["missing", "repeats", "disorder", "holes", "refused", "unanswered"] {
            assert_eq!(report["faults"][fault], 0, "{via}, {fault}: {report}");
        }
        assert!(report["deliveries"].as_u64().unwrap() > 3, "{via}: {report}");
        assert!(report["latency"]["p50_us"].as_u64().unwrap() <= report["latency"]["max_us"].as_u64().unwrap());
    }
}

#[tokio::test]
async fn status_and_token_read_their_answers() {
    let (_stub, port) = Stub::start().await;
    let url = format!("http://127.0.0.1:{port}");
    let (done, out, err) = output(&["status", "--url", &url]).await;
    assert!(done.status.success() && out.starts_with("cluster green"), "{out} {err}");
    let (done, out, err) = output(&["token", "new", "--user", "ann", "--url", &url]).await;
    assert!(done.status.success(), "{err}");
    assert_eq!(out, "v1.t\n", "only the token, to be used by a script");
}

#[tokio::test]
async fn keys_sign_and_check_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("k.toml");
    let file = file.to_str().unwrap();
    assert!(output(&["keys", "new", "--file", file]).await.0.status.success());
    let session = "0f0e0d0c-0b0a-4908-8706-050403020100";
    let (_, token, _) = output(&["token", "sign", session, "--keyring", file]).await;
    assert!(output(&["keys", "new", "--file", file, "--rotate"]).await.0.status.success());
    let (done, out, _) = output(&["token", "check", token.trim(), "--keyring", file]).await;
    assert!(done.status.success());
    assert_eq!(out.trim(), session);
    let (done, _, err) = output(&["token", "check", &token.trim().replace("v2.", "v2.x"), "--keyring", file]).await;
    assert!(!done.status.success() && err.contains("not known here"), "{err}");
    let (_, listed, _) = output(&["keys", "list", "--file", file]).await;
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

#[tokio::test]
async fn check_config_names_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.toml");
    std::fs::write(&file, "[limits]\nidle_sec = 3\n[node]\nid = 4\n").unwrap();
    let (done, _, err) = output(&["check-config", file.to_str().unwrap()]).await;
    assert_eq!(done.status.code(), Some(1));
    assert!(err.contains("limits.idle_s") && err.contains("node.id: found the number 4, expected a string"), "{err}");
    std::fs::write(&file, "").unwrap();
    let (done, out, err) = output(&["check-config", file.to_str().unwrap()]).await;
    assert!(done.status.success() && out.contains("is right"), "{out} {err}");
    assert!(!err.contains("jwt."), "{err}");
    std::fs::write(&file, "[jwt]\nsecrets = { main = 'guess-me' }\n").unwrap();
    let (done, _, err) = output(&["check-config", file.to_str().unwrap()]).await;
    assert!(!done.status.success() && err.contains("jwt.secrets") && !err.contains("guess-me"), "{err}");
    std::fs::write(&file, "[jwt]\npublic_keys = { k1 = '/nowhere/k1.pem' }\n").unwrap();
    let (done, _, err) = output(&["check-config", file.to_str().unwrap()]).await;
    assert!(done.status.success(), "{err}");
    for told in ["/nowhere/k1.pem", "jwt.audience is not set", "jwt.issuer is not set"] {
        assert!(err.contains(told), "{told}: {err}");
    }
}

/// Makes what a node needs, and its configuration with this at the end.
async fn prepare(folder: &std::path::Path, more: &str) -> String {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for arguments in [
        &["certs", "init", "--dir", &at("")][..],
        &["certs", "node", "n1", "--dir", &at("")],
        &["keys", "new", "--file", &at("keyring.toml")],
    ] {
        let (done, _, err) = output(arguments).await;
        assert!(done.status.success(), "{err}");
    }
    let config = format!(
        "[tls]\nca = '{}'\ncert = '{}'\nkey = '{}'\n[auth]\napi_keys = ['0123456789abcdef']\nkeyring = '{}'\n\
         [node]\nhttp_listen = '127.0.0.1:0'\npeer_listen = '127.0.0.1:0'\n{more}",
        at("ca.pem"),
        at("n1.pem"),
        at("n1.key"),
        at("keyring.toml"),
    );
    std::fs::write(at("node.toml"), config).unwrap();
    at("node.toml")
}

/// Nobody takes its log: once the pipe is full, every thread that logs waits, and in the end there is none that doesn't.
#[tokio::test]
async fn a_node_whose_threads_all_wait_is_ended_by_its_watchdog() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.redb");
    let more = format!("watchdog_ms = 3000\n[store]\npath = '{}'\n[log]\nlevel = 'debug'\n", store.display());
    let config = prepare(folder.path(), &more).await;
    let mut node = roost(&["serve", "--config", &config]);
    let mut node = node.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(node.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let address = said.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    let until = clock::deadline(4 * LIMIT);
    let status = loop {
        if let Some(status) = node.try_wait().unwrap() {
            break status;
        }
        assert!(clock::deadline(Duration::ZERO) < until, "it goes on without a thread that runs");
        // Each is worth a line.
        if let Ok(mut socket) = std::net::TcpStream::connect(&address) {
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = socket.write_all(b"garbage\r\n\r\n");
            let _ = socket.read(&mut [0; 16]);
        }
    };
    assert_eq!(status.code(), Some(watchdog::EXIT_CODE));
}

#[tokio::test]
async fn a_node_waits_for_a_store_that_is_down_says_so_and_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    // A port on which nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let more = format!("[store]\nkind = 'cassandra'\n[store.cassandra]\ncontact_points = ['{address}']\n");
    let config = prepare(folder.path(), &more).await;

    let mut child = roost(&["serve", "--config", &config]).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let (child, said) = tokio::task::spawn_blocking(move || {
        let mut waits = said.by_ref().map_while(Result::ok).skip_while(|line| !line.contains("the store is needed"));
        let line = waits.next().unwrap();
        let stopped = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(stopped.success());
        let status = child.wait().unwrap();
        (status, line)
    })
    .await
    .unwrap();
    assert!(said.contains(&address.to_string()) && said.contains("trying again"), "{said}");
    assert!(child.success(), "{child}");

    let (done, _, err) = output(&["store", "check", "--config", &config]).await;
    assert_eq!(done.status.code(), Some(1));
    assert!(err.contains(&address.to_string()) && err.contains("did not answer"), "{err}");
    let (done, cql, _) = output(&["store", "schema", "--config", &config]).await;
    assert!(done.status.success() && cql.contains("CREATE TABLE IF NOT EXISTS roost.sessions "), "{cql}");
}

#[tokio::test]
async fn dev_with_one_node_is_a_healthy_cluster_and_can_be_stopped() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let mut dev = Running::start(&["dev", "--nodes", "1", "--port", &port]);
    while !dev.line().await.starts_with("health") {}
    let (done, out, err) = output(&["status", "--url", &format!("http://127.0.0.1:{port}")]).await;
    assert!(done.status.success() && out.starts_with("cluster green"), "{out} {err}");
    let stopped = Command::new("kill").args(["-TERM", &dev.child.id().to_string()]).status().unwrap();
    assert!(stopped.success() && dev.child.wait().unwrap().success());
}
