use std::{
    fs,
    io::{Seek, SeekFrom, Write as _},
    sync::Mutex,
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::{
    clock,
    id::{Member, NodeId},
    store::contract::{check_store, sample_session},
};

fn version(index: u64) -> WriteVersion {
    WriteVersion { term: 1, index }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let folders = Mutex::new(Vec::new());
    check_store(async || {
        let folder = TempDir::new().unwrap();
        let store: Arc<dyn Store> = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
        folders.lock().unwrap().push(folder);
        store
    })
    .await;
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let folder = TempDir::new().unwrap();
    // Folders that do not exist yet are made.
    let path = folder.path().join("a/b/store.redb");
    let me = Member { node: NodeId::parse("n1").unwrap(), generation: 1 };
    let map = ClusterMap::first(&me, 8);
    let (kept, ended) = (sample_session(1, "ann"), sample_session(2, "ann"));
    let store = EmbeddedStore::open(&path).unwrap();
    let id = store.store_id().await.unwrap();
    assert_eq!(store.change_map(0, &map).await.unwrap(), MapChange::Applied);
    let generation = store.next_generation(&me.node).await.unwrap();
    store.put_session(&kept, version(1)).await.unwrap();
    store.put_session(&ended, version(1)).await.unwrap();
    store.end_session(&ended, version(2)).await.unwrap();
    drop(store);

    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.store_id().await.unwrap(), id);
    assert_eq!(store.read_map().await.unwrap(), Some(map));
    assert!(store.next_generation(&me.node).await.unwrap() > generation);
    assert_eq!(store.session(kept.id, 0).await.unwrap(), Some(kept));
    store.put_session(&ended, version(3)).await.unwrap();
    assert_eq!(store.session(ended.id, 0).await.unwrap(), None);
}

#[tokio::test]
async fn expired_rows_are_purged() {
    let folder = TempDir::new().unwrap();
    let store = EmbeddedStore::open_purging(&folder.path().join("store.redb"), Duration::ZERO).unwrap();
    let alive = sample_session(1, "ann");
    let mut over = sample_session(2, "ann");
    over.expires_ms = clock::wall_ms() - 1;
    // Its expiry was put off: the earlier one must not purge it.
    let mut prolonged = sample_session(3, "ann");
    prolonged.expires_ms = over.expires_ms;
    store.put_session(&alive, version(1)).await.unwrap();
    for (record, index) in [(&over, 1), (&prolonged, 1), (&sample_session(3, "ann"), 2)] {
        store.put_session(record, version(index)).await.unwrap();
    }
    store.ping().await.unwrap();
    let purged = store.sessions_of_user("ann", None, 10).await.unwrap();
    assert!(!purged.contains(&over.id) && purged.contains(&alive.id));
    let left = store.read(|transaction| {
        use redb::ReadableTableMetadata as _;
        let sessions = transaction.open_table(tables::SESSIONS).map_err(failed)?.len().map_err(failed)?;
        let expiries = transaction.open_table(tables::EXPIRIES).map_err(failed)?.len().map_err(failed)?;
        Ok((sessions, expiries))
    });
    let (sessions, expiries) = left.await.unwrap();
    assert_eq!(sessions, expiries);
    assert_eq!(store.session(over.id, 0).await.unwrap(), None);
}

#[tokio::test]
async fn a_file_in_use_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    let first = EmbeddedStore::open(&path).unwrap();
    let error = EmbeddedStore::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)));
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()) && text.contains("Stop that one first"), "{text}");
    first.ping().await.unwrap();
    drop(first);
    EmbeddedStore::open(&path).unwrap();
}

#[test]
fn a_foreign_file_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    for content in [&b"x"[..], b"not a database, but somebody's diary", &[0; 100_000]] {
        fs::write(&path, content).unwrap();
        let error = EmbeddedStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    assert!(matches!(EmbeddedStore::open(folder.path()), Err(OpenError::Io { .. })));
    assert!(matches!(EmbeddedStore::open(path.join("below")), Err(OpenError::Io { .. })));
}

/// Whatever part of the file is overwritten or cut off: it opens with everything readable, or is refused with a reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_never_panics() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    for number in 1..200 {
        store.put_session(&sample_session(number, "ann"), version(1)).await.unwrap();
    }
    drop(store);
    let whole = fs::read(&path).unwrap();
    let steps = 24;
    for step in 0..steps {
        let at = whole.len() * step / steps;
        fs::write(&path, &whole).unwrap();
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        if step % 3 == 2 {
            file.set_len(at as u64).unwrap();
        } else {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[0xA5; 3_000]).unwrap();
        }
        drop(file);
        match EmbeddedStore::open(&path) {
            Ok(store) => {
                let listed = store.sessions_of_user("ann", None, 1_000).await;
                assert!(!matches!(listed, Ok(listed) if listed.len() != 199), "sessions were lost in silence");
            }
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn after_an_error_of_the_disk_the_file_is_opened_anew() {
    let folder = TempDir::new().unwrap();
    let store = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
    store.file.close();
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    // Within the next second the disk is left alone.
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    let healed = async {
        while store.ping().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), healed).await.unwrap();
    store.put_session(&sample_session(1, "ann"), version(1)).await.unwrap();
}
