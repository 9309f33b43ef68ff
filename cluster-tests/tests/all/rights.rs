//! Rights that change while clients are connected: what they forbid is left, and earlier tokens are refused, on every node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::Session,
    cluster::{Cluster, Kind},
    socket::Socket,
    turn,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_change() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::start(Kind::Library, 3).await?;
    tokio::time::timeout(LIMIT, grants_change(&cluster)).await.context("grants: it hangs").flatten()?;
    tokio::time::timeout(LIMIT, tokens_change(&cluster)).await.context("tokens: it hangs").flatten()?;
    cluster.shut_down().await
}

async fn attach(cluster: &Cluster, node: usize, session: &Session) -> Result<(Socket, Value)> {
    let mut socket = Socket::connect(&cluster.url(node)).await?;
    socket.send(&json!({"type": "hello", "client": "tab", "session": &*session.token})).await?;
    let welcome = socket.frame_of("welcome").await?;
    Ok((socket, welcome))
}

async fn patch(cluster: &Cluster, node: usize, session: &Session, change: Value) -> Result<Value> {
    let answer = cluster.api(node).patch(&format!("/v1/sessions/{}", session.id), change).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.body["session"].clone())
}

async fn grants_change(cluster: &Cluster) -> Result<()> {
    for node in 0..3 {
        let made = json!({"user": "greta", "groups": [format!("office:{node}")]});
        let session = cluster.api(node).create_session_with(made).await?;
        let (chat, news, office) = (format!("chat:{node}"), format!("news:{node}"), format!("office:{node}"));
        let (mut socket, _) = attach(cluster, node, &session).await?;
        for group in [&chat, &news] {
            let joined = socket.ask(&json!({"type": "join", "id": group, "group": group})).await?;
            ensure!(joined["type"] == "joined", "{joined}");
        }
        let change = json!({"grants": [{"pattern": "chat:*", "join": true, "publish": false}]});
        let changed = patch(cluster, (node + 1) % 3, &session, change).await?;
        ensure!(changed["groups"] == json!([chat, office]), "{changed}");
        let left = socket.frame_of("left").await?;
        ensure!(left["group"] == *news && left["reason"] == "grants" && left["id"].is_null(), "{left}");
        // What is published from now on comes from the other two only.
        for group in [&news, &office, &chat] {
            cluster.api((node + 2) % 3).publish(group, &json!("after"), None).await?;
        }
        let mut from = [socket.frame_of("message").await?, socket.frame_of("message").await?]
            .map(|message| message["group"].as_str().unwrap_or("").to_owned());
        from.sort();
        ensure!(from == [chat.clone(), office.clone()], "messages of {from:?}");
        for request in [
            json!({"type": "publish", "id": 1, "group": chat, "data": 1}),
            json!({"type": "join", "id": 2, "group": news}),
            json!({"type": "history", "id": 3, "group": news}),
        ] {
            let answer = socket.ask(&request).await?;
            ensure!(answer["type"] == "error" && answer["code"] == "forbidden", "{request} was answered with {answer}");
        }
        // Elsewhere it does not come back either.
        let (mut elsewhere, welcome) = attach(cluster, (node + 1) % 3, &session).await?;
        let groups = welcome["groups"].as_array().context("no groups")?;
        ensure!(groups.contains(&json!(chat)) && groups.contains(&json!(office)), "{welcome}");
        ensure!(!groups.contains(&json!(news)), "{welcome}");
        // And what is allowed again is not joined by itself, but may be.
        patch(cluster, node, &session, json!({"grants": []})).await?;
        let request = json!({"type": "join", "id": 4, "group": news});
        while elsewhere.ask(&request).await?["type"] != "joined" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        patch(cluster, node, &session, json!({"leave": [news]})).await?;
        let left = elsewhere.frame_of("left").await?;
        ensure!(left["group"] == *news && left["reason"] == "server", "{left}");
        elsewhere.close().await;
        socket.close().await;
    }
    Ok(())
}

async fn tokens_change(cluster: &Cluster) -> Result<()> {
    let old = cluster.api(0).create_session("theo").await?;
    let (mut socket, _) = attach(cluster, 1, &old).await?;
    let answer = cluster.api(2).post(&format!("/v1/sessions/{}/token", old.id), json!({})).await?;
    ensure!(answer.status == 200 && answer.body["session"]["token_number"] == 1, "{answer:?}");
    let token = answer.body["token"].as_str().context("no token")?.to_owned();
    ensure!(token != *old.token, "the token is the same");
    let heartbeat = socket.ask(&json!({"type": "heartbeat", "id": 1})).await?;
    ensure!(heartbeat["type"] == "heartbeat", "who is attached stays: {heartbeat}");
    let (cookie, bearer) = (format!("session_id={}", &*old.token), format!("Bearer {}", &*old.token));
    for node in 0..3 {
        let by_hello = json!({"type": "hello", "session": &*old.token});
        for (headers, hello) in [(vec![], by_hello), (vec![("authorization", &*bearer)], json!({"type": "hello"}))] {
            let mut refused = Socket::connect_with(&cluster.url(node), "/ws", &headers).await?;
            refused.send(&hello).await?;
            let (frames, code) = refused.until_closed().await?;
            ensure!(code == 4102 && frames.iter().any(|frame| frame["code"] == "unauthorized"), "{code} {frames:?}");
        }
        // A page cannot drop a cookie that scripts cannot see: it gets a session of nobody instead.
        let mut nobody = Socket::connect_with(&cluster.url(node), "/ws", &[("cookie", &cookie)]).await?;
        nobody.send(&json!({"type": "hello"})).await?;
        let welcome = nobody.frame_of("welcome").await?;
        ensure!(welcome["session"] != *old.id && welcome["user"] == "", "{welcome}");
        nobody.close().await;
    }
    let heartbeat = socket.ask(&json!({"type": "heartbeat", "id": 2})).await?;
    ensure!(heartbeat["type"] == "heartbeat", "nobody has displaced it: {heartbeat}");
    let mut with_new = Socket::connect(&cluster.url(0)).await?;
    with_new.send(&json!({"type": "hello", "client": "tab", "session": token})).await?;
    let welcome = with_new.frame_of("welcome").await?;
    ensure!(welcome["session"] == *old.id, "{welcome}");
    socket.frame_of("displaced").await?;
    with_new.close().await;
    Ok(())
}
