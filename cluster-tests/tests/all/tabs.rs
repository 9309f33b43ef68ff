//! A session of several clients, as the tabs of a browser are: what is one's own, what all have, who is present, and what a
//! backend does with those that are connected.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::{Api, Session},
    client::{Client, ClientOptions},
    cluster::Cluster,
    history::History,
    socket::Socket,
    turn,
    wait::wait_until,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
const GRACE_S: u64 = 2;
const SETTINGS: [(&str, &str); 2] = [("ROOST_SESSION__RESUME_GRACE_S", "2"), ("ROOST_SESSION__CLIENTS_MAX", "3")];

#[tokio::test(flavor = "multi_thread")]
async fn tabs_of_one_session() -> Result<()> {
    let _turn = turn::take(module_path!());
    let mut cluster = Cluster::program_with(3, &SETTINGS).await?;
    let api = cluster.api(0);
    let made = json!({"user": "ann", "groups": ["room:all"]});
    let session = api.create_session_with(made).await?;
    let mut history = History::default();
    let observer = Client::connect(ClientOptions::new("observer", cluster.urls_from(2))).await?;
    observer.join("room:all").await?;

    let tab = |node: usize, name: &str| tab(&cluster, node, name, &session);
    let (one, two) = (Client::connect(tab(0, "one")).await?, Client::connect(tab(1, "two")).await?);
    one.join("room:one").await?;
    // What the backend gave both have, what one joined it has alone.
    for (group, of_two) in [("room:all", true), ("room:one", false)] {
        api.publish(group, &json!("hello"), None).await?;
        one.wait("hear it", LIMIT, |state| state.received.get(group) == Some(&1)).await?;
        if of_two {
            two.wait("hear it too", LIMIT, |state| state.received.get(group) == Some(&1)).await?;
        }
    }
    ensure!(!two.state().received.contains_key("room:one"), "another tab's group: {:?}", two.state().received);
    ensure!(clients(&api, &session).await? == ["one", "two"], "{:?}", clients(&api, &session).await?);
    ensure!(present(&api, "room:all", &session).await? == Some(2), "one member with two clients");

    // A backend's change reaches both at once.
    let path = format!("/v1/sessions/{}", session.id);
    api.patch(&path, json!({"join": ["room:more"], "leave": []})).await?;
    for client in [&one, &two] {
        client.wait("be in it", LIMIT, |state| state.positions.contains_key("room:more")).await?;
    }

    // The node of one dies: it comes back elsewhere with its own, and the other hears nothing of it.
    cluster.crash(0).await?;
    one.wait("be back", LIMIT, |state| state.node.is_some() && state.connections == 2).await?;
    let api = cluster.api(1);
    let after = api.publish("room:one", &json!("again"), None).await?.0;
    one.wait("hear it", LIMIT, |state| state.positions.get("room:one") == Some(&after)).await?;
    ensure!(two.state().connections == 1, "it was left alone");

    // One goes, the other stays, and the session has been one member all the while.
    one.finish(false, &mut history).await?;
    let gone = async || present(&api, "room:all", &session).await.is_ok_and(|clients| clients == Some(1));
    wait_until("the first is gone", LIMIT + Duration::from_secs(GRACE_S), gone).await?;
    ensure!(told(&observer, &session).iter().all(|event| event == "join"), "{:?}", told(&observer, &session));
    two.finish(false, &mut history).await?;
    let leaves = |client: &Client| told(client, &session).last().is_some_and(|event| event == "leave");
    wait_until("the session is gone", LIMIT, async || leaves(&observer)).await?;
    ensure!(present(&api, "room:all", &session).await?.is_none(), "a ghost");
    observer.finish(false, &mut history).await?;

    too_many(&cluster, &session, &mut history).await?;
    history.check()?;
    cluster.shut_down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_shows_and_how_many_there_are() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(3, &[("ROOST_NAMESPACES__HALL__PRESENCE", "counts")]).await?;
    let api = cluster.api(0);
    let session = api.create_session_with(json!({"user": "ann", "attributes": {"mood": 1}})).await?;
    let mut history = History::default();
    let observer = Client::connect(ClientOptions::new("observer", cluster.urls_from(2))).await?;
    let (one, two) = (tab(&cluster, 0, "one", &session), tab(&cluster, 1, "two", &session));
    let (one, two) = (Client::connect(one).await?, Client::connect(two).await?);
    for client in [&observer, &one, &two] {
        client.join("room").await?;
        client.join("hall:of").await?;
    }
    let counts = async |group: &str| api.get(&format!("/v1/groups/{group}/presence")).await;
    let three = json!({"sessions": 2, "clients": 3, "users": 1, "anonymous": 1});
    ensure!(
        counts("room").await?.body == three && counts("hall:of").await?.body == three,
        "{:?}",
        counts("room").await?
    );
    ensure!(counts("none").await?.body["sessions"] == 0, "nobody is where nothing is");

    // Other attributes are told once, though two clients have them.
    let path = format!("/v1/sessions/{}", session.id);
    for mood in [2, 3] {
        api.patch(&path, json!({"attributes": {"mood": mood}})).await?;
        let seen = |client: &Client| updates(client).last().is_some_and(|info| info["mood"] == mood);
        wait_until("the change is told", LIMIT, async || seen(&observer) && seen(&one)).await?;
    }
    ensure!(updates(&observer) == [json!({"mood": 2}), json!({"mood": 3})], "{:?}", updates(&observer));
    let listed = api.get("/v1/groups/room/members").await?;
    let infos: Vec<_> = listed.body["members"].as_array().into_iter().flatten().map(|member| &member["info"]).collect();
    ensure!(infos.contains(&&json!({"mood": 3})), "{listed:?}");

    // Where they are counted nobody is told of anyone, and the last count is right.
    two.finish(false, &mut history).await?;
    one.finish(false, &mut history).await?;
    let last = |client: &Client| {
        told_counts(client).last().map(|counts| (counts["sessions"].clone(), counts["users"].clone()))
    };
    let is_alone = async || last(&observer) == Some((json!(1), json!(0)));
    wait_until("the observer is alone", LIMIT + Duration::from_secs(30), is_alone).await?;
    let notices = observer.state().notices;
    let of_hall: Vec<_> =
        notices.iter().filter(|notice| notice["group"] == "hall:of" && notice["type"] == "member").collect();
    ensure!(of_hall.is_empty(), "{of_hall:?}");
    observer.finish(false, &mut history).await?;
    history.check()?;
    cluster.shut_down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_disconnects_clients_and_sends_to_one() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(3, &SETTINGS).await?;
    let api = cluster.api(2);
    let session = api.create_session("ann").await?;
    let other = api.create_session_with(json!({"user": "ann", "ephemeral": true})).await?;
    let open = async |node: usize, session: &Session, client: &str| -> Result<Socket> {
        let mut socket = Socket::connect(&cluster.url(node)).await?;
        socket.send(&json!({"type": "hello", "session": &session.token, "client": client})).await?;
        socket.frame_of("welcome").await?;
        Ok(socket)
    };
    let (mut one, mut two) = (open(0, &session, "one").await?, open(1, &session, "two").await?);
    let mut away = open(0, &other, "away").await?;

    // To one of them, from any node.
    let path = format!("/v1/sessions/{}", session.id);
    let sent = api.post(&format!("{path}/clients/two/messages"), json!({"data": {"open": 1}})).await?;
    ensure!(sent.status == 200 && sent.body["node"] == "n2", "{sent:?}");
    ensure!(two.frame_of("direct").await?["data"] == json!({"open": 1}), "it comes as it was sent");
    let nobody = api.post(&format!("{path}/clients/three/messages"), json!({"data": 1})).await?;
    ensure!(nobody.status == 404 && nobody.body["detail"][0]["loc"] == json!(["path", "client"]), "{nobody:?}");

    // One goes with a code of the application's own, and comes back to what it had joined.
    one.ask(&json!({"type": "join", "id": 1, "group": "room"})).await?;
    let farewell = json!({"client": "one", "reconnect": true, "after_ms": 20, "reason": "new rights", "code": 7});
    let gone = api.post(&format!("{path}/disconnect"), farewell).await?;
    ensure!(gone.body == json!({"disconnected": 1, "missing_nodes": []}), "{gone:?}");
    let (frames, code) = one.until_closed().await?;
    let bye = frames.last().context("a bye")?;
    ensure!(code == 4_507 && bye["reconnect"] == true && bye["after_ms"] == 20, "{code} {frames:?}");
    ensure!(bye["code"] == "reconnect" && bye["reason"] == "new rights", "{bye}");
    ensure!(!frames.iter().any(|frame| frame["type"] == "direct"), "which was for another");
    let mut one = Socket::connect(&cluster.url(2)).await?;
    one.send(&json!({"type": "hello", "session": &session.token, "client": "one"})).await?;
    let welcome = one.frame_of("welcome").await?;
    let groups = welcome["groups"].as_array().context("its groups")?;
    ensure!(groups.contains(&json!("room")), "its own is kept: {welcome}");
    wait_until("both are there", LIMIT, async || clients(&api, &session).await.is_ok_and(|there| there.len() == 2))
        .await?;

    // All of a user's, those of an ephemeral session too.
    let gone = api.post("/v1/users/ann/disconnect", json!({})).await?;
    ensure!(gone.body["disconnected"] == 3, "{gone:?}");
    for socket in [&mut one, &mut two, &mut away] {
        let (frames, code) = socket.until_closed().await?;
        ensure!(code == 4_106 && frames.last().is_some_and(|bye| bye["reconnect"] == false), "{code} {frames:?}");
    }
    let nobody = async || clients(&api, &session).await.is_ok_and(|there| there.is_empty());
    wait_until("the slot has heard it", LIMIT, nobody).await?;
    ensure!(api.get(&path).await?.status == 200, "the session goes on");
    let again = api.post(&format!("{path}/disconnect"), json!({"code": 100, "after_ms": 1})).await?;
    ensure!(again.status == 422 && again.body["detail"][0]["loc"] == json!(["body", "code"]), "{again:?}");
    cluster.shut_down().await
}

/// What the client was told of the session's other attributes, in the room.
fn updates(client: &Client) -> Vec<Value> {
    let notices = client.state().notices.into_iter();
    let updates = notices.filter(|notice| notice["event"] == "update" && notice["group"] == "room");
    updates.map(|notice| notice["info"].clone()).collect()
}

fn told_counts(client: &Client) -> Vec<Value> {
    client.state().notices.into_iter().filter(|notice| notice["type"] == "presence").collect()
}

/// The fourth client takes the place of the first.
async fn too_many(cluster: &Cluster, session: &Session, history: &mut History) -> Result<()> {
    let mut tabs = Vec::new();
    for name in ["a", "b", "c", "d"] {
        tabs.push(Client::connect(tab(cluster, 1, name, session)).await?);
        // Who came first is told by the clock.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait_until("the first has made room", LIMIT, async || tabs[0].state().ended.is_some()).await?;
    let words = tabs[0].state().ended.unwrap_or_default();
    ensure!(words.contains("crowded_out"), "{words}");
    let listed = clients(&cluster.api(1), session).await?;
    ensure!(listed == ["b", "c", "d"], "{listed:?}");
    for tab in tabs.into_iter().skip(1) {
        tab.finish(false, history).await?;
    }
    Ok(())
}

fn tab(cluster: &Cluster, node: usize, name: &str, session: &Session) -> ClientOptions {
    ClientOptions::new(name, cluster.urls_from(node)).with_token(&*session.token).as_client(name)
}

/// The session's clients that are attached, by name.
async fn clients(api: &Api, session: &Session) -> Result<Vec<String>> {
    let read = api.get(&format!("/v1/sessions/{}", session.id)).await?;
    let all = read.body["session"]["clients"].as_array().with_context(|| format!("{read:?}"))?;
    let attached = all.iter().filter(|client| client["attached"] == true);
    let mut names: Vec<_> = attached.filter_map(|client| Some(client["client"].as_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// How many of its clients are in the group; nothing where the session is not a member.
async fn present(api: &Api, group: &str, session: &Session) -> Result<Option<u64>> {
    let page = api.get(&format!("/v1/groups/{}/members", cluster_tests::api::escaped(group))).await?;
    let members = page.body["members"].as_array().with_context(|| format!("{page:?}"))?;
    let of_session: Vec<&Value> = members.iter().filter(|member| member["session"] == *session.id).collect();
    ensure!(of_session.len() <= 1, "a session is one member: {page:?}");
    Ok(of_session.first().and_then(|member| member["clients"].as_u64()))
}

/// What the client was told of the session's coming and going.
fn told(client: &Client, session: &Session) -> Vec<String> {
    let notices = client.state().notices;
    let of_session = notices.iter().filter(|notice| notice["type"] == "member" && notice["session"] == *session.id);
    of_session.filter_map(|notice| Some(notice["event"].as_str()?.to_owned())).collect()
}
