//! Whatever clients send, each gets its own clear error, its connection the fate that the protocol names, and nobody else
//! is disturbed.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::{Api, Session},
    client::Client,
    cluster::{Cluster, Kind},
    load::{self, Load},
    socket::Socket,
    turn,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Of a session, unless configured otherwise.
const GROUPS_MAX: usize = 256;
const LIMIT: Duration = Duration::from_secs(20);

/// One cluster and one bystander for all: if any of it did harm, the bystander would show it.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_harms_only_its_sender() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::start(Kind::Library, 3).await?;
    let groups = load::groups(2);
    let bystander = load::client_on(&cluster, 0, "bystander", &groups).await?;
    let publisher = load::client_on(&cluster, 1, "publisher", &groups).await?;
    let load = Load::start(vec![publisher], &groups, Duration::from_millis(10));

    let api = cluster.api(0);
    let session = api.create_session("mallory").await?;
    before_hello(&cluster.url(0), &session).await.context("before hello")?;
    on_a_living_connection(&cluster.url(0), &session).await.context("on a living connection")?;
    that_end_the_connection(&cluster.url(0), &session).await.context("that end the connection")?;
    joins_beyond_the_limit(&cluster.url(0), &session).await.context("joins beyond the limit")?;
    garbage_on_the_wire(&cluster.url(0)).await.context("garbage on the wire")?;
    over_http(&api, &session).await.context("over HTTP")?;

    undisturbed(&bystander, load).await?;
    cluster.shut_down().await
}

async fn undisturbed(bystander: &Client, load: Load) -> Result<()> {
    let before = load::received(std::slice::from_ref(bystander));
    load::goes_on(std::slice::from_ref(bystander), &before, LIMIT).await?;
    let state = bystander.state();
    ensure!(state.connections == 1, "the bystander lost its connection: {state:?}");
    let quiet = ["joined", "member"];
    let told: Vec<_> = state
        .notices
        .iter()
        .filter(|notice| notice["type"].as_str().is_none_or(|kind| !quiet.contains(&kind)))
        .collect();
    ensure!(told.is_empty(), "the bystander was told {told:?}");
    let (publishers, heads) = load.stop().await?;
    heads.reached_by(std::slice::from_ref(bystander), LIMIT).await?;
    let sum = load::settle(publishers, &heads).await?.check()?;
    ensure!(sum.connections == 1 && sum.repeats == 0 && sum.gaps + sum.resets == 0, "{sum:?}");
    Ok(())
}

/// First frames that are answered with an error, a `bye` and a close code.
async fn before_hello(url: &str, session: &Session) -> Result<()> {
    let token = &session.token;
    let parts: Vec<&str> = token.split('.').collect();
    let [version, kid, id, number, tag] = parts[..] else { anyhow::bail!("a token of another form: {token}") };
    let altered = |text: &str| text.strip_prefix('A').map_or(format!("A{}", &text[1..]), |rest| format!("B{rest}"));
    let (other_id, other_tag) = (altered(id), altered(tag));
    let hello = |token: &str| json!({"type": "hello", "id": 1, "session": token}).to_string();
    let cases = [
        ("a forged tag", hello(&format!("{version}.{kid}.{id}.{number}.{other_tag}")), "unauthorized", 4102),
        ("another session's tag", hello(&format!("{version}.{kid}.{other_id}.{number}.{tag}")), "unauthorized", 4102),
        ("a truncated token", hello(&token[..token.len() - 5]), "unauthorized", 4102),
        ("half a token", hello(&format!("{version}.{kid}")), "unauthorized", 4102),
        ("a foreign key's token", hello(&format!("{version}.k9-foreign.{id}.{number}.{tag}")), "unauthorized", 4102),
        ("a token of a later version", hello(&format!("v3.{kid}.{id}.{number}.{tag}")), "unauthorized", 4102),
        ("a token with another number", hello(&format!("{version}.{kid}.{id}.1.{tag}")), "unauthorized", 4102),
        ("a token of an earlier version", hello(&format!("v1.{kid}.{id}.{tag}")), "unauthorized", 4102),
        ("an empty token", hello(""), "unauthorized", 4102),
        ("a token of 10,000 characters", hello(&"v".repeat(10_000)), "unauthorized", 4102),
        ("a token that is a number", json!({"type": "hello", "session": 5}).to_string(), "invalid", 4103),
        ("a field that does not exist", json!({"type": "hello", "sesion": token}).to_string(), "invalid", 4103),
        ("a join first", json!({"type": "join", "group": "g", "id": 1}).to_string(), "hello_first", 4103),
        ("no JSON", "hello".to_owned(), "bad_json", 4103),
        ("half a JSON", r#"{"type":"hello""#.to_owned(), "bad_json", 4103),
        ("an array", "[]".to_owned(), "bad_json", 4103),
        ("nothing", String::new(), "bad_json", 4103),
    ];
    for (name, text, code, close) in cases {
        let mut socket = Socket::connect(url).await?;
        socket.send_text(text).await?;
        ends_with(&mut socket, code, close).await.context(name)?;
    }
    // The same in the upgrade request's headers.
    let forged = format!("Bearer {version}.{kid}.{id}.{number}.{other_tag}");
    let mut socket = Socket::connect_with(url, "/ws", &[("authorization", &forged)]).await?;
    socket.send(&json!({"type": "hello"})).await?;
    ends_with(&mut socket, "unauthorized", 4102).await.context("a forged bearer token")?;
    // Never from the URL: what stands there is not looked at.
    let mut socket = Socket::connect_with(url, &format!("/ws?session={token}&token={token}"), &[]).await?;
    socket.send(&json!({"type": "hello"})).await?;
    let welcome = socket.frame().await?;
    ensure!(welcome["session"] != *session.id, "a token in the URL was used: {welcome}");
    socket.close().await;
    Ok(())
}

async fn ends_with(socket: &mut Socket, code: &str, close: u16) -> Result<()> {
    let (frames, closed) = socket.until_closed().await?;
    let told = || format!("told {frames:?}, closed with {closed}");
    let error = frames.iter().find(|frame| frame["type"] == "error" && frame["code"] == code);
    let error = error.with_context(|| format!("no error {code}: {}", told()))?;
    ensure!(error["message"].as_str().is_some_and(|message| message.len() > 10), "an empty message: {}", told());
    ensure!(closed == close, "closed with {closed} instead of {close}: {}", told());
    let bye = frames.last().filter(|frame| frame["type"] == "bye").with_context(|| format!("no bye: {}", told()))?;
    ensure!(bye["reconnect"] == false && bye["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{bye}");
    Ok(())
}

async fn attached(url: &str, session: &Session) -> Result<Socket> {
    let mut socket = Socket::connect(url).await?;
    socket.send(&json!({"type": "hello", "client": "tab", "session": session.token})).await?;
    socket.frame_of("welcome").await?;
    Ok(socket)
}

/// Frames that are answered with an error; the connection goes on.
async fn on_a_living_connection(url: &str, session: &Session) -> Result<()> {
    let mut socket = attached(url, session).await?;
    let deep = format!("{}1{}", "[".repeat(110), "]".repeat(110));
    let deep: Value = serde_json::from_str(&deep)?;
    let cases = [
        (json!({"type": "explode"}), "invalid", "type"),
        (json!({"type": "joyn", "group": "g"}), "invalid", "type"),
        (json!({"type": 7}), "invalid", "type"),
        (json!({}), "invalid", "type"),
        (json!({"type": "join"}), "invalid", "group"),
        (json!({"type": "join", "group": 5}), "invalid", "group"),
        (json!({"type": "join", "group": ["g"]}), "invalid", "group"),
        (json!({"type": "join", "group": ""}), "invalid", "group"),
        (json!({"type": "join", "group": "a\u{0}b"}), "invalid", "group"),
        (json!({"type": "join", "group": "tab\there"}), "invalid", "group"),
        (json!({"type": "join", "group": "del\u{7f}"}), "invalid", "group"),
        (json!({"type": "join", "group": "c1 \u{85}"}), "invalid", "group"),
        (json!({"type": "join", "group": "g".repeat(201)}), "invalid", "group"),
        (json!({"type": "join", "group": "g", "colour": "red"}), "invalid", "colour"),
        (json!({"type": "join", "group": "g", "since": 5}), "invalid", "since"),
        (json!({"type": "join", "group": "g", "since": {"epoch": "zz", "offset": 1}}), "invalid", "since.epoch"),
        (
            json!({"type": "join", "group": "g", "since": {"epoch": "0123456789abcdef", "offset": -1}}),
            "invalid",
            "since.offset",
        ),
        (json!({"type": "join", "group": "g", "since": {"epoch": "0123456789abcdef"}}), "invalid", "since.offset"),
        (json!({"type": "join", "group": "@user:alice"}), "forbidden", "group"),
        (json!({"type": "publish", "group": "g"}), "invalid", "data"),
        (json!({"type": "publish", "group": "g", "data": 1, "key": ""}), "invalid", "key"),
        (json!({"type": "publish", "group": "g", "data": "x".repeat(70_000)}), "invalid", "data"),
        (json!({"type": "publish", "group": "g", "data": deep}), "invalid", "data"),
        (json!({"type": "publish", "group": "not:joined", "data": 1}), "forbidden", "group"),
        (json!({"type": "publish", "group": "@user:alice", "data": 1}), "forbidden", "group"),
        (json!({"type": "history", "group": "g", "limit": 0}), "invalid", "limit"),
        (json!({"type": "history", "group": "g", "limit": 1_000_000}), "invalid", "limit"),
        (json!({"type": "history", "group": "g", "limit": 1.5}), "invalid", "limit"),
        (json!({"type": "members", "group": "g", "after": "nobody"}), "invalid", "after"),
        (json!({"type": "hello"}), "hello_again", ""),
    ];
    let mut messages = BTreeSet::new();
    for (number, (mut frame, code, field)) in cases.into_iter().enumerate() {
        // Numbers and strings are echoed as they came.
        frame["id"] = if number % 2 == 0 { json!(number) } else { json!(format!("request-{number}")) };
        let shown: String = frame.to_string().chars().take(200).collect();
        let answer = socket.ask(&frame).await.with_context(|| shown.clone())?;
        ensure!(answer["type"] == "error" && answer["code"] == code, "{shown} was answered with {answer}");
        let details = answer["detail"].as_array().with_context(|| format!("{shown}: no detail in {answer}"))?;
        let path = |detail: &Value| -> String {
            let steps = detail["loc"].as_array().into_iter().flatten();
            steps.filter_map(Value::as_str).collect::<Vec<_>>().join(".")
        };
        ensure!(
            field.is_empty() || details.iter().any(|detail| path(detail) == field),
            "{shown}: not {field}: {answer}"
        );
        let complete = |detail: &Value| detail["msg"].is_string() && detail["type"].is_string();
        ensure!(details.iter().all(complete), "{shown}: incomplete: {answer}");
        messages.insert(answer["message"].to_string());
    }
    ensure!(messages.len() >= 20, "the errors say too much the same: {messages:#?}");
    // What was in order before still is.
    let joined = socket.ask(&json!({"type": "join", "id": "end", "group": "chat:mallory"})).await?;
    ensure!(joined["type"] == "joined", "{joined}");
    let published =
        socket.ask(&json!({"type": "publish", "id": "p", "group": "chat:mallory", "data": {"ok": true}})).await?;
    ensure!(published["type"] == "published", "{published}");
    socket.close().await;
    Ok(())
}

async fn that_end_the_connection(url: &str, session: &Session) -> Result<()> {
    let mut socket = attached(url, session).await?;
    let large = json!({"type": "publish", "id": 1, "group": "g", "data": "x".repeat(1 << 20)});
    // The node may close before all of it is sent.
    let _ = socket.send(&large).await;
    ends_with(&mut socket, "frame_too_large", 1009).await.context("a frame of 1 MB")?;

    let mut socket = attached(url, session).await?;
    socket.send_binary((0..=255).cycle().take(5_000).collect()).await?;
    ends_with(&mut socket, "binary_frame", 1003).await.context("binary garbage")?;

    let mut socket = attached(url, session).await?;
    socket.send_text_bytes(vec![b'"', 0xff, 0xfe, b'"']).await?;
    ends_with(&mut socket, "not_utf8", 1007).await.context("text that is not UTF-8")?;

    for text in ["{", "null", "{\"type\":\"heartbeat\"} {}", "\u{feff}{}", "{\"type\":\"heartbeat\",}"] {
        let mut socket = attached(url, session).await?;
        socket.send_text(text.to_owned()).await?;
        ends_with(&mut socket, "bad_json", 4103).await.with_context(|| format!("no JSON object: {text:?}"))?;
    }
    Ok(())
}

async fn joins_beyond_the_limit(url: &str, session: &Session) -> Result<()> {
    let mut socket = attached(url, session).await?;
    // It has joined one already.
    let mut refused = 0;
    for number in 0..GROUPS_MAX + 10 {
        let answer = socket.ask(&json!({"type": "join", "id": number, "group": format!("many:{number}")})).await?;
        if number < GROUPS_MAX - 1 {
            ensure!(answer["type"] == "joined", "join {number} of {GROUPS_MAX}: {answer}");
        } else {
            ensure!(answer["code"] == "too_many_groups", "join {number} of {GROUPS_MAX}: {answer}");
            refused += 1;
        }
    }
    ensure!(refused == 11, "{refused} joins were refused");
    let left = socket.ask(&json!({"type": "leave", "id": "leave", "group": "many:0"})).await?;
    ensure!(left["type"] == "left", "{left}");
    let joined = socket.ask(&json!({"type": "join", "id": "again", "group": "many:again"})).await?;
    ensure!(joined["type"] == "joined", "after leaving one there is room: {joined}");
    socket.close().await;
    Ok(())
}

/// Bytes that are no HTTP, and HTTP that is no WebSocket.
async fn garbage_on_the_wire(url: &str) -> Result<()> {
    let address = url.trim_start_matches("http://");
    let requests: [&[u8]; 6] = [
        &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0xff],
        b"GARBAGE\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 7\r\nSec-WebSocket-Key: x\r\n\r\n",
    ];
    for request in requests {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
        let shown = String::from_utf8_lossy(request).into_owned();
        // A reset is an end too.
        let _ = reading.with_context(|| format!("the connection stays open after {shown:?}"))?;
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        ensure!(status.is_none_or(|status| (400..500).contains(&status)), "{shown:?} was answered with {status:?}");
    }
    Ok(())
}

/// Calls with something wrong in them: each is answered with the place of what is wrong.
async fn over_http(api: &Api, session: &Session) -> Result<()> {
    let sessions = "/v1/sessions";
    let messages = "/v1/groups/g/messages";
    let one = format!("/v1/sessions/{}", session.id);
    let bodies = [
        (Method::POST, sessions, json!({}), "body.user"),
        (Method::POST, sessions, json!({"user": 5}), "body.user"),
        (Method::POST, sessions, json!({"user": ""}), "body.user"),
        (Method::POST, sessions, json!({"user": "a\u{0}"}), "body.user"),
        (Method::POST, sessions, json!({"user": "a", "ttl_s": "long"}), "body.ttl_s"),
        (Method::POST, sessions, json!({"user": "a", "ttl_s": 0}), "body.ttl_s"),
        (Method::POST, sessions, json!({"user": "a", "ttl_s": -1}), "body.ttl_s"),
        (Method::POST, sessions, json!({"user": "a", "attributes": [1]}), "body.attributes"),
        (Method::POST, sessions, json!({"user": "a", "groups": ["fine", "b\u{1}d"]}), "body.groups.1"),
        (Method::POST, sessions, json!({"user": "a", "groups": ["@user:b"]}), "body.groups.0"),
        (
            Method::POST,
            sessions,
            json!({"user": "a", "grants": [{"pattern": "x", "join": 1, "publish": true}]}),
            "body.grants.0.join",
        ),
        (
            Method::POST,
            sessions,
            json!({"user": "a", "grants": [{"join": true, "publish": true}]}),
            "body.grants.0.pattern",
        ),
        (Method::POST, sessions, json!({"user": "a", "colour": "red"}), "body.colour"),
        (Method::PATCH, &one, json!({"ttl": 5}), "body.ttl"),
        (Method::POST, messages, json!({}), "body.data"),
        (Method::POST, messages, json!({"data": 1, "key": 5}), "body.key"),
        (Method::POST, messages, json!({"data": 1, "extra": 5}), "body.extra"),
        (Method::POST, "/v1/groups/a%00b/messages", json!({"data": 1}), "path.group"),
        (Method::POST, "/v1/broadcast", json!({"groups": [], "data": 1}), "body.groups"),
        (Method::POST, "/v1/broadcast", json!({"groups": ["a", 5], "data": 1}), "body.groups.1"),
        (
            Method::POST,
            "/v1/batch",
            json!({"publishes": [{"group": "a", "data": 1}, {"group": "b"}]}),
            "body.publishes.1.data",
        ),
        (Method::GET, "/v1/sessions/not-a-uuid", Value::Null, "path.id"),
        (Method::GET, "/v1/groups/g/messages?limit=0", Value::Null, "query.limit"),
        (Method::GET, "/v1/groups/g/messages?limit=many", Value::Null, "query.limit"),
        (Method::GET, "/v1/groups/g/messages?since_offset=5", Value::Null, "query.since_epoch"),
        (Method::GET, "/v1/groups/g/messages?since_epoch=zz&since_offset=5", Value::Null, "query.since_epoch"),
        (Method::GET, "/v1/groups?colour=red", Value::Null, "query.colour"),
    ];
    for (method, path, body, place) in bodies {
        let shown = format!("{method} {path} {body}");
        let answer = api.call(method, path, body).await?;
        ensure!(answer.status == 422, "{shown} was answered with {answer:?}");
        names_place(&answer.body, Some(place)).with_context(|| shown)?;
    }

    let json = Some("application/json");
    let raw: [(&str, Option<&str>, Vec<u8>, u16); 7] = [
        ("half a JSON", json, b"{\"user\":".to_vec(), 422),
        ("no JSON", json, b"user=alice".to_vec(), 422),
        ("an empty body", json, Vec::new(), 422),
        ("not UTF-8", json, b"{\"user\":\"\xff\"}".to_vec(), 422),
        ("a form", Some("application/x-www-form-urlencoded"), b"user=alice".to_vec(), 415),
        ("no content type", None, b"{\"user\":\"alice\"}".to_vec(), 415),
        ("more than a body may have", json, format!("{{\"user\":\"{}\"}}", "x".repeat(2 << 20)).into_bytes(), 413),
    ];
    for (name, content_type, body, status) in raw {
        let response = api.raw(Method::POST, sessions, content_type, body).await?;
        ensure!(response.status().as_u16() == status, "{name}: {}", response.status());
        names_place(&response.json().await?, None).context(name)?;
    }

    for (name, key) in [("no key", None), ("a wrong key", Some("not-the-key"))] {
        let answer = api.clone().with_key(key).get("/v1/groups").await?;
        ensure!(answer.status == 401, "{name}: {answer:?}");
        names_place(&answer.body, None).context(name)?;
    }
    for (method, path, status) in [(Method::GET, "/v1/nowhere", 404), (Method::PUT, sessions, 405)] {
        let answer = api.call(method, path, Value::Null).await?;
        ensure!(answer.status == status, "{path}: {answer:?}");
        names_place(&answer.body, None).context(path)?;
    }
    Ok(())
}

/// The body is `{"detail": [{loc, msg, type}]}`, and one of them names this place.
fn names_place(body: &Value, place: Option<&str>) -> Result<()> {
    let details = body["detail"].as_array().filter(|details| !details.is_empty());
    let details = details.with_context(|| format!("no detail in {body}"))?;
    let path = |detail: &Value| -> String {
        let steps = detail["loc"].as_array().into_iter().flatten();
        steps.map(|step| step.as_str().map_or(step.to_string(), str::to_owned)).collect::<Vec<_>>().join(".")
    };
    let complete = |detail: &Value| detail["loc"].is_array() && detail["msg"].is_string() && detail["type"].is_string();
    ensure!(details.iter().all(complete), "incomplete: {body}");
    let named = place.is_none_or(|place| details.iter().any(|detail| path(detail) == place));
    ensure!(named, "{place:?} is not named in {body}");
    Ok(())
}
