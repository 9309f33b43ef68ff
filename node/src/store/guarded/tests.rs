use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;

use super::*;
use crate::{
    store::contract::{check_store, sample_session},
    store::embedded::EmbeddedStore,
    tasks::Tasks,
};

/// A store that answers to reads of sessions when the test lets it, and to nothing else.
struct Gate {
    open: Semaphore,
    down: std::sync::atomic::AtomicBool,
    asked: AtomicUsize,
}

impl Gate {
    async fn pass<T>(&self, answer: T) -> Result<T, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("down".to_owned()));
        }
        self.open.acquire().await.unwrap().forget();
        Ok(answer)
    }
}

#[async_trait]
impl Store for Gate {
    async fn store_id(&self) -> Result<Uuid, StoreError> {
        self.pass(Uuid::nil()).await
    }
    async fn next_generation(&self, _: &NodeId) -> Result<Generation, StoreError> {
        self.pass(1).await
    }
    async fn generation(&self, _: &NodeId) -> Result<Option<Generation>, StoreError> {
        self.pass(None).await
    }
    async fn read_map(&self) -> Result<Option<ClusterMap>, StoreError> {
        self.pass(None).await
    }
    async fn change_map(&self, _: u64, _: &ClusterMap) -> Result<MapChange, StoreError> {
        self.pass(MapChange::Applied).await
    }
    async fn put_session(&self, _: &SessionRecord, _: WriteVersion) -> Result<(), StoreError> {
        self.pass(()).await
    }
    async fn end_session(&self, _: &SessionRecord, _: WriteVersion) -> Result<(), StoreError> {
        self.pass(()).await
    }
    async fn session(&self, _: SessionId, _: u64) -> Result<Option<SessionRecord>, StoreError> {
        self.pass(None).await
    }
    async fn sessions_of_user(&self, _: &str, _: Option<SessionId>, _: usize) -> Result<Vec<SessionId>, StoreError> {
        self.pass(Vec::new()).await
    }
    async fn ping(&self) -> Result<Option<u64>, StoreError> {
        self.pass(None).await
    }
}

fn guarded(config: &StoreConfig) -> (Arc<Gate>, Arc<GuardedStore>) {
    let gate = Arc::new(Gate { open: Semaphore::new(0), down: false.into(), asked: AtomicUsize::new(0) });
    let guarded = GuardedStore::new(gate.clone(), config, StoreMetrics::new());
    (gate, guarded)
}

fn ask(store: &Arc<GuardedStore>, tasks: &Tasks) -> tokio::sync::oneshot::Receiver<Result<(), StoreError>> {
    let (done, result) = tokio::sync::oneshot::channel();
    let store = Arc::clone(store);
    tasks.spawn_detached("test", async move {
        drop(done.send(store.session(sample_session(1, "").id, 0).await.map(|_| ())));
    });
    result
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn reason(result: Result<(), StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn keeps_the_contract() {
    check_store(async || {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
        // The file lives as long as it is open.
        drop(folder);
        let config = StoreConfig { request_timeout_ms: 60_000, ..StoreConfig::default() };
        let guarded: Arc<dyn Store> = GuardedStore::new(store, &config, StoreMetrics::new());
        guarded
    })
    .await;
}

#[tokio::test]
async fn what_is_too_much_waits_and_what_is_far_too_much_is_refused_with_the_state() {
    let config = StoreConfig { max_in_flight: 2, max_queue: 3, request_timeout_ms: 60_000, ..StoreConfig::default() };
    let (gate, store) = guarded(&config);
    let tasks = Tasks::new();
    let mut asked: Vec<_> = (0..5).map(|_| ask(&store, &tasks)).collect();
    until(|| gate.asked.load(Ordering::SeqCst) == 2 && store.waiting.load(Ordering::SeqCst) == 3).await;
    assert!(reason(store.refuses().map_or(Ok(()), Err)).contains("of 3 (store.max_queue) wait"));
    let refused = reason(store.session(sample_session(1, "").id, 0).await.map(|_| ()));
    assert!(refused.contains("2 of 2 (store.max_in_flight)"), "{refused}");
    assert!(refused.contains("of 3 (store.max_queue) wait"), "{refused}");
    // What is about the map does not queue behind sessions.
    gate.open.add_permits(1);
    let _ = asked.remove(0).await;
    until(|| gate.asked.load(Ordering::SeqCst) == 3).await;
    // One that gives up leaves its place.
    gate.open.add_permits(4);
    for result in asked {
        assert_eq!(result.await.unwrap(), Ok(()));
    }
    assert_eq!(store.waiting.load(Ordering::SeqCst), 0);
    assert_eq!(store.permits.available_permits(), 2);
    tasks.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn the_map_passes_a_full_queue_and_a_change_without_an_answer_is_unknown() {
    let config = StoreConfig { max_in_flight: 1, max_queue: 1, request_timeout_ms: 100, ..StoreConfig::default() };
    let (gate, store) = guarded(&config);
    let tasks = Tasks::new();
    let _asked: Vec<_> = (0..2).map(|_| ask(&store, &tasks)).collect();
    until(|| gate.asked.load(Ordering::SeqCst) == 1).await;
    let map = ClusterMap::first(&crate::id::Member { node: NodeId::parse("n1").unwrap(), generation: 1 }, 4);
    assert_eq!(store.change_map(1, &map).await, Ok(MapChange::Unknown));
    assert!(gate.asked.load(Ordering::SeqCst) >= 2);
    tasks.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn the_wait_for_a_turn_is_part_of_the_time_out() {
    let config = StoreConfig { max_in_flight: 1, max_queue: 9, request_timeout_ms: 200, ..StoreConfig::default() };
    let (gate, store) = guarded(&config);
    let tasks = Tasks::new();
    let first = ask(&store, &tasks);
    until(|| gate.asked.load(Ordering::SeqCst) == 1).await;
    let second = ask(&store, &tasks);
    assert!(reason(first.await.unwrap()).contains("no answer within"));
    let text = reason(second.await.unwrap());
    assert!(text.contains("no answer within") || text.contains("waited"), "{text}");
    tasks.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_store_that_is_down_is_asked_seldom_and_a_ping_finds_it_up_again() {
    let config = StoreConfig { breaker_failures: 3, breaker_open_ms: 600_000, ..StoreConfig::default() };
    let (gate, store) = guarded(&config);
    gate.open.add_permits(10);
    gate.down.store(true, Ordering::SeqCst);
    let session = sample_session(1, "").id;
    for _ in 0..3 {
        assert_eq!(reason(store.session(session, 0).await.map(|_| ())), "down");
    }
    for _ in 0..5 {
        let text = reason(store.session(session, 0).await.map(|_| ()));
        assert!(text.contains("3 requests in a row"), "{text}");
    }
    assert!(store.refuses().is_some());
    assert_eq!(gate.asked.load(Ordering::SeqCst), 3);
    gate.down.store(false, Ordering::SeqCst);
    assert_eq!(store.ping().await, Ok(None));
    assert_eq!(store.refuses(), None);
    assert_eq!(store.session(session, 0).await, Ok(None));
}
