//! Faults of real processes on a real network, each under load, healed, and proved: `scripts/faults`.
//!
//! [`catalogue::ALL`] names them. Each sets a [`scene`] of its own: nodes as processes in namespaces over one Cassandra, with
//! publishers and subscribers on every node. The fault comes, stays and goes; then all must be green again, every publish
//! answered, every message delivered, and the history without a violation. What was seen meanwhile is a row of the [`table`].

pub mod catalogue;
mod connections;
mod demand;
mod freeze;
mod idlers;
mod judge;
mod liar;
mod links;
mod machine;
mod memory;
mod mix;
mod processes;
mod repeats;
mod rows;
pub mod scene;
mod store;
mod strangers;
pub mod table;
mod tabs;
mod vanished;
mod watch;
