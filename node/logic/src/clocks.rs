//! Whether this machine's wall clock can be believed, by comparison with all that are heard: the other nodes' and the
//! store's. A node whose clock is days off would end sessions that have days left.
//!
//! Nothing ends by a clock that differs by more than a bound from most of what is heard. Where the store's differs so from
//! the machine's, and the others do not contradict it, the store's is used: all nodes hear that one.
//!
//! A process follows its machine's clock slowly where that is set, since it may be set wrong. What is compared is the clock
//! that the process goes by. Where that differs from most and the machine's does not, it was set right: then the process
//! follows at once.

use std::collections::BTreeMap;

use crate::{Now, id::NodeId};

/// A clock that was not heard again for this time is not compared with any more.
const FRESH_MS: u64 = 10_000;

/// Whose clock it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Voice {
    Store,
    Node(NodeId),
}

/// What comes of the comparison.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Something may end by this node's clock.
    pub trusted: bool,
    /// What is added to the clock that follows the machine's.
    pub correction_ms: i64,
    /// By how much this node's clock, corrected, is ahead of each that differs by more than the bound.
    pub differing: Vec<(Voice, i64)>,
}

/// See the module. The wall clock that it is told is the one that the process goes by, without the correction.
#[derive(Debug)]
pub struct Clocks {
    bound_ms: u64,
    heard: BTreeMap<Voice, Heard>,
    verdict: Verdict,
}

/// What was heard of a clock last.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// The process's, without the correction, is ahead of it by this.
    ahead_ms: i64,
    /// Give or take this: half of the time that the answer took.
    slack_ms: u64,
    at_ms: u64,
}

impl Heard {
    /// The process's clock, corrected by this, is ahead by this much, where that is beyond the bound.
    fn differs(&self, correction_ms: i64, bound_ms: u64) -> Option<i64> {
        let ahead_ms = self.ahead_ms.saturating_add(correction_ms);
        (ahead_ms.unsigned_abs() > bound_ms.saturating_add(self.slack_ms)).then_some(ahead_ms)
    }
}

impl Clocks {
    /// Nothing is heard yet: there is no reason for doubt.
    pub fn new(bound_ms: u64) -> Self {
        let verdict = Verdict { trusted: true, correction_ms: 0, differing: Vec::new() };
        Self { bound_ms, heard: BTreeMap::new(), verdict }
    }

    /// As of what was heard last.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// A clock was asked at `asked_ms`, by this node's monotonic clock, and has answered now. Whether the process is to go by
    /// its machine's clock at once: that was set right.
    pub fn hear(&mut self, (now, machine_ms): (Now, u64), voice: Voice, theirs_ms: u64, asked_ms: u64) -> bool {
        let slack_ms = now.mono_ms.saturating_sub(asked_ms) / 2;
        let ahead_ms = bounded(i128::from(now.wall_ms) - i128::from(theirs_ms) - i128::from(slack_ms));
        self.heard.insert(voice, Heard { ahead_ms, slack_ms, at_ms: now.mono_ms });
        self.heard.retain(|_, heard| heard.at_ms + FRESH_MS >= now.mono_ms);
        let leap_ms = bounded(i128::from(machine_ms) - i128::from(now.wall_ms));
        let was_set_right = !self.fits(0) && self.fits(leap_ms);
        if was_set_right {
            self.heard.values_mut().for_each(|heard| heard.ahead_ms = heard.ahead_ms.saturating_add(leap_ms));
        }
        self.judge();
        was_set_right
    }

    /// Corrected by this it agrees with at least half of what is heard.
    fn fits(&self, correction_ms: i64) -> bool {
        self.differing(correction_ms).count() * 2 <= self.heard.len()
    }

    fn judge(&mut self) {
        let candidates = [
            Some(0),
            // One that fits is kept, so that the clock does not shake with each answer.
            Some(self.verdict.correction_ms),
            self.heard.get(&Voice::Store).map(|store| store.ahead_ms.saturating_neg()),
        ];
        let fitting = candidates.into_iter().flatten().find(|correction_ms| self.fits(*correction_ms));
        let correction_ms = fitting.unwrap_or(0);
        let differing = self.differing(correction_ms).collect();
        self.verdict = Verdict { trusted: fitting.is_some(), correction_ms, differing };
    }

    fn differing(&self, correction_ms: i64) -> impl Iterator<Item = (Voice, i64)> {
        let differs = move |(voice, heard): (&Voice, &Heard)| {
            heard.differs(correction_ms, self.bound_ms).map(|ahead_ms| (voice.clone(), ahead_ms))
        };
        self.heard.iter().filter_map(differs)
    }
}

/// Far from where sums of two would not fit.
fn bounded(ms: i128) -> i64 {
    ms.clamp(i128::from(i64::MIN / 2), i128::from(i64::MAX / 2)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;
    const BOUND: u64 = 10_000;
    const WALL: u64 = 1_000 * DAY as u64;

    fn node(number: u8) -> Voice {
        Voice::Node(NodeId::parse(&format!("n{number}")).unwrap())
    }

    /// The node's clock is right by `WALL`; the others' are ahead of it by this.
    fn judged(others: &[(Voice, i64)]) -> Verdict {
        let mut clocks = Clocks::new(BOUND);
        hear(&mut clocks, 1_000, others);
        clocks.verdict().clone()
    }

    fn hear(clocks: &mut Clocks, mono_ms: u64, others: &[(Voice, i64)]) {
        for (voice, by_ms) in others {
            let now = Now { mono_ms, wall_ms: WALL + mono_ms };
            clocks.hear((now, now.wall_ms), voice.clone(), now.wall_ms.saturating_add_signed(*by_ms), mono_ms);
        }
    }

    /// The node's machine has a clock that is set to what differs by `set_ms` from the one that the process goes by; the others'
    /// differ from that one by this. Whether one of these has it go by the machine's.
    fn set(clocks: &mut Clocks, mono_ms: u64, set_ms: i64, others: &[(Voice, i64)]) -> bool {
        let wall_ms = WALL + mono_ms;
        let machine_ms = wall_ms.saturating_add_signed(set_ms);
        let hear = |(voice, by_ms): &(Voice, i64)| {
            clocks.hear(
                (Now { mono_ms, wall_ms }, machine_ms),
                voice.clone(),
                wall_ms.saturating_add_signed(*by_ms),
                mono_ms,
            )
        };
        others.iter().map(hear).fold(false, |any, one| any | one)
    }

    #[test]
    fn most_of_what_is_heard_decides() {
        let trusted = |others: &[(Voice, i64)]| judged(others).trusted;
        assert!(trusted(&[]), "nobody contradicts");
        assert!(trusted(&[(node(2), 9_000), (node(3), -9_000)]));
        assert!(!trusted(&[(node(2), 3 * DAY)]), "of two nodes nobody knows which is wrong");
        assert!(trusted(&[(node(2), 3 * DAY), (node(3), 0)]));
        assert!(!trusted(&[(node(2), 3 * DAY), (node(3), 3 * DAY), (node(4), 0)]));
        assert!(trusted(&[(Voice::Store, 0), (node(2), DAY)]), "the store agrees");
    }

    #[test]
    fn the_difference_is_told() {
        let verdict = judged(&[(node(2), -DAY), (node(3), 0), (node(4), 5)]);
        assert_eq!((verdict.trusted, verdict.differing), (true, vec![(node(2), DAY)]));
        let verdict = judged(&[(node(2), DAY), (node(3), DAY)]);
        assert_eq!((verdict.trusted, verdict.correction_ms), (false, 0));
        assert_eq!(verdict.differing, vec![(node(2), -DAY), (node(3), -DAY)]);
    }

    #[test]
    fn the_stores_clock_is_used_unless_others_contradict_it() {
        let verdict = judged(&[(Voice::Store, -2 * DAY)]);
        assert_eq!(verdict, Verdict { trusted: true, correction_ms: -2 * DAY, differing: Vec::new() });
        let verdict = judged(&[(Voice::Store, -2 * DAY), (node(2), -2 * DAY + 300)]);
        assert_eq!((verdict.trusted, verdict.correction_ms), (true, -2 * DAY));
        // It is the store's that is wrong.
        let verdict = judged(&[(Voice::Store, -2 * DAY), (node(2), 0)]);
        assert_eq!((verdict.trusted, verdict.correction_ms), (true, 0));
        let verdict = judged(&[(Voice::Store, -2 * DAY), (node(2), 2 * DAY), (node(3), 2 * DAY)]);
        assert_eq!((verdict.trusted, verdict.correction_ms), (false, 0));
    }

    #[test]
    fn a_correction_stays_while_it_fits_and_ends_when_the_clock_is_set_right() {
        let mut clocks = Clocks::new(BOUND);
        hear(&mut clocks, 1_000, &[(Voice::Store, DAY)]);
        hear(&mut clocks, 2_000, &[(Voice::Store, DAY + 70)]);
        assert_eq!(clocks.verdict().correction_ms, DAY);
        hear(&mut clocks, 3_000, &[(Voice::Store, 20)]);
        assert_eq!(clocks.verdict(), &Verdict { trusted: true, correction_ms: 0, differing: Vec::new() });
    }

    #[test]
    fn a_clock_that_is_set_right_is_gone_by_at_once() {
        // Nobody's clock could be used meanwhile, or the store's was.
        for voices in [[node(2), node(3)], [Voice::Store, node(2)]] {
            let [one, other] = voices;
            let mut clocks = Clocks::new(BOUND);
            let off = [(one.clone(), -DAY), (other.clone(), -DAY + 40)];
            hear(&mut clocks, 1_000, &off);
            assert_ne!(clocks.verdict(), &Clocks::new(BOUND).verdict, "it is said that something is wrong");
            assert!(!set(&mut clocks, 2_000, 0, &off));
            assert!(!set(&mut clocks, 3_000, DAY, &off), "it was set, but not right");
            assert!(set(&mut clocks, 4_000, -DAY + 30, &off[..1]));
            assert_eq!(clocks.verdict(), &Clocks::new(BOUND).verdict, "also of what was heard before");
            // From then on the process goes by it.
            hear(&mut clocks, 5_000, &[(one, -30), (other, 10)]);
            assert_eq!(clocks.verdict(), &Clocks::new(BOUND).verdict);
        }
    }

    #[test]
    fn a_clock_that_is_set_is_followed_slowly_while_nobody_contradicts() {
        let agree = [(Voice::Store, DAY), (node(2), 30), (node(3), -20)];
        let mut clocks = Clocks::new(BOUND);
        hear(&mut clocks, 500, &agree[1..]);
        assert!(!set(&mut clocks, 1_000, DAY, &agree), "all machines were set, and all processes follow them slowly");
        assert_eq!((clocks.verdict().trusted, clocks.verdict().correction_ms), (true, 0));
        let differ = [(node(2), DAY), (node(3), DAY)];
        assert!(!set(&mut clocks, 2_000, -DAY, &differ), "what was set agrees with nobody");
    }

    #[test]
    fn what_is_not_heard_again_counts_no_more() {
        let mut clocks = Clocks::new(BOUND);
        hear(&mut clocks, 0, &[(node(2), DAY), (node(3), DAY)]);
        assert!(!clocks.verdict().trusted);
        hear(&mut clocks, 20_000, &[(node(4), 0)]);
        assert!(clocks.verdict().trusted);
        assert_eq!(clocks.heard.len(), 1);
    }

    #[test]
    fn an_answer_that_took_long_is_no_better_than_that() {
        let mut clocks = Clocks::new(BOUND);
        let now = Now { mono_ms: 60_000, wall_ms: WALL };
        clocks.hear((now, WALL), node(2), WALL - 35_000, 0);
        assert!(clocks.verdict().trusted, "it was read at some time of a whole minute");
        clocks.hear((now, WALL), node(2), WALL - 75_000, 0);
        assert!(!clocks.verdict().trusted);
    }

    #[test]
    fn no_time_that_somebody_says_does_harm() {
        for theirs_ms in [0, 1, u64::MAX] {
            for now in [Now { mono_ms: 0, wall_ms: 0 }, Now { mono_ms: u64::MAX / 2, wall_ms: u64::MAX }] {
                for machine_ms in [0, u64::MAX] {
                    let mut clocks = Clocks::new(u64::MAX);
                    clocks.hear((now, machine_ms), Voice::Store, theirs_ms, u64::MAX);
                    clocks.hear((now, machine_ms), node(2), theirs_ms, 0);
                    let mut clocks = Clocks::new(0);
                    clocks.hear((now, machine_ms), Voice::Store, theirs_ms, 0);
                }
            }
        }
    }
}
