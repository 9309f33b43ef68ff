//! The requests of one connection that are under way: one after the other for each group, so that what a client sends is
//! ordered as it was sent (S5), and side by side for different groups.
//!
//! Bounded three ways: by the number of requests, by the data that they hold, and by what their answers may add to the
//! outbox. The last keeps a client that resumes many groups from being drowned, and closed, by its own replay: the next
//! group is asked for when the outbox has room.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::client::{Client, Job};
use crate::{config::LimitsConfig, id::GroupName};

/// The jobs of one connection.
pub(super) struct Lanes {
    /// The groups that have a job under way, each with those that wait for it.
    lanes: BTreeMap<GroupName, VecDeque<Job>>,
    /// Groups with a first job that may start.
    ready: VecDeque<GroupName>,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    requests: usize,
    data_bytes: usize,
    answer_bytes: usize,
    requests_max: usize,
    data_bytes_max: usize,
    answer_bytes_max: usize,
}

struct Finished {
    group: GroupName,
    requests: usize,
    data_bytes: usize,
    answer_bytes: usize,
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
            requests_max: limits.requests_in_flight,
            data_bytes_max: limits.outbox_bytes,
            answer_bytes_max: limits.outbox_bytes / 2,
        }
    }

    /// Takes a job on, or gives it back where too much is under way.
    pub(super) fn add(&mut self, group: GroupName, job: Job) -> Result<(), Job> {
        let data_bytes = job.data_bytes();
        if job.is_request() {
            if self.requests >= self.requests_max || self.data_bytes + data_bytes > self.data_bytes_max {
                return Err(job);
            }
            self.requests += 1;
            self.data_bytes += data_bytes;
        }
        match self.lanes.get_mut(&group) {
            // It reads the record when its turn comes: one is as good as two.
            Some(lane) if matches!(job, Job::Reconcile) && matches!(lane.back(), Some(Job::Reconcile)) => {}
            Some(lane) => lane.push_back(job),
            None => {
                self.lanes.insert(group.clone(), VecDeque::from([job]));
                self.ready.push_back(group);
            }
        }
        Ok(())
    }

    /// Starts what may start now.
    pub(super) fn start(&mut self, client: &Arc<Client>) {
        while let Some(group) = self.ready.front() {
            let Some(job) = self.lanes.get(group).and_then(VecDeque::front) else {
                self.ready.pop_front();
                continue;
            };
            let answer_bytes = client.answer_bytes(group, job);
            if !self.has_room(client.outbox.queued_bytes(), answer_bytes) {
                return;
            }
            let Some(group) = self.ready.pop_front() else { return };
            let Some(job) = self.lanes.get_mut(&group).and_then(VecDeque::pop_front) else { continue };
            self.answer_bytes += answer_bytes;
            let (requests, data_bytes, client) = (usize::from(job.is_request()), job.data_bytes(), client.clone());
            self.running.push(Box::pin(async move {
                client.perform(group.clone(), job).await;
                Finished { group, requests, data_bytes, answer_bytes }
            }));
        }
    }

    /// Alone a job may start as soon as the outbox is half empty, beside others only if it fits too.
    fn has_room(&self, queued_bytes: usize, answer_bytes: usize) -> bool {
        let taken = queued_bytes + self.answer_bytes;
        taken + answer_bytes <= self.answer_bytes_max || (self.answer_bytes == 0 && queued_bytes < self.answer_bytes_max)
    }

    /// Whether [`Lanes::finished`] has something to wait for.
    pub(super) fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// Waits until a job is done. Cancel-safe.
    pub(super) async fn finished(&mut self) {
        let Some(Finished { group, requests, data_bytes, answer_bytes }) = self.running.next().await else { return };
        self.requests -= requests;
        self.data_bytes -= data_bytes;
        self.answer_bytes -= answer_bytes;
        match self.lanes.get(&group) {
            Some(lane) if !lane.is_empty() => self.ready.push_back(group),
            _ => drop(self.lanes.remove(&group)),
        }
    }
}
