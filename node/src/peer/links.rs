//! The links that this node has: whom to, from when to when. Gossip says who is there.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    dial::Dialler,
    link::{Link, LinkBounds, Up},
};
use crate::{
    id::{Generation, Member, NodeId},
    metrics::{LinkReset, Metrics},
    tasks::Tasks,
};

/// By peer: the start of it that is meant, and where that is reached.
pub(super) type Peers = BTreeMap<NodeId, (Generation, SocketAddr)>;

pub(super) struct Links {
    dialler: Arc<Dialler>,
    bounds: LinkBounds,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
}

impl Links {
    pub(super) fn new(dialler: Arc<Dialler>, bounds: LinkBounds, metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        Self { dialler, bounds, metrics, tasks, links: Mutex::default() }
    }

    /// Whom to have links to, from now on. A link to another start or address of a node than before is a new one.
    pub(super) fn set_peers(&self, peers: Peers) {
        let mut links = self.lock();
        links.retain(|node, link| {
            let stays = peers.get(node).is_some_and(|wanted| *wanted == (link.generation, link.addr));
            if !stays {
                link.close();
            }
            stays
        });
        for (node, at) in peers {
            if node != self.dialler.me.node && !links.contains_key(&node) {
                let link = Arc::new(Link::new(node.clone(), at, self.bounds, self.metrics.clone()));
                links.insert(node, link.clone());
                self.tasks.spawn_until_done("peer-link", link.run(self.dialler.clone()));
            }
        }
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<Arc<Link>> {
        self.lock().get(node).cloned()
    }

    /// All of them, now.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.lock().values().cloned().collect()
    }

    /// The link to whoever is at that address, where it is up.
    pub(super) fn up_at(&self, addr: SocketAddr) -> Option<Arc<Up>> {
        let link = self.lock().values().find(|link| link.addr == addr).cloned();
        link?.up()
    }

    /// A peer has connected: if it was started again, what this node has to its earlier start is no use; if the link is
    /// down, now is a good time to dial.
    pub(super) fn heard_from(&self, member: &Member) {
        let Some(link) = self.get(&member.node) else { return };
        if link.generation < member.generation {
            link.reset(LinkReset::Restart);
        } else if link.up().is_none() {
            link.retry();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Link>>> {
        // No code panics while it holds this lock.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
