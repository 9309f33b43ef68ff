//! What is asked of the slots' primaries: registrations and their ends gathered by slot, joins and leaves one by one, of all
//! together a bounded number at once.

use std::collections::{BTreeMap, VecDeque};

use super::FollowingSettings;
use crate::{
    feed::{Attempt, Subscriber},
    id::{GroupName, Position, SlotId},
    request::{Done, Interest, Join, JoinPoint, Leave, Register, SlotError, Unregister},
};

/// Which request of which feed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The group's slot.
    pub slot: SlotId,
    pub group: GroupName,
    /// The feed's number for the request.
    pub attempt: Attempt,
}

/// A request to a slot's primary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Everything of these groups since the positions of their feeds.
    Register {
        slot: SlotId,
        /// The groups, in the order of the request.
        asked: Vec<(GroupName, Attempt)>,
        request: Register,
    },
    /// Nobody here follows these groups any more.
    Unregister { slot: SlotId, asked: Vec<(GroupName, Attempt)>, request: Unregister },
    /// A connection joins.
    Join { asked: Asked, subscriber: Subscriber, request: Join },
    /// A session has left the group.
    Leave {
        asked: Asked,
        /// Which connection it was.
        subscriber: Subscriber,
        request: Leave,
        /// How often it is asked, with this time.
        tries: u32,
    },
}

/// What became of an [`Ask`], under the same names.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// To `Register`.
    Registered {
        slot: SlotId,
        /// The groups asked about, in the order of the request.
        asked: Vec<(GroupName, Attempt)>,
        /// One point for each, in the same order.
        result: Result<Vec<JoinPoint>, SlotError>,
    },
    /// To `Unregister`, whatever came of it.
    Unregistered {
        slot: SlotId,
        /// The groups asked about.
        asked: Vec<(GroupName, Attempt)>,
    },
    /// To `Join`.
    Joined {
        asked: Asked,
        subscriber: Subscriber,
        /// What the primary said.
        result: Result<JoinPoint, SlotError>,
    },
    /// To `Leave`.
    Left {
        asked: Asked,
        /// Which connection it was.
        subscriber: Subscriber,
        /// The request, to be repeated.
        request: Leave,
        /// How often it was asked.
        tries: u32,
        /// What the primary said.
        result: Result<Done, SlotError>,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Requests {
    settings: FollowingSettings,
    registers: BTreeMap<SlotId, Vec<(GroupName, Attempt, Position)>>,
    unregisters: BTreeMap<SlotId, Vec<(GroupName, Attempt)>>,
    singles: VecDeque<Ask>,
    /// Leaves that are asked again later, by when and in their order.
    later: BTreeMap<(u64, u64), Ask>,
    next_later: u64,
    /// There was no place for these.
    refused: VecDeque<Answer>,
    in_flight: usize,
}

impl Requests {
    pub(super) fn new(settings: FollowingSettings) -> Self {
        Self {
            settings,
            registers: BTreeMap::new(),
            unregisters: BTreeMap::new(),
            singles: VecDeque::new(),
            later: BTreeMap::new(),
            next_later: 0,
            refused: VecDeque::new(),
            in_flight: 0,
        }
    }

    pub(super) fn register(&mut self, slot: SlotId, group: GroupName, attempt: Attempt, since: Position) {
        self.registers.entry(slot).or_default().push((group, attempt, since));
    }

    pub(super) fn unregister(&mut self, slot: SlotId, group: GroupName, attempt: Attempt) {
        self.unregisters.entry(slot).or_default().push((group, attempt));
    }

    /// Queues a request about one connection, or refuses it where there are too many.
    pub(super) fn single(&mut self, ask: Ask) {
        if self.singles.len() < self.settings.waiting {
            return self.singles.push_back(ask);
        }
        match ask {
            Ask::Join { asked, subscriber, .. } => {
                self.refused.push_back(Answer::Joined { asked, subscriber, result: Err(SlotError::Busy) });
            }
            Ask::Leave { asked, subscriber, request, .. } => {
                // More of them would not help.
                let (tries, result) = (self.settings.leave_tries, Err(SlotError::Busy));
                self.refused.push_back(Answer::Left { asked, subscriber, request, tries, result });
            }
            Ask::Register { .. } | Ask::Unregister { .. } => unreachable!("{ask:?} is about many connections"),
        }
    }

    pub(super) fn next_refused(&mut self) -> Option<Answer> {
        self.refused.pop_front()
    }

    pub(super) fn ask_again(&mut self, at_ms: u64, ask: Ask) {
        self.later.insert((at_ms, self.next_later), ask);
        self.next_later += 1;
    }

    pub(super) fn next_wake(&self) -> Option<u64> {
        self.later.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    pub(super) fn tick(&mut self, now_ms: u64) {
        while self.next_wake().is_some_and(|at_ms| at_ms <= now_ms) {
            if let Some((_, ask)) = self.later.pop_first() {
                self.single(ask);
            }
        }
    }

    /// One that was under way is not any more.
    pub(super) fn is_answered(&mut self) {
        assert!(self.in_flight > 0, "an answer to what was not asked");
        self.in_flight -= 1;
    }

    /// The next one to be asked, if one more may be under way. Registrations come first: clients miss messages meanwhile.
    pub(super) fn next(&mut self) -> Option<Ask> {
        if self.in_flight >= self.settings.in_flight {
            return None;
        }
        let most = self.settings.groups_at_once;
        let next = take_some(&mut self.registers, most)
            .map(|(slot, gathered)| register(slot, gathered))
            .or_else(|| take_some(&mut self.unregisters, most).map(|(slot, gathered)| unregister(slot, gathered)))
            .or_else(|| self.singles.pop_front());
        self.in_flight += usize::from(next.is_some());
        next
    }
}

fn take_some<T>(queued: &mut BTreeMap<SlotId, Vec<T>>, most: usize) -> Option<(SlotId, Vec<T>)> {
    let mut entry = queued.first_entry()?;
    let slot = *entry.key();
    if entry.get().len() > most {
        return Some((slot, entry.get_mut().drain(..most).collect()));
    }
    Some((slot, entry.remove()))
}

fn register(slot: SlotId, gathered: Vec<(GroupName, Attempt, Position)>) -> Ask {
    let asked = gathered.iter().map(|(group, attempt, _)| (group.clone(), *attempt)).collect();
    let interests = gathered.into_iter().map(|(group, _, since)| Interest { group, since: Some(since) });
    Ask::Register { slot, asked, request: Register(interests.collect()) }
}

fn unregister(slot: SlotId, asked: Vec<(GroupName, Attempt)>) -> Ask {
    let groups = asked.iter().map(|(group, _)| group.clone()).collect();
    Ask::Unregister { slot, asked, request: Unregister(groups) }
}

/// What an answer to a registration says to each of its groups.
pub(super) fn each(
    asked: Vec<(GroupName, Attempt)>,
    result: Result<Vec<JoinPoint>, SlotError>,
) -> impl Iterator<Item = (GroupName, Attempt, Result<JoinPoint, SlotError>)> {
    let (mut points, error) = match result {
        Ok(points) => (points.into_iter(), SlotError::Unknown),
        Err(error) => (Vec::new().into_iter(), error),
    };
    asked.into_iter().map(move |(group, attempt)| {
        // They come in the order of the interests; one that does not is not believed.
        let result = points.next().filter(|point| point.group == group).ok_or_else(|| error.clone());
        (group, attempt, result)
    })
}
