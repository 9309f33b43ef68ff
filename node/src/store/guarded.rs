//! What stands between a node and its store, whichever that is: how many requests are under way at once, how many wait for
//! their turn, how long each may take, and a breaker; with metrics of all that.
//!
//! Requests about sessions are many and come in bursts: they queue, within bounds, and past those they are refused at once,
//! with the state of the queue. Those about the map and the generations are few, and pass.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::{MapChange, Store, StoreError, WriteVersion, breaker::Breaker};
use crate::{
    clock,
    config::StoreConfig,
    id::{Generation, NodeId, SessionId},
    logic::{entry::SessionRecord, map::ClusterMap},
    metrics::StoreMetrics,
    seldom::Seldom,
};

const NO_PLACE: &str = "none was free to take this one";

/// See the module.
#[expect(missing_debug_implementations, reason = "holds a trait object")]
pub struct GuardedStore {
    inner: Arc<dyn Store>,
    limits: Limits,
    permits: Semaphore,
    waiting: AtomicUsize,
    breaker: Mutex<Breaker>,
    metrics: StoreMetrics,
}

#[derive(Clone, Copy)]
struct Limits {
    timeout: Duration,
    in_flight: usize,
    queue: usize,
    breaker_failures: u32,
}

impl GuardedStore {
    /// Around this store, with the limits of the configuration.
    pub fn new(inner: Arc<dyn Store>, config: &StoreConfig, metrics: StoreMetrics) -> Arc<Self> {
        let limits = Limits {
            timeout: Duration::from_millis(config.request_timeout_ms),
            in_flight: config.max_in_flight,
            queue: config.max_queue,
            breaker_failures: config.breaker_failures,
        };
        let breaker = Breaker::new(config.breaker_failures, config.breaker_open_ms);
        let permits = Semaphore::new(config.max_in_flight);
        Arc::new(Self { inner, limits, permits, waiting: AtomicUsize::new(0), breaker: Mutex::new(breaker), metrics })
    }

    /// A request about sessions: in its turn, unless the breaker is open.
    async fn queued<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started_ms = clock::mono_ms();
        if !self.breaker().admits(started_ms) {
            self.metrics.refused("breaker");
            return Err(self.is_down());
        }
        let _permit = self.turn(started_ms).await?;
        let waited = Duration::from_millis(clock::mono_ms() - started_ms);
        self.within(self.limits.timeout.saturating_sub(waited), operation, request).await
    }

    /// Waits for a turn.
    async fn turn(&self, started_ms: u64) -> Result<SemaphorePermit<'_>, StoreError> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(permit);
        }
        let Some(_place) = Place::take(self) else {
            self.metrics.refused("queue");
            return Err(self.too_many(NO_PLACE));
        };
        match tokio::time::timeout(self.limits.timeout, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(StoreError::Unavailable("the node stops".to_owned())),
            Err(_) => {
                self.metrics.refused("wait");
                let waited_ms = clock::mono_ms() - started_ms;
                Err(self.too_many(&format!("this one waited {waited_ms} ms for its turn")))
            }
        }
    }

    fn is_down(&self) -> StoreError {
        StoreError::Unavailable(format!(
            "it has not answered {} requests in a row: asked again when it answers",
            self.limits.breaker_failures
        ))
    }

    fn too_many(&self, what: &str) -> StoreError {
        let Limits { in_flight, queue, .. } = self.limits;
        let waiting = self.waiting.load(Ordering::Relaxed);
        StoreError::Unavailable(format!(
            "too many requests for it at once: {what}; {} of {in_flight} (store.max_in_flight) are under way, {waiting} of \
             {queue} (store.max_queue) wait",
            in_flight - self.permits.available_permits(),
        ))
    }

    /// A request at once.
    async fn direct<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.within(self.limits.timeout, operation, request).await
    }

    /// What is not answered in time may still be carried out.
    async fn within<T>(
        &self,
        timeout: Duration,
        operation: &'static str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let _in_flight = self.metrics.in_flight();
        let started_us = clock::mono_us();
        let result = match tokio::time::timeout(timeout, request).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Unavailable(format!("no answer within {} ms", timeout.as_millis()))),
        };
        let outcome = match &result {
            Ok(_) => "ok",
            Err(StoreError::Unavailable(_)) => "unavailable",
            Err(StoreError::Corrupt(_)) => "corrupt",
            Err(StoreError::Refused(_)) => "refused",
        };
        self.metrics.answered(operation, outcome, Duration::from_micros(clock::mono_us() - started_us));
        self.note(result.as_ref().err());
        result
    }

    fn note(&self, error: Option<&StoreError>) {
        let mut breaker = self.breaker();
        match error {
            Some(StoreError::Unavailable(reason)) => {
                static COMPLAIN: Seldom = Seldom::new();
                if breaker.failed(clock::mono_ms())
                    && let Some(left_out) = COMPLAIN.now()
                {
                    tracing::warn!(
                        reason,
                        left_out,
                        failures = self.limits.breaker_failures,
                        "the store does not answer: sessions cannot be created, changed or loaded until it does"
                    );
                }
            }
            // It answered, whatever it said.
            _ => {
                if breaker.succeeded() {
                    tracing::info!("the store answers again");
                }
            }
        }
        self.metrics.breaker_open(breaker.is_open());
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // No code panics while it holds this lock.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue; given back when dropped, also by a caller that stops waiting.
struct Place<'a>(&'a GuardedStore);

impl<'a> Place<'a> {
    fn take(guarded: &'a GuardedStore) -> Option<Self> {
        let waiting = guarded.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        // Made before it is looked at, so that it is given back in either case.
        let place = Self(guarded);
        guarded.metrics.waiting(waiting);
        (waiting <= guarded.limits.queue).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let before = self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.waiting(before - 1);
    }
}

#[async_trait]
impl Store for GuardedStore {
    async fn store_id(&self) -> Result<Uuid, StoreError> {
        self.direct("store_id", self.inner.store_id()).await
    }

    async fn next_generation(&self, node: &NodeId) -> Result<Generation, StoreError> {
        self.direct("next_generation", self.inner.next_generation(node)).await
    }

    async fn generation(&self, node: &NodeId) -> Result<Option<Generation>, StoreError> {
        self.direct("generation", self.inner.generation(node)).await
    }

    async fn read_map(&self) -> Result<Option<ClusterMap>, StoreError> {
        self.direct("read_map", self.inner.read_map()).await
    }

    /// Without an answer the outcome is unknown: it may be on its way.
    async fn change_map(&self, expected: u64, next: &ClusterMap) -> Result<MapChange, StoreError> {
        let change = async {
            match self.inner.change_map(expected, next).await {
                // Not an answer: it must not look like one to the breaker.
                Ok(MapChange::Unknown) => Err(StoreError::Unavailable("no answer to a conditional write".to_owned())),
                result => result,
            }
        };
        match self.direct("change_map", change).await {
            Err(StoreError::Unavailable(reason)) => {
                static COMPLAIN: Seldom = Seldom::new();
                if let Some(left_out) = COMPLAIN.now() {
                    tracing::warn!(
                        reason,
                        left_out,
                        "a change of the cluster map has an unknown outcome: the map is read again"
                    );
                }
                Ok(MapChange::Unknown)
            }
            result => result,
        }
    }

    async fn put_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError> {
        self.queued("put_session", self.inner.put_session(record, version)).await
    }

    async fn end_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError> {
        self.queued("end_session", self.inner.end_session(record, version)).await
    }

    async fn session(&self, session: SessionId, now_ms: u64) -> Result<Option<SessionRecord>, StoreError> {
        self.queued("session", self.inner.session(session, now_ms)).await
    }

    async fn sessions_of_user(
        &self,
        user: &str,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, StoreError> {
        self.queued("sessions_of_user", self.inner.sessions_of_user(user, after, limit)).await
    }

    async fn ping(&self) -> Result<Option<u64>, StoreError> {
        self.direct("ping", self.inner.ping()).await
    }

    fn refuses(&self) -> Option<StoreError> {
        if !self.breaker().would_admit(clock::mono_ms()) {
            self.metrics.refused("breaker");
            return Some(self.is_down());
        }
        if self.waiting.load(Ordering::Relaxed) >= self.limits.queue {
            self.metrics.refused("queue");
            return Some(self.too_many(NO_PLACE));
        }
        None
    }
}

#[cfg(test)]
mod tests;
