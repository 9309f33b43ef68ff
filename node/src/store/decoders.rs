//! The rows of a store, tried with whatever they may hold ([`crate::decoders`]).

use super::rows;
use crate::{
    decoders::{member, record},
    logic::{entry::SessionRecord, map::ClusterMap},
};

/// A session that can be read can be written, and is the same again.
pub(crate) fn session_row(bytes: &[u8]) {
    if let Ok(record) = rows::decode_session(bytes) {
        comes_back(&record, true);
    }
}

/// What the slots give to the store to keep is the same when it is read: or refused, where what a peer put into it has no form.
pub(crate) fn comes_back(record: &SessionRecord, must: bool) {
    match rows::encode_session(record) {
        Ok(row) => {
            let mut again = rows::decode_session(&row).expect("what was written can be read");
            // Their JSON is the same, without the space around it.
            again.attributes = record.attributes.clone();
            assert_eq!(again, *record, "a session comes back as another one");
        }
        Err(error) => assert!(!must, "a session that was read cannot be written: {error}"),
    }
}

/// A map that can be read can be written, and is the same again; no part of it is beyond what its readers take.
pub(crate) fn map_row(bytes: &[u8]) -> Option<ClusterMap> {
    let map = rows::decode_map(bytes).ok()?;
    assert!((1..=usize::from(u16::MAX)).contains(&map.slots.len()), "a map has {} slots", map.slots.len());
    let row = rows::encode_map(&map).expect("a map that was read can be written");
    assert_eq!(rows::decode_map(&row).ok().as_ref(), Some(&map), "a map comes back as another one");
    Some(map)
}

/// A session with something of everything, and one with nothing.
pub(crate) fn session_seeds() -> Vec<Vec<u8>> {
    let full = record();
    let bare = SessionRecord { grants: Vec::new(), groups: Default::default(), ..record() };
    [full, bare].iter().map(|record| rows::encode_session(record).expect("a sample has a row")).collect()
}

/// Maps of one node, and of three.
pub(crate) fn map_seeds() -> Vec<Vec<u8>> {
    let one = ClusterMap::first(&member("n1"), 3);
    let mut three = one.clone();
    three.version = 9;
    three.members.insert(member("n2").node, 1);
    three.slots[1].in_sync = vec![member("n1"), member("n2")];
    three.slots[2].learner = Some(member("n3"));
    [one, three].iter().map(|map| rows::encode_map(map).expect("a sample has a row")).collect()
}
