//! What a WebSocket client or a reader sends, tried with whatever it may be ([`crate::decoders`]).

use std::{fmt::Write, io::Cursor};

use serde::de::IgnoredAny;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;

use super::{deflate::read_all, fragments::Fragments};
use crate::{
    id::{Epoch, GroupName, Position},
    logic::entry::Message,
    wire::{
        command::{Command, Event, ReadFrom},
        events,
        plain::{Limits, decode, encode},
    },
};

const LIMITS: Limits = Limits { message_bytes: 4 << 10 };
/// An error answers a frame of any length in this number of bytes.
const ERROR_MAX_BYTES: usize = 16 << 10;

/// A frame of the plain protocol: what is understood is understood alike when it is said in other words, what is published
/// can be told on, and an error has a bound.
pub(crate) fn client_frame(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match decode(text, &LIMITS) {
        Ok(command) => {
            let again = written(&command);
            assert_eq!(
                decode(&again, &LIMITS).as_ref(),
                Ok(&command),
                "it is another command when written anew: {again}"
            );
            if let Command::Publish { group, data, .. } = command {
                let message = Message { offset: 1, data, from: None, at_ms: 2 };
                is_json(encode(&Event::Message { group, epoch: Epoch(3), message }).as_str());
            }
        }
        Err(error) => {
            let told = encode(&Event::Error(error));
            is_json(told.as_str());
            assert!(told.len() <= ERROR_MAX_BYTES, "an error of {} bytes", told.len());
        }
    }
}

fn is_json(text: &str) {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        panic!("a client is sent what is no JSON: {error}: {text}");
    }
}

/// The frame that says this, with all its fields.
fn written(command: &Command) -> String {
    let quoted = |text: &str| serde_json::to_string(text).expect("a text has a JSON form");
    let at = |position: &Position| format!(r#"{{"epoch":"{}","offset":{}}}"#, position.epoch, position.offset);
    let or_null = |text: Option<String>| text.unwrap_or_else(|| "null".to_owned());
    let mut frame = format!(r#"{{"id":{}"#, command.id().as_deref().unwrap_or("null"));
    let rest = match command {
        Command::Hello { session, client, resume, .. } => {
            let resume: Vec<String> =
                resume.iter().map(|(group, position)| format!("{}:{}", quoted(group.as_str()), at(position))).collect();
            let session = or_null(session.as_deref().map(quoted));
            let client = or_null(client.as_ref().map(|client| quoted(&client.to_string())));
            format!(r#","type":"hello","session":{session},"client":{client},"resume":{{{}}}"#, resume.join(","))
        }
        Command::Join { group, since, .. } => {
            let since = or_null(since.as_ref().map(at));
            format!(r#","type":"join","group":{},"since":{since}"#, quoted(group.as_str()))
        }
        Command::Leave { group, .. } => format!(r#","type":"leave","group":{}"#, quoted(group.as_str())),
        Command::Publish { group, data, key, ephemeral, .. } => {
            let (data, key) = (String::from_utf8_lossy(data), or_null(key.as_deref().map(quoted)));
            format!(
                r#","type":"publish","group":{},"data":{data},"key":{key},"ephemeral":{ephemeral}"#,
                quoted(group.as_str())
            )
        }
        Command::History { group, from, limit, .. } => {
            let from = match from {
                ReadFrom::Oldest => format!(r#""limit":{limit}"#),
                ReadFrom::After(since) => format!(r#""since":{},"limit":{limit}"#, at(since)),
                ReadFrom::Last => format!(r#""last":{limit}"#),
            };
            format!(r#","type":"history","group":{},{from}"#, quoted(group.as_str()))
        }
        Command::Members { group, after, limit, .. } => {
            let after = or_null(after.map(|after| quoted(&after.to_string())));
            format!(r#","type":"members","group":{},"after":{after},"limit":{limit}"#, quoted(group.as_str()))
        }
        Command::Heartbeat { .. } => r#","type":"heartbeat""#.to_owned(),
        Command::Refresh { token, .. } => format!(r#","type":"refresh","token":{}"#, quoted(token)),
    };
    let _ = write!(frame, "{rest}}}");
    frame
}

/// A frame of each type.
pub(crate) fn client_frame_seeds() -> Vec<Vec<u8>> {
    let frames = [
        r#"{"type":"refresh","id":9,"token":"e30.e30.AAAA"}"#,
        r#"{"type":"hello","id":1,"session":"v2.k.AAAA.0.BBBB","client":"tab-1","resume":{"room:1":{"epoch":"00000000000000ff","offset":3}}}"#,
        r#"{"type":"join","id":"a","group":"room:1","since":{"epoch":"0123456789abcdef","offset":9007199254740991}}"#,
        r#"{"type":"leave","group":"r\u00f6st"}"#,
        r#"{"type":"publish","id":-1.5e3,"group":"g","data":{"a" : [1, 2.50, "\"", null]},"key":"k"}"#,
        r#"{"type":"history","group":"g","since":null,"limit":1000}"#,
        r#"{"type":"members","group":"g","after":"5e4a2dc8-2b1c-4a3e-9f55-111111111111","limit":1}"#,
        r#"{"type":"heartbeat","id":null}"#,
        r#"{"type":"jion","grupp":"g","grupp":1}"#,
    ];
    frames.map(|frame| frame.as_bytes().to_vec()).to_vec()
}

/// The bytes of a WebSocket after a byte that says how they are cut: its fragments are counted alike whatever the cuts, and as the
/// library reads the heads of frames.
pub(crate) fn websocket(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let count = |piece: usize| {
        let mut fragments = Fragments::new(());
        bytes.chunks(piece).for_each(|piece| fragments.look(piece));
        let places = format!("{fragments:?}");
        (places, fragments.take() as usize)
    };
    let (cut, whole) = (count(usize::from(*cut).max(1)), count(usize::MAX));
    assert_eq!(cut, whole, "fragments are counted otherwise where they are cut");
    let (mut at, mut heads) = (0, 0);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let mut cursor = Cursor::new(rest);
        match FrameHeader::parse(&mut cursor) {
            Ok(Some((head, length))) => {
                heads += usize::from(!head.is_final);
                let after = usize::try_from(cursor.position()).ok().zip(usize::try_from(length).ok());
                let end = after.and_then(|(head, length)| at.checked_add(head)?.checked_add(length));
                at = end.unwrap_or(usize::MAX);
            }
            // A head that is not whole counts from its first byte on.
            Ok(None) => {
                heads += usize::from(rest[0] & 0x80 == 0);
                break;
            }
            // The connection ends here.
            Err(_) => return,
        }
    }
    assert_eq!(whole.1, heads, "fragments are counted otherwise than the library reads them");
}

/// The bytes of a WebSocket whose client may compress, after a byte that says how they are cut: what is read of them is the same
/// whatever the cuts, and no message in it was compressed or is above the limit.
pub(crate) fn deflated(bytes: &[u8]) {
    const LIMIT: usize = 4 << 10;
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let (cut, whole) = (read_all(LIMIT, bytes, usize::from(*cut).max(1)), read_all(LIMIT, bytes, usize::MAX));
    assert_eq!(cut, whole, "a WebSocket is inflated otherwise where it is cut");
    assert!(whole.0.len() <= bytes.len() + (1 + bytes.len() / 6) * (LIMIT + 14), "more than the limit allows");
}

/// Compressed messages, whole, in parts with a ping between them, and beside one that is not.
pub(crate) fn deflated_seeds() -> Vec<Vec<u8>> {
    let mut packed = Vec::new();
    crate::wire::deflate::deflate(&[b'x'; 300], &mut packed);
    let frame = |first: u8, payload: &[u8]| [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0][..], payload].concat();
    let (first, second) = packed.split_at(packed.len() / 2);
    let seeds = [
        frame(0xc1, &packed),
        [frame(0x41, first), frame(0x89, b"p"), frame(0x80, second)].concat(),
        [frame(0x81, b"{}"), frame(0xc1, &packed)].concat(),
    ];
    seeds.into_iter().map(|frames| [&[5][..], &frames].concat()).collect()
}

/// Whole messages and fragments, masked and not, of each form of length.
pub(crate) fn websocket_seeds() -> Vec<Vec<u8>> {
    let head = |first: u8, length: usize| match length {
        0..=125 => vec![first, 0x80 | length as u8, 1, 2, 3, 4],
        126..=0xffff => [&[first, 0x80 | 126][..], &(length as u16).to_be_bytes(), &[1, 2, 3, 4]].concat(),
        _ => [&[first, 127][..], &(length as u64).to_be_bytes()].concat(),
    };
    let frame = |first: u8, length: usize| [head(first, length), vec![b'x'; length]].concat();
    let seeds = [
        vec![frame(0x81, 5)],
        vec![frame(0x01, 3), frame(0x00, 0), frame(0x80, 2)],
        vec![frame(0x01, 130), frame(0x89, 0), frame(0x80, 126)],
        vec![frame(0x82, 66_000)],
    ];
    seeds.into_iter().map(|frames| [&[7][..], &frames.concat()].concat()).collect()
}

/// The id of an event, as a reader of one group sends it, of two, and of as many as there may be.
pub(crate) fn event_id(bytes: &[u8]) {
    let Ok(id) = std::str::from_utf8(bytes) else { return };
    for groups in followed() {
        match events::places(&groups, id) {
            Ok(places) => {
                assert_eq!(events::places(&groups, &events::id(&groups, &places)).as_ref(), Ok(&places));
            }
            Err(words) => assert!(words.len() < 200, "a refusal of {} bytes", words.len()),
        }
    }
}

fn followed() -> [Vec<GroupName>; 3] {
    let name = |number: usize| GroupName::parse(&number.to_string()).expect("a number is a name");
    [1, 2, events::GROUPS_MAX].map(|count| (0..count).map(name).collect())
}

/// Of each kind.
pub(crate) fn event_id_seeds() -> Vec<Vec<u8>> {
    let place = |number: usize| (number != 1).then_some(Position { epoch: Epoch(7), offset: number as u64 });
    let id = |groups: Vec<GroupName>| {
        let places: Vec<_> = (0..groups.len()).map(place).collect();
        events::id(&groups, &places).into_bytes()
    };
    followed().map(id).to_vec()
}
