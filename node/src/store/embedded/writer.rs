//! The thread that writes: takes what has queued, carries it out in one durable transaction, and then answers.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use redb::{Database, ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::{
    StoreFile, failed,
    tables::{EXPIRIES, GENERATIONS, MAP, MAP_KEY, PROBE, SESSIONS, SESSIONS_BY_USER, SessionRow, session_row},
};
use crate::{
    clock,
    id::{Generation, NodeId, SessionId},
    store::{MapChange, StoreError, WriteVersion, rows},
};

/// Writes in one transaction.
const BATCH: usize = 1_024;
/// Rows purged with one batch, so that no write waits long for it.
const PURGE: usize = 500;
/// The pause after a failed write. Each try opens the file anew and checks all of it.
const AGAIN: Duration = Duration::from_secs(1);
/// What a ping writes while writes fail: about a session with its attributes.
const PROBE_BYTES: usize = 4 << 10;
/// For how long an end is remembered of a session that was not known: its put may still be on the way.
const END_MEMORY_MS: u64 = 24 * 3_600 * 1_000;

/// A write that waits for the next transaction.
pub(super) enum Write {
    NextGeneration { node: NodeId },
    ChangeMap { expected: u64, version: u64, row: Vec<u8> },
    Put { id: SessionId, user: String, expires_ms: u64, version: WriteVersion, row: Vec<u8> },
    End { id: SessionId, version: WriteVersion },
    Ping,
}

/// What came of it.
pub(super) enum Done {
    Generation(Generation),
    Map(Result<MapChange, StoreError>),
    Written,
}

/// A write, and where its result goes.
pub(super) struct Job {
    pub(super) write: Write,
    pub(super) outcome: oneshot::Sender<Result<Done, StoreError>>,
}

pub(super) fn start(
    file: Arc<StoreFile>,
    mut jobs: mpsc::Receiver<Job>,
    purge_every: Duration,
) -> std::io::Result<JoinHandle<()>> {
    let purge_every_ms = purge_every.as_millis() as u64;
    let run = move || {
        let mut purged_ms = clock::mono_ms();
        let mut trouble = None;
        while let Some(first) = jobs.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = jobs.try_recv()
            {
                batch.push(next);
            }
            let purge = clock::mono_ms().saturating_sub(purged_ms) >= purge_every_ms;
            if carry_out(&file, batch, purge, &mut trouble) && purge {
                purged_ms = clock::mono_ms();
            }
        }
    };
    thread::Builder::new().name("roost-store".to_owned()).spawn(run)
}

/// Why the last write failed, and when the next may be tried.
struct Trouble {
    error: StoreError,
    not_before_ms: u64,
}

/// Carries out the batch and answers; says whether nothing is left to purge.
fn carry_out(file: &StoreFile, batch: Vec<Job>, purge: bool, trouble: &mut Option<Trouble>) -> bool {
    if let Some(trouble) = trouble.as_ref().filter(|trouble| clock::mono_ms() < trouble.not_before_ms) {
        refuse(batch, &trouble.error);
        return false;
    }
    let probe = trouble.is_some();
    let transact = || file.with(|database| transact(database, &batch, purge, probe).map_err(failed));
    // redb asserts some of what it reads from a file: a damaged one must not end the writer.
    let result = std::panic::catch_unwind(AssertUnwindSafe(transact))
        .unwrap_or_else(|_| Err(StoreError::Corrupt("the file's pages contradict each other".to_owned())));
    match result {
        Ok((done, purged_all)) => {
            if trouble.take().is_some() {
                tracing::info!(path = %file.path.display(), "the store can be written again");
            }
            for (job, done) in batch.into_iter().zip(done) {
                // Whoever asked may have stopped waiting.
                let _ = job.outcome.send(Ok(done));
            }
            purged_all
        }
        Err(error) => {
            if trouble.as_ref().is_none_or(|trouble| trouble.error != error) {
                tracing::error!(%error, path = %file.path.display(), "the store cannot be written; tried again each second");
            }
            if let Err(error) = file.reopen() {
                tracing::error!(%error, "the store could not be opened anew; tried again in a second");
            }
            refuse(batch, &error);
            *trouble = Some(Trouble { error, not_before_ms: clock::mono_ms() + AGAIN.as_millis() as u64 });
            false
        }
    }
}

fn refuse(batch: Vec<Job>, error: &StoreError) {
    for job in batch {
        let _ = job.outcome.send(Err(error.clone()));
    }
}

/// With `probe`, something is written in any case.
fn transact(database: &Database, batch: &[Job], purge: bool, probe: bool) -> Result<(Vec<Done>, bool), redb::Error> {
    let transaction = database.begin_write()?;
    let done: Vec<Done> = batch.iter().map(|job| one(&transaction, &job.write)).collect::<Result<_, _>>()?;
    let purged_all = !purge || purge_expired(&transaction)?;
    if probe {
        transaction.open_table(PROBE)?.insert((), vec![0; PROBE_BYTES].as_slice())?;
    }
    if !purge && !probe && batch.iter().all(|job| matches!(job.write, Write::Ping)) {
        // That the writer is at work and the file open is known; no reason to make the disk busy.
        transaction.abort()?;
    } else {
        transaction.commit()?;
    }
    Ok((done, purged_all))
}

fn one(transaction: &WriteTransaction, write: &Write) -> Result<Done, redb::Error> {
    match write {
        Write::NextGeneration { node } => next_generation(transaction, node).map(Done::Generation),
        Write::ChangeMap { expected, version, row } => change_map(transaction, *expected, *version, row).map(Done::Map),
        Write::Put { id, user, expires_ms, version, row } => {
            let row =
                SessionRow { version: *version, expires_ms: *expires_ms, user: user.clone(), record: row.clone() };
            put(transaction, id.0.as_u128(), &row).map(|()| Done::Written)
        }
        Write::End { id, version } => end(transaction, id.0.as_u128(), *version).map(|()| Done::Written),
        Write::Ping => Ok(Done::Written),
    }
}

fn next_generation(transaction: &WriteTransaction, node: &NodeId) -> Result<Generation, redb::Error> {
    let mut table = transaction.open_table(GENERATIONS)?;
    let next = table.get(node.as_str())?.map_or(0, |last| last.value()).saturating_add(1);
    table.insert(node.as_str(), next)?;
    Ok(next)
}

fn change_map(
    transaction: &WriteTransaction,
    expected: u64,
    version: u64,
    row: &[u8],
) -> Result<Result<MapChange, StoreError>, redb::Error> {
    let mut table = transaction.open_table(MAP)?;
    if let Some(present) = table.get(MAP_KEY)?.filter(|present| present.value().0 != expected) {
        return Ok(rows::decode_map(present.value().1).map(|map| MapChange::Conflict(Some(map))));
    }
    if expected > 0 && table.get(MAP_KEY)?.is_none() {
        return Ok(Ok(MapChange::Conflict(None)));
    }
    table.insert(MAP_KEY, (version, row))?;
    Ok(Ok(MapChange::Applied))
}

/// The higher version stays, and an end stays whatever comes.
fn put(transaction: &WriteTransaction, id: u128, row: &SessionRow) -> Result<(), redb::Error> {
    let old = session_row(&transaction.open_table(SESSIONS)?, id)?;
    match &old {
        Some(old) if old.has_ended() && row.expires_ms > old.expires_ms => {
            // Late, and it would have lived longer than the end was to be remembered.
            let ended = SessionRow { version: old.version, expires_ms: row.expires_ms, ..SessionRow::ended() };
            replace(transaction, id, Some(old), &ended)
        }
        Some(old) if old.has_ended() || old.version > row.version => Ok(()),
        _ => replace(transaction, id, old.as_ref(), row),
    }
}

fn end(transaction: &WriteTransaction, id: u128, version: WriteVersion) -> Result<(), redb::Error> {
    let old = session_row(&transaction.open_table(SESSIONS)?, id)?;
    let remembered_ms = clock::wall_ms().saturating_add(END_MEMORY_MS);
    let ended = SessionRow {
        version: old.as_ref().map_or(version, |old| old.version.max(version)),
        expires_ms: old.as_ref().map_or(remembered_ms, |old| old.expires_ms.max(remembered_ms)),
        ..SessionRow::ended()
    };
    replace(transaction, id, old.as_ref(), &ended)
}

/// Writes the row and keeps the two tables that point to it in step.
fn replace(
    transaction: &WriteTransaction,
    id: u128,
    old: Option<&SessionRow>,
    new: &SessionRow,
) -> Result<(), redb::Error> {
    let mut by_user = transaction.open_table(SESSIONS_BY_USER)?;
    let mut expiries = transaction.open_table(EXPIRIES)?;
    if let Some(old) = old {
        if !old.has_ended() && (new.has_ended() || old.user != new.user) {
            by_user.remove((old.user.as_str(), id))?;
        }
        if old.expires_ms != new.expires_ms {
            expiries.remove((old.expires_ms, id))?;
        }
    }
    if !new.has_ended() {
        by_user.insert((new.user.as_str(), id), ())?;
    }
    expiries.insert((new.expires_ms, id), ())?;
    let WriteVersion { term, index } = new.version;
    let row = (term, index, new.expires_ms, new.user.as_str(), new.record.as_slice());
    transaction.open_table(SESSIONS)?.insert(id, row)?;
    Ok(())
}

/// Removes rows whose time is over, a bounded number; says whether those were all.
fn purge_expired(transaction: &WriteTransaction) -> Result<bool, redb::Error> {
    let mut expiries = transaction.open_table(EXPIRIES)?;
    let mut sessions = transaction.open_table(SESSIONS)?;
    let mut by_user = transaction.open_table(SESSIONS_BY_USER)?;
    let over: Vec<(u64, u128)> = expiries
        .range(..(clock::wall_ms(), 0))?
        .take(PURGE)
        .map(|key| key.map(|(key, _)| key.value()))
        .map(|key| key.map_err(redb::Error::from))
        .collect::<Result<_, _>>()?;
    for (expires_ms, id) in &over {
        expiries.remove((*expires_ms, *id))?;
        if let Some(row) = session_row(&sessions, *id)? {
            by_user.remove((row.user.as_str(), *id))?;
        }
        sessions.remove(*id)?;
    }
    Ok(over.len() < PURGE)
}
