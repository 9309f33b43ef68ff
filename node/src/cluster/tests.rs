//! Gossip over the real mesh, between nodes of one process.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{
    gossip::{Gossip, GossipError, GossipSettings, OwnState, Stored},
    maps::MapCell,
    membership,
    view::{NodeState, NodeView, SharedView},
};
use crate::{
    clock,
    id::{GroupName, Member, NodeId},
    logic::liveness::LivenessSettings,
    metrics::{GossipDrop, Limit, Metrics},
    peer::{
        Inbox,
        belongs::Belongs,
        mesh::{Mesh, MeshInputs, MeshSettings},
        tls::{ClusterCa, Identity},
    },
    tasks::Tasks,
    wire::peer::PeerFrame,
};

const LIMIT: Duration = Duration::from_secs(30);
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

const MESH: MeshSettings =
    MeshSettings { keep_alive: Duration::from_millis(250), peer_queue_bytes: 8 << 20, bulk_queue_bytes: 8 << 20 };

struct NoFrames;

#[async_trait]
impl Inbox for NoFrames {
    async fn receive(&self, _: &Member, _: PeerFrame) {}
    async fn peer_connected(&self, _: &Member) {}
    async fn peer_lost(&self, _: &Member) {}
}

struct Node {
    member: Member,
    identity: Arc<Identity>,
    mesh: Mesh,
    gossip: Gossip,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

impl Node {
    async fn start(identity: Arc<Identity>, generation: u64, listen: SocketAddr, seeds: Vec<String>) -> Self {
        let member = Member { node: identity.node().clone(), generation };
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let (mesh, inbox, entrance) = Mesh::bind(MeshInputs {
            me: member.clone(),
            belongs: Belongs { cluster: "test".to_owned(), ..Belongs::default() },
            identity: &identity,
            listen,
            settings: MESH,
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        })
        .unwrap();
        entrance.open(Arc::new(NoFrames));
        let settings = GossipSettings {
            cluster: "test".to_owned(),
            advertise: mesh.local_addr(),
            seeds,
            interval: Duration::from_millis(100),
            liveness: LivenessSettings { look_ms: 100, quiet_ms: 600 },
            groups_max_bytes: 1_000,
            own: OwnState { zone: format!("zone of {}", member.node), ..OwnState::default() },
        };
        let maps = MapCell::new().subscribe();
        let store = Stored { maps, generations: watch::channel(BTreeMap::new()).1 };
        let started =
            Gossip::start(member.clone(), settings, mesh.clone(), inbox, store, metrics.clone(), &tasks).await;
        Self { member, identity, mesh, gossip: started.unwrap(), metrics, tasks }
    }

    async fn of(ca: &ClusterCa, name: &str, seeds: &[&Self]) -> Self {
        let identity = ca.identity(&NodeId::parse(name).unwrap()).unwrap();
        let seeds = seeds.iter().map(|seed| seed.mesh.local_addr().to_string()).collect();
        Self::start(Arc::new(identity), 1, ANY_PORT, seeds).await
    }

    fn view(&self) -> SharedView {
        self.gossip.view().borrow().clone()
    }

    fn sees(&self, other: &Member, condition: impl Fn(&NodeView) -> bool) -> bool {
        self.view().nodes.get(&other.node).is_some_and(|node| node.member == *other && condition(node))
    }

    fn is_linked_with(&self, other: &Self) -> bool {
        self.mesh.links().get(&other.member.node).is_some_and(|link| link.sends && link.hears)
    }

    async fn crash(&self) {
        self.mesh.abort();
        assert!(self.tasks.shut_down(LIMIT).await, "tasks of a crashed node go on");
    }
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = clock::deadline(LIMIT);
    while !condition() {
        let pause = tokio::time::sleep(Duration::from_millis(5));
        tokio::time::timeout_at(deadline, pause).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

/// Until each sees each as alive and has links to and from it.
async fn converge(nodes: &[&Node]) {
    for (a, b) in nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b))) {
        wait_until("a node is seen", || a.sees(&b.member, |node| node.alive)).await;
        wait_until("links", || a.member == b.member || a.is_linked_with(b)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_find_each_other_and_tell_what_changes() {
    let ca = ClusterCa::generate().unwrap();
    let a = Node::of(&ca, "a", &[]).await;
    assert!(a.sees(&a.member, |node| node.alive && node.zone == "zone of a"), "a node sees itself from the start");
    let b = Node::of(&ca, "b", &[&a]).await;
    // A seed that is the node itself does no harm.
    let c = Node::of(&ca, "c", &[&b, &a]).await;
    converge(&[&a, &b, &c]).await;
    let group = GroupName::parse("room:1").unwrap();
    let groups = membership::gather([(&group, 3)], 1_024);
    b.gossip.set(|own| {
        own.state = NodeState::Serving;
        own.map_version = 7;
        own.load.connections = 11;
        own.groups.clone_from(&groups);
    });
    for node in [&a, &b, &c] {
        wait_until("what must be known soon", || {
            node.sees(&b.member, |b| b.state == NodeState::Serving && b.map_version == 7 && b.zone == "zone of b")
        })
        .await;
        wait_until("what is gathered", || node.sees(&b.member, |b| b.load.connections == 11 && b.groups == groups))
            .await;
        wait_until("b's links", || {
            let linked = |b: &NodeView| b.links.len() == 2 && b.links.values().all(|link| link.sends && link.hears);
            node.sees(&b.member, linked)
        })
        .await;
    }
    b.gossip.set(|own| own.groups.clear());
    wait_until("no groups", || a.sees(&b.member, |b| b.groups.is_empty())).await;
    let refused = |node: &Node| node.metrics.peer.gossip_drops(GossipDrop::Refused);
    assert_eq!([&a, &b, &c].map(refused), [0; 3], "the guard refused a good message");
    assert_eq!(b.metrics.limit_hits(Limit::GossipGroupsBytes), 0);
    let crowd: Vec<GroupName> = (0..2_000).map(|n| GroupName::parse(&format!("room:{n}")).unwrap()).collect();
    b.gossip.set(|own| own.groups = membership::gather(crowd.iter().map(|group| (group, 1)), 1_024));
    wait_until("what does not fit is counted", || b.metrics.limit_hits(Limit::GossipGroupsBytes) > 0).await;
    a.mesh.gossip_to(b.mesh.local_addr(), Bytes::from_static(b"no gossip"));
    wait_until("what is no gossip is refused", || refused(&b) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_seen_dead_and_its_next_start_alive() {
    let ca = ClusterCa::generate().unwrap();
    let a = Node::of(&ca, "a", &[]).await;
    let b = Node::of(&ca, "b", &[&a]).await;
    let c = Node::of(&ca, "c", &[&a]).await;
    converge(&[&a, &b, &c]).await;
    let killed_ms = clock::mono_ms();
    // The only seed is killed: the others must go on, and it comes back without any.
    a.crash().await;
    for node in [&b, &c] {
        wait_until("a is seen dead", || node.sees(&a.member, |a| !a.alive)).await;
        assert!(node.sees(&node.member, |me| me.alive));
    }
    println!("seen dead by both after {} ms", clock::mono_ms() - killed_ms);
    assert!(b.sees(&c.member, |c| c.alive) && c.sees(&b.member, |b| b.alive), "the living are seen dead");
    let started_ms = clock::mono_ms();
    let again = Node::start(a.identity.clone(), 2, a.mesh.local_addr(), Vec::new()).await;
    converge(&[&again, &b, &c]).await;
    println!("seen alive and linked by both after {} ms", clock::mono_ms() - started_ms);
    for node in [&b, &c, &again] {
        assert_eq!(node.view().generation(&a.member.node), Some(2));
        assert!(!node.view().is_alive(&a.member));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_of_the_cluster_is_in_nobody_s_view() {
    let ca = ClusterCa::generate().unwrap();
    let a = Node::of(&ca, "a", &[]).await;
    let stranger = Node::of(&ClusterCa::generate().unwrap(), "b", &[&a]).await;
    wait_until("refusals", || a.metrics.peer.connections_refused.get() >= 3).await;
    // What the stranger could have said would be there by the time that a member is.
    let c = Node::of(&ca, "c", &[&a]).await;
    converge(&[&a, &c]).await;
    for node in [&a, &c] {
        assert_eq!(node.view().nodes.keys().map(NodeId::as_str).collect::<Vec<_>>(), ["a", "c"]);
    }
    assert_eq!(stranger.view().nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_nobody_can_reach_is_refused() {
    let ca = ClusterCa::generate().unwrap();
    let a = Node::of(&ca, "a", &[]).await;
    let settings = GossipSettings {
        cluster: "test".to_owned(),
        advertise: SocketAddr::from(([0, 0, 0, 0], 7_000)),
        seeds: Vec::new(),
        interval: Duration::from_millis(100),
        liveness: LivenessSettings { look_ms: 100, quiet_ms: 600 },
        groups_max_bytes: 0,
        own: OwnState::default(),
    };
    let (mesh, inbox, _entrance) = Mesh::bind(MeshInputs {
        me: a.member.clone(),
        belongs: Belongs { cluster: "test".to_owned(), ..Belongs::default() },
        identity: &a.identity,
        listen: ANY_PORT,
        settings: MESH,
        metrics: a.metrics.clone(),
        tasks: a.tasks.clone(),
    })
    .unwrap();
    let maps = MapCell::new().subscribe();
    let store = Stored { maps, generations: watch::channel(BTreeMap::new()).1 };
    let refused = Gossip::start(a.member.clone(), settings, mesh, inbox, store, a.metrics.clone(), &a.tasks).await;
    assert!(
        matches!(&refused, Err(error @ GossipError::Advertise(_)) if error.to_string().contains("node.peer_advertise"))
    );
}
