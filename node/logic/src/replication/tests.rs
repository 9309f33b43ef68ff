//! Each of the six rules by itself; `cluster-tests/src/sim` has them all at once, in a bad world.

use std::collections::BTreeMap;

use super::*;
use crate::{
    entry::GroupEntry,
    id::{GroupName, NodeId},
    slot::{Place, SlotSnapshot},
};

const TIMEOUT_MS: u64 = 1_000;

fn member(name: &str) -> Member {
    let (node, generation) = name.split_once('#').unwrap_or((name, "1"));
    Member { node: NodeId::parse(node).unwrap(), generation: generation.parse().unwrap() }
}

fn entry(number: u64) -> Entry {
    let group = GroupName::parse(&format!("g{number}")).unwrap();
    Entry::Group(group, GroupEntry::Open { epoch: crate::id::Epoch(number) })
}

/// What a map says of the slot, in short: `term primary in-sync,… learner?`.
fn assignment(changed_at: u64, text: &str) -> SlotAssignment {
    let mut words = text.split(' ');
    let (term, lineage) = words.next().unwrap().split_once('/').unwrap();
    let primary = member(words.next().unwrap());
    let mut in_sync: Vec<_> = words.next().unwrap().split(',').map(member).collect();
    in_sync.sort();
    let (term, lineage) = (term.parse().unwrap(), lineage.parse().unwrap());
    SlotAssignment { term, lineage, changed_at, primary, in_sync, learner: words.next().map(member) }
}

/// Some copies, and the messages between them.
#[derive(Default)]
struct Bench {
    now_ms: u64,
    replicas: BTreeMap<Member, Replica>,
    mail: Vec<(Member, Member, ReplicationMessage)>,
    committed: BTreeMap<Member, Vec<Index>>,
    asked: Vec<MapRequest>,
}

impl Bench {
    fn new(names: &[&str]) -> Self {
        let mut bench = Self::default();
        for name in names {
            bench.replicas.insert(member(name), Replica::new(0, member(name), TIMEOUT_MS));
        }
        bench
    }

    fn act<T>(&mut self, name: &Member, act: impl FnOnce(&mut Replica, Now, &mut Vec<ReplicaOutput>) -> T) -> T {
        let now = Now { mono_ms: self.now_ms, wall_ms: self.now_ms };
        let mut out = Vec::new();
        let replica = self.replicas.get_mut(name).unwrap();
        let result = act(replica, now, &mut out);
        replica.flush(now, &mut out);
        for output in out {
            match output {
                ReplicaOutput::Send { to, message } => self.mail.push((name.clone(), to, message)),
                ReplicaOutput::Committed { index, .. } => self.committed.entry(name.clone()).or_default().push(index),
                ReplicaOutput::Ask(request) => self.asked.push(request),
            }
        }
        result
    }

    /// These learn of a map.
    fn map(&mut self, names: &[&str], version: u64, text: &str) {
        for name in names {
            let assignment = assignment(version, text);
            self.act(&member(name), |replica, now, out| replica.on_map(now, version, &assignment, out));
        }
    }

    /// Delivers everything, and what comes of it, except to those who are cut off.
    fn deliver_but(&mut self, cut_off: &[&str]) {
        while !self.mail.is_empty() {
            for (from, to, message) in std::mem::take(&mut self.mail) {
                if !cut_off.iter().any(|name| member(name) == to) {
                    self.act(&to, |replica, now, out| replica.on_message(now, &from, message, out));
                }
            }
        }
    }

    fn deliver(&mut self) {
        self.deliver_but(&[]);
    }

    fn order(&mut self, name: &str, number: u64) -> Option<Index> {
        self.act(&member(name), |replica, _, _| replica.order(entry(number)))
    }

    fn tick_after(&mut self, name: &str, after_ms: u64) {
        self.now_ms += after_ms;
        self.act(&member(name), |replica, now, out| replica.on_tick(now, out));
    }

    fn limit_appends(&mut self, name: &str, append_entries: usize) {
        self.limit(name, |limits| limits.append_entries = append_entries);
    }

    fn limit(&mut self, name: &str, limit: impl FnOnce(&mut ReplicaLimits)) {
        limit(&mut self.replicas.get_mut(&member(name)).unwrap().limits);
    }

    fn replica(&self, name: &str) -> &Replica {
        &self.replicas[&member(name)]
    }

    fn committed(&self, name: &str) -> usize {
        self.committed.get(&member(name)).map_or(0, Vec::len)
    }

    fn last(&self, name: &str) -> Index {
        self.replica(name).held.as_ref().map_or(0, Held::last)
    }

    fn groups(&self, name: &str) -> Vec<String> {
        let state = self.replica(name).state().unwrap();
        state.groups().keys().map(|group| group.to_string()).collect()
    }

    fn promotions(&self) -> usize {
        self.asked.iter().filter(|request| matches!(request, MapRequest::Promote { .. })).count()
    }

    /// `a` is primary and has one entry, and `b` is to learn it: the snapshot for `b` is under way.
    fn with_learner() -> (Self, (Member, Member, ReplicationMessage)) {
        let mut bench = Self::new(&["a", "b"]);
        bench.map(&["a", "b"], 1, "1/1 a a");
        bench.order("a", 1);
        bench.map(&["a", "b"], 2, "1/1 a a b");
        let snapshot = bench.mail.pop().unwrap();
        (bench, snapshot)
    }

    /// `a` is primary, and the others became in-sync one after the other. The version after.
    fn with_copies(names: &[&str]) -> (Self, u64) {
        let mut bench = Self::new(names);
        bench.map(names, 1, &format!("1/1 {0} {0}", names[0]));
        let mut version = 1;
        for count in 1..names.len() {
            let in_sync = names[..count].join(",");
            bench.map(names, version + 1, &format!("1/1 {} {in_sync} {}", names[0], names[count]));
            bench.deliver();
            bench.map(names, version + 2, &format!("1/1 {} {}", names[0], names[..=count].join(",")));
            version += 2;
        }
        bench.deliver();
        (bench, version + 1)
    }
}

#[test]
fn rule_1_an_entry_is_committed_when_every_in_sync_member_has_it() {
    let (mut bench, _) = Bench::with_copies(&["a", "b", "c"]);
    assert_eq!(bench.order("a", 1), Some(1));
    bench.deliver_but(&["c"]);
    assert_eq!((bench.committed("a"), bench.last("b")), (0, 1));
    bench.tick_after("a", RESEND_MS + 1);
    bench.deliver();
    assert_eq!(bench.committed("a"), 1);
    bench.tick_after("a", 50);
    bench.deliver();
    assert_eq!(bench.groups("c"), ["g1"], "members are told what is committed also when nothing follows");
}

#[test]
fn rule_2_who_leaves_is_required_until_the_map_says_so() {
    let (mut bench, next) = Bench::with_copies(&["a", "b"]);
    bench.order("a", 1);
    bench.deliver_but(&["b"]);
    bench.tick_after("a", TIMEOUT_MS);
    let drop = MapRequest::Drop { slot: 0, changed_at: next - 1, member: member("b") };
    assert_eq!(bench.asked.last(), Some(&drop));
    assert_eq!(bench.committed("a"), 0, "asked is not confirmed");
    bench.map(&["a"], next, "1/1 a a");
    assert_eq!((bench.committed("a"), bench.replica("a").copies()), (1, 1));
}

#[test]
fn rule_3_who_joins_is_required_first_and_acknowledges_even_an_empty_log() {
    let mut bench = Bench::new(&["a", "b"]);
    bench.map(&["a", "b"], 1, "1/1 a a");
    bench.map(&["a", "b"], 2, "1/1 a a b");
    assert_eq!(bench.promotions(), 0, "nothing is in the log, and still b has to answer");
    bench.deliver();
    assert_eq!(bench.promotions(), 1);
    bench.order("a", 1);
    bench.deliver_but(&["b"]);
    assert_eq!(bench.committed("a"), 0, "b is required though the map does not name it yet");
}

#[test]
fn rule_3_an_acknowledgement_from_before_it_was_dropped_counts_for_nothing() {
    let (mut bench, next) = Bench::with_copies(&["a", "b"]);
    bench.order("a", 1);
    let append = bench.mail.pop().unwrap().2;
    bench.act(&member("b"), |replica, now, out| replica.on_message(now, &member("a"), append, out));
    let (from, _, late) = bench.mail.pop().unwrap();
    bench.map(&["a", "b"], next, "1/1 a a");
    assert_eq!(bench.replica("b").state(), None, "dropped members let go");
    bench.map(&["a"], next + 1, "1/1 a a b");
    bench.mail.clear();
    bench.act(&member("a"), |replica, now, out| replica.on_message(now, &from, late, out));
    assert_eq!(bench.promotions(), 1, "only the first one, of the time before");
}

#[test]
fn rule_4_a_new_primary_serves_when_all_that_it_held_is_committed() {
    let (mut bench, next) = Bench::with_copies(&["a", "b", "c"]);
    bench.order("a", 1);
    bench.deliver_but(&["a"]);
    // `a` has not heard that both have it, and is believed dead.
    bench.map(&["b"], next, "2/1 b b,c");
    assert_eq!(bench.replica("b").primary_term(), Some(2));
    assert_eq!(bench.replica("b").serving(), None);
    assert_eq!(bench.order("b", 2), None);
    bench.deliver();
    assert_eq!(bench.replica("b").serving(), Some(2));
    assert_eq!(bench.groups("b"), ["g1"], "what the old primary had ordered is committed in the new term");
    bench.order("a", 3);
    bench.deliver();
    assert_eq!(bench.committed("a"), 0, "the old one commits nothing any more");
    assert_eq!(bench.last("b"), 1);
}

#[test]
fn rule_4_who_holds_nothing_does_not_become_primary() {
    let (mut bench, next) = Bench::with_copies(&["a", "b"]);
    bench.replicas.insert(member("b#2"), Replica::new(0, member("b#2"), TIMEOUT_MS));
    bench.map(&["b#2"], next - 1, "1/1 a a,b");
    bench.map(&["b#2"], next, "2/1 b#2 a,b#2");
    assert_eq!(bench.replica("b#2").primary_term(), None);
    // Unless all are lost, and the slot starts again.
    bench.map(&["b#2"], next + 1, "3/2 b#2 b#2");
    assert_eq!(bench.replica("b#2").serving(), Some(3));
}

#[test]
fn rule_5_an_uncommitted_suffix_gives_way_to_the_new_primarys_log() {
    let (mut bench, next) = Bench::with_copies(&["a", "b", "c"]);
    bench.order("a", 1);
    bench.deliver();
    bench.order("a", 2);
    // Only `c` gets it.
    bench.deliver_but(&["a", "b"]);
    assert_eq!(bench.last("c"), 2);
    bench.map(&["b", "c"], next, "2/1 b b,c");
    bench.deliver();
    bench.order("b", 3);
    bench.deliver();
    bench.tick_after("b", 50);
    bench.deliver();
    assert_eq!(bench.groups("c"), ["g1", "g3"]);
    assert_eq!(bench.groups("b"), bench.groups("c"));
}

#[test]
fn rule_5_a_member_gives_up_nothing_before_it_has_all_of_the_new_primarys_log() {
    let (mut bench, next) = Bench::with_copies(&["a", "b", "c"]);
    for number in 1..=5 {
        bench.order("a", number);
    }
    bench.deliver_but(&["a"]);
    assert_eq!((bench.last("b"), bench.last("c")), (5, 5), "for all that these know, `a` has committed all five");
    bench.limit_appends("b", 2);
    bench.map(&["b", "c"], next, "2/1 b b,c");
    let parts = std::mem::take(&mut bench.mail);
    assert_eq!(parts.len(), 3);
    for (count, (from, to, part)) in parts.into_iter().enumerate() {
        bench.act(&to, |replica, now, out| replica.on_message(now, &from, part, out));
        assert_eq!(bench.last("c"), 5, "after part {count}");
    }
    bench.deliver();
    assert_eq!(bench.committed("b"), 5);
}

#[test]
fn rule_5_parts_of_two_terms_are_not_mixed() {
    let (mut bench, next) = Bench::with_copies(&["a", "b", "c"]);
    for number in 1..=3 {
        bench.order("a", number);
    }
    bench.deliver_but(&["a", "c"]);
    bench.limit_appends("b", 1);
    bench.map(&["b"], next, "2/1 b a,b,c");
    let to_c = |(_, to, _): &(Member, Member, ReplicationMessage)| *to == member("c");
    let first = bench.mail.iter().find(|mail| to_c(mail)).cloned().unwrap();
    bench.mail.clear();
    bench.act(&first.1, |replica, now, out| replica.on_message(now, &first.0, first.2, out));
    // Then `a`, which had never heard of `b`'s term, leads again, with another suffix.
    bench.map(&["a", "b", "c"], next + 1, "3/1 a a,b,c");
    bench.order("a", 4);
    bench.deliver();
    bench.order("a", 4);
    bench.deliver();
    bench.tick_after("a", 50);
    bench.deliver();
    for name in ["a", "b", "c"] {
        assert_eq!(bench.groups(name), ["g1", "g2", "g3", "g4"], "{name}");
    }
}

#[test]
fn rule_6_a_restarted_process_gets_nothing_that_was_meant_for_the_one_before() {
    let (mut bench, next) = Bench::with_copies(&["a", "b"]);
    bench.replicas.insert(member("b#2"), Replica::new(0, member("b#2"), TIMEOUT_MS));
    bench.map(&["b#2"], next - 1, "1/1 a a,b");
    bench.order("a", 1);
    let (from, _, append) = bench.mail.pop().unwrap();
    bench.act(&member("b#2"), |replica, now, out| replica.on_message(now, &from, append, out));
    assert!(bench.mail.is_empty(), "it holds nothing that could be extended, and says nothing");
    bench.map(&["a", "b#2"], next, "1/1 a a b#2");
    bench.deliver();
    assert_eq!(bench.groups("b#2"), ["g1"], "as a learner it gets all");
}

#[test]
fn what_was_lost_is_sent_again_and_repeats_do_no_harm() {
    let (mut bench, _) = Bench::with_copies(&["a", "b"]);
    bench.order("a", 1);
    let lost = std::mem::take(&mut bench.mail);
    bench.order("a", 2);
    bench.deliver();
    assert_eq!(bench.committed("a"), 2, "a hole is noticed at once");
    bench.mail = lost;
    bench.deliver();
    bench.order("a", 3);
    bench.mail.clear();
    bench.act(&member("a"), |replica, _, _| replica.link_reset(&member("b")));
    bench.deliver();
    assert_eq!(bench.committed("a"), 3);
    bench.tick_after("a", 50);
    bench.deliver();
    assert_eq!(bench.groups("b"), ["g1", "g2", "g3"]);
}

#[test]
fn what_follows_a_lost_append_has_it_sent_again_once() {
    let (mut bench, _) = Bench::with_copies(&["a", "b"]);
    bench.limit_appends("a", 1);
    bench.order("a", 1);
    bench.mail.clear();
    for number in 2..=30 {
        bench.order("a", number);
    }
    let mut delivered = 0;
    while !bench.mail.is_empty() {
        let (from, to, message) = bench.mail.remove(0);
        bench.act(&to, |replica, now, out| replica.on_message(now, &from, message, out));
        delivered += 1;
    }
    assert_eq!(bench.committed("a"), 30);
    assert!(delivered < 5 * 30, "{delivered} messages for 30 entries");
}

#[test]
fn a_learner_far_behind_gets_a_later_snapshot_and_an_older_one_changes_nothing() {
    let (mut bench, early) = Bench::with_learner();
    bench.limit("a", |limits| limits.retained_entries = 3);
    for number in 2..6 {
        bench.order("a", number);
    }
    bench.tick_after("a", 1);
    bench.deliver();
    assert_eq!((bench.last("b"), bench.promotions()), (5, 1));
    bench.mail.push(early);
    bench.deliver();
    assert_eq!(bench.last("b"), 5);
}

/// `a` has five groups, and `b` is to learn them, a group in a piece and two pieces under way. Those two.
fn with_pieces() -> (Bench, Vec<(Member, Member, ReplicationMessage)>) {
    let mut bench = Bench::new(&["a", "b"]);
    for name in ["a", "b"] {
        bench.limit(name, |limits| (limits.piece_bytes, limits.pieces_under_way) = (1, 2));
    }
    bench.map(&["a", "b"], 1, "1/1 a a");
    for number in 1..=5 {
        bench.order("a", number);
    }
    bench.map(&["a", "b"], 2, "1/1 a a b");
    let pieces = std::mem::take(&mut bench.mail);
    assert_eq!(numbers(&pieces), [0, 1]);
    (bench, pieces)
}

/// Of the pieces among these messages.
fn numbers(mail: &[(Member, Member, ReplicationMessage)]) -> Vec<u64> {
    let number = |(.., message): &(Member, Member, ReplicationMessage)| match message {
        ReplicationMessage::Piece { number, .. } => Some(*number),
        _ => None,
    };
    mail.iter().filter_map(number).collect()
}

#[test]
fn a_snapshot_comes_in_pieces_and_what_is_ordered_meanwhile_follows_it() {
    let (mut bench, pieces) = with_pieces();
    bench.order("a", 6);
    assert!(bench.mail.is_empty(), "no more is under way than may be");
    bench.mail.extend(pieces.into_iter().rev());
    let mut most = 0;
    while !bench.mail.is_empty() {
        let (from, to, message) = bench.mail.remove(0);
        bench.act(&to, |replica, now, out| replica.on_message(now, &from, message, out));
        most = most.max(numbers(&bench.mail).len());
        assert!(bench.replica("b").incoming().is_none_or(|incoming| incoming.pieces < 5 && incoming.bytes > 0));
    }
    assert_eq!((most, bench.last("b"), bench.promotions()), (2, 6, 1));
    assert_eq!(bench.replica("b").incoming(), None);
    bench.tick_after("a", 50);
    bench.deliver();
    assert_eq!(bench.groups("b"), bench.groups("a"));
}

#[test]
fn a_piece_that_is_lost_is_sent_again_and_a_repeat_says_what_is_here() {
    let (mut bench, mut pieces) = with_pieces();
    bench.mail.push(pieces.pop().unwrap());
    bench.deliver();
    assert_eq!(bench.replica("b").incoming().map(|incoming| incoming.pieces), Some(1));
    bench.tick_after("a", RESEND_MS - 1);
    assert_eq!(numbers(&bench.mail), [0_u64; 0]);
    bench.tick_after("a", 1);
    assert_eq!(numbers(&bench.mail), [0]);
    // Lost again: a link that is merely slow is not given the same again and again.
    bench.mail.clear();
    bench.tick_after("a", RESEND_MS);
    assert_eq!(numbers(&bench.mail), [0_u64; 0]);
    bench.tick_after("a", RESEND_MS);
    assert_eq!(numbers(&bench.mail), [0]);
    bench.deliver_but(&["a"]);
    bench.act(&member("a"), |replica, _, _| replica.link_reset(&member("b")));
    assert_eq!(numbers(&bench.mail), [0, 1], "the link is another one: all that may be lost");
    bench.deliver_but(&[]);
    assert_eq!((bench.last("b"), bench.promotions()), (5, 1));
}

#[test]
fn a_snapshot_whose_acknowledgement_is_lost_is_not_sent_again() {
    let (mut bench, snapshot) = Bench::with_learner();
    bench.mail.push(snapshot);
    bench.deliver_but(&["a"]);
    bench.order("a", 2);
    bench.tick_after("a", RESEND_MS);
    assert_eq!(numbers(&bench.mail), [0], "a piece asks for it");
    bench.deliver();
    assert_eq!((bench.last("b"), bench.promotions()), (2, 1));
}

#[test]
fn pieces_of_two_snapshots_are_not_mixed_and_none_outlives_its_episode() {
    let (mut bench, pieces) = with_pieces();
    bench.mail = pieces.clone();
    let first = bench.mail.remove(0);
    bench.act(&member("b"), |replica, now, out| replica.on_message(now, &first.0, first.2.clone(), out));
    bench.mail.clear();
    // Dropped, and taken again.
    bench.map(&["b"], 3, "1/1 a a");
    assert_eq!(bench.replica("b").incoming(), None, "its episode is over");
    bench.mail.push(first.clone());
    bench.deliver();
    assert_eq!(bench.replica("b").incoming(), None, "and does not come back");
    bench.map(&["a"], 3, "1/1 a a");
    bench.order("a", 6);
    bench.map(&["a", "b"], 4, "1/1 a a b");
    let mut later = std::mem::take(&mut bench.mail);
    assert_eq!(numbers(&later), [0, 1]);
    bench.mail = vec![later.remove(0), pieces[1].clone()];
    bench.deliver_but(&["a"]);
    let incoming = bench.replica("b").incoming().unwrap();
    assert_eq!(
        (incoming.of, incoming.pieces),
        ((4, 6), 1),
        "a piece of an earlier episode is not taken for its next one"
    );
    // Its primary dies, and the next one begins anew.
    bench.replicas.insert(member("c"), Replica::new(0, member("c"), TIMEOUT_MS));
    bench.map(&["b", "c"], 5, "2/2 c c");
    assert_eq!(bench.replica("b").incoming(), None);
    bench.map(&["b", "c"], 6, "2/2 c c b");
    bench.mail.push(later.remove(0));
    bench.deliver();
    assert_eq!((bench.last("b"), bench.groups("b").len()), (0, 0));
}

#[test]
fn a_snapshot_that_no_slot_has_made_is_not_taken() {
    let (mut bench, mut pieces) = with_pieces();
    let (from, to, first) = pieces.remove(0);
    let ReplicationMessage::Piece { term, sync, lineage, index, .. } = first else { unreachable!() };
    let state = bench.replica("a").state().unwrap().clone();
    let part = state.piece(&Place::default(), 1_000).0;
    for (number, is_last) in [(0, false), (1, true)] {
        let message = ReplicationMessage::Piece { term, sync, lineage, index, number, is_last, part: part.clone() };
        bench.act(&to, |replica, now, out| replica.on_message(now, &from, message, out));
    }
    assert_eq!((bench.replica("b").state(), bench.replica("b").incoming()), (None, None), "each group is there twice");
    let beyond = |number| ReplicationMessage::Piece {
        term,
        sync,
        lineage,
        index,
        number,
        is_last: false,
        part: SlotSnapshot::default(),
    };
    for number in 1..1_000 {
        bench.act(&to, |replica, now, out| replica.on_message(now, &from, beyond(number), out));
    }
    assert_eq!(bench.replica("b").incoming().unwrap().pieces, 1, "what no primary sends yet is not kept");
}

/// What a member that lies may send, to a primary and to others.
#[derive(Clone, Debug)]
enum Said {
    Message(usize, ReplicationMessage),
    Map(u64, usize),
    Order,
    Tick(u64),
}

fn lies() -> impl proptest::strategy::Strategy<Value = Vec<Said>> {
    use proptest::prelude::*;
    let number = || prop_oneof![0_u64..8, Just(crate::id::NUMBER_MAX - 1), Just(crate::id::NUMBER_MAX)];
    let entries = || (0_u64..4).prop_map(|count| (1..=count).map(|number| Arc::new(entry(number))).collect::<Vec<_>>());
    let reconcile = || proptest::option::of((number(), number()).prop_map(|(base, until)| Reconcile { base, until }));
    let append = (number(), number(), reconcile(), number(), number(), entries()).prop_map(
        |(term, sync, reconcile, first, commit, entries)| ReplicationMessage::Append {
            term,
            sync,
            reconcile,
            first,
            commit,
            entries,
        },
    );
    let ack = (number(), number(), number(), any::<bool>())
        .prop_map(|(term, sync, index, gap)| ReplicationMessage::Ack { term, sync, index, gap });
    let numbers = || (number(), number(), number(), number());
    let piece = (numbers(), 0_u64..3, any::<bool>()).prop_map(|((term, sync, lineage, index), number, is_last)| {
        ReplicationMessage::Piece { term, sync, lineage, index, number, is_last, part: SlotSnapshot::default() }
    });
    let piece_ack =
        numbers().prop_map(|(term, sync, index, count)| ReplicationMessage::PieceAck { term, sync, index, count });
    let said = prop_oneof![
        4 => (0_usize..3, prop_oneof![append, ack, piece, piece_ack]).prop_map(|(from, message)| Said::Message(from, message)),
        1 => (0_u64..3, 0_usize..3).prop_map(|(terms, primary)| Said::Map(terms, primary)),
        1 => Just(Said::Order),
        1 => (0_u64..7_000).prop_map(Said::Tick),
    ];
    proptest::collection::vec(said, 1..80)
}

proptest::proptest! {
    #[test]
    fn nothing_that_a_member_says_ends_a_copy(lies in lies()) {
        let members = ["a", "b", "c"].map(member);
        let mut replica = Replica::new(0, members[0].clone(), TIMEOUT_MS);
        let (mut now_ms, mut version, mut term) = (0, 1, 1);
        let mut out = Vec::new();
        let now = |mono_ms| Now { mono_ms, wall_ms: mono_ms };
        replica.on_map(now(0), 1, &assignment(1, "1/1 a a"), &mut out);
        for said in lies {
            match said {
                Said::Message(from, message) => replica.on_message(now(now_ms), &members[from], message, &mut out),
                Said::Map(terms, primary) => {
                    (version, term) = (version + 1, term + terms);
                    let text = format!("{term}/1 {} a,b,c", ["a", "b", "c"][primary]);
                    let text = if terms == 0 { format!("{term}/1 a a b") } else { text };
                    replica.on_map(now(now_ms), version, &assignment(version, &text), &mut out);
                }
                Said::Order => {
                    replica.order(entry(9));
                }
                Said::Tick(ms) => {
                    now_ms += ms;
                    replica.on_tick(now(now_ms), &mut out);
                }
            }
            replica.flush(now(now_ms), &mut out);
            out.clear();
        }
    }
}
