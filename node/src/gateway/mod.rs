//! A node in its role towards the clients connected to it.

pub mod outbox;
