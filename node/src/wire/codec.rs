//! How a connection is told things. What many are told is encoded once for each codec that they have, and shared by them.

use super::{command::Event, events, frame::Frame, plain};
use crate::id::Position;

/// The form of the frames of one connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Codec {
    /// The plain JSON protocol, in WebSocket frames.
    #[default]
    Plain,
    /// Server-sent events of one group, with their ids.
    Events,
    /// Server-sent events of several groups. Their ids tell of all groups of one reader, and stand before the frames.
    EventsOfMany,
}

impl Codec {
    /// How many there are: `codec as usize` is below it.
    pub const COUNT: usize = 3;

    /// One frame.
    pub fn encode(self, event: &Event) -> Frame {
        self.encode_at(event, event.moves_to())
    }

    /// The same, where the event leaves who follows its group at another position than it says by itself.
    pub fn encode_at(self, event: &Event, at: Option<Position>) -> Frame {
        match self {
            Self::Plain => plain::encode(event),
            Self::Events => events::encode(event, at),
            Self::EventsOfMany => events::encode(event, None),
        }
    }

    /// What a connection is sent that was silent.
    pub const fn sign_of_life(self) -> Frame {
        match self {
            Self::Plain => Frame::ping(),
            Self::Events | Self::EventsOfMany => Frame::comment(),
        }
    }

    /// Whether the other end answers a [sign of life](Self::sign_of_life).
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::Plain)
    }
}
