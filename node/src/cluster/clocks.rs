//! The shell of [`Clocks`]: brings it what other clocks say, and corrects this process's by what it finds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::health::ClockView;
use crate::{
    clock,
    logic::{
        Now,
        clocks::{Clocks, Verdict, Voice},
    },
};

/// What a node has heard of other clocks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClockWatch(Arc<Mutex<Clocks>>);

impl ClockWatch {
    /// Nothing is heard yet.
    pub fn new(skew_max_ms: u64) -> Self {
        Self(Arc::new(Mutex::new(Clocks::new(skew_max_ms))))
    }

    /// A clock that was asked at `asked_ms`, by [`clock::mono_ms`], has just answered.
    pub fn heard(&self, voice: Voice, theirs_ms: u64, asked_ms: u64) {
        let (before, after, was_set) = {
            // Until it is corrected nobody compares it again.
            let mut clocks = self.lock();
            let before = clocks.verdict().clone();
            let clock::Uncorrected { followed_ms, machine_ms } = clock::uncorrected_wall();
            let now = Now { mono_ms: clock::mono_ms(), wall_ms: followed_ms };
            let was_set = clocks.hear((now, machine_ms), voice, theirs_ms, asked_ms);
            let after = clocks.verdict().clone();
            if was_set || after.correction_ms != before.correction_ms {
                clock::correct_wall(after.correction_ms, was_set);
            }
            (before, after, was_set)
        };
        if was_set {
            tracing::info!(
                "this machine's clock was set, and agrees with most of those that are heard: it is used at once"
            );
        } else if after.correction_ms != before.correction_ms {
            tracing::warn!(
                by_ms = after.correction_ms,
                "this machine's clock differs from the store's: the store's is used; set the machine's right"
            );
        }
        match (before.trusted, after.trusted) {
            (true, false) => tracing::error!(
                differing = ?after.differing,
                "this node's clock differs from most of those that it hears: nothing ends by it until that is mended"
            ),
            (false, true) => tracing::info!("this node's clock agrees with most of those that it hears again"),
            _ => {}
        }
    }

    /// Whether something may end by this node's clock.
    pub fn is_trusted(&self) -> bool {
        self.lock().verdict().trusted
    }

    /// For health.
    pub fn view(&self) -> ClockView {
        let Verdict { trusted, correction_ms, differing } = self.lock().verdict().clone();
        let named = |voice: Voice| match voice {
            Voice::Store => "the store".to_owned(),
            Voice::Node(node) => format!("node {node}"),
        };
        let differing = differing.into_iter().map(|(voice, ahead_ms)| (named(voice), ahead_ms)).collect();
        ClockView { distrusted: !trusted, correction_ms, differing }
    }

    fn lock(&self) -> MutexGuard<'_, Clocks> {
        // No code panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
