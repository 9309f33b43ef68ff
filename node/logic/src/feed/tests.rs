//! Single steps; `simulation` covers the mixtures.

use uuid::Uuid;

use super::*;
use crate::{
    entry::{EphemeralMessage, Message},
    id::{GroupName, Seat, SessionId},
};

const E1: Epoch = Epoch(1);
const E2: Epoch = Epoch(2);

fn message(offset: u64) -> Message {
    Message { offset, data: offset.to_string().into_bytes().into(), from: None, at_ms: 0 }
}

fn point(epoch: Epoch, head: u64, recovered: bool, messages: impl IntoIterator<Item = u64>) -> JoinPoint {
    let group = GroupName::parse("g").unwrap();
    let messages = messages.into_iter().map(message).collect();
    JoinPoint { group, epoch, head, up_to: head, recovered, messages, present: Present::default() }
}

fn at(epoch: Epoch, offset: u64) -> Position {
    Position { epoch, offset }
}

/// A feed with a clock and what it said last, in short words.
struct Bench {
    feed: Feed,
    now_ms: u64,
}

impl Bench {
    fn new() -> Self {
        Self { feed: Feed::new(Arc::default(), 0), now_ms: 0 }
    }

    fn step(&mut self, input: Input) -> Vec<String> {
        let mut out = Vec::new();
        self.feed.handle(self.now_ms, input, &mut out);
        out.iter().map(short).collect()
    }

    fn check(&mut self, input: Input, expected: &[&str]) {
        let got = self.step(input.clone());
        assert_eq!(got, expected, "after {input:?}");
    }

    /// Ticks at its own wake times until `until_ms`.
    fn pass(&mut self, until_ms: u64) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(wake) = self.feed.next_wake().filter(|wake| *wake <= until_ms) {
            self.now_ms = self.now_ms.max(wake);
            said.extend(self.step(Input::Tick));
        }
        self.now_ms = until_ms;
        said
    }

    /// A feed with one live subscriber (1) at this position.
    fn live(epoch: Epoch, head: u64) -> Self {
        let mut bench = Self::new();
        bench.check(subscribe(1, None), &["ask join 1: 1 since none"]);
        bench.check(joined(1, 1, point(epoch, head, true, [])), &[&format!("1 joined {}:{head}", epoch.0)]);
        bench
    }
}

fn short(output: &Output) -> String {
    let position = |position: &Position| format!("{}:{}", position.epoch.0, position.offset);
    match output {
        Output::AskJoin { attempt, subscriber, since, .. } => {
            format!("ask join {attempt}: {subscriber} since {}", since.as_ref().map_or("none".to_owned(), position))
        }
        Output::AskRegister { attempt, since } => format!("ask register {attempt}: since {}", position(since)),
        Output::AskUnregister { attempt } => format!("ask unregister {attempt}"),
        Output::AskLeave { attempt, subscriber, .. } => format!("ask leave {attempt}: {subscriber}"),
        Output::Joined { subscriber, epoch, offset, recovered, .. } => {
            format!("{subscriber} joined {}:{offset}{}", epoch.0, if *recovered { "" } else { " not recovered" })
        }
        Output::JoinFailed { subscriber, error, .. } => format!("{subscriber} failed {error:?}"),
        Output::Replay { subscriber } => format!("{subscriber} page"),
        Output::ReplayFailed { subscriber, error } => format!("{subscriber} no page: {error:?}"),
        Output::Behind { subscriber } => format!("{subscriber} behind"),
        Output::Tell { to, notice } => {
            let to = match to {
                To::AllBut(none) if none.is_empty() => "all".to_owned(),
                To::AllBut(some) => format!("all but {some:?}"),
                To::One(one) => one.to_string(),
            };
            match notice {
                Notice::Message { epoch, message } => format!("{to}: message {}:{}", epoch.0, message.offset),
                Notice::Member { event, .. } => format!("{to}: member {event:?}"),
                Notice::Present(Present { sessions, users, .. }) => format!("{to}: {sessions} of {users}"),
                Notice::Ephemeral(_) => format!("{to}: ephemeral"),
                Notice::Gap { epoch, from, to: last } => format!("{to}: gap {}:{from}-{last}", epoch.0),
                Notice::Reset(at) => format!("{to}: reset {}", position(at)),
                Notice::Stale => format!("{to}: stale"),
                Notice::Live(at) => format!("{to}: live {}", position(at)),
            }
        }
    }
}

fn presence() -> Presence {
    Presence {
        session: SessionId(Uuid::nil()),
        client: crate::id::ClientKey(1),
        user: "u".into(),
        revision: 0,
        info: "{}".into(),
        attachment: 1,
    }
}

fn subscribe(subscriber: u64, since: Option<Position>) -> Input {
    Input::Subscribe { subscriber, request: None, member: Some(presence()), summed: false, since }
}

fn unsubscribe(subscriber: u64) -> Input {
    Input::Unsubscribe {
        subscriber,
        leave: Some(Seat { session: SessionId(Uuid::nil()), client: crate::id::ClientKey(1), attachment: 1 }),
    }
}

fn joined(attempt: u64, subscriber: u64, point: JoinPoint) -> Input {
    Input::JoinAnswer { attempt, subscriber, result: Ok(point) }
}

fn registered(attempt: u64, point: JoinPoint) -> Input {
    Input::RegisterAnswer { attempt, result: Ok(point) }
}

fn deliver(epoch: Epoch, offset: u64) -> Input {
    Input::Deliver { epoch, message: message(offset), term: 1 }
}

/// A page after which there is more.
fn full_page(epoch: Epoch, offset: u64) -> JoinPoint {
    JoinPoint { head: offset + 1, ..point(epoch, offset, true, [offset]) }
}

#[test]
fn a_client_that_lags_is_told_nothing_until_it_has_room() {
    let mut bench = Bench::live(E1, 5);
    bench.check(deliver(E1, 6), &["all: message 1:6"]);
    bench.check(Input::Lag { subscriber: 1, at: at(E1, 5) }, &["1 behind"]);
    bench.check(deliver(E1, 7), &[]);
    let (event, present) = (MemberEvent::Join, Present::default());
    bench.check(Input::Member { event, member: presence(), present }, &["all: member Join"]);
    bench.check(Input::Room { subscriber: 1 }, &["ask join 2: 1 since 1:5"]);
    bench.check(Input::Room { subscriber: 1 }, &[]);
    bench.check(deliver(E1, 8), &[]);
    bench.check(
        joined(2, 1, point(E1, 7, true, [6, 7])),
        &["1 page", "1: message 1:6", "1: message 1:7", "1: message 1:8", "1: live 1:8"],
    );
    bench.check(deliver(E1, 9), &["all: message 1:9"]);
}

#[test]
fn a_page_after_which_there_is_more_leaves_the_client_behind() {
    let mut bench = Bench::live(E1, 9);
    bench.check(subscribe(2, Some(at(E1, 3))), &["ask join 2: 2 since 1:3"]);
    bench.check(
        joined(2, 2, point(E1, 5, true, [4, 5])),
        &["2 joined 1:5", "2: message 1:4", "2: message 1:5", "2 behind"],
    );
    bench.check(deliver(E1, 10), &["all: message 1:10"]);
    bench.check(Input::Room { subscriber: 2 }, &["ask join 3: 2 since 1:5"]);
    // Trimmed meanwhile, and told before the rest.
    bench.check(joined(3, 2, point(E1, 8, false, [8])), &["2 page", "2: gap 1:6-7", "2: message 1:8", "2 behind"]);
    bench.check(Input::Room { subscriber: 2 }, &["ask join 4: 2 since 1:8"]);
    bench.check(
        joined(4, 2, point(E1, 10, true, [9, 10])),
        &["2 page", "2: message 1:9", "2: message 1:10", "2: live 1:10"],
    );
}

#[test]
fn a_first_page_after_which_there_may_be_more_is_no_place_for_the_feed() {
    let mut bench = Bench::new();
    bench.check(subscribe(1, Some(at(E1, 3))), &["ask join 1: 1 since 1:3"]);
    bench.check(joined(1, 1, full_page(E1, 4)), &["1 joined 1:4", "1: message 1:4", "1 behind"]);
    bench.check(deliver(E1, 9), &[]);
    bench.check(Input::Room { subscriber: 1 }, &["ask join 2: 1 since 1:4"]);
    bench.check(joined(2, 1, point(E1, 5, true, [5])), &["1 page", "1: message 1:5", "1: live 1:5"]);
    assert_eq!(bench.feed.position, Some(at(E1, 5)));
}

#[test]
fn a_client_that_is_behind_hears_of_another_log() {
    let mut bench = Bench::live(E1, 5);
    bench.check(Input::Lag { subscriber: 1, at: at(E1, 4) }, &["1 behind"]);
    bench.check(Input::Room { subscriber: 1 }, &["ask join 2: 1 since 1:4"]);
    bench.check(joined(2, 1, point(E2, 2, false, [])), &["1 page", "1: reset 2:2", "1: live 2:2"]);
}

#[test]
fn a_page_that_cannot_be_had_leaves_the_client_where_it_was() {
    let mut bench = Bench::live(E1, 5);
    bench.check(Input::Lag { subscriber: 1, at: at(E1, 4) }, &["1 behind"]);
    bench.check(Input::Room { subscriber: 1 }, &["ask join 2: 1 since 1:4"]);
    let failed = Input::JoinAnswer { attempt: 2, subscriber: 1, result: Err(SlotError::Unavailable) };
    bench.check(failed, &["1 no page: Unavailable"]);
    bench.check(Input::Room { subscriber: 1 }, &["ask join 3: 1 since 1:4"]);
    // What it has seen stands, whatever a primary says that has less.
    for attempt in 3..12 {
        let said = bench.step(joined(attempt, 1, point(E1, 3, false, [])));
        assert!(!said.iter().any(|said| said.contains("page")), "{said:?}");
        let paused = bench.pass(bench.now_ms + 1_000);
        assert!(!paused.iter().any(|said| said.contains("gap")), "{paused:?}");
    }
    bench.check(unsubscribe(1), &[&format!("ask leave {}: 1", bench.feed.last_attempt + 1)]);
    assert_eq!(bench.feed.subscriber_count(), 0);
}

#[test]
fn pushes_that_overtake_the_first_answer_are_kept_and_those_before_it_dropped() {
    let mut bench = Bench::new();
    bench.check(subscribe(1, None), &["ask join 1: 1 since none"]);
    for offset in [4, 5, 6] {
        bench.check(deliver(E1, offset), &[]);
    }
    bench.check(joined(1, 1, point(E1, 5, true, [])), &["1 joined 1:5", "all: message 1:6"]);
    bench.check(deliver(E1, 6), &[]);
    bench.check(deliver(E1, 7), &["all: message 1:7"]);
}

#[test]
fn a_join_point_behind_the_feed_is_filled_from_what_was_delivered() {
    let mut bench = Bench::live(E1, 5);
    bench.check(subscribe(2, Some(at(E1, 3))), &["ask join 2: 2 since 1:3"]);
    bench.check(deliver(E1, 6), &["all: message 1:6"]);
    bench.check(deliver(E1, 7), &["all: message 1:7"]);
    bench.check(
        joined(2, 2, point(E1, 6, true, [4, 5, 6])),
        &["2 joined 1:6", "2: message 1:4", "2: message 1:5", "2: message 1:6", "2: message 1:7"],
    );
    bench.check(deliver(E1, 8), &["all: message 1:8"]);
}

#[test]
fn a_join_point_ahead_of_the_feed_waits_for_it() {
    let mut bench = Bench::live(E1, 5);
    bench.step(subscribe(2, None));
    bench.check(joined(2, 2, point(E1, 7, true, [])), &["2 joined 1:7"]);
    bench.check(deliver(E1, 6), &["all but [2]: message 1:6"]);
    bench.check(deliver(E1, 7), &["all but [2]: message 1:7"]);
    bench.check(deliver(E1, 8), &["all: message 1:8"]);
}

#[test]
fn pushes_that_an_answer_has_told_of_and_do_not_come_are_asked_for() {
    let mut bench = Bench::live(E1, 5);
    bench.step(subscribe(2, None));
    bench.step(joined(2, 2, point(E1, 7, true, [])));
    assert_eq!(bench.pass(300), ["ask register 3: since 1:5"]);
    bench.check(registered(3, point(E1, 7, true, [6, 7])), &["all but [2]: message 1:6", "all but [2]: message 1:7"]);
}

#[test]
fn what_is_trimmed_is_declared_to_the_one_who_resumes() {
    let mut bench = Bench::live(E1, 9);
    bench.step(subscribe(2, Some(at(E1, 3))));
    bench.check(
        joined(2, 2, point(E1, 9, false, [8, 9])),
        &["2 joined 1:9 not recovered", "2: gap 1:4-7", "2: message 1:8", "2: message 1:9"],
    );
    bench.step(subscribe(3, Some(at(E2, 3))));
    bench.check(joined(3, 3, point(E1, 9, false, [8, 9])), &["3 joined 1:9 not recovered"]);
}

#[test]
fn an_answer_that_claims_more_than_it_holds_is_not_believed() {
    let mut bench = Bench::live(E1, 9);
    bench.step(subscribe(2, Some(at(E1, 3))));
    bench.check(joined(2, 2, point(E1, 9, true, [5, 7, 8, 9])), &["2 failed Unknown", "ask leave 3: 2"]);
}

#[test]
fn a_hole_is_asked_for_and_filled_before_what_follows_it() {
    let mut bench = Bench::live(E1, 5);
    bench.check(deliver(E1, 8), &["ask register 2: since 1:5"]);
    bench.check(deliver(E1, 9), &[]);
    bench.check(
        registered(2, point(E1, 8, true, [6, 7, 8])),
        &["all: message 1:6", "all: message 1:7", "all: message 1:8", "all: message 1:9"],
    );
    bench.check(deliver(E1, 10), &["all: message 1:10"]);
}

#[test]
fn a_hole_that_nobody_can_fill_is_declared_but_for_what_is_in_hand() {
    let mut bench = Bench::live(E1, 5);
    bench.check(deliver(E1, 8), &["ask register 2: since 1:5"]);
    bench.check(
        registered(2, point(E1, 10, false, [10])),
        &["all: gap 1:6-7", "all: message 1:8", "all: gap 1:9-9", "all: message 1:10"],
    );
}

#[test]
fn a_gap_spares_those_who_are_ahead_of_it() {
    let mut bench = Bench::live(E1, 5);
    bench.step(subscribe(2, None));
    bench.step(joined(2, 2, point(E1, 7, true, [])));
    bench.step(subscribe(3, None));
    bench.step(joined(3, 3, point(E1, 20, true, [])));
    bench.check(Input::Disrupted, &["ask register 4: since 1:5"]);
    bench.check(
        registered(4, point(E1, 11, false, [11])),
        &["all but [2, 3]: gap 1:6-10", "2: gap 1:8-10", "all but [3]: message 1:11"],
    );
}

#[test]
fn another_log_is_a_reset() {
    let mut bench = Bench::live(E1, 5);
    bench.check(deliver(E2, 3), &["ask register 2: since 1:5"]);
    bench.check(deliver(E2, 4), &[]);
    bench.check(registered(2, point(E2, 3, false, [1, 2, 3])), &["all: reset 2:3", "all: message 2:4"]);
}

#[test]
fn a_push_of_another_log_by_an_older_term_is_not_even_asked_about() {
    let mut bench = Bench::live(E2, 5);
    bench.check(Input::Deliver { epoch: E2, message: message(6), term: 4 }, &["all: message 2:6"]);
    bench.check(Input::Deliver { epoch: E1, message: message(9), term: 3 }, &[]);
}

#[test]
fn a_deposed_primary_never_moves_the_position_back() {
    let mut bench = Bench::live(E1, 5);
    bench.check(Input::Disrupted, &["ask register 2: since 1:5"]);
    bench.check(registered(2, point(E1, 3, false, [])), &[]);
    assert_eq!(bench.pass(60), ["ask register 3: since 1:5"]);
    bench.check(registered(3, point(E1, 6, true, [6])), &["all: message 1:6"]);
}

#[test]
fn a_join_answered_from_before_what_was_delivered_is_asked_again() {
    let mut bench = Bench::live(E1, 5);
    bench.step(subscribe(2, None));
    bench.check(joined(2, 2, point(E1, 4, true, [])), &["ask join 3: 2 since none"]);
    bench.check(joined(2, 2, point(E1, 9, true, [])), &[]);
    bench.check(joined(3, 2, point(E1, 5, true, [])), &["2 joined 1:5"]);
}

#[test]
fn an_answer_to_what_was_asked_before_a_disruption_is_void() {
    let mut bench = Bench::live(E1, 5);
    bench.check(Input::Disrupted, &["ask register 2: since 1:5"]);
    bench.check(Input::Disrupted, &["ask register 3: since 1:5"]);
    bench.check(registered(2, point(E1, 7, true, [6, 7])), &[]);
    bench.check(registered(3, point(E1, 7, true, [6, 7])), &["all: message 1:6", "all: message 1:7"]);
}

#[test]
fn a_disruption_before_the_first_join_point_is_made_good_after_it() {
    let mut bench = Bench::new();
    bench.step(subscribe(1, None));
    bench.check(Input::Disrupted, &[]);
    bench.check(joined(1, 1, point(E1, 5, true, [])), &["1 joined 1:5", "ask register 2: since 1:5"]);
}

#[test]
fn a_failed_registration_is_repeated_and_the_clients_are_told_when_it_takes_long() {
    let mut bench = Bench::live(E1, 5);
    let mut said = bench.step(Input::Disrupted);
    let mut stale_at_ms = Vec::new();
    while bench.now_ms < 6_000 {
        if said.iter().any(|said| said == "all: stale") {
            stale_at_ms.push(bench.now_ms);
        }
        if said.iter().any(|said| said.starts_with("ask register")) {
            let attempt = bench.feed.last_attempt;
            bench.check(Input::RegisterAnswer { attempt, result: Err(SlotError::Unavailable) }, &[]);
        }
        let wake = bench.feed.next_wake().unwrap();
        said = bench.pass(wake);
    }
    assert_eq!(stale_at_ms, [bench.feed.settings.stale_after_ms]);
    assert!(bench.feed.last_attempt < 20, "{} attempts are too many", bench.feed.last_attempt);
    let attempt = bench.feed.last_attempt;
    bench.feed.registration = Registration::Asked { attempt, since: at(E1, 5), at_ms: bench.now_ms };
    bench.check(registered(attempt, point(E1, 6, true, [6])), &["all: message 1:6", "all: live 1:6"]);
}

#[test]
fn an_unreachable_primary_is_told_after_a_while_and_its_return_when_caught_up() {
    let mut bench = Bench::live(E1, 5);
    bench.now_ms = 3_000;
    bench.check(Input::PrimaryUnreachable { since_ms: 2_000 }, &[]);
    assert_eq!(bench.pass(4_000), ["all: stale"]);
    bench.step(subscribe(2, None));
    bench.check(joined(2, 2, point(E1, 5, true, [])), &["2 joined 1:5", "2: stale"]);
    bench.check(Input::PrimaryReachable, &["ask register 3: since 1:5"]);
    bench.check(registered(3, point(E1, 6, true, [6])), &["all: message 1:6", "all: live 1:6"]);
}

#[test]
fn a_live_feed_renews() {
    let mut bench = Bench::live(E1, 5);
    assert_eq!(bench.pass(5_000), ["ask register 2: since 1:5"]);
    bench.check(registered(2, point(E1, 5, true, [])), &[]);
    assert_eq!(bench.pass(9_999), Vec::<String>::new());
    assert_eq!(bench.pass(10_000), ["ask register 3: since 1:5"]);
}

#[test]
fn the_last_one_to_leave_ends_the_registration_after_a_while() {
    let mut bench = Bench::live(E1, 5);
    bench.check(unsubscribe(1), &["ask leave 2: 1"]);
    bench.check(Input::LeaveAnswer { attempt: 2, subscriber: 1 }, &[]);
    bench.check(deliver(E1, 6), &[]);
    assert!(!bench.feed.is_over());
    assert_eq!(bench.pass(3_000), ["ask unregister 3"]);
    assert!(!bench.feed.is_over());
    bench.check(Input::UnregisterAnswer { attempt: 3 }, &[]);
    assert!(bench.feed.is_over());
    assert_eq!(bench.feed.next_wake(), None);
}

#[test]
fn a_join_that_crosses_the_end_of_the_registration_registers_again() {
    let mut bench = Bench::live(E1, 5);
    bench.step(Input::Unsubscribe { subscriber: 1, leave: None });
    assert_eq!(bench.pass(3_000), ["ask unregister 2"]);
    bench.check(subscribe(2, None), &["ask join 3: 2 since none"]);
    bench.check(joined(3, 2, point(E1, 5, true, [])), &["2 joined 1:5"]);
    bench.check(Input::UnregisterAnswer { attempt: 2 }, &["ask register 4: since 1:5"]);
}

#[test]
fn a_leave_never_crosses_the_joins_around_it() {
    let mut bench = Bench::live(E1, 5);
    bench.check(subscribe(2, None), &["ask join 2: 2 since none"]);
    bench.check(unsubscribe(2), &[]);
    bench.check(subscribe(2, None), &[]);
    bench.check(joined(2, 2, point(E1, 5, true, [])), &["ask leave 3: 2"]);
    bench.check(Input::LeaveAnswer { attempt: 3, subscriber: 2 }, &["ask join 4: 2 since none"]);
    bench.check(joined(4, 2, point(E1, 5, true, [])), &["2 joined 1:5"]);
}

#[test]
fn a_failed_join_is_told_and_its_doubtful_presence_taken_back() {
    let mut bench = Bench::live(E1, 5);
    bench.step(subscribe(2, None));
    let failed = Input::JoinAnswer { attempt: 2, subscriber: 2, result: Err(SlotError::Busy) };
    bench.check(failed, &["2 failed Busy"]);
    bench.step(subscribe(2, None));
    let failed = Input::JoinAnswer { attempt: 3, subscriber: 2, result: Err(SlotError::Unknown) };
    bench.check(failed, &["2 failed Unknown", "ask leave 4: 2"]);
}

#[test]
fn a_push_that_nobody_here_wants_ends_the_registration() {
    let mut bench = Bench::new();
    bench.check(deliver(E1, 5), &["ask unregister 1"]);
    bench.check(deliver(E1, 6), &[]);
    bench.check(Input::UnregisterAnswer { attempt: 1 }, &[]);
    assert!(bench.feed.is_over());
}

#[test]
fn a_client_from_beyond_the_head_is_not_believed_in_the_end() {
    let mut bench = Bench::live(E1, 5);
    bench.step(subscribe(2, Some(at(E1, 99))));
    let mut said = Vec::new();
    for _ in 0..BEYOND_HEAD_REPEATS {
        let attempt = bench.feed.last_attempt;
        said = bench.step(joined(attempt, 2, point(E1, 5, false, [])));
        if let Some(JoinStage::Paused { until_ms }) = bench.feed.joining.get(&2).map(|joining| joining.stage) {
            said.extend(bench.pass(until_ms));
        }
        assert!(said.iter().any(|said| said.starts_with("ask join")), "{said:?}");
    }
    let attempt = bench.feed.last_attempt;
    said.clear();
    said.extend(bench.step(joined(attempt, 2, point(E1, 5, false, []))));
    assert_eq!(said, ["2 joined 1:5 not recovered"]);
}

#[test]
fn the_buffers_are_bounded_and_what_falls_out_is_had_again() {
    let mut bench = Bench::new();
    Arc::make_mut(&mut bench.feed.settings).bounds = Bounds { messages: 3, bytes: 1 << 20 };
    bench.step(subscribe(1, None));
    for offset in 6..=20 {
        bench.check(deliver(E1, offset), &[]);
    }
    bench.check(
        joined(1, 1, point(E1, 5, true, [])),
        &["1 joined 1:5", "all: message 1:6", "all: message 1:7", "all: message 1:8", "ask register 2: since 1:8"],
    );
    bench.step(registered(2, point(E1, 20, true, 9..=20)));
    bench.step(subscribe(2, None));
    for offset in 21..=30 {
        bench.step(deliver(E1, offset));
    }
    bench.check(joined(3, 2, point(E1, 20, true, [])), &["ask join 4: 2 since none"]);
    bench.check(joined(4, 2, point(E1, 28, true, [])), &["2 joined 1:28", "2: message 1:29", "2: message 1:30"]);
}

#[test]
fn an_answer_that_could_not_hold_all_is_followed_by_another_request() {
    let mut bench = Bench::live(E1, 5);
    bench.check(Input::Disrupted, &["ask register 2: since 1:5"]);
    let partial = registered(2, JoinPoint { head: 8, ..point(E1, 6, true, [6]) });
    bench.check(partial, &["all: message 1:6", "ask register 3: since 1:6"]);
    bench.check(registered(3, point(E1, 8, true, [7, 8])), &["all: message 1:7", "all: message 1:8"]);
}

#[test]
fn a_join_answered_before_the_log_was_replaced_does_not_bring_it_back() {
    let mut bench = Bench::live(E1, 0);
    bench.step(Input::Unsubscribe { subscriber: 1, leave: None });
    bench.check(subscribe(2, None), &["ask join 2: 2 since none"]);
    bench.check(Input::Disrupted, &["ask register 3: since 1:0"]);
    bench.check(registered(3, point(E2, 4, false, [])), &[]);
    bench.check(joined(2, 2, point(E1, 0, true, [])), &["ask join 4: 2 since none", "ask register 5: since 2:4"]);
    bench.check(joined(4, 2, point(E2, 4, true, [])), &["2 joined 2:4"]);
}

/// A primary that lies: whatever it says, the feed goes on.
#[derive(Clone, Debug)]
enum Lie {
    Push(u64, u64, u64),
    Answer(u64, u64, u64, Vec<u64>),
    Joins(u64),
    Waits(u64),
}

fn lies() -> impl proptest::strategy::Strategy<Value = Vec<Lie>> {
    use proptest::prelude::*;
    let number = || prop_oneof![0_u64..6, Just(u64::MAX / 2 - 1), Just(u64::MAX / 2), Just(u64::MAX)];
    let lie = prop_oneof![
        (0_u64..3, number(), number()).prop_map(|(epoch, offset, term)| Lie::Push(epoch, offset, term)),
        (0_u64..3, number(), number(), proptest::collection::vec(number(), 0..4))
            .prop_map(|(epoch, head, up_to, messages)| Lie::Answer(epoch, head, up_to, messages)),
        (0_u64..4).prop_map(Lie::Joins),
        (0_u64..20_000).prop_map(Lie::Waits),
    ];
    proptest::collection::vec(lie, 1..60)
}

proptest::proptest! {
    #[test]
    fn nothing_that_a_primary_says_ends_a_feed(lies in lies()) {
        let (mut feed, mut now_ms, mut asked) = (Feed::new(Arc::default(), 0), 0, Vec::new());
        let group = GroupName::parse("g").unwrap();
        for lie in lies {
            let mut out = Vec::new();
            match lie {
                Lie::Push(epoch, offset, term) => {
                    feed.handle(now_ms, Input::Deliver { epoch: Epoch(epoch), message: message(offset), term }, &mut out);
                }
                Lie::Answer(epoch, head, up_to, messages) => {
                    let messages = messages.into_iter().map(message).collect();
                    let point = JoinPoint { group: group.clone(), epoch: Epoch(epoch), head, up_to, recovered: true, messages, present: Present::default() };
                    for input in std::mem::take(&mut asked) {
                        let input = match input {
                            Output::AskJoin { attempt, subscriber, .. } => {
                                Input::JoinAnswer { attempt, subscriber, result: Ok(point.clone()) }
                            }
                            Output::AskRegister { attempt, .. } => Input::RegisterAnswer { attempt, result: Ok(point.clone()) },
                            _ => continue,
                        };
                        feed.handle(now_ms, input, &mut out);
                    }
                }
                Lie::Joins(subscriber) => {
                    let since = (subscriber > 1).then(|| at(E1, subscriber));
                    feed.handle(now_ms, Input::Subscribe { subscriber, request: None, member: None, summed: false, since }, &mut out);
                }
                Lie::Waits(ms) => {
                    now_ms += ms;
                    feed.handle(now_ms, Input::Tick, &mut out);
                }
            }
            asked.extend(out.into_iter().filter(|output| matches!(output, Output::AskJoin { .. } | Output::AskRegister { .. })));
        }
    }
}

#[test]
fn how_many_there_are_is_told_at_most_once_in_a_while() {
    let mut bench = Bench::new();
    let subscribe =
        |subscriber| Input::Subscribe { subscriber, request: None, member: None, summed: true, since: None };
    let present = |sessions, users| Present { sessions, clients: sessions, users, anonymous: 0 };
    let changed = |sessions, users| Input::Member {
        event: MemberEvent::Join,
        member: presence(),
        present: present(sessions, users),
    };
    bench.check(subscribe(1), &["ask join 1: 1 since none"]);
    let joined = JoinPoint { present: present(1, 1), ..point(E1, 4, true, []) };
    bench.check(Input::JoinAnswer { attempt: 1, subscriber: 1, result: Ok(joined) }, &["1 joined 1:4", "1: 1 of 1"]);
    bench.check(changed(2, 2), &["all: 2 of 2"]);
    bench.now_ms += 10;
    bench.check(changed(3, 2), &[]);
    bench.check(changed(4, 3), &[]);
    assert_eq!(bench.feed.next_wake(), Some(bench.now_ms + 990));
    bench.now_ms += 990;
    bench.check(Input::Tick, &["all: 4 of 3"]);
    bench.now_ms += 10;
    bench.check(changed(5, 3), &[]);
    bench.check(changed(4, 3), &[]);
    bench.now_ms += 2_000;
    bench.check(Input::Tick, &[]);
    bench.check(changed(3, 3), &["all: 3 of 3"]);
}

#[test]
fn what_is_ephemeral_is_told_to_who_is_live_and_moves_nothing() {
    let ephemeral = || Input::Ephemeral { message: EphemeralMessage { data: "1".into(), from: None, at_ms: 0 } };
    let mut bench = Bench::new();
    bench.check(subscribe(1, None), &["ask join 1: 1 since none"]);
    bench.check(ephemeral(), &[]);
    bench.check(joined(1, 1, point(Epoch(1), 5, true, [])), &["1 joined 1:5"]);
    bench.check(ephemeral(), &["all: ephemeral"]);
    let at = Position { epoch: Epoch(1), offset: 5 };
    bench.check(Input::Lag { subscriber: 1, at }, &["1 behind"]);
    bench.check(ephemeral(), &[]);
    assert_eq!(bench.feed.position, Some(at));
}
