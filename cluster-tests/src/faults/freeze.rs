//! Freezes a process's threads except one, as nothing that a user can do from outside would: the event loop stands still
//! while the watchdog's thread goes on.

use std::{
    fs,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

const REAP_EVERY: Duration = Duration::from_millis(50);

/// Frozen threads. Dropped, they go on.
pub(super) struct Frozen {
    thaw: Option<Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl Frozen {
    /// Freezes all threads of this process whose name is another one.
    pub(super) fn all_but(process: u32, spared: &'static str) -> Result<Self> {
        let (thaw, thawed) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        // Threads belong to the thread that froze them.
        let holder = thread::Builder::new().spawn(move || match freeze(process, spared) {
            Ok(frozen) => {
                let _ = done.send(Ok(()));
                // Whoever is gone has thawed.
                while thawed.recv_timeout(REAP_EVERY) == Err(RecvTimeoutError::Timeout) {
                    reap(process, &frozen);
                }
                for id in frozen {
                    let _ = ptrace::detach(id, None);
                }
            }
            Err(error) => drop(done.send(Err(error))),
        })?;
        is_done.recv().context("the freezing thread is gone")??;
        Ok(Self { thaw: Some(thaw), holder: Some(holder) })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw.take();
        let _ = self.holder.take().map(JoinHandle::join);
    }
}

/// A thread that has ended stays until the one that froze it has taken note, and its process stays as long. The first thread
/// is the process, whose end is for whoever started it.
fn reap(process: u32, frozen: &[Pid]) {
    let first = i32::try_from(process).map(Pid::from_raw);
    for id in frozen.iter().filter(|id| first != Ok(**id)) {
        let _ = waitpid(*id, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
    }
}

fn freeze(process: u32, spared: &str) -> Result<Vec<Pid>> {
    let mut frozen = Vec::new();
    let mut seen_spared = false;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?;
        let name = fs::read_to_string(thread.path().join("comm"))?;
        if name.trim() == spared {
            seen_spared = true;
            continue;
        }
        let id = thread.file_name().to_string_lossy().parse().context("threads have numbers")?;
        let id = Pid::from_raw(id);
        ptrace::seize(id, Options::empty()).with_context(|| format!("seizing thread {id}, {}", name.trim()))?;
        ptrace::interrupt(id)?;
        waitpid(id, Some(WaitPidFlag::__WALL))?;
        frozen.push(id);
    }
    ensure!(seen_spared, "no thread of process {process} is called {spared}");
    Ok(frozen)
}
