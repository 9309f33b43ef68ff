//! The store for one machine: a redb file that the nodes of one process share.
//!
//! One thread writes. What has queued while it was busy goes into its next transaction, so a burst of writes costs one
//! sync of the disk. After an error of the disk redb wants to be opened anew: the writer does so, refuses what comes within
//! the next second and then tries again, hence a disk that was full for a while does no lasting harm.

mod tables;
mod writer;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use uuid::Uuid;

use self::writer::{Done, Job, Write};
use super::{MapChange, Store, StoreError, WriteVersion, rows};
use crate::{
    id::{Generation, NodeId, SessionId},
    logic::{entry::SessionRecord, map::ClusterMap},
    private_file,
};

/// Writes waiting for the writer. When there are as many, callers wait, and are refused after [`PATIENCE`].
const QUEUE: usize = 4_096;
/// How long a caller waits for its write before it is told that the store does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Reads at once; each takes a thread for a moment.
const READERS: usize = 16;
/// redb would take up to 1 GiB.
const CACHE_BYTES: usize = 64 << 20;

/// Why the file could not be opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it.
    #[error(
        "the store {path} is in use by another process. Stop that one first (or give this node another store.path: two \
         processes cannot share an embedded store)", path = .0.display()
    )]
    InUse(PathBuf),
    /// It is not what it should be.
    #[error(
        "the store {path} is damaged or not a Roost store: {reason}. Nothing was changed. Put a copy of the file back, or \
         move it away to start with an empty store (stored sessions are then gone)", path = .path.display()
    )]
    Damaged {
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It was written by another version of the program.
    #[error("the store {path} was written in form {found}, this version of roost reads form {known}: use the version that wrote it", path = .path.display())]
    Form {
        path: PathBuf,
        /// What it says.
        found: String,
        /// What would be right.
        known: u64,
    },
    /// The file or its folder cannot be used.
    #[error("the store {path} cannot be opened: {error}. Check that the folder exists and that this user may write there", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        error: std::io::Error,
    },
}

/// See the module.
pub struct EmbeddedStore {
    file: Arc<StoreFile>,
    id: Uuid,
    readers: Arc<Semaphore>,
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.file.path).field("id", &self.id).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the file, or makes it, with its folders. One process at a time can; its nodes share what this returns.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, OpenError> {
        Self::open_purging(path.as_ref(), Duration::from_secs(60))
    }

    fn open_purging(path: &Path, purge_every: Duration) -> Result<Arc<Self>, OpenError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| OpenError::Io { path: folder.to_owned(), error })?;
        }
        let database = open_database(path)?;
        let id = tables::prepare(&database, path)?;
        // It has sessions, and what is not ours is left as it is.
        private_file::close_to_others(path).map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
        let file = Arc::new(StoreFile { path: path.to_owned(), database: RwLock::new(Some(database)) });
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = writer::start(Arc::clone(&file), jobs, purge_every)
            .map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
        let readers = Arc::new(Semaphore::new(READERS));
        Ok(Arc::new(Self { file, id, readers, queue: Some(queue), writer: Some(writer) }))
    }

    async fn write(&self, write: Write) -> Result<Done, StoreError> {
        let (outcome, answer) = oneshot::channel();
        let ended = || StoreError::Unavailable("its writer has stopped: restart the node".to_owned());
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        let written = async {
            queue.send(Job { write, outcome }).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!("the disk of {} is too slow", self.file.path.display())))
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.readers).acquire_owned().await;
        let file = Arc::clone(&self.file);
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            file.with(|database| read(&database.begin_read().map_err(failed)?))
        });
        reading.await.unwrap_or_else(|error| Err(StoreError::Corrupt(format!("reading it failed: {error}"))))
    }
}

impl Drop for EmbeddedStore {
    /// Waits for the writes that have queued, so that the file can be opened again at once.
    fn drop(&mut self) {
        drop(self.queue.take());
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!(path = %self.file.path.display(), "the store's writer had panicked");
        }
        self.file.close();
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn store_id(&self) -> Result<Uuid, StoreError> {
        Ok(self.id)
    }

    async fn next_generation(&self, node: &NodeId) -> Result<Generation, StoreError> {
        match self.write(Write::NextGeneration { node: node.clone() }).await? {
            Done::Generation(generation) => Ok(generation),
            Done::Map(_) | Done::Written => unreachable!("the writer answers each write in kind"),
        }
    }

    async fn generation(&self, node: &NodeId) -> Result<Option<Generation>, StoreError> {
        let node = node.clone();
        self.read(move |transaction| tables::generation(transaction, &node)).await
    }

    async fn read_map(&self) -> Result<Option<ClusterMap>, StoreError> {
        self.read(tables::map).await
    }

    async fn change_map(&self, expected: u64, next: &ClusterMap) -> Result<MapChange, StoreError> {
        let row = rows::encode_map(next)?;
        match self.write(Write::ChangeMap { expected, version: next.version, row }).await {
            Ok(Done::Map(change)) => change,
            Ok(Done::Generation(_) | Done::Written) => unreachable!("the writer answers each write in kind"),
            // It may have been written all the same.
            Err(StoreError::Unavailable(_)) => Ok(MapChange::Unknown),
            Err(error) => Err(error),
        }
    }

    async fn put_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError> {
        let row = rows::encode_session(record)?;
        let (id, user, expires_ms) = (record.id, record.user.clone(), record.expires_ms);
        self.write(Write::Put { id, user, expires_ms, version, row }).await.map(|_| ())
    }

    async fn end_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError> {
        self.write(Write::End { id: record.id, version }).await.map(|_| ())
    }

    async fn session(&self, session: SessionId, now_ms: u64) -> Result<Option<SessionRecord>, StoreError> {
        self.read(move |transaction| tables::session(transaction, session, now_ms)).await
    }

    /// Sessions that have expired are listed until they are purged (within minutes): reading one says that it is gone.
    async fn sessions_of_user(
        &self,
        user: &str,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, StoreError> {
        if user.is_empty() {
            return Ok(Vec::new());
        }
        let user = user.to_owned();
        self.read(move |transaction| tables::sessions_of_user(transaction, &user, after, limit)).await
    }

    /// Its clock is this machine's.
    async fn ping(&self) -> Result<Option<u64>, StoreError> {
        self.write(Write::Ping).await.map(|_| None)
    }
}

/// The open file. Closed only for a moment, to be opened anew after an error of the disk.
struct StoreFile {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl StoreFile {
    fn with<T>(&self, run: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        run(database.as_ref().ok_or_else(|| StoreError::Unavailable(format!("{} is closed", self.path.display())))?)
    }

    fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn reopen(&self) -> Result<(), OpenError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: the file's lock is exclusive.
        *database = None;
        *database = Some(open_database(&self.path)?);
        Ok(())
    }
}

/// With a check of the whole file where it was not closed properly; a file that is not redb's is never written to.
fn open_database(path: &Path) -> Result<Database, OpenError> {
    private_file::make(path).map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
    let open = || {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        builder.create(path)
    };
    let damaged = |reason: String| OpenError::Damaged { path: path.to_owned(), reason };
    // redb asserts some of what it reads from a file.
    let opened = std::panic::catch_unwind(open).map_err(|_| damaged("its pages contradict each other".to_owned()))?;
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() != std::io::ErrorKind::InvalidData => {
            OpenError::Io { path: path.to_owned(), error }
        }
        other => damaged(other.to_string()),
    })
}

/// What redb says, in the terms of the trait.
fn failed(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        error @ (redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed) => {
            StoreError::Unavailable(error.to_string())
        }
        error => StoreError::Corrupt(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
