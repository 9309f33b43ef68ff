//! Random histories of a cluster that keeps its promises pass; the same with one thing wrong in it never do.

mod model;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use self::model::Model;
use super::*;

const SEEDS: std::ops::Range<u64> = 0..60;

/// A random event of this kind: connection and index.
fn pick(history: &History, rng: &mut StdRng, kind: impl Fn(&ConnectionLog, usize) -> bool) -> (usize, usize) {
    let all: Vec<(usize, usize)> = history
        .connections
        .iter()
        .enumerate()
        .flat_map(|(number, connection)| (0..connection.events.len()).map(move |index| (number, index)))
        .filter(|(number, index)| kind(&history.connections[*number], *index))
        .collect();
    *all.choose(rng).expect("the model makes every kind")
}

fn is_message(connection: &ConnectionLog, index: usize) -> bool {
    matches!(connection.events[index].seen, Seen::Message { .. })
}

/// Whether the message is followed by another one of its group.
fn is_followed(connection: &ConnectionLog, index: usize) -> bool {
    is_message(connection, index)
        && connection.events[index + 1..]
            .iter()
            .find(|event| event.seen.group() == connection.events[index].seen.group())
            .is_some_and(|event| matches!(event.seen, Seen::Message { .. }))
}

fn acked(history: &History, rng: &mut StdRng) -> usize {
    let all: Vec<usize> = history
        .publishes
        .iter()
        .enumerate()
        .filter(|(_, publish)| matches!(publish.attempts[..], [Attempt { outcome: Outcome::Acked { .. }, .. }]))
        .map(|(index, _)| index)
        .collect();
    *all.choose(rng).expect("the model acknowledges")
}

fn acked_at(publish: &PublishLog) -> Position {
    match publish.attempts[0].outcome {
        Outcome::Acked { at, .. } => at,
        Outcome::Refused | Outcome::Unknown => panic!("not acknowledged"),
    }
}

/// Two acknowledged publishes of one publisher to one log, the second sent after the first was answered.
fn one_after_the_other(history: &History, rng: &mut StdRng) -> (usize, usize) {
    let mut pairs = Vec::new();
    for (a, first) in history.publishes.iter().enumerate() {
        for (b, second) in history.publishes.iter().enumerate().skip(a + 1).take(60) {
            let both = [first, second]
                .map(|publish| matches!(publish.attempts[..], [Attempt { outcome: Outcome::Acked { .. }, .. }]));
            if both == [true, true]
                && first.publisher == second.publisher
                && first.group == second.group
                && acked_at(first).epoch == acked_at(second).epoch
            {
                pairs.push((a, b));
            }
        }
    }
    *pairs.choose(rng).expect("the model publishes twice in a row")
}

#[test]
fn honest_histories_pass() {
    let mut all = Summary::default();
    for seed in SEEDS {
        let history = Model::run(seed, 400);
        let summary = history.check().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        all.acked += summary.acked;
        all.unknown += summary.unknown;
        all.refused += summary.refused;
        all.repeats += summary.repeats;
        all.delivered += summary.delivered;
        all.resumes += summary.resumes;
        all.not_recovered += summary.not_recovered;
        all.gaps += summary.gaps;
        all.resets += summary.resets;
    }
    let counts = [all.acked, all.unknown, all.refused, all.repeats, all.delivered, all.resumes];
    assert!(counts.iter().all(|count| *count > 100), "{all:?}");
    assert!(all.not_recovered > 0 && all.gaps > 0 && all.resets > 0, "{all:?}");
}

/// Breaks each of many honest histories and expects one of these rules to be named.
fn check_planted(name: &str, expected: &[Rule], plant: impl Fn(&mut History, &mut StdRng)) {
    for seed in SEEDS {
        let mut history = Model::run(seed, 300);
        plant(&mut history, &mut StdRng::seed_from_u64(!seed));
        let violation = history.check().expect_err(&format!("seed {seed}: {name} was not found"));
        assert!(expected.contains(&violation.rule), "seed {seed}: {name} was found as something else: {violation}");
        assert!(!violation.around.is_empty(), "seed {seed}: {name}: no surroundings: {violation}");
    }
}

#[test]
fn a_different_message_at_one_place() {
    check_planted("another payload", &[Rule::S1Agreement], |history, rng| {
        let (connection, index) = pick(history, rng, is_message);
        if let Seen::Message { payload, .. } = &mut history.connections[connection].events[index].seen {
            *payload = "\"forged\"".into();
        }
        history.publishes_complete = false;
        // Nobody else may have seen it yet: this one has.
        let seen = history.connections[connection].events[index].seen.clone();
        if let Seen::Message { group, at, .. } = seen {
            history.replays.push(Replay {
                what: "another reader".into(),
                group,
                epoch: at.epoch,
                at_us: u64::MAX,
                messages: vec![(at.offset, "\"honest\"".into())],
            });
        }
    });
}

#[test]
fn a_message_left_out() {
    check_planted("a hole", &[Rule::S2Contiguity, Rule::S6Resume, Rule::S8JoinPoint], |history, rng| {
        let (connection, index) = pick(history, rng, is_followed);
        history.connections[connection].events.remove(index);
    });
}

#[test]
fn a_message_twice() {
    check_planted("a repeat", &[Rule::S2Contiguity, Rule::S6Resume], |history, rng| {
        let (connection, index) = pick(history, rng, is_message);
        let again = history.connections[connection].events[index].clone();
        history.connections[connection].events.insert(index + 1, again);
    });
}

#[test]
fn two_messages_exchanged() {
    check_planted("exchanged", &[Rule::S2Contiguity, Rule::S6Resume, Rule::S8JoinPoint], |history, rng| {
        let (connection, index) = pick(history, rng, |connection, index| {
            is_followed(connection, index)
                && connection.events[index].seen.group() == connection.events[index + 1].seen.group()
        });
        let events = &mut history.connections[connection].events;
        let later = events[index + 1].seen.clone();
        events[index + 1].seen = std::mem::replace(&mut events[index].seen, later);
    });
}

#[test]
fn an_acknowledged_message_that_never_came() {
    check_planted("a missing tail", &[Rule::S3Acknowledged], |history, _| {
        // The last acknowledged one of all stands in its group's last log, since the model ends with publishes.
        let all = history.publishes.iter().rev();
        let publish = all
            .filter(|publish| matches!(publish.attempts[..], [Attempt { outcome: Outcome::Acked { .. }, .. }]))
            .find(|publish| {
                let at = acked_at(publish);
                history.connections.iter().any(|connection| {
                    let seen = |event: &Stamped| matches!(&event.seen, Seen::Message { at: seen, .. } if *seen == at);
                    connection.settled && connection.events.iter().any(seen)
                })
            })
            .expect("the settled connections have seen it");
        let at = acked_at(publish);
        for connection in history.connections.iter_mut().filter(|connection| connection.settled) {
            connection.events.retain(
                |event| !matches!(&event.seen, Seen::Message { at: seen, .. } if seen.epoch == at.epoch && seen.offset >= at.offset),
            );
        }
    });
}

#[test]
fn an_acknowledged_message_in_an_epoch_that_nobody_was_told_of() {
    check_planted("another log", &[Rule::S3Acknowledged], |history, rng| {
        let mut publish = history.publishes[acked(history, rng)].clone();
        publish.payload = "\"lost\"".into();
        publish.key = None;
        publish.attempts[0].sent_us = u64::MAX - 1;
        publish.attempts[0].answered_us = u64::MAX;
        publish.attempts[0].outcome =
            Outcome::Acked { at: Position { epoch: Epoch(rng.random()), offset: 1 }, copies: 2 };
        history.publishes.push(publish);
    });
}

#[test]
fn a_refused_message_that_came() {
    check_planted("refused but there", &[Rule::S3Acknowledged], |history, rng| {
        let publish = acked(history, rng);
        let at = acked_at(&history.publishes[publish]);
        let payload = history.publishes[publish].payload.clone();
        history.publishes[publish].attempts[0].outcome = Outcome::Refused;
        let group = history.publishes[publish].group.clone();
        let messages = vec![(at.offset, payload)];
        history.replays.push(Replay { what: "a reader".into(), group, epoch: at.epoch, at_us: 0, messages });
    });
}

#[test]
fn a_refused_message_that_came_before_it_was_sent_again() {
    // Or a join has accounted for it before that.
    check_planted("there before it was repeated", &[Rule::S3Acknowledged, Rule::S8JoinPoint], |history, rng| {
        let publish = acked(history, rng);
        let at = acked_at(&history.publishes[publish]);
        let PublishLog { attempts, group, payload, .. } = &mut history.publishes[publish];
        let (sent_us, answered_us) = (attempts[0].answered_us + 2, attempts[0].answered_us + 3);
        let again = Attempt { sent_us, answered_us, ..attempts[0] };
        attempts[0].outcome = Outcome::Refused;
        attempts.insert(1, again);
        let (what, group, messages) = ("a reader".into(), group.clone(), vec![(at.offset, payload.clone())]);
        history.replays.push(Replay { what, group, epoch: at.epoch, at_us: sent_us - 1, messages });
    });
}

#[test]
fn a_message_that_nobody_sent() {
    check_planted("invented", &[Rule::S3Acknowledged], |history, rng| {
        let publish = acked(history, rng);
        let at = acked_at(&history.publishes[publish]);
        let (payload, group) = (history.publishes[publish].payload.clone(), history.publishes[publish].group.clone());
        history.publishes.remove(publish);
        let messages = vec![(at.offset, payload)];
        history.replays.push(Replay { what: "a reader".into(), group, epoch: at.epoch, at_us: 0, messages });
    });
}

#[test]
fn a_repeat_with_another_place() {
    check_planted("two places for a key", &[Rule::S4Duplicate], |history, rng| {
        let publish = acked(history, rng);
        let at = acked_at(&history.publishes[publish]);
        let last = history.publishes[publish].attempts[0];
        let elsewhere = Position { offset: at.offset + 1_000_000, ..at };
        let outcome = Outcome::Acked { at: elsewhere, copies: 2 };
        history.publishes[publish].attempts.push(Attempt { outcome, ..last });
        // That it is missing at the end would be found as well.
        history.connections.iter_mut().for_each(|connection| connection.settled = false);
    });
}

#[test]
fn one_message_at_two_places() {
    check_planted("two places for a payload", &[Rule::S4Duplicate], |history, rng| {
        let publish = acked(history, rng);
        let at = acked_at(&history.publishes[publish]);
        let (payload, group) = (history.publishes[publish].payload.clone(), history.publishes[publish].group.clone());
        let messages = vec![(at.offset + 1_000_000, payload)];
        history.replays.push(Replay { what: "a reader".into(), group, epoch: at.epoch, at_us: 0, messages });
    });
}

#[test]
fn a_later_message_before_an_earlier_one() {
    check_planted("against real time", &[Rule::S5Order], |history, rng| {
        let (first, second) = one_after_the_other(history, rng);
        // As if the second had been sent first.
        let times = [first, second].map(|index| history.publishes[index].attempts[0]);
        let first = &mut history.publishes[first].attempts[0];
        (first.sent_us, first.answered_us, first.connection) = (times[1].answered_us + 1, times[1].answered_us + 2, 7);
        // Subscribers that had the first one by then are not the point.
        history.connections.clear();
    });
}

#[test]
fn a_session_out_of_its_own_order() {
    check_planted("against the session's order", &[Rule::S5Order], |history, rng| {
        let (first, second) = one_after_the_other(history, rng);
        let sequence = history.publishes[second].attempts[0].sequence;
        history.publishes[second].attempts[0].sequence = history.publishes[first].attempts[0].sequence;
        history.publishes[first].attempts[0].sequence = sequence;
    });
}

#[test]
fn a_resume_that_was_not_one() {
    check_planted("recovered into another log", &[Rule::S6Resume], |history, rng| {
        let (connection, index) = pick(history, rng, |connection, index| {
            matches!(connection.events[index].seen, Seen::Joined { since: Some(_), .. })
        });
        if let Seen::Joined { since: Some(since), recovered, .. } =
            &mut history.connections[connection].events[index].seen
        {
            (since.epoch, *recovered) = (Epoch(!since.epoch.0), true);
        }
    });
}

#[test]
fn a_resume_behind_what_was_seen() {
    check_planted("a log that shrank", &[Rule::S6Resume], |history, rng| {
        let (connection, index) = pick(history, rng, |connection, index| {
            matches!(connection.events[index].seen, Seen::Joined { since: Some(_), recovered: true, .. })
        });
        if let Seen::Joined { since: Some(since), at, .. } = &mut history.connections[connection].events[index].seen {
            since.offset = at.offset + 1;
        }
    });
}

#[test]
fn a_log_that_seems_to_have_shrunk_is_no_violation_where_it_is_said() {
    let mut history = Model::run(1, 300);
    let told = history.connections.last_mut().expect("a connection");
    let (group, at) = (Arc::from("g"), Position { epoch: Epoch(1), offset: 3 });
    let since = Some(Position { offset: 5, ..at });
    let message = |offset| Seen::Message {
        group: Arc::from("g"),
        at: Position { offset, ..at },
        payload: format!("\"again {offset}\"").into(),
    };
    let seen = [Seen::Joined { group, since, at, recovered: false }, message(4), message(5)];
    told.events = seen.map(|seen| Stamped { at_us: u64::MAX, seen }).into();
    told.settled = false;
    history.publishes_complete = false;
    history.check().unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn a_gap_in_what_was_recovered() {
    check_planted("a gap in a replay", &[Rule::S6Resume], |history, rng| {
        let replayed = |connection: &ConnectionLog, index: usize| {
            let Seen::Message { group, at, .. } = &connection.events[index].seen else { return false };
            connection.events[..index].iter().any(|event| {
                matches!(&event.seen, Seen::Joined { group: other, since: Some(_), at: join, recovered: true }
                    if other == group && at.epoch == join.epoch && at.offset <= join.offset)
            })
        };
        let (connection, index) = loop {
            // Some histories never resumed over a message: make one that did.
            let found = history.connections.iter().enumerate().find_map(|(number, connection)| {
                (0..connection.events.len()).find(|index| replayed(connection, *index)).map(|index| (number, index))
            });
            match found {
                Some(found) => break found,
                None => *history = Model::run(rng.random(), 600),
            }
        };
        let event = &mut history.connections[connection].events[index];
        if let Seen::Message { group, at, .. } = &event.seen {
            event.seen = Seen::Gap { group: group.clone(), epoch: at.epoch, from: at.offset, to: at.offset };
        }
    });
}

#[test]
fn something_after_the_displacement() {
    check_planted("after displaced", &[Rule::S7Displaced], |history, rng| {
        let (connection, index) = pick(history, rng, is_message);
        let at_us = history.connections[connection].events[index].at_us;
        history.connections[connection].events.insert(index, Stamped { at_us, seen: Seen::Displaced });
    });
}

#[test]
fn a_join_point_in_the_future() {
    check_planted("join ahead", &[Rule::S8JoinPoint], |history, rng| {
        let publish = acked(history, rng);
        let at = acked_at(&history.publishes[publish]);
        let seen = Seen::Joined {
            group: history.publishes[publish].group.clone(),
            since: None,
            at: Position { offset: at.offset + 10, ..at },
            recovered: false,
        };
        history.connections.push(ConnectionLog {
            client: "late".into(),
            number: 1,
            node: "n3".into(),
            welcome: None,
            events: vec![Stamped { at_us: 0, seen }],
            settled: false,
        });
    });
}

#[test]
fn an_epoch_without_a_reset() {
    check_planted("another epoch", &[Rule::S2Contiguity, Rule::S6Resume], |history, rng| {
        let (connection, index) = pick(history, rng, is_message);
        if let Seen::Message { at, .. } = &mut history.connections[connection].events[index].seen {
            at.epoch = Epoch(!at.epoch.0);
        }
    });
}

#[test]
fn a_message_without_a_join() {
    check_planted("not joined", &[Rule::S2Contiguity], |history, rng| {
        let (connection, index) = pick(history, rng, is_message);
        let group = history.connections[connection].events[index].seen.group().unwrap().clone();
        let at_us = history.connections[connection].events[index].at_us;
        history.connections[connection].events.insert(index, Stamped { at_us, seen: Seen::Left { group } });
    });
}

#[test]
fn a_history_with_a_hole() {
    check_planted("a hole in a history", &[Rule::S2Contiguity], |history, _| {
        let replay = history.replays.iter_mut().find(|replay| replay.messages.len() > 2).expect("a history");
        replay.messages.remove(1);
    });
}

#[test]
fn live_before_what_it_covers() {
    check_planted("live too early", &[Rule::S2Contiguity], |history, rng| {
        let (connection, index) = pick(history, rng, is_message);
        let event = history.connections[connection].events[index].clone();
        if let Seen::Message { group, at, .. } = event.seen {
            let live = Stamped { at_us: event.at_us, seen: Seen::Live { group, at } };
            history.connections[connection].events.insert(index, live);
        }
    });
}

#[test]
fn the_earliest_violation_is_the_one_reported() {
    let mut history = Model::run(1, 300);
    let (early, late) = (pick_nth(&history, 3), pick_nth(&history, 40));
    for (connection, index) in [late, early] {
        let again = history.connections[connection].events[index].clone();
        history.connections[connection].events.insert(index + 1, again);
    }
    let expected = history.connections[early.0].events[early.1].at_us;
    assert_eq!(history.check().expect_err("two repeats").at_us, expected);
}

/// The nth message by time: connection and index.
fn pick_nth(history: &History, nth: usize) -> (usize, usize) {
    let mut all: Vec<(u64, usize, usize)> = Vec::new();
    for (number, connection) in history.connections.iter().enumerate() {
        for index in (0..connection.events.len()).filter(|index| is_message(connection, *index)) {
            all.push((connection.events[index].at_us, number, index));
        }
    }
    all.sort_unstable();
    (all[nth].1, all[nth].2)
}

#[test]
fn a_reset_into_the_same_log() {
    check_planted("a reset to nothing new", &[Rule::S2Contiguity], |history, rng| {
        let (connection, index) = pick(history, rng, is_message);
        let event = &mut history.connections[connection].events[index];
        if let Seen::Message { group, at, .. } = &event.seen {
            event.seen = Seen::Reset { group: group.clone(), to: *at };
        }
    });
}

#[test]
fn a_gap_that_begins_too_late() {
    check_planted("a gap short of one", &[Rule::S2Contiguity, Rule::S6Resume, Rule::S8JoinPoint], |history, rng| {
        let (connection, index) = pick(history, rng, is_followed);
        let event = &mut history.connections[connection].events[index];
        if let Seen::Message { group, at, .. } = &event.seen {
            event.seen = Seen::Gap { group: group.clone(), epoch: at.epoch, from: at.offset + 1, to: at.offset + 1 };
        }
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tells how long it takes")]
fn a_million_events_are_proved_in_seconds() {
    let mut history = History::default();
    for steps in [200_000, 800_000] {
        history = Model::run(7, steps);
        let start = std::time::Instant::now();
        history.check().unwrap_or_else(|violation| panic!("{violation}"));
        let events: usize = history.connections.iter().map(|connection| connection.events.len()).sum();
        println!("{events} events and {} publishes in {:?}", history.publishes.len(), start.elapsed());
        assert!(steps < 800_000 || events > 1_000_000, "only {events}");
    }
    let (connection, index) = pick(&history, &mut StdRng::seed_from_u64(7), is_followed);
    history.connections[connection].events.remove(index);
    let start = std::time::Instant::now();
    let violation = history.check().expect_err("a message is left out");
    println!("{:?} among them in {:?}", violation.rule, start.elapsed());
    assert!([Rule::S2Contiguity, Rule::S6Resume, Rule::S8JoinPoint].contains(&violation.rule), "{violation}");
}
