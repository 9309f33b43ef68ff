//! Who may connect: bounds on connections a second, at once, and from one address. Asked before the upgrade, while a
//! refusal costs next to nothing.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::StatusCode;

use super::rate::Bucket;
use crate::{
    clock,
    config::LimitsConfig,
    gateway::http::error::ApiError,
    metrics::{Limit, Metrics},
    open_files::{OpenFile, OpenFiles},
};

/// The bounds and what counts against them.
#[derive(Debug)]
pub struct Admission {
    connections: usize,
    connections_per_address: usize,
    files: Arc<OpenFiles>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    closed: bool,
    rate: Bucket,
    total: usize,
    addresses: BTreeMap<IpAddr, usize>,
}

/// Why a connection was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The node sends its clients away.
    #[error("this node is draining: connect to another one")]
    Draining,
    /// Too many a second.
    #[error("too many clients connect to this node at once (limits.connects_per_s): try again, or another node")]
    ConnectsPerSecond {
        /// When there is room.
        retry_ms: u64,
    },
    /// Too many.
    #[error("this node has as many connections as it takes (limits.connections): try another one")]
    Connections,
    /// Too many for what the process may have open.
    #[error("this node's process may have no more connections open (`ulimit -n`): try another one")]
    OpenFiles,
    /// Too many wait for what they missed.
    #[error("too many clients wait for what they missed (limits.replay_queue): try again, or another node")]
    Replays,
    /// Too many from this address.
    #[error("too many connections from this address (limits.connections_per_address): close some first")]
    ConnectionsPerAddress,
}

/// The right to be connected; gives its place back when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
    _file: OpenFile,
}

impl Admission {
    /// Nobody is there yet.
    pub fn new(limits: &LimitsConfig, files: Arc<OpenFiles>) -> Arc<Self> {
        Arc::new(Self {
            connections: limits.connections,
            connections_per_address: limits.connections_per_address,
            files,
            state: Mutex::new(State {
                closed: false,
                rate: Bucket::new(limits.connects_per_s, limits.connects_per_s),
                total: 0,
                addresses: BTreeMap::new(),
            }),
        })
    }

    /// Takes a place for a connection from this address.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, Refusal> {
        self.admit_at(address, clock::mono_us())
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

    fn admit_at(self: &Arc<Self>, address: IpAddr, now_us: u64) -> Result<Admitted, Refusal> {
        let address = counted_as(address);
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Draining);
        }
        if state.total >= self.connections {
            return Err(Refusal::Connections);
        }
        if state.addresses.get(&address).is_some_and(|count| *count >= self.connections_per_address) {
            return Err(Refusal::ConnectionsPerAddress);
        }
        let file = self.files.attach().ok_or(Refusal::OpenFiles)?;
        state.rate.take(now_us).map_err(|retry_ms| Refusal::ConnectsPerSecond { retry_ms })?;
        state.total += 1;
        *state.addresses.entry(address).or_default() += 1;
        Ok(Admitted { admission: self.clone(), address, _file: file })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One IPv6 client has a whole /64 to choose its address from.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.total -= 1;
        if let Some(count) = state.addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                state.addresses.remove(&self.address);
            }
        }
    }
}

impl Refusal {
    /// Counts it, and makes the answer: 503 with `Retry-After`.
    pub fn answer(self, metrics: &Metrics) -> ApiError {
        let (kind, limit, retry_after_s) = match self {
            Self::Draining => ("draining", None, 1),
            Self::ConnectsPerSecond { retry_ms } => (
                "connects_per_s",
                Some(Limit::ConnectsPerS),
                u32::try_from(retry_ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1),
            ),
            Self::Replays => ("replays", Some(Limit::ReplayQueue), 1),
            Self::Connections => ("connections", Some(Limit::Connections), 5),
            Self::OpenFiles => ("open_files", None, 5),
            Self::ConnectionsPerAddress => ("connections_per_address", Some(Limit::ConnectionsPerAddress), 5),
        };
        metrics.connect_refused(kind);
        if let Some(limit) = limit {
            metrics.limit_hit(limit);
        }
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, kind, self.to_string()).retry_after(retry_after_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize, per_address: usize, per_s: u32) -> Arc<Admission> {
        let limits = LimitsConfig {
            connections,
            connections_per_address: per_address,
            connects_per_s: per_s,
            ..LimitsConfig::default()
        };
        Admission::new(&limits, OpenFiles::of_process().unwrap())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let admission = admission(3, 2, 1_000);
        let first = admission.admit_at(address("10.0.0.1"), 0).unwrap();
        let _second = admission.admit_at(address("::ffff:10.0.0.1"), 0).unwrap();
        assert_eq!(admission.admit_at(address("10.0.0.1"), 0).unwrap_err(), Refusal::ConnectionsPerAddress);
        let _third = admission.admit_at(address("10.0.0.2"), 0).unwrap();
        assert_eq!(admission.admit_at(address("10.0.0.3"), 0).unwrap_err(), Refusal::Connections);
        drop(first);
        assert!(admission.admit_at(address("10.0.0.1"), 0).is_ok());
        assert_eq!(admission.lock().addresses.len(), 2);
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let admission = admission(10, 1, 1_000);
        let _first = admission.admit_at(address("2001:db8::1"), 0).unwrap();
        assert_eq!(admission.admit_at(address("2001:db8::ffff:1"), 0).unwrap_err(), Refusal::ConnectionsPerAddress);
        assert!(admission.admit_at(address("2001:db8:0:1::1"), 0).is_ok());
    }

    #[test]
    fn the_rate_is_bounded() {
        let admission = admission(100, 100, 2);
        let _kept: Vec<_> = (0..2).map(|_| admission.admit_at(address("10.0.0.1"), 0).unwrap()).collect();
        assert_eq!(
            admission.admit_at(address("10.0.0.1"), 0).unwrap_err(),
            Refusal::ConnectsPerSecond { retry_ms: 500 }
        );
        assert!(admission.admit_at(address("10.0.0.1"), 500_000).is_ok());
    }

    #[test]
    fn a_draining_node_takes_nobody_and_says_when_to_come_back() {
        let admission = admission(100, 100, 100);
        admission.close();
        let refusal = admission.admit_at(address("10.0.0.1"), 0).unwrap_err();
        let answer = refusal.answer(&Metrics::new());
        assert_eq!((answer.status.as_u16(), answer.retry_after_s), (503, Some(1)));
        admission.open();
        assert!(admission.admit_at(address("10.0.0.1"), 0).is_ok());
    }
}
