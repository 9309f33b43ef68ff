//! The life of one request to a slot's primary: attempts, the pauses between them, and what may be said at its end.
//!
//! The newest map says whom to ask. One attempt is under way at a time. It ends with an answer, with the news that none will
//! come, with a map that names another primary, or after [`ATTEMPT_MS`]. Another follows until the request's deadline, or
//! until its asker is gone.
//!
//! "Not done" is an honest answer only while no other attempt can have been carried out. After one that can, the request is
//! asked until somebody says what was done, and is of unknown outcome at its deadline. A request that is asked at most once
//! ([`SlotRequest::may_repeat`]) ends there, since another attempt would do it again.

mod outstanding;
#[cfg(test)]
mod tests;

pub use self::outstanding::Outstanding;
use super::{
    chance::Chance,
    request::{SlotAnswer, SlotError, SlotRequest},
};
use crate::id::{Member, Term};

/// An attempt at a primary that is believed to be there lasts at most this long, in milliseconds.
pub const ATTEMPT_MS: u64 = 1_500;
/// The longest first pause between two attempts. It doubles with each, up to [`PAUSE_MAX_MS`], and begins anew when the
/// map names another primary.
const PAUSE_MS: u64 = 25;
/// The longest pause.
const PAUSE_MAX_MS: u64 = 200;

/// Counts the attempts of one request, from 1.
pub type Attempt = u32;

/// What happens to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// What the newest confirmed map says of the slot: given first of all, and again with each map.
    Map {
        /// The map's version; 0 where there is none.
        version: u64,
        /// The slot's primary, and its term; nothing where there is no such slot.
        primary: Option<(Member, Term)>,
    },
    /// The one who was asked has answered.
    Answered {
        /// To which attempt.
        attempt: Attempt,
        /// What it says.
        result: Result<SlotAnswer, SlotError>,
    },
    /// Nobody was asked: there is no way to the primary now.
    NotSent { attempt: Attempt },
    /// It was asked, and no answer will come.
    Lost { attempt: Attempt },
    /// Whoever asks is gone. Nothing is tried again; an attempt that is under way is waited for.
    Over,
    /// It is [`Asking::wake_ms`].
    Due,
}

/// What a request wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Ask. The earlier attempt, where there is one, is given up: nobody waits for its answer.
    Send {
        /// For the answer.
        attempt: Attempt,
        to: Member,
        /// Under which term.
        term: Term,
        /// For how many milliseconds the answer is waited for: past that nobody is to carry the request out.
        wait_ms: u64,
        /// How many milliseconds ago it was asked first.
        waited_ms: u64,
    },
    /// Have this member send its map: it knows a newer one than this.
    FetchMap {
        /// Whom to ask.
        from: Member,
        /// The version that is known here.
        newer_than: u64,
    },
    Done(Result<SlotAnswer, SlotError>),
}

/// A request that is being asked. See the module.
#[derive(Debug)]
pub struct Asking {
    since_ms: u64,
    until_ms: u64,
    version: u64,
    primary: Option<(Member, Term)>,
    stage: Stage,
    attempts: Attempt,
    /// Some attempt so far can have been carried out.
    may_be_done: bool,
    is_over: bool,
    at_most_once: bool,
    pause_ms: u64,
    chance: Chance,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// Between attempts, until then.
    Pausing {
        until_ms: u64,
    },
    /// The present attempt is given up then.
    UnderWay {
        to: Member,
        term: Term,
        until_ms: u64,
    },
    Done,
}

impl Asking {
    /// A request that begins now and has to end within `limit_ms`. `seed` is for the lengths of its pauses.
    pub fn new(now_ms: u64, limit_ms: u64, seed: u64) -> Self {
        Self {
            since_ms: now_ms,
            until_ms: now_ms.saturating_add(limit_ms),
            version: 0,
            primary: None,
            stage: Stage::Pausing { until_ms: now_ms },
            attempts: 0,
            may_be_done: false,
            is_over: false,
            at_most_once: false,
            pause_ms: PAUSE_MS,
            chance: Chance::new(seed),
        }
    }

    /// The same for this request. Where that may not be repeated, no attempt follows one that can have been carried out, and
    /// it is over after one attempt's time: what nobody keeps is worth nothing later.
    #[must_use]
    pub fn of(self, request: &SlotRequest) -> Self {
        if request.may_repeat() {
            return self;
        }
        let until_ms = self.until_ms.min(self.since_ms.saturating_add(ATTEMPT_MS));
        Self { at_most_once: true, until_ms, ..self }
    }

    /// Takes an input.
    ///
    /// # Panics
    ///
    /// Where it would end twice, which is a fault of this core.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Map { version, primary } => self.on_map(now_ms, version, primary, out),
            Input::Answered { attempt, result } if self.is_under_way(attempt) => self.on_answer(now_ms, result, out),
            Input::NotSent { attempt } if self.is_under_way(attempt) => self.pause(now_ms, out),
            Input::Lost { attempt } if self.is_under_way(attempt) => {
                self.may_be_done = true;
                self.pause(now_ms, out);
            }
            // Who was asked by an earlier attempt may not know what the present one did.
            Input::Answered { .. } | Input::NotSent { .. } | Input::Lost { .. } => {}
            Input::Over => {
                self.is_over = true;
                if let Stage::Pausing { .. } = self.stage {
                    self.give_up(out);
                }
            }
            Input::Due => self.on_due(now_ms, out),
        }
    }

    /// When it wants [`Input::Due`], in the milliseconds of `now_ms`; nothing once it has ended.
    pub fn wake_ms(&self) -> Option<u64> {
        match self.stage {
            Stage::Pausing { until_ms } | Stage::UnderWay { until_ms, .. } => Some(until_ms),
            Stage::Done => None,
        }
    }

    fn is_under_way(&self, attempt: Attempt) -> bool {
        self.attempts == attempt && matches!(self.stage, Stage::UnderWay { .. })
    }

    fn on_map(&mut self, now_ms: u64, version: u64, primary: Option<(Member, Term)>, out: &mut Vec<Output>) {
        if self.stage == Stage::Done || version < self.version {
            return;
        }
        self.version = version;
        if self.primary == primary {
            return;
        }
        self.primary = primary;
        self.pause_ms = PAUSE_MS;
        if let Stage::UnderWay { .. } = self.stage {
            // A primary that has been replaced cannot commit any more, so it will not answer either. Its successor may.
            self.may_be_done = true;
        }
        self.attempt(now_ms, out);
    }

    fn on_answer(&mut self, now_ms: u64, result: Result<SlotAnswer, SlotError>, out: &mut Vec<Output>) {
        match result {
            Err(SlotError::NotPrimary { map_version, ordered }) => {
                self.may_be_done |= ordered;
                if map_version > self.version
                    && let Stage::UnderWay { to, .. } = &self.stage
                {
                    out.push(Output::FetchMap { from: to.clone(), newer_than: self.version });
                }
                self.pause(now_ms, out);
            }
            // It says that this attempt was not carried out. An earlier one can have been.
            Err(SlotError::Busy | SlotError::Full | SlotError::Unavailable | SlotError::NotEnoughCopies { .. })
                if self.may_be_done =>
            {
                self.pause(now_ms, out);
            }
            Ok(answer) if self.may_be_done && answer.refused_part().is_some() => self.pause(now_ms, out),
            Err(SlotError::StoreUnavailable(_) | SlotError::TooManyGroups | SlotError::TooLong { done: false })
                if self.may_be_done =>
            {
                self.end(Err(SlotError::Unknown), out);
            }
            result => self.end(result, out),
        }
    }

    fn on_due(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        match self.stage {
            Stage::Pausing { until_ms } if until_ms <= now_ms => self.attempt(now_ms, out),
            Stage::UnderWay { until_ms, .. } if until_ms <= now_ms => {
                self.may_be_done = true;
                self.pause(now_ms, out);
            }
            Stage::Pausing { .. } | Stage::UnderWay { .. } | Stage::Done => {}
        }
    }

    fn attempt(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.is_over() || self.until_ms <= now_ms {
            return self.give_up(out);
        }
        let Some((to, term)) = self.primary.clone() else {
            return self.pause(now_ms, out);
        };
        self.attempts += 1;
        let wait_ms = (self.until_ms - now_ms).min(ATTEMPT_MS);
        self.stage = Stage::UnderWay { to: to.clone(), term, until_ms: now_ms + wait_ms };
        let waited_ms = now_ms.saturating_sub(self.since_ms);
        out.push(Output::Send { attempt: self.attempts, to, term, wait_ms, waited_ms });
    }

    /// Between half of the pause and all of it: those who were refused together do not come back together.
    fn pause(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.is_over() || self.until_ms <= now_ms {
            return self.give_up(out);
        }
        let least_ms = self.pause_ms / 2;
        let pause_ms = least_ms + self.chance.number() % (self.pause_ms - least_ms + 1);
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
        self.stage = Stage::Pausing { until_ms: self.until_ms.min(now_ms + pause_ms) };
    }

    /// No attempt follows.
    fn is_over(&self) -> bool {
        self.is_over || self.at_most_once && self.may_be_done
    }

    fn give_up(&mut self, out: &mut Vec<Output>) {
        self.end(Err(if self.may_be_done { SlotError::Unknown } else { SlotError::Unavailable }), out);
    }

    fn end(&mut self, result: Result<SlotAnswer, SlotError>, out: &mut Vec<Output>) {
        assert!(self.stage != Stage::Done, "a request that has ended ends again");
        self.stage = Stage::Done;
        out.push(Output::Done(result));
    }
}
