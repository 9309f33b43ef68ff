//! Frames of the plain protocol as the test client reads them.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use roost::id::{Epoch, Position};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

/// Payloads up to this are logged whole.
const LOGGED_WHOLE_BYTES: usize = 128;

/// Any frame; each type uses some of the fields.
#[derive(Deserialize)]
pub(crate) struct Frame {
    #[serde(rename = "type")]
    pub(crate) kind: Box<str>,
    pub(crate) id: Option<u64>,
    pub(crate) group: Option<Box<str>>,
    pub(crate) epoch: Option<Box<str>>,
    pub(crate) offset: Option<u64>,
    pub(crate) recovered: Option<bool>,
    pub(crate) data: Option<Box<RawValue>>,
    /// A number in a gap, an object in a message.
    pub(crate) from: Option<Value>,
    pub(crate) to: Option<u64>,
    pub(crate) copies: Option<u8>,
    pub(crate) code: Option<Box<str>>,
    pub(crate) retry_after_ms: Option<u64>,
    pub(crate) reconnect: Option<bool>,
    pub(crate) after_ms: Option<u64>,
    /// It is a message that has no place.
    #[serde(default)]
    pub(crate) ephemeral: bool,
}

impl Frame {
    /// The position that it names.
    pub(crate) fn position(&self) -> Option<Position> {
        Some(Position { epoch: Epoch::parse(self.epoch.as_deref()?).ok()?, offset: self.offset? })
    }
}

/// The position that an answer names.
pub(crate) fn position_of(answer: &Value) -> Option<Position> {
    Some(Position { epoch: Epoch::parse(answer["epoch"].as_str()?).ok()?, offset: answer["offset"].as_u64()? })
}

/// A payload as it is logged: large ones by their begin, length and hash, so that the logs of many clients fit into the
/// memory.
pub(crate) fn logged(data: &str) -> Arc<str> {
    if data.len() <= LOGGED_WHOLE_BYTES {
        return data.into();
    }
    let begin = &data[..data.floor_char_boundary(LOGGED_WHOLE_BYTES)];
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    format!("{begin}… of {} bytes, {:016x}", data.len(), hasher.finish()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_payloads_are_logged_short_and_stay_distinct() {
        let (one, other) = (format!("{:0>5000}", 1), format!("{:0>5000}", 2));
        assert!(logged(&one).len() < 200 && logged(&one) != logged(&other));
        assert_eq!(logged(&one), logged(&one.clone()));
        assert_eq!(&*logged("short"), "short");
    }

    fn check(text: &str, kind: &str, position: Option<(u64, u64)>) {
        let frame: Frame = serde_json::from_str(text).expect(text);
        assert_eq!(&*frame.kind, kind, "{text}");
        let position = position.map(|(epoch, offset)| Position { epoch: Epoch(epoch), offset });
        assert_eq!(frame.position(), position, "{text}");
    }

    #[test]
    fn reads_what_nodes_send() {
        check(r#"{"type":"heartbeat"}"#, "heartbeat", None);
        check(
            r#"{"type":"message","group":"g","epoch":"00000000000000ff","offset":7,"data":"x","from":{"session":"s"},"at_ms":1}"#,
            "message",
            Some((255, 7)),
        );
        check(
            r#"{"type":"gap","group":"g","epoch":"0000000000000001","from":1,"to":3,"reason":"trimmed"}"#,
            "gap",
            None,
        );
        check(r#"{"type":"error","id":3,"code":"busy","message":"m","detail":[]}"#, "error", None);
    }
}
