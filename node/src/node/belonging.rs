//! Whether this node may join the others. Each connection begins with where its ends belong ([`crate::peer::belongs`]), so that
//! nothing is gossiped to nodes of another store or with other settings; whoever dials them is told why.

use std::time::Duration;

use tokio::sync::watch;

use crate::{clock, cluster::gossip::Gossip, config::Config};

/// A node that was given seeds looks for others for at most this before it serves, to find out whether it may.
const LOOK_AROUND: Duration = Duration::from_secs(3);

/// Finds out whether those that this node is to live with share its store and settings, before it does anything.
pub(super) async fn look_around(
    config: &Config,
    gossip: &Gossip,
    mut misfit: watch::Receiver<Option<String>>,
) -> Result<(), String> {
    if config.cluster.seeds.is_empty() {
        return Ok(());
    }
    let mut views = gossip.view();
    let until = clock::deadline(LOOK_AROUND);
    loop {
        let view = views.borrow_and_update().clone();
        if let Some(reason) = misfit.borrow_and_update().clone() {
            return Err(reason);
        }
        let met = view.nodes.values().any(|node| node.alive && node.member != view.me && !node.store_id.is_empty());
        let changed = async {
            let _ = views.changed().await;
        };
        tokio::select! {
            () = async {}, if met => return Ok(()),
            () = changed => {}
            Ok(()) = misfit.changed() => {}
            () = tokio::time::sleep_until(until) => {
                tracing::warn!(seeds = ?config.cluster.seeds, "no other node was found; this one goes on alone, and looks on");
                return Ok(());
            }
        }
    }
}
