//! Sessions of several clients while nodes are killed: each client has its own back, and no group loses sight of a session
//! that has a client, or shows one twice.

use std::sync::Arc;

use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::{
    processes::{KILLS, kill_in_turn},
    scene::{AT_ONCE, HEAL_LIMIT, PATIENCE, Scene},
};
use crate::{
    api::escaped,
    client::{Client, ClientOptions},
    wait::wait_until,
};

const SESSIONS: usize = 1_000;
/// One at each node.
const CLIENTS: usize = 3;
const IN_A_ROOM: usize = 20;

pub(super) async fn kill_under_tabs(scene: &mut Scene<'_>) -> Result<()> {
    let api = scene.cluster.api(0);
    let creating = stream::iter(0..SESSIONS).map(|number| {
        let api = api.clone();
        async move { anyhow::Ok((number, api.create_session(&format!("tabs-{number}")).await?)) }
    });
    let sessions: Vec<_> = creating.buffer_unordered(AT_ONCE).try_collect().await?;
    let clients =
        sessions.iter().flat_map(|(number, session)| (0..CLIENTS).map(move |client| (*number, session, client)));
    let clients: Vec<_> = clients
        .map(|(number, session, client)| {
            let options = ClientOptions::new(format!("tab-{number}-{client}"), scene.cluster.urls_from(client));
            let options = options.with_token(&*session.token).with_patience(PATIENCE);
            (number, client, options.as_client(format!("tab-{client}")))
        })
        .collect();
    let connecting = stream::iter(clients).map(|(number, client, options)| async move {
        let tab = Client::connect(options).await?;
        tab.join(&room(number)).await?;
        // What one of them joined is not the others'.
        if client == 0 {
            tab.join(&own(number)).await?;
        }
        anyhow::Ok(tab)
    });
    let tabs: Vec<Client> = connecting.buffer_unordered(AT_ONCE).try_collect().await?;
    scene.subscribe(tabs);
    let groups: Vec<Arc<str>> =
        (0..SESSIONS).step_by(IN_A_ROOM).flat_map(|number| [room(number).into(), own(number).into()]).collect();
    scene.publish_to(&groups).await?;
    all_present(scene).await?;
    kill_in_turn(scene, KILLS).await?;
    scene.end();
    all_present(scene).await?;
    let told = |client: &Client| client.state().notices.iter().filter(|notice| is_of_tabs(notice, "leave")).count();
    let leaves: usize = scene.subscribers().iter().map(told).sum();
    ensure!(leaves == 0, "{leaves} times a session was said to leave that had a client");
    scene.note(format!(
        "{SESSIONS} sessions of {CLIENTS} clients, one at each node: after the last kill each group shows each session once, with \
         all of its clients, and no client was ever told that one left"
    ));
    Ok(())
}

/// Waits until each room shows its sessions with all of their clients, and nobody else.
async fn all_present(scene: &Scene<'_>) -> Result<()> {
    let wanted = json!({"sessions": IN_A_ROOM, "clients": IN_A_ROOM * CLIENTS, "users": IN_A_ROOM, "anonymous": 0});
    for number in (0..SESSIONS).step_by(IN_A_ROOM) {
        let path = format!("/v1/groups/{}/presence", escaped(&room(number)));
        let api = scene.cluster.api(1);
        let is_so = async || api.get(&path).await.is_ok_and(|answer| less_the_publisher(&answer.body) == wanted);
        if let Err(error) = wait_until(&format!("all to be present in {}", room(number)), HEAL_LIMIT, is_so).await {
            return Err(error.context(format!("it says {:?}", api.get(&path).await)));
        }
    }
    Ok(())
}

/// Who publishes is in the room too.
fn less_the_publisher(present: &Value) -> Value {
    let less = |name: &str, by: u64| present[name].as_u64().unwrap_or(0).saturating_sub(by);
    json!({"sessions": less("sessions", 1), "clients": less("clients", 1), "users": less("users", 1), "anonymous": less("anonymous", 0)})
}

fn is_of_tabs(notice: &Value, event: &str) -> bool {
    let is_tab = notice["user"].as_str().is_some_and(|user| user.starts_with("tabs-"));
    notice["type"] == "member" && notice["event"] == event && is_tab
}

fn room(number: usize) -> String {
    format!("chat:tabs-{}", number / IN_A_ROOM)
}

fn own(number: usize) -> String {
    format!("chat:first-{}", number / IN_A_ROOM)
}
