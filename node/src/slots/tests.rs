//! The slots of one node, none of whose peers is there.

use std::{sync::Mutex, time::Duration};

use tempfile::TempDir;
use tracing::span;

use super::*;
use crate::{
    deliveries::{self, Arrival, Arrivals},
    id::PublishKey,
    logic::{
        entry::{NewMessage, Retention},
        few::Few,
        map::ClusterMap,
        request::{Ask, Done, GroupPush, Interest, Publish, PublishEphemeral, Published},
        session::{Room, WhenFull},
        slot::SlotSnapshot,
    },
    memory::Ledger,
    metrics::{EphemeralDrop, Limit},
    peer::{
        belongs::Belongs,
        mesh::{Entrance, Mesh, MeshInputs, MeshSettings},
        tls::ClusterCa,
    },
    store::embedded::EmbeddedStore,
    wire::peer::REQUEST_MAX_BYTES,
};

const LIMIT: Duration = Duration::from_secs(20);
const QUEUE: usize = 3;

struct Bench {
    me: Member,
    slots: Slots,
    arrivals: Arrivals,
    metrics: Arc<Metrics>,
    map: ClusterMap,
    tasks: Tasks,
    _kept: (TempDir, Entrance, mpsc::Receiver<Vec<MapRequest>>, mpsc::Receiver<Departure>),
}

fn member(name: &str) -> Member {
    Member { node: NodeId::parse(name).unwrap(), generation: 1 }
}

fn group() -> GroupName {
    GroupName::parse("room:1").unwrap()
}

fn publish(key: u128) -> SlotRequest {
    let publish = Publish {
        messages: Few::one(NewMessage { key: PublishKey(key), data: "1".into() }),
        from: None,
        retention: Retention { messages: 10, bytes: 1_000, age_ms: 10_000, window_ms: 10_000, window_publishes: 100 },
        min_copies: 1,
    };
    (group(), publish).into_request()
}

impl Bench {
    fn start() -> Self {
        let (me, tasks, metrics) = (member("me"), Tasks::new(), Metrics::new());
        let folder = TempDir::new().unwrap();
        let identity = ClusterCa::generate().unwrap().identity(&me.node).unwrap();
        let (mesh, _gossip, entrance) = Mesh::bind(MeshInputs {
            me: me.clone(),
            belongs: Belongs { cluster: "test".to_owned(), ..Belongs::default() },
            identity: &identity,
            listen: ([127, 0, 0, 1], 0).into(),
            settings: MeshSettings { keep_alive: LIMIT, peer_queue_bytes: 1 << 20, bulk_queue_bytes: 1 << 20 },
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        })
        .unwrap();
        let (deliveries, arrivals) = deliveries::queues(1, metrics.hub.ephemeral.clone());
        let ((steward, asked), (departures, departing)) = (mpsc::channel(100), mpsc::channel(100));
        let (fences, _) = mpsc::channel(100);
        let slots = Slots::start(SlotsInputs {
            me: me.clone(),
            settings: SlotSettings {
                replica_timeout_ms: 600_000,
                resume_grace_ms: 600_000,
                memory_ttl_ms: 600_000,
                unclaimed_ms: 600_000,
                group_idle_ms: 600_000,
                group_idle_tight_ms: 600_000,
                queue: QUEUE,
                groups_per_session: 10,
                room: Room { clients_max: 16, when_full: WhenFull::Displace },
            },
            slots: 1,
            mesh,
            store: EmbeddedStore::open(folder.path().join("store.redb")).unwrap(),
            deliveries,
            steward,
            departures,
            fences,
            permit: Arc::default(),
            ledger: Ledger::new(1 << 30),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        });
        let map = ClusterMap::first(&me, 1);
        Self { me, slots, arrivals, metrics, map, tasks, _kept: (folder, entrance, asked, departing) }
    }

    async fn show_map(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        change(&mut self.map);
        self.slots.map(Arc::new(self.map.clone())).await;
    }

    async fn ask(&self, request: SlotRequest) -> Result<SlotAnswer, SlotError> {
        let answer = self.slots.request_here(0, self.map.slots[0].term, request).await;
        tokio::time::timeout(LIMIT, answer).await.expect("an answer in time").unwrap()
    }
}

/// Notes the names of all spans that are opened on this thread.
#[derive(Clone, Default)]
struct SpanNames(Arc<Mutex<Vec<&'static str>>>);

impl tracing::Subscriber for SpanNames {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut names = self.0.lock().unwrap();
        names.push(span.metadata().name());
        span::Id::from_u64(names.len() as u64)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_message_is_ordered_replicated_and_delivered_under_these_names() {
    let spans = SpanNames::default();
    let _guard = tracing::subscriber::set_default(spans.clone());
    let mut bench = Bench::start();
    bench.show_map(|_| {}).await;
    let register = SlotRequest::Register { interests: vec![Interest { group: group(), since: None }] };
    assert!(bench.ask(register).await.is_ok());
    // A second gateway, on a node that is not there.
    let (reply, registered) = oneshot::channel();
    let register = SlotRequest::Register { interests: vec![Interest { group: group(), since: None }] };
    bench.slots.request(0, member("q"), 1, register, ReplyTo::Here(reply)).await;
    assert!(registered.await.unwrap().is_ok());
    let published = bench.ask(publish(1)).await;
    assert!(
        matches!(&published, Ok(SlotAnswer::Published(all)) if matches!(all[..], [Ok(Published { copies: 1, .. })])),
        "{published:?}"
    );
    let arrived = tokio::time::timeout(LIMIT, bench.arrivals.shards[0].recv()).await.unwrap();
    assert!(
        matches!(arrived, Some(Arrival::Push { group: name, push: GroupPush::Deliver { .. }, .. }) if name == group())
    );
    bench
        .show_map(|map| {
            (map.version, map.slots[0].changed_at, map.slots[0].learner) = (2, 2, Some(member("q")));
        })
        .await;
    assert!(bench.slots.counts().await.primary == 1);
    let names = spans.0.lock().unwrap().clone();
    for name in ["order", "deliver", "replicate"] {
        assert!(names.contains(&name), "no span {name} in {names:?}");
    }
    let text = bench.metrics.encode();
    assert!(text.contains("roost_publishes_ordered_total 1\n") && text.contains("roost_commit_seconds_count 1\n"));
    assert!(bench.tasks.shut_down(LIMIT).await);
}

#[tokio::test]
async fn what_is_ephemeral_and_finds_no_way_to_a_node_is_dropped_and_counted() {
    let mut bench = Bench::start();
    bench.show_map(|_| {}).await;
    for gateway in [bench.me.clone(), member("q")] {
        let (reply, registered) = oneshot::channel();
        let register = SlotRequest::Register { interests: vec![Interest { group: group(), since: None }] };
        bench.slots.request(0, gateway, 1, register, ReplyTo::Here(reply)).await;
        assert!(registered.await.unwrap().is_ok());
    }
    let data: Few<_> = ["1".into(), "2".into()].into();
    let publish = || (group(), PublishEphemeral { data: data.clone(), from: None }).into_request();
    assert_eq!(bench.ask(publish()).await, Ok(SlotAnswer::Done(Done)));
    assert_eq!(bench.metrics.hub.ephemeral.drops(EphemeralDrop::Peer), 2);
    let arrived = tokio::time::timeout(LIMIT, bench.arrivals.shards[0].recv()).await.unwrap();
    assert!(matches!(arrived, Some(Arrival::Push { push, .. }) if push.ephemeral() == 2));
    assert!(bench.tasks.shut_down(LIMIT).await);
}

#[tokio::test]
async fn what_a_slot_refuses_and_what_it_holds_is_counted() {
    let mut bench = Bench::start();
    bench.show_map(|_| {}).await;
    assert!(bench.ask(publish(1)).await.is_ok());
    // Nothing commits any more: the other does not answer.
    let both = [bench.me.clone(), member("q")].to_vec();
    bench.show_map(|map| (map.version, map.slots[0].changed_at, map.slots[0].in_sync) = (2, 2, both)).await;
    let mut waiting = Vec::new();
    for key in 2..2 + QUEUE as u128 {
        waiting.push(bench.slots.request_here(0, 1, publish(key)).await);
    }
    assert_eq!(bench.metrics.limit_hits(Limit::SlotQueue), 0);
    assert_eq!(bench.ask(publish(1_000)).await, Err(SlotError::Busy));
    assert_eq!(bench.metrics.limit_hits(Limit::SlotQueue), 1);
    let too_late = ReplyTo::Peer { node: member("q").node, id: 1, until_ms: 0 };
    bench.slots.request(0, member("q"), 1, publish(7), too_late).await;
    let counts = bench.slots.counts().await;
    assert_eq!((counts.primary, counts.replica, counts.learner, counts.groups), (1, 0, 0, 1));
    assert_eq!(bench.metrics.requests_too_late.get(), 1);
    bench
        .show_map(|map| {
            let next = (3, 2, 3, member("q"), vec![member("q")], Some(member("me")));
            let slot = &mut map.slots[0];
            (map.version, slot.term, slot.changed_at, slot.primary, slot.in_sync, slot.learner) = next;
        })
        .await;
    let counts = bench.slots.counts().await;
    assert_eq!((counts.primary, counts.replica, counts.learner), (0, 0, 1));
    assert!(bench.tasks.shut_down(LIMIT).await);
}

#[tokio::test]
async fn half_a_snapshot_is_counted_and_goes_with_its_episode() {
    let mut bench = Bench::start();
    let (me, q) = (bench.me.clone(), member("q"));
    let (primary, in_sync) = (q.clone(), vec![q.clone()]);
    bench
        .show_map(move |map| {
            let slot = &mut map.slots[0];
            (slot.primary, slot.in_sync, slot.learner) = (primary, in_sync, Some(me));
        })
        .await;
    let (term, sync, lineage, part) = (1, 1, 1, SlotSnapshot::default());
    let message = ReplicationMessage::Piece { term, sync, lineage, index: 9, number: 0, is_last: false, part };
    bench.slots.replicate(0, q, message).await;
    let counts = bench.slots.counts().await;
    assert!(counts.learner == 1 && counts.incoming_bytes > 0, "{counts:?}");
    bench.show_map(|map| (map.version, map.slots[0].changed_at, map.slots[0].learner) = (2, 2, None)).await;
    assert_eq!(bench.slots.counts().await, SlotCounts::default());
}

#[tokio::test]
async fn what_no_copy_could_be_sent_is_not_ordered() {
    let mut bench = Bench::start();
    bench.show_map(|_| {}).await;
    let (group, data) = (group(), vec![b'1'; REQUEST_MAX_BYTES].into());
    let retention = Retention { messages: 1, bytes: 1, age_ms: 1, window_ms: 1, window_publishes: 1 };
    let messages = Few::one(NewMessage { key: PublishKey(1), data });
    let large = Publish { messages, from: None, retention, min_copies: 1 };
    assert_eq!(bench.ask((group, large).into_request()).await, Err(SlotError::TooLong { done: false }));
    assert!(bench.ask(publish(1)).await.is_ok());
}
