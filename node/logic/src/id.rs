//! The names of things. Plain values that print, compare and travel; no behaviour beyond making one from outside text.

mod client;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

pub use self::client::{CLIENT_ID_MAX_BYTES, ClientId, ClientKey, Seat};

/// The highest offset, index, term, version, generation, attachment number and time: the highest number that every reader of
/// JSON holds exactly. None gets near it, and one above it is not read from a peer, a client or the store, so that whoever
/// adds to one need not think of its end.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Reads a number that is at most [`NUMBER_MAX`]; for `#[serde(deserialize_with)]`.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    bounded(u64::deserialize(deserializer)?)
}

/// The same for each number in a map.
pub fn numbers<'de, K, D>(deserializer: D) -> Result<BTreeMap<K, u64>, D::Error>
where
    K: Deserialize<'de> + Ord,
    D: Deserializer<'de>,
{
    let numbers = BTreeMap::deserialize(deserializer)?;
    numbers.values().try_for_each(|number| bounded(*number).map(|_| ()))?;
    Ok(numbers)
}

fn bounded<E: Error>(number: u64) -> Result<u64, E> {
    match number {
        0..=NUMBER_MAX => Ok(number),
        _ => Err(E::custom(format_args!("no number of this kind is above {NUMBER_MAX}, this is {number}"))),
    }
}

/// The longest name of a node, in bytes.
pub const NODE_NAME_MAX_BYTES: usize = 64;

/// A node's configured name. At most 64 bytes of `a-z A-Z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Parses a node name, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > NODE_NAME_MAX_BYTES {
            return Err("a node name has 1 to 64 characters".to_owned());
        }
        match text.chars().find(|c| !(c.is_ascii_alphanumeric() || ".-_".contains(*c))) {
            Some(bad) => Err(format!("a node name has only letters, digits, '.', '_' and '-', not {bad:?}")),
            None => Ok(Self(text.into())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Grows at every start of a node; allotted by the store.
pub type Generation = u64;

/// One process: a restarted node is another member, which holds nothing (rule 6).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub node: NodeId,
    /// Which start of it.
    #[serde(deserialize_with = "crate::id::number")]
    pub generation: Generation,
}

impl Member {
    /// Whether one of these is a later start of its node.
    pub fn has_restarted<'m>(&self, mut others: impl Iterator<Item = &'m Self>) -> bool {
        others.any(|other| other.node == self.node && other.generation > self.generation)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.generation)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A partition of groups and sessions, `0..slots`.
pub type SlotId = u16;

/// A slot's fencing number: grows whenever its primary changes.
pub type Term = u64;

/// A position in a slot's log of entries, from 1. Never seen by clients.
pub type Index = u64;

/// The slot that a name (a group's, or a session id's text) hashes to.
pub fn slot_of(name: &str, slots: u16) -> SlotId {
    // The remainder is below `slots`, so it fits.
    (xxh3_64(name.as_bytes()) % u64::from(slots.max(1))) as SlotId
}

/// Whether a reader does not see this character, or sees the others in another order for it: a name that has it can pass for
/// another name. Control characters, those of zero width, and those that set the direction of writing.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// A group's name: 1 to 200 bytes of UTF-8 without [hidden](is_hidden) characters, and neither `.` nor `..`, which no path of
/// HTTP can name. The part before the first `:` is its namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupName(Arc<str>);

/// The longest group name, in bytes.
pub const GROUP_NAME_MAX_BYTES: usize = 200;

impl GroupName {
    /// Parses a group name from outside, or says what is wrong with it. Reserved (`@`) names parse: who may use them
    /// is the gateway's to say (see [`GroupName::is_private`]).
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a group name is not empty".to_owned());
        }
        if text.len() > GROUP_NAME_MAX_BYTES {
            return Err(format!("a group name has at most {GROUP_NAME_MAX_BYTES} bytes, this has {}", text.len()));
        }
        if let Some(bad) = text.chars().find(|c| is_hidden(*c)) {
            return Err(format!(
                "a group name has no control characters and no others that are not seen, this has {bad:?}"
            ));
        }
        if matches!(text, "." | "..") {
            return Err(format!("a group is not named {text:?}: no URL could name it"));
        }
        if text.starts_with(['\u{ff20}', '\u{fe6b}']) {
            return Err("a group name does not begin with what looks like '@' and is not".to_owned());
        }
        Ok(Self(text.into()))
    }

    /// The private group of a session: `@session:<uuid>`.
    pub fn of_session(session: SessionId) -> Self {
        Self(format!("@session:{session}").into())
    }

    /// The private group of a user: `@user:<user>`.
    pub fn of_user(user: &str) -> Self {
        Self(format!("@user:{user}").into())
    }

    /// Whether the name is one of those that Roost makes itself (`@…`): clients neither join nor publish to these.
    pub fn is_private(&self) -> bool {
        self.0.starts_with('@')
    }

    /// The part before the first `:`, or nothing where there is none.
    pub fn namespace(&self) -> &str {
        self.0.split_once(':').map_or("", |(namespace, _)| namespace)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The slot that the group lives in.
    pub fn slot(&self, slots: u16) -> SlotId {
        slot_of(&self.0, slots)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// A session's id: a UUIDv4, or a UUIDv8 where the session is ephemeral, which is never stored: so whoever has a token to look
/// up knows without asking whether the store can have its session. One bit of the latter says that it was made of a token of a
/// backend's, which is to be refreshed: every node knows by it what the end of the session means. Clients hold it signed, as a token
/// (`token.rs`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub Uuid);

/// The byte and the bit: beside the version, in a part of the id that is random else.
const MADE_OF_TOKEN: (usize, u8) = (6, 1);

impl SessionId {
    /// That of a new ephemeral session, of the random bits of this id.
    pub fn ephemeral(random: Uuid) -> Self {
        let mut bytes = random.into_bytes();
        bytes[MADE_OF_TOKEN.0] &= !MADE_OF_TOKEN.1;
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The same of one that is made of a backend's token.
    pub fn made_of_token(random: Uuid) -> Self {
        let mut bytes = random.into_bytes();
        bytes[MADE_OF_TOKEN.0] |= MADE_OF_TOKEN.1;
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// Whether it was made of a backend's token, and lasts as long as that says.
    pub fn is_made_of_token(self) -> bool {
        self.is_ephemeral() && self.0.as_bytes()[MADE_OF_TOKEN.0] & MADE_OF_TOKEN.1 != 0
    }

    /// Whether the session is only in the memory of those that hold its slot.
    pub fn is_ephemeral(self) -> bool {
        self.0.get_version() == Some(uuid::Version::Custom)
    }

    /// The slot that the session lives in.
    pub fn slot(self, slots: u16) -> SlotId {
        let mut buffer = Uuid::encode_buffer();
        slot_of(self.0.hyphenated().encode_lower(&mut buffer), slots)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The random id of one unbroken log of a group; 16 hex digits outside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Reads the 16 hex digits that [`Epoch`]'s `Display` writes.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("an epoch is the 16 hex digits that an earlier answer gave".to_owned());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A place in a group's log: after the message with this offset (0: before the first).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    /// The offset of the last message seen.
    #[serde(deserialize_with = "crate::id::number")]
    pub offset: u64,
}

/// Counts the attachments of a session's clients: of one client, a higher one displaces a lower one.
pub type AttachmentNumber = u64;

/// What makes repeats of one publish the same publish: a hash of the publisher and its key, or random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub struct PublishKey(pub u128);
