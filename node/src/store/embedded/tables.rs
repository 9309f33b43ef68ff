//! The tables of the file, and how they are read.

use std::path::Path;

use redb::{Database, ReadTransaction, ReadableTable, TableDefinition};
use uuid::Uuid;

use super::{OpenError, failed};
use crate::{
    id::{Generation, NodeId, SessionId},
    logic::{entry::SessionRecord, map::ClusterMap},
    store::{StoreError, WriteVersion, rows},
};

/// `store_id`, `form`.
pub(super) const META: TableDefinition<'static, &str, u128> = TableDefinition::new("meta");
/// One row, [`MAP_KEY`]: (version, the map).
pub(super) const MAP: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("map");
/// The generation last allotted.
pub(super) const GENERATIONS: TableDefinition<'static, &str, u64> = TableDefinition::new("generations");
/// By the id: (term, index, expiry, user, the record). The record is empty for a session that has ended: such a row stays
/// until the expiry, so that a put that comes late does not bring the session back.
pub(super) const SESSIONS: TableDefinition<'static, u128, (u64, u64, u64, &str, &[u8])> =
    TableDefinition::new("sessions");
/// (user, session).
pub(super) const SESSIONS_BY_USER: TableDefinition<'static, (&str, u128), ()> =
    TableDefinition::new("sessions_by_user");
/// (expiry, session): what to purge next.
pub(super) const EXPIRIES: TableDefinition<'static, (u64, u128), ()> = TableDefinition::new("expiries");

/// Written to find out whether that is possible.
pub(super) const PROBE: TableDefinition<'static, (), &[u8]> = TableDefinition::new("probe");

pub(super) const MAP_KEY: &str = "map";

/// The form of the tables.
const FORM: u128 = 1;
/// The most ids in a page.
const PAGE: usize = 10_000;

/// Makes the tables where there are none, checks the form, and gives the store's identity.
pub(super) fn prepare(database: &Database, path: &Path) -> Result<Uuid, OpenError> {
    let damaged = |error: redb::Error| match error {
        redb::Error::Io(error) => OpenError::Io { path: path.to_owned(), error },
        error => OpenError::Damaged { path: path.to_owned(), reason: error.to_string() },
    };
    let prepared = (|| -> Result<(u128, u128), redb::Error> {
        let transaction = database.begin_write()?;
        let found = {
            let mut meta = transaction.open_table(META)?;
            let form = meta.get("form")?.map(|form| form.value());
            let id = meta.get("store_id")?.map(|id| id.value());
            match (form, id) {
                (Some(form), Some(id)) => (form, id),
                _ => {
                    let id = Uuid::new_v4().as_u128();
                    meta.insert("form", FORM)?;
                    meta.insert("store_id", id)?;
                    (FORM, id)
                }
            }
        };
        if found.0 == FORM {
            transaction.open_table(MAP)?;
            transaction.open_table(GENERATIONS)?;
            transaction.open_table(SESSIONS)?;
            transaction.open_table(SESSIONS_BY_USER)?;
            transaction.open_table(EXPIRIES)?;
        }
        transaction.commit()?;
        Ok(found)
    })();
    let (form, id) = prepared.map_err(damaged)?;
    if form != FORM {
        return Err(OpenError::Form { path: path.to_owned(), found: form.to_string(), known: FORM as u64 });
    }
    Ok(Uuid::from_u128(id))
}

/// A row of [`SESSIONS`], owned.
pub(super) struct SessionRow {
    pub(super) version: WriteVersion,
    pub(super) expires_ms: u64,
    pub(super) user: String,
    pub(super) record: Vec<u8>,
}

impl SessionRow {
    pub(super) fn ended() -> Self {
        Self { version: WriteVersion { term: 0, index: 0 }, expires_ms: 0, user: String::new(), record: Vec::new() }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.record.is_empty()
    }
}

pub(super) fn session_row(
    sessions: &impl ReadableTable<u128, (u64, u64, u64, &'static str, &'static [u8])>,
    id: u128,
) -> Result<Option<SessionRow>, redb::Error> {
    Ok(sessions.get(id)?.map(|row| {
        let (term, index, expires_ms, user, record) = row.value();
        SessionRow {
            version: WriteVersion { term, index },
            expires_ms,
            user: user.to_owned(),
            record: record.to_owned(),
        }
    }))
}

pub(super) fn generation(transaction: &ReadTransaction, node: &NodeId) -> Result<Option<Generation>, StoreError> {
    let table = transaction.open_table(GENERATIONS).map_err(failed)?;
    Ok(table.get(node.as_str()).map_err(failed)?.map(|generation| generation.value()))
}

pub(super) fn map(transaction: &ReadTransaction) -> Result<Option<ClusterMap>, StoreError> {
    let table = transaction.open_table(MAP).map_err(failed)?;
    table.get(MAP_KEY).map_err(failed)?.map(|row| rows::decode_map(row.value().1)).transpose()
}

pub(super) fn session(
    transaction: &ReadTransaction,
    session: SessionId,
    now_ms: u64,
) -> Result<Option<SessionRecord>, StoreError> {
    let table = transaction.open_table(SESSIONS).map_err(failed)?;
    match session_row(&table, session.0.as_u128()).map_err(failed)? {
        Some(row) if !row.has_ended() && row.expires_ms > now_ms => rows::decode_session(&row.record).map(Some),
        _ => Ok(None),
    }
}

pub(super) fn sessions_of_user(
    transaction: &ReadTransaction,
    user: &str,
    after: Option<SessionId>,
    limit: usize,
) -> Result<Vec<SessionId>, StoreError> {
    let table = transaction.open_table(SESSIONS_BY_USER).map_err(failed)?;
    let first = match after.map(|session| session.0.as_u128().checked_add(1)) {
        None => 0,
        Some(Some(next)) => next,
        Some(None) => return Ok(Vec::new()),
    };
    let range = table.range((user, first)..=(user, u128::MAX)).map_err(failed)?;
    range
        .take(limit.min(PAGE))
        .map(|row| row.map(|(key, _)| SessionId(Uuid::from_u128(key.value().1))).map_err(failed))
        .collect()
}
