//! Tests of whole clusters: what starts them, clients that log what they see, and the checker that proves the promises
//! from those logs.
//!
//! Read [`history`] first: it is what every test ends in. [`client`] makes the logs, [`cluster`] runs nodes in this
//! process and [`process`] runs the real program.

pub mod api;
pub mod client;
pub mod cluster;
pub mod history;
pub mod load;
pub mod ports;
pub mod process;
pub mod sim;
pub mod socket;
pub mod wait;
