//! Who may connect: bounds on connections a second, at once, and from one address. Asked before the upgrade, while a
//! refusal costs next to nothing.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, Refused> {
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

    fn admit_at(self: &Arc<Self>, address: IpAddr, now_us: u64) -> Result<Admitted, Refused> {
        let address = counted_as(address);
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::new(Reason::Draining));
        }
        if state.total >= self.connections {
            return Err(Refused::new(Reason::Connections));
        }
        if state.addresses.get(&address).is_some_and(|count| *count >= self.connections_per_address) {
            return Err(Refused::new(Reason::ConnectionsPerAddress));
        }
        let file = self.files.attach().ok_or_else(|| Refused::new(Reason::OpenFiles))?;
        state.rate.take(now_us).map_err(|retry_ms| Refused::new(Reason::ConnectsPerSecond).after(retry_ms))?;
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
        assert_eq!(admission.admit_at(address("10.0.0.1"), 0).unwrap_err().reason, Reason::ConnectionsPerAddress);
        let _third = admission.admit_at(address("10.0.0.2"), 0).unwrap();
        assert_eq!(admission.admit_at(address("10.0.0.3"), 0).unwrap_err().reason, Reason::Connections);
        drop(first);
        assert!(admission.admit_at(address("10.0.0.1"), 0).is_ok());
        assert_eq!(admission.lock().addresses.len(), 2);
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let admission = admission(10, 1, 1_000);
        let _first = admission.admit_at(address("2001:db8::1"), 0).unwrap();
        assert_eq!(
            admission.admit_at(address("2001:db8::ffff:1"), 0).unwrap_err().reason,
            Reason::ConnectionsPerAddress
        );
        assert!(admission.admit_at(address("2001:db8:0:1::1"), 0).is_ok());
    }

    #[test]
    fn the_rate_is_bounded() {
        let admission = admission(100, 100, 2);
        let _kept: Vec<_> = (0..2).map(|_| admission.admit_at(address("10.0.0.1"), 0).unwrap()).collect();
        assert_eq!(
            admission.admit_at(address("10.0.0.1"), 0).unwrap_err(),
            Refused::new(Reason::ConnectsPerSecond).after(500)
        );
        assert!(admission.admit_at(address("10.0.0.1"), 500_000).is_ok());
    }

    #[test]
    fn a_draining_node_takes_nobody_and_says_when_to_come_back() {
        let admission = admission(100, 100, 100);
        admission.close();
        let refused = admission.admit_at(address("10.0.0.1"), 0).unwrap_err();
        assert_eq!((refused.reason.row().status, refused.retry_ms), (Some(503), Some(1_000)));
        admission.open();
        assert!(admission.admit_at(address("10.0.0.1"), 0).is_ok());
    }
}
