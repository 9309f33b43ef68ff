//! The simulation: three to seven nodes of the real cores in one thread and in virtual time, with a model of the world
//! around them that loses, delays, crashes, pauses, cuts off, lies about who is alive, and forgets to say what it has
//! done. Everything follows from one number, so that a failure can be looked at again.
//!
//! The reading order: [`run`], `world` (the queue of events), `node` (a process around the cores), `network`, `store`,
//! `steward`, `gateway`, `sessions` and `clients`, `faults`, and at last `checks` and `rest`: what must hold.

mod asks;
mod checks;
mod clients;
mod faults;
mod gateway;
mod network;
mod node;
mod random;
mod rest;
mod sessions;
mod settings;
mod steward;
mod store;
mod world;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

pub use world::Outcome;

/// How one seed goes. With `trace`, every event in words.
pub fn run(seed: u64, trace: bool) -> Outcome {
    let outcome = catch_unwind(AssertUnwindSafe(|| world::World::new(seed, trace).run()));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome {
            trace_hash: 0,
            counts: BTreeMap::new(),
            events: 0,
            violation: Some(format!("panic: {}", text.unwrap_or_default())),
            trace: None,
        }
    })
}
