use proptest::prelude::*;

use super::*;
use crate::wire::deflate::deflate;

const LIMIT: usize = 4_096;

/// A frame as clients send it: masked, in the short form of its length.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 11, 13, 17];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn compressed(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert!(deflate(text, &mut bytes), "it is worth it");
    bytes
}

fn read(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<ErrorKind>) {
    read_all(LIMIT, bytes, piece)
}

/// The payloads of the frames that the library would see.
fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while !bytes.is_empty() {
        let mut cursor = Cursor::new(bytes);
        let (head, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        assert!(!head.rsv1);
        let (at, mask) = (cursor.position() as usize, head.mask.unwrap());
        let (payload, rest) = bytes[at..].split_at(length as usize);
        payloads.push(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect());
        bytes = rest;
    }
    payloads
}

fn accepted(offer: &str) -> Option<String> {
    let headers = HeaderMap::from_iter([(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_str(offer).unwrap())]);
    accept(&headers).map(|answer| answer.to_str().unwrap().to_owned())
}

#[test]
fn the_first_offer_that_can_be_kept_is_accepted() {
    let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    let narrow = format!("{plain}; server_max_window_bits=12");
    let offers = [
        // As Chrome and Firefox have it, Python's websockets, and Node's ws.
        ("permessage-deflate; client_max_window_bits", Some(plain)),
        ("permessage-deflate", Some(plain)),
        ("permessage-deflate; server_max_window_bits=12; client_max_window_bits=12", Some(&*narrow)),
        ("x-webkit-deflate-frame, permessage-deflate;server_max_window_bits=\"15\"", Some(&*narrow)),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", Some(plain)),
        ("permessage-deflate; server_max_window_bits=11", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=012", None),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits=9", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; made_up", None),
        ("permessage-deflated", None),
        ("", None),
    ];
    for (offer, answer) in offers {
        assert_eq!(accepted(offer).as_deref(), answer, "{offer}");
    }
}

#[test]
fn what_is_compressed_is_read_as_if_it_were_not() {
    let (long, short) = ("a message of many words, many words ".repeat(60), b"short".as_slice());
    let long = long.as_bytes();
    let packed = compressed(long);
    let (first, second) = packed.split_at(9);
    let bytes = [
        frame(0x81, short),
        frame(0xc1, &packed),
        // In parts, with a ping between them.
        frame(0x41, first),
        frame(0x89, b"ping"),
        frame(0x00, second),
        frame(0x80, b""),
        frame(0x01, short),
        frame(0x80, short),
        frame(0xc1, &packed),
    ]
    .concat();
    for piece in [1, 2, 7, 100, bytes.len()] {
        let (all, error) = read(&bytes, piece);
        assert_eq!(error, None);
        assert_eq!(payloads(&all), [short, long, b"ping", long, short, short, long], "in pieces of {piece}");
    }
}

#[test]
fn a_message_that_grows_above_the_limit_is_not_made() {
    let bomb = compressed(&vec![b'x'; 1 << 20]);
    assert!(bomb.len() < LIMIT);
    assert_eq!(read(&frame(0xc1, &bomb), 100).1, Some(ErrorKind::FileTooLarge));
    assert_eq!(read(&frame(0xc1, &compressed(&vec![b'x'; LIMIT])), 100).1, None);
    // Nor one that says that it has more bytes than the limit, whatever they are.
    assert_eq!(read(&frame(0xc1, &vec![b'x'; LIMIT + 1]), 10).1, Some(ErrorKind::FileTooLarge));
    let parts = [frame(0x41, &vec![0; LIMIT]), frame(0x00, b"x")].concat();
    assert_eq!(read(&parts, 1_000).1, Some(ErrorKind::FileTooLarge));
}

#[test]
fn what_is_not_as_agreed_on_ends_the_connection() {
    let packed = compressed(&[b'x'; 200]);
    let mut unmasked = frame(0xc1, &packed);
    unmasked[1] &= 0x7f;
    let wrong = [
        ("no such compression", frame(0xc1, &[0xff; 9])),
        ("a part that is compressed by itself", [frame(0x41, &packed), frame(0xc0, &packed)].concat()),
        ("a message within a message", [frame(0x41, &packed), frame(0x81, b"new")].concat()),
        ("no mask", unmasked),
        ("another extension", frame(0xe1, &packed)),
    ];
    for (what, bytes) in wrong {
        assert_eq!(read(&bytes, 1_000).1, Some(ErrorKind::InvalidData), "{what}");
    }
}

#[test]
fn what_grows_counts_for_what_it_became() {
    let counted = |bytes: &[u8]| {
        let mut inflated = Inflated::new((), Some(1 << 20));
        let state = inflated.state.as_mut().unwrap();
        state.take(bytes);
        assert!(state.next().unwrap().is_some());
        (inflated.take(), inflated.take())
    };
    assert_eq!(counted(&frame(0xc1, &compressed(&[b'x'; 4_000]))), (0, 0));
    assert_eq!(counted(&frame(0xc1, &compressed(&vec![b'x'; 128 << 10]))), (32, 0));
    assert_eq!(counted(&frame(0x81, &vec![b'x'; 9_000])), (0, 0), "what is not compressed was paid for by its sender");
}

#[test]
fn what_is_at_rest_holds_nothing() {
    let mut inflating = Inflating::new(LIMIT);
    inflating.take(&frame(0xc1, &compressed(&[b'x'; 2_000])));
    let ready = inflating.next().unwrap().unwrap();
    *ready = Bytes::new();
    assert!(inflating.next().unwrap().is_none());
    assert!(inflating.message.is_none() && inflating.head.capacity() == 0 && inflating.raw.is_empty());
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1..50_usize) {
        let (all, _) = read(&bytes, piece);
        prop_assert!(all.len() <= bytes.len() + (1 + bytes.len() / 6) * (LIMIT + HEAD_BYTES));
    }
}
