//! One connection's log, event by event: what may come next in each of its groups.

use std::collections::{BTreeMap, BTreeSet};

use roost_logic::id::{Epoch, Position};

use super::{
    ConnectionLog, Rule, Seen, Violation,
    check::{Facts, Place},
    print,
};

/// Where a subscription stands.
struct Cursor {
    epoch: Epoch,
    /// The next offset must be one of these, both ends included. They differ only after `recovered: false`, when the
    /// client was told that something is missing but not how much.
    next: (u64, u64),
    /// The join point.
    join: Position,
    joined_us: u64,
    /// Replays up to the join point were promised whole.
    resumed: bool,
    /// Every epoch that this subscription was told of.
    told: BTreeSet<Epoch>,
}

/// Something wrong, before its surroundings are looked up.
type Wrong = (Rule, String);

/// The earliest violation in each connection's own log, and of what it must have contained.
pub(super) fn first_violation(facts: &Facts<'_>) -> Option<Violation> {
    facts
        .history
        .connections
        .iter()
        .filter_map(|connection| in_connection(facts, connection))
        .min_by_key(|violation| violation.at_us)
}

fn in_connection(facts: &Facts<'_>, connection: &ConnectionLog) -> Option<Violation> {
    let mut cursors: BTreeMap<&str, Cursor> = BTreeMap::new();
    let mut displaced = false;
    for (index, event) in connection.events.iter().enumerate() {
        let wrong = match &event.seen {
            Seen::Closed => None,
            _ if displaced => Some((Rule::S7Displaced, "something came after the session attached elsewhere".into())),
            Seen::Displaced => {
                displaced = true;
                None
            }
            Seen::Stale { .. } => None,
            Seen::Ephemeral { group, .. } if !cursors.contains_key(&**group) => {
                Some((Rule::Ephemeral, format!("the connection has not joined {group}")))
            }
            Seen::Ephemeral { .. } => None,
            Seen::Left { group } => {
                cursors.remove(&**group);
                None
            }
            Seen::Joined { group, since, at, recovered } => match join(*since, *at, *recovered, event.at_us) {
                Ok(cursor) => {
                    let wrong = join_ahead(facts, facts.group(group), &cursor);
                    cursors.insert(group, cursor);
                    wrong
                }
                Err(wrong) => Some(wrong),
            },
            Seen::Message { group, .. }
            | Seen::Gap { group, .. }
            | Seen::Reset { group, .. }
            | Seen::Live { group, .. } => match cursors.get_mut(&**group) {
                Some(cursor) => cursor.step(&event.seen).err(),
                None => Some((Rule::S2Contiguity, format!("the connection has not joined {group}"))),
            },
        };
        if let Some((rule, what)) = wrong {
            let what =
                format!("{}, connection {} to {}: {what}", connection.client, connection.number, connection.node);
            return Some(Violation { rule, at_us: event.at_us, what, around: print::around_event(connection, index) });
        }
    }
    if !connection.settled {
        return None;
    }
    cursors.iter().find_map(|(group, cursor)| missing_at_the_end(facts, connection, group, cursor))
}

fn join(since: Option<Position>, at: Position, recovered: bool, at_us: u64) -> Result<Cursor, Wrong> {
    let mut next = (at.offset + 1, at.offset + 1);
    if let Some(since) = since {
        let same_log = since.epoch == at.epoch;
        if recovered && !same_log {
            return Err((Rule::S6Resume, format!("recovered from {} into another log, {}", since.epoch, at.epoch)));
        }
        // Without `recovered`, it may be the word of a primary that is deposed and does not know: what follows comes again.
        if recovered && at.offset < since.offset {
            let what = format!("the log ends at {} but the client has seen {}", at.offset, since.offset);
            return Err((Rule::S6Resume, what));
        }
        let first = if same_log { since.offset + 1 } else { 1 };
        next = if recovered { (first, first) } else { (first.min(at.offset + 1), at.offset + 1) };
    }
    let resumed = recovered && since.is_some();
    Ok(Cursor { epoch: at.epoch, next, join: at, joined_us: at_us, resumed, told: BTreeSet::from([at.epoch]) })
}

/// S8: a join point beyond what was published by then would hide what comes next.
fn join_ahead(facts: &Facts<'_>, group: u32, cursor: &Cursor) -> Option<Wrong> {
    let place = Place { group, epoch: cursor.join.epoch, offset: cursor.join.offset };
    let sent_us = facts.latest_sent_up_to(place).filter(|sent_us| *sent_us > cursor.joined_us)?;
    let what =
        format!("the join point {} covers what was sent later, at {:.6} s", facts.name(place), sent_us as f64 / 1e6);
    Some((Rule::S8JoinPoint, what))
}

impl Cursor {
    fn step(&mut self, seen: &Seen) -> Result<(), Wrong> {
        match seen {
            Seen::Message { at, .. } => {
                self.same_log(at.epoch)?;
                self.next_is(at.offset)?;
                self.next = (at.offset + 1, at.offset + 1);
            }
            Seen::Gap { epoch, from, to, .. } => {
                self.same_log(*epoch)?;
                if self.resumed && *from <= self.join.offset {
                    return Err((Rule::S6Resume, format!("a gap at {from} in what was said to be recovered")));
                }
                if from > to {
                    return Err((Rule::S2Contiguity, format!("a gap from {from} to {to}")));
                }
                self.next_is(*from)?;
                self.next = (to + 1, to + 1);
            }
            Seen::Reset { to, .. } => {
                if to.epoch == self.epoch {
                    return Err((Rule::S2Contiguity, format!("a reset into the same log, {}", to.epoch)));
                }
                self.epoch = to.epoch;
                self.told.insert(to.epoch);
                self.resumed = false;
                self.next = (to.offset + 1, to.offset + 1);
            }
            Seen::Live { at, .. } => {
                self.same_log(at.epoch)?;
                if at.offset >= self.next.1 {
                    let what = format!("live up to {}, but {} has not come", at.offset, self.next.1);
                    return Err((Rule::S2Contiguity, what));
                }
            }
            Seen::Joined { .. }
            | Seen::Ephemeral { .. }
            | Seen::Stale { .. }
            | Seen::Left { .. }
            | Seen::Displaced
            | Seen::Closed => {}
        }
        Ok(())
    }

    fn same_log(&self, epoch: Epoch) -> Result<(), Wrong> {
        if epoch == self.epoch {
            return Ok(());
        }
        Err((Rule::S2Contiguity, format!("epoch {epoch} without a reset, {} was expected", self.epoch)))
    }

    fn next_is(&self, offset: u64) -> Result<(), Wrong> {
        let (first, last) = self.next;
        if (first..=last).contains(&offset) {
            return Ok(());
        }
        let rule = if self.resumed && first <= self.join.offset {
            Rule::S6Resume
        } else if self.epoch == self.join.epoch && first == self.join.offset + 1 && offset > first {
            Rule::S8JoinPoint
        } else {
            Rule::S2Contiguity
        };
        let expected = if first == last { first.to_string() } else { format!("{first} to {last}") };
        Err((rule, format!("offset {offset}, {expected} was expected")))
    }

    /// The last offset that was delivered or declared missing.
    fn seen_up_to(&self) -> u64 {
        self.next.1 - 1
    }
}

/// S3: what was acknowledged and should have arrived by the end.
fn missing_at_the_end(
    facts: &Facts<'_>,
    connection: &ConnectionLog,
    group: &str,
    cursor: &Cursor,
) -> Option<Violation> {
    let number = facts.group(group);
    let (place, acked_us) = facts
        .last_acked(number, cursor.epoch)
        .filter(|(offset, _)| *offset > cursor.seen_up_to())
        .map(|(offset, at_us)| (Place { group: number, epoch: cursor.epoch, offset }, at_us))
        .or_else(|| facts.acked_elsewhere(number, &cursor.told, cursor.joined_us))?;
    let what = format!(
        "{}, connection {} to {}: {} was acknowledged, but the subscription ended at {}/{}",
        connection.client,
        connection.number,
        connection.node,
        facts.name(place),
        cursor.epoch,
        cursor.seen_up_to()
    );
    let mut around = print::around_place(facts.history, group, place);
    let last = connection.events.iter().rposition(|event| event.seen.group().is_some_and(|name| **name == *group));
    around.extend(last.map(|index| print::around_event(connection, index)).unwrap_or_default());
    Some(Violation { rule: Rule::S3Acknowledged, at_us: acked_us, what, around })
}
