//! The cluster as one node sees it: gossip, the steward, health.

pub mod view;
