//! The simulation: three to seven nodes of the real cores in one thread and in virtual time, with a model of the world
//! around them that loses, delays, crashes, pauses, cuts off, lies about who is alive, and forgets to say what it has
//! done. Everything follows from one number, so that a failure can be looked at again.
//!
//! The reading order: [`run`], `world` (the queue of events), `node` (a process around the cores), `network`, `store`,
//! `liveness`, `memory`, `steward`, `gateway`, `sessions`, `joins` and `clients`, `faults`, and at last `checks`, `heard` and `rest`: what must
//! hold. `schedule` and `shrink` cut a failing run down to what it needs.

mod asks;
mod checks;
mod clients;
mod coverage;
mod ephemeral;
mod faults;
mod gateway;
mod heard;
mod hints;
mod joins;
mod liveness;
mod memory;
mod mouths;
mod network;
mod node;
mod random;
mod rest;
mod schedule;
mod seen;
mod sessions;
mod settings;
mod shrink;
mod steward;
mod store;
mod world;

pub use coverage::COVERAGE;
pub use faults::Fired;
pub use schedule::Schedule;
pub use shrink::{Shrunk, shrink};
pub use world::Outcome;

/// How one seed goes. With `trace`, every event in words.
pub fn run(seed: u64, trace: bool) -> Outcome {
    Schedule::of(seed).run(trace)
}
