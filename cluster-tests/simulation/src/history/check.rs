//! The proof itself. Each pass looks for one kind of violation over the whole history; the earliest of what they find is
//! reported, since later ones are mostly its consequences.

use std::collections::{BTreeMap, BTreeSet};

use roost_logic::id::{Epoch, Position};

use super::{History, Outcome, PublishLog, Rule, Seen, Summary, Violation, displaced, ephemeral, print, stream};

/// A position in a group, by the group's number in [`Facts::groups`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) group: u32,
    pub(super) epoch: Epoch,
    pub(super) offset: u64,
}

/// What stands somewhere, and when that was first seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Fact<'a> {
    pub(super) place: Place,
    pub(super) payload: &'a str,
    pub(super) first_us: u64,
}

/// A publish whose place is known.
#[derive(Clone, Copy, Debug)]
struct Placed {
    place: Place,
    /// The first sending that was not certainly in vain.
    sent_us: u64,
    /// When its publisher knew.
    acked_us: Option<u64>,
}

/// The history, sorted into what the passes look things up in.
pub(super) struct Facts<'a> {
    pub(super) history: &'a History,
    groups: BTreeMap<&'a str, u32>,
    names: Vec<&'a str>,
    /// By place, one for each.
    by_place: Vec<Fact<'a>>,
    /// By place.
    placed: Vec<Placed>,
    /// For each of `placed`: the latest sending among those of its log up to it.
    latest_sent_us: Vec<u64>,
    /// Of each log that something was placed in: the end of its part of `placed`.
    log_ends: Vec<(u32, Epoch, usize)>,
}

pub(super) fn check(history: &History) -> Result<Summary, Violation> {
    let (facts, disagreement) = Facts::gather(history);
    let found = [
        disagreement,
        facts.duplicate(),
        facts.key_with_two_places(),
        facts.unexplained(),
        facts.against_real_time(),
        facts.against_session_order(),
        facts.history_with_holes(),
        stream::first_violation(&facts),
        displaced::first_violation(history),
        ephemeral::first_violation(history),
    ];
    match found.into_iter().flatten().min_by_key(|violation| violation.at_us) {
        Some(violation) => Err(violation),
        None => Ok(summary(history)),
    }
}

impl<'a> Facts<'a> {
    fn gather(history: &'a History) -> (Self, Option<Violation>) {
        let mut this = Self {
            history,
            groups: BTreeMap::new(),
            names: Vec::new(),
            by_place: Vec::new(),
            placed: Vec::new(),
            latest_sent_us: Vec::new(),
            log_ends: Vec::new(),
        };
        let mut sightings = this.sightings();
        sightings.sort_unstable();
        let disagreement = sightings
            .windows(2)
            .filter(|pair| pair[0].place == pair[1].place && pair[0].payload != pair[1].payload)
            .min_by_key(|pair| pair[0].first_us.max(pair[1].first_us))
            .map(|pair| {
                let place = pair[0].place;
                let what = format!("{} is {} and also {}", this.name(place), pair[0].payload, pair[1].payload);
                this.at_place(Rule::S1Agreement, pair[0].first_us.max(pair[1].first_us), what, place)
            });
        sightings.dedup_by_key(|fact| fact.place);
        this.by_place = sightings;
        this.place_publishes();
        (this, disagreement)
    }

    /// Every time that somebody saw something at some place.
    fn sightings(&mut self) -> Vec<Fact<'a>> {
        let history = self.history;
        let mut sightings = Vec::new();
        for publish in &history.publishes {
            let group = self.number(&publish.group);
            for attempt in &publish.attempts {
                if let Outcome::Acked { at, .. } = attempt.outcome {
                    sightings.push(fact(group, at, &publish.payload, attempt.answered_us));
                }
            }
        }
        for event in history.connections.iter().flat_map(|connection| &connection.events) {
            if let Seen::Message { group, at, payload } = &event.seen {
                sightings.push(fact(self.number(group), *at, payload, event.at_us));
            } else if let Some(group) = event.seen.group() {
                self.number(group);
            }
        }
        for replay in &history.replays {
            let group = self.number(&replay.group);
            for (offset, payload) in &replay.messages {
                let at = Position { epoch: replay.epoch, offset: *offset };
                sightings.push(fact(group, at, payload, replay.at_us));
            }
        }
        sightings
    }

    fn place_publishes(&mut self) {
        let mut by_payload: Vec<(u32, &str, Place)> =
            self.by_place.iter().map(|fact| (fact.place.group, fact.payload, fact.place)).collect();
        by_payload.sort_unstable();
        for publish in &self.history.publishes {
            let group = self.groups[&*publish.group];
            let Some(first) = publish.attempts.iter().find(|attempt| attempt.outcome != Outcome::Refused) else {
                continue;
            };
            let acked = first_ack(publish);
            let place = acked.map(|(at, _)| Place { group, epoch: at.epoch, offset: at.offset }).or_else(|| {
                let at = by_payload.partition_point(|entry| (entry.0, entry.1) < (group, &publish.payload));
                by_payload.get(at).filter(|entry| (entry.0, entry.1) == (group, &publish.payload)).map(|entry| entry.2)
            });
            if let Some(place) = place {
                self.placed.push(Placed { place, sent_us: first.sent_us, acked_us: acked.map(|(_, at_us)| at_us) });
            }
        }
        self.placed.sort_unstable_by_key(|placed| placed.place);
        let mut latest = 0;
        for (index, placed) in self.placed.iter().enumerate() {
            let Place { group, epoch, .. } = placed.place;
            match self.log_ends.last_mut() {
                Some(log) if (log.0, log.1) == (group, epoch) => {
                    log.2 = index + 1;
                    latest = placed.sent_us.max(latest);
                }
                _ => {
                    self.log_ends.push((group, epoch, index + 1));
                    latest = placed.sent_us;
                }
            }
            self.latest_sent_us.push(latest);
        }
    }

    fn number(&mut self, group: &'a str) -> u32 {
        if let Some(number) = self.groups.get(group) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).expect("fewer than four thousand million groups");
        self.names.push(group);
        self.groups.insert(group, number);
        number
    }

    /// The number of a group that the history names.
    pub(super) fn group(&self, name: &str) -> u32 {
        self.groups[name]
    }

    /// The latest sending of a publish that stands in this log at this place or before it.
    pub(super) fn latest_sent_up_to(&self, place: Place) -> Option<u64> {
        let end = self.placed.partition_point(|placed| placed.place <= place);
        let last = self.placed[..end].last()?;
        (last.place.group == place.group && last.place.epoch == place.epoch).then(|| self.latest_sent_us[end - 1])
    }

    /// The last acknowledged place of a log, and when its publisher knew.
    pub(super) fn last_acked(&self, group: u32, epoch: Epoch) -> Option<(u64, u64)> {
        self.log(group, epoch).iter().rev().find_map(|placed| Some((placed.place.offset, placed.acked_us?)))
    }

    /// An acknowledged publish to the group, sent after `since_us`, in a log that is none of `told`.
    pub(super) fn acked_elsewhere(&self, group: u32, told: &BTreeSet<Epoch>, since_us: u64) -> Option<(Place, u64)> {
        let first = self.log_ends.partition_point(|log| log.0 < group);
        self.log_ends[first..]
            .iter()
            .take_while(|log| log.0 == group)
            .filter(|(_, epoch, end)| !told.contains(epoch) && self.latest_sent_us[end - 1] > since_us)
            .flat_map(|(_, epoch, _)| self.log(group, *epoch))
            .filter(|placed| placed.sent_us > since_us)
            .find_map(|placed| Some((placed.place, placed.acked_us?)))
    }

    fn log(&self, group: u32, epoch: Epoch) -> &[Placed] {
        let key = |placed: &Placed| (placed.place.group, placed.place.epoch);
        let start = self.placed.partition_point(|placed| key(placed) < (group, epoch));
        let end = self.placed.partition_point(|placed| key(placed) <= (group, epoch));
        &self.placed[start..end]
    }

    /// A place in words.
    pub(super) fn name(&self, place: Place) -> String {
        format!("{} {}/{}", self.names[place.group as usize], place.epoch, place.offset)
    }

    fn at_place(&self, rule: Rule, at_us: u64, what: String, place: Place) -> Violation {
        let name = self.names[place.group as usize];
        Violation { rule, at_us, what, around: print::around_place(self.history, name, place) }
    }

    /// S4: one payload at two places of one log.
    fn duplicate(&self) -> Option<Violation> {
        let mut facts: Vec<&Fact<'_>> = self.by_place.iter().collect();
        let log_and_payload = |fact: &Fact<'a>| (fact.place.group, fact.place.epoch, fact.payload);
        facts.sort_unstable_by_key(|fact| (log_and_payload(fact), fact.place.offset));
        let pair = facts
            .windows(2)
            .filter(|pair| log_and_payload(pair[0]) == log_and_payload(pair[1]))
            .min_by_key(|pair| pair[0].first_us.max(pair[1].first_us))?;
        let what = format!(
            "{} stands at {} and again at {}",
            pair[0].payload,
            self.name(pair[0].place),
            self.name(pair[1].place)
        );
        Some(self.at_place(Rule::S4Duplicate, pair[0].first_us.max(pair[1].first_us), what, pair[0].place))
    }

    /// S4: repeats with one key answered with two places of one log.
    fn key_with_two_places(&self) -> Option<Violation> {
        let mut answers: BTreeMap<(&str, &str, &str, Epoch), u64> = BTreeMap::new();
        for publish in &self.history.publishes {
            // Without a key, repeats are recognised by what they say.
            let key = publish.key.as_deref().unwrap_or(&publish.payload);
            for attempt in &publish.attempts {
                let Outcome::Acked { at, .. } = attempt.outcome else { continue };
                let known = *answers.entry((&publish.publisher, &publish.group, key, at.epoch)).or_insert(at.offset);
                if known != at.offset {
                    let place =
                        Place { group: self.group(&publish.group), epoch: at.epoch, offset: at.offset.min(known) };
                    let what = format!(
                        "the key {key:?} of {} was answered with the offsets {known} and {} in {} {}",
                        publish.publisher, at.offset, publish.group, at.epoch
                    );
                    return Some(self.at_place(Rule::S4Duplicate, attempt.answered_us, what, place));
                }
            }
        }
        None
    }

    /// S3: what was refused but stands somewhere, or stood there before it was sent again; what nobody published.
    fn unexplained(&self) -> Option<Violation> {
        let mut publishes: Vec<(u32, &str, u64)> = Vec::with_capacity(self.history.publishes.len());
        for publish in &self.history.publishes {
            let refused = publish.attempts.iter().take_while(|attempt| attempt.outcome == Outcome::Refused).count();
            let next_us = publish.attempts.get(refused).map_or(u64::MAX, |attempt| attempt.sent_us);
            let refused_until_us = if refused > 0 { next_us } else { 0 };
            publishes.push((self.group(&publish.group), &publish.payload, refused_until_us));
        }
        publishes.sort_unstable();
        self.by_place
            .iter()
            .filter_map(|fact| {
                let group = fact.place.group;
                let at = publishes.partition_point(|entry| (entry.0, entry.1) < (group, fact.payload));
                let publish = publishes.get(at).filter(|entry| (entry.0, entry.1) == (group, fact.payload));
                let what = match publish {
                    Some((_, _, until_us)) if fact.first_us < *until_us => "was refused, and yet stands at",
                    None if self.history.publishes_complete => "was never published, and yet stands at",
                    _ => return None,
                };
                Some((fact, what))
            })
            .min_by_key(|(fact, _)| fact.first_us)
            .map(|(fact, what)| {
                let what = format!("{} {what} {}", fact.payload, self.name(fact.place));
                self.at_place(Rule::S3Acknowledged, fact.first_us, what, fact.place)
            })
    }

    /// S5: a publish that was sent after another one was acknowledged stands before it.
    fn against_real_time(&self) -> Option<Violation> {
        let mut earliest: Option<(u64, Place)> = None;
        for placed in self.placed.iter().rev() {
            let same_log = |other: Place| (other.group, other.epoch) == (placed.place.group, placed.place.epoch);
            earliest = earliest.filter(|(_, place)| same_log(*place));
            if let Some((acked_us, later)) = earliest
                && acked_us < placed.sent_us
            {
                let what = format!(
                    "{} was sent at {:.6} s, after {} had been acknowledged, and yet stands before it",
                    self.name(placed.place),
                    placed.sent_us as f64 / 1e6,
                    self.name(later)
                );
                return Some(self.at_place(Rule::S5Order, placed.sent_us, what, placed.place));
            }
            if let Some(acked_us) = placed.acked_us
                && earliest.is_none_or(|(known, _)| acked_us < known)
            {
                earliest = Some((acked_us, placed.place));
            }
        }
        None
    }

    /// S5: of two publishes that a session sent one after the other, the second stands first. Repeated ones are left out:
    /// the publisher itself chose when to repeat them.
    fn against_session_order(&self) -> Option<Violation> {
        let mut sent: Vec<(&str, u32, u32, u64, &PublishLog)> = Vec::new();
        for publish in &self.history.publishes {
            if let [attempt] = publish.attempts[..] {
                let group = self.group(&publish.group);
                sent.push((&publish.publisher, attempt.connection, group, attempt.sequence, publish));
            }
        }
        sent.sort_unstable_by_key(|entry| (entry.0, entry.1, entry.2, entry.3));
        let mut last: Option<(&str, u32, u32, Position)> = None;
        for (publisher, connection, group, _, publish) in sent {
            let Some((at, at_us)) = first_ack(publish) else { continue };
            if let Some((before_publisher, before_connection, before_group, before)) = last
                && (before_publisher, before_connection, before_group) == (publisher, connection, group)
                && before.epoch == at.epoch
                && before.offset > at.offset
            {
                let place = Place { group, epoch: at.epoch, offset: at.offset };
                let what = format!(
                    "{publisher} sent {} before what stands at {}",
                    self.name(Place { offset: before.offset, ..place }),
                    self.name(place)
                );
                return Some(self.at_place(Rule::S5Order, at_us, what, place));
            }
            last = Some((publisher, connection, group, at));
        }
        None
    }

    /// S2: an answer to a history request whose messages are not consecutive.
    fn history_with_holes(&self) -> Option<Violation> {
        self.history.replays.iter().find_map(|replay| {
            let pair = replay.messages.windows(2).find(|pair| pair[1].0 != pair[0].0 + 1)?;
            let place = Place { group: self.group(&replay.group), epoch: replay.epoch, offset: pair[1].0 };
            let what = format!("in {} {} follows offset {}", replay.what, self.name(place), pair[0].0);
            Some(self.at_place(Rule::S2Contiguity, replay.at_us, what, place))
        })
    }
}

fn fact<'a>(group: u32, at: Position, payload: &'a str, first_us: u64) -> Fact<'a> {
    Fact { place: Place { group, epoch: at.epoch, offset: at.offset }, payload, first_us }
}

/// Where the publisher was first told that it stands, and when.
fn first_ack(publish: &PublishLog) -> Option<(Position, u64)> {
    publish
        .attempts
        .iter()
        .filter_map(|attempt| match attempt.outcome {
            Outcome::Acked { at, .. } => Some((at, attempt.answered_us)),
            Outcome::Refused | Outcome::Unknown => None,
        })
        .min_by_key(|(_, at_us)| *at_us)
}

fn summary(history: &History) -> Summary {
    let mut sum = Summary { connections: history.connections.len(), ..Summary::default() };
    for publish in &history.publishes {
        sum.repeats += publish.attempts.len() - 1;
        let mut copies = publish.attempts.iter().filter_map(|attempt| match attempt.outcome {
            Outcome::Acked { copies, .. } => Some(copies),
            Outcome::Refused | Outcome::Unknown => None,
        });
        if let Some(copies) = copies.next() {
            sum.acked += 1;
            sum.fewest_copies = Some(sum.fewest_copies.map_or(copies, |known| known.min(copies)));
        } else if publish.attempts.iter().all(|attempt| attempt.outcome == Outcome::Refused) {
            sum.refused += 1;
        } else {
            sum.unknown += 1;
        }
    }
    for event in history.connections.iter().flat_map(|connection| &connection.events) {
        match &event.seen {
            Seen::Joined { since, recovered, .. } => {
                sum.resumes += usize::from(since.is_some());
                sum.not_recovered += usize::from(since.is_some() && !recovered);
            }
            Seen::Message { .. } => sum.delivered += 1,
            Seen::Ephemeral { .. } => sum.ephemerals += 1,
            Seen::Gap { .. } => sum.gaps += 1,
            Seen::Reset { .. } => sum.resets += 1,
            Seen::Stale { .. } | Seen::Live { .. } | Seen::Left { .. } | Seen::Displaced | Seen::Closed => {}
        }
    }
    sum
}
