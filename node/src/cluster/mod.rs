//! The cluster as one node sees it: gossip, the steward, health.

pub mod evidence;
pub mod maps;
pub mod steward;
pub mod view;
