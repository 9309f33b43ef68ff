//! Tokens that backends make, over real nodes: who comes with one gets a session of it, resumes it anywhere, goes on with a later one
//! and ends with it; and nobody else gets anything by one.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    cluster::Cluster,
    jwt::{self, Key, Keys, now_s},
    reader::Reader,
    socket::Socket,
    turn,
    wait::wait_until,
};
use roost::tasks::Tasks;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(30);
const NODES: usize = 3;

/// Nodes that take tokens of these keys, and of `jwt::SECRET`, and notice soon that one expires.
async fn nodes(keys: &Keys) -> Result<Cluster> {
    let url = keys.url();
    let settings = [
        ("ROOST_JWT__JWKS_URL", url.as_str()),
        ("ROOST_JWT__SECRETS__MAIN", jwt::SECRET),
        ("ROOST_JWT__AUDIENCE", "roost"),
        ("ROOST_JWT__ISSUER", "backend"),
        ("ROOST_JWT__LEEWAY_S", "0"),
        ("ROOST_LIMITS__HEARTBEAT_S", "2"),
        ("ROOST_NAMESPACES__ROOM__JOIN", "granted"),
    ];
    Cluster::program_with(NODES, &settings).await
}

fn claims(user: &str, lasts_s: u64, more: &Value) -> Value {
    let mut claims = json!({"sub": user, "aud": "roost", "iss": "backend", "exp": now_s() + lasts_s});
    if let (Some(claims), Some(more)) = (claims.as_object_mut(), more.as_object()) {
        claims.extend(more.clone());
    }
    claims
}

fn secret(user: &str, lasts_s: u64, more: &Value) -> Result<String> {
    jwt::hs256(jwt::SECRET, &claims(user, lasts_s, more))
}

/// Someone who says this, and what the node answers.
async fn hello(cluster: &Cluster, node: usize, said: Value) -> Result<(Socket, Value)> {
    let mut socket = Socket::connect(&cluster.url(node)).await?;
    let mut hello = json!({"type": "hello"});
    if let (Some(hello), Some(said)) = (hello.as_object_mut(), said.as_object()) {
        hello.extend(said.clone());
    }
    socket.send(&hello).await?;
    let answer = socket.frame().await?;
    Ok((socket, answer))
}

async fn welcome(cluster: &Cluster, node: usize, said: Value) -> Result<(Socket, Value)> {
    let (socket, answer) = hello(cluster, node, said).await?;
    ensure!(answer["type"] == "welcome", "{answer}");
    Ok((socket, answer))
}

/// The code that is told, and the one that the connection is closed by.
async fn refused(cluster: &Cluster, node: usize, token: &str) -> Result<(String, u16)> {
    let (mut socket, answer) = hello(cluster, node, json!({"session": token})).await?;
    ensure!(answer["type"] == "error", "{answer}");
    let (_, close) = socket.until_closed().await?;
    Ok((answer["code"].as_str().context("an error has a code")?.to_owned(), close))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_token_opens_and_resumes_and_is_refreshed_and_expires() -> Result<()> {
    let _turn = turn::take(module_path!());
    let tasks = Tasks::new();
    let keys = Keys::start(&tasks).await?;
    let mut cluster = nodes(&keys).await?;
    let key = Key::new("k1")?;
    let token = |user, lasts_s, more: Value| key.token(&claims(user, lasts_s, &more));

    // Nobody is denied for keys that cannot be had now, and what needs none of them is not affected.
    let later = refused(&cluster, 0, &token("ann", 60, json!({}))?).await?;
    ensure!(later == ("unavailable".to_owned(), 4006), "{later:?}");
    welcome(&cluster, 0, json!({"session": secret("ann", 60, &json!({}))?})).await?;
    keys.serve(&[&key]);
    let ann = token(
        "ann",
        600,
        json!({
            "info": {"name": "Ann"}, "channels": ["news"],
            "roost": {"grants": [{"pattern": "room:*", "join": true, "publish": true}, {"pattern": "news", "join": true}]},
        }),
    )?;
    for node in 0..NODES {
        let served = async || welcome(&cluster, node, json!({"session": ann})).await.is_ok();
        wait_until("the keys to be read", LIMIT, served).await?;
    }

    let (mut socket, there) = welcome(&cluster, 1, json!({"session": ann, "client": "tab"})).await?;
    ensure!(there["user"] == "ann" && there["token"].is_string(), "{there}");
    let lasts_ms = there["expires_in_ms"].as_u64().context("it is told how long it lasts")?;
    ensure!((590_000..=600_000).contains(&lasts_ms), "{there}");
    let groups = there["groups"].as_array().context("groups")?;
    ensure!(groups.contains(&json!("news")) && groups.contains(&json!("@user:ann")), "{there}");
    let joined = socket.ask(&json!({"type": "join", "id": 1, "group": "room:1"})).await?;
    ensure!(joined["type"] == "joined", "{joined}");
    let denied = socket.ask(&json!({"type": "join", "id": 2, "group": "chat:1"})).await?;
    ensure!(denied["code"] == "forbidden", "its grants are all that it may: {denied}");
    let members = cluster.api(0).get("/v1/groups/room:1/members").await?;
    ensure!(members.body["members"][0]["info"]["name"] == "Ann", "{members:?}");

    // Its node dies. It resumes on another by what it was given, and what it missed follows.
    cluster.crash(1).await?;
    let api = cluster.api(0);
    let published = async || {
        let sent = api.post("/v1/groups/room:1/messages", json!({"data": "missed", "key": "m"})).await;
        sent.is_ok_and(|sent| sent.status == 200)
    };
    wait_until("a publish to be taken", LIMIT, published).await?;
    let at = json!({"epoch": joined["epoch"], "offset": joined["offset"]});
    let again = json!({"session": there["token"], "client": "tab", "resume": {"room:1": at}});
    let mut resumed = None;
    let comes_back = async || {
        resumed = welcome(&cluster, 2, again.clone()).await.ok();
        resumed.is_some()
    };
    wait_until("it to resume", LIMIT, comes_back).await?;
    let (mut socket, back) = resumed.context("it has resumed")?;
    ensure!(back["session"] == there["session"] && back["user"] == "ann", "{back}");
    let missed = socket.frame_of("message").await?;
    ensure!(missed["data"] == "missed" && missed["group"] == "room:1", "{missed}");

    // Another user's token is another session, whoever it says to be; and so is the same one where it comes once more.
    let bob = token("bob", 60, json!({}))?;
    let (_bobs, as_bob) = welcome(&cluster, 0, json!({"session": bob, "client": "tab"})).await?;
    ensure!(as_bob["user"] == "bob" && as_bob["session"] != there["session"], "{as_bob}");
    let (_second, second) = welcome(&cluster, 0, json!({"session": ann, "client": "tab"})).await?;
    ensure!(second["session"] != there["session"], "{second}");
    let alive = socket.ask(&json!({"type": "heartbeat", "id": 3})).await?;
    ensure!(alive["type"] == "heartbeat", "{alive}");

    refreshes(&cluster, &mut socket, &there, &token).await?;
    for (wrong, code) in [
        (json!({"aud": "other"}), "unauthorized"),
        (json!({"iss": "other"}), "unauthorized"),
        (json!({"exp": now_s() - 1}), "token_expired"),
        (json!({"nbf": now_s() + 60}), "unauthorized"),
        (json!({"channel": "news"}), "unauthorized"),
    ] {
        let told = refused(&cluster, 0, &token("ann", 60, wrong.clone())?).await?;
        let close = if code == "token_expired" { 4107 } else { 4102 };
        ensure!(told == (code.to_owned(), close), "{wrong}: {told:?}");
    }
    expires(&cluster, &token("ann", 4, json!({}))?).await?;
    tasks.shut_down(Duration::from_secs(1)).await;
    cluster.shut_down().await
}

/// A later token of the same user takes the place of the one before, with its rights.
async fn refreshes(
    cluster: &Cluster,
    socket: &mut Socket,
    there: &Value,
    token: &impl Fn(&'static str, u64, Value) -> Result<String>,
) -> Result<()> {
    for (number, (wrong, code)) in [
        (token("bob", 900, json!({}))?, "forbidden"),
        (jwt::hs256("some other secret of more than 32 bytes", &claims("ann", 900, &json!({})))?, "unauthorized"),
        (there["token"].as_str().unwrap_or_default().to_owned(), "unauthorized"),
    ]
    .into_iter()
    .enumerate()
    {
        let told = socket.ask(&json!({"type": "refresh", "id": 10 + number, "token": wrong})).await?;
        ensure!(told["type"] == "error" && told["code"] == code, "{told}");
    }
    let later = token(
        "ann",
        1_200,
        json!({"roost": {
            "grants": [{"pattern": "room:2", "join": true}], "groups": ["more"],
        }}),
    )?;
    socket.send(&json!({"type": "refresh", "id": 20, "token": later})).await?;
    let (mut refreshed, mut left, mut more) = (false, false, false);
    while !(refreshed && left && more) {
        let frame = socket.frame().await?;
        if frame["type"] == "refreshed" {
            let lasts_ms = frame["expires_in_ms"].as_u64().unwrap_or_default();
            ensure!(frame["id"] == 20 && (1_150_000..=1_200_000).contains(&lasts_ms), "{frame}");
            refreshed = true;
        }
        left |= frame["type"] == "left" && frame["group"] == "room:1" && frame["reason"] == "grants";
        more |= frame["type"] == "joined" && frame["group"] == "more";
    }
    let joined = socket.ask(&json!({"type": "join", "id": 21, "group": "room:2"})).await?;
    ensure!(joined["type"] == "joined", "{joined}");
    let read = cluster.api(0).get(&format!("/v1/sessions/{}", there["session"].as_str().unwrap_or_default())).await?;
    ensure!(read.body["session"]["ephemeral"] == true && read.body["session"]["user"] == "ann", "{read:?}");
    // A session that a backend made over HTTP lasts as long as that said.
    let made = cluster.api(0).post("/v1/sessions", json!({"user": "ann"})).await?;
    let (mut other, _) = welcome(cluster, 0, json!({"session": made.body["token"]})).await?;
    let told = other.ask(&json!({"type": "refresh", "id": 1, "token": later})).await?;
    ensure!(told["code"] == "forbidden", "{told}");
    Ok(())
}

/// Who has no later token is told before, and closed.
async fn expires(cluster: &Cluster, token: &str) -> Result<()> {
    let (mut socket, there) = welcome(cluster, 0, json!({"session": token})).await?;
    let expiring = socket.frame_of("expiring").await?;
    let left_ms = expiring["expires_in_ms"].as_u64().context("how long it lasts")?;
    ensure!(left_ms <= 4_000, "{expiring}");
    let (frames, close) = socket.until_closed().await?;
    let bye = frames.last().context("it is told why")?;
    ensure!(close == 4107 && bye["code"] == "token_expired" && bye["reconnect"] == false, "{close}: {bye}");
    for session in [&there["token"], &json!(token)] {
        let (code, close) = refused(cluster, 2, session.as_str().context("a token")?).await?;
        ensure!(matches!(close, 4101 | 4107), "{code} {close}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backends_token_in_the_header_and_for_readers() -> Result<()> {
    let _turn = turn::take(module_path!());
    let tasks = Tasks::new();
    let cluster = nodes(&Keys::start(&tasks).await?).await?;
    let grants = json!({"roost": {"grants": [{"pattern": "room:1", "join": true}]}});
    let bearer = |lasts_s| Ok::<_, anyhow::Error>(format!("Bearer {}", secret("ann", lasts_s, &grants)?));
    let long = bearer(60)?;
    let mut socket = Socket::connect_with(&cluster.url(0), "/ws", &[("authorization", &long)]).await?;
    socket.send(&json!({"type": "hello"})).await?;
    let there = socket.frame_of("welcome").await?;
    ensure!(there["user"] == "ann" && there["expires_in_ms"].is_u64(), "{there}");

    let read = async |path: &str, bearer: &str| Reader::open(&cluster.url(1), path, &[("Authorization", bearer)]).await;
    for (path, bearer, status, code) in [
        ("/v1/groups/room:2/events", long.clone(), 403, "forbidden"),
        ("/v1/groups/room:1/events", format!("{long}x"), 401, "unauthorized"),
        ("/v1/groups/room:1/events", bearer(0)?, 401, "token_expired"),
    ] {
        let Err(refusal) = read(path, &bearer).await? else { bail!("{path} was opened by {bearer}") };
        ensure!(refusal.status == status && refusal.body["detail"][0]["type"] == code, "{refusal:?}");
    }
    let short = bearer(6)?;
    let mut reader =
        read("/v1/groups/room:1/events", &short).await?.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    reader.event("joined").await?;
    let sent = cluster.api(2).post("/v1/groups/room:1/messages", json!({"data": "hello"})).await?;
    ensure!(sent.status == 200, "{sent:?}");
    let (mut message, mut expiring, mut bye) = (false, false, None);
    while let Some(event) = reader.next().await? {
        message |= event.kind == "message" && event.data["data"] == "hello";
        expiring |= event.kind == "expiring";
        if event.kind == "bye" {
            bye = Some(event.data);
        }
    }
    ensure!(
        message && expiring && bye.as_ref().is_some_and(|bye| bye["code"] == "token_expired"),
        "{message}, {expiring}, {bye:?}"
    );
    tasks.shut_down(Duration::from_secs(1)).await;
    cluster.shut_down().await
}

/// Those that come while keys change.
const CLIENTS: usize = 60;

/// All come with tokens of a key that was not there when they were made: some are told to come again, none is denied.
#[tokio::test(flavor = "multi_thread")]
async fn keys_change_while_clients_come() -> Result<()> {
    let _turn = turn::take(module_path!());
    let tasks = Tasks::new();
    let keys = Keys::start(&tasks).await?;
    let (old, new) = (Key::new("old")?, Key::new("new")?);
    keys.serve(&[&old]);
    let cluster = nodes(&keys).await?;
    let (old_token, token) = (old.token(&claims("ann", 600, &json!({})))?, new.token(&claims("ann", 600, &json!({})))?);
    let (mut before, _) = welcome(&cluster, 0, json!({"session": old_token})).await?;
    keys.serve(&[&old, &new]);
    let mut coming = JoinSet::new();
    for number in 0..CLIENTS {
        let (url, token) = (cluster.url(number % NODES), token.clone());
        coming.spawn(async move {
            for again in 0..60 {
                let mut socket = Socket::connect(&url).await?;
                socket.send(&json!({"type": "hello", "session": token})).await?;
                let answer = socket.frame().await?;
                match answer["type"].as_str() {
                    Some("welcome") => return Ok(again),
                    _ => ensure!(answer["code"] == "unavailable", "{answer}"),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            bail!("the new key is never read")
        });
    }
    let mut tries = 0;
    while let Some(came) = coming.join_next().await {
        tries += came??;
    }
    eprintln!("{CLIENTS} clients came with the new key, after {tries} more tries");
    let alive = before.ask(&json!({"type": "heartbeat", "id": 1})).await?;
    ensure!(alive["type"] == "heartbeat", "{alive}");
    let (_later, still) = welcome(&cluster, 2, json!({"session": old_token})).await?;
    ensure!(still["user"] == "ann", "{still}");
    tasks.shut_down(Duration::from_secs(1)).await;
    cluster.shut_down().await
}
