//! How a server is talked to: text frames over a WebSocket. A dialect turns what is meant into frames and back, and keeps
//! nothing.

use std::fmt;

/// Where a client stands in a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Which life of the group the offset is of.
    pub epoch: String,
    /// The last message that the client has.
    pub offset: u64,
}

/// What a client that was cut off comes back with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Return {
    /// The group that it was in.
    pub group: String,
    /// What it is known by, where the server gave it something.
    pub token: Option<String>,
    /// From where on it misses messages.
    pub since: Position,
}

/// What a frame says.
#[derive(PartialEq, Eq, Debug)]
pub enum Heard<'a> {
    /// The server wants this frame back at once.
    Say(String),
    /// The client is let in; the groups it is in already, which the server tells of by itself.
    Welcome {
        /// What it is known by.
        token: Option<String>,
        /// Groups that it need not join.
        groups: Vec<String>,
    },
    /// The client is in the group.
    Joined {
        /// Which one, where the server says it; else nothing. A server may have more groups for a client than it asked for.
        group: &'a str,
        /// Where it stands from now on.
        position: Position,
        /// Whether everything since the asked position is there, or follows.
        recovered: bool,
    },
    /// A message of the group.
    Message {
        /// The JSON that was published.
        data: &'a str,
        /// Its place in the group, where the server says one; else 0.
        offset: u64,
    },
    /// A publish was taken.
    Answered(u64),
    /// A publish (with this number), or whatever was asked last, was not.
    Refused {
        /// The publish.
        id: Option<u64>,
        /// The server's words.
        why: String,
    },
    /// Messages are lost, as the server itself says.
    Hole(String),
}

/// The frames of one kind of server.
pub trait Dialect: fmt::Debug + Send + Sync + 'static {
    /// What people call the server.
    fn name(&self) -> &'static str;

    /// The path of the WebSocket below the server's URL.
    fn path(&self) -> &'static str;

    /// The first frame of a client, where it speaks first.
    fn hello(&self, back: Option<&Return>) -> Option<String>;

    /// Whether the server says a welcome, before which a client does not join.
    fn greets(&self) -> bool {
        true
    }

    /// Asks for membership in a group, and for what came after `since`.
    fn join(&self, group: &str, since: Option<&Position>) -> String;

    /// Publishes JSON to a group; the answer is to name `id`.
    fn publish(&self, id: u64, group: &str, data: &str) -> String;

    /// What a silent client says every 20 s, where the server needs it.
    fn heartbeat(&self) -> Option<String>;

    /// Whether a client can come back and get what it missed.
    fn resumes(&self) -> bool;

    /// Reads what came: tells all that one text of the server says, in order.
    ///
    /// # Errors
    /// Where it is nothing of this dialect.
    fn read(&self, text: &str, heard: &mut dyn FnMut(Heard<'_>)) -> anyhow::Result<()>;
}
