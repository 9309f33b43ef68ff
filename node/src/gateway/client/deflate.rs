//! Compression of a WebSocket's messages, permessage-deflate (RFC 7692): what is agreed on, and what comes in. Nothing is kept
//! from one message to the next in either direction, so that a connection holds no window, and a message of a group is
//! compressed once for all who take it ([`crate::wire::deflate`]).
//!
//! The WebSocket library knows no extensions: it sees what comes in as if it had never been compressed.

use std::{
    collections::BTreeSet,
    io::{self, Cursor, ErrorKind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};

use crate::wire::deflate::{WINDOW_BITS, inflate};

/// What is read at once, on the stack.
const READ_BYTES: usize = 1_024;
/// The longest head of a frame (RFC 6455, 5.2).
const HEAD_BYTES: usize = 14;
const MASK_BYTES: usize = 4;
/// What is compressed counts against its client's rate once more for each of these bytes, before and after: a few bytes can
/// make the node inflate and read the largest frame.
const COUNTED_BYTES: usize = 4 << 10;

/// The answer to the first of the client's offers that this node can keep to. Without one the connection goes on uncompressed.
pub(super) fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).find_map(answer)
}

/// The answer to one offer, if it is one for compression that can be kept to (RFC 7692, 7.1).
fn answer(offer: &str) -> Option<HeaderValue> {
    let mut parts = offer.split(';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return None;
    }
    let mut answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover".to_owned();
    let mut seen = BTreeSet::new();
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        if !seen.insert(name) {
            return None;
        }
        match (name, value.map(window_bits)) {
            ("server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits", None)
            | ("client_max_window_bits", Some(Some(_))) => {}
            ("server_max_window_bits", Some(Some(most))) if most >= WINDOW_BITS => {
                answer.push_str(&format!("; server_max_window_bits={WINDOW_BITS}"));
            }
            _ => return None,
        }
    }
    HeaderValue::try_from(answer).ok()
}

/// 8 to 15, written without more.
fn window_bits(value: &str) -> Option<u8> {
    let bits: u8 = value.parse().ok().filter(|bits| (8..=15).contains(bits))?;
    (value == bits.to_string()).then_some(bits)
}

/// What is read under a WebSocket whose client may compress what it sends. Messages that are not compressed, and the frames of
/// control, pass as they are.
#[derive(Debug)]
pub(super) struct Inflated<S> {
    pub(super) stream: S,
    /// Nothing where no compression was agreed on.
    state: Option<Box<Inflating>>,
}

/// What has come in and is not read yet.
#[derive(Debug)]
struct Inflating {
    /// The most bytes that a message may have, compressed or not.
    limit: usize,
    /// As it came.
    raw: Bytes,
    /// The head of a frame, while it is not whole.
    head: Vec<u8>,
    place: Place,
    /// The compressed message that comes in.
    message: Option<Compressed>,
    /// What has been inflated counts for this much more, which nobody has counted yet.
    uncounted: u32,
    /// As the WebSocket library is to see it.
    ready: Bytes,
}

#[derive(Debug)]
struct Compressed {
    kind: OpCode,
    bytes: Vec<u8>,
}

/// Where in a frame the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Head,
    /// This number of bytes passes as it is.
    Passing(u64),
    /// This number of bytes of a compressed message's frame is missing.
    Taking {
        left: u64,
        taken: u64,
        mask: [u8; MASK_BYTES],
        is_final: bool,
    },
}

/// A WebSocket that its client does not keep to.
fn invalid(words: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, words)
}

fn too_large() -> io::Error {
    ErrorKind::FileTooLarge.into()
}

impl Inflating {
    fn new(limit: usize) -> Self {
        let (raw, head, ready) = (Bytes::new(), Vec::new(), Bytes::new());
        Self { limit, raw, head, place: Place::Head, message: None, uncounted: 0, ready }
    }

    /// Takes what came in, where all that came before is read.
    fn take(&mut self, bytes: &[u8]) {
        debug_assert!(!self.raw.has_remaining(), "what came before is read first");
        self.raw = Bytes::copy_from_slice(bytes);
    }

    /// Goes on with what came in until something can be read, at most one message. Nothing where more must come first.
    fn next(&mut self) -> io::Result<Option<&mut Bytes>> {
        while !self.ready.has_remaining() {
            if !self.raw.has_remaining() {
                // What is at rest holds nothing.
                self.raw = Bytes::new();
                return Ok(None);
            }
            self.step()?;
        }
        Ok(Some(&mut self.ready))
    }

    fn step(&mut self) -> io::Result<()> {
        match self.place {
            Place::Head => {
                self.head.push(self.raw.get_u8());
                if head_length(&self.head).is_some_and(|length| self.head.len() == length) {
                    let head = std::mem::take(&mut self.head);
                    self.begin(&head)?;
                }
            }
            Place::Passing(left) => {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.raw.len());
                self.ready = self.raw.split_to(now);
                let left = left - now as u64;
                self.place = if left == 0 { Place::Head } else { Place::Passing(left) };
            }
            Place::Taking { left, taken, mask, is_final } => {
                let message = self.message.as_mut().expect("it was begun with its frame");
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.raw.len());
                let bytes = self.raw.split_to(now);
                let masks = mask.iter().cycle().skip((taken % MASK_BYTES as u64) as usize);
                message.bytes.extend(bytes.iter().zip(masks).map(|(byte, mask)| byte ^ mask));
                let (left, taken) = (left - now as u64, taken + now as u64);
                self.place = Place::Taking { left, taken, mask, is_final };
                if left == 0 {
                    self.end(is_final)?;
                }
            }
        }
        Ok(())
    }

    /// A frame begins.
    fn begin(&mut self, head: &[u8]) -> io::Result<()> {
        let parsed = FrameHeader::parse(&mut Cursor::new(head)).map_err(|_| invalid("the head of a frame is wrong"))?;
        let Some((frame, length)) = parsed else { return Err(invalid("the head of a frame is not whole")) };
        let is_data = matches!(frame.opcode, OpCode::Data(_));
        let is_new = matches!(frame.opcode, OpCode::Data(Data::Text | Data::Binary));
        match &self.message {
            None if frame.rsv1 && is_new => self.message = Some(Compressed { kind: frame.opcode, bytes: Vec::new() }),
            Some(_) if is_data && (frame.rsv1 || is_new) => {
                return Err(invalid("a message began before a compressed one has ended"));
            }
            Some(_) if is_data => {}
            _ => {
                self.ready = Bytes::copy_from_slice(head);
                self.place = if length == 0 { Place::Head } else { Place::Passing(length) };
                return Ok(());
            }
        }
        let Some(mask) = frame.mask.filter(|_| !frame.rsv2 && !frame.rsv3) else {
            return Err(invalid("a compressed frame has no mask, or means what was not agreed on"));
        };
        let so_far = self.message.as_ref().map_or(0, |message| message.bytes.len() as u64);
        if so_far.saturating_add(length) > self.limit as u64 {
            return Err(too_large());
        }
        self.place = Place::Taking { left: length, taken: 0, mask, is_final: frame.is_final };
        if length == 0 { self.end(frame.is_final) } else { Ok(()) }
    }

    /// A frame of a compressed message has ended.
    fn end(&mut self, is_final: bool) -> io::Result<()> {
        self.place = Place::Head;
        let Some(message) = self.message.take_if(|_| is_final) else { return Ok(()) };
        let bytes = inflate(&message.bytes, self.limit)
            .map_err(|_| invalid("a message is not compressed as agreed on"))?
            .ok_or_else(too_large)?;
        let more = u32::try_from((message.bytes.len() + bytes.len()) / COUNTED_BYTES).unwrap_or(u32::MAX);
        self.uncounted = self.uncounted.saturating_add(more);
        // As a client sends it, with a mask that changes nothing.
        let header = FrameHeader { opcode: message.kind, mask: Some([0; MASK_BYTES]), ..FrameHeader::default() };
        let mut frame = Vec::with_capacity(HEAD_BYTES + bytes.len());
        header.format(bytes.len() as u64, &mut frame).map_err(|_| invalid("a head cannot be written"))?;
        frame.extend(bytes);
        self.ready = frame.into();
        Ok(())
    }
}

/// How long a head is that begins like this, if that can be told yet.
fn head_length(head: &[u8]) -> Option<usize> {
    let second = head.get(1)?;
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    Some(2 + length + if second & 0x80 == 0 { 0 } else { MASK_BYTES })
}

impl<S> Inflated<S> {
    /// Messages have at most this number of bytes, where compression was agreed on.
    pub(super) fn new(stream: S, limit: Option<usize>) -> Self {
        Self { stream, state: limit.map(|limit| Box::new(Inflating::new(limit))) }
    }

    /// By how much more than its messages what was inflated counts, since this was last asked.
    pub(super) fn take(&mut self) -> u32 {
        self.state.as_mut().map_or(0, |state| std::mem::take(&mut state.uncounted))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Inflated<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, state } = &mut *self;
        let Some(state) = state else { return Pin::new(stream).poll_read(cx, buf) };
        loop {
            if let Some(ready) = state.next()? {
                let now = ready.len().min(buf.remaining());
                buf.put_slice(&ready.split_to(now));
                if ready.is_empty() {
                    *ready = Bytes::new();
                }
                return Poll::Ready(Ok(()));
            }
            let mut scratch = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            state.take(read.filled());
        }
    }
}

/// All that is read of these bytes where they come in pieces of this length, and how it ended.
#[cfg(any(test, fuzzing))]
pub(super) fn read_all(limit: usize, bytes: &[u8], piece: usize) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut inflating, mut all) = (Inflating::new(limit), Vec::new());
    for piece in bytes.chunks(piece) {
        inflating.take(piece);
        loop {
            match inflating.next() {
                Ok(Some(ready)) => all.extend(ready.split_to(ready.len())),
                Ok(None) => break,
                Err(error) => return (all, Some(error.kind())),
            }
        }
    }
    (all, None)
}

#[cfg(test)]
mod tests;
