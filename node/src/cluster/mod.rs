//! The cluster as one node sees it: gossip, the steward, health.

mod claims;
pub mod gossip;
mod guard;
pub mod health;
pub mod membership;
mod observer;
mod seeds;
#[cfg(test)]
mod tests;
pub mod evidence;
pub mod maps;
pub mod steward;
pub mod view;
