//! Publishes over HTTP that ask for a number of copies, each sent again by another node once it is answered: what is said
//! of one key has to agree.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use roost::{id::Position, tasks::Tasks};
use serde_json::json;
use tokio::sync::oneshot;

use crate::{
    api::{Api, position},
    cluster::Cluster,
    load::SETTLE,
};

/// Publishers, each to a group of its own.
const PUBLISHERS: usize = 8;
/// Between two messages of one.
const PAUSE: Duration = Duration::from_millis(10);
/// Before something is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// How often they were told what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    /// Messages that have a place. Each was repeated until that was said again.
    pub(super) acknowledged: u64,
    /// Answers that too few nodes would hold the message.
    pub(super) too_few: u64,
    /// Answers of unknown outcome, and requests without an answer.
    pub(super) unknown: u64,
}

/// Publishers at work.
pub(super) struct Repeats {
    stop: Arc<AtomicBool>,
    tasks: Tasks,
    tallies: Vec<oneshot::Receiver<Result<Tally>>>,
}

impl Repeats {
    /// Begins to publish by the nodes of the cluster in turn.
    pub(super) fn start(cluster: &Cluster, nodes: usize, min_copies: u8) -> Self {
        let (stop, tasks) = (Arc::new(AtomicBool::new(false)), Tasks::new());
        let apis: Arc<[Api]> = (0..nodes).map(|node| cluster.api(node)).collect();
        let start = |number: usize| {
            let (done, tally) = oneshot::channel();
            let publisher = Publisher { apis: apis.clone(), turn: number, number, min_copies, tally: Tally::default() };
            let publishing = publisher.publish_until(stop.clone());
            tasks.spawn_detached("repeating publisher", async move {
                let _ = done.send(publishing.await);
            });
            tally
        };
        let tallies = (0..PUBLISHERS).map(start).collect();
        Self { stop, tasks, tallies }
    }

    /// Ends them. What they were told in all, or the first thing that did not agree.
    pub(super) async fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for tally in self.tallies {
            let ended = tokio::time::timeout(SETTLE, tally).await.context("a publisher waits for an answer")?;
            let Tally { acknowledged, too_few, unknown } = ended.context("a publisher died")??;
            sum.acknowledged += acknowledged;
            sum.too_few += too_few;
            sum.unknown += unknown;
        }
        self.tasks.shut_down(SETTLE).await;
        Ok(sum)
    }
}

struct Publisher {
    apis: Arc<[Api]>,
    /// Counts the requests: each goes to the next node.
    turn: usize,
    number: usize,
    min_copies: u8,
    tally: Tally,
}

impl Publisher {
    async fn publish_until(mut self, stop: Arc<AtomicBool>) -> Result<Tally> {
        let mut message = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            message += 1;
            let first = self.place(message, None).await?;
            let again = self.place(message, Some(first)).await?;
            ensure!(first == again, "message {message} of publisher {} is at {first:?} and at {again:?}", self.number);
            self.tally.acknowledged += 1;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(self.tally)
    }

    /// Asks until a node says where the message is. Once that is `known` nobody may say that it is not done.
    async fn place(&mut self, message: u64, known: Option<Position>) -> Result<Position> {
        let path = format!("/v1/groups/floor:{}/messages", self.number);
        let body = json!({"data": message, "key": message.to_string(), "min_copies": self.min_copies});
        loop {
            self.turn += 1;
            let answer = self.apis[self.turn % self.apis.len()].post(&path, body.clone()).await;
            match answer {
                Ok(answer) if answer.status == 200 => {
                    let copies = answer.body["copies"].as_u64().unwrap_or(0);
                    ensure!(
                        copies >= u64::from(self.min_copies),
                        "a publish that asks for {} copies is answered with {}",
                        self.min_copies,
                        answer.body
                    );
                    return position(&answer.body);
                }
                Ok(answer) if answer.body["detail"][0]["type"] == "not_enough_copies" => {
                    ensure!(known.is_none(), "what is at {known:?} is said not to be done: {}", answer.body);
                    self.tally.too_few += 1;
                }
                Ok(answer) if answer.status == 503 => {}
                Ok(answer) => {
                    ensure!(answer.status == 504, "a publish is answered with {} {}", answer.status, answer.body);
                    self.tally.unknown += 1;
                }
                // The node is dead, or dies now.
                Err(_) => self.tally.unknown += 1,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
