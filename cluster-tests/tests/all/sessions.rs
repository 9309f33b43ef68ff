//! The life of sessions across nodes: made on one, used on another, displaced, resumed, expired, ended.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    api::{Session, escaped},
    client::{Client, ClientOptions},
    cluster::{Cluster, Kind},
    history::History,
    socket::{Received, Socket},
    turn,
    wait::wait_until,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// One cluster for all: what one part leaves behind must not trouble the next.
#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_sessions() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::start(Kind::Library, 3).await?;
    step("made here and read there", made_here_and_read_there(&cluster)).await?;
    step("attached by cookie and by header", attached_by_cookie_and_by_header(&cluster)).await?;
    step("not waiting for the welcome", in_a_hurry(&cluster)).await?;
    step("displaced", displaced(&cluster)).await?;
    step("resumed", resumed(&cluster)).await?;
    step("groups restored", groups_restored(&cluster)).await?;
    step("absolute expiry", expired(&cluster, json!({"user": "short", "ttl_s": 2}), true)).await?;
    step("idle expiry", expired(&cluster, json!({"user": "idle", "idle_ttl_s": 1}), false)).await?;
    step("logged out", logged_out(&cluster)).await?;
    step("private groups", private_groups(&cluster)).await?;
    cluster.shut_down().await
}

/// Says what it is at, and gives up when that takes too long.
async fn step(name: &'static str, doing: impl Future<Output = Result<()>>) -> Result<()> {
    let start_ms = roost::clock::mono_ms();
    tokio::time::timeout(STEP_LIMIT, doing).await.context("it hangs").flatten().context(name)?;
    eprintln!("{name}: {} ms", roost::clock::mono_ms() - start_ms);
    Ok(())
}

fn client_of(cluster: &Cluster, node: usize, name: &str, session: &Session) -> ClientOptions {
    ClientOptions::new(name, cluster.urls_from(node)).with_token(&*session.token)
}

async fn made_here_and_read_there(cluster: &Cluster) -> Result<()> {
    let made = json!({
        "user": "alice", "attributes": {"name": "Alice"}, "groups": ["chat:lobby"],
        "grants": [{"pattern": "chat:*", "join": true, "publish": false}],
    });
    let session = cluster.api(0).create_session_with(made.clone()).await?;
    ensure!(session.token.starts_with("v2."), "a token of another form: {}", session.token);
    let path = format!("/v1/sessions/{}", session.id);
    for node in 0..3 {
        let read = cluster.api(node).get(&path).await?;
        ensure!(read.status == 200, "{read:?}");
        for field in ["user", "attributes", "groups", "grants"] {
            ensure!(read.body["session"][field] == made[field], "{field} is not as it was made: {read:?}");
        }
    }
    let changed = cluster.api(1).patch(&path, json!({"attributes": {"name": "Alice B."}})).await?;
    ensure!(changed.status == 200, "{changed:?}");
    let read = cluster.api(2).get(&path).await?;
    ensure!(read.body["session"]["attributes"]["name"] == "Alice B.", "{read:?}");
    let missing = cluster.api(2).get("/v1/sessions/00000000-0000-4000-8000-000000000000").await?;
    ensure!(missing.status == 404, "{missing:?}");

    // What the grants don't allow is refused to its client, on any node.
    let client = Client::connect(client_of(cluster, 2, "alice", &session)).await?;
    ensure!(client.state().user == "alice", "{:?}", client.state());
    client.join("chat:lobby").await.context("a granted group")?;
    for request in [
        json!({"type": "join", "group": "news"}),
        json!({"type": "publish", "group": "chat:lobby", "data": 1}),
        json!({"type": "join", "group": "@user:bob"}),
    ] {
        let answer = client.request(request.clone()).await?;
        ensure!(answer["type"] == "error" && answer["code"] == "forbidden", "{request} was answered with {answer}");
    }
    finish([client]).await
}

async fn attached_by_cookie_and_by_header(cluster: &Cluster) -> Result<()> {
    let session = cluster.api(0).create_session("carla").await?;
    let cookie = format!("theme=dark; session_id={}", session.token);
    let bearer = format!("Bearer {}", session.token);
    for (node, header) in [(1, ("cookie", &*cookie)), (2, ("authorization", &*bearer))] {
        let mut socket = Socket::connect_with(&cluster.url(node), "/ws", &[header]).await?;
        socket.send(&json!({"type": "hello"})).await?;
        let welcome = socket.frame_of("welcome").await?;
        ensure!(welcome["session"] == *session.id && welcome["user"] == "carla", "{}: {welcome}", header.0);
        ensure!(welcome["token"].is_null(), "a session that has a token got another one: {welcome}");
        ensure!(welcome["node"] == *Cluster::name(node), "{welcome}");
        socket.close().await;
    }
    Ok(())
}

/// S7: the later attachment wins, whatever the nodes; the earlier one is told and closed.
/// What a client sends before it is welcome is done after the welcome, in its order.
async fn in_a_hurry(cluster: &Cluster) -> Result<()> {
    let session = cluster.api(0).create_session_with(json!({"user": "hasty"})).await?;
    for node in 0..3 {
        let mut socket = Socket::connect(&cluster.urls_from(node)[0]).await?;
        socket.send(&json!({"type": "hello", "session": &*session.token})).await?;
        for number in 0..4 {
            socket.send(&json!({"type": "heartbeat", "id": number})).await?;
        }
        let (mut heard, mut answers) = (Vec::new(), Vec::new());
        while answers.len() < 4 {
            match tokio::time::timeout(LIMIT, socket.next()).await? {
                Received::Text(text) => heard.push(serde_json::from_str::<Value>(&text)?),
                Received::Closed(code, reason) => bail!("closed with {code} {reason} after {heard:?}"),
            }
            // The session's own groups come back whenever they do.
            answers.extend(heard.last().filter(|frame| frame["type"] == "heartbeat").map(|frame| frame["id"].as_i64()));
        }
        ensure!(heard[0]["type"] == "welcome" && answers.into_iter().eq((0..4).map(Some)), "{heard:?}");
        // Gone before it can be welcome: nothing is left of it.
        let mut socket = Socket::connect(&cluster.urls_from(node)[0]).await?;
        socket.send(&json!({"type": "hello", "session": &*session.token})).await?;
        drop(socket);
    }
    let path = format!("/v1/sessions/{}", session.id);
    let gone = async || {
        let read = cluster.api(0).get(&path).await;
        read.is_ok_and(|read| read.status == 200 && read.body["session"]["attached"] == false)
    };
    wait_until("nobody to be attached", LIMIT, gone).await.map(drop)
}

async fn displaced(cluster: &Cluster) -> Result<()> {
    let session = cluster.api(0).create_session("dora").await?;
    let first = Client::connect(client_of(cluster, 0, "first", &session)).await?;
    let group = "chat:displaced";
    first.join(group).await?;
    let second = Client::connect(client_of(cluster, 1, "second", &session)).await?;
    first.wait("be displaced", LIMIT, |state| state.ended.is_some()).await?;
    let notices = first.state().notices;
    ensure!(notices.iter().any(|notice| notice["type"] == "displaced"), "not told so: {notices:?}");
    let bye = notices.iter().find(|notice| notice["type"] == "bye").context("no bye")?;
    ensure!(bye["code"] == "displaced" && bye["reconnect"] == false, "{bye}");

    // The session's groups have come along.
    ensure!(second.state().groups.iter().any(|name| name == group), "{:?}", second.state());
    second.wait("be in the group", LIMIT, |state| state.positions.contains_key(group)).await?;
    second.publish_now(group, "after-displaced").await?;
    second.wait("get it", LIMIT, |state| state.received.get(group) == Some(&1)).await?;
    ensure!(first.state().received.is_empty(), "the displaced one got it too");

    // On one node it is the same.
    let third = Client::connect(client_of(cluster, 1, "third", &session)).await?;
    second.wait("be displaced", LIMIT, |state| state.ended.is_some()).await?;
    finish([first, second, third]).await
}

async fn resumed(cluster: &Cluster) -> Result<()> {
    let session = cluster.api(0).create_session("rita").await?;
    let group = "chat:resumed";
    let client = Client::connect(client_of(cluster, 0, "resuming", &session)).await?;
    let writer = Client::connect(ClientOptions::new("writer", vec![cluster.url(2)])).await?;
    client.join(group).await?;
    writer.join(group).await?;
    for round in 0..5 {
        client.cut().await?;
        for number in 0..10 {
            writer.publish_now(group, &format!("resumed-{round}-{number}")).await?;
        }
        let expected = 10 * (round + 1);
        client.wait("catch up", LIMIT, |state| state.received.get(group) == Some(&expected)).await?;
    }
    ensure!(client.state().connections == 6, "{:?}", client.state());
    let mut history = History::default();
    for client in [client, writer] {
        client.finish(true, &mut history).await?;
    }
    let sum = history.check()?;
    ensure!(sum.resumes >= 5 && sum.not_recovered == 0 && sum.gaps == 0, "{sum:?}");
    Ok(())
}

/// A client that knows nothing but its token gets its groups back; the server may change them meanwhile.
async fn groups_restored(cluster: &Cluster) -> Result<()> {
    let session = cluster.api(0).create_session_with(json!({"user": "gina", "groups": ["chat:given"]})).await?;
    let first = Client::connect(client_of(cluster, 0, "gina-1", &session)).await?;
    first.join("chat:kept").await?;
    first.join("chat:left").await?;
    first.leave("chat:left").await?;
    let path = format!("/v1/sessions/{}/groups", session.id);
    let joined = cluster.api(2).post(&path, json!({"group": "chat:pushed"})).await?;
    ensure!(joined.status == 200, "{joined:?}");
    first.wait("be joined by the server", LIMIT, |state| state.positions.contains_key("chat:pushed")).await?;
    finish([first]).await?;

    let second = Client::connect(client_of(cluster, 1, "gina-2", &session)).await?;
    let groups = second.state().groups;
    for group in ["chat:given", "chat:kept", "chat:pushed"] {
        ensure!(groups.iter().any(|name| name == group), "{group} is missing among {groups:?}");
        second.wait("be in its group", LIMIT, |state| state.positions.contains_key(group)).await?;
    }
    ensure!(!groups.iter().any(|name| name == "chat:left"), "a group that was left came back");
    finish([second]).await
}

/// A session with a second to live ends on all nodes, attached or not.
async fn expired(cluster: &Cluster, made: Value, attached: bool) -> Result<()> {
    let session = cluster.api(0).create_session_with(made).await?;
    let mut options = client_of(cluster, 1, "expiring", &session);
    options.reconnect = false;
    if attached {
        let client = Client::connect(options.clone()).await?;
        client.wait("be told that its session is over", LIMIT, |state| state.ended.is_some()).await?;
        let notices = client.state().notices;
        ensure!(notices.iter().any(|notice| notice["code"] == "session_ended"), "{notices:?}");
    }
    let path = format!("/v1/sessions/{}", session.id);
    for node in 0..3 {
        let api = cluster.api(node);
        wait_until("the session to be over", LIMIT, async || {
            api.get(&path).await.is_ok_and(|answer| [404, 410].contains(&answer.status))
        })
        .await?;
    }
    ensure!(Client::connect(options).await.is_err(), "a session that is over was attached");
    Ok(())
}

async fn logged_out(cluster: &Cluster) -> Result<()> {
    let mut clients = Vec::new();
    for node in 0..3 {
        let session = cluster.api(0).create_session("lola").await?;
        clients.push((Client::connect(client_of(cluster, node, "lola", &session)).await?, session));
    }
    let listed = cluster.api(1).get("/v1/users/lola/sessions").await?;
    ensure!(listed.body["sessions"].as_array().is_some_and(|sessions| sessions.len() == 3), "{listed:?}");

    // One by itself.
    let (one, session) = clients.remove(0);
    let ended = cluster.api(2).delete(&format!("/v1/sessions/{}", session.id)).await?;
    ensure!(ended.status == 204, "{ended:?}");
    one.wait("be logged out", LIMIT, |state| state.ended.is_some()).await?;
    ensure!(clients.iter().all(|(client, _)| client.state().ended.is_none()), "another session ended too");

    // All that are left.
    let ended = cluster.api(0).delete("/v1/users/lola/sessions").await?;
    ensure!(ended.status == 200, "{ended:?}");
    for (client, session) in clients {
        client.wait("be logged out", LIMIT, |state| state.ended.is_some()).await?;
        let bye = client.state().notices.into_iter().find(|notice| notice["type"] == "bye").context("no bye")?;
        ensure!(bye["code"] == "session_ended" && bye["reconnect"] == false, "{bye}");
        let again = Client::connect(client_of(cluster, 0, "again", &session)).await;
        ensure!(again.is_err(), "a session that was ended was attached");
        finish([client]).await?;
    }
    finish([one]).await
}

/// A message to a user reaches all their sessions, one to a session that one only; both can be resumed.
async fn private_groups(cluster: &Cluster) -> Result<()> {
    let mut clients = Vec::new();
    for node in 0..2 {
        let session = cluster.api(2).create_session("petra").await?;
        clients.push((Client::connect(client_of(cluster, node, &format!("petra-{node}"), &session)).await?, session));
    }
    let to_user = "@user:petra";
    for (client, session) in &clients {
        let to_session = format!("@session:{}", session.id);
        client
            .wait("be in its private groups", LIMIT, |state| {
                state.positions.contains_key(to_user) && state.positions.contains_key(&*to_session)
            })
            .await?;
    }
    let api = cluster.api(2);
    let published = api.post("/v1/users/petra/messages", json!({"data": "to all of petra"})).await?;
    ensure!(published.status == 200, "{published:?}");
    let path = format!("/v1/sessions/{}/messages", clients[0].1.id);
    let published = api.post(&path, json!({"data": "to one of petra"})).await?;
    ensure!(published.status == 200, "{published:?}");
    // The same by the group's name, while the client is away.
    clients[0].0.cut().await?;
    let path = format!("/v1/groups/{}/messages", escaped(to_user));
    let published = api.post(&path, json!({"data": "again to all of petra"})).await?;
    ensure!(published.status == 200, "{published:?}");

    for (client, _) in &clients {
        client.wait("get what is for the user", LIMIT, |state| state.received.get(to_user) == Some(&2)).await?;
    }
    let own = format!("@session:{}", clients[0].1.id);
    clients[0].0.wait("get what is for its session", LIMIT, |state| state.received.get(&*own) == Some(&1)).await?;
    ensure!(!clients[1].0.state().received.contains_key(&*own), "another session got it too");
    finish(clients.into_iter().map(|(client, _)| client)).await
}

/// Ends clients and proves what they saw.
async fn finish(clients: impl IntoIterator<Item = Client>) -> Result<()> {
    let mut history = History::default();
    for client in clients {
        client.finish(false, &mut history).await?;
    }
    history.check()?;
    Ok(())
}
