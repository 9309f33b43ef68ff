//! As much of Cassandra's native protocol (version 4) as it takes to know a conditional write from other requests.

use std::{
    collections::BTreeMap,
    io::{Error, ErrorKind, Result},
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Version, flags, stream (two bytes), what it is, length of the body (four).
const HEADER: usize = 9;
/// The protocol's own bound.
const BODY_MAX: usize = 256 << 20;

const QUERY: u8 = 0x07;
const RESULT: u8 = 0x08;
const PREPARE: u8 = 0x09;
const EXECUTE: u8 = 0x0A;
const RESULT_PREPARED: u32 = 4;

const COMPRESSED: u8 = 0x01;
const TRACED: u8 = 0x02;
const PAYLOAD: u8 = 0x04;
const WARNED: u8 = 0x08;

/// Prepared statements by their id: whether each is a conditional write. Ids are the same on all nodes.
pub(super) type Statements = BTreeMap<Vec<u8>, bool>;

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It is carried, and so is its answer.
    Answered,
    /// It is carried, its answer is not.
    AnswerLost,
    /// It is not carried.
    Lost,
}

/// What a connection has under way, by stream.
#[derive(Default)]
pub(super) struct Conversation {
    /// Being prepared; whether it is a conditional write.
    preparing: BTreeMap<u16, bool>,
    unanswered: Vec<u16>,
}

impl Conversation {
    /// Whether a request is one of those whose outcome can be unknown.
    pub(super) fn is_conditional(&self, frame: &[u8], statements: &Statements) -> bool {
        match what(frame) {
            EXECUTE => short_bytes(body(frame)).and_then(|(id, _)| statements.get(id)).copied().unwrap_or(false),
            QUERY => conditional(frame),
            _ => false,
        }
    }

    /// A request has come, and this is decided on it.
    pub(super) fn asked(&mut self, frame: &[u8], fate: Fate) {
        if what(frame) == PREPARE {
            self.preparing.insert(stream(frame), conditional(frame));
        }
        if fate == Fate::AnswerLost {
            self.unanswered.push(stream(frame));
        }
    }

    /// An answer has come; whether it gets lost.
    pub(super) fn answered(&mut self, frame: &[u8], statements: &mut Statements) -> bool {
        let stream = stream(frame);
        if let Some(conditional) = self.preparing.remove(&stream)
            && let Some(id) = prepared_id(frame)
        {
            statements.insert(id.to_vec(), conditional);
        }
        let waiting = self.unanswered.iter().position(|other| *other == stream);
        waiting.map(|at| self.unanswered.swap_remove(at)).is_some()
    }
}

/// A whole frame, header included.
pub(super) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut frame = vec![0; HEADER];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]) as usize;
    if length > BODY_MAX {
        return Err(Error::new(ErrorKind::InvalidData, "this is not version 4 of the native protocol"));
    }
    frame.resize(HEADER + length, 0);
    from.read_exact(&mut frame[HEADER..]).await?;
    Ok(frame)
}

fn what(frame: &[u8]) -> u8 {
    frame[4]
}

fn stream(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[2], frame[3]])
}

fn body(frame: &[u8]) -> &[u8] {
    &frame[HEADER..]
}

/// Of a request that begins with its text.
fn conditional(frame: &[u8]) -> bool {
    if frame[1] & COMPRESSED != 0 {
        return false;
    }
    let Some((length, rest)) = body(frame).split_first_chunk() else { return false };
    let text = rest.get(..u32::from_be_bytes(*length) as usize).unwrap_or_default();
    let text = String::from_utf8_lossy(text).to_ascii_uppercase();
    let mut words = text.split_whitespace();
    // Definitions (CREATE … IF NOT EXISTS) are no writes of a row.
    matches!(words.next(), Some("INSERT" | "UPDATE" | "DELETE")) && words.any(|word| word == "IF")
}

/// The id in an answer to a PREPARE.
fn prepared_id(frame: &[u8]) -> Option<&[u8]> {
    let (flags, mut rest) = (frame[1], body(frame));
    if what(frame) != RESULT || flags & (COMPRESSED | PAYLOAD) != 0 {
        return None;
    }
    if flags & TRACED != 0 {
        rest = rest.get(16..)?;
    }
    if flags & WARNED != 0 {
        let (count, mut warnings) = rest.split_first_chunk()?;
        for _ in 0..u16::from_be_bytes(*count) {
            (_, warnings) = short_bytes(warnings)?;
        }
        rest = warnings;
    }
    let (kind, rest) = rest.split_first_chunk()?;
    if u32::from_be_bytes(*kind) != RESULT_PREPARED {
        return None;
    }
    short_bytes(rest).map(|(id, _)| id)
}

/// Bytes after their length in two bytes, and what follows them.
fn short_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}
