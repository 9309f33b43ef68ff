//! One group as a gateway follows it for its clients: the only place that decides what they are told, and in which order.
//!
//! The feed has one position: everything up to it was delivered, or declared missing, to every live subscriber. Pushes
//! move it one message at a time; where one is missing (a link was reset, the primary changed) it registers again *since*
//! its position, and the answer fills the hole or proves it unfillable. Answers and pushes come by different ways, so each
//! may overtake the other: an answer never moves the position back, and a push never moves it past a hole.
//!
//! A client's join point may lie on either side of the position. Behind it, the client gets the difference from what was
//! delivered `recent`ly; before it, the client is `ahead` and is left out until the feed gets there.
//!
//! A client that cannot be given everything at once is `behind`: at a position of its own, where nothing is told to it.
//! It comes to that because the primary answers with a page at a time, or because its connection had no room for a
//! message. Whenever the connection has room it joins once more, since that position, until a page ends where what was
//! delivered `recent`ly begins.

mod buffers;
mod counts;
mod position;
#[cfg(test)]
mod simulation;
mod subscribers;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use buffers::Bounds;
use buffers::{Held, Recent};
use counts::Counts;

use super::{
    entry::{EphemeralMessage, MemberEvent, Message, Presence, Present},
    request::{JoinPoint, SlotError},
};
use crate::id::{Epoch, NUMBER_MAX, Position, Seat, Term};

/// Numbers the requests of one feed.
pub type Attempt = u64;

/// The number of a connection on this node.
pub type Subscriber = u64;

/// A client's own mark on its request.
pub type Mark = Option<Box<str>>;

/// Times in milliseconds, and bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeedSettings {
    /// A live feed registers again this often: heals a loss that nobody noticed.
    pub renew_ms: u64,
    /// When in that interval; groups of one slot share it, so that they go in one request.
    pub renew_phase_ms: u64,
    /// The registration is kept for this time after the last subscriber left.
    pub linger_ms: u64,
    /// How long pushes may lag behind an answer before they are counted as lost.
    pub settle_ms: u64,
    /// Subscribers are told this time after the primary was last heard.
    pub stale_after_ms: u64,
    /// The first pause before a repeated request; doubled each time, up to `retry_max_ms`.
    pub retry_ms: u64,
    /// See `retry_ms`.
    pub retry_max_ms: u64,
    /// A request without an answer for this time has failed.
    pub answer_ms: u64,
    /// A join that has to be asked again is given up after this time.
    pub join_ms: u64,
    /// How many are there is told this often at most, where that is told instead of who.
    pub counts_ms: u64,
    /// For each of the two buffers.
    pub bounds: Bounds,
}

impl Default for FeedSettings {
    fn default() -> Self {
        Self {
            renew_ms: 5_000,
            renew_phase_ms: 0,
            linger_ms: 2_000,
            settle_ms: 250,
            stale_after_ms: 1_500,
            retry_ms: 50,
            retry_max_ms: 1_000,
            answer_ms: 12_000,
            join_ms: 8_000,
            counts_ms: 1_000,
            bounds: Bounds { messages: 4_096, bytes: 4 << 20 },
        }
    }
}

/// What happens to a feed.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// A connection joins. One that has joined already joins anew.
    Subscribe {
        subscriber: Subscriber,
        /// Given back in the answer.
        request: Mark,
        /// Who, where the namespace has presence.
        member: Option<Presence>,
        /// It is told how many there are, not who comes and goes.
        summed: bool,
        /// Where the client stopped.
        since: Option<Position>,
    },
    /// A connection leaves, or is gone.
    Unsubscribe {
        subscriber: Subscriber,
        /// Whose presence is to end with it; nothing where it goes on for a while (the socket dropped).
        leave: Option<Seat>,
    },
    /// To [`Output::AskJoin`].
    JoinAnswer {
        /// Of the request.
        attempt: Attempt,
        /// The same as in the request.
        subscriber: Subscriber,
        result: Result<JoinPoint, SlotError>,
    },
    /// To [`Output::AskRegister`].
    RegisterAnswer {
        /// Of the request.
        attempt: Attempt,
        result: Result<JoinPoint, SlotError>,
    },
    /// To [`Output::AskUnregister`], whatever the answer.
    UnregisterAnswer {
        /// Of the request.
        attempt: Attempt,
    },
    /// To [`Output::AskLeave`], whatever the answer.
    LeaveAnswer {
        /// Of the request.
        attempt: Attempt,
        /// The same as in the request.
        subscriber: Subscriber,
    },
    /// A primary pushed a message.
    Deliver {
        epoch: Epoch,
        message: Message,
        /// The primary's term.
        term: Term,
    },
    /// A primary pushed a change of the presence.
    Member {
        event: MemberEvent,
        member: Presence,
        /// Who is there then.
        present: Present,
    },
    /// A primary passed a message on that has no place.
    Ephemeral { message: EphemeralMessage },
    /// A live client's connection had no room for a message.
    Lag {
        subscriber: Subscriber,
        /// What it was told last.
        at: Position,
    },
    /// A client that is [`Output::Behind`] has room for a page.
    Room { subscriber: Subscriber },
    /// The primary is another one, or what it sent may be lost.
    Disrupted,
    /// The primary cannot be heard.
    PrimaryUnreachable {
        /// When it was last heard.
        since_ms: u64,
    },
    /// The primary can be heard again.
    PrimaryReachable,
    /// The time of [`Feed::next_wake`] has come.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Ask the primary for a join.
    AskJoin {
        /// For the answer.
        attempt: Attempt,
        subscriber: Subscriber,
        member: Option<Presence>,
        /// Where the client stopped.
        since: Option<Position>,
    },
    /// Ask the primary for everything since this position.
    AskRegister {
        /// For the answer.
        attempt: Attempt,
        /// The feed's position.
        since: Position,
    },
    /// Tell the primary that nobody here listens any more.
    AskUnregister {
        /// For the answer.
        attempt: Attempt,
    },
    /// Tell the primary that a session has left the group.
    AskLeave {
        /// For the answer.
        attempt: Attempt,
        /// Which connection it was.
        subscriber: Subscriber,
        /// And with it those of the client's earlier attachments.
        seat: Seat,
    },
    /// The client has joined and is live from now on; messages for it alone may follow.
    Joined {
        subscriber: Subscriber,
        /// The client's mark.
        request: Mark,
        /// The join point's log.
        epoch: Epoch,
        /// The join point.
        offset: u64,
        /// Everything since the client's position follows.
        recovered: bool,
    },
    /// The client has not joined.
    JoinFailed {
        subscriber: Subscriber,
        /// The client's mark.
        request: Mark,
        error: SlotError,
    },
    /// A page of what the client is behind with; it is live from now on. Messages for it alone may follow.
    Replay { subscriber: Subscriber },
    /// A page could not be had: the client is behind as before.
    ReplayFailed { subscriber: Subscriber, error: SlotError },
    /// The client is not live any more: it is told nothing until [`Input::Room`] has brought it a page.
    Behind { subscriber: Subscriber },
    /// Tell live subscribers something.
    Tell { to: To, notice: Notice },
}

/// Whom to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum To {
    /// All live subscribers but these (nearly always none). Of the presence also those that are behind.
    AllBut(Vec<Subscriber>),
    /// This one, which is live.
    One(Subscriber),
}

/// What to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    Message {
        epoch: Epoch,
        message: Message,
    },
    /// Someone came or went, or has other attributes.
    Member {
        event: MemberEvent,
        member: Presence,
    },
    /// How many are there, where it is not told one by one.
    Present(Present),
    /// It has no place, and says nothing of where the log is. Who has no room for it does without.
    Ephemeral(EphemeralMessage),
    /// These messages are not to be had any more.
    Gap {
        epoch: Epoch,
        from: u64,
        to: u64,
    },
    /// The log is another one; delivery goes on after this position.
    Reset(Position),
    /// The primary cannot be heard.
    Stale,
    /// The primary is heard again, and nothing up to here is missing undeclared.
    Live(Position),
}

/// One group on this gateway.
#[derive(Debug)]
pub struct Feed {
    settings: Arc<FeedSettings>,
    /// Everything up to here was delivered or declared. Nothing before the first join point.
    position: Option<Position>,
    /// The last request that had been made when an answer named the position's log.
    log_known_at: Attempt,
    /// The highest term that pushed something.
    term: Term,
    live: BTreeSet<Subscriber>,
    /// Live subscribers whose join point lies after the position.
    ahead: BTreeMap<Subscriber, u64>,
    /// Who has joined and is not live, with what it was told last.
    behind: BTreeMap<Subscriber, Position>,
    /// Who waits for an answer: to be let in, or for a page.
    joining: BTreeMap<Subscriber, Joining>,
    /// Not later than the first time at which a join is to be asked again or given up.
    joins_due_ms: u64,
    departing: BTreeMap<Subscriber, Departing>,
    held: Held,
    recent: Recent,
    last_attempt: Attempt,
    registration: Registration,
    /// Another registration is needed after the one under way, or as soon as there is a position.
    register_again: bool,
    renew_at_ms: u64,
    /// Registrations in a row that did not settle things.
    failures: u32,
    /// A registration has been wanted and not had since then.
    unsettled_since_ms: Option<u64>,
    /// Pushes that an answer has told of should have come by then.
    behind_until_ms: Option<u64>,
    unreachable_since_ms: Option<u64>,
    stale: bool,
    empty_since_ms: Option<u64>,
    unregistering: Option<Attempt>,
    /// Where these are told instead of who comes and goes.
    counts: Option<Box<Counts>>,
}

#[derive(Debug)]
enum Registration {
    Idle,
    Asked { attempt: Attempt, since: Position, at_ms: u64 },
    Retry { at_ms: u64 },
}

#[derive(Debug)]
struct Joining {
    request: Mark,
    member: Option<Presence>,
    since: Option<Position>,
    /// It has joined, and was behind.
    replay: bool,
    give_up_ms: u64,
    /// How often it had to be asked again.
    repeats: u32,
    stage: JoinStage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum JoinStage {
    Asked(Attempt),
    /// To be asked again then, or as soon as a registration has settled the feed.
    Paused {
        until_ms: u64,
    },
    /// To be asked when the same connection's earlier presence is gone, so that the two do not cross.
    AfterLeave,
}

/// A presence that is being taken back.
#[derive(Debug)]
struct Departing {
    seat: Seat,
    /// The join that it has to wait for, else the leave that was asked.
    waits_for: Attempt,
    asked: bool,
}

/// A client's position that the primary does not reach is asked for again this number of times, some 2.5 s in all, before it is taken for
/// nonsense: a primary that was deposed may not hear of it for as long.
const BEYOND_HEAD_REPEATS: u32 = 7;

impl Feed {
    /// A feed that nobody follows yet. Its requests are numbered from after `last_attempt`, so that late answers to an
    /// earlier feed of the group mean nothing to it.
    pub fn new(settings: Arc<FeedSettings>, last_attempt: Attempt) -> Self {
        Self {
            settings,
            position: None,
            log_known_at: 0,
            term: 0,
            live: BTreeSet::new(),
            ahead: BTreeMap::new(),
            behind: BTreeMap::new(),
            joining: BTreeMap::new(),
            joins_due_ms: u64::MAX,
            departing: BTreeMap::new(),
            held: Held::default(),
            recent: Recent::default(),
            last_attempt,
            registration: Registration::Idle,
            register_again: false,
            renew_at_ms: 0,
            failures: 0,
            unsettled_since_ms: None,
            behind_until_ms: None,
            unreachable_since_ms: None,
            stale: false,
            empty_since_ms: None,
            unregistering: None,
            counts: None,
        }
    }

    /// Takes one step. `now_ms` never goes back.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Subscribe { subscriber, request, member, summed, since } => {
                self.sums(summed);
                let joining = Joining {
                    request,
                    member,
                    since,
                    replay: false,
                    give_up_ms: now_ms + self.settings.join_ms,
                    repeats: 0,
                    stage: JoinStage::AfterLeave,
                };
                self.subscribe(now_ms, subscriber, joining, out);
            }
            Input::Unsubscribe { subscriber, leave } => self.unsubscribe(now_ms, subscriber, leave, out),
            Input::JoinAnswer { attempt, subscriber, result } => {
                let result = checked(result);
                self.join_answer(now_ms, attempt, subscriber, result, out);
                self.depart_after_join(attempt, subscriber, out);
            }
            Input::RegisterAnswer { attempt, result } => self.register_answer(now_ms, attempt, checked(result), out),
            Input::UnregisterAnswer { attempt } => {
                if self.unregistering == Some(attempt) {
                    self.unregistering = None;
                    // A join may have been asked meanwhile and been carried out before it.
                    self.register(now_ms, out);
                }
            }
            Input::LeaveAnswer { attempt, subscriber } => self.leave_answer(attempt, subscriber, out),
            Input::Deliver { message, .. } if message.offset == 0 || message.offset > NUMBER_MAX => {}
            Input::Deliver { epoch, message, term } => self.pushed(now_ms, epoch, message, term, out),
            Input::Member { present, .. } if self.counts.is_some() => self.note_present(now_ms, present, out),
            Input::Member { event, member, .. } if self.has_subscribers() => {
                out.push(Output::Tell { to: To::AllBut(Vec::new()), notice: Notice::Member { event, member } });
            }
            Input::Member { .. } => {}
            // Whoever is behind, or joining, is not there now.
            Input::Ephemeral { message } => self.tell_all(Notice::Ephemeral(message), out),
            Input::Lag { subscriber, at } => self.lag(subscriber, at, out),
            Input::Room { subscriber } => self.room(now_ms, subscriber, out),
            Input::Disrupted => {
                self.failures = 0;
                self.register(now_ms, out);
            }
            Input::PrimaryUnreachable { since_ms } => {
                self.unreachable_since_ms.get_or_insert(since_ms);
                self.tick(now_ms, out);
            }
            Input::PrimaryReachable => {
                if self.unreachable_since_ms.take().is_some()
                    && !matches!(self.registration, Registration::Asked { .. })
                {
                    self.failures = 0;
                    self.register(now_ms, out);
                }
            }
            Input::Tick => self.tick(now_ms, out),
        }
    }

    /// When [`Input::Tick`] is due next.
    pub fn next_wake(&self) -> Option<u64> {
        let registration = match self.registration {
            Registration::Asked { at_ms, .. } => Some(at_ms + self.settings.answer_ms),
            Registration::Retry { at_ms } => Some(at_ms),
            Registration::Idle if self.position.is_some() && self.has_subscribers() => {
                Some(self.behind_until_ms.map_or(self.renew_at_ms, |behind| behind.min(self.renew_at_ms)))
            }
            Registration::Idle => None,
        };
        let joins = (!self.joining.is_empty()).then_some(self.joins_due_ms);
        let linger = self.empty_since_ms.map(|since| since + self.settings.linger_ms);
        let stale =
            if self.stale { None } else { self.troubled_since_ms().map(|since| since + self.settings.stale_after_ms) };
        let counts = self.counts.as_ref().filter(|_| self.has_subscribers()).and_then(|counts| counts.due_ms);
        [registration, joins, linger, stale, counts].into_iter().flatten().min()
    }

    /// How many connections follow the group, or are about to.
    pub fn subscriber_count(&self) -> usize {
        self.live.len() + self.behind.len() + self.joining.len()
    }

    /// Whether this connection follows the group, or is about to.
    pub fn follows(&self, subscriber: Subscriber) -> bool {
        self.live.contains(&subscriber)
            || self.behind.contains_key(&subscriber)
            || self.joining.contains_key(&subscriber)
    }

    /// The number of the last request.
    pub fn last_attempt(&self) -> Attempt {
        self.last_attempt
    }

    /// Whether clients are joining, or wait for a page.
    pub fn has_joining(&self) -> bool {
        !self.joining.is_empty()
    }

    /// Nothing is left and nothing is under way: the feed may be dropped.
    pub fn is_over(&self) -> bool {
        !self.has_subscribers()
            && self.departing.is_empty()
            && self.unregistering.is_none()
            && self.empty_since_ms.is_none()
    }

    fn has_subscribers(&self) -> bool {
        !self.live.is_empty() || !self.behind.is_empty() || !self.joining.is_empty()
    }

    fn next_attempt(&mut self) -> Attempt {
        self.last_attempt += 1;
        assert!(self.log_known_at < self.last_attempt, "attempts grow");
        self.last_attempt
    }

    fn tell_all(&self, notice: Notice, out: &mut Vec<Output>) {
        if !self.live.is_empty() {
            out.push(Output::Tell { to: To::AllBut(Vec::new()), notice });
        }
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        self.tell_counts(now_ms, out);
        let behind = self.behind_until_ms.is_some_and(|until| until <= now_ms);
        let due = match self.registration {
            Registration::Asked { at_ms, .. } => at_ms + self.settings.answer_ms <= now_ms,
            Registration::Retry { at_ms } => at_ms <= now_ms,
            Registration::Idle => behind || self.position.is_some() && self.renew_at_ms <= now_ms,
        };
        if due {
            self.register(now_ms, out);
        }
        if self.joins_due_ms <= now_ms {
            self.ask_due_joins(now_ms, false, out);
        }
        if self.empty_since_ms.is_some_and(|since| since + self.settings.linger_ms <= now_ms) {
            self.unregister(out);
        }
        if !self.stale && self.troubled_since_ms().is_some_and(|since| since + self.settings.stale_after_ms <= now_ms) {
            self.stale = true;
            self.tell_all(Notice::Stale, out);
        }
    }

    fn troubled_since_ms(&self) -> Option<u64> {
        [self.unreachable_since_ms, self.unsettled_since_ms].into_iter().flatten().min()
    }
}

fn backoff(settings: &FeedSettings, failures: u32) -> u64 {
    settings.retry_ms.saturating_mul(1 << failures.min(16)).min(settings.retry_max_ms)
}

/// What a log cannot have said is no answer.
fn checked(result: Result<JoinPoint, SlotError>) -> Result<JoinPoint, SlotError> {
    result.and_then(|point| if point.is_sound() { Ok(point) } else { Err(SlotError::Unknown) })
}

/// The last messages that follow each other up to `head`, without those up to `behind`.
fn contiguous_up_to(head: u64, mut messages: Vec<Message>, behind: u64) -> Vec<Message> {
    let mut first = messages.len();
    let mut next = head;
    while first > 0 && messages[first - 1].offset == next && next > behind {
        first -= 1;
        next -= 1;
    }
    messages.drain(..first);
    messages
}
