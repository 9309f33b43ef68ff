//! The cluster as one node sees it: gossip, the steward, health.

mod claims;
pub mod clocks;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
pub mod generations;
pub mod gossip;
mod gossip_settings;
mod guard;
pub mod health;
pub mod maps;
pub mod membership;
mod observer;
mod seeds;
mod spoken;
pub mod steward;
#[cfg(test)]
mod tests;
pub mod view;
