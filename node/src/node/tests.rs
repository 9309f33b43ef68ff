//! Members that lie, and nodes that belong elsewhere, beside nodes that do neither: the table in `ARCHITECTURE.md`, line by
//! line. The liar has a certificate of the cluster and speaks its wire; what it says is its own.

mod large;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chitchat::{ChitchatId, Serializable};
use tempfile::TempDir;

use super::*;
use crate::{
    config::Config,
    gateway::service::{By, NewMessage},
    id::{ClientKey, GroupName, SlotId},
    logic::{
        lease::LeaseMessage,
        map::{MapRequest, SlotAssignment},
        replication::ReplicationMessage,
        request::{Displaced, GroupRequest, Push, ReadGroup, SessionPush, SlotError, SlotRequest},
        slot::SlotSnapshot,
    },
    metrics::Metrics,
    open_files::OpenFiles,
    peer::{
        Inbox,
        belongs::Belongs,
        mesh::{Mesh, MeshInputs},
        tls::ClusterCa,
    },
    store::{Store, embedded::EmbeddedStore},
    tasks::Tasks,
    token::Keyring,
    wire::peer::PeerFrame,
};

const LIMIT: Duration = Duration::from_secs(30);
const SLOTS: u16 = 8;
const FAR: u64 = 1 << 40;

/// Nodes over one store.
struct Cluster {
    ca: ClusterCa,
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    _folder: TempDir,
}

fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Cluster {
    fn new(ca: ClusterCa) -> Self {
        let folder = TempDir::new().unwrap();
        let store: Arc<dyn Store> = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
        Self { ca, store, keyring: Arc::new(Keyring::generate()), _folder: folder }
    }

    /// `n1` and `n2`, which share all slots, and of which each leads half: nothing is left to be moved.
    async fn of_two() -> (Self, Node, Node) {
        let cluster = Self::new(ClusterCa::generate().unwrap());
        let one = cluster.start("n1", &[]).await.unwrap();
        let two = cluster.start("n2", &[&one]).await.unwrap();
        let both = |slot: &SlotAssignment| slot.in_sync.len() == 2 && slot.learner.is_none();
        let halves = |map: &ClusterMap| map.slots.iter().filter(|slot| slot.primary == *two.member()).count() * 2;
        let settled = |map: &ClusterMap| map.slots.iter().all(both) && halves(map) == map.slots.len();
        for node in [&one, &two] {
            wait_until("two copies of all slots, led by both", || settled(&map_of(node))).await;
        }
        (cluster, one, two)
    }

    fn config(&self, name: &str, seeds: &[&Node]) -> Config {
        let mut config = Config::default();
        config.node.id = name.to_owned();
        (config.node.http_listen, config.node.peer_listen) = (local(), local());
        config.cluster.name = "test".to_owned();
        config.cluster.slots = SLOTS;
        config.cluster.seeds = seeds.iter().map(|seed| seed.peer().to_string()).collect();
        config
    }

    async fn start(&self, name: &str, seeds: &[&Node]) -> Result<Node, StartError> {
        self.start_as(name, self.config(name, seeds)).await
    }

    async fn start_as(&self, name: &str, config: Config) -> Result<Node, StartError> {
        Node::start(NodeInputs {
            config: Arc::new(config),
            identity: self.ca.identity(&id(name)).unwrap(),
            keyring: self.keyring.clone(),
            store: self.store.clone(),
            files: OpenFiles::of_process().unwrap(),
        })
        .await
    }
}

fn map_of(node: &Node) -> ClusterMap {
    node.0.maps.current().map_or_else(|| ClusterMap::first(node.member(), SLOTS), |map| (*map).clone())
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    wait_within(LIMIT, what, condition).await;
}

async fn wait_within(limit: Duration, what: &str, condition: impl Fn() -> bool) {
    let until = clock::deadline(limit);
    while !condition() {
        assert!(clock::deadline(Duration::ZERO) < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Messages to groups of all slots are acknowledged by two nodes, at both.
async fn serves(nodes: &[&Node]) {
    for node in nodes {
        for number in 0..4 * SLOTS {
            let group = GroupName::parse(&format!("g{number}")).unwrap();
            let message = NewMessage { data: "1".into(), key: None };
            let published = node.0.gateway.service.publish_one(&By::Server, &group, message, 2).await;
            assert_eq!(published.unwrap().copies, 2);
        }
        assert!(!node.failed().is_cancelled(), "{} has ended", node.member());
        wait_until("it may deliver", || node.0.gateway.connections.may_deliver()).await;
    }
}

/// Remembers what it is sent.
#[derive(Default)]
struct Ears(Mutex<Vec<PeerFrame>>);

#[async_trait]
impl Inbox for Ears {
    async fn receive(&self, _: &Member, frame: PeerFrame) {
        self.0.lock().unwrap().push(frame);
    }
    async fn peer_connected(&self, _: &Member) {}
    async fn peer_lost(&self, _: &Member) {}
}

/// `n3`: a member by its certificate, and nothing else.
struct Liar {
    member: Member,
    mesh: Mesh,
    ears: Arc<Ears>,
    heartbeat: u64,
    _tasks: Tasks,
}

impl Liar {
    async fn join(cluster: &Cluster, victims: &[&Node]) -> Self {
        let identity = cluster.ca.identity(&id("n3")).unwrap();
        let member = Member { node: id("n3"), generation: cluster.store.next_generation(&id("n3")).await.unwrap() };
        let config = cluster.config("n3", &[]);
        let (tasks, ears) = (Tasks::new(), Arc::new(Ears::default()));
        let (mesh, _gossip, entrance) = Mesh::bind(MeshInputs {
            me: member.clone(),
            belongs: Belongs {
                cluster: "test".to_owned(),
                store_id: cluster.store.store_id().await.unwrap().to_string(),
                settings: config.shared_digest().json,
                keyring: cluster.keyring.fingerprint(),
            },
            identity: &identity,
            listen: local(),
            settings: (&config).into(),
            metrics: Metrics::new(),
            tasks: tasks.clone(),
        })
        .unwrap();
        entrance.open(ears.clone());
        let at = |node: &&Node| (node.member().node.clone(), (node.member().generation, node.peer()));
        mesh.set_peers(victims.iter().map(at).collect());
        let mut liar = Self { member, mesh, ears, heartbeat: 1, _tasks: tasks };
        wait_until("links of the liar", || {
            liar.mesh.links().values().filter(|link| link.sends).count() == victims.len()
        })
        .await;
        // It is heard, and so there is a link to it.
        for _ in 0..10 {
            liar.gossips(victims, &[]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for victim in victims {
            wait_until("a link to the liar", || victim.0.mesh.links().get(&id("n3")).is_some_and(|link| link.sends))
                .await;
        }
        liar
    }

    fn sends(&self, to: &Node, slot: SlotId, frame: &PeerFrame) {
        let _ = self.mesh.send(&to.member().node, slot, frame);
    }

    /// A digest of itself and of these: start, where it is reached, heartbeat.
    fn gossips(&mut self, to: &[&Node], others: &[(&str, u64, SocketAddr, u64)]) {
        self.heartbeat += 10;
        let me = (self.member.node.as_str(), self.member.generation, self.mesh.local_addr(), self.heartbeat);
        let all: Vec<_> = std::iter::once(&me).chain(others).collect();
        let mut bytes = self.mesh.local_addr().serialize_to_vec();
        // A mark, a version, a kind: what chitchat begins a greeting with.
        bytes.extend_from_slice(&HEAD);
        (all.len() as u16).serialize(&mut bytes);
        for (name, generation, addr, heartbeat) in all {
            ChitchatId::new(*name, *generation, *addr).serialize(&mut bytes);
            for counter in [*heartbeat, 0, 1] {
                counter.serialize(&mut bytes);
            }
        }
        "test".to_owned().serialize(&mut bytes);
        for node in to {
            self.mesh.gossip_to(node.peer(), bytes.clone().into());
        }
    }
}

/// chitchat's mark, version and the kind of a greeting.
const HEAD: [u8; 4] = [0x53, 0xb0, 0, 0];

/// A copy of n2's configuration over another store, whose generation is higher.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ghost_of_another_store_is_told_why_and_takes_nothing() {
    let (cluster, one, two) = Cluster::of_two().await;
    let mut ghosts = Cluster::new(ClusterCa::from_pem(cluster.ca.cert_pem(), &cluster.ca.key_pem()).unwrap());
    ghosts.keyring = cluster.keyring.clone();
    for _ in 0..50 {
        ghosts.store.next_generation(&id("n2")).await.unwrap();
    }
    let before = map_of(&one);
    let refused = ghosts.start("n2", &[&one, &two]).await.err().unwrap().to_string();
    assert!(refused.contains("another store"), "{refused}");
    let refused =
        [one.0.mesh.refused(), two.0.mesh.refused()].into_iter().flatten().find(|(node, _)| *node == id("n2"));
    assert!(refused.as_ref().is_some_and(|(_, refused)| refused.why.contains("another store")), "{refused:?}");
    // For longer than it takes to count a node as dead.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(map_of(&one), before);
    assert!(one.0.gossip.view().borrow().is_alive(two.member()));
    let counted = |node: &Node| node.0.gateway.metrics.peer.refused_nodes.get();
    assert_eq!((counted(&one) + counted(&two)).clamp(0, 1), 1, "no metric tells of it");
    serves(&[&one, &two]).await;
}

/// As while keys are changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_keys_are_told_and_refuse_nobody() {
    let (mut cluster, one, two) = Cluster::of_two().await;
    let told = |node: &Node| node.0.gateway.metrics.peer.other_keyrings.get();
    assert_eq!((told(&one), told(&two)), (0, 0));
    cluster.keyring = Arc::new(Keyring::generate());
    let three = cluster.start("n3", &[&one]).await.unwrap();
    wait_until("all are told", || (told(&one), told(&two), told(&three)) == (1, 1, 2)).await;
    assert_eq!(one.0.mesh.with_other_keys(), [id("n3")].into());
    serves(&[&one, &two]).await;
}

/// `n3` is there, its start is allotted, and it never says that it serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_up_and_is_never_taken_in_is_told() {
    let (cluster, one, two) = Cluster::of_two().await;
    let mut three = Liar::join(&cluster, &[&one, &two]).await;
    let told = |node: &Node| node.0.gateway.metrics.peer.nodes_outside.get();
    assert_eq!((told(&one), told(&two)), (0, 0), "it may be about to be");
    let until = clock::deadline(LIMIT);
    while (told(&one), told(&two)) != (1, 1) {
        assert!(clock::deadline(Duration::ZERO) < until, "nobody says that n3 is not taken in");
        three.gossips(&[&one, &two], &[]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!map_of(&one).members.contains_key(&id("n3")));
    drop(three);
    wait_until("it is gone", || (told(&one), told(&two)) == (0, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_and_heartbeats_that_a_member_makes_up_remove_nobody() {
    let (cluster, one, two) = Cluster::of_two().await;
    let mut liar = Liar::join(&cluster, &[&one, &two]).await;
    let before = map_of(&one);
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let (g1, g2) = (one.member().generation, two.member().generation);
    for round in 0..40 {
        let lies = [
            // Later starts of the others, starts at other addresses, and of nodes that never were.
            ("n1", FAR, one.peer(), 1_000 + round),
            ("n2", FAR, two.peer(), 1_000 + round),
            ("n1", g1, nowhere, 1_000 + round),
            ("n2", g2, nowhere, 1_000 + round),
            ("n0", 7, nowhere, 1_000 + round),
            // Heartbeats that the nodes will not reach for an hour.
            ("n1", g1, one.peer(), 15_000),
            ("n2", g2, two.peer(), 15_000),
        ];
        liar.gossips(&[&one, &two], &lies);
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (node, other) in [(&one, &two), (&two, &one)] {
            let view = node.0.gossip.view().borrow().clone();
            assert!(view.is_alive(other.member()), "round {round}: {} misses {}", node.member(), other.member());
        }
    }
    let after = map_of(&one);
    for (old, new) in before.slots.iter().zip(&after.slots) {
        assert_eq!((&new.in_sync, new.lineage), (&old.in_sync, old.lineage), "copies were taken away");
    }
    assert!(!after.members.contains_key(&id("n0")));
    serves(&[&one, &two]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_a_member_makes_up_is_not_taken() {
    let (cluster, one, two) = Cluster::of_two().await;
    let liar = Liar::join(&cluster, &[&one, &two]).await;
    let mine = |mut map: ClusterMap, version: u64, slots: usize| {
        map.version = version;
        map.slots.truncate(slots);
        for slot in &mut map.slots {
            (slot.term, slot.primary, slot.in_sync) = (FAR, liar.member.clone(), vec![liar.member.clone()]);
        }
        PeerFrame::Map(Arc::new(map))
    };
    for (version, slots) in [(1 << 50, 8), (map_of(&one).version + 1, 8), (u64::MAX, 8), (1 << 50, 7), (1 << 50, 0)] {
        for node in [&one, &two] {
            liar.sends(node, 0, &mine(map_of(node), version, slots));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for node in [&one, &two] {
        assert!(map_of(node).version < 1_000 && map_of(node).slots.len() == usize::from(SLOTS));
        assert!(map_of(node).slots.iter().all(|slot| slot.primary != liar.member));
    }
    serves(&[&one, &two]).await;
    // What is true is taken still.
    let _four = cluster.start("n4", &[&one, &two]).await.unwrap();
    for node in [&one, &two] {
        wait_until("the true map", || map_of(node).members.contains_key(&id("n4"))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_the_primary_replicates_pushes_and_asks_for_nothing() {
    let (cluster, one, two) = Cluster::of_two().await;
    let liar = Liar::join(&cluster, &[&one, &two]).await;
    let before = map_of(&one);
    let session = crate::id::SessionId(uuid::Uuid::from_u128(7));
    let lies = |slot: SlotId, assignment: &SlotAssignment| {
        let mut frames = Vec::new();
        for term in [assignment.term, assignment.term + 1, FAR, u64::MAX] {
            let (sync, commit, entries) = (assignment.changed_at, u64::MAX, Vec::new());
            for message in [
                ReplicationMessage::Append { term, sync, reconcile: None, first: 1, commit, entries },
                ReplicationMessage::Piece {
                    term,
                    sync,
                    lineage: 1,
                    index: 1_000_000,
                    number: 0,
                    is_last: true,
                    part: SlotSnapshot::default(),
                },
                ReplicationMessage::PieceAck { term, sync, index: 0, count: u64::MAX },
                ReplicationMessage::Ack { term, sync, index: u64::MAX, gap: true },
            ] {
                frames.push(PeerFrame::Replication { slot, message });
            }
            let push = Push::Session(
                session,
                SessionPush::Displace { client: ClientKey(7), why: Displaced::Elsewhere, attachment: u64::MAX },
            );
            frames.push(PeerFrame::Push { slot, term, voters: FAR, push });
            frames.push(PeerFrame::Response { id: 1, voters: FAR, result: Err(SlotError::Busy) });
        }
        let (changed_at, member) = (assignment.changed_at, assignment.in_sync[0].clone());
        for gateway in &assignment.in_sync {
            let (gateway, round, number) = (gateway.clone(), FAR, FAR);
            frames.push(PeerFrame::Lease(LeaseMessage::Ack { sent_ms: FAR, number, map_version: FAR }));
            frames.push(PeerFrame::Lease(LeaseMessage::Lapsed { gateway: gateway.clone(), round }));
            frames.push(PeerFrame::Lease(LeaseMessage::Fence { gateway, round, map_version: 0 }));
        }
        frames.push(PeerFrame::MapRequests(vec![
            MapRequest::Drop { slot, changed_at, member: member.clone() },
            MapRequest::Promote { slot, changed_at, learner: member },
        ]));
        frames
    };
    for slot in (0..SLOTS).chain([SLOTS, u16::MAX]) {
        let assignment = before.slot(slot).unwrap_or(&before.slots[0]).clone();
        for node in [&one, &two] {
            for frame in lies(slot, &assignment) {
                liar.sends(node, slot, &frame);
            }
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = map_of(&one);
    for (old, new) in before.slots.iter().zip(&after.slots) {
        assert_eq!((&new.in_sync, new.lineage), (&old.in_sync, old.lineage), "a request of the liar was carried out");
    }
    serves(&[&one, &two]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_a_slot_that_there_is_not_is_refused() {
    let (cluster, one, two) = Cluster::of_two().await;
    let liar = Liar::join(&cluster, &[&one, &two]).await;
    let request = SlotRequest::Group(GroupName::parse("g").unwrap(), GroupRequest::ReadGroup(ReadGroup));
    for (number, slot) in [SLOTS, 60_000, u16::MAX].into_iter().enumerate() {
        let frame = PeerFrame::Request {
            id: number as u64,
            slot,
            term: FAR,
            sent_ms: 0,
            wait_ms: 10_000,
            request: request.clone(),
        };
        liar.sends(&one, slot, &frame);
    }
    let refused = |frame: &PeerFrame| matches!(frame, PeerFrame::Response { result: Err(_), .. });
    wait_until("answers", || liar.ears.0.lock().unwrap().iter().filter(|frame| refused(frame)).count() == 3).await;
    serves(&[&one, &two]).await;
}
