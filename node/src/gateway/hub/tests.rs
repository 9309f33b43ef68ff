//! The shell around the feeds, with a script in place of the cluster. What the feeds decide is tested with them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::extract::ws::Utf8Bytes;
use tokio::sync::watch;

use super::*;
use crate::{
    cluster::view::{ClusterView, NodeState, NodeView, SharedView, StoreView},
    id::NodeId,
    logic::map::ClusterMap,
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
    asked: Vec<SlotRequest>,
    down: bool,
}

impl Ask for Script {
    async fn ask(&self, _slot: SlotId, request: SlotRequest, _deadline: Duration) -> Result<SlotAnswer, SlotError> {
        tokio::task::yield_now().await;
        let mut state = self.state.lock().unwrap();
        state.asked.push(request.clone());
        if state.down {
            return Err(SlotError::Unavailable);
        }
        Ok(match request {
            SlotRequest::Join { group, since, .. } => SlotAnswer::Joined(state.point(group, since)),
            SlotRequest::Register { interests } => SlotAnswer::Registered(
                interests.into_iter().map(|interest| state.point(interest.group, interest.since)).collect(),
            ),
            _ => SlotAnswer::Done,
        })
    }
}

impl ScriptState {
    fn point(&mut self, group: GroupName, since: Option<Position>) -> JoinPoint {
        let log = self.groups.entry(group.clone()).or_default();
        let head = log.len() as u64;
        let skip = since.map_or(head, |since| since.offset) as usize;
        let messages = log.iter().skip(skip).cloned().collect();
        JoinPoint { group, epoch: EPOCH, head, recovered: true, messages }
    }
}

impl Script {
    /// Appends a message; the push that tells of it.
    fn publish(&self, group: &GroupName) -> Push {
        let mut state = self.state.lock().unwrap();
        let log = state.groups.entry(group.clone()).or_default();
        let offset = log.len() as u64 + 1;
        let message = Message { offset, data: offset.to_string().into_bytes().into(), from: None, at_ms: 0 };
        log.push(message.clone());
        Push::Deliver { group: group.clone(), epoch: EPOCH, message }
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
    maps: watch::Sender<Option<SharedMap>>,
    _view: watch::Sender<SharedView>,
    tasks: Tasks,
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
        let map = ClusterMap::first(&member("p"), config.cluster.slots);
        let (maps, map) = watch::channel(Some(Arc::new(map)));
        let nodes = ["me", "p", "q"].into_iter().map(node).collect();
        let (view_sender, view) = watch::channel(Arc::new(ClusterView { me: member("me"), nodes }));
        let (script, tasks) = (Script::default(), Tasks::new());
        let slots = config.cluster.slots;
        let hub = Hub::start_with(script.clone(), 2, map, view, Arc::new(config), tasks.clone());
        hub.peer_connected(&member("p")).await;
        hub.peer_connected(&member("q")).await;
        Self { script, hub, maps, _view: view_sender, tasks, slots }
    }

    async fn publish(&self, group: &GroupName) {
        let push = self.script.publish(group);
        self.push(group, push).await;
    }

    async fn push(&self, group: &GroupName, push: Push) {
        self.hub.push(&member("p"), group.slot(self.slots), 1, push).await;
    }

    /// Joins and waits for the answer.
    pub(crate) async fn joined(&self, outbox: &Arc<Outbox>, group: &GroupName, since: Option<u64>) {
        let since = since.map(|offset| Position { epoch: EPOCH, offset });
        let outcome = self.hub.join_reported(Arc::clone(outbox), Some("1".into()), group.clone(), None, since).await;
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
    Arc::new(Outbox::new(connection, 1 << 20))
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

fn short(frame: &Utf8Bytes) -> String {
    let value: serde_json::Value = serde_json::from_str(frame.as_str()).unwrap();
    let kind = value["type"].as_str().unwrap();
    match value["offset"].as_u64() {
        Some(offset) => format!("{kind} {offset}"),
        None => kind.to_owned(),
    }
}

/// Waits for so many frames and gives them in short words.
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
    assert_eq!(to_a[0].as_str().as_ptr(), to_b[0].as_str().as_ptr(), "encoded once");
    assert_eq!(bench.hub.membership(), BTreeMap::from([(chat, 2), (other, 1)]));
    assert_eq!(frames(&c, 1).await, ["joined 0"]);
    let counters = bench.hub.counters();
    assert_eq!((counters.deliveries, counters.messages, counters.joins), (5, 2, 3));
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
    bench.hub.peer_connected(&member("p")).await;
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
    bench.hub.peer_lost(&member("p")).await;
    assert_eq!(frames(&a, 2).await, ["joined 0", "stale"]);
    bench.joined(&b, &chat, None).await;
    assert_eq!(frames(&b, 2).await, ["joined 0", "stale"]);
    bench.script.publish(&chat);
    bench.hub.peer_connected(&member("p")).await;
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
    bench.hub.leave(Arc::clone(&a), Some("2".into()), chat.clone(), Some((SessionId(uuid::Uuid::nil()), 4))).await;
    bench.publish(&chat).await;
    assert_eq!(frames(&a, 3).await, ["joined 0", "message 1", "left"]);
    wait_until("the registration has ended", || {
        bench.script.asked().iter().any(|request| matches!(request, SlotRequest::Unregister { .. }))
    })
    .await;
    assert!(bench.script.asked().iter().any(|request| matches!(request, SlotRequest::Leave { attachment: 4, .. })));
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
    b.cut(crate::gateway::outbox::Closing {
        code: crate::wire::command::ByeCode::Idle,
        reason: String::new(),
        reconnect: true,
        after_ms: 0,
    });
    bench.publish(&one).await;
    wait_until("the closing connection was noticed", || bench.hub.membership() == BTreeMap::from([(two.clone(), 1)]))
        .await;
    assert_eq!(bench.hub.counters().dropped, 1);
    assert!(a.take().frames.is_empty());
    bench.end().await;
}

#[tokio::test]
async fn a_join_that_cannot_be_had_is_an_error_with_its_mark() {
    let bench = Bench::new().await;
    bench.script.set_down(true);
    let a = outbox(1);
    let outcome = bench.hub.join_reported(Arc::clone(&a), Some("9".into()), group("chat"), None, None).await;
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
    for (number, outbox) in outboxes.iter().enumerate() {
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
                let offset = value["offset"].as_u64().unwrap();
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
