//! Tests of whole clusters: what starts them, clients that log what they see, and the checker that proves the promises
//! from those logs.
//!
//! Read [`history`] first: it is what every test ends in. [`client`] makes the logs, [`cluster`] runs nodes: in this
//! process, in one [`process`] or as [`servers`] over a [`cassandra`].

pub mod api;
pub mod cassandra;
pub mod churn;
pub mod client;
pub mod cluster;
pub mod datagrams;
pub mod faults;
pub mod gauges;
pub mod greed;
pub mod jwt;
pub mod latency;
pub mod ledger;
pub mod load;
pub mod lone;
pub mod nat;
pub mod network;
pub mod ports;
pub mod process;
pub mod reader;
pub mod relay;
pub mod scenarios;
pub mod servers;
pub mod socket;
pub mod store_faults;
pub mod storm;
pub mod turn;
pub mod wait;

pub use roost_simulation::history;

/// What every store must do, from the node's own sources: its unit tests hold the embedded store to it, and the released
/// library is without it.
#[path = "../../node/src/store/contract.rs"]
pub mod contract;

// What the contract calls `crate::…`.
use roost::{clock, id, logic, store, tasks};
