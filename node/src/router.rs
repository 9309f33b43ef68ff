//! Brings a request to the primary of its slot, here or elsewhere, and tries again while the map changes.

use std::time::Duration;

use crate::{
    id::SlotId,
    logic::request::{SlotAnswer, SlotError, SlotRequest},
};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Router {}

impl Router {
    /// Asks the slot's primary and waits for the answer, at most until the deadline. `NotPrimary` and lost answers are
    /// tried again inside; past the deadline the answer is `Unknown` for something that may have been done.
    pub async fn call(
        &self,
        _slot: SlotId,
        _request: SlotRequest,
        _deadline: Duration,
    ) -> Result<SlotAnswer, SlotError> {
        std::future::pending().await
    }
}
