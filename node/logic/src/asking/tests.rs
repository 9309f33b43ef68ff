//! One request, told what happens to it step by step.

use super::*;
use crate::{
    id::{Epoch, GroupName, NodeId, Position},
    request::{Done, PublishEphemeral, Published},
};

type Answer = Result<SlotAnswer, SlotError>;

const DONE: Answer = Ok(SlotAnswer::Done(Done));

const LIMIT_MS: u64 = 5_000;

struct Bench {
    asking: Asking,
    now_ms: u64,
    out: Vec<Output>,
}

fn member(name: &str) -> Member {
    Member { node: NodeId::parse(name).unwrap(), generation: 1 }
}

fn not_primary(map_version: u64, ordered: bool) -> Answer {
    Err(SlotError::NotPrimary { map_version, ordered })
}

impl Bench {
    /// Asks `p`, the primary in term 1 of the map 1.
    fn new() -> Self {
        let mut bench = Self { asking: Asking::new(0, LIMIT_MS, 7), now_ms: 0, out: Vec::new() };
        bench.map(1, "p", 1);
        bench.sent(1, "p", 1, 0);
        bench
    }

    fn handle(&mut self, input: Input) {
        self.asking.handle(self.now_ms, input, &mut self.out);
    }

    fn map(&mut self, version: u64, primary: &str, term: Term) {
        self.handle(Input::Map { version, primary: Some((member(primary), term)) });
    }

    fn answer(&mut self, attempt: Attempt, result: Answer) {
        self.handle(Input::Answered { attempt, result });
    }

    /// Lets time pass until it wants to be woken.
    fn sleep(&mut self) {
        self.now_ms = self.asking.wake_ms().expect("it goes on");
        self.handle(Input::Due);
    }

    #[track_caller]
    fn sent(&mut self, attempt: Attempt, to: &str, term: Term, waited_ms: u64) {
        let wait_ms = ATTEMPT_MS.min(LIMIT_MS - self.now_ms);
        let send = Output::Send { attempt, to: member(to), term, wait_ms, waited_ms };
        assert_eq!(std::mem::take(&mut self.out), [send]);
    }

    #[track_caller]
    fn done(&mut self, answer: Answer) {
        assert_eq!(std::mem::take(&mut self.out), [Output::Done(answer)]);
        assert_eq!(self.asking.wake_ms(), None);
    }

    #[track_caller]
    fn waits(&self) {
        assert_eq!(self.out, []);
    }
}

#[test]
fn the_first_answer_ends_it_refusals_too() {
    let refusals = [SlotError::Busy, SlotError::Unavailable, SlotError::NoSession, SlotError::TooManyGroups];
    for answer in refusals.into_iter().map(Err).chain([DONE]) {
        let mut bench = Bench::new();
        bench.answer(1, answer.clone());
        bench.done(answer);
        for late in [Input::Due, Input::Over, Input::Lost { attempt: 1 }] {
            bench.handle(late);
        }
        bench.map(2, "q", 2);
        bench.waits();
    }
}

#[test]
fn it_asks_again_whom_a_newer_map_names() {
    let mut bench = Bench::new();
    bench.answer(1, not_primary(3, false));
    assert_eq!(std::mem::take(&mut bench.out), [Output::FetchMap { from: member("p"), newer_than: 1 }]);
    bench.now_ms = 5;
    bench.map(2, "p", 1);
    bench.waits();
    bench.map(3, "q", 2);
    bench.sent(2, "q", 2, 5);
    bench.map(2, "p", 1);
    bench.waits();
    bench.answer(2, DONE);
    bench.done(DONE);
}

#[test]
fn a_primary_that_is_replaced_is_not_waited_for_and_its_late_word_does_not_count() {
    let mut bench = Bench::new();
    bench.now_ms = 700;
    bench.map(2, "q", 2);
    bench.sent(2, "q", 2, 700);
    for late in [Err(SlotError::Busy), not_primary(2, false), DONE] {
        bench.answer(1, late);
        bench.waits();
    }
    bench.answer(2, DONE);
    bench.done(DONE);
}

#[test]
fn not_done_is_not_said_when_an_earlier_attempt_may_have_been_carried_out() {
    for refusal in [SlotError::Busy, SlotError::Unavailable, SlotError::NotEnoughCopies { copies: 1, min_copies: 2 }] {
        let mut bench = Bench::new();
        bench.handle(Input::Lost { attempt: 1 });
        let mut attempt = 1;
        while bench.out != [Output::Done(Err(SlotError::Unknown))] {
            bench.out.clear();
            bench.sleep();
            if let [Output::Send { attempt: now, .. }] = &bench.out[..] {
                attempt = *now;
                bench.out.clear();
                bench.answer(attempt, Err(refusal.clone()));
            }
        }
        assert_eq!(bench.now_ms, LIMIT_MS);
        assert!(attempt > 10, "it went on asking: {attempt}");
    }
    for refusal in [SlotError::StoreUnavailable("down".to_owned()), SlotError::TooManyGroups] {
        let mut bench = Bench::new();
        bench.answer(1, not_primary(1, true));
        bench.waits();
        bench.sleep();
        bench.out.clear();
        bench.answer(2, Err(refusal));
        bench.done(Err(SlotError::Unknown));
    }
}

#[test]
fn nor_is_it_said_of_a_part() {
    let published = Published { position: Position { epoch: Epoch(1), offset: 7 }, copies: 2 };
    let answer = |second| Ok(SlotAnswer::Published([Ok(published), second].into()));
    let mut bench = Bench::new();
    bench.answer(1, answer(Err(SlotError::Full)));
    bench.done(answer(Err(SlotError::Full)));
    let mut bench = Bench::new();
    bench.handle(Input::Lost { attempt: 1 });
    bench.sleep();
    bench.out.clear();
    bench.answer(2, answer(Err(SlotError::Full)));
    bench.waits();
    bench.sleep();
    bench.out.clear();
    bench.answer(3, answer(Ok(published)));
    bench.done(answer(Ok(published)));
}

#[test]
fn at_the_deadline_it_is_refused_if_nobody_was_reached_and_unknown_otherwise() {
    let check = |fails: fn(Attempt) -> Input, expected: SlotError| {
        let mut bench = Bench::new();
        let mut attempt = 1;
        while bench.asking.wake_ms().is_some() {
            bench.handle(fails(attempt));
            bench.out.clear();
            bench.sleep();
            if let Some(Output::Send { attempt: now, .. }) = bench.out.first() {
                attempt = *now;
            }
        }
        bench.done(Err(expected));
        assert_eq!(bench.now_ms, LIMIT_MS);
    };
    check(|attempt| Input::NotSent { attempt }, SlotError::Unavailable);
    check(|attempt| Input::Answered { attempt, result: not_primary(1, false) }, SlotError::Unavailable);
    check(|attempt| Input::Answered { attempt, result: not_primary(1, true) }, SlotError::Unknown);
    check(|attempt| Input::Lost { attempt }, SlotError::Unknown);
    // Nothing is heard at all.
    check(|_| Input::Due, SlotError::Unknown);
}

#[test]
fn once_its_asker_is_gone_nothing_is_tried_again() {
    // Between two attempts it ends at once.
    let mut bench = Bench::new();
    bench.handle(Input::NotSent { attempt: 1 });
    bench.handle(Input::Over);
    bench.done(Err(SlotError::Unavailable));
    // What is under way is waited for: it may have been done, and then has to be undone.
    let mut bench = Bench::new();
    bench.handle(Input::Over);
    bench.waits();
    bench.answer(1, DONE);
    bench.done(DONE);
    let fails = [Input::Lost { attempt: 1 }, Input::Answered { attempt: 1, result: not_primary(1, true) }];
    for input in fails {
        let mut bench = Bench::new();
        bench.handle(Input::Over);
        bench.handle(input);
        bench.done(Err(SlotError::Unknown));
    }
    let mut bench = Bench::new();
    bench.handle(Input::Over);
    bench.map(2, "q", 2);
    bench.done(Err(SlotError::Unknown));
    let mut bench = Bench { asking: Asking::new(0, LIMIT_MS, 7), now_ms: 0, out: Vec::new() };
    bench.handle(Input::Over);
    bench.done(Err(SlotError::Unavailable));
}

#[test]
fn pauses_grow_differ_and_begin_anew_with_another_primary() {
    let pauses = |seed: u64| {
        let mut asking = Asking::new(0, LIMIT_MS, seed);
        let (mut now_ms, mut pauses, mut out) = (0, Vec::new(), Vec::new());
        asking.handle(0, Input::Map { version: 1, primary: Some((member("p"), 1)) }, &mut out);
        for attempt in 1..=8 {
            asking.handle(now_ms, Input::NotSent { attempt }, &mut out);
            let until_ms = asking.wake_ms().unwrap();
            pauses.push(until_ms - now_ms);
            now_ms = until_ms;
            asking.handle(now_ms, Input::Due, &mut out);
        }
        pauses
    };
    for seed in 0..50 {
        for (pause_ms, most_ms) in pauses(seed).into_iter().zip([25, 50, 100, 200, 200, 200, 200, 200]) {
            assert!((most_ms / 2..=most_ms).contains(&pause_ms), "{pause_ms} of {most_ms}");
        }
    }
    assert_ne!(pauses(1), pauses(2));
    let mut bench = Bench::new();
    for attempt in 1..=5 {
        bench.handle(Input::NotSent { attempt });
        bench.sleep();
    }
    bench.map(2, "q", 2);
    bench.handle(Input::NotSent { attempt: 7 });
    assert!(bench.asking.wake_ms().unwrap() <= bench.now_ms + PAUSE_MS);
}

#[test]
fn an_answer_goes_to_who_asked_and_comes_from_who_was_asked() {
    let (p, q) = (member("p").node, member("q").node);
    let mut outstanding = Outstanding::default();
    let (first, second, third) =
        (outstanding.ask(&p, "first"), outstanding.ask(&q, "second"), outstanding.ask(&p, "third"));
    assert_eq!(outstanding.answered(&q, first), None, "another was asked");
    assert_eq!(outstanding.answered(&p, first), Some("first"));
    assert_eq!(outstanding.answered(&p, first), None, "only once");
    let fourth = outstanding.ask(&p, "fourth");
    assert!(fourth > third, "no number is given again");
    outstanding.forget(fourth);
    assert_eq!(outstanding.answered(&p, fourth), None);
    assert_eq!(outstanding.disrupted(&p), ["third"]);
    assert_eq!(outstanding.answered(&q, second), Some("second"));
}

#[test]
fn what_may_not_be_repeated_is_asked_again_only_where_it_was_surely_not_carried_out() {
    let request = || {
        let group = GroupName::parse("g").unwrap();
        SlotRequest::Group(group, PublishEphemeral { data: ["1".into()].into(), from: None }.into())
    };
    let bench = || {
        let asking = Asking::new(0, LIMIT_MS, 7).of(&request());
        let mut bench = Bench { asking, now_ms: 0, out: Vec::new() };
        bench.map(1, "p", 1);
        bench.sent(1, "p", 1, 0);
        bench
    };
    // Nobody has done it: it goes on.
    for fails in [Input::NotSent { attempt: 1 }, Input::Answered { attempt: 1, result: not_primary(1, false) }] {
        let mut bench = bench();
        bench.handle(fails);
        bench.waits();
        bench.sleep();
        assert!(matches!(&bench.out[..], [Output::Send { attempt: 2, .. }]), "{:?}", bench.out);
    }
    // Somebody may have.
    for fails in [Input::Lost { attempt: 1 }, Input::Answered { attempt: 1, result: not_primary(1, true) }] {
        let mut bench = bench();
        bench.handle(fails);
        bench.done(Err(SlotError::Unknown));
    }
    let mut replaced = bench();
    replaced.map(2, "q", 2);
    replaced.done(Err(SlotError::Unknown));
    let mut silent = bench();
    silent.sleep();
    assert_eq!(silent.now_ms, ATTEMPT_MS);
    silent.done(Err(SlotError::Unknown));
    // With nobody to ask it is over as soon.
    let mut nobody = bench();
    while nobody.out.is_empty() {
        nobody.handle(Input::NotSent { attempt: nobody.asking.attempts });
        nobody.out.clear();
        if nobody.asking.wake_ms().is_none() {
            break;
        }
        nobody.sleep();
        if let [Output::Send { .. }] = &nobody.out[..] {
            nobody.out.clear();
        }
    }
    assert_eq!(nobody.now_ms, ATTEMPT_MS);
}
