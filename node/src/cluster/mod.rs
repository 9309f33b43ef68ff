//! The cluster as one node sees it: gossip, the steward, health.

pub mod health;
pub mod view;
