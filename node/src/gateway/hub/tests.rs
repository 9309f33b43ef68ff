//! The shell around the feeds, with a script in place of the cluster. What the feeds decide is tested with them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod ephemeral;
mod readers;

use super::*;
use crate::{
    cluster::view::{ClusterView, NodeState, NodeView, SharedView, StoreView},
    config::{LimitsConfig, SlowConsumer},
    deliveries::{self, Arrivals, Deliveries, SessionNews},
    gateway::{
        ask::{self, Primaries},
        client::{outbox::tests::Seen, replays::Replays},
    },
    id::{ClientKey, Epoch, Member, NodeId, SessionId},
    logic::{
        entry::{MemberEvent, Message, Present},
        few::Few,
        map::ClusterMap,
        request::{Done, GroupPush, GroupRequest, Join, JoinPoint, Leave, Push, SlotAnswer, SlotRequest},
    },
    memory::Ledger,
    metrics::Metrics,
};

const EPOCH: Epoch = Epoch(7);

/// Every primary of the cluster, as far as a gateway sees them.
#[derive(Clone, Default)]
pub(crate) struct Script {
    state: Arc<Mutex<ScriptState>>,
}

#[derive(Default)]
struct ScriptState {
    groups: BTreeMap<GroupName, Vec<Message>>,
    /// How many messages of each group are gone.
    trimmed: BTreeMap<GroupName, usize>,
    /// Messages in one answer to a join; 0: all.
    page: usize,
    asked: Vec<SlotRequest>,
    down: bool,
}

#[async_trait]
impl Primaries for Script {
    async fn call(
        &self,
        _slot: SlotId,
        request: SlotRequest,
        _deadline: Duration,
        _over: Option<&CancellationToken>,
    ) -> ask::Answer {
        tokio::task::yield_now().await;
        let mut state = self.state.lock().unwrap();
        state.asked.push(request.clone());
        if state.down {
            return Err(SlotError::Unavailable);
        }
        Ok(match request {
            SlotRequest::Group(group, GroupRequest::Join(Join { since, .. })) => {
                let page = state.page;
                SlotAnswer::Joined(state.point(group, since, page))
            }
            SlotRequest::Register { interests } => SlotAnswer::Registered(
                interests.into_iter().map(|interest| state.point(interest.group, interest.since, 0)).collect(),
            ),
            _ => SlotAnswer::Done(Done),
        })
    }
}

impl ScriptState {
    fn point(&mut self, group: GroupName, since: Option<Position>, page: usize) -> JoinPoint {
        let log = self.groups.entry(group.clone()).or_default();
        let trimmed = self.trimmed.get(&group).copied().unwrap_or(0);
        let since = since.map_or(log.len(), |since| since.offset as usize);
        let page = if page == 0 { usize::MAX } else { page };
        let messages: Vec<_> = log.iter().skip(since.max(trimmed)).take(page).cloned().collect();
        let head = log.len() as u64;
        let up_to = messages.last().map_or(head, |last| last.offset);
        JoinPoint {
            group,
            epoch: EPOCH,
            head,
            up_to,
            recovered: since >= trimmed,
            messages,
            present: Present::default(),
        }
    }
}

impl Script {
    /// Appends a message; the push that tells of it.
    fn publish(&self, group: &GroupName) -> Push {
        self.publish_sized(group, 0)
    }

    /// The same, with about this number of bytes.
    fn publish_sized(&self, group: &GroupName, bytes: usize) -> Push {
        let mut state = self.state.lock().unwrap();
        let log = state.groups.entry(group.clone()).or_default();
        let offset = log.len() as u64 + 1;
        let message =
            Message { offset, data: format!("\"{offset:0>bytes$}\"").into_bytes().into(), from: None, at_ms: 0 };
        log.push(message.clone());
        Push::Group(group.clone(), GroupPush::Deliver { epoch: EPOCH, messages: Few::one(message) })
    }

    /// Forgets all but the last few.
    fn trim(&self, group: &GroupName, leave: usize) {
        let mut state = self.state.lock().unwrap();
        let gone = state.groups.get(group).map_or(0, |log| log.len().saturating_sub(leave));
        let trimmed = state.trimmed.entry(group.clone()).or_default();
        *trimmed = gone.max(*trimmed);
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.state.lock().unwrap().down = down;
    }

    pub(crate) fn asked(&self) -> Vec<SlotRequest> {
        self.state.lock().unwrap().asked.clone()
    }
}

/// A hub with two other nodes: `p`, the primary of everything, and `q`.
pub(crate) struct Bench {
    pub(crate) script: Script,
    pub(crate) hub: Hub,
    pub(crate) deliveries: Deliveries,
    /// For who takes news of sessions.
    pub(crate) sessions: Option<mpsc::Receiver<SessionNews>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) maps: watch::Sender<Option<SharedMap>>,
    _view: watch::Sender<SharedView>,
    pub(crate) tasks: Tasks,
    slots: u16,
}

pub(crate) fn member(name: &str) -> Member {
    Member { node: NodeId::parse(name).unwrap(), generation: 1 }
}

fn node(name: &str) -> (NodeId, NodeView) {
    let view = NodeView {
        member: member(name),
        addr: ([127, 0, 0, 1], 1).into(),
        alive: true,
        state: NodeState::Serving,
        http: String::new(),
        zone: String::new(),
        version: String::new(),
        map_version: 1,
        store_id: String::new(),
        settings: String::new(),
        load: Default::default(),
        store: StoreView::Up,
        links: BTreeMap::new(),
        groups: BTreeMap::new(),
    };
    (view.member.node.clone(), view)
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let mut config = Config::default();
        config.cluster.slots = 8;
        config.timing.stale_after_ms = 200;
        config.timing.keep_alive_ms = 10;
        config.namespaces.entry("lag".to_owned()).or_default().slow_consumer = SlowConsumer::Lag;
        let map = ClusterMap::first(&member("p"), config.cluster.slots);
        let (maps, map) = watch::channel(Some(Arc::new(map)));
        let nodes = ["me", "p", "q"].into_iter().map(node).collect();
        let (view_sender, view) = watch::channel(Arc::new(ClusterView { me: member("me"), nodes }));
        let (script, tasks, metrics) = (Script::default(), Tasks::new(), Metrics::new());
        let slots = config.cluster.slots;
        let ask = Ask::new(Arc::new(script.clone()), map.clone(), &config, metrics.clone());
        let (deliveries, Arrivals { shards, sessions }) = deliveries::queues(2, metrics.hub.ephemeral.clone());
        let hub = Hub::start(ask, shards, map, view, Arc::new(config), metrics.hub.clone(), tasks.clone());
        deliveries.peer_connected(&member("p")).await;
        deliveries.peer_connected(&member("q")).await;
        let sessions = Some(sessions);
        Self { script, hub, deliveries, sessions, metrics, maps, _view: view_sender, tasks, slots }
    }

    async fn publish(&self, group: &GroupName) {
        let push = self.script.publish(group);
        self.push(group, push).await;
    }

    async fn push(&self, group: &GroupName, push: Push) {
        self.deliveries.deliver(group.slot(self.slots), 1, push).await;
    }

    /// Joins and waits for the answer.
    pub(crate) async fn joined(&self, outbox: &Arc<Outbox>, group: &GroupName, since: Option<u64>) {
        let since = since.map(|offset| Position { epoch: EPOCH, offset });
        let outcome =
            self.hub.join_reported(Arc::clone(outbox), Some("1".into()), group.clone(), None, since, None).await;
        outcome.await.unwrap().unwrap();
    }

    pub(crate) async fn end(self) {
        assert!(!self.tasks.fatal().is_cancelled(), "a task has failed");
        assert!(self.tasks.shut_down(Duration::from_secs(5)).await);
    }
}

pub(crate) fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

pub(crate) fn outbox(connection: u64) -> Arc<Outbox> {
    Arc::new(Outbox::new(connection, 1 << 20, Ledger::new(1 << 30)))
}

pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}

fn short(frame: &Seen) -> String {
    let value: serde_json::Value = serde_json::from_str(frame.as_str()).unwrap();
    let kind = value["type"].as_str().unwrap();
    match value["offset"].as_u64() {
        Some(offset) => format!("{kind} {offset}"),
        None => kind.to_owned(),
    }
}

/// Waits for a number of frames and gives them in short words.
async fn frames(outbox: &Outbox, count: usize) -> Vec<String> {
    let mut got: Vec<String> = Vec::new();
    wait_until(&format!("{count} frames are there"), || {
        got.extend(outbox.take().frames.iter().map(short));
        got.len() >= count
    })
    .await;
    got
}

#[tokio::test]
async fn a_message_goes_to_all_who_have_joined_as_one_frame() {
    let bench = Bench::new().await;
    let (chat, other) = (group("chat:1"), group("other"));
    let (a, b, c) = (outbox(1), outbox(2), outbox(3));
    bench.publish(&chat).await;
    bench.joined(&a, &chat, None).await;
    bench.joined(&b, &chat, Some(0)).await;
    bench.joined(&c, &other, None).await;
    bench.publish(&chat).await;
    assert_eq!(frames(&a, 2).await, ["joined 1", "message 2"]);
    assert_eq!(frames(&b, 3).await, ["joined 1", "message 1", "message 2"]);
    bench.publish(&chat).await;
    wait_until("both have it", || a.queued_bytes() > 0 && b.queued_bytes() > 0).await;
    let (to_a, to_b) = (a.take().frames, b.take().frames);
    assert_eq!(to_a[0].at, to_b[0].at, "encoded once");
    assert_eq!(bench.hub.membership(), BTreeMap::from([(chat, 2), (other, 1)]));
    assert_eq!(frames(&c, 1).await, ["joined 0"]);
    let counted = &bench.metrics.hub;
    assert_eq!((counted.deliveries.get(), counted.messages.get(), counted.joins.get()), (5, 2, 3));
    bench.end().await;
}

#[tokio::test]
async fn what_a_renewed_link_has_lost_is_had_again() {
    let bench = Bench::new().await;
    let chat = group("chat");
    let a = outbox(1);
    bench.joined(&a, &chat, None).await;
    bench.script.publish(&chat);
    bench.script.publish(&chat);
    bench.deliveries.peer_connected(&member("p")).await;
    assert_eq!(frames(&a, 3).await, ["joined 0", "message 1", "message 2"]);
    bench.end().await;
}

#[tokio::test]
async fn a_new_primary_is_asked_for_all_groups_of_a_slot_at_once() {
    let bench = Bench::new().await;
    let a = outbox(1);
    let all: Vec<_> = (0..200).map(|number| group(&format!("g{number}"))).collect();
    let one_slot: Vec<_> = all.into_iter().filter(|group| group.slot(8) == 3).collect();
    assert!(one_slot.len() > 5);
    for group in &one_slot {
        bench.joined(&a, group, None).await;
        bench.script.publish(group);
    }
    let mut map = ClusterMap::first(&member("q"), 8);
    map.version = 2;
    map.slots.iter_mut().for_each(|slot| slot.term = 2);
    bench.maps.send_replace(Some(Arc::new(map)));
    let expected = one_slot.len() * 2;
    assert_eq!(frames(&a, expected).await.len(), expected);
    let mut registers = bench.script.asked().into_iter().filter_map(|request| match request {
        SlotRequest::Register { interests } => Some(interests.len()),
        _ => None,
    });
    assert_eq!(registers.next(), Some(one_slot.len()));
    bench.end().await;
}

#[tokio::test]
async fn clients_are_told_when_the_primary_cannot_be_heard_and_when_it_can() {
    let bench = Bench::new().await;
    let chat = group("chat");
    let (a, b) = (outbox(1), outbox(2));
    bench.joined(&a, &chat, None).await;
    bench.deliveries.peer_lost(&member("p")).await;
    assert_eq!(frames(&a, 2).await, ["joined 0", "stale"]);
    bench.joined(&b, &chat, None).await;
    assert_eq!(frames(&b, 2).await, ["joined 0", "stale"]);
    bench.script.publish(&chat);
    bench.deliveries.peer_connected(&member("p")).await;
    assert_eq!(frames(&a, 2).await, ["message 1", "live 1"]);
    bench.end().await;
}

#[tokio::test]
async fn nothing_follows_a_leave_and_the_last_one_ends_the_registration() {
    let bench = Bench::new().await;
    let chat = group("chat");
    let a = outbox(1);
    bench.joined(&a, &chat, None).await;
    bench.publish(&chat).await;
    bench
        .hub
        .leave(
            Arc::clone(&a),
            (Some("2".into()), LeftBy::Client),
            chat.clone(),
            Some(Seat { session: SessionId(uuid::Uuid::nil()), client: ClientKey(1), attachment: 4 }),
        )
        .await;
    // Messages and what a connection wants come by two ways: there is an order only from here on.
    assert_eq!(frames(&a, 3).await, ["joined 0", "message 1", "left"]);
    bench.publish(&chat).await;
    wait_until("the registration has ended", || {
        bench.script.asked().iter().any(|request| matches!(request, SlotRequest::Unregister { .. }))
    })
    .await;
    assert!(bench.script.asked().iter().any(
        |request| matches!(request, SlotRequest::Group(_, GroupRequest::Leave(Leave { seat })) if seat.attachment == 4)
    ));
    assert!(a.take().frames.is_empty());
    assert_eq!((bench.hub.membership().len(), bench.hub.group_count()), (0, 0));
    bench.end().await;
}

#[tokio::test]
async fn a_connection_that_is_gone_has_no_subscriptions() {
    let bench = Bench::new().await;
    let (one, two) = (group("one"), group("two"));
    let (a, b) = (outbox(1), outbox(2));
    for group in [&one, &two] {
        bench.joined(&a, group, None).await;
        bench.joined(&b, group, None).await;
    }
    bench.hub.left_all(1).await;
    assert_eq!(bench.hub.membership(), BTreeMap::from([(one.clone(), 1), (two.clone(), 1)]));
    a.take();
    b.cut(crate::gateway::client::outbox::Closing::new(crate::wire::reason::Reason::Idle));
    bench.publish(&one).await;
    wait_until("the closing connection was noticed", || bench.hub.membership() == BTreeMap::from([(two.clone(), 1)]))
        .await;
    assert_eq!(bench.metrics.hub.dropped.get(), 1);
    assert!(a.take().frames.is_empty());
    bench.end().await;
}

#[tokio::test]
async fn a_join_that_cannot_be_had_is_an_error_with_its_mark() {
    let bench = Bench::new().await;
    bench.script.set_down(true);
    let a = outbox(1);
    let outcome = bench.hub.join_reported(Arc::clone(&a), Some("9".into()), group("chat"), None, None, None).await;
    assert_eq!(outcome.await.unwrap(), Err(SlotError::Unavailable));
    wait_until("the client is told", || a.queued_bytes() > 0).await;
    let frame = a.take().frames.remove(0);
    let value: serde_json::Value = serde_json::from_str(frame.as_str()).unwrap();
    assert_eq!((&value["type"], &value["id"], &value["code"]), (&"error".into(), &9.into(), &"unavailable".into()));
    bench.end().await;
}

#[tokio::test]
async fn a_message_that_nobody_here_wants_ends_the_registration() {
    let bench = Bench::new().await;
    bench.publish(&group("chat")).await;
    wait_until("the primary was told", || {
        bench.script.asked().iter().any(|request| matches!(request, SlotRequest::Unregister { .. }))
    })
    .await;
    bench.end().await;
}

#[tokio::test]
async fn many_joins_and_messages_at_once() {
    let bench = Bench::new().await;
    let chat = group("chat");
    let outboxes: Vec<_> = (1..=3_000).map(outbox).collect();
    // Messages come by another way than joins. One that overtakes the first join would end the registration.
    bench.joined(&outboxes[0], &chat, None).await;
    bench.publish(&chat).await;
    for (number, outbox) in outboxes.iter().enumerate().skip(1) {
        bench.hub.join(Arc::clone(outbox), None, chat.clone(), None, None).await;
        if number % 100 == 0 {
            bench.publish(&chat).await;
        }
    }
    for outbox in &outboxes {
        let mut next = None;
        wait_until("all of it is there", || {
            for frame in outbox.take().frames {
                let value: serde_json::Value = serde_json::from_str(frame.as_str()).unwrap();
                let offset = value["offset"].as_u64().unwrap_or_else(|| panic!("{value} when {next:?} was due"));
                match (value["type"].as_str().unwrap(), next) {
                    ("joined", None) => {}
                    ("message", Some(next)) => assert_eq!(offset, next),
                    (other, next) => panic!("{other} {offset} when {next:?} was due"),
                }
                next = Some(offset + 1);
            }
            next == Some(31)
        })
        .await;
    }
    bench.end().await;
}

/// A client that reads when it is told to, and checks all that it reads.
struct Reader {
    outbox: Arc<Outbox>,
    replays: Replays,
    group: GroupName,
    next: Option<u64>,
    seen: Vec<String>,
}

impl Reader {
    fn new(outbox_bytes: usize, group: &GroupName) -> Self {
        let outbox = Arc::new(Outbox::new(1, outbox_bytes, Ledger::new(1 << 30)));
        let replays = Replays::new(&LimitsConfig::default(), Metrics::new());
        Self { outbox, replays, group: group.clone(), next: None, seen: Vec::new() }
    }

    /// Takes all that is there, and asks for more where it is behind, as a connection's task does.
    async fn read(&mut self, hub: &Hub) {
        let batch = self.outbox.take();
        assert_eq!(batch.closing, None);
        batch.frames.iter().for_each(|frame| self.check(frame));
        for group in batch.behind {
            assert_eq!(group, self.group);
            let page = self.replays.page().await.unwrap();
            let told = hub.replay(&self.outbox, group, page).await;
            assert_eq!(told.await.unwrap(), Ok(Entered::KnownGroup));
        }
    }

    fn check(&mut self, frame: &Seen) {
        let value: serde_json::Value = serde_json::from_str(frame.as_str()).unwrap();
        let (next, number) = (&mut self.next, |key: &str| value[key].as_u64().unwrap());
        match value["type"].as_str().unwrap() {
            "joined" => *next = Some(number("offset") + 1),
            "message" => {
                assert_eq!(Some(number("offset")), *next, "{:?}", self.seen);
                *next = Some(number("offset") + 1);
            }
            "gap" => {
                assert_eq!(Some(number("from")), *next, "{:?}", self.seen);
                assert!(number("to") >= number("from"));
                *next = Some(number("to") + 1);
            }
            "live" => assert_eq!(Some(number("offset") + 1), *next, "{:?}", self.seen),
            "stale" | "member" => {}
            other => panic!("{other} came"),
        }
        self.seen.push(short(frame));
    }

    async fn read_until(&mut self, hub: &Hub, head: u64) {
        for _ in 0..10_000 {
            self.read(hub).await;
            let stale = self.seen.iter().rposition(|seen| seen == "stale");
            let live = self.seen.iter().rposition(|seen| seen.starts_with("live"));
            if self.next == Some(head + 1) && stale <= live {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{head} was not reached: {:?}", self.seen);
    }
}

#[tokio::test]
async fn a_slow_consumer_lags_where_its_namespace_says_so_and_is_caught_up() {
    let bench = Bench::new().await;
    bench.script.state.lock().unwrap().page = 4;
    let lag = group("lag:1");
    let mut reader = Reader::new(4_000, &lag);
    bench.joined(&reader.outbox, &lag, None).await;
    for _ in 0..40 {
        let push = bench.script.publish_sized(&lag, 100);
        bench.push(&lag, push).await;
    }
    wait_until("it lags", || bench.metrics.hub.lagged.get() == 1).await;
    let queued = reader.outbox.queued_bytes();
    assert!(queued <= 2_000 + 100, "half of it, and `stale`: {queued}");
    let presence = Presence {
        session: SessionId(uuid::Uuid::nil()),
        client: ClientKey(1),
        user: "".into(),
        revision: 0,
        info: "{}".into(),
        attachment: 1,
    };
    bench
        .push(
            &lag,
            Push::Group(
                lag.clone(),
                GroupPush::Member { event: MemberEvent::Join, member: presence, present: Present::default() },
            ),
        )
        .await;
    wait_until("it is told who comes", || reader.outbox.queued_bytes() > queued).await;
    reader.read_until(&bench.hub, 40).await;
    assert_eq!(reader.seen.iter().filter(|seen| *seen == "stale").count(), 1);
    assert_eq!(reader.seen.last().unwrap(), "live 40");
    bench.publish(&lag).await;
    wait_until("it is live", || reader.outbox.queued_bytes() > 0).await;
    reader.read_until(&bench.hub, 41).await;
    wait_until("what pages held has gone back", || reader.replays.held_bytes() == 0).await;
    assert_eq!(bench.metrics.hub.lagged.get(), 1);
    bench.end().await;
}

#[tokio::test]
async fn a_slow_consumer_is_closed_where_its_namespace_does_not_say_otherwise() {
    let bench = Bench::new().await;
    let chat = group("chat");
    let outbox = Arc::new(Outbox::new(1, 4_000, Ledger::new(1 << 30)));
    bench.joined(&outbox, &chat, None).await;
    for _ in 0..40 {
        let push = bench.script.publish_sized(&chat, 100);
        bench.push(&chat, push).await;
    }
    wait_until("it is closed", || outbox.is_closing()).await;
    wait_until("it is not followed", || bench.hub.membership().is_empty()).await;
    assert_eq!((bench.metrics.hub.lagged.get(), bench.metrics.hub.dropped.get()), (0, 1));
    bench.end().await;
}

#[derive(Clone, Debug)]
enum Slow {
    Publish(usize),
    Lose(usize),
    Trim(usize),
    Read,
    Rest,
}

fn slow() -> impl Strategy<Value = Slow> {
    prop_oneof![
        6 => (0..1_500_usize).prop_map(Slow::Publish),
        1 => (0..1_500_usize).prop_map(Slow::Lose),
        1 => (0..20_usize).prop_map(Slow::Trim),
        2 => Just(Slow::Read),
        2 => Just(Slow::Rest),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_slow_consumer_gets_everything_or_is_told_what_is_missing(
        outbox_bytes in 3_000..12_000_usize,
        page in 0..6_usize,
        steps in prop::collection::vec(slow(), 1..150),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new().await;
            bench.script.state.lock().unwrap().page = page;
            let lag = group("lag:1");
            let mut reader = Reader::new(outbox_bytes, &lag);
            bench.joined(&reader.outbox, &lag, None).await;
            let mut head = 0;
            for step in steps {
                match step {
                    Slow::Publish(bytes) | Slow::Lose(bytes) => {
                        head += 1;
                        let push = bench.script.publish_sized(&lag, bytes);
                        if matches!(step, Slow::Publish(_)) {
                            bench.push(&lag, push).await;
                        }
                    }
                    Slow::Trim(leave) => bench.script.trim(&lag, leave),
                    Slow::Read => reader.read(&bench.hub).await,
                    Slow::Rest => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
            // What was lost on the way shows when the link is renewed.
            bench.deliveries.peer_connected(&member("p")).await;
            reader.read_until(&bench.hub, head).await;
            wait_until("what pages held has gone back", || reader.replays.held_bytes() == 0).await;
            bench.end().await;
        });
    }
}
