//! Nodes in processes of their own that share nothing but a Cassandra: what was acknowledged outlives all of them, and
//! what does not belong together stays apart.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    api::Api,
    cassandra::Cassandra,
    cluster::Cluster,
    ledger::{Acknowledged, Ledger, sessions_of},
    servers::{ServerSettings, Servers},
    turn,
    wait::{wait_for, wait_until},
};
use roost::clock;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// A step with all its processes.
const STEP_LIMIT: Duration = Duration::from_secs(240);
/// What holds for this time stays so.
const STEADY: Duration = Duration::from_secs(4);
/// Sessions made through each node.
const SESSIONS: usize = 20;

/// One Cassandra for all, with a keyspace for each; what is wrong with one does not hide what is wrong with the next.
#[tokio::test(flavor = "multi_thread")]
async fn processes_over_one_cassandra() -> Result<()> {
    let _turn = turn::take(module_path!());
    let start_ms = clock::mono_ms();
    let cassandra = Cassandra::start(1).await?;
    eprintln!("Cassandra: {} ms", clock::mono_ms() - start_ms);
    let outcomes = [
        step("every session through every node, and after all are killed", Box::pin(outlives_all_nodes(&cassandra)))
            .await,
        step("two processes with one name", two_with_one_name(&cassandra)).await,
        step("clusters never mix", clusters_never_mix(&cassandra)).await,
        step("a node that differs is refused", a_node_that_differs(&cassandra)).await,
    ];
    let failed: Vec<String> = outcomes.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(())
}

/// Says what it is at, and gives up when that takes too long.
async fn step(name: &'static str, doing: impl Future<Output = Result<()>>) -> Result<()> {
    let start_ms = clock::mono_ms();
    let outcome = tokio::time::timeout(STEP_LIMIT, doing).await.context("it hangs").flatten().context(name);
    eprintln!("{name}: {} ms{}", clock::mono_ms() - start_ms, if outcome.is_ok() { "" } else { ", FAILED" });
    outcome
}

async fn outlives_all_nodes(cassandra: &Cassandra) -> Result<()> {
    let mut cluster = Cluster::serve(ServerSettings::over(cassandra, "outlives"), 3).await?;
    let mut ledger = Ledger::default();
    for number in 0..SESSIONS {
        for node in 0..3 {
            let groups = [format!("chat:{number}"), "chat:all".to_owned()];
            let user = format!("user-{node}");
            ledger.create(&cluster.api(node), node, &user, &groups.each_ref().map(String::as_str)).await;
        }
    }
    let (over, short_lived) = (ended(&cluster).await?, short_lived(&cluster).await?);
    // Groups that were changed over HTTP are as durable as those that the session was made with.
    let changed = &mut ledger.acknowledged[0];
    let patch = json!({"join": ["chat:later"], "leave": ["chat:all"]});
    let answer = cluster.api(2).patch(&format!("/v1/sessions/{}", changed.session), patch).await?;
    ensure!(answer.status == 200, "{answer:?}");
    changed.groups = vec!["chat:0".to_owned(), "chat:later".to_owned()];

    ensure!(ledger.acknowledged.len() == 3 * SESSIONS, "not all were created: {:?}", ledger.attempts);
    through_every_node(&cluster, &ledger, &over).await.context("before the kill")?;

    cluster.crash_all().await?;
    let start_ms = clock::mono_ms();
    cluster.restart_all().await?;
    eprintln!("killed and started again, all three are ready and green after {} ms", clock::mono_ms() - start_ms);
    through_every_node(&cluster, &ledger, &over).await.context("after the kill")?;
    for node in 0..3 {
        is_over(&cluster.api(node), &short_lived).await.context("the one with a short life")?;
    }
    cluster.servers()?.without_panic()?;
    cluster.shut_down().await
}

/// Sessions that are over: one ended by itself, one with all others of its user.
async fn ended(cluster: &Cluster) -> Result<Vec<String>> {
    let mut over = Vec::new();
    for node in 0..3 {
        over.push(cluster.api(node).create_session("leaving").await?.id);
    }
    let listed = sessions_of(&cluster.api(1), "leaving").await?;
    ensure!(listed.len() == 3, "{listed:?}");
    let ended = cluster.api(2).delete(&format!("/v1/sessions/{}", over[0])).await?;
    ensure!(ended.status == 204, "{ended:?}");
    let ended = cluster.api(0).delete("/v1/users/leaving/sessions").await?;
    ensure!(ended.status == 200 && ended.body["ended"] == 2, "{ended:?}");
    Ok(over)
}

/// A session that lives for two seconds and ends on all nodes.
async fn short_lived(cluster: &Cluster) -> Result<String> {
    let made = json!({"user": "short", "ttl_s": 2, "groups": ["chat:all"]});
    let session = cluster.api(0).create_session_with(made).await?.id;
    let read = cluster.api(1).get(&format!("/v1/sessions/{session}")).await?;
    ensure!([200, 404, 410].contains(&read.status), "{read:?}");
    for node in 0..3 {
        let (api, session) = (cluster.api(node), &session);
        wait_until("the end of a short life", LIMIT, async || is_over(&api, session).await.is_ok()).await?;
    }
    Ok(session)
}

async fn through_every_node(cluster: &Cluster, ledger: &Ledger, over: &[String]) -> Result<()> {
    for reader in 0..3 {
        let api = cluster.api(reader);
        for made in &ledger.acknowledged {
            made.read(&api).await?;
        }
        for node in 0..3 {
            let user = format!("user-{node}");
            let listed = sessions_of(&api, &user).await?;
            let of_user = ledger.acknowledged.iter().filter(|made| made.user == user);
            let mut made: Vec<&str> = of_user.map(|made| &*made.session).collect();
            made.sort_unstable();
            ensure!(listed == made, "{} lists {} of the {} sessions of {user}", api.base(), listed.len(), made.len());
        }
        for session in over {
            is_over(&api, session).await?;
        }
        let left = sessions_of(&api, "leaving").await?;
        ensure!(left.is_empty(), "{} lists sessions that are over: {left:?}", api.base());
    }
    Ok(())
}

async fn is_over(api: &Api, session: &str) -> Result<()> {
    let read = api.get(&format!("/v1/sessions/{session}")).await?;
    ensure!([404, 410].contains(&read.status), "{} still has session {session}: {read:?}", api.base());
    Ok(())
}

/// A second process is started under the name of one that runs: in the end one of them serves, and nothing that either
/// has acknowledged is lost.
async fn two_with_one_name(cassandra: &Cassandra) -> Result<()> {
    let settings = ServerSettings::over(cassandra, "one_name");
    let mut servers = Servers::prepare(settings, 2).await?;
    servers.start_all().await?;
    wait_until("both to be in one cluster", LIMIT, async || servers.api(0).is_green(2).await).await?;
    let mut ledger = Ledger::default();
    for number in 0..10 {
        ledger.create(&servers.api(number % 2), number % 2, "before", &["chat:a"]).await;
    }
    let (first, second) = (1, servers.add_impostor(1));
    servers.spawn(second)?;
    let start_ms = clock::mono_ms();
    let (mut last, mut since_ms) = (Vec::new(), start_ms);
    let serving = loop {
        for node in [0, first, second] {
            ledger.create(&servers.api(node), node, "meanwhile", &["chat:b"]).await;
        }
        let mut serving = Vec::new();
        for node in [first, second] {
            if servers.is_running(node) && servers.api(node).is_ready().await {
                serving.push(node);
            }
        }
        let now_ms = clock::mono_ms();
        if serving != last {
            let named: Vec<_> = serving.iter().map(|node| format!("node-{}", node + 1)).collect();
            eprintln!("{} ms after the second was started these serve: {named:?}", now_ms - start_ms);
            (last, since_ms) = (serving.clone(), now_ms);
        }
        let steady = now_ms - since_ms >= STEADY.as_millis() as u64;
        if let [one] = serving[..]
            && steady
        {
            break one;
        }
        if now_ms - start_ms > LIMIT.as_millis() as u64 {
            let said = [first, second].map(|node| servers.last_words(node));
            bail!("after {LIMIT:?} {serving:?} serve, where one should:\n{}\n--\n{}", said[0], said[1]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let out = if serving == first { second } else { first };
    let how = if servers.is_running(out) {
        format!("runs on but serves nobody: {:?}", servers.api(out).get("/readyz").await?.body)
    } else {
        format!("has ended: {}", reason(&servers.log(out)))
    };
    eprintln!("node-{} goes on; node-{} {how}", serving + 1, out + 1);
    wait_until("the cluster to be green", LIMIT, async || servers.api(0).is_green(2).await).await?;
    let by_whom = count_by_node(&ledger.acknowledged);
    for made in &ledger.acknowledged {
        for node in [0, serving] {
            made.read(&servers.api(node)).await?;
        }
    }
    eprintln!("all that was acknowledged is there, by node: {by_whom:?}");
    // From the store alone, too.
    servers.kill_all().await?;
    for node in [0, serving] {
        servers.spawn(node)?;
    }
    for node in [0, serving] {
        servers.ready(node).await?;
    }
    for made in &ledger.acknowledged {
        made.read(&servers.api(0)).await?;
    }
    servers.without_panic()?;
    servers.shut_down().await
}

fn count_by_node(made: &[Acknowledged]) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for one in made {
        *counts.entry(one.node + 1).or_default() += 1;
    }
    counts
}

/// A node of another cluster that is given the same keyspace, or the same seeds.
async fn clusters_never_mix(cassandra: &Cassandra) -> Result<()> {
    let settings = ServerSettings::over(cassandra, "mix_one");
    let ours = settings.cluster.clone();
    let mut servers = Servers::prepare(settings, 3).await?;
    for node in 0..2 {
        servers.spawn(node)?;
    }
    for node in 0..2 {
        servers.ready(node).await?;
    }
    wait_until("both to be in one cluster", LIMIT, async || servers.api(0).is_green(2).await).await?;
    let made = servers.api(0).create_session("ours").await?.id;

    // The others run, and the keyspace is theirs.
    servers.configure(2, "cluster.name", "another");
    is_refused(&mut servers, 2, &[&ours, "another"]).await.context("another name on one keyspace")?;
    // Also when they are not heard.
    servers.configure(2, "cluster.seeds", "");
    is_refused(&mut servers, 2, &[&ours, "another"]).await.context("another name on one keyspace, without seeds")?;

    // Their seeds and certificates, but another name and keyspace: it may live, alone.
    servers.restore(2);
    servers.configure(2, "cluster.name", "another");
    servers.configure(2, "store.cassandra.keyspace", "mix_two");
    servers.start(2).await?;
    let start_ms = clock::mono_ms();
    while clock::mono_ms() - start_ms < STEADY.as_millis() as u64 {
        for (node, mates) in [(0, vec!["n1", "n2"]), (1, vec!["n1", "n2"]), (2, vec!["n3"])] {
            let members = members(&servers.api(node)).await?;
            ensure!(members == mates, "node-{} counts {members:?} among its cluster", node + 1);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let theirs = servers.api(2).create_session("theirs").await?.id;
    for (node, session) in [(2, &made), (0, &theirs), (1, &theirs)] {
        let read = servers.api(node).get(&format!("/v1/sessions/{session}")).await?;
        ensure!(read.status == 404, "node-{} has a session of the other cluster: {read:?}", node + 1);
    }
    servers.kill(2).await?;

    // Their name, seeds and certificates, but another keyspace: two stores are no cluster.
    servers.restore(2);
    servers.configure(2, "store.cassandra.keyspace", "mix_three");
    is_refused(&mut servers, 2, &["another store"]).await.context("another keyspace behind one name")?;

    let members = members(&servers.api(0)).await?;
    ensure!(members == ["n1", "n2"], "{members:?} are in the cluster in the end");
    // The refused node may have been heard for a moment before it ended, and be missed for another.
    wait_until("the two to be green again", LIMIT, async || servers.api(0).is_green(2).await).await?;
    servers.without_panic()?;
    servers.shut_down().await
}

/// The members of a node's map.
async fn members(api: &Api) -> Result<Vec<String>> {
    let look = async || api.get("/v1/cluster/map").await.ok().filter(|answer| answer.status == 200);
    let (answer, _) = wait_for("a cluster map", LIMIT, look).await?;
    let members = answer.body["members"].as_object().with_context(|| format!("no members in {answer:?}"))?;
    Ok(members.keys().cloned().collect())
}

/// Settings that all nodes must share: refused with both values, by the nodes that run and by the store.
async fn a_node_that_differs(cassandra: &Cassandra) -> Result<()> {
    let mut servers = Servers::prepare(ServerSettings::over(cassandra, "differs"), 2).await?;
    servers.start(0).await?;
    let cases = [
        ("cluster.copies", "3", ["cluster.copies", "3", "2"]),
        ("cluster.slots", "512", ["cluster.slots", "512", "1024"]),
        ("namespaces.default.history_messages", "5", ["namespaces.default.history_messages", "5", "1000"]),
        ("session.idle_ttl_s", "77", ["session.idle_ttl_s", "77", "604800"]),
    ];
    for (key, value, named) in cases {
        servers.restore(1);
        servers.configure(1, key, value);
        is_refused(&mut servers, 1, &named).await.with_context(|| format!("{key} = {value}"))?;
        let members = members(&servers.api(0)).await?;
        ensure!(members == ["n1"], "{key} = {value} was refused, yet {members:?} are in the cluster");
    }
    servers.kill(0).await?;
    servers.restore(1);
    servers.configure(1, "cluster.slots", "512");
    is_refused(&mut servers, 1, &["slots", "512", "1024"]).await.context("other slots, with nobody else alive")?;
    // As the others have it, it is let in.
    servers.restore(1);
    servers.start_all().await?;
    wait_until("both to be in one cluster", LIMIT, async || servers.api(0).is_green(2).await).await?;
    servers.without_panic()?;
    servers.shut_down().await
}

/// A node that is started ends by itself, without having served, and says these words.
async fn is_refused(servers: &mut Servers, node: usize, named: &[&str]) -> Result<()> {
    let before = servers.log(node).len();
    servers.spawn(node)?;
    let api = servers.api(node);
    let ready = wait_until("the refused node to serve", LIMIT, async || api.is_ready().await);
    tokio::select! {
        served = ready => bail!("it serves, or does nothing at all: {served:?}; it said:\n{}", servers.last_words(node)),
        ended = servers.ended(node) => ensure!(!ended?.success(), "it ended as if all were well"),
    }
    let said = servers.log(node)[before..].to_owned();
    let missing: Vec<_> = named.iter().filter(|word| !said.contains(**word)).collect();
    ensure!(missing.is_empty(), "its refusal does not name {missing:?}:\n{said}");
    eprintln!("refused: {}", reason(&said));
    Ok(())
}

/// What a process that ended gave as its reason.
fn reason(text: &str) -> &str {
    let error = text.lines().find(|line| line.contains(" ERROR "));
    error.or_else(|| text.lines().next_back()).unwrap_or("nothing")
}
