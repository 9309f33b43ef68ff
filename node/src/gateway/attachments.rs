//! placeholder of the hub helper's own file
use std::sync::Arc;

use tokio::sync::watch;

use super::outbox::Outbox;
use crate::{
    id::{AttachmentNumber, SessionId},
    logic::entry::SessionRecord,
};
/// placeholder
#[derive(Clone, Debug)]
pub struct Attachments {}
impl Attachments {
    /// placeholder
    pub fn insert(&self, _session: SessionId, _attachment: AttachmentNumber, _outbox: Arc<Outbox>) -> watch::Receiver<Option<Arc<SessionRecord>>> {
        watch::channel(None).1
    }
    /// placeholder
    pub fn remove(&self, _session: SessionId, _attachment: AttachmentNumber) {}
}
