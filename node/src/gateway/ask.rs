//! The one way from the edge to the slots' primaries: for what clients and backends ask, and for the hub's own upkeep.
//!
//! How long a request may take, what is counted of it, and how many slots there are is known here and nowhere else.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    config::Config,
    id::{GroupName, SessionId, SlotId},
    logic::{
        map::SharedMap,
        request::{self, AskGroup, AskSession, SlotAnswer, SlotError, SlotRequest},
    },
    metrics::{Limit, Metrics},
    router::{self, Router},
};

/// What a primary answers, as it travels.
pub type Answer = Result<SlotAnswer, SlotError>;

/// Brings a request to the primary of its slot: the router, or a script in tests.
#[async_trait]
pub trait Primaries: Send + Sync + 'static {
    /// As [`Router::carry`].
    async fn call(
        &self,
        slot: SlotId,
        request: SlotRequest,
        deadline: Duration,
        over: Option<&CancellationToken>,
    ) -> Answer;
}

#[async_trait]
impl Primaries for Router {
    async fn call(
        &self,
        slot: SlotId,
        request: SlotRequest,
        deadline: Duration,
        over: Option<&CancellationToken>,
    ) -> Answer {
        self.carry(slot, request, deadline, over).await
    }
}

/// Asks the slots' primaries, each time within `limits.request_ms`. Cheap to clone.
#[derive(Clone)]
pub struct Ask {
    primaries: Arc<dyn Primaries>,
    maps: watch::Receiver<Option<SharedMap>>,
    slots: u16,
    deadline: Duration,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("slots", &self.slot_count())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Ask {
    /// `maps` tells the number of slots; before there is a map the configuration does.
    pub fn new(
        primaries: Arc<dyn Primaries>,
        maps: watch::Receiver<Option<SharedMap>>,
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Self {
        let deadline = Duration::from_millis(config.limits.request_ms);
        Self { primaries, maps, slots: config.cluster.slots, deadline, metrics }
    }

    /// How many slots the cluster has. The map knows; the configuration says only how many a new cluster gets.
    pub fn slot_count(&self) -> u16 {
        self.maps.borrow().as_ref().map_or(self.slots, |map| map.slot_count())
    }

    /// Asks for a client or a backend, about a group.
    pub async fn of_group<R: AskGroup>(&self, group: &GroupName, request: R) -> Result<R::Answer, SlotError> {
        self.of_slot(group.slot(self.slot_count()), (group.clone(), request), None).await
    }

    /// Asks for a client or a backend, about a session. Once `over` is cancelled nothing is tried again.
    pub async fn of_session<R: AskSession>(
        &self,
        session: SessionId,
        request: R,
        over: Option<&CancellationToken>,
    ) -> Result<R::Answer, SlotError> {
        self.of_slot(session.slot(self.slot_count()), (session, request), over).await
    }

    /// Asks for a client or a backend; the time until the answer is counted.
    pub async fn of_slot<R: request::Ask>(
        &self,
        slot: SlotId,
        request: R,
        over: Option<&CancellationToken>,
    ) -> Result<R::Answer, SlotError> {
        let asked_us = clock::mono_us();
        let answer = router::typed(self.primaries.call(slot, request.into_request(), self.deadline, over).await);
        let took = Duration::from_micros(clock::mono_us().saturating_sub(asked_us));
        self.metrics.request_seconds.observe(took.as_secs_f64());
        match &answer {
            Err(SlotError::Unknown) => self.metrics.limit_hit(Limit::RequestMs),
            Err(SlotError::TooManyGroups) => self.metrics.limit_hit(Limit::GroupsPerSession),
            _ => {}
        }
        answer
    }

    /// Asks for the node's own sake: nobody waits for the answer, so that its time is not counted.
    pub async fn upkeep<R: request::Ask>(&self, slot: SlotId, request: R) -> Result<R::Answer, SlotError> {
        router::typed(self.primaries.call(slot, request.into_request(), self.deadline, None).await)
    }
}
