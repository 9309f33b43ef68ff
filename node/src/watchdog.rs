//! Ends a process whose runtime has stopped running tasks: its sockets would stay open and nobody be served, and a node
//! that is gone is better than one that is deaf. A supervisor starts it again.
//!
//! A task stamps the time; a plain thread, which needs nothing of the runtime, looks how old the stamp is. What it catches
//! is a runtime none of whose workers gets to run a task: all of them blocked (a lock, a full pipe behind standard error,
//! a disk) or spinning. What it does not: one blocked worker among others that still run tasks, a task that waits for
//! ever, a process that the machine gives no time. It is not ended for having been stopped or suspended itself: a thread
//! that has slept much longer than it asked for begins its measurement anew.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::{clock, logic::liveness::Pace, tasks::Tasks};

/// The exit code of a process that this has ended.
pub const EXIT_CODE: i32 = 3;

const STAMP_EVERY: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A look that comes later than this after the one before tells that the whole process stood still.
const STOOD_STILL_MS: u64 = 2_500;
/// A stamp this old is worth an error in the log.
const LATE_MS: u64 = 2_000;
/// What the log may take of the last words: it may be the very thing that everybody waits for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Tasks are run in time.
    Running,
    /// No task has run for this number of milliseconds.
    Late(u64),
    /// The same, and that is too long.
    Stalled(u64),
}

/// Judges stamps. Pure, with the time given.
#[derive(Debug)]
struct Judge {
    bound_ms: u64,
    pace: Pace,
    /// Silence before this is not the runtime's doing.
    since_ms: u64,
}

impl Judge {
    fn new(bound_ms: u64, now_ms: u64) -> Self {
        Self { bound_ms, pace: Pace::new(STOOD_STILL_MS, now_ms), since_ms: now_ms }
    }

    fn look(&mut self, now_ms: u64, stamp_ms: u64) -> Verdict {
        if self.pace.look(now_ms).is_some() {
            self.since_ms = now_ms;
        }
        let silent_ms = now_ms.saturating_sub(stamp_ms.max(self.since_ms));
        match silent_ms {
            silent_ms if silent_ms >= self.bound_ms => Verdict::Stalled(silent_ms),
            silent_ms if silent_ms >= LATE_MS => Verdict::Late(silent_ms),
            _ => Verdict::Running,
        }
    }
}

/// The watch over the runtime that it was started in. Ends when dropped.
#[derive(Debug)]
pub struct Watchdog {
    over: Arc<AtomicBool>,
}

impl Watchdog {
    /// Watches this runtime; a silence of `bound_ms` ends the process with [`EXIT_CODE`]. 0: no watch.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(bound_ms: u64, tasks: &Tasks) -> std::io::Result<Self> {
        Self::start_with(bound_ms, tasks, || process::exit(EXIT_CODE))
    }

    fn start_with(bound_ms: u64, tasks: &Tasks, end: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let over = Arc::new(AtomicBool::new(bound_ms == 0));
        if bound_ms > 0 {
            let stamp_ms = Arc::new(AtomicU64::new(clock::mono_ms()));
            tasks.spawn_detached("watchdog stamp", stamp(stamp_ms.clone(), over.clone()));
            let seen = over.clone();
            thread::Builder::new()
                .name("roost-watchdog".to_owned())
                .spawn(move || watch(bound_ms, &stamp_ms, &seen, end))?;
        }
        Ok(Self { over })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

async fn stamp(stamp_ms: Arc<AtomicU64>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        stamp_ms.store(clock::mono_ms(), Ordering::Relaxed);
        tokio::time::sleep(STAMP_EVERY).await;
    }
}

fn watch(bound_ms: u64, stamp_ms: &AtomicU64, over: &AtomicBool, end: impl FnOnce()) {
    let mut judge = Judge::new(bound_ms, clock::mono_ms());
    let mut was_late = false;
    loop {
        thread::sleep(LOOK_EVERY);
        if over.load(Ordering::Relaxed) {
            return;
        }
        let verdict = judge.look(clock::mono_ms(), stamp_ms.load(Ordering::Relaxed));
        match verdict {
            Verdict::Running if !was_late => {}
            Verdict::Running => said(|| tracing::warn!("tasks run again")),
            Verdict::Late(silent_ms) => said(move || tracing::error!(silent_ms, bound_ms, "no task has run")),
            Verdict::Stalled(silent_ms) => {
                said(move || {
                    tracing::error!(silent_ms, bound_ms, "no task has run for node.watchdog_ms: the process ends");
                });
                return end();
            }
        }
        was_late = verdict != Verdict::Running;
    }
}

/// Logs in a thread of its own, and waits for it no longer than a moment.
fn said(what: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel::<()>();
    let say = move || {
        what();
        drop(done);
    };
    if thread::Builder::new().spawn(say).is_ok() {
        let _ = finished.recv_timeout(LAST_WORDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_noticed_and_judged_by_the_bound() {
        let mut judge = Judge::new(5_000, 1_000);
        assert_eq!(judge.look(2_000, 1_900), Verdict::Running);
        assert_eq!(judge.look(3_000, 1_900), Verdict::Running);
        assert_eq!(judge.look(4_000, 1_900), Verdict::Late(2_100));
        assert_eq!(judge.look(5_000, 4_900), Verdict::Running);
        assert_eq!(judge.look(7_000, 4_900), Verdict::Late(2_100));
        assert_eq!(judge.look(9_000, 4_900), Verdict::Late(4_100));
        assert_eq!(judge.look(9_900, 4_900), Verdict::Stalled(5_000));
    }

    #[test]
    fn a_process_that_stood_still_is_given_its_time_anew() {
        let mut judge = Judge::new(5_000, 1_000);
        assert_eq!(judge.look(2_000, 1_900), Verdict::Running);
        // Stopped for a minute; the stamp is as old as that when the thread looks first.
        assert_eq!(judge.look(62_000, 1_900), Verdict::Running);
        assert_eq!(judge.look(63_000, 1_900), Verdict::Running);
        // Nothing runs although the process does.
        assert_eq!(judge.look(65_000, 1_900), Verdict::Late(3_000));
        assert_eq!(judge.look(67_000, 1_900), Verdict::Stalled(5_000));
    }

    /// With the real thread and a real runtime, whose only worker is blocked.
    #[test]
    fn a_blocked_runtime_is_ended_and_one_that_runs_is_not() {
        let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (blocked, running) = (runtime(), runtime());
        let (ended, end) = mpsc::channel();
        let start = |runtime: &tokio::runtime::Runtime, name: &'static str| {
            let (_inside, ended) = (runtime.enter(), ended.clone());
            Watchdog::start_with(1_000, &Tasks::new(), move || ended.send(name).unwrap()).unwrap()
        };
        let _watched = (start(&blocked, "blocked"), start(&running, "running"));
        let (release, released) = mpsc::channel::<()>();
        let _blocking = blocked.spawn(async move { released.recv() });
        assert_eq!(end.recv().unwrap(), "blocked");
        assert_eq!(end.recv_timeout(2 * LOOK_EVERY), Err(mpsc::RecvTimeoutError::Timeout));
        drop(release);
    }
}
