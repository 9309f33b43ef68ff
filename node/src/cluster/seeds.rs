//! The addresses that the seeds stand for, looked up again and again: a DNS name may stand for other nodes by now.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::sync::watch;

use super::view::{ClusterView, SharedView};
use crate::seldom::Seldom;

const ALONE_PAUSE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(30);
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Addresses in all; a name that stands for more is cut.
const ADDRESSES_MAX: usize = 64;

/// Runs for as long as somebody wants the addresses.
pub(super) async fn resolve(
    seeds: Vec<String>,
    me: SocketAddr,
    view: watch::Receiver<SharedView>,
    addresses: watch::Sender<Vec<SocketAddr>>,
) {
    let complain = Seldom::every(Duration::from_secs(30));
    while !addresses.is_closed() {
        let mut found = BTreeSet::new();
        for seed in &seeds {
            match tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host(seed)).await {
                Ok(Ok(resolved)) => found.extend(resolved.filter(|addr| *addr != me)),
                Ok(Err(error)) => {
                    if let Some(left_out) = complain.now() {
                        tracing::warn!(seed, %error, left_out, "cluster.seeds: the seed cannot be looked up");
                    }
                }
                Err(_) => {
                    if let Some(left_out) = complain.now() {
                        tracing::warn!(seed, left_out, "cluster.seeds: looking the seed up takes too long");
                    }
                }
            }
        }
        // A failed look-up does not take away what an earlier one found.
        if !found.is_empty() {
            addresses.send_replace(found.into_iter().take(ADDRESSES_MAX).collect());
        }
        let pause = if is_alone(&view.borrow()) { ALONE_PAUSE } else { PAUSE };
        tokio::time::sleep(pause).await;
    }
}

/// Whether no other node is alive.
pub(super) fn is_alone(view: &ClusterView) -> bool {
    !view.nodes.values().any(|node| node.alive && node.member != view.me)
}
