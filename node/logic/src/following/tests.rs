//! What concerns all groups of a slot, and the requests. What one feed decides is tested with it.

use super::*;
use crate::{
    id::NodeId,
    map::ClusterMap,
    request::{JoinPoint, Register},
};

const EPOCH: Epoch = Epoch(7);
const SLOT: SlotId = 3;

fn member(name: &str) -> Member {
    Member { node: NodeId::parse(name).unwrap(), generation: 1 }
}

fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

fn map(primary: &str, term: Term) -> Input {
    let mut map = ClusterMap::first(&member(primary), 8);
    map.slots.iter_mut().for_each(|slot| slot.term = term);
    Input::Map(Arc::new(map))
}

/// A gateway `me` that hears the primary `p`, and `q`.
struct Bench {
    following: Following,
    now_ms: u64,
}

impl Bench {
    fn new(settings: FollowingSettings) -> Self {
        let mut bench = Self { following: Following::new(member("me"), settings), now_ms: 10_000 };
        bench.input(map("p", 1));
        bench.input(Input::Alive(Arc::new(["me", "p", "q"].map(member).into())));
        bench.input(Input::PeerConnected(member("p")));
        bench.input(Input::PeerConnected(member("q")));
        bench
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.following.handle(self.now_ms, input, &mut out);
        out
    }

    fn flush(&mut self) -> Vec<Ask> {
        let mut out = Vec::new();
        self.following.flush(&mut out);
        let ask = |output| match output {
            Output::Ask(ask) => ask,
            other => panic!("{other:?} is told without an input"),
        };
        out.into_iter().map(ask).collect()
    }

    fn pass(&mut self, ms: u64) -> Vec<Output> {
        self.now_ms += ms;
        self.input(Input::Tick)
    }

    fn subscribe(&mut self, subscriber: Subscriber, name: &str) -> Vec<Output> {
        let (request, member, since) = (None, None, None);
        self.input(Input::Subscribe {
            slot: SLOT,
            group: group(name),
            subscriber,
            request,
            member,
            summed: false,
            since,
        })
    }

    /// The primary has every group at this offset.
    fn answer(&mut self, ask: Ask, head: u64) -> Vec<Output> {
        let point = |group: &GroupName| JoinPoint {
            group: group.clone(),
            epoch: EPOCH,
            head,
            up_to: head,
            recovered: true,
            messages: Vec::new(),
            present: Default::default(),
        };
        let answer = match ask {
            Ask::Register { slot, asked, .. } => {
                let result = Ok(asked.iter().map(|(group, _)| point(group)).collect());
                Answer::Registered { slot, asked, result }
            }
            Ask::Unregister { slot, asked, .. } => Answer::Unregistered { slot, asked },
            Ask::Join { asked, subscriber, .. } => {
                let result = Ok(point(&asked.group));
                Answer::Joined { asked, subscriber, result }
            }
            Ask::Leave { asked, subscriber, request, tries } => {
                let result = Err(SlotError::Unavailable);
                Answer::Left { asked, subscriber, request, tries, result }
            }
        };
        self.input(Input::Answered(answer))
    }

    fn answer_all(&mut self) -> Vec<Output> {
        let asks = self.flush();
        asks.into_iter().flat_map(|ask| self.answer(ask, 0)).collect()
    }

    fn joined(&mut self, subscriber: Subscriber, name: &str) {
        self.subscribe(subscriber, name);
        let out = self.answer_all();
        assert!(matches!(out.as_slice(), [.., Output::Joined { .. }]), "{out:?}");
    }
}

fn registered(asks: &[Ask]) -> Vec<usize> {
    let count = |ask: &Ask| match ask {
        Ask::Register { asked, request: Register(interests), .. } if asked.len() == interests.len() => asked.len(),
        other => panic!("{other:?} is asked"),
    };
    asks.iter().map(count).collect()
}

#[test]
fn groups_of_a_slot_are_registered_together_when_their_primary_connects_anew_or_is_another() {
    let mut bench = Bench::new(FollowingSettings { groups_at_once: 2, ..FollowingSettings::default() });
    for name in ["a", "b", "c"] {
        bench.joined(1, name);
    }
    bench.input(Input::PeerConnected(member("q")));
    assert_eq!(bench.flush(), []);
    bench.input(Input::PeerConnected(member("p")));
    let asks = bench.flush();
    assert_eq!(registered(&asks), [2, 1]);
    asks.into_iter().for_each(|ask| assert_eq!(bench.answer(ask, 0), []));
    bench.input(map("p", 1));
    assert_eq!(bench.flush(), []);
    bench.input(map("q", 2));
    assert_eq!(registered(&bench.flush()), [2, 1]);
}

#[test]
fn requests_under_way_are_bounded_and_registrations_come_first() {
    let mut bench =
        Bench::new(FollowingSettings { in_flight: 1, waiting: 1, groups_at_once: 1, ..FollowingSettings::default() });
    bench.joined(1, "a");
    bench.subscribe(2, "a");
    let out = bench.subscribe(3, "a");
    let refused =
        |output: &Output| matches!(output, Output::JoinFailed { error: SlotError::Busy, overtaken: false, .. });
    assert!(out.iter().any(refused), "{out:?}");
    bench.input(Input::PeerConnected(member("p")));
    let asks = bench.flush();
    assert_eq!(registered(&asks), [1]);
    assert_eq!(bench.flush(), [], "one is under way");
    for ask in asks {
        bench.answer(ask, 0);
    }
    assert!(matches!(bench.flush().as_slice(), [Ask::Join { subscriber: 2, .. }]));
}

#[test]
fn who_joins_is_told_that_the_primary_is_not_heard_and_all_when_it_is() {
    let mut bench = Bench::new(FollowingSettings::default());
    bench.joined(1, "a");
    assert_eq!(bench.input(Input::PeerLost(member("p"))), []);
    let stale = |out: &[Output]| {
        out.iter().filter(|output| matches!(output, Output::Tell { notice: Notice::Stale, .. })).count()
    };
    assert_eq!(stale(&bench.pass(499)), 0, "it was heard at most 1 s before it was lost");
    assert_eq!(stale(&bench.pass(1)), 1);
    bench.subscribe(2, "b");
    assert_eq!(stale(&bench.answer_all()), 1, "of another group of the slot");
    bench.input(Input::PeerConnected(member("p")));
    let out = bench.answer_all();
    let live = out.iter().filter(|output| matches!(output, Output::Tell { notice: Notice::Live(_), .. }));
    assert_eq!(live.count(), 2, "{out:?}");
}

#[test]
fn an_answer_to_a_feed_that_is_no_more_means_nothing_to_the_next() {
    let mut bench = Bench::new(FollowingSettings::default());
    bench.subscribe(1, "a");
    let [late] = bench.flush().try_into().unwrap();
    let out = bench.input(Input::Gone { subscriber: 1 });
    assert!(out.contains(&Output::Ended { group: group("a"), subscriber: 1 }), "{out:?}");
    bench.pass(FeedSettings::default().linger_ms);
    bench.answer_all();
    assert!(!bench.following.has_joining(SLOT, &group("a")));
    bench.subscribe(1, "a");
    assert_eq!(bench.answer(late, 5), [], "it was asked for another join of the same connection");
    let out = bench.answer_all();
    assert!(matches!(out.as_slice(), [Output::Joined { offset: 0, .. }]), "{out:?}");
}

#[test]
fn a_message_that_nobody_here_wants_ends_the_registration() {
    let mut bench = Bench::new(FollowingSettings::default());
    let messages = [Message { offset: 1, data: "1".into(), from: None, at_ms: 0 }].into();
    let deliver = Input::Deliver { slot: SLOT, term: 1, group: group("a"), epoch: EPOCH, messages };
    assert_eq!(bench.input(deliver.clone()), []);
    assert!(matches!(bench.flush().as_slice(), [Ask::Unregister { .. }]));
    assert_eq!(bench.input(deliver), []);
    assert_eq!(bench.flush(), [], "it is under way");
}

#[test]
fn a_leave_is_asked_again_before_the_presence_is_given_up() {
    let mut bench = Bench::new(FollowingSettings::default());
    bench.joined(1, "a");
    let leave = Some(Seat { session: SessionId(uuid::Uuid::nil()), client: crate::id::ClientKey(1), attachment: 4 });
    bench.input(Input::Unsubscribe { slot: SLOT, group: group("a"), subscriber: 1, leave });
    for _ in 1..FollowingSettings::default().leave_tries {
        assert_eq!(bench.answer_all(), []);
        assert_eq!(bench.flush(), []);
        bench.pass(FollowingSettings::default().leave_pause_ms);
    }
    assert!(matches!(bench.answer_all().as_slice(), [Output::StaysPresent { .. }]));
    bench.pass(FollowingSettings::default().leave_pause_ms);
    assert_eq!(bench.flush(), []);
}
