//! A greedy client: it publishes long messages, each to a group that is not there yet, as fast as the node answers.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::socket::{Received, Socket};

/// Of each message.
pub const MESSAGE_BYTES: u64 = 60_000;
/// Publishes without an answer at once.
const UNDER_WAY: usize = 32;

/// What became of what it has sent.
#[derive(Debug, Default)]
pub struct Greed {
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Greed {
    /// How many messages were taken.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How many were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The bytes of what was taken.
    pub fn taken_bytes(&self) -> u64 {
        self.taken() * MESSAGE_BYTES
    }

    /// Publishes to `open:1`, `open:2`, …, which need no join, until the connection ends.
    pub async fn publish(self: Arc<Self>, url: String) -> Result<()> {
        let mut socket = Socket::connect(&url).await?;
        socket.send(&json!({"type": "hello"})).await?;
        socket.frame_of("welcome").await?;
        let data = "x".repeat(MESSAGE_BYTES as usize);
        let (mut number, mut under_way) = (0_u64, 0);
        loop {
            while under_way < UNDER_WAY {
                (number, under_way) = (number + 1, under_way + 1);
                let publish = format!(r#"{{"type":"publish","id":{number},"group":"open:{number}","data":"{data}"}}"#);
                socket.feed(publish).await?;
            }
            socket.flush().await?;
            let Received::Text(text) = socket.next().await else { return Ok(()) };
            let answer: Value = serde_json::from_str(&text)?;
            let count = match answer["type"].as_str() {
                Some("published") => &self.taken,
                Some("error") => &self.refused,
                _ => continue,
            };
            count.fetch_add(1, Ordering::Relaxed);
            under_way -= 1;
        }
    }
}
