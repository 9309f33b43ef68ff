//! The cluster map that this node knows. Maps come from the store, from the steward here and from peers, in any order;
//! only confirmed ones come, so the highest version is right.

use std::sync::Arc;

use tokio::sync::watch;

use crate::logic::map::SharedMap;

/// The newest map that this node has heard of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MapCell {
    newest: Arc<watch::Sender<Option<SharedMap>>>,
}

impl Default for MapCell {
    fn default() -> Self {
        Self { newest: Arc::new(watch::Sender::new(None)) }
    }
}

impl MapCell {
    /// One that knows no map yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The map, once there is one.
    pub fn current(&self) -> Option<SharedMap> {
        self.newest.borrow().clone()
    }

    /// The map's version; 0 while there is none.
    pub fn version(&self) -> u64 {
        self.newest.borrow().as_ref().map_or(0, |map| map.version)
    }

    /// Takes a confirmed map if it is newer; says whether it was.
    pub fn offer(&self, map: SharedMap) -> bool {
        self.newest.send_if_modified(|newest| {
            let newer = newest.as_ref().is_none_or(|known| known.version < map.version);
            if newer {
                *newest = Some(map);
            }
            newer
        })
    }

    /// Tells of every change; intermediate versions may be skipped.
    pub fn subscribe(&self) -> watch::Receiver<Option<SharedMap>> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{Member, NodeId},
        logic::map::ClusterMap,
    };

    #[test]
    fn only_newer_maps_are_taken() {
        let cell = MapCell::new();
        let first = ClusterMap::first(&Member { node: NodeId::parse("n1").unwrap(), generation: 1 }, 4);
        let version = |version| Arc::new(ClusterMap { version, ..first.clone() });
        for (offered, taken, known) in [(2, true, 2), (2, false, 2), (1, false, 2), (5, true, 5)] {
            assert_eq!((cell.offer(version(offered)), cell.version()), (taken, known));
        }
        assert_eq!(cell.current(), Some(version(5)));
    }
}
