//! Roost: client sessions for a whole cluster, without a broker. `node/ARCHITECTURE.md` says how it hangs together.

pub mod certs;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
#[cfg(any(test, fuzzing))]
pub mod decoders;
pub mod deliveries;
pub mod dev;
pub mod gateway;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod open_files;
pub mod peer;
pub mod permit;
mod private_file;
pub mod router;
mod seldom;
pub mod slots;
pub mod store;
pub mod tasks;
pub mod token;
pub mod watchdog;
pub mod wire;

pub use roost_logic::{self as logic, id};
