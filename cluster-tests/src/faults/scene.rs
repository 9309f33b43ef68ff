//! A cluster at work on a network of its own, for a fault to happen to.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use roost::{clock, id::slot_of};

use super::{catalogue::Fault, judge, table::Row, watch::Watch};
use crate::{
    cassandra::Cassandra,
    client::{Client, ClientOptions},
    cluster::Cluster,
    datagrams::DatagramRelays,
    history::History,
    load::{self, Heads, Load},
    nat::Nat,
    network::{HOST_RELAYS, Network},
    servers::{ServerSettings, Servers},
    wait::wait_until,
};

/// How long a fault stays that can be taken back.
pub(super) const STAY: Duration = Duration::from_secs(12);
/// The node that things happen to.
pub(super) const ONE: usize = 0;
pub(super) const GROUPS: usize = 12;
/// What the names of the publishers on each node begin with.
pub(super) const PUBLISHER: &str = "publisher";
/// Of each publisher, after each message.
const PAUSE: Duration = Duration::from_millis(20);
/// Of the publisher to a crowd.
const CROWD_PAUSE: Duration = Duration::from_millis(5);
/// The number of a crowd's clients that share a group.
const CROWD_GROUP: usize = 20;
/// A client leaves a node that says nothing for this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);
/// What a fault is compared with.
const BEFORE: Duration = Duration::from_secs(2);
/// The load goes on for this time after the fault.
const AFTER: Duration = Duration::from_secs(2);
/// Until all is well again.
pub(super) const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// Connections that are made at once.
pub(super) const AT_ONCE: usize = 64;

/// Where a fault is played, and how.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// Where nodes are.
    pub network: &'a Network,
    pub cassandra: &'a Cassandra,
    /// What can be long is.
    pub long: bool,
    /// What chance there is comes from it, where a fault is one of many.
    pub seed: Option<u64>,
}

/// A cluster at work.
pub struct Scene<'a> {
    pub ground: Ground<'a>,
    /// Where its nodes are.
    pub network: &'a Network,
    pub cassandra: &'a Cassandra,
    pub cluster: Cluster,
    /// Clients may be told of resets and gaps: all copies of a slot may be lost at once.
    pub may_reset: bool,
    /// Before a node's clients, where a fault has put one there.
    pub nat: Option<Nat>,
    relays: Option<DatagramRelays>,
    subscribers: Vec<Client>,
    /// Those whose sessions were attached elsewhere.
    displaced: Vec<Client>,
    loads: Vec<Load>,
    /// Publishers that have stopped, and the last places that they know.
    rested: Vec<(Vec<Client>, Heads)>,
    watch: Watch,
    /// When faults began; several where the same is done again and again.
    begun_us: Vec<u64>,
    ended_us: Option<u64>,
    notes: Vec<String>,
}

impl<'a> Scene<'a> {
    /// Starts the nodes that the fault wants, and the load on them.
    pub async fn set(fault: &Fault, ground: Ground<'a>) -> Result<Self> {
        let Ground { network, cassandra, seed, .. } = ground;
        network.mend_all()?;
        let keyspace = format!("fault_{}", fault.named(seed).replace(['-', ' '], "_"));
        let mut hosts = network.hosts();
        if fault.relayed {
            let [a, b, c] = HOST_RELAYS;
            for (number, host) in (1..).zip(&mut hosts) {
                host.reached_at = [a, b, c, number].into();
            }
        }
        let settings = ServerSettings::over(cassandra, &keyspace).on(hosts);
        let settings = match fault.min_copies {
            1 => settings,
            more => settings.with("namespaces.chat.min_copies", more),
        };
        let settings = fault.settings.iter().fold(settings, |settings, (key, value)| settings.with(key, value));
        let servers = Servers::prepare(settings, fault.nodes).await?;
        let relays = if fault.relayed {
            let pairs: Vec<_> = (0..fault.nodes).map(|node| servers.peer_addresses(node)).collect();
            Some(DatagramRelays::start(&pairs).await?)
        } else {
            None
        };
        let cluster = Cluster::of(servers).await?;
        let groups = load::groups(GROUPS);
        let (mut subscribers, mut publishers) = (Vec::new(), Vec::new());
        for node in 0..fault.nodes {
            subscribers.push(client_on(&cluster, node, &format!("subscriber-{node}"), &groups).await?);
            publishers.push(client_on(&cluster, node, &format!("{PUBLISHER}-{node}"), &groups).await?);
        }
        let loads = vec![Load::start_with(publishers, &groups, PAUSE, fault.message_bytes)];
        load::goes_on(&subscribers, &load::received(&subscribers), HEAL_LIMIT).await?;
        let watch = Watch::start(&cluster);
        Ok(Self {
            ground,
            network,
            cassandra,
            cluster,
            may_reset: fault.loses_all_copies,
            nat: None,
            relays,
            subscribers,
            displaced: Vec::new(),
            loads,
            rested: Vec::new(),
            watch,
            begun_us: Vec::new(),
            ended_us: None,
            notes: Vec::new(),
        })
    }

    /// Lets it happen, waits until all is well again, and judges.
    pub async fn play(mut self, fault: &Fault) -> Result<Row> {
        let start_us = clock::mono_us();
        tokio::time::sleep(BEFORE).await;
        (fault.act)(&mut self).await?;
        self.network.mend_all()?;
        let ended_us = self.ended_us.context("a fault must end")?;
        self.cluster.green(HEAL_LIMIT).await.context("healing")?;
        load::goes_on(&self.subscribers, &load::received(&self.subscribers), HEAL_LIMIT).await.context("healing")?;
        let healed_us = clock::mono_us();
        tokio::time::sleep(AFTER).await;
        let Self { ground, cluster, may_reset, subscribers, displaced, loads, rested, watch, begun_us, notes, .. } =
            self;
        let mut history = settle(subscribers, loads, rested).await?;
        for client in displaced {
            client.finish(false, &mut history).await?;
        }
        let summary = history.check()?;
        judge::judge(fault, may_reset, &summary, &history)?;
        cluster.servers()?.without_panic()?;
        let first_us = *begun_us.first().context("a fault must begin")?;
        let during = first_us..healed_us;
        let publishes = [start_us..first_us, first_us..ended_us].map(|window| judge::publishes(&history, &window));
        judge::bystanders(fault, &publishes[1])?;
        let row = Row {
            fault: fault.named(ground.seed),
            what: fault.what,
            noticed: watch.noticed(&during),
            acknowledged_again: judge::acknowledged_again(&history, &begun_us, healed_us),
            told_stale: judge::told_stale(&history, &during),
            healed: Duration::from_micros(healed_us - ended_us),
            publishes,
            summary,
            notes,
        };
        drop(watch);
        cluster.shut_down().await?;
        Ok(row)
    }

    /// The fault begins now.
    pub fn begin(&mut self) {
        self.begun_us.push(clock::mono_us());
    }

    /// The fault stays for this time; then whatever caused it is to be taken back.
    pub async fn stay(&mut self, length: Duration) {
        tokio::time::sleep(length).await;
        self.end();
    }

    /// The fault is over, or as much of it as ever will be: from now on it is to heal.
    pub fn end(&mut self) {
        self.ended_us = Some(clock::mono_us());
    }

    /// Adds what is worth knowing to the table.
    pub fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    /// The relays before the nodes.
    pub fn relays(&self) -> Result<&DatagramRelays> {
        self.relays.as_ref().context("this fault's nodes have no relays before them")
    }

    /// Whether all groups are served: every subscriber gets more of each.
    pub async fn goes_on(&self) -> Result<Duration> {
        load::goes_on(&self.subscribers, &load::received(&self.subscribers), HEAL_LIMIT).await
    }

    /// The nodes that hold the first group's slot: the primary, then the replicas.
    pub async fn holders(&self) -> Result<Vec<usize>> {
        let reporter = *self.cluster.running().first().context("a node runs")?;
        let map = self.cluster.api(reporter).get("/v1/cluster/map").await?.body;
        let slots = map["slots"].as_u64().and_then(|slots| u16::try_from(slots).ok()).context("how many slots")?;
        let slot = slot_of(&load::groups(1)[0], slots);
        let covers = |range: &serde_json::Value| {
            let of = |end: usize| range[end].as_u64().unwrap_or(u64::MAX);
            (of(0)..=of(1)).contains(&u64::from(slot))
        };
        let assignments = map["assignments"].as_array().context("no assignments")?;
        let found = assignments.iter().find(|one| one["slots"].as_array().is_some_and(|all| all.iter().any(covers)));
        let found = found.with_context(|| format!("nobody holds slot {slot} in {map}"))?;
        let names = std::iter::once(&found["primary"]).chain(found["replicas"].as_array().into_iter().flatten());
        // Their names are n1, n2, …, each with its generation.
        let number = |name: &serde_json::Value| name.as_str()?.strip_prefix('n')?.split('#').next()?.parse().ok();
        let holders: Option<Vec<usize>> = names.map(|name| number(name).map(|number: usize| number - 1)).collect();
        holders.context("names that are not this test's")
    }

    /// Connects this number of further clients to a node, each in one of many quiet groups.
    pub async fn crowd(&mut self, node: usize, clients: usize) -> Result<()> {
        self.crowd_at(self.cluster.urls_from(node), clients).await
    }

    /// The same with clients that go to these, in this order.
    pub async fn crowd_at(&mut self, urls: Vec<String>, clients: usize) -> Result<()> {
        let groups: Vec<Arc<str>> =
            (0..clients.div_ceil(CROWD_GROUP)).map(|number| format!("chat:crowd-{number}").into()).collect();
        let groups_of = groups.clone();
        let connecting = stream::iter(0..clients).map(|number| {
            let (urls, group) = (urls.clone(), groups_of[number / CROWD_GROUP].clone());
            async move {
                let options = ClientOptions::new(format!("crowd-{number}"), urls).with_patience(PATIENCE);
                let client = Client::connect(options).await?;
                client.join(&group).await?;
                anyhow::Ok(client)
            }
        });
        let crowd: Vec<Client> = connecting.buffer_unordered(AT_ONCE).try_collect().await?;
        self.subscribe(crowd);
        self.publish_to(&groups).await
    }

    /// Further clients, whose histories are judged with the others'.
    pub fn subscribe(&mut self, clients: Vec<Client>) {
        self.subscribers.extend(clients);
    }

    /// Those that are not displaced and do not publish.
    pub fn subscribers(&self) -> &[Client] {
        &self.subscribers
    }

    /// A further publisher, to all of these groups in turn.
    pub async fn publish_to(&mut self, groups: &[Arc<str>]) -> Result<()> {
        let publisher = client_on(&self.cluster, 1, "crowd-publisher", groups).await?;
        self.loads.push(Load::start(vec![publisher], groups, CROWD_PAUSE));
        Ok(())
    }

    /// Connects this number of further clients to a node, which stay there whatever happens to it, each in a group.
    pub async fn settle_on(&self, node: usize, clients: usize) -> Result<Vec<Client>> {
        let connecting = load::groups(clients).into_iter().enumerate().map(|(number, group)| {
            let options = ClientOptions::new(format!("frozen-{number}"), vec![self.cluster.url(node)]);
            async move {
                let client = Client::connect(ClientOptions { reconnect: false, ..options }).await?;
                client.join(&group).await?;
                anyhow::Ok(client)
            }
        });
        futures_util::future::try_join_all(connecting).await
    }

    /// Attaches the sessions of these clients at another node. How long the last of them waited for its welcome.
    pub async fn attach_elsewhere(&mut self, clients: &[Client], node: usize) -> Result<Duration> {
        let begun_ms = clock::mono_ms();
        let attaching = clients.iter().map(|earlier| {
            let urls = self.cluster.urls_from(node);
            let options = ClientOptions::new(format!("{}-elsewhere", earlier.name()), urls);
            Client::connect(options.with_token(earlier.state().token).with_patience(PATIENCE))
        });
        let attached = futures_util::future::try_join_all(attaching).await?;
        let waited = Duration::from_millis(clock::mono_ms() - begun_ms);
        self.subscribers.extend(attached);
        Ok(waited)
    }

    /// Waits until these clients know that their sessions are attached elsewhere.
    pub async fn displaced(&mut self, clients: Vec<Client>) -> Result<()> {
        for client in &clients {
            client.wait("be displaced", HEAL_LIMIT, |state| state.ended.is_some()).await?;
        }
        self.displaced.extend(clients);
        Ok(())
    }

    /// Further publishers to one group, one on each of these nodes.
    pub async fn publishers(&self, nodes: &[usize], group: &Arc<str>) -> Result<Vec<Client>> {
        let mut publishers = Vec::new();
        for node in nodes {
            let name = format!("hot-{node}");
            publishers.push(client_on(&self.cluster, *node, &name, std::slice::from_ref(group)).await?);
        }
        Ok(publishers)
    }

    /// Has them send messages of at least this length to their group, with this pause after each, until [`Scene::rest`].
    pub fn heat(&mut self, publishers: Vec<Client>, group: &Arc<str>, pause: Duration, bytes: usize) {
        self.loads.push(Load::start_with(publishers, std::slice::from_ref(group), pause, bytes));
    }

    /// The publishers that were added last stop.
    pub async fn rest(&mut self) -> Result<()> {
        let load = self.loads.pop().context("somebody publishes")?;
        self.rested.push(load.stop().await?);
        Ok(())
    }

    /// What the first subscriber has got by now, of each group.
    pub fn received(&self) -> BTreeMap<Arc<str>, u64> {
        self.subscribers.first().map(|client| client.state().received).unwrap_or_default()
    }

    /// How many connections all clients of the scene have had.
    pub fn connections(&self) -> u32 {
        self.subscribers.iter().map(|client| client.state().connections).sum()
    }

    /// Waits until every client that was on a node is on another one.
    pub async fn all_elsewhere(&self, node: usize) -> Result<Duration> {
        let name = Cluster::name(node);
        let elsewhere = || self.subscribers.iter().all(|client| client.state().node.is_some_and(|at| at != name));
        wait_until(&format!("nobody to be on {name}"), HEAL_LIMIT, async || elsewhere()).await
    }
}

async fn client_on(cluster: &Cluster, node: usize, name: &str, groups: &[Arc<str>]) -> Result<Client> {
    load::client_with(cluster, node, name, groups, |options| options.with_patience(PATIENCE)).await
}

async fn settle(mut clients: Vec<Client>, loads: Vec<Load>, mut rested: Vec<(Vec<Client>, Heads)>) -> Result<History> {
    let mut heads = Heads::default();
    for load in loads {
        rested.push(load.stop().await?);
    }
    for (publishers, reached) in rested {
        heads.absorb(&reached);
        clients.extend(publishers);
    }
    load::settle(clients, &heads).await
}
