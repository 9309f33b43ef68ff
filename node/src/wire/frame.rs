//! Frames that are ready to be written: the header before the payload in one piece of memory, made once and shared by all who
//! receive it. A frame is of a WebSocket, or a chunk of an answer over HTTP/1.1 (RFC 9112, 7.1).

use bytes::{Buf, Bytes};
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

/// What a frame's maker leaves free before the payload: the longest header of either kind.
pub const HEADER_ROOM: usize = 10;

/// A close frame has room for this number of bytes of a reason.
const REASON_BYTES: usize = 123;

/// One frame to a client. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame(Bytes);

/// Bytes, and what lives as long as they do.
struct Kept<K> {
    bytes: Bytes,
    _with: K,
}

impl<K> AsRef<[u8]> for Kept<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Frame {
    /// A whole message of text, which begins after [`HEADER_ROOM`] bytes.
    ///
    /// # Panics
    /// Without that room.
    pub fn of_text(room_and_text: Vec<u8>) -> Self {
        Self::of(OpCode::Data(Data::Text), room_and_text)
    }

    /// A whole message of text, which begins after [`HEADER_ROOM`] bytes, compressed as permessage-deflate has it.
    ///
    /// # Panics
    /// Without that room.
    pub fn of_deflated(room_and_bytes: Vec<u8>) -> Self {
        Self::with(
            FrameHeader { opcode: OpCode::Data(Data::Text), rsv1: true, ..FrameHeader::default() },
            room_and_bytes,
        )
    }

    /// The end of the connection. A reason that is too long is cut.
    pub fn close(code: u16, reason: &str) -> Self {
        let mut bytes = vec![0; HEADER_ROOM];
        bytes.extend(code.to_be_bytes());
        bytes.extend(&reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES)]);
        Self::of(OpCode::Control(Control::Close), bytes)
    }

    /// Asks the client's WebSocket for a sign of life, without a payload.
    pub const fn ping() -> Self {
        // The last frame of its message, a ping; no bytes follow.
        Self(Bytes::from_static(&[0x89, 0]))
    }

    /// A chunk of an answer, which begins after [`HEADER_ROOM`] bytes.
    ///
    /// # Panics
    /// Without that room, or without anything after it: that would end the answer.
    pub fn of_chunk(mut room_and_text: Vec<u8>) -> Self {
        assert!(room_and_text.len() > HEADER_ROOM, "there is room for the header, and something in the chunk");
        let header = format!("{:x}\r\n", room_and_text.len() - HEADER_ROOM);
        let first = HEADER_ROOM.checked_sub(header.len()).expect("no frame has 4 GiB");
        room_and_text[first..HEADER_ROOM].copy_from_slice(header.as_bytes());
        room_and_text.extend_from_slice(b"\r\n");
        let mut bytes = Bytes::from(room_and_text);
        bytes.advance(first);
        Self(bytes)
    }

    /// A comment among server-sent events: a sign of life that says nothing.
    pub const fn comment() -> Self {
        Self(Bytes::from_static(b"3\r\n:\n\n\r\n"))
    }

    /// The end of an answer in chunks.
    pub const fn end_of_chunks() -> Self {
        Self(Bytes::from_static(b"0\r\n\r\n"))
    }

    /// One frame of both.
    #[must_use]
    pub fn after(&self, before: &Self) -> Self {
        Self(Bytes::from([before.as_bytes(), self.as_bytes()].concat()))
    }

    /// One or several whole frames, as another has written them.
    pub fn whole(bytes: Bytes) -> Self {
        Self(bytes)
    }

    fn of(kind: OpCode, bytes: Vec<u8>) -> Self {
        Self::with(FrameHeader { opcode: kind, ..FrameHeader::default() }, bytes)
    }

    fn with(header: FrameHeader, mut bytes: Vec<u8>) -> Self {
        assert!(bytes.len() >= HEADER_ROOM, "there is room for the header");
        let length = (bytes.len() - HEADER_ROOM) as u64;
        let first = HEADER_ROOM - header.len(length);
        header.format(length, &mut &mut bytes[first..HEADER_ROOM]).expect("its length fits");
        let mut bytes = Bytes::from(bytes);
        bytes.advance(first);
        Self(bytes)
    }

    /// The same, with something that is dropped when nobody has the bytes any more.
    #[must_use]
    pub fn kept_with<K: Send + 'static>(self, with: K) -> Self {
        Self(Bytes::from_owner(Kept { bytes: self.0, _with: with }))
    }

    /// As they are written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What a client reads of it, where it is one frame of a WebSocket, as servers send them.
    pub fn payload(&self) -> &[u8] {
        let header = match self.0.get(1) {
            Some(126) => 4,
            Some(127) => HEADER_ROOM,
            _ => 2,
        };
        self.0.get(header..).unwrap_or_default()
    }

    /// How many bytes are written, the header's among them.
    #[expect(clippy::len_without_is_empty, reason = "there is always a header")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(any(test, fuzzing))]
impl Frame {
    /// A message of text, for tests.
    pub fn text(text: &str) -> Self {
        Self::of_text([&[0; HEADER_ROOM], text.as_bytes()].concat())
    }

    /// What is in it.
    ///
    /// # Panics
    /// Where it is not one frame of text.
    pub fn as_str(&self) -> &str {
        let mut rest = std::io::Cursor::new(self.as_bytes());
        let (header, length) = FrameHeader::parse(&mut rest).ok().flatten().expect("it has a header");
        let payload = &self.as_bytes()[rest.position() as usize..];
        assert_eq!((header.opcode, header.rsv1), (OpCode::Data(Data::Text), false));
        assert_eq!(payload.len() as u64, length);
        std::str::from_utf8(payload).expect("it is text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_as_long_as_its_payload_asks_for() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let text = "x".repeat(length);
            let frame = Frame::text(&text);
            assert_eq!((frame.len(), frame.as_str()), (header + length, text.as_str()));
        }
    }

    #[test]
    fn a_chunk_says_how_long_it_is() {
        for (length, header) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (70_000, "11170\r\n")] {
            let chunk = Frame::of_chunk([vec![0; HEADER_ROOM], vec![b'x'; length]].concat());
            let expected = [header.as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
            assert_eq!(chunk.as_bytes(), expected);
        }
        let comment = Frame::of_chunk([&[0; HEADER_ROOM], &b":\n\n"[..]].concat());
        assert_eq!(comment, Frame::comment());
        assert_eq!(Frame::end_of_chunks().after(&comment).as_bytes(), b"3\r\n:\n\n\r\n0\r\n\r\n");
    }

    #[test]
    fn the_reason_of_a_close_is_cut_between_letters() {
        let frame = Frame::close(4_001, &"ü".repeat(100));
        assert_eq!(frame.as_bytes()[..4], [0x88, 2 + 122, 0x0f, 0xa1]);
        assert_eq!(frame.len(), 2 + 2 + 122);
    }

    #[test]
    fn a_ping_is_a_frame_that_asks_for_a_pong() {
        let mut read = std::io::Cursor::new(Frame::ping().as_bytes().to_vec());
        let (header, length) = FrameHeader::parse(&mut read).ok().flatten().expect("it has a header");
        assert_eq!((header.opcode, header.is_final, length), (OpCode::Control(Control::Ping), true, 0));
        assert_eq!(read.position() as usize, Frame::ping().len());
    }

    #[test]
    fn what_is_kept_with_a_frame_goes_with_its_last_copy() {
        let kept = std::sync::Arc::new(());
        let frame = Frame::text("a").kept_with(kept.clone());
        let other = frame.clone();
        drop(frame);
        assert_eq!((std::sync::Arc::strong_count(&kept), other.as_str()), (2, "a"));
        drop(other);
        assert_eq!(std::sync::Arc::strong_count(&kept), 1);
    }
}
