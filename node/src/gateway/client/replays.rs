//! The memory that replays may take: a budget for the whole node, handed out page by page, first come first served.
//!
//! A replay is what a client gets that joins a group since a position, or that lags behind one. Each page of it is paid for
//! from before it is asked for until it is written to the client's socket, so that thousands of clients that come back at
//! once cannot fill the memory: they take turns.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::LimitsConfig,
    logic::request::{MESSAGE_OVERHEAD_BYTES, PAGE_BYTES, SlotError},
    metrics::{Limit, Metrics},
};

/// The budget and who waits for it.
#[derive(Debug)]
pub struct Replays {
    /// A permit for each byte; fair.
    free: Arc<Semaphore>,
    bytes: usize,
    page_bytes: u32,
    queue: usize,
    waiting: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// The right to hold some bytes of a replay; gives its place back when dropped.
#[derive(Debug)]
pub struct Page(OwnedSemaphorePermit);

/// Counts who waits, also where it stops waiting.
struct Waiting<'a>(&'a Replays);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.replays_waiting.dec();
    }
}

impl Replays {
    /// Nothing is replayed yet.
    pub fn new(limits: &LimitsConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            free: Arc::new(Semaphore::new(limits.replay_bytes)),
            bytes: limits.replay_bytes,
            // Not for the most that a page may be: few are, and thousands of clients that missed little would take turns.
            page_bytes: u32::try_from(PAGE_BYTES.min(limits.replay_bytes)).unwrap_or(u32::MAX),
            queue: limits.replay_queue,
            waiting: AtomicUsize::new(0),
            metrics,
        }
    }

    /// Waits for its turn to have a page; `Busy` where too many wait already. Cancel-safe.
    pub async fn page(&self) -> Result<Page, SlotError> {
        if let Ok(permit) = self.free.clone().try_acquire_many_owned(self.page_bytes) {
            return Ok(Page(permit));
        }
        let earlier = self.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.replays_waiting.inc();
        let _waiting = Waiting(self);
        if earlier >= self.queue {
            self.metrics.limit_hit(Limit::ReplayQueue);
            return Err(SlotError::Busy);
        }
        self.metrics.limit_hit(Limit::ReplayBytes);
        self.free.clone().acquire_many_owned(self.page_bytes).await.map(Page).map_err(|_| SlotError::Busy)
    }

    /// Whether as many wait as may: no time for more clients.
    pub fn is_full(&self) -> bool {
        self.waiting() >= self.queue
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What is paid for at the moment.
    pub fn held_bytes(&self) -> usize {
        self.bytes - self.free.available_permits()
    }
}

impl Page {
    /// A page for some bytes out of this one, or for what is left of it.
    pub fn split(&mut self, bytes: usize) -> Option<Self> {
        self.0.split(bytes.min(self.0.num_permits())).map(Self)
    }

    /// Takes in another one of the same budget.
    pub fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

/// The most that an answer to a join brings, about: the primary adds one message to a page that is not full.
pub fn page_bytes(limits: &LimitsConfig) -> usize {
    PAGE_BYTES + limits.message_bytes + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn replays(pages: usize, queue: usize) -> Replays {
        let mut limits = LimitsConfig { replay_queue: queue, ..LimitsConfig::default() };
        limits.replay_bytes = pages * PAGE_BYTES;
        Replays::new(&limits, Metrics::new())
    }

    #[tokio::test]
    async fn pages_are_had_in_turn_and_given_back() {
        let replays = replays(2, 2);
        let (first, mut second) = (replays.page().await.unwrap(), replays.page().await.unwrap());
        let mut third = Box::pin(replays.page());
        let mut fourth = Box::pin(replays.page());
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        assert!(replays.is_full());
        assert_eq!(replays.page().await.err(), Some(SlotError::Busy), "more than may wait");
        // A part of a page is not enough for the next in turn, and nobody overtakes it.
        drop(second.split(1_000));
        assert!(fourth.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(fourth.as_mut().now_or_never().is_none());
        let third = third.now_or_never().unwrap().unwrap();
        drop(fourth);
        assert_eq!(replays.waiting(), 0);
        drop((first, third));
        assert_eq!(replays.held_bytes(), 0);
    }

    #[tokio::test]
    async fn a_page_is_divided_and_no_more_than_it_has() {
        let replays = replays(1, 1);
        let mut page = replays.page().await.unwrap();
        let whole = replays.held_bytes();
        let mut part = page.split(100).unwrap();
        drop(page.split(whole));
        assert_eq!(replays.held_bytes(), 100);
        part.merge(page);
        drop(part);
        assert_eq!(replays.held_bytes(), 0);
    }
}
