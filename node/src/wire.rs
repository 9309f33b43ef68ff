//! Bytes ↔ types, with limits; no behaviour.

pub mod command;
pub mod frame;
pub mod peer;
pub mod plain;
pub mod reason;
