//! Who may become a client: bounds on clients a second, and at once. Asked before the upgrade, while a refusal costs next to
//! nothing. How many connections one address may have is asked before that ([`Places`](super::places::Places)).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{rate::Bucket, reasons::Refused};
use crate::{
    clock,
    config::LimitsConfig,
    metrics::{Limit, Metrics},
    open_files::{OpenFile, OpenFiles},
    wire::reason::Reason,
};

/// The bounds and what counts against them.
#[derive(Debug)]
pub struct Admission {
    connections: usize,
    files: Arc<OpenFiles>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    closed: bool,
    rate: Bucket,
    total: usize,
}

/// The right to be connected; gives its place back when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    _file: OpenFile,
}

impl Admission {
    /// Nobody is there yet.
    pub fn new(limits: &LimitsConfig, files: Arc<OpenFiles>) -> Arc<Self> {
        Arc::new(Self {
            connections: limits.connections,
            files,
            state: Mutex::new(State {
                closed: false,
                rate: Bucket::new(limits.connects_per_s, limits.connects_per_s),
                total: 0,
            }),
        })
    }

    /// Takes a place for a client.
    pub fn admit(self: &Arc<Self>) -> Result<Admitted, Refused> {
        self.admit_at(clock::mono_us())
    }

    /// Refuses everyone from now on.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Admits again: a drain was called off.
    pub fn open(&self) {
        self.lock().closed = false;
    }

    /// How many are connected.
    pub fn connections(&self) -> usize {
        self.lock().total
    }

    fn admit_at(self: &Arc<Self>, now_us: u64) -> Result<Admitted, Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::new(Reason::Draining));
        }
        if state.total >= self.connections {
            return Err(Refused::new(Reason::Connections));
        }
        let file = self.files.attach().ok_or_else(|| Refused::new(Reason::OpenFiles))?;
        state.rate.take(now_us).map_err(|retry_ms| Refused::new(Reason::ConnectsPerSecond).after(retry_ms))?;
        state.total += 1;
        Ok(Admitted { admission: self.clone(), _file: file })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.lock().total -= 1;
    }
}

/// Counts that a connection was refused, and by which limit.
pub fn count_refused(reason: Reason, metrics: &Metrics) {
    metrics.connect_refused(reason.code());
    let limit = match reason {
        Reason::ConnectsPerSecond => Limit::ConnectsPerS,
        Reason::Replays => Limit::ReplayQueue,
        Reason::Connections => Limit::Connections,
        Reason::ConnectionsPerAddress => Limit::ConnectionsPerAddress,
        // Draining, or the process's own bound: no limit of the configuration.
        _ => return,
    };
    metrics.limit_hit(limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize, per_s: u32) -> Arc<Admission> {
        let limits = LimitsConfig { connections, connects_per_s: per_s, ..LimitsConfig::default() };
        Admission::new(&limits, OpenFiles::of_process().unwrap())
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let admission = admission(2, 1_000);
        let first = admission.admit_at(0).unwrap();
        let _second = admission.admit_at(0).unwrap();
        assert_eq!(admission.admit_at(0).unwrap_err().reason, Reason::Connections);
        drop(first);
        assert!(admission.admit_at(0).is_ok());
    }

    #[test]
    fn the_rate_is_bounded() {
        let admission = admission(100, 2);
        let _kept: Vec<_> = (0..2).map(|_| admission.admit_at(0).unwrap()).collect();
        assert_eq!(admission.admit_at(0).unwrap_err(), Refused::new(Reason::ConnectsPerSecond).after(500));
        assert!(admission.admit_at(500_000).is_ok());
    }

    #[test]
    fn a_draining_node_takes_nobody_and_says_when_to_come_back() {
        let admission = admission(100, 100);
        admission.close();
        let refused = admission.admit_at(0).unwrap_err();
        assert_eq!((refused.reason.row().status, refused.retry_ms), (Some(503), Some(1_000)));
        admission.open();
        assert!(admission.admit_at(0).is_ok());
    }
}
