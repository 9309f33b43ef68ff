use std::sync::Arc;

use super::*;
use crate::{id::Member, map::ClusterMap};

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn member(name: &str) -> Member {
    Member { node: node(name), generation: 1 }
}

fn version(version: u64) -> SharedMap {
    let mut map = ClusterMap::first(&member("n1"), 4);
    map.version = version;
    Arc::new(map)
}

struct Node {
    hints: Hints,
    now_ms: u64,
    out: Vec<HintOutput>,
}

impl Node {
    /// Knows a map of version 5, and hears these.
    fn among(peers: &str) -> Self {
        let mut this = Self { hints: Hints::new(), now_ms: 1_000, out: Vec::new() };
        this.is_told(HintInput::Map(version(5)));
        this.is_told(HintInput::Peers(peers.split_whitespace().map(node).collect()));
        this
    }

    fn is_told(&mut self, input: HintInput) -> &[HintOutput] {
        self.out.clear();
        self.hints.handle(self.now_ms, input, &mut self.out);
        &self.out
    }

    fn is_sent(&mut self, by: &str, map: &SharedMap) -> &[HintOutput] {
        self.is_told(HintInput::Sent { by: node(by), map: map.clone() })
    }

    fn hears_of(&mut self, by: &str, version: u64) -> &[HintOutput] {
        self.is_told(HintInput::Told { by: node(by), version })
    }

    /// The time has come to which it wanted to sleep.
    fn sleeps(&mut self) -> &[HintOutput] {
        let wake_at_ms = self.hints.wake_at_ms().expect("it waits for something");
        assert!(self.now_ms < wake_at_ms, "it wakes without end");
        self.now_ms = wake_at_ms;
        self.is_told(HintInput::Wake)
    }

    fn takes(&self) -> Option<u64> {
        self.out.iter().find_map(|output| match output {
            HintOutput::Take(map) => Some(map.version),
            _ => None,
        })
    }
}

#[test]
fn what_a_peer_says_is_looked_up_in_the_store() {
    let mut this = Node::among("n1 n2");
    assert_eq!(this.is_sent("n1", &version(6)), [HintOutput::ReadMap]);
    assert_eq!(this.hears_of("n2", 7), [], "one reading at a time");
    assert_eq!(this.is_told(HintInput::Read(Some(version(6)))), [HintOutput::Take(version(6))]);
    // What came meanwhile is looked up too.
    assert_eq!(this.sleeps(), [HintOutput::ReadMap]);
    assert_eq!(this.is_told(HintInput::Read(Some(version(7)))), [HintOutput::Take(version(7))]);
    assert_eq!((this.hints.wake_at_ms(), this.hears_of("n1", 7).len()), (None, 0), "that is no news");
    this.now_ms += 100;
    assert_eq!(this.is_told(HintInput::Ahead { by: node("n1"), of: 7 }), [HintOutput::ReadMap]);
}

#[test]
fn a_map_that_the_store_does_not_have_is_not_taken_and_who_told_of_it_is_not_listened_to() {
    let mut this = Node::among("n1 n2");
    let mut readings = 0;
    for _ in 0..100_000 {
        this.now_ms += 1;
        let lie = version(1 << 50);
        if this.is_sent("n1", &lie).contains(&HintOutput::ReadMap) {
            readings += 1;
            this.is_told(HintInput::Read(Some(version(5))));
            assert!(matches!(&this.out[..], [HintOutput::Lied { by, stored: 5, .. }] if *by == node("n1")));
        }
        assert_eq!(this.takes(), None);
    }
    assert_eq!(readings, 5, "in 100 s");
    assert_eq!(this.hears_of("n2", 6), [HintOutput::ReadMap], "the others are listened to");
    this.is_told(HintInput::Read(Some(version(6))));
    assert_eq!(this.takes(), Some(6));
}

#[test]
fn with_the_store_away_peers_have_to_agree() {
    let (six, other_six) = (version(6), {
        let mut map = (*version(6)).clone();
        (map.slots[0].primary, map.slots[0].in_sync) = (member("n3"), vec![member("n3")]);
        Arc::new(map)
    });
    for (peers, sent, expected) in [
        ("n1 n2 n3", &[("n1", &six)][..], None),
        ("n1 n2 n3", &[("n1", &six), ("n2", &six)], Some(6)),
        ("n1 n2 n3", &[("n1", &six), ("n2", &other_six)], None),
        ("n1 n2 n3", &[("n1", &six), ("n1", &six)], None),
        ("n1 n2 n3", &[("n1", &six), ("n9", &six)], None),
        ("n1", &[("n1", &six)], Some(6)),
        ("", &[("n1", &six)], None),
    ] {
        let mut this = Node::among(peers);
        this.is_told(HintInput::StoreIsUp(false));
        for (by, map) in sent {
            this.is_sent(by, map);
        }
        assert_eq!(this.takes(), expected, "{peers}: {sent:?}");
    }
}

#[test]
fn what_peers_agree_on_follows_what_is_known() {
    let check = |spoil: fn(&mut ClusterMap)| {
        let mut this = Node::among("n1");
        this.is_told(HintInput::StoreIsUp(false));
        let mut map = (*version(6)).clone();
        spoil(&mut map);
        this.is_sent("n1", &Arc::new(map));
        this.takes().is_some()
    };
    assert!(check(|_| {}));
    assert!(!check(|map| map.version = 1 << 50), "far ahead");
    assert!(!check(|map| map.slots.truncate(3)), "another number of slots");
    assert!(!check(|map| map.slots.clear()));
    assert!(!check(|map| map.slots[1].in_sync.clear()), "nobody has it");
    assert!(!check(|map| map.slots[1].primary = member("n2")), "the primary is not in sync");
    assert!(!check(|map| map.slots[1].term = 0), "a term goes back");
    assert!(!check(|map| map.slots[1].changed_at = 7), "changed in the future");
    assert!(!check(|map| map.slots[1].in_sync.push(member("n1"))), "a copy twice");
}

#[test]
fn a_store_that_does_not_answer_in_time_is_away() {
    let mut this = Node::among("n1 n2");
    assert_eq!(this.is_sent("n1", &version(6)), [HintOutput::ReadMap]);
    assert_eq!(this.is_sent("n2", &version(6)), []);
    this.sleeps();
    assert_eq!(this.takes(), Some(6), "after {SLOW_MS} ms");
    // An error of the store is the same at once, and the peers are asked again and again.
    let mut this = Node::among("n1 n2");
    this.hears_of("n1", 6);
    let asks = |out: &[HintOutput]| out.iter().filter(|output| matches!(output, HintOutput::FetchMap { .. })).count();
    assert_eq!(asks(this.is_told(HintInput::Read(None))), 2);
    assert_eq!(asks(this.sleeps()), 2);
    this.is_sent("n1", &version(6));
    this.is_sent("n2", &version(6));
    assert_eq!(this.takes(), Some(6));
    // And so is the store.
    let mut this = Node::among("n1 n2");
    this.hears_of("n1", 6);
    this.is_told(HintInput::Read(None));
    while !this.sleeps().contains(&HintOutput::ReadMap) {}
    assert_eq!(this.now_ms, 1_000 + READ_AGAIN_MS);
}

#[test]
fn who_was_ahead_of_a_map_that_is_not_the_newest_any_more_has_told_no_lie() {
    let mut this = Node::among("n1 n2");
    this.is_told(HintInput::Map(version(7)));
    assert_eq!(this.is_told(HintInput::Ahead { by: node("n1"), of: 6 }), []);
    assert_eq!(this.is_told(HintInput::Ahead { by: node("n1"), of: 7 }), [HintOutput::ReadMap], "it is listened to");
}
