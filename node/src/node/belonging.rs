//! Whether nodes that hear each other may be one cluster: they share a store, and the settings that must be the same.

use std::time::Duration;

use crate::{
    clock,
    cluster::{
        gossip::Gossip,
        view::{NodeView, SharedView},
    },
    config::{Config, differences},
    id::NodeId,
};

/// A node that was given seeds looks for others for at most this before it serves, to find out whether it may.
const LOOK_AROUND: Duration = Duration::from_secs(3);

/// Finds out whether those that this node is to live with share its store and settings, before it does anything.
pub(super) async fn look_around(config: &Config, gossip: &Gossip) -> Result<(), String> {
    if config.cluster.seeds.is_empty() {
        return Ok(());
    }
    let mut views = gossip.view();
    let until = clock::deadline(LOOK_AROUND);
    loop {
        let view = views.borrow_and_update().clone();
        if let Some(reason) = misfit(&view) {
            return Err(reason);
        }
        let met = view.nodes.values().any(|node| node.alive && node.member != view.me && !node.store_id.is_empty());
        let changed = async {
            let _ = views.changed().await;
        };
        tokio::select! {
            () = async {}, if met => return Ok(()),
            () = changed => {}
            () = tokio::time::sleep_until(until) => {
                tracing::warn!(seeds = ?config.cluster.seeds, "no other node was found; this one goes on alone, and looks on");
                return Ok(());
            }
        }
    }
}

/// Why this node may not join those that it hears, if so: it is the one that came later.
fn misfit(view: &SharedView) -> Option<String> {
    let me = view.nodes.get(&view.me.node)?;
    let others = || view.nodes.values().filter(|node| node.alive && node.member != view.me);
    if let Some(other) = others().find(|other| !same_store(me, other)) {
        return Some(format!(
            "node {} keeps its sessions in another store ({}) than this one ({}). Give both the same store, or this node \
             another cluster.name; an embedded store serves the nodes of one process only",
            other.member.node, other.store_id, me.store_id,
        ));
    }
    let other = others().find(|other| !other.settings.is_empty() && other.settings != me.settings)?;
    let differing = differences(&me.settings, &other.settings).join(", ");
    Some(format!(
        "settings that all nodes must share differ from those of node {}: {differing}. Make them equal",
        other.member.node
    ))
}

/// Whether what this peer says of the cluster map can be believed: another store has another map.
pub(super) fn shares_store(view: &SharedView, peer: &NodeId) -> bool {
    match (view.nodes.get(&view.me.node), view.nodes.get(peer)) {
        (Some(me), Some(peer)) => same_store(me, peer),
        _ => false,
    }
}

fn same_store(one: &NodeView, other: &NodeView) -> bool {
    one.store_id.is_empty() || other.store_id.is_empty() || one.store_id == other.store_id
}
