//! Gossip messages on their way from the mesh to whoever gossips. Each peer has a rate and the queue a bound; past either a
//! message is dropped and counted, since gossip says everything again.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    clock,
    id::{Member, NodeId},
    metrics::{GossipDrop, Metrics},
};

/// Messages waiting; past it new ones are dropped.
const INBOX: usize = 1_024;

/// Messages from one node in a second; more are dropped.
const MESSAGES_PER_S: u32 = 1_000;

/// The end that the mesh puts messages into.
pub(super) struct GossipSender {
    queue: mpsc::Sender<(Member, Bytes)>,
    /// By node: a second, and the messages in it.
    rates: Mutex<BTreeMap<NodeId, (u64, u32)>>,
    metrics: Arc<Metrics>,
}

/// The end that gossip takes messages out of.
pub struct GossipInbox(mpsc::Receiver<(Member, Bytes)>);

pub(super) fn queue(metrics: Arc<Metrics>) -> (GossipSender, GossipInbox) {
    let (queue, inbox) = mpsc::channel(INBOX);
    (GossipSender { queue, rates: Mutex::default(), metrics }, GossipInbox(inbox))
}

impl GossipSender {
    /// Hands a message over. Never waits.
    pub(super) fn push(&self, from: &Member, message: Bytes) {
        if !self.is_within_rate(&from.node) || self.queue.try_send((from.clone(), message)).is_err() {
            self.metrics.peer.gossip_drop(GossipDrop::TooMuch);
        }
    }

    fn is_within_rate(&self, node: &NodeId) -> bool {
        let second = clock::mono_ms() / 1_000;
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        // Names come from certificates of the cluster: there are not many.
        let rate = rates.entry(node.clone()).or_default();
        if rate.0 != second {
            *rate = (second, 0);
        }
        rate.1 += 1;
        rate.1 <= MESSAGES_PER_S
    }
}

impl GossipInbox {
    /// The next message and who sent it; none once the mesh is gone. Nothing is lost where this is dropped while it waits.
    pub async fn next(&mut self) -> Option<(Member, Bytes)> {
        self.0.recv().await
    }
}

impl fmt::Debug for GossipInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GossipInbox").field("waiting", &self.0.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_much_is_dropped_and_counted() {
        let metrics = Metrics::new();
        let (sender, mut inbox) = queue(metrics.clone());
        let from = |name: &str| Member { node: NodeId::parse(name).unwrap(), generation: 1 };
        let (loud, quiet) = (from("loud"), from("quiet"));
        let before_s = clock::mono_ms() / 1_000;
        for _ in 0..=2 * MESSAGES_PER_S {
            sender.push(&loud, Bytes::from_static(b"again"));
        }
        sender.push(&quiet, Bytes::from_static(b"once"));
        // A new second lets another thousand through; the queue's bound holds anyhow.
        let dropped = metrics.peer.gossip_drops(GossipDrop::TooMuch);
        let passed = inbox.0.len() as u64;
        assert_eq!(dropped + passed, u64::from(2 * MESSAGES_PER_S) + 2);
        assert!(passed <= INBOX as u64 && dropped >= u64::from(MESSAGES_PER_S) - 24);
        if clock::mono_ms() / 1_000 == before_s {
            assert_eq!(passed, u64::from(MESSAGES_PER_S) + 1, "the quiet one is not paid for by the loud one");
            for _ in 0..MESSAGES_PER_S {
                assert_eq!(inbox.next().await, Some((loud.clone(), Bytes::from_static(b"again"))));
            }
            assert_eq!(inbox.next().await, Some((quiet, Bytes::from_static(b"once"))));
        }
    }
}
