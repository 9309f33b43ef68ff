//! Proofs that need no cluster: the history checker, which every test ends in, and the simulation, which drives the cores
//! of `roost-logic` through seeded faults. Nothing here knows the product's shells, so that a change of a core is tested
//! within seconds.

pub mod explore;
pub mod history;
pub mod sim;
