//! A slow stream of new sessions through every node, and the book of which of them were acknowledged: these must be there
//! ever after, whatever happened to the store and to the nodes.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use reqwest::Method;
use roost::{clock, tasks::Tasks};
use serde_json::{Value, json};

use crate::{api::Api, cluster::Cluster, wait::wait_for};

/// Sessions that are read at once.
const AT_ONCE: usize = 32;
/// Until a session is read that is there.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Until the last answers have come.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What came of an attempt to create a session.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// Answered with 201.
    Created,
    /// 503, with or without `Retry-After`.
    Unavailable {
        /// Whether it said when to try again.
        retry_after: bool,
    },
    /// Any other answer, or none: what is promised never to happen.
    Other(String),
}

/// An attempt to create a session.
#[derive(Clone, PartialEq, Debug)]
pub struct Attempt {
    /// Through which node.
    pub node: usize,
    /// In microseconds.
    pub sent_us: u64,
    /// In microseconds.
    pub answered_us: u64,
    pub outcome: Outcome,
}

/// A session that was acknowledged.
#[derive(Clone, PartialEq, Debug)]
pub struct Acknowledged {
    /// Through which node.
    pub node: usize,
    pub session: String,
    /// For its client.
    pub token: String,
    pub user: String,
    /// Its groups, in order.
    pub groups: Vec<String>,
}

/// What was asked of sessions, and what was answered.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// All that was tried.
    pub attempts: Vec<Attempt>,
    /// All that was acknowledged.
    pub acknowledged: Vec<Acknowledged>,
}

/// How the attempts of a time were answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Creations that were answered with 201.
    pub created: usize,
    /// With 503 and `Retry-After`.
    pub refused: usize,
    /// The longest wait for any answer, in milliseconds.
    pub longest_ms: u64,
    /// All other answers, which are promised never to be given.
    pub other: Vec<String>,
}

impl Tally {
    /// An error where an attempt was answered by anything but 201, or 503 with `Retry-After`.
    pub fn as_promised(&self) -> Result<()> {
        ensure!(self.other.is_empty(), "creates were answered by something else: {:?}", self.other);
        Ok(())
    }
}

impl Ledger {
    /// Creates a session with groups through a node and writes down what came of it.
    pub async fn create(&mut self, api: &Api, node: usize, user: &str, groups: &[&str]) {
        let sent_us = clock::mono_us();
        let (outcome, acknowledged) = create(api, node, user, groups).await;
        self.attempts.push(Attempt { node, sent_us, answered_us: clock::mono_us(), outcome });
        self.acknowledged.extend(acknowledged);
    }

    /// Takes in another book.
    pub fn absorb(&mut self, other: Self) {
        self.attempts.extend(other.attempts);
        self.acknowledged.extend(other.acknowledged);
    }

    /// The attempts that were sent in this time, in microseconds.
    pub fn tally(&self, window: &Range<u64>) -> Tally {
        let mut tally = Tally::default();
        for attempt in self.attempts.iter().filter(|attempt| window.contains(&attempt.sent_us)) {
            let after_ms = (attempt.answered_us - attempt.sent_us) / 1_000;
            tally.longest_ms = tally.longest_ms.max(after_ms);
            match &attempt.outcome {
                Outcome::Created => tally.created += 1,
                Outcome::Unavailable { retry_after: true } => tally.refused += 1,
                other => {
                    let (node, at_ms) = (attempt.node + 1, attempt.sent_us / 1_000);
                    tally.other.push(format!("node {node} to one of {at_ms} ms, {after_ms} ms later: {other:?}"));
                }
            }
        }
        tally
    }

    /// Reads every acknowledged session through the next node after the one that it was made by.
    pub async fn read_back(&self, cluster: &Cluster) -> Result<()> {
        let running = cluster.running();
        let apis: Vec<Api> = running.iter().map(|node| cluster.api(*node)).collect();
        let missing: Vec<String> = stream::iter(&self.acknowledged)
            .map(|one| {
                let other = running.iter().position(|node| *node > one.node).unwrap_or(0);
                let api = &apis[other];
                async move { one.read(api).await.err().map(|error| format!("{error:#}")) }
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(|missing| async { missing })
            .collect()
            .await;
        let (count, of) = (missing.len(), self.acknowledged.len());
        let some = &missing[..count.min(5)];
        ensure!(missing.is_empty(), "{count} of {of} acknowledged sessions are not as they were made: {some:#?}");
        eprintln!("all {of} acknowledged sessions are there, with their groups");
        Ok(())
    }
}

impl Acknowledged {
    /// Reads it through a node, and compares.
    pub async fn read(&self, api: &Api) -> Result<()> {
        let path = format!("/v1/sessions/{}", self.session);
        // While slots and the store settle, a node may ask to be asked again; it never says that there is no such session.
        let look = async || api.get(&path).await.ok().filter(|answer| ![503, 504].contains(&answer.status));
        let (answer, _) = wait_for(&format!("session {}", self.session), READ_LIMIT, look).await?;
        let session = &answer.body["session"];
        let by = api.base();
        ensure!(
            answer.status == 200,
            "{by} answers with {} for session {}: {}",
            answer.status,
            self.session,
            answer.body
        );
        ensure!(session["user"] == *self.user, "{by} names another user of {}: {session}", self.session);
        ensure!(session["groups"] == json!(self.groups), "{by} names other groups of {}: {session}", self.session);
        Ok(())
    }
}

async fn create(api: &Api, node: usize, user: &str, groups: &[&str]) -> (Outcome, Option<Acknowledged>) {
    let body = json!({"user": user, "groups": groups}).to_string().into_bytes();
    let response = match api.raw(Method::POST, "/v1/sessions", Some("application/json"), body).await {
        Ok(response) => response,
        Err(error) => return (Outcome::Other(format!("{error:#}")), None),
    };
    let (status, retry_after) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
    let text = match response.text().await {
        Ok(text) => text,
        Err(error) => return (Outcome::Other(format!("{status}, then {error}")), None),
    };
    if status == 503 {
        return (Outcome::Unavailable { retry_after }, None);
    }
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    match (status, body["session"]["id"].as_str(), body["token"].as_str()) {
        (201, Some(session), Some(token)) => {
            let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            groups.sort_unstable();
            let (session, token, user) = (session.to_owned(), token.to_owned(), user.to_owned());
            (Outcome::Created, Some(Acknowledged { node, session, token, user, groups }))
        }
        _ => (Outcome::Other(format!("{status} {text}")), None),
    }
}

/// Streams: through each node one session after the other, until they are stopped.
pub struct Creating {
    stop: Arc<AtomicBool>,
    tasks: Tasks,
    ledger: Arc<Mutex<Ledger>>,
}

impl Creating {
    /// Begins this number of streams through each node, with this pause after each answer.
    pub fn start(cluster: &Cluster, streams: usize, pause: Duration) -> Self {
        let this = Self { stop: Arc::default(), tasks: Tasks::new(), ledger: Arc::default() };
        for (node, stream) in cluster.running().into_iter().flat_map(|node| (0..streams).map(move |one| (node, one))) {
            let (api, stop, ledger) = (cluster.api(node), this.stop.clone(), this.ledger.clone());
            this.tasks.spawn_detached("creating", async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (user, group) = (format!("created-{node}"), format!("made:{node}-{stream}-{number}"));
                    let mut one = Ledger::default();
                    one.create(&api, node, &user, &["made:all", &group]).await;
                    ledger.lock().unwrap_or_else(PoisonError::into_inner).absorb(one);
                    tokio::time::sleep(pause).await;
                }
            });
        }
        this
    }

    /// When, at the earliest, every node had again acknowledged a session that was asked for after this time; none yet
    /// where one has not.
    pub fn acknowledged_since(&self, since_us: u64) -> Option<u64> {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first: BTreeMap<usize, Option<u64>> = ledger.attempts.iter().map(|one| (one.node, None)).collect();
        let since = ledger.attempts.iter().filter(|one| one.sent_us >= since_us && one.outcome == Outcome::Created);
        for attempt in since {
            first.entry(attempt.node).and_modify(|first| {
                first.get_or_insert(attempt.answered_us);
            });
        }
        first.into_values().try_fold(0, |latest, first| first.map(|first| latest.max(first)))
    }

    /// Ends the stream, waits for the last answers and hands over the book.
    pub async fn stop(self) -> Result<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = async || self.tasks_left() == 0;
        crate::wait::wait_until("the last creates to be answered", STOP_LIMIT, ended).await?;
        let ledger = std::mem::take(&mut *self.ledger.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(!ledger.acknowledged.is_empty(), "not one session was created");
        Ok(ledger)
    }

    fn tasks_left(&self) -> usize {
        // Each task holds one.
        Arc::strong_count(&self.stop) - 1
    }
}

impl Drop for Creating {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

/// Reads what a node says of a user: the ids of all sessions, page by page.
pub async fn sessions_of(api: &Api, user: &str) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let mut after = String::new();
    loop {
        let answer = api.get(&format!("/v1/users/{user}/sessions?limit=7{after}")).await?;
        ensure!(answer.status == 200, "listing the sessions of {user}: {answer:?}");
        ensure!(answer.body["unavailable"] == json!([]), "sessions of {user} cannot be read: {answer:?}");
        let page = answer.body["sessions"].as_array().with_context(|| format!("no sessions in {answer:?}"))?;
        ids.extend(page.iter().filter_map(|session| session["id"].as_str().map(str::to_owned)));
        match answer.body["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    ids.sort_unstable();
    Ok(ids)
}
