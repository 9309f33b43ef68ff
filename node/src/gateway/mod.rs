//! A node in its role towards the clients connected to it.

pub mod error;
pub mod extract;
pub mod http;
pub mod outbox;
