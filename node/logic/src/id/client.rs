//! Which of a session's clients it is, and its place in a group's presence.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use xxhash_rust::xxh3::xxh3_64;

use super::{AttachmentNumber, SessionId};

/// A client's own id in its session: 1 to 64 visible ASCII characters, which no path of HTTP changes. One that Roost makes
/// is 16 hex digits, and takes no memory of its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(ClientText);

/// No `Named` is the text of a `Made`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum ClientText {
    Made(u64),
    Named(Arc<str>),
}

/// The longest id of a client, in characters, which are bytes.
pub const CLIENT_ID_MAX_BYTES: usize = 64;

/// The digits of an id that Roost makes.
const MADE_DIGITS: usize = 16;

impl ClientId {
    /// The id that Roost makes of a random number.
    pub fn made(random: u64) -> Self {
        Self(ClientText::Made(random))
    }

    /// Parses an id from outside, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > CLIENT_ID_MAX_BYTES {
            return Err(format!("a client's id has 1 to {CLIENT_ID_MAX_BYTES} characters, this has {}", text.len()));
        }
        if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(format!("a client's id has only visible ASCII characters, not {bad:?}"));
        }
        let is_made = text.len() == MADE_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(number) if is_made => Ok(Self::made(number)),
            Ok(_) | Err(_) => Ok(Self(ClientText::Named(text.into()))),
        }
    }

    /// What stands for it where its text is not needed.
    pub fn key(&self) -> ClientKey {
        match &self.0 {
            ClientText::Made(number) => ClientKey(xxh3_64(&hex(*number))),
            ClientText::Named(text) => ClientKey(xxh3_64(text.as_bytes())),
        }
    }
}

/// The digits of a number, lower case.
fn hex(number: u64) -> [u8; MADE_DIGITS] {
    let mut digits = [0; MADE_DIGITS];
    for (nth, digit) in digits.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * nth)) as usize & 15];
    }
    digits
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ClientText::Made(number) => write!(f, "{number:0MADE_DIGITS$x}"),
            ClientText::Named(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ClientId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            ClientText::Made(_) => serializer.collect_str(self),
            ClientText::Named(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for ClientId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A client's id in short: a hash of it. Two ids of one session with one hash are one client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub struct ClientKey(pub u64);

impl ClientKey {
    /// Before all others, and after.
    pub(crate) const MIN: Self = Self(0);
    pub(crate) const MAX: Self = Self(u64::MAX);
}

/// A client's place in a group's presence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seat {
    pub session: SessionId,
    pub client: ClientKey,
    /// The attachment by which the client has it. A later one keeps it when this one gives it up.
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
}

#[cfg(test)]
mod tests {
    use serde::de::{
        IntoDeserializer,
        value::{self, StrDeserializer},
    };

    use super::*;

    #[test]
    fn an_id_is_one_to_64_visible_characters() {
        for good in ["a", "0", "!~", "tab-1", &"x".repeat(64)] {
            assert_eq!(ClientId::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", " ", "a b", "\u{e9}", "a\n", "\u{7f}", &"x".repeat(65)] {
            assert!(ClientId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_that_was_made_is_the_same_when_it_comes_back_as_text() {
        let made = ClientId::made(0x0123_4567_89ab_cdef);
        assert_eq!(made.to_string(), "0123456789abcdef");
        assert_eq!(ClientId::parse("0123456789abcdef").unwrap(), made);
        assert_eq!(made.key(), ClientKey(xxh3_64(b"0123456789abcdef")), "which is that of its text");
        assert_eq!(ClientId::made(7).to_string(), "0000000000000007", "its zeros are of its text");
        for other in ["0123456789ABCDEF", "+123456789abcdef", "123456789abcdef"] {
            let other = ClientId::parse(other).unwrap();
            assert_ne!(other, made, "another text is another client");
            assert_ne!(other.key(), made.key());
        }
    }

    #[test]
    fn one_from_a_peer_is_looked_at_as_one_from_a_client() {
        let read = |text: &str| {
            let text: StrDeserializer<'_, value::Error> = text.into_deserializer();
            ClientId::deserialize(text).map_err(|error| error.to_string())
        };
        assert_eq!(read("tab-1").unwrap(), ClientId::parse("tab-1").unwrap());
        assert!(read("a b").unwrap_err().contains("visible"));
        assert!(read("").is_err());
    }

    #[test]
    fn it_takes_no_more_than_a_text_does() {
        assert_eq!(size_of::<ClientId>(), size_of::<Arc<str>>());
    }
}
