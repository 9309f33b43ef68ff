//! S7 across connections, by cause: what was first sent after the next connection of a session's client was welcomed never
//! reaches an earlier one. What was sent before may be under way to it still. It is not asked of what is ephemeral: no copy has to
//! confirm that, so that a primary and a gateway that both have yet to hear of a newer map may pass it on.

use std::collections::BTreeMap;

use super::{ConnectionLog, History, Rule, Seen, Violation, Welcome, print};

pub(super) fn first_violation(history: &History) -> Option<Violation> {
    let displaced = displaced(history);
    if displaced.is_empty() {
        return None;
    }
    let mut sent: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for publish in &history.publishes {
        if let Some(first) = publish.attempts.first() {
            sent.insert((&publish.group, &publish.payload), first.sent_us);
        }
    }
    let found = displaced.iter().filter_map(|(connection, next)| reached(connection, next, &sent));
    found.min_by_key(|violation| violation.at_us)
}

/// Each connection whose session its client asked for again after it was welcomed, with the first welcome that came of that. Of two
/// that were asked for at one time it is not known which is the later one.
fn displaced(history: &History) -> Vec<(&ConnectionLog, &Welcome)> {
    let mut clients: BTreeMap<(&str, &str), Vec<(&ConnectionLog, &Welcome)>> = BTreeMap::new();
    for connection in &history.connections {
        if let Some(welcome) = &connection.welcome {
            clients.entry((&welcome.session, &welcome.client)).or_default().push((connection, welcome));
        }
    }
    let mut displaced = Vec::new();
    for of_client in clients.values_mut() {
        of_client.sort_by_key(|(_, welcome)| welcome.asked_us);
        // From the last to the first: the earliest welcome among those that were asked for later.
        let mut earliest: Vec<&Welcome> = Vec::with_capacity(of_client.len());
        for (_, welcome) in of_client.iter().rev() {
            let before = earliest.last().copied().filter(|before| before.at_us <= welcome.at_us);
            earliest.push(before.unwrap_or(welcome));
        }
        earliest.reverse();
        for (connection, welcome) in &*of_client {
            let later = of_client.partition_point(|(_, other)| other.asked_us <= welcome.at_us);
            displaced.extend(earliest.get(later).map(|next| (*connection, *next)));
        }
    }
    displaced
}

fn reached(connection: &ConnectionLog, next: &Welcome, sent: &BTreeMap<(&str, &str), u64>) -> Option<Violation> {
    let from = connection.events.partition_point(|event| event.at_us <= next.at_us);
    let late = connection.events[from..].iter().enumerate().find_map(|(index, event)| {
        let Seen::Message { group, payload, .. } = &event.seen else { return None };
        let sent_us = sent.get(&(&**group, &**payload)).filter(|sent_us| **sent_us > next.at_us)?;
        Some((from + index, event.at_us, payload, *sent_us))
    });
    let (index, at_us, payload, sent_us) = late?;
    let what = format!(
        "{}, connection {} to {}: {payload} was sent at {:.6} s, and client {} of session {} had been attached elsewhere since {:.6} s",
        connection.client,
        connection.number,
        connection.node,
        sent_us as f64 / 1e6,
        next.client,
        next.session,
        next.at_us as f64 / 1e6
    );
    Some(Violation { rule: Rule::S7Displaced, at_us, what, around: print::around_event(connection, index) })
}

#[cfg(test)]
impl Welcome {
    /// Of the session of this number, as soon as it was asked for.
    pub(super) fn at(session: usize, at_us: u64) -> Self {
        Self { session: format!("session {session}").into(), client: "c".into(), asked_us: at_us, at_us }
    }
}

#[cfg(test)]
mod tests {
    use roost_logic::id::{Epoch, Position};

    use super::*;
    use crate::history::{Attempt, Outcome, PublishLog, Stamped};

    /// Two connections of a session, and a message that reaches the first one after all.
    fn history(welcomes: [(u64, u64); 2], sent_us: u64) -> History {
        let at = Position { epoch: Epoch(1), offset: 1 };
        let attempt = |sent_us| Attempt {
            connection: 1,
            sequence: 1,
            sent_us,
            answered_us: sent_us,
            outcome: Outcome::Acked { at, copies: 2 },
        };
        let publish = PublishLog {
            publisher: "p".into(),
            group: "g".into(),
            key: None,
            payload: "1".into(),
            // What counts is the first sending.
            attempts: vec![attempt(sent_us), attempt(sent_us + 1_000)],
        };
        let message = Seen::Message { group: "g".into(), at, payload: "1".into() };
        let joined = |seen: Vec<Seen>, number, (asked_us, at_us)| ConnectionLog {
            client: "c".into(),
            number,
            node: "n1".into(),
            welcome: Some(Welcome { session: "s".into(), client: "c".into(), asked_us, at_us }),
            events: seen.into_iter().zip([at_us, 9_000]).map(|(seen, at_us)| Stamped { at_us, seen }).collect(),
            settled: false,
        };
        let join = Seen::Joined { group: "g".into(), since: None, at: Position { offset: 0, ..at }, recovered: false };
        let [first, second] = welcomes;
        let connections = vec![joined(vec![join.clone(), message], 1, first), joined(vec![join], 2, second)];
        History { publishes: vec![publish], connections, ..History::default() }
    }

    #[test]
    fn only_what_was_sent_after_the_next_welcome_must_not_arrive() {
        for (welcomes, sent_us, is_broken) in [
            ([(10, 20), (30, 40)], 41, true),
            ([(10, 20), (30, 40)], 40, false),
            ([(10, 20), (30, 40)], 35, false),
            // Asked for at one time: the first one may be the later.
            ([(10, 50), (30, 40)], 60, false),
            // The other one is the earlier.
            ([(30, 40), (10, 20)], 60, false),
        ] {
            let found = history(welcomes, sent_us).check().err();
            let rule = found.as_ref().map(|violation| violation.rule);
            assert_eq!(rule, is_broken.then_some(Rule::S7Displaced), "{welcomes:?} {sent_us}: {found:?}");
        }
    }
}
