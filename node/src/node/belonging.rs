//! Whether nodes that hear each other may be one cluster: they share a store, and the settings that must be the same.

use crate::{
    cluster::view::{NodeView, SharedView},
    config::differences,
    id::NodeId,
};

/// Why this node may not join those that it hears, if so: it is the one that came later.
pub(super) fn misfit(view: &SharedView) -> Option<String> {
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
