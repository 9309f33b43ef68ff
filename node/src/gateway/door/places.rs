//! Who may hold a connection, from its first byte on: one file each, and a bound for each address. Whoever finds no place
//! gets one of a few that are kept back: for a moment, to ask how the node is, or to be told to come again. When these are
//! taken too, whoever has had one longest gives it up, so that a flood of silent connections does not keep out a probe.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{
    config::Network,
    open_files::{OpenFile, OpenFiles},
    wire::reason::Reason,
};

/// All places of a node.
#[derive(Debug)]
pub struct Places {
    per_address: usize,
    /// Their addresses stand for many clients.
    proxies: Vec<Network>,
    files: Arc<OpenFiles>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    addresses: BTreeMap<IpAddr, usize>,
    /// Those that were kept back and are taken, the oldest first.
    kept: VecDeque<(u64, CancellationToken)>,
    last_kept: u64,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    held: Held,
    _file: OpenFile,
}

#[derive(Debug)]
enum Held {
    /// Counted for this address; for none, where it is a proxy's.
    Full(Option<IpAddr>),
    Kept(u64, Probe),
}

/// What a connection may do that has a place of those that are kept back.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Why it has no other.
    pub reason: Reason,
    /// Is cancelled when somebody else gets the place.
    pub over: CancellationToken,
}

impl Places {
    /// All are free.
    pub fn new(per_address: usize, proxies: Vec<Network>, files: Arc<OpenFiles>) -> Arc<Self> {
        Arc::new(Self { per_address, proxies, files, state: Mutex::default() })
    }

    /// A place for a connection from this address.
    pub async fn take(self: &Arc<Self>, address: IpAddr) -> Place {
        let reason = match self.take_full(address) {
            Ok(place) => return place,
            Err(reason) => reason,
        };
        let file = match self.files.accept_probe() {
            Some(file) => file,
            None => {
                if let Some((_, over)) = self.lock().kept.pop_front() {
                    over.cancel();
                }
                self.files.wait_for_probe().await
            }
        };
        let over = CancellationToken::new();
        let mut state = self.lock();
        state.last_kept += 1;
        let number = state.last_kept;
        state.kept.push_back((number, over.clone()));
        drop(state);
        Place { places: self.clone(), held: Held::Kept(number, Probe { reason, over }), _file: file }
    }

    fn take_full(self: &Arc<Self>, address: IpAddr) -> Result<Place, Reason> {
        let counted = (!self.proxies.iter().any(|proxy| proxy.contains(address))).then(|| counted_as(address));
        let mut state = self.lock();
        if counted.is_some_and(|address| state.addresses.get(&address).is_some_and(|count| *count >= self.per_address))
        {
            return Err(Reason::ConnectionsPerAddress);
        }
        let file = self.files.accept().ok_or(Reason::OpenFiles)?;
        if let Some(address) = counted {
            *state.addresses.entry(address).or_default() += 1;
        }
        drop(state);
        Ok(Place { places: self.clone(), held: Held::Full(counted), _file: file })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The address that it counts for; none where that is a proxy's.
    pub fn address(&self) -> Option<IpAddr> {
        match self.held {
            Held::Full(address) => address,
            Held::Kept(..) => None,
        }
    }

    /// What its connection is bounded to, where it is one of those that are kept back.
    pub fn probe(&self) -> Option<&Probe> {
        match &self.held {
            Held::Full(_) => None,
            Held::Kept(_, probe) => Some(probe),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        match &self.held {
            Held::Full(None) => {}
            Held::Full(Some(address)) => {
                if let Some(count) = state.addresses.get_mut(address) {
                    *count -= 1;
                    if *count == 0 {
                        state.addresses.remove(address);
                    }
                }
            }
            Held::Kept(number, _) => state.kept.retain(|(other, _)| other != number),
        }
    }
}

/// One IPv6 client has a whole /64 to choose its address from.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(per_address: usize) -> Arc<Places> {
        let proxies = vec![Network::parse("10.9.0.0/16").unwrap()];
        Places::new(per_address, proxies, OpenFiles::of(128).unwrap())
    }

    async fn take(places: &Arc<Places>, address: &str) -> Place {
        places.take(address.parse().unwrap()).await
    }

    fn reason(place: &Place) -> Option<Reason> {
        place.probe().map(|probe| probe.reason)
    }

    #[tokio::test]
    async fn an_address_has_its_bound_and_a_proxy_has_none() {
        let places = places(2);
        let first = take(&places, "10.0.0.1").await;
        let _second = take(&places, "::ffff:10.0.0.1").await;
        assert_eq!(reason(&take(&places, "10.0.0.1").await), Some(Reason::ConnectionsPerAddress));
        let _other = take(&places, "10.0.0.2").await;
        drop(first);
        assert_eq!(reason(&take(&places, "10.0.0.1").await), None);
        let proxied: Vec<_> = (0..5).map(|_| places.take_full("10.9.0.1".parse().unwrap())).collect();
        assert!(proxied.iter().all(Result::is_ok));
        assert_eq!(places.lock().addresses.len(), 2);
    }

    #[tokio::test]
    async fn an_ipv6_network_counts_as_one() {
        let places = places(1);
        let _first = take(&places, "2001:db8::1").await;
        assert_eq!(reason(&take(&places, "2001:db8::ffff:1").await), Some(Reason::ConnectionsPerAddress));
        assert_eq!(reason(&take(&places, "2001:db8:0:1::1").await), None);
    }

    #[tokio::test]
    async fn who_comes_last_finds_a_place_for_a_moment() {
        let places = places(10_000);
        let mut full = Vec::new();
        while let Ok(place) = places.take_full("10.0.0.1".parse().unwrap()) {
            full.push(place);
        }
        let mut kept = VecDeque::new();
        while places.files.probes_left() > 0 {
            kept.push_back(take(&places, "10.0.0.1").await);
        }
        assert!(!kept.is_empty() && kept.iter().all(|place| reason(place) == Some(Reason::OpenFiles)));
        for number in 0..20 {
            // Whoever has had its place longest is told to go, and with that the newcomer has one.
            let oldest = kept.pop_front().unwrap();
            let over = oldest.probe().unwrap().over.clone();
            let (place, ()) = tokio::join!(take(&places, "10.0.0.1"), async {
                over.cancelled().await;
                drop(oldest);
            });
            assert!(kept.iter().all(|place| !place.probe().unwrap().over.is_cancelled()), "{number}");
            kept.push_back(place);
        }
        drop(full.pop());
        assert_eq!(reason(&take(&places, "10.0.0.1").await), None);
    }
}
