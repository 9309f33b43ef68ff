//! Bytes ↔ types, with limits; no behaviour.

pub mod codec;
pub mod command;
pub mod deflate;
pub mod events;
pub mod frame;
pub mod peer;
pub mod plain;
pub mod reason;
