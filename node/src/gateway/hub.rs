//! placeholder of the hub's own file
use std::sync::Arc;

use super::outbox::Outbox;
use crate::{
    id::{GroupName, Position},
    logic::entry::Presence,
    wire::command::RequestId,
};
/// placeholder
#[derive(Clone, Debug)]
pub struct Hub {}
impl Hub {
    /// placeholder
    pub async fn join(&self, _outbox: Arc<Outbox>, _request: RequestId, _group: GroupName, _member: Option<Presence>, _since: Option<Position>) {
        std::future::pending().await
    }
    /// placeholder
    pub fn leave(&self, _connection: u64, _group: &GroupName) {}
    /// placeholder
    pub fn left_all(&self, _connection: u64, _groups: Vec<GroupName>) {}
}
