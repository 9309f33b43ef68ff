//! A session of several clients, as the tabs of a browser are: what is one's own, what all have, and who is present.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::{Api, Session},
    client::{Client, ClientOptions},
    cluster::Cluster,
    history::History,
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
