//! What stands around a violation, for the one who has to understand it.

use roost_logic::id::Position;

use super::{ConnectionLog, History, Outcome, Seen, Stamped, check::Place};

/// Events of a connection's group on each side of the one in question.
const EVENTS: usize = 6;
/// Offsets on each side of the place in question.
const OFFSETS: u64 = 2;
/// Lines of one kind.
const LINES: usize = 16;

/// The events before and after this one that concern the same group or the whole connection.
pub(super) fn around_event(connection: &ConnectionLog, index: usize) -> Vec<String> {
    let group = connection.events[index].seen.group();
    let near = |event: &&(usize, &Stamped)| event.1.seen.group().is_none_or(|other| Some(other) == group);
    let events: Vec<(usize, &Stamped)> = connection.events.iter().enumerate().collect();
    let mut before: Vec<_> = events[..index].iter().rev().filter(near).take(EVENTS).collect();
    before.reverse();
    let after = events[index + 1..].iter().filter(near).take(EVENTS);
    before
        .into_iter()
        .chain(std::iter::once(&events[index]))
        .chain(after)
        .map(|(at, event)| {
            let mark = if *at == index { ">" } else { " " };
            format!("{mark} {}#{} {}", connection.client, connection.number, line(event))
        })
        .collect()
}

/// Who published and who saw what at this place and next to it.
pub(super) fn around_place(history: &History, group: &str, place: Place) -> Vec<String> {
    let offsets = place.offset.saturating_sub(OFFSETS)..=place.offset + OFFSETS;
    let near = |at: &Position| at.epoch == place.epoch && offsets.contains(&at.offset);
    let publishes = history.publishes.iter().filter(|publish| *publish.group == *group).flat_map(|publish| {
        publish.attempts.iter().filter_map(move |attempt| match attempt.outcome {
            Outcome::Acked { at, copies } if near(&at) => Some(format!(
                "  {}#{} sent {} as {} at {:.6} s, acknowledged at {:.6} s: {}/{}, {copies} copies",
                publish.publisher,
                attempt.connection,
                publish.payload,
                attempt.sequence,
                attempt.sent_us as f64 / 1e6,
                attempt.answered_us as f64 / 1e6,
                at.epoch,
                at.offset
            )),
            _ => None,
        })
    });
    let messages = history.connections.iter().flat_map(|connection| {
        connection.events.iter().filter_map(move |event| match &event.seen {
            Seen::Message { group: other, at, .. } if **other == *group && near(at) => {
                Some(format!("  {}#{} {}", connection.client, connection.number, line(event)))
            }
            _ => None,
        })
    });
    let replays = history.replays.iter().filter(|replay| *replay.group == *group).flat_map(|replay| {
        let near = move |offset: u64| near(&Position { epoch: replay.epoch, offset });
        let messages = replay.messages.iter().filter(move |(offset, _)| near(*offset));
        messages.map(|(offset, payload)| format!("  {}: {}/{offset} {payload}", replay.what, replay.epoch))
    });
    publishes.take(LINES).chain(messages.take(LINES)).chain(replays.take(LINES)).collect()
}

fn line(event: &Stamped) -> String {
    let time = event.at_us as f64 / 1e6;
    match &event.seen {
        Seen::Joined { group, since, at, recovered } => {
            let since = since.map_or("the start".to_owned(), |since| format!("{}/{}", since.epoch, since.offset));
            format!("{time:.6} s joined {group} at {}/{} since {since}, recovered: {recovered}", at.epoch, at.offset)
        }
        Seen::Message { group, at, payload } => {
            format!("{time:.6} s message {group} {}/{} {payload}", at.epoch, at.offset)
        }
        Seen::Ephemeral { group, payload } => format!("{time:.6} s ephemeral {group} {payload}"),
        Seen::Gap { group, epoch, from, to } => format!("{time:.6} s gap {group} {epoch}/{from}..{to}"),
        Seen::Reset { group, to } => format!("{time:.6} s reset {group} to {}/{}", to.epoch, to.offset),
        Seen::Stale { group } => format!("{time:.6} s stale {group}"),
        Seen::Live { group, at } => format!("{time:.6} s live {group} up to {}/{}", at.epoch, at.offset),
        Seen::Left { group } => format!("{time:.6} s left {group}"),
        Seen::Displaced => format!("{time:.6} s displaced"),
        Seen::Closed => format!("{time:.6} s closed"),
    }
}
