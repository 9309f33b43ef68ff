use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::{
    id::{Generation, SessionId},
    logic::{
        entry::SessionRecord,
        liveness::{Liveness, LivenessInput, LivenessSettings, Picture, Says, Sign},
        map::{ClusterMap, SlotAssignment},
        plan::Life,
    },
    store::{WriteVersion, embedded::EmbeddedStore},
};

const SLOTS: u16 = 16;
const INTERVAL: Duration = Duration::from_millis(50);

struct Node {
    signs: watch::Sender<Vec<Sign>>,
    map: MapCell,
    steward: Steward,
    tasks: Tasks,
    /// The maps that this node has brought about.
    made: Arc<Mutex<Vec<SharedMap>>>,
}

impl Node {
    fn start(store: &Arc<dyn Store>, me: &str, nodes: &str) -> Self {
        Self::start_with(store, me, nodes, SLOTS)
    }

    fn start_with(store: &Arc<dyn Store>, me: &str, nodes: &str, slots: u16) -> Self {
        let me = member(me);
        let (signs, seen) = watch::channel(signs(nodes));
        let (picture_sender, pictures) = watch::channel(Arc::new(Picture::before_any(&me)));
        let made = Arc::new(Mutex::new(Vec::new()));
        let (map, tasks, made_here) = (MapCell::new(), Tasks::new(), Arc::clone(&made));
        tasks.spawn_detached("judge", judge(me.clone(), seen, map.clone(), picture_sender));
        let (steward, idle) = Steward::new(StewardInputs {
            me,
            store: Arc::clone(store),
            pictures,
            map: map.clone(),
            settings: StewardSettings { slots, copies: 2, max_moves: 8 },
            on_change: Arc::new(move |map| made_here.lock().unwrap().push(map)),
            clocks: ClockWatch::new(10_000),
            tasks: tasks.clone(),
        });
        idle.start();
        Self { signs, map, steward, tasks, made }
    }

    fn sees(&self, nodes: &str) {
        self.signs.send_replace(signs(nodes));
    }

    fn has(&self, condition: impl Fn(&SlotAssignment) -> bool) -> bool {
        self.map.current().is_some_and(|map| map.slots.iter().all(condition))
    }

    /// Asks for every learner to become in-sync.
    fn promote(&self) {
        let Some(map) = self.map.current() else { return };
        let promotes = map.slots.iter().enumerate().filter_map(|(slot, assignment)| {
            let learner = assignment.learner.clone()?;
            Some(MapRequest::Promote { slot: slot as u16, changed_at: assignment.changed_at, learner })
        });
        let promotes: Vec<_> = promotes.collect();
        for primary in map.slots.iter().map(|slot| &slot.primary).collect::<BTreeSet<_>>() {
            self.steward.request(primary.clone(), promotes.clone());
        }
    }

    /// Promotes until every slot has two copies and nothing is under way.
    async fn settle(&self) {
        wait_until("two copies of every slot", async || {
            self.promote();
            self.has(|slot| slot.in_sync.len() == 2 && slot.learner.is_none())
        })
        .await;
    }
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "waited in vain for {what}");
}

fn embedded() -> (TempDir, Arc<dyn Store>) {
    let folder = TempDir::new().unwrap();
    let store = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
    (folder, store)
}

fn member(text: &str) -> Member {
    let (node, generation) = text.split_once('#').unwrap();
    Member { node: NodeId::parse(node).unwrap(), generation: generation.parse().unwrap() }
}

/// `n1#1` is there and serves; `:dead`, `:starting`, `:draining`, `:nostore`.
fn signs(nodes: &str) -> Vec<Sign> {
    let sign = |text: &str| {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let life = match rest {
            "starting" => Life::Starting,
            "draining" => Life::Draining,
            _ => Life::Serving,
        };
        let says = Says { life, zone: String::new(), store_up: rest != "nostore", map_version: 0 };
        Sign { member: member(name), says, heartbeat: 0, live: rest != "dead", linked: true, answers: None }
    };
    nodes.split_whitespace().map(sign).collect()
}

/// Looks at what the test shows.
async fn judge(me: Member, seen: watch::Receiver<Vec<Sign>>, map: MapCell, pictures: watch::Sender<SharedPicture>) {
    let settings = LivenessSettings { look_ms: INTERVAL.as_millis() as u64, quiet_ms: 600 };
    let mut liveness = Liveness::new(me, settings, clock::now());
    while !pictures.is_closed() {
        if let Some(map) = map.current() {
            liveness.handle(clock::now(), LivenessInput::Map(map), &mut Vec::new());
        }
        let signs = seen.borrow().clone();
        let allotted = signs.iter().map(|sign| (sign.member.node.clone(), sign.member.generation)).collect();
        liveness.handle(clock::now(), LivenessInput::Generations(allotted), &mut Vec::new());
        let look = LivenessInput::Look(signs);
        liveness.handle(clock::now(), look, &mut Vec::new());
        pictures.send_replace(liveness.shown().clone());
        tokio::time::sleep(INTERVAL).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_first_map_to_a_take_over() {
    let (_folder, store) = embedded();
    let one = Node::start(&store, "n1#1", "n1#1:starting");
    let two = Node::start(&store, "n2#1", "n1#1 n2#1");
    wait_until("the first map", async || one.has(|slot| slot.primary == member("n1#1"))).await;
    // The other node reads it from the store.
    wait_until("the map on the other node", async || two.map.version() > 0).await;

    one.sees("n1#1 n2#1");
    wait_until("learners", async || one.has(|slot| slot.learner == Some(member("n2#1")))).await;
    one.settle().await;
    wait_until("even load", async || {
        let leads = |name| one.map.current().unwrap().slots.iter().filter(|slot| slot.primary == member(name)).count();
        leads("n1#1") == 8 && leads("n2#1") == 8
    })
    .await;

    // n2 dies: one write moves all that it led.
    let before = one.map.current().unwrap();
    one.sees("n1#1 n2#1:dead");
    wait_until("the take-over", async || one.has(|slot| slot.primary == member("n1#1"))).await;
    let made = one.made.lock().unwrap().clone();
    let next = made.iter().find(|map| map.version == before.version + 1).unwrap();
    for (old, new) in before.slots.iter().zip(&next.slots) {
        assert_eq!((&new.primary, &new.in_sync), (&member("n1#1"), &vec![member("n1#1")]));
        assert_eq!(new.term, old.term + u64::from(old.primary != new.primary));
    }
    assert_eq!(store.read_map().await.unwrap().as_ref(), one.map.current().as_deref());
    assert!(two.made.lock().unwrap().is_empty(), "only the steward proposes");
    assert!(one.tasks.shut_down(Duration::from_secs(5)).await && two.tasks.shut_down(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_takes_nobody_out_of_the_map() {
    let (_folder, store) = embedded();
    let one = Node::start(&store, "n1#1", "n1#1 n2#1");
    let two = Node::start(&store, "n2#1", "n1#1 n2#1");
    wait_until("the map on the other node", async || two.map.version() > 0).await;
    one.settle().await;
    let made_before = one.made.lock().unwrap().len();
    // As it is when n1 says goodbye and closes its links: neither hears the other any more.
    one.steward.retire();
    one.sees("n1#1 n2#1:dead");
    two.sees("n1#1:dead n2#1");
    // Were it not for that, n1 would have looked as often.
    wait_until("the take-over", async || two.has(|slot| slot.in_sync == [member("n2#1")])).await;
    tokio::time::sleep(INTERVAL * 10).await;
    assert_eq!(one.made.lock().unwrap().len(), made_before, "a node that leaves changed the map");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stewards_that_race_never_fork_the_map() {
    let (_folder, store) = embedded();
    // Each holds itself to be the steward.
    let nodes = [
        Node::start(&store, "n1#1", "n1#1 n2#1 n3#1"),
        Node::start(&store, "n2#1", "n1#1:nostore n2#1 n3#1"),
        Node::start(&store, "n3#1", "n1#1:nostore n2#1:nostore n3#1"),
    ];
    for round in 0..4 {
        for node in &nodes {
            node.settle().await;
        }
        let third = ["n3#1:draining", "n3#1", "n3#2", "n3#2:dead"][round];
        nodes[0].sees(&format!("n1#1 n2#1 {third}"));
        nodes[1].sees(&format!("n1#1:nostore n2#1 {third}"));
    }
    wait_until("agreement", async || {
        for node in &nodes {
            node.promote();
        }
        let stored = store.read_map().await.unwrap();
        nodes.iter().all(|node| node.map.current().as_deref() == stored.as_ref())
            && nodes[0].has(|slot| slot.in_sync == [member("n1#1"), member("n2#1")] && slot.learner.is_none())
    })
    .await;
    let mut versions = BTreeSet::new();
    for map in nodes.iter().flat_map(|node| node.made.lock().unwrap().clone()) {
        assert!(versions.insert(map.version), "version {} was made twice", map.version);
    }
    assert_eq!(versions.len() as u64, nodes[0].map.version(), "every version was made by somebody");
}

/// Passes everything on, but the map's changes with what the test wants to happen to them.
struct Faulty {
    inner: Arc<dyn Store>,
    /// Counts down; below zero all is well.
    troubles: AtomicU32,
    down: std::sync::atomic::AtomicBool,
    reads: AtomicU32,
}

impl Faulty {
    fn up(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) { Err(StoreError::Unavailable("down".to_owned())) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for Faulty {
    async fn store_id(&self) -> Result<Uuid, StoreError> {
        self.inner.store_id().await
    }
    async fn next_generation(&self, node: &NodeId) -> Result<Generation, StoreError> {
        self.inner.next_generation(node).await
    }
    async fn generation(&self, node: &NodeId) -> Result<Option<Generation>, StoreError> {
        self.inner.generation(node).await
    }
    async fn read_map(&self) -> Result<Option<ClusterMap>, StoreError> {
        self.up()?;
        if self.reads.fetch_add(1, Ordering::SeqCst) % 3 == 1 {
            return Err(StoreError::Unavailable("not now".to_owned()));
        }
        self.inner.read_map().await
    }
    async fn change_map(&self, expected: u64, next: &ClusterMap) -> Result<MapChange, StoreError> {
        self.up()?;
        let trouble = self.troubles.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match trouble.unwrap_or(0) % 4 {
            0 => self.inner.change_map(expected, next).await,
            // Applied, or not: nobody can tell.
            1 => self.inner.change_map(expected, next).await.map(|_| MapChange::Unknown),
            2 => Ok(MapChange::Unknown),
            _ => Err(StoreError::Unavailable("not now".to_owned())),
        }
    }
    async fn put_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError> {
        self.inner.put_session(record, version).await
    }
    async fn end_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError> {
        self.inner.end_session(record, version).await
    }
    async fn session(&self, session: SessionId, now_ms: u64) -> Result<Option<SessionRecord>, StoreError> {
        self.inner.session(session, now_ms).await
    }
    async fn sessions_of_user(
        &self,
        user: &str,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, StoreError> {
        self.inner.sessions_of_user(user, after, limit).await
    }
    async fn ping(&self) -> Result<Option<u64>, StoreError> {
        self.up()?;
        self.inner.ping().await
    }
}

fn faulty(troubles: u32) -> (TempDir, Arc<Faulty>, Arc<dyn Store>) {
    let (folder, inner) = embedded();
    let (down, reads) = (false.into(), AtomicU32::new(0));
    let faulty = Arc::new(Faulty { inner, troubles: AtomicU32::new(troubles), down, reads });
    let store: Arc<dyn Store> = Arc::<Faulty>::clone(&faulty);
    (folder, faulty, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_outcomes_are_read_back() {
    let (_folder, faulty, store) = faulty(12);
    let node = Node::start(&store, "n1#1", "n1#1 n2#1");
    node.settle().await;
    wait_until("all troubles to be over", async || {
        // Something to do, so that the map changes.
        let back = if node.map.version().is_multiple_of(2) { "n1#1 n2#1" } else { "n1#1 n2#1 n3#1" };
        node.sees(back);
        node.promote();
        faulty.troubles.load(Ordering::SeqCst) == 0
    })
    .await;
    node.sees("n1#1 n2#1");
    wait_until("the last to be known", async || {
        node.promote();
        faulty.inner.read_map().await.unwrap().as_ref() == node.map.current().as_deref()
            && node.has(|slot| slot.in_sync == [member("n1#1"), member("n2#1")])
    })
    .await;
    // Peers were told of none twice.
    let versions: Vec<u64> = node.made.lock().unwrap().iter().map(|map| map.version).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_is_waited_for() {
    let (_folder, faulty, store) = faulty(0);
    faulty.down.store(true, Ordering::SeqCst);
    let node = Node::start(&store, "n1#1", "n1#1");
    let state = node.steward.store_view();
    assert_eq!(*state.borrow(), StoreView::Down);
    assert_eq!(node.steward.try_forget(&member("n1#1").node).await, Some(Err(ForgetError::NoMap)));
    faulty.down.store(false, Ordering::SeqCst);
    wait_until("the store to be up", async || *state.borrow() == StoreView::Up).await;
    wait_until("the first map", async || node.map.version() == 1).await;
    faulty.down.store(true, Ordering::SeqCst);
    wait_until("the store to be down", async || *state.borrow() == StoreView::Down).await;
    node.sees("n1#1 n2#1");
    faulty.down.store(false, Ordering::SeqCst);
    node.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_of_slots_is_refused() {
    let (_folder, store) = embedded();
    let first = Node::start(&store, "n1#1", "n1#1 n2#1");
    wait_until("the first map", async || first.map.version() > 0).await;
    let second = Node::start_with(&store, "n2#1", "n1#1 n2#1", 64);
    second.tasks.fatal().cancelled().await;
    let fault = second.steward.fault().borrow().clone().unwrap();
    assert!(fault.contains("created with 16 slots") && fault.contains("cluster.slots = 16"), "{fault}");
    assert!(!first.tasks.fatal().is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_when_another_process_has_its_name() {
    let (_folder, store) = embedded();
    let id = member("n1#1").node;
    assert_eq!(store.next_generation(&id).await, Ok(1));
    let first = Node::start(&store, "n1#1", "n1#1");
    wait_until("the first map", async || first.map.version() > 0).await;
    assert_eq!(store.next_generation(&id).await, Ok(2));
    let second = Node::start(&store, "n1#2", "n1#2");
    first.tasks.fatal().cancelled().await;
    let fault = first.steward.fault().borrow().clone().unwrap();
    assert!(fault.contains("node n1 (generation 2, this one is 1)"), "{fault}");
    wait_until("the second to have the slots", async || second.has(|slot| slot.primary == member("n1#2"))).await;
    assert!(!second.tasks.fatal().is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_word_frees_slots_of_the_dead() {
    let (_folder, store) = embedded();
    // n2 has everything, alone, and is gone.
    let map = ClusterMap::first(&member("n2#4"), SLOTS);
    store.change_map(0, &map).await.unwrap();
    let node = Node::start(&store, "n1#1", "n1#1 n2#4");
    wait_until("the map", async || node.map.version() > 0).await;
    let n2 = member("n2#4").node;
    wait_until("n2 to be seen", async || {
        node.steward.try_forget(&n2).await == Some(Err(ForgetError::Alive(n2.clone())))
    })
    .await;
    assert_eq!(
        node.steward.try_forget(&member("n9#1").node).await,
        Some(Err(ForgetError::HoldsNothing(member("n9#1").node)))
    );
    wait_until("n2 to be noticed", async || node.map.version() > 1).await;
    node.sees("n1#1 n2#4:dead");
    wait_until("the word to be taken", async || match node.steward.try_forget(&n2).await {
        Some(Ok(gone)) => gone == member("n2#4"),
        // One look is not enough to miss it, nor two to count it as dead.
        Some(Err(ForgetError::Alive(_) | ForgetError::NotSure(_))) => {
            assert!(node.has(|slot| slot.primary == member("n2#4")), "it was not known to be lost");
            false
        }
        other => panic!("{other:?}"),
    })
    .await;
    wait_until("a new beginning", async || {
        node.has(|slot| slot.primary == member("n1#1") && slot.lineage == 2 && slot.term == 2)
    })
    .await;
    // Whoever is asked says why not.
    let refused = node.steward.forget(&member("n1#1").node).await.unwrap_err();
    assert!(refused.contains("n1 is alive: drain it"), "{refused}");
    assert_eq!(node.steward.forget(&n2).await, Err("n2 holds no slots: there is nothing to forget".to_owned()));
}
