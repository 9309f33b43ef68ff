//! A node in its role towards the clients connected to it.

pub mod attachments;
pub mod hub;
pub mod outbox;
