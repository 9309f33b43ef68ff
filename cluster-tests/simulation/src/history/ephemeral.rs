//! What is published as ephemeral comes at most once on a connection, to who is in the group, and stands nowhere. That a
//! connection is in the group is seen to where its log is read, event by event.

use std::collections::{BTreeMap, BTreeSet};

use super::{ConnectionLog, EphemeralLog, History, Rule, Seen, Violation, print};

/// By group and payload.
type Sent<'a> = BTreeMap<(&'a str, &'a str), &'a EphemeralLog>;

pub(super) fn first_violation(history: &History) -> Option<Violation> {
    let sent: Sent<'_> = history.ephemerals.iter().map(|log| ((&*log.group, &*log.payload), log)).collect();
    let found = history.connections.iter().filter_map(|connection| in_connection(history, &sent, connection));
    found.chain(in_replays(history, &sent)).min_by_key(|violation| violation.at_us)
}

fn in_connection(history: &History, sent: &Sent<'_>, connection: &ConnectionLog) -> Option<Violation> {
    let mut heard = BTreeSet::new();
    connection.events.iter().enumerate().find_map(|(index, event)| {
        let (what, payload) = match &event.seen {
            Seen::Ephemeral { group, payload } => {
                let log = sent.get(&(&**group, &**payload));
                let what = match log {
                    _ if !heard.insert((group, payload)) => "came twice",
                    Some(log) if log.sent_us > event.at_us => "came before it was sent",
                    Some(log) if log.is_refused => "was said not to be passed on",
                    None if history.publishes_complete => "was never sent",
                    Some(_) | None => return None,
                };
                (what, payload)
            }
            Seen::Message { group, payload, .. } if sent.contains_key(&(&**group, &**payload)) => {
                ("has a place in the log", payload)
            }
            _ => return None,
        };
        let what = format!(
            "{}, connection {} to {}: the ephemeral {payload} {what}",
            connection.client, connection.number, connection.node
        );
        let around = print::around_event(connection, index);
        Some(Violation { rule: Rule::Ephemeral, at_us: event.at_us, what, around })
    })
}

fn in_replays(history: &History, sent: &Sent<'_>) -> Option<Violation> {
    let kept = |replay: &&super::Replay| {
        replay.messages.iter().any(|(_, payload)| sent.contains_key(&(&*replay.group, &**payload)))
    };
    let replay = history.replays.iter().find(kept)?;
    let what = format!("{} has what was ephemeral", replay.what);
    let around = replay.messages.iter().map(|(offset, payload)| format!("  {offset} {payload}")).collect();
    Some(Violation { rule: Rule::Ephemeral, at_us: replay.at_us, what, around })
}

#[cfg(test)]
mod tests {
    use roost_logic::id::{Epoch, Position};

    use super::*;
    use crate::history::{Replay, Stamped};

    const AT: Position = Position { epoch: Epoch(1), offset: 0 };

    fn ephemeral(payload: &str) -> Seen {
        Seen::Ephemeral { group: "g".into(), payload: payload.into() }
    }

    /// A connection that has joined, and is told this; `e` was sent when it joined, `r` was refused.
    fn history(told: impl IntoIterator<Item = Seen>) -> History {
        let joined = Seen::Joined { group: "g".into(), since: None, at: AT, recovered: true };
        let log = |payload: &str| EphemeralLog {
            publisher: "p".into(),
            group: "g".into(),
            payload: payload.into(),
            sent_us: 10,
            is_refused: payload == "r",
        };
        let events = [joined].into_iter().chain(told);
        let connection = ConnectionLog {
            client: "c".into(),
            number: 1,
            node: "n1".into(),
            welcome: None,
            events: (10..).zip(events).map(|(at_us, seen)| Stamped { at_us, seen }).collect(),
            settled: true,
        };
        History {
            ephemerals: vec![log("e"), log("r")],
            connections: vec![connection],
            publishes_complete: true,
            ..History::default()
        }
    }

    #[test]
    fn it_comes_once_or_not_at_all_to_who_is_there_and_stands_nowhere() {
        let at = Position { offset: 1, ..AT };
        let left = || Seen::Left { group: "g".into() };
        for (told, is_broken) in [
            (vec![], false),
            (vec![ephemeral("e")], false),
            (vec![ephemeral("e"), ephemeral("e")], true),
            (vec![ephemeral("x")], true),
            (vec![ephemeral("r")], true),
            (vec![left(), ephemeral("e")], true),
            (vec![Seen::Message { group: "g".into(), at, payload: "e".into() }], true),
        ] {
            let found = history(told.clone()).check().err();
            // That it is nowhere explained is as true.
            let named = found.as_ref().map(|violation| violation.rule);
            let is_named = matches!(named, Some(Rule::Ephemeral | Rule::S3Acknowledged));
            assert_eq!(is_named, is_broken, "{told:?}: {found:?}");
        }
    }

    #[test]
    fn one_that_comes_too_early_or_is_read_from_a_history_is_found() {
        let mut early = history([ephemeral("e")]);
        early.ephemerals[0].sent_us = 12;
        assert_eq!(early.check().expect_err("it came before it was sent").rule, Rule::Ephemeral);
        let mut kept = history([]);
        kept.publishes_complete = false;
        kept.replays.push(Replay {
            what: "a history".into(),
            group: "g".into(),
            epoch: Epoch(1),
            at_us: 20,
            messages: vec![(1, "e".into())],
        });
        assert_eq!(kept.check().expect_err("it is kept").rule, Rule::Ephemeral);
    }
}
