//! What gossip begins with.

use std::{net::SocketAddr, time::Duration};

use super::claims::OwnState;
use crate::{config::Config, logic::liveness::LivenessSettings};

/// See [`LivenessSettings::quiet_ms`]; well below `timing.replica_timeout_ms`.
const QUIET_MIN_MS: u64 = 600;

/// What gossip needs to begin.
#[derive(Clone, Debug)]
pub struct GossipSettings {
    /// The cluster's name.
    pub cluster: String,
    /// Where the others reach this node's mesh.
    pub advertise: SocketAddr,
    /// Peers to start from: `host:port`, resolved again and again.
    pub seeds: Vec<String>,
    /// Between gossip rounds.
    pub interval: Duration,
    /// How it is judged who is alive.
    pub liveness: LivenessSettings,
    /// For the group membership of this node, in all.
    pub groups_max_bytes: usize,
    /// What this node says of itself at first.
    pub own: OwnState,
}

impl GossipSettings {
    /// From the configuration, with the address that `node.peer_advertise` came to.
    pub fn new(config: &Config, advertise: SocketAddr, own: OwnState) -> Self {
        Self {
            cluster: config.cluster.name.clone(),
            advertise,
            seeds: config.cluster.seeds.clone(),
            interval: Duration::from_millis(config.timing.gossip_interval_ms.max(10)),
            liveness: LivenessSettings {
                look_ms: config.timing.steward_interval_ms.max(10),
                quiet_ms: (config.timing.keep_alive_ms * 2).max(QUIET_MIN_MS),
            },
            groups_max_bytes: config.limits.gossip_groups_bytes,
            own,
        }
    }
}
