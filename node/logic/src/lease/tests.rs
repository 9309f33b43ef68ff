//! Some nodes that beat, hear each other or not, and stand still.

use std::sync::Arc;

use super::*;
use crate::{id::NodeId, map::SlotAssignment};

struct Bench {
    now_ms: u64,
    nodes: Vec<Lease>,
    /// Nothing gets from the first to the second.
    cut: BTreeSet<(usize, usize)>,
    still: BTreeSet<usize>,
    gone: Vec<(usize, Member, u64)>,
}

fn member(number: usize) -> Member {
    Member { node: NodeId::parse(&format!("n{number}")).unwrap(), generation: 1 }
}

/// Each of these is primary of a slot.
fn map(version: u64, nodes: &[usize]) -> SharedMap {
    let mut map = ClusterMap::first(&member(nodes[0]), nodes.len() as u16);
    map.version = version;
    for (slot, node) in map.slots.iter_mut().zip(nodes) {
        *slot = SlotAssignment { primary: member(*node), in_sync: vec![member(*node)], ..slot.clone() };
    }
    Arc::new(map)
}

impl Bench {
    fn new(count: usize) -> Self {
        let nodes = (0..count).map(|number| Lease::new(member(number), 0)).collect();
        let mut bench = Self { now_ms: 0, nodes, cut: BTreeSet::new(), still: BTreeSet::new(), gone: Vec::new() };
        let all: Vec<usize> = (0..count).collect();
        for node in 0..count {
            bench.give(node, LeaseInput::Map(map(1, &all)));
        }
        bench.pass(2_000);
        bench
    }

    fn give(&mut self, node: usize, input: LeaseInput) {
        let mut out = Vec::new();
        self.nodes[node].handle(self.now_ms, input, &mut out);
        for output in out {
            match output {
                LeaseOutput::Send { to, message } => {
                    let to = self.nodes.iter().position(|other| other.me == to);
                    let Some(to) = to.filter(|to| !self.cut.contains(&(node, *to)) && !self.still.contains(to)) else {
                        continue;
                    };
                    self.give(to, LeaseInput::Message { from: member(node), message });
                }
                LeaseOutput::May(permission) => assert_eq!(permission, self.nodes[node].permission()),
                LeaseOutput::Gone { gateway, since_ms } => self.gone.push((node, gateway, since_ms)),
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.now_ms += TICK_MS;
            for node in (0..self.nodes.len()).filter(|node| !self.still.contains(node)).collect::<Vec<_>>() {
                self.give(node, LeaseInput::Tick);
            }
        }
    }

    fn apart(&mut self, one: usize, other: usize) {
        self.cut.extend([(one, other), (other, one)]);
    }

    /// A slot of the node wants the gateway fenced: how long that takes, within 3 s.
    fn fence(&mut self, node: usize, gateway: usize) -> Option<u64> {
        let (since_ms, before) = (self.now_ms - 1, self.gone.len());
        for waited_ms in (0..3_000).step_by(TICK_MS as usize) {
            self.give(node, LeaseInput::Wanted { gateway: member(gateway), since_ms });
            // Said again while it is wanted, it is no other fence.
            let gone = self.gone[before..].iter();
            // One that was asked for earlier may be told of first.
            if gone.clone().any(|(_, _, gone_ms)| since_ms < *gone_ms) {
                assert!(gone.clone().all(|(by, of, _)| (*by, of) == (node, &member(gateway))));
                return Some(waited_ms);
            }
            self.pass(TICK_MS);
        }
        None
    }

    fn may(&self, node: usize) -> Option<u64> {
        let Permission { episode, until_ms, map_version: _ } = self.nodes[node].permission();
        (self.now_ms < until_ms).then_some(episode)
    }
}

#[test]
fn half_of_them_are_enough_but_never_one_of_two() {
    let quorums: Vec<usize> = (1..=7).map(quorum).collect();
    assert_eq!(quorums, [1, 2, 2, 2, 3, 3, 4]);
}

#[test]
fn an_enough_number_of_others_keeps_a_gateway_delivering() {
    let mut bench = Bench::new(3);
    let episode = bench.may(0).expect("all hear it");
    bench.apart(0, 1);
    bench.pass(5_000);
    assert_eq!(bench.may(0), Some(episode), "one is dead or does not hear it");
    bench.apart(0, 2);
    bench.pass(LEASE_MS);
    assert_eq!(bench.may(0), None);
    bench.cut.clear();
    bench.pass(400);
    assert!(bench.may(0) > Some(episode), "all has to be confirmed anew");
}

#[test]
fn a_gateway_alone_delivers_and_one_of_two_does_not() {
    let mut bench = Bench::new(1);
    bench.pass(60_000);
    assert!(bench.may(0).is_some());
    let mut bench = Bench::new(2);
    bench.apart(0, 1);
    bench.pass(1_000);
    assert_eq!((bench.may(0), bench.may(1)), (None, None));
    // The other one's slots are taken over.
    bench.give(1, LeaseInput::Map(map(2, &[1])));
    assert!(bench.may(1).is_some());
}

#[test]
fn a_gateway_that_stands_still_is_fenced_when_nothing_is_left_of_its_lease() {
    let mut bench = Bench::new(3);
    bench.still.insert(0);
    bench.pass(300);
    let took_ms = bench.fence(1, 0).expect("both others say so");
    assert!((LAPSED_MS - 500..LAPSED_MS).contains(&took_ms), "{took_ms}");
    assert_eq!(bench.may(0), None, "by the clock, whatever it thinks");
    assert_eq!(bench.fence(2, 0), Some(0), "it is known now");
    let before = bench.nodes[0].permission().episode;
    bench.still.clear();
    bench.pass(400);
    assert!(bench.may(0) > Some(before));
}

#[test]
fn who_is_heard_by_all_but_one_goes_on_after_it_has_confirmed() {
    let mut bench = Bench::new(3);
    bench.apart(0, 1);
    bench.pass(200);
    let before = bench.may(0).unwrap();
    let took_ms = bench.fence(1, 0).expect("the third one promises it");
    assert!(took_ms <= LAPSED_MS + TICK_MS, "{took_ms}");
    bench.pass(200);
    assert_eq!(bench.may(0), Some(before + 1));
}

#[test]
fn nobody_is_fenced_by_one_of_three_alone() {
    let mut bench = Bench::new(3);
    bench.apart(1, 0);
    bench.apart(1, 2);
    assert_eq!(bench.fence(1, 0), None);
    assert!(bench.may(0).is_some());
    // The third one dies, and the map has it no more: what the gateway has of it runs out, and it does not hear the first.
    bench.still.insert(2);
    bench.give(1, LeaseInput::Map(map(2, &[1])));
    assert!(bench.fence(1, 0).is_some());
    bench.pass(LEASE_MS);
    assert_eq!(bench.may(0), None);
}

#[test]
fn what_was_promised_to_a_fence_counts_for_no_later_one() {
    let mut bench = Bench::new(3);
    bench.apart(0, 1);
    bench.fence(1, 0).expect("the third one promises it");
    bench.pass(300);
    let before = bench.may(0).unwrap();
    let again_ms = bench.fence(1, 0).expect("once more");
    assert!(again_ms >= LAPSED_MS, "it has confirmed meanwhile: {again_ms}");
    bench.pass(200);
    assert_eq!(bench.may(0), Some(before + 1));
}

#[test]
fn a_process_that_began_lately_may_have_acknowledged_before() {
    let mut bench = Bench::new(3);
    bench.still.insert(0);
    let now_ms = bench.now_ms;
    let mut new = Lease::new(member(1), now_ms);
    new.handle(now_ms, LeaseInput::Map(map(1, &[0, 1, 2])), &mut Vec::new());
    let fence = |round| LeaseInput::Message {
        from: member(2),
        message: LeaseMessage::Fence { gateway: member(0), round, map_version: 0 },
    };
    let mut out = Vec::new();
    new.handle(now_ms + LAPSED_MS - 1, fence(1), &mut out);
    assert_eq!(out, []);
    new.handle(now_ms + LAPSED_MS, fence(1), &mut out);
    assert_eq!(out.len(), 1);
}

#[test]
fn who_knows_a_newer_map_does_not_count_before_it_is_known() {
    let mut bench = Bench::new(3);
    for node in [1, 2] {
        bench.give(node, LeaseInput::Map(map(2, &[1, 2])));
    }
    bench.pass(LEASE_MS + TICK_MS);
    assert_eq!(bench.may(0), None);
    let before = bench.nodes[0].permission().episode;
    bench.give(0, LeaseInput::Map(map(2, &[1, 2])));
    bench.pass(400);
    assert!(bench.may(0) > Some(before));
}

#[test]
fn a_primary_fences_with_the_voters_of_every_map_that_others_may_be_at() {
    // Two of four hear each other only, and so do the other two and one that has just joined.
    let mut bench = Bench::new(5);
    for node in 0..5 {
        bench.nodes[node] = Lease::new(member(node), bench.now_ms);
        bench.give(node, LeaseInput::Map(map(2, &[0, 1, 2, 3])));
    }
    bench.pass(2_000);
    for (one, other) in [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)] {
        bench.apart(one, other);
    }
    for node in [2, 3, 4] {
        bench.give(node, LeaseInput::Map(map(3, &[0, 1, 2, 3, 4])));
    }
    assert_eq!(bench.fence(2, 0), None, "the two may not know the map");
    assert!(bench.may(0).is_some());
}

#[test]
fn who_leads_no_slot_fences_nobody() {
    let mut bench = Bench::new(3);
    let before = bench.may(0);
    let fence = |round| LeaseMessage::Fence { gateway: member(0), round, map_version: 1 };
    for round in 1..20 {
        bench.give(1, LeaseInput::Message { from: member(7), message: fence(round) });
        bench.give(2, LeaseInput::Message { from: member(7), message: fence(round) });
        bench.pass(TICK_MS);
    }
    assert_eq!(bench.may(0), before);
}

#[test]
fn nothing_that_a_peer_sends_does_harm() {
    let mut bench = Bench::new(2);
    for message in [
        LeaseMessage::Beat { sent_ms: u64::MAX },
        LeaseMessage::Ack { sent_ms: u64::MAX, number: u64::MAX, map_version: 0 },
        LeaseMessage::Ack { sent_ms: 0, number: 0, map_version: u64::MAX },
        LeaseMessage::Fence { gateway: member(0), round: u64::MAX, map_version: 0 },
        LeaseMessage::Fence { gateway: member(9), round: 0, map_version: u64::MAX },
        LeaseMessage::Lapsed { gateway: member(9), round: u64::MAX },
    ] {
        bench.give(0, LeaseInput::Message { from: member(1), message: message.clone() });
        bench.give(0, LeaseInput::Message { from: member(7), message });
    }
    bench.pass(3_000);
    assert!(bench.may(0).is_some());
    for number in 0..2 * PEERS {
        let message = LeaseMessage::Beat { sent_ms: 0 };
        bench.give(0, LeaseInput::Message { from: member(number + 10), message });
    }
    assert!(bench.nodes[0].peers.len() <= PEERS);
}
