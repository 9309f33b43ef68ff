//! The requests of one connection that are under way: one after the other for each group, so that what a client sends is
//! ordered as it was sent (S5), and side by side for different groups. Publishes that follow each other and have gathered leave
//! together (`logic/batch`).
//!
//! Bounded three ways: by the number of requests, by the data that they hold, and by what their answers may add to the
//! outbox. The last keeps a client that resumes many groups from being drowned, and closed, by its own replay: the next
//! group is asked for when the outbox has room. A group that is slow to answer holds up the others only for a moment.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::jobs::{Client, Job};
use crate::{clock, config::LimitsConfig, id::GroupName, logic::few::Few};

/// So long the room that answers may need is kept free for them while others wait for it.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is done one after the other. What the node does by itself to bring a group back may take long, and is not to hold
/// up what the client asks of the group meanwhile.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Lane {
    group: GroupName,
    restoring: bool,
}

/// The jobs of one connection.
pub(super) struct Lanes {
    /// Those that have a job under way, or one that may start, each with the jobs that have not started.
    lanes: BTreeMap<Lane, VecDeque<Job>>,
    /// Those whose first job may start.
    ready: VecDeque<Lane>,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    requests: usize,
    data_bytes: usize,
    answer_bytes: usize,
    /// Counts how often the room kept for answers was given to others.
    round: u64,
    /// Something waits for room, and gets it then at the latest.
    patience_until: Option<tokio::time::Instant>,
    requests_max: usize,
    data_bytes_max: usize,
    answer_bytes_max: usize,
}

struct Finished {
    lane: Lane,
    requests: usize,
    data_bytes: usize,
    answer_bytes: usize,
    round: u64,
}

/// Publishes at the front become one job, those that are kept or those that are not; `fitting` says how many of them, by the bytes of each.
fn gather(jobs: &mut VecDeque<Job>, fitting: impl FnOnce(Vec<usize>) -> usize) {
    // What is alone needs no list.
    if jobs.len() < 2 {
        return;
    }
    let Some(Job::Publish { ephemeral, .. }) = jobs.front() else { return };
    let ephemeral = *ephemeral;
    let publishes = |job: &Job| match job {
        Job::Publish { ephemeral: also, .. } if *also == ephemeral => Some(job.data_bytes()),
        _ => None,
    };
    // What was gathered and found no room yet stays as it is.
    let is_one = |job: &&Job| job.requests() == 1;
    let waiting: Vec<usize> = jobs.iter().take_while(is_one).map_while(publishes).collect();
    if waiting.len() < 2 {
        return;
    }
    let count = fitting(waiting);
    let mut together = Few::default();
    for job in jobs.drain(..count) {
        if let Job::Publish { publishes, .. } = job {
            together.extend(publishes);
        }
    }
    jobs.push_front(Job::Publish { publishes: together, ephemeral });
}

impl Lanes {
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        Self {
            lanes: BTreeMap::new(),
            ready: VecDeque::new(),
            running: FuturesUnordered::new(),
            requests: 0,
            data_bytes: 0,
            answer_bytes: 0,
            round: 0,
            patience_until: None,
            requests_max: limits.requests_in_flight,
            data_bytes_max: limits.outbox_bytes,
            answer_bytes_max: limits.outbox_bytes / 2,
        }
    }

    /// Takes a job on, or gives it back where too much is under way.
    pub(super) fn add(&mut self, group: GroupName, job: Job) -> Result<(), Job> {
        let (requests, data_bytes) = (job.requests(), job.data_bytes());
        if requests > 0 {
            if self.requests >= self.requests_max || self.data_bytes + data_bytes > self.data_bytes_max {
                return Err(job);
            }
            self.requests += requests;
            self.data_bytes += data_bytes;
        }
        let mut lane = Lane { restoring: true, group };
        // What the session shows is told after the join that may bring an older one.
        let follows_restoring = matches!(job, Job::Update { .. }) && self.lanes.contains_key(&lane);
        lane.restoring = follows_restoring || matches!(job, Job::Restore { .. } | Job::Replay);
        match self.lanes.get_mut(&lane) {
            Some(jobs) => {
                // They read the record when their turn comes: one is as good as two.
                match (&job, jobs.back_mut()) {
                    (Job::Reconcile, Some(Job::Reconcile)) => {}
                    (Job::Update { enters: more }, Some(Job::Update { enters })) => *enters |= *more,
                    _ => jobs.push_back(job),
                }
            }
            None => {
                self.lanes.insert(lane.clone(), VecDeque::from([job]));
                self.ready.push_back(lane);
            }
        }
        Ok(())
    }

    /// Starts what may start now.
    pub(super) fn start(&mut self, client: &Arc<Client>) {
        while let Some(lane) = self.ready.front() {
            let Some(jobs) = self.lanes.get_mut(lane).filter(|jobs| !jobs.is_empty()) else {
                self.ready.pop_front();
                continue;
            };
            gather(jobs, |waiting| client.fitting(&lane.group, waiting));
            let Some(job) = jobs.front() else { continue };
            let answer_bytes = client.answer_bytes(job);
            if !self.has_room(client.outbox.queued_bytes(), answer_bytes) {
                self.patience_until.get_or_insert_with(|| clock::deadline(PATIENCE));
                return;
            }
            let Some(lane) = self.ready.pop_front() else { break };
            let Some(job) = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) else { continue };
            self.answer_bytes += answer_bytes;
            let (requests, data_bytes, round) = (job.requests(), job.data_bytes(), self.round);
            let client = client.clone();
            self.running.push(Box::pin(async move {
                client.perform(lane.group.clone(), job).await;
                Finished { lane, requests, data_bytes, answer_bytes, round }
            }));
        }
        self.patience_until = None;
    }

    /// Alone a job may start as soon as the outbox is half empty, beside others only if it fits too.
    fn has_room(&self, queued_bytes: usize, answer_bytes: usize) -> bool {
        let taken = queued_bytes + self.answer_bytes;
        taken + answer_bytes <= self.answer_bytes_max
            || (self.answer_bytes == 0 && queued_bytes < self.answer_bytes_max)
    }

    /// Whether [`Lanes::finished`] has something to wait for.
    pub(super) fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// Waits until a job is done, or others get the room that it was given. Cancel-safe.
    pub(super) async fn finished(&mut self) {
        let finished = match self.patience_until {
            Some(until) => match tokio::time::timeout_at(until, self.running.next()).await {
                Ok(finished) => finished,
                Err(_) => return self.give_room(),
            },
            None => self.running.next().await,
        };
        let Some(Finished { lane, requests, data_bytes, answer_bytes, round }) = finished else { return };
        self.requests -= requests;
        self.data_bytes -= data_bytes;
        if round == self.round {
            self.answer_bytes -= answer_bytes;
        }
        match self.lanes.get(&lane) {
            Some(jobs) if !jobs.is_empty() => self.ready.push_back(lane),
            _ => drop(self.lanes.remove(&lane)),
        }
        // A map that has been emptied keeps its memory: that of a publisher is soon used again, that of a listener is not.
        if self.lanes.is_empty() && data_bytes == 0 {
            self.lanes = BTreeMap::new();
        }
    }

    fn give_room(&mut self) {
        self.round += 1;
        self.answer_bytes = 0;
        self.patience_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::jobs::ToPublish, *};

    fn publish(data: &'static str) -> Job {
        Job::Publish { publishes: Few::one(ToPublish { id: None, data: data.into(), key: None }), ephemeral: false }
    }

    /// The messages of each job, those of others than publishes as none.
    fn shape(jobs: &VecDeque<Job>) -> Vec<usize> {
        let count = |job: &Job| if let Job::Publish { publishes, .. } = job { publishes.len() } else { 0 };
        jobs.iter().map(count).collect()
    }

    #[test]
    fn publishes_that_follow_each_other_become_one_job_and_nothing_overtakes() {
        let mut jobs =
            VecDeque::from([publish("1"), publish("22"), publish("3"), Job::Leave { id: None }, publish("4")]);
        gather(&mut jobs, |waiting| {
            assert_eq!(waiting, [1, 2, 1]);
            2
        });
        assert_eq!(shape(&jobs), [2, 1, 0, 1]);
        let Some(Job::Publish { publishes: first, .. }) = jobs.front() else {
            panic!("a job of publishes comes first")
        };
        assert_eq!(first.iter().map(|publish| &publish.data[..]).collect::<Vec<_>>(), [&b"1"[..], b"22"]);
        gather(&mut jobs, |_| panic!("what has gathered and waits for room stays as it is"));
        jobs.pop_front();
        gather(&mut jobs, |_| panic!("one alone needs nothing"));
        jobs.pop_front();
        gather(&mut jobs, |_| panic!("a leave is no publish"));
        assert_eq!(shape(&jobs), [0, 1]);
    }
}
