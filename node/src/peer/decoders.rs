//! What another end of a connection sends first, tried with whatever it may be ([`crate::decoders`]).

use bytes::Bytes;

use super::{
    belongs::Belongs,
    greeting::{Hello, Purpose},
    reading::Frames,
};
use crate::decoders::member;

fn belongs(cluster: &str, settings: &str) -> Belongs {
    Belongs {
        cluster: cluster.to_owned(),
        store_id: "a".to_owned(),
        settings: settings.to_owned(),
        keyring: "0123456789abcdef".to_owned(),
    }
}

/// A hello that is taken has these bytes and no others, and is answered in words that fit into a packet.
pub(crate) fn hello(bytes: &[u8]) {
    let Some(hello) = Hello::decode(bytes) else { return };
    assert_eq!(hello.encode(), bytes, "a hello can be said in two ways");
    let mine = belongs("röst", r#"{"copies":2}"#);
    if let Some((_, why)) = mine.refuses(&member("n1").node, &hello.belongs) {
        assert!(why.len() <= 5_000, "the words of a refusal have {} bytes", why.len());
    }
}

/// Hellos that are welcome, and some that are not.
pub(crate) fn hello_seeds() -> Vec<Vec<u8>> {
    let belongs =
        [belongs("röst", r#"{"copies":2}"#), belongs("röst", r#"{"copies":3,"slots":[1]}"#), belongs("b", "{}")];
    let purposes = [Purpose::Everything, Purpose::GossipOnly, Purpose::Everything];
    let hello = |(belongs, purpose)| Hello { purpose, generation: 7, to_generation: 1, belongs }.encode();
    belongs.into_iter().zip(purposes).map(hello).collect()
}

/// The frames of a lane whose bytes come in pieces; up to the first that is too long.
pub(crate) fn frames(bytes: &[u8], piece: usize) -> Vec<Bytes> {
    let (mut cutter, mut found) = (Frames::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        cutter.add(piece);
        loop {
            match cutter.next() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}
