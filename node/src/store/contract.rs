//! What every store must do, as one suite of checks. Panics at the first thing that is wrong, with what it is.
//!
//! `make` gives a store without content each time; several checks run on each.

use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    clock,
    id::{GroupName, Member, NodeId, SessionId},
    logic::{
        entry::{Grant, SessionRecord},
        map::ClusterMap,
    },
    store::{MapChange, Store, WriteVersion},
    tasks::Tasks,
};

/// Holds a store to the contract in `store.rs`.
pub async fn check_store(make: impl AsyncFn() -> Arc<dyn Store>) {
    identity(&*make().await).await;
    generations(make().await).await;
    map_changes(&*make().await).await;
    map_races(make().await).await;
    sessions(&*make().await).await;
    versions(&*make().await).await;
    ends(&*make().await).await;
    users(&*make().await).await;
    concurrent_sessions(make().await).await;
}

/// A record with something in every field, for tests; it expires in an hour.
pub fn sample_session(number: u128, user: &str) -> SessionRecord {
    let now = clock::wall_ms();
    SessionRecord {
        id: SessionId(Uuid::from_u128(number)),
        user: user.to_owned(),
        created_ms: now,
        expires_ms: now + 3_600_000,
        idle_ttl_ms: 60_000,
        last_used_ms: now,
        attributes: Bytes::from_static(br#"{"name": "\u00c5sa", "age": 1.50}"#),
        groups: ["chat:1", "office"].into_iter().flat_map(GroupName::parse).collect(),
        grants: vec![Grant { pattern: "chat:*".to_owned(), join: true, publish: false }],
        revision: now,
        token: 7,
        clients_max: std::num::NonZero::new(3),
    }
}

fn node(name: &str) -> NodeId {
    ok(NodeId::parse(name))
}

fn map(version: u64, node_name: &str) -> ClusterMap {
    let first = ClusterMap::first(&Member { node: node(node_name), generation: 1 }, 16);
    ClusterMap { version, ..first }
}

fn version(term: u64, index: u64) -> WriteVersion {
    WriteVersion { term, index }
}

#[track_caller]
fn ok<T, E: Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}

/// Runs the futures as tasks, so that they truly race.
async fn race<T: Send + 'static>(runs: Vec<impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let tasks = Tasks::new();
    let results = runs.into_iter().map(|run| {
        let (done, result) = oneshot::channel();
        tasks.spawn_detached("contract", async move { drop(done.send(run.await)) });
        result
    });
    let results = join_all(results.collect::<Vec<_>>()).await;
    assert!(tasks.shut_down(Duration::from_secs(10)).await);
    results.into_iter().map(ok).collect()
}

async fn identity(store: &dyn Store) {
    ok(store.ping().await);
    assert_eq!(ok(store.store_id().await), ok(store.store_id().await));
}

async fn generations(store: Arc<dyn Store>) {
    let (one, two) = (node("n1"), node("n2"));
    assert_eq!(ok(store.generation(&one).await), None);
    let first = ok(store.next_generation(&one).await);
    assert!(first > 0);
    assert_eq!(ok(store.generation(&one).await), Some(first));
    assert_eq!(ok(store.generation(&two).await), None);
    let racers = (0..20).map(|_| {
        let (store, one) = (Arc::clone(&store), one.clone());
        async move { ok(store.next_generation(&one).await) }
    });
    let given: Vec<u64> = race(racers.collect()).await;
    let distinct: BTreeSet<u64> = given.iter().copied().collect();
    assert_eq!(distinct.len(), given.len(), "a generation was given twice: {given:?}");
    assert!(distinct.iter().all(|generation| *generation > first), "{given:?} after {first}");
    assert_eq!(ok(store.generation(&one).await), distinct.last().copied());
    ok(store.next_generation(&two).await);
}

async fn map_changes(store: &dyn Store) {
    assert_eq!(ok(store.read_map().await), None);
    assert_eq!(ok(store.change_map(1, &map(2, "n1")).await), MapChange::Conflict(None));
    assert_eq!(ok(store.change_map(0, &map(1, "n1")).await), MapChange::Applied);
    assert_eq!(ok(store.read_map().await), Some(map(1, "n1")));
    let conflict = MapChange::Conflict(Some(map(1, "n1")));
    assert_eq!(ok(store.change_map(0, &map(1, "n2")).await), conflict);
    assert_eq!(ok(store.change_map(2, &map(3, "n2")).await), conflict);
    assert_eq!(ok(store.change_map(1, &map(2, "n2")).await), MapChange::Applied);
    assert_eq!(ok(store.read_map().await), Some(map(2, "n2")));
}

/// Many at once name the same version: one wins each round, and the others are told what it wrote.
async fn map_races(store: Arc<dyn Store>) {
    for expected in 0..10 {
        let racers = (0..8).map(|racer| {
            let store = Arc::clone(&store);
            let next = map(expected + 1, &format!("n{racer}"));
            async move { (next.clone(), ok(store.change_map(expected, &next).await)) }
        });
        let results = race(racers.collect()).await;
        let present = ok(store.read_map().await);
        let mut winners = 0;
        for (next, result) in results {
            match result {
                MapChange::Applied => {
                    winners += 1;
                    assert_eq!(Some(next), present);
                }
                MapChange::Conflict(found) => assert_eq!(found, present),
                MapChange::Unknown => {}
            }
        }
        assert!(winners <= 1, "{winners} changes of version {expected} were applied");
        assert_eq!(present.map(|map| map.version), Some(expected + 1));
    }
}

async fn sessions(store: &dyn Store) {
    let mut record = sample_session(1, "ann");
    assert_eq!(ok(store.session(record.id, record.created_ms).await), None);
    ok(store.put_session(&record, version(1, 1)).await);
    assert_eq!(ok(store.session(record.id, record.created_ms).await), Some(record.clone()));
    assert_eq!(ok(store.session(record.id, record.expires_ms - 1).await), Some(record.clone()));
    assert_eq!(ok(store.session(record.id, record.expires_ms).await), None, "it has expired");
    record.attributes = Bytes::new();
    record.groups.clear();
    record.grants.clear();
    record.expires_ms += 1_000;
    ok(store.put_session(&record, version(1, 2)).await);
    assert_eq!(ok(store.session(record.id, record.expires_ms - 1).await), Some(record.clone()));
    assert_eq!(ok(store.session(sample_session(2, "").id, 0).await), None);
}

/// The higher version wins in whatever order the writes arrive; a write that is repeated changes nothing.
async fn versions(store: &dyn Store) {
    let put = async |user: &str, term: u64, index: u64| {
        ok(store.put_session(&sample_session(1, user), version(term, index)).await);
        ok(store.session(sample_session(1, "").id, 0).await).map(|record| record.user)
    };
    for (user, term, index, expected) in [
        ("first", 2, 5, "first"),
        ("earlier index", 2, 4, "first"),
        ("earlier term", 1, 9, "first"),
        ("later index", 2, 6, "later index"),
        ("later term", 3, 1, "later term"),
        ("later term", 3, 1, "later term"),
        ("late", 2, 7, "later term"),
    ] {
        assert_eq!(put(user, term, index).await.as_deref(), Some(expected));
    }
    assert_eq!(ok(store.sessions_of_user("first", None, 10).await), []);
    assert_eq!(ok(store.sessions_of_user("later term", None, 10).await), [sample_session(1, "").id]);
}

/// An end wins over every put, earlier and later ones, also of a session not heard of yet.
async fn ends(store: &dyn Store) {
    for (number, before) in [(1, true), (2, false)] {
        let record = sample_session(number, "ann");
        if before {
            ok(store.put_session(&record, version(1, 1)).await);
        }
        ok(store.end_session(&record, version(1, 3)).await);
        for (term, index) in [(1, 2), (1, 3), (1, 4), (2, 1)] {
            ok(store.put_session(&record, version(term, index)).await);
            assert_eq!(ok(store.session(record.id, record.created_ms).await), None, "an ended session came back");
        }
        ok(store.end_session(&record, version(1, 3)).await);
        assert_eq!(ok(store.sessions_of_user("ann", None, 10).await), []);
    }
}

async fn users(store: &dyn Store) {
    let ids: Vec<SessionId> = (1..=25_u128).map(|number| sample_session(number << 64, "").id).collect();
    for (number, _) in ids.iter().enumerate().rev() {
        ok(store.put_session(&sample_session((number as u128 + 1) << 64, "ann"), version(1, 1)).await);
    }
    // Names of which one begins another are kept apart.
    ok(store.put_session(&sample_session(100, "an"), version(1, 1)).await);
    ok(store.put_session(&sample_session(101, "anna"), version(1, 1)).await);
    let mut listed = Vec::new();
    loop {
        let page = ok(store.sessions_of_user("ann", listed.last().copied(), 10).await);
        assert!(page.len() <= 10);
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert_eq!(listed, ids);
    assert_eq!(ok(store.sessions_of_user("ann", Some(ids[3]), 2).await), ids[4..6]);
    assert_eq!(ok(store.sessions_of_user("ann", Some(SessionId(Uuid::max())), 2).await), []);
    assert_eq!(ok(store.sessions_of_user("bob", None, 10).await), []);
    assert_eq!(ok(store.sessions_of_user("ann", None, 0).await), []);
    ok(store.put_session(&sample_session(102, ""), version(1, 1)).await);
    assert_eq!(ok(store.sessions_of_user("", None, 10).await), []);
    ok(store.end_session(&sample_session(1 << 64, "ann"), version(1, 2)).await);
    assert_eq!(ok(store.sessions_of_user("ann", None, 1).await), ids[1..2]);
}

/// Each reads what it wrote, with many writing.
async fn concurrent_sessions(store: Arc<dyn Store>) {
    let writers = (1..200_u128).map(|number| {
        let store = Arc::clone(&store);
        async move {
            let record = sample_session(number, "ann");
            ok(store.put_session(&record, version(1, 1)).await);
            assert_eq!(ok(store.session(record.id, 0).await), Some(record));
        }
    });
    race(writers.collect()).await;
    assert_eq!(ok(store.sessions_of_user("ann", None, 1_000).await).len(), 199);
}
