//! Real QUIC between nodes of one process, on ports that the system chooses.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Inbox, SendError,
    belongs::Belongs,
    greeting::{Goodbye, Hello, Purpose, STREAM_BULK, STREAM_GOSSIP, STREAM_LANE},
    mesh::{Mesh, MeshError, MeshInputs, MeshSettings},
    tls::{self, ClusterCa, Identity},
};
use crate::{
    clock,
    id::{Member, NodeId},
    metrics::{GossipDrop, Limit, LinkReset, Metrics},
    tasks::Tasks,
    wire::peer::{NodeAnswer, PeerFrame, encode_into},
};

const LIMIT: Duration = Duration::from_secs(15);

#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "a test looks at few of them")]
enum Seen {
    Connected(Member),
    Lost(Member),
    Frame(Member, PeerFrame),
    Gossip(Member, Bytes),
}

#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<Seen>>,
    /// While held, no frame is taken in.
    hold: tokio::sync::Mutex<()>,
}

impl Recorder {
    fn add(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
    }

    fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn nonces(&self) -> Vec<u64> {
        let nonce = |seen: &Seen| match seen {
            Seen::Frame(_, PeerFrame::Probe { nonce, .. }) => Some(*nonce),
            _ => None,
        };
        self.seen.lock().unwrap().iter().filter_map(nonce).collect()
    }
}

#[async_trait]
impl Inbox for Recorder {
    async fn receive(&self, from: &Member, frame: PeerFrame) {
        let _hold = self.hold.lock().await;
        self.add(Seen::Frame(from.clone(), frame));
    }
    async fn peer_connected(&self, from: &Member) {
        self.add(Seen::Connected(from.clone()));
    }
    async fn peer_lost(&self, from: &Member) {
        self.add(Seen::Lost(from.clone()));
    }
}

struct Node {
    member: Member,
    identity: Arc<Identity>,
    mesh: Mesh,
    inbox: Arc<Recorder>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

const SETTINGS: MeshSettings =
    MeshSettings { keep_alive: Duration::from_millis(250), peer_queue_bytes: 8 << 20, bulk_queue_bytes: 300 << 20 };
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn belongs(cluster: &str) -> Belongs {
    Belongs { cluster: cluster.to_owned(), ..Belongs::default() }
}

fn node_id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

impl Node {
    fn start(ca: &ClusterCa, name: &str) -> Self {
        Self::start_as(Arc::new(ca.identity(&node_id(name)).unwrap()), 1, ANY_PORT, "test", SETTINGS).unwrap()
    }

    fn start_as(
        identity: Arc<Identity>,
        generation: u64,
        listen: SocketAddr,
        cluster: &str,
        settings: MeshSettings,
    ) -> Result<Self, MeshError> {
        let member = Member { node: identity.node().clone(), generation };
        let (inbox, metrics, tasks) = (Arc::new(Recorder::default()), Metrics::new(), Tasks::new());
        let inputs = MeshInputs {
            me: member.clone(),
            belongs: belongs(cluster),
            identity: &identity,
            listen,
            settings,
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        };
        let (mesh, mut gossip, entrance) = Mesh::bind(inputs)?;
        let recorder = inbox.clone();
        tasks.spawn_detached("gossip", async move {
            while let Some((from, message)) = gossip.next().await {
                recorder.add(Seen::Gossip(from, message));
            }
        });
        entrance.open(inbox.clone());
        Ok(Self { member, identity, mesh, inbox, metrics, tasks })
    }

    fn set_peers(&self, peers: &[&Self]) {
        let peer = |peer: &&Self| (peer.member.node.clone(), (peer.member.generation, peer.mesh.local_addr()));
        self.mesh.set_peers(peers.iter().map(peer).collect());
    }

    fn sends_to(&self, peer: &Self) -> bool {
        self.mesh.links().get(&peer.member.node).is_some_and(|link| link.sends)
    }

    fn probe(&self, nonce: u64) -> PeerFrame {
        PeerFrame::Probe { origin: self.member.clone(), nonce, wall_ms: 0 }
    }

    async fn crash(self) -> (Arc<Identity>, SocketAddr) {
        let addr = self.mesh.local_addr();
        self.mesh.abort();
        assert!(self.tasks.shut_down(LIMIT).await, "tasks of a crashed node go on");
        (self.identity, addr)
    }
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = clock::deadline(LIMIT);
    while !condition() {
        let pause = tokio::time::sleep(Duration::from_millis(5));
        tokio::time::timeout_at(deadline, pause).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

async fn connect(nodes: &[&Node]) {
    for node in nodes {
        node.set_peers(nodes);
    }
    for (a, b) in nodes.iter().flat_map(|a| nodes.iter().map(move |b| (a, b))).filter(|(a, b)| a.member != b.member) {
        wait_until("links", || {
            let links = a.mesh.links();
            links.get(&b.member.node).is_some_and(|link| link.sends && link.hears)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_exchange_frames_in_order_on_each_lane() {
    let ca = ClusterCa::generate().unwrap();
    let nodes = ["a", "b", "c"].map(|name| Node::start(&ca, name));
    let [a, b, c] = &nodes;
    connect(&[a, b, c]).await;
    for nonce in 0..3_000 {
        for (from, to) in [(a, b), (a, c), (b, c), (c, a)] {
            from.mesh.send(&to.member.node, nonce as u16, &from.probe(nonce)).unwrap();
        }
    }
    for (to, froms) in [(a, vec![c]), (b, vec![a]), (c, vec![a, b])] {
        wait_until("all frames", || to.inbox.nonces().len() == 3_000 * froms.len()).await;
        for from in froms {
            for lane in 0..4 {
                let of_lane = |seen: &Seen| match seen {
                    Seen::Frame(member, PeerFrame::Probe { nonce, .. }) => {
                        (*member == from.member && nonce % 4 == lane).then_some(*nonce)
                    }
                    _ => None,
                };
                let got: Vec<u64> = to.inbox.all().iter().filter_map(of_lane).collect();
                assert_eq!(got, (0..3_000).filter(|nonce| nonce % 4 == lane).collect::<Vec<_>>());
            }
        }
    }
    assert!(a.mesh.links()[&b.member.node].rtt_us > 0);
    let (sent, received) =
        (|node: &Node| node.metrics.peer.frames_sent.get(), |node: &Node| node.metrics.peer.frames_received.get());
    assert_eq!(nodes.each_ref().map(sent), [6_000, 3_000, 3_000]);
    assert_eq!(nodes.each_ref().map(received), [3_000, 3_000, 6_000]);
    assert!(a.metrics.peer.bytes_sent.get() > 6_000 * 4);
    for node in nodes {
        node.mesh.shut_down().await;
        assert!(node.tasks.shut_down(LIMIT).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_frames_go_beside_the_lanes() {
    let ca = ClusterCa::generate().unwrap();
    let [a, b] = ["a", "b"].map(|name| Node::start(&ca, name));
    connect(&[&a, &b]).await;
    let large = |bytes: usize| PeerFrame::NodeResponse { id: 1, answer: NodeAnswer::Refused("x".repeat(bytes)) };
    for _ in 0..6 {
        a.mesh.send_bulk(&b.member.node, &large(15 << 20)).unwrap();
    }
    assert_eq!(a.mesh.send(&b.member.node, 0, &large(16 << 20)), Err(SendError::TooLong));
    assert_eq!(a.mesh.send_bulk(&b.member.node, &large(16 << 20)), Err(SendError::TooLong));
    assert_eq!(a.metrics.peer.frames_too_long.get(), 2, "somebody sees it");
    a.mesh.send(&b.member.node, 0, &a.probe(1)).unwrap();
    let count = || b.inbox.all().iter().filter(|seen| **seen == Seen::Frame(a.member.clone(), large(15 << 20))).count();
    wait_until("large frames", || count() == 6).await;
    assert_eq!(b.inbox.nonces(), [1]);
    assert!(a.sends_to(&b), "the link was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_goes_to_peers_and_to_addresses() {
    let ca = ClusterCa::generate().unwrap();
    let [a, b] = ["a", "b"].map(|name| Node::start(&ca, name));
    let messages = [Bytes::from_static(b"small"), Bytes::from(vec![7; 60_000])];
    for round in 0..2 {
        for message in &messages {
            a.mesh.gossip_to(b.mesh.local_addr(), message.clone());
        }
        for message in &messages {
            let expected = Seen::Gossip(a.member.clone(), message.clone());
            wait_until("gossip", || b.inbox.all().iter().filter(|seen| **seen == expected).count() == round + 1).await;
        }
        if round == 0 {
            assert!(!b.inbox.all().contains(&Seen::Connected(a.member.clone())), "gossip alone is no link");
            connect(&[&a, &b]).await;
        }
    }
    a.mesh.gossip_to(a.mesh.local_addr(), messages[0].clone());
    assert_eq!(a.metrics.peer.gossip_drops(GossipDrop::NoWay), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_node_is_missed_and_comes_back_on_its_port() {
    let ca = ClusterCa::generate().unwrap();
    let [a, b] = ["a", "b"].map(|name| Node::start(&ca, name));
    connect(&[&a, &b]).await;
    let old = b.member.clone();
    let (identity, addr) = b.crash().await;
    let b = Node::start_as(identity, 2, addr, "test", SETTINGS).expect("the port is free");
    wait_until("the old connections are lost", || {
        !a.mesh.links()[&old.node].sends && a.inbox.all().contains(&Seen::Lost(old.clone()))
    })
    .await;
    assert_eq!(a.mesh.send(&old.node, 0, &a.probe(1)), Err(SendError::Down));
    assert_eq!(a.metrics.peer.link_resets(LinkReset::Lost), 1);
    connect(&[&a, &b]).await;
    a.mesh.send(&old.node, 0, &a.probe(2)).unwrap();
    b.mesh.send(&a.member.node, 0, &b.probe(3)).unwrap();
    wait_until("frames", || b.inbox.nonces() == [2] && a.inbox.nonces() == [3]).await;
    let of_b: Vec<Seen> = a.inbox.all().into_iter().filter(|seen| !matches!(seen, Seen::Frame(..))).collect();
    assert_eq!(of_b, [Seen::Connected(old.clone()), Seen::Lost(old), Seen::Connected(b.member.clone())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_another_start_of_a_node_does_not_come_up() {
    let ca = ClusterCa::generate().unwrap();
    let [a, b] = ["a", "b"].map(|name| Node::start(&ca, name));
    let wrong = BTreeMap::from([(b.member.node.clone(), (7, b.mesh.local_addr()))]);
    a.mesh.set_peers(wrong);
    wait_until("a refusal", || b.metrics.peer.connections_refused.get() > 0).await;
    assert!(!a.sends_to(&b));
    assert_eq!(b.inbox.all(), []);
    connect(&[&a, &b]).await;
    a.mesh.set_peers(BTreeMap::new());
    wait_until("the end of the link", || b.inbox.all().contains(&Seen::Lost(a.member.clone()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ephemeral_leaves_most_of_the_room_and_resets_nothing() {
    let ca = ClusterCa::generate().unwrap();
    let [a, b] = ["a", "b"].map(|name| Node::start(&ca, name));
    connect(&[&a, &b]).await;
    let hold = b.inbox.hold.lock().await;
    let frame = PeerFrame::NodeResponse { id: 1, answer: NodeAnswer::Refused("x".repeat(10 << 10)) };
    let mut sent = 0;
    while a.mesh.send_ephemeral(&b.member.node, 0, &frame).is_ok() {
        sent += 1;
        assert!(sent < 100_000, "no bound");
        tokio::task::yield_now().await;
    }
    assert_eq!(a.mesh.send_ephemeral(&b.member.node, 0, &frame), Err(SendError::Busy));
    assert_eq!(a.mesh.send(&b.member.node, 0, &frame), Ok(()), "for what is not there is room");
    assert_eq!(a.metrics.peer.link_resets(LinkReset::Overflow), 0);
    drop(hold);
    wait_until("all of it", || b.inbox.all().len() > sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_keep_up_is_reset_and_told() {
    let ca = ClusterCa::generate().unwrap();
    let [a, b] = ["a", "b"].map(|name| Node::start(&ca, name));
    connect(&[&a, &b]).await;
    let connected = |node: &Node| node.inbox.all().iter().filter(|seen| matches!(seen, Seen::Connected(_))).count();
    assert_eq!(connected(&b), 1);
    let hold = b.inbox.hold.lock().await;
    let frame = PeerFrame::NodeResponse { id: 1, answer: NodeAnswer::Refused("x".repeat(100 << 10)) };
    let mut sent = 0;
    let error = loop {
        match a.mesh.send(&b.member.node, 0, &frame) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 10_000, "no bound");
        tokio::task::yield_now().await;
    };
    assert_eq!(error, SendError::Full);
    assert_eq!(a.metrics.peer.link_resets(LinkReset::Overflow), 1);
    assert_eq!(a.metrics.limit_hits(Limit::PeerQueueBytes), 1);
    drop(hold);
    wait_until("a new connection", || connected(&b) == 2 && a.sends_to(&b)).await;
    let taken = b.inbox.all().len();
    a.mesh.send(&b.member.node, 0, &a.probe(1)).unwrap();
    wait_until("a frame of the new connection", || b.inbox.nonces() == [1]).await;
    assert_eq!(b.inbox.all().len(), taken + 1, "frames of the old connection after the new one");
}

/// Dials without the mesh, with an identity or none.
async fn stranger(identity: Option<&Identity>, to: SocketAddr) -> Result<quinn::Connection, String> {
    let client = match identity {
        Some(identity) => identity.client_config(Arc::new(tls::sending(SETTINGS.keep_alive))).unwrap(),
        None => tls::tests::client_without_certificate(),
    };
    let endpoint = quinn::Endpoint::client(ANY_PORT).unwrap();
    let connecting = endpoint.connect_with(client, to, tls::COMMON_NAME).map_err(|error| error.to_string())?;
    connecting.await.map_err(|error| error.to_string())
}

fn hello(cluster: &str) -> Hello {
    Hello { purpose: Purpose::Everything, generation: 5, to_generation: 0, belongs: belongs(cluster) }
}

/// Says everything that a node could say, whether or not anyone listens. The lane stays open with what is returned.
async fn say_everything(connection: &quinn::Connection, cluster: &str) -> Vec<quinn::SendStream> {
    let frame = PeerFrame::FetchMap { newer_than: 1 };
    let mut bytes = Vec::new();
    encode_into(&frame, &mut bytes).unwrap();
    let mut lane = vec![STREAM_LANE, 0];
    lane.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    lane.extend_from_slice(&bytes);
    let bulk = [&[STREAM_BULK], bytes.as_slice()].concat();
    let gossip = vec![STREAM_GOSSIP, 1, 2, 3];
    let _ = connection.send_datagram(Bytes::from_static(b"gossip"));
    if let Ok((mut send, mut receive)) = connection.open_bi().await {
        let _ = send.write_all(&hello(cluster).encode()).await;
        let _ = send.finish();
        let _ = tokio::time::timeout(LIMIT, receive.read_to_end(64)).await;
    }
    let mut lanes = Vec::new();
    for content in [lane, bulk, gossip] {
        if let Ok(mut stream) = connection.open_uni().await {
            let _ = stream.write_all(&content).await;
            if content[0] == STREAM_LANE {
                lanes.push(stream);
            } else {
                let _ = stream.finish();
            }
        }
    }
    lanes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_of_the_cluster_can_neither_gossip_nor_send() {
    let ca = ClusterCa::generate().unwrap();
    let other_ca = ClusterCa::generate().unwrap();
    let node = Node::start(&ca, "a");
    let foreign = other_ca.identity(&node_id("b")).unwrap();
    let member = ca.identity(&node_id("b")).unwrap();
    let same_name = ca.identity(&node_id("a")).unwrap();
    let strangers = [(None, "test"), (Some(&foreign), "test"), (Some(&member), "another"), (Some(&same_name), "test")];
    for (number, (identity, cluster)) in strangers.into_iter().enumerate() {
        if let Ok(connection) = stranger(identity, node.mesh.local_addr()).await {
            let _lanes = say_everything(&connection, cluster).await;
            let closed = tokio::time::timeout(LIMIT, connection.closed()).await;
            assert!(closed.is_ok(), "stranger {number} was not turned away");
        }
        wait_until("the refusal", || node.metrics.peer.connections_refused.get() > number as u64).await;
        assert_eq!(node.inbox.all(), [], "stranger {number} was heard");
    }
    // The same words from a member are heard: the test tests what it says.
    let connection = stranger(Some(&member), node.mesh.local_addr()).await.unwrap();
    let _lanes = say_everything(&connection, "test").await;
    wait_until("all words", || node.inbox.all().len() == 5).await;
    let from = Member { node: node_id("b"), generation: 5 };
    assert_eq!(node.inbox.all()[0], Seen::Connected(from.clone()));
    for gossip in [&b"gossip"[..], &[1, 2, 3]] {
        assert!(node.inbox.all().contains(&Seen::Gossip(from.clone(), Bytes::from_static(gossip))));
    }
    // A node whose own peers are strangers does not speak to them either.
    let liar = Node::start_as(Arc::new(foreign), 1, ANY_PORT, "test", SETTINGS).unwrap();
    node.set_peers(&[&liar]);
    node.mesh.gossip_to(liar.mesh.local_addr(), Bytes::from_static(b"secret"));
    wait_until("refusals", || liar.metrics.peer.connections_refused.get() > 2).await;
    assert_eq!(liar.inbox.all(), []);
    assert!(!node.sends_to(&liar));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_the_welcome_is_closed() {
    let ca = ClusterCa::generate().unwrap();
    let node = Node::start(&ca, "a");
    let member = ca.identity(&node_id("b")).unwrap();
    let connection = stranger(Some(&member), node.mesh.local_addr()).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    receive.stop(quinn::VarInt::from_u32(0)).unwrap();
    send.write_all(&hello("test").encode()).await.unwrap();
    send.finish().unwrap();
    let closed =
        tokio::time::timeout(LIMIT, connection.closed()).await.expect("the connection is open, and nobody reads");
    assert_eq!(Goodbye::of(&closed), Some(Goodbye::Garbage));
    let from = Member { node: node_id("b"), generation: 5 };
    wait_until("the end", || node.inbox.all() == [Seen::Connected(from.clone()), Seen::Lost(from.clone())]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_dropped_or_ends_its_connection_only() {
    let ca = ClusterCa::generate().unwrap();
    let [node, peer] = ["a", "c"].map(|name| Node::start(&ca, name));
    connect(&[&node, &peer]).await;
    let member = ca.identity(&node_id("b")).unwrap();
    let greeted = async || {
        let connection = stranger(Some(&member), node.mesh.local_addr()).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&hello("test").encode()).await.unwrap();
        send.finish().unwrap();
        receive.read_exact(&mut [0; 8]).await.unwrap();
        connection
    };
    let mut frame = Vec::new();
    encode_into(&PeerFrame::FetchMap { newer_than: 9 }, &mut frame).unwrap();

    let connection = greeted().await;
    let mut lane = connection.open_uni().await.unwrap();
    lane.write_all(&[STREAM_LANE, 0, 3, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0]).await.unwrap();
    lane.write_all(&(frame.len() as u32).to_le_bytes()).await.unwrap();
    lane.write_all(&frame).await.unwrap();
    let mut unknown = connection.open_uni().await.unwrap();
    let _ = unknown.write_all(&[99, 1, 2, 3]).await;
    let good = Seen::Frame(Member { node: node_id("b"), generation: 5 }, PeerFrame::FetchMap { newer_than: 9 });
    wait_until("the good frame after the bad", || node.inbox.all().contains(&good)).await;
    assert_eq!(node.metrics.peer.frames_undecodable.get(), 2);
    assert!(connection.close_reason().is_none());

    lane.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let reason = tokio::time::timeout(LIMIT, connection.closed()).await.expect("an over-long frame closes");
    assert_eq!(Goodbye::of(&reason), Some(Goodbye::Garbage));

    let connection = stranger(Some(&member), node.mesh.local_addr()).await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let _ = send.write_all(&[0xff; 4_000]).await;
    let reason = tokio::time::timeout(LIMIT, connection.closed()).await.expect("a bad hello closes");
    assert_eq!(Goodbye::of(&reason), Some(Goodbye::Garbage));
    assert!(peer.sends_to(&node) && node.sends_to(&peer), "others were disturbed");
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_said() {
    let ca = ClusterCa::generate().unwrap();
    let node = Node::start(&ca, "a");
    let identity = Arc::new(ca.identity(&node_id("b")).unwrap());
    let taken = Node::start_as(identity.clone(), 1, node.mesh.local_addr(), "test", SETTINGS).err().unwrap();
    assert!(taken.to_string().contains("node.peer_listen"), "{taken}");
    let long = Node::start_as(identity.clone(), 1, ANY_PORT, &"x".repeat(300), SETTINGS).err().unwrap();
    assert!(long.to_string().contains("cluster.name"), "{long}");
    let member = Member { node: node_id("c"), generation: 1 };
    let (metrics, tasks) = (Metrics::new(), Tasks::new());
    let inputs = MeshInputs {
        me: member,
        belongs: belongs("test"),
        identity: &identity,
        listen: ANY_PORT,
        settings: SETTINGS,
        metrics,
        tasks,
    };
    let wrong = Mesh::bind(inputs).err().unwrap();
    assert!(wrong.to_string().contains("node.id"), "{wrong}");
}

/// A node that was started again while its peer still believes in the connection to its earlier start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_an_earlier_start_is_reset_when_the_new_one_comes() {
    let ca = ClusterCa::generate().unwrap();
    let [a, b] = ["a", "b"].map(|name| Node::start(&ca, name));
    connect(&[&a, &b]).await;
    let again = Node::start_as(b.identity.clone(), 2, ANY_PORT, "test", SETTINGS).unwrap();
    again.set_peers(&[&a]);
    wait_until("the reset", || a.metrics.peer.link_resets(LinkReset::Restart) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_heard_and_nothing_lost_before_the_entrance_opens() {
    let ca = ClusterCa::generate().unwrap();
    let a = Node::start(&ca, "a");
    let identity = ca.identity(&node_id("b")).unwrap();
    let (member, tasks) = (Member { node: node_id("b"), generation: 1 }, Tasks::new());
    let (b, mut gossip, entrance) = Mesh::bind(MeshInputs {
        me: member.clone(),
        belongs: belongs("test"),
        identity: &identity,
        listen: ANY_PORT,
        settings: SETTINGS,
        metrics: Metrics::new(),
        tasks: tasks.clone(),
    })
    .unwrap();
    a.mesh.set_peers(BTreeMap::from([(member.node.clone(), (1, b.local_addr()))]));
    b.set_peers(BTreeMap::from([(a.member.node.clone(), (1, a.mesh.local_addr()))]));
    a.mesh.gossip_to(b.local_addr(), Bytes::from_static(b"gossip"));
    wait_until("b can send", || b.links().get(&a.member.node).is_some_and(|link| link.sends)).await;
    assert_eq!(a.mesh.send(&member.node, 0, &a.probe(1)), Err(SendError::Down), "nobody is greeted");
    let inbox = Arc::new(Recorder::default());
    entrance.open(inbox.clone());
    wait_until("a can send", || a.mesh.send(&member.node, 0, &a.probe(2)).is_ok()).await;
    wait_until("the frame", || inbox.all().len() == 2).await;
    assert_eq!(inbox.all()[0], Seen::Connected(a.member.clone()));
    assert_eq!(inbox.nonces(), [2]);
    let heard = tokio::time::timeout(LIMIT, gossip.next()).await.expect("the gossip has waited");
    assert_eq!(heard, Some((a.member.clone(), Bytes::from_static(b"gossip"))));
}

/// Sits between a node and the one that it dials: both ways are open until [`Way::mute`] is set.
#[derive(Default)]
struct Way {
    /// Nothing of the dialling node gets there any more.
    mute: AtomicBool,
    /// Datagrams that came back since.
    back: AtomicU64,
}

impl Way {
    /// Goes on until the test's runtime ends. Gives where to dial.
    async fn open(self: Arc<Self>, tasks: &Tasks, to: SocketAddr) -> SocketAddr {
        let front = tokio::net::UdpSocket::bind(ANY_PORT).await.unwrap();
        let behind = tokio::net::UdpSocket::bind(ANY_PORT).await.unwrap();
        behind.connect(to).await.unwrap();
        let addr = front.local_addr().unwrap();
        tasks.spawn_detached("way", async move {
            let (mut there, mut here, mut dialler) = (vec![0; 65_536], vec![0; 65_536], None);
            loop {
                tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut there) => {
                        dialler = Some(from);
                        if !self.mute.load(Ordering::Relaxed) {
                            behind.send(&there[..length]).await.unwrap();
                        }
                    }
                    Ok(length) = behind.recv(&mut here) => {
                        let Some(dialler) = dialler else { continue };
                        front.send_to(&here[..length], dialler).await.unwrap();
                        let mute = self.mute.load(Ordering::Relaxed);
                        self.back.fetch_add(u64::from(mute), Ordering::Relaxed);
                    }
                }
            }
        });
        addr
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_heard_gets_no_answers_although_it_hears() {
    let ca = ClusterCa::generate().unwrap();
    let settings = MeshSettings { keep_alive: Duration::from_millis(500), ..SETTINGS };
    let start = |name: &str| {
        Node::start_as(Arc::new(ca.identity(&node_id(name)).unwrap()), 1, ANY_PORT, "test", settings).unwrap()
    };
    let (a, b) = (start("a"), start("b"));
    let way = Arc::new(Way::default());
    let addr = way.clone().open(&a.tasks, b.mesh.local_addr()).await;
    a.mesh.set_peers(BTreeMap::from([(b.member.node.clone(), (1, addr))]));
    let answers = || a.mesh.answers().get(&b.member.node).copied();
    wait_until("the link", || answers().is_some()).await;
    let first = answers();
    wait_until("keep-alives to be answered", || answers() != first).await;
    way.mute.store(true, Ordering::Relaxed);
    // What is on its way arrives.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (before, back) = (answers(), way.back.load(Ordering::Relaxed));
    wait_until("the other's own keep-alive", || way.back.load(Ordering::Relaxed) > back).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(answers(), before, "the link is up, and nothing was answered");
}
