//! The door: who may come in and how fast, what it may do, and what it is told where it may not.

pub mod accepted;
pub mod access;
pub mod admission;
pub mod certificate;
pub mod forwarded;
pub mod listener;
pub mod origin;
pub mod places;
mod preface;
mod proxy_protocol;
pub mod rate;
pub mod reasons;
pub mod transport;
