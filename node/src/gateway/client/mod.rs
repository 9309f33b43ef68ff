//! One client over WebSocket: its stream, its session, what it asks for and what is due to it.

pub mod attachments;
pub mod connections;
mod hello;
mod jobs;
mod lanes;
pub mod outbox;
pub mod replays;
pub mod socket;
mod stream;
