//! How a connection is told things. What many are told is encoded once for each codec that they have, and shared by them.

use super::{
    command::Event,
    deflate::{self, LEAST_BYTES},
    events,
    frame::{Frame, HEADER_ROOM},
    plain,
};
use crate::id::Position;

/// The form of the frames of one connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Codec {
    /// The plain JSON protocol, in WebSocket frames.
    #[default]
    Plain,
    /// The same, with what a group publishes compressed where the group's namespace has that.
    Deflated,
    /// Server-sent events of one group, with their ids.
    Events,
    /// Server-sent events of several groups. Their ids tell of all groups of one reader, and stand before the frames.
    EventsOfMany,
}

impl Codec {
    /// How many there are: `codec as usize` is below it.
    pub const COUNT: usize = 4;

    /// One frame.
    pub fn encode(self, event: &Event) -> Frame {
        self.encode_at(event, event.moves_to())
    }

    /// The same, where the event leaves who follows its group at another position than it says by itself.
    pub fn encode_at(self, event: &Event, at: Option<Position>) -> Frame {
        match self {
            Self::Plain => plain::encode(event),
            Self::Deflated => deflated(event),
            Self::Events => events::encode(event, at),
            Self::EventsOfMany => events::encode(event, None),
        }
    }

    /// What a connection is sent that was silent.
    pub const fn sign_of_life(self) -> Frame {
        match self {
            Self::Plain | Self::Deflated => Frame::ping(),
            Self::Events | Self::EventsOfMany => Frame::comment(),
        }
    }

    /// Whether the other end answers a [sign of life](Self::sign_of_life).
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::Plain | Self::Deflated)
    }

    /// What a connection of this codec is told of a group, where the group's messages may be compressed or not.
    #[must_use]
    pub const fn of_group(self, compresses: bool) -> Self {
        match self {
            Self::Deflated if !compresses => Self::Plain,
            codec => codec,
        }
    }
}

/// What is published is made once for many; what one client alone is told is not worth it.
fn deflated(event: &Event) -> Frame {
    let frame = plain::encode(event);
    if let Event::Message { .. } | Event::Ephemeral { .. } = event
        && frame.payload().len() >= LEAST_BYTES
    {
        let mut room = vec![0; HEADER_ROOM];
        if deflate::deflate(frame.payload(), &mut room) {
            // It waits in outboxes, which count what it is long.
            room.shrink_to_fit();
            return Frame::of_deflated(room);
        }
    }
    frame
}
