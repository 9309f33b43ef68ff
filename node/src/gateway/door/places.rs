//! Who may hold a connection, from its first byte on: one file each, and a bound for each address. Whoever finds no place
//! gets one of a few that are kept back: for a moment, to ask how the node is, or to be told to come again. When these are
//! taken too, whoever has had one longest gives it up, so that a flood of silent connections does not keep out a probe.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use axum::http::HeaderMap;
use tokio_util::sync::CancellationToken;

use super::forwarded;
use crate::{
    config::{Network, ProxyHeader},
    open_files::{OpenFile, OpenFiles},
    wire::reason::Reason,
};

/// All places of a node.
#[derive(Debug)]
pub struct Places {
    per_address: usize,
    /// Their addresses stand for many clients.
    proxies: Vec<Network>,
    /// Where they say for which.
    header: ProxyHeader,
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
    of_proxy: bool,
    /// Whom the proxy speaks for, which it counts for too.
    client: OnceLock<IpAddr>,
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
    pub fn new(per_address: usize, proxies: Vec<Network>, header: ProxyHeader, files: Arc<OpenFiles>) -> Arc<Self> {
        Arc::new(Self { per_address, proxies, header, files, state: Mutex::default() })
    }

    /// A place for a connection from this address.
    pub async fn take(self: &Arc<Self>, address: IpAddr) -> Place {
        let reason = match self.take_full(address) {
            Ok(place) => return place,
            Err(reason) => reason,
        };
        let of_proxy = self.is_proxy(address);
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
        self.place(Held::Kept(number, Probe { reason, over }), of_proxy, file)
    }

    fn take_full(self: &Arc<Self>, address: IpAddr) -> Result<Place, Reason> {
        let of_proxy = self.is_proxy(address);
        let counted = (!of_proxy).then(|| counted_as(address));
        let mut state = self.lock();
        if counted.is_some_and(|address| state.has_enough(address, self.per_address)) {
            return Err(Reason::ConnectionsPerAddress);
        }
        let file = self.files.accept().ok_or(Reason::OpenFiles)?;
        if let Some(address) = counted {
            *state.addresses.entry(address).or_default() += 1;
        }
        drop(state);
        Ok(self.place(Held::Full(counted), of_proxy, file))
    }

    /// What a proxy says of whom it speaks for is believed.
    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.contains(address))
    }

    fn place(self: &Arc<Self>, held: Held, of_proxy: bool, file: OpenFile) -> Place {
        Place { places: self.clone(), held, of_proxy, client: OnceLock::new(), _file: file }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_enough(&self, address: IpAddr, per_address: usize) -> bool {
        self.addresses.get(&address).is_some_and(|count| *count >= per_address)
    }

    fn give_back(&mut self, address: IpAddr) {
        if let Some(count) = self.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
    }
}

impl Place {
    /// The address that it counts for; none where that is a proxy's which has not said whom it speaks for.
    pub fn address(&self) -> Option<IpAddr> {
        match self.held {
            Held::Full(address) => address.or_else(|| self.client.get().copied()),
            Held::Kept(..) => None,
        }
    }

    /// Whether what comes on it of whom it is spoken for is believed.
    pub fn is_of_proxy(&self) -> bool {
        self.of_proxy
    }

    /// Counts it for whom its proxy speaks for, from now on. The first one stands. A proxy is nobody's client.
    pub fn count_for(&self, client: IpAddr) -> Result<(), Reason> {
        let is_counted = !matches!(self.held, Held::Full(None)) || self.client.get().is_some();
        if is_counted || self.places.is_proxy(client) {
            return Ok(());
        }
        let client = counted_as(client);
        let mut state = self.places.lock();
        if state.has_enough(client, self.places.per_address) {
            return Err(Reason::ConnectionsPerAddress);
        }
        if self.client.set(client).is_ok() {
            *state.addresses.entry(client).or_default() += 1;
        }
        Ok(())
    }

    /// Counts it for whom its proxy forwards for, where the request's head tells that.
    pub fn count_for_forwarded(&self, headers: &HeaderMap) -> Result<(), Reason> {
        if !self.of_proxy {
            return Ok(());
        }
        let client = forwarded::client(headers, self.places.header, &self.places.proxies);
        client.map_or(Ok(()), |client| self.count_for(client))
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
            Held::Full(address) => {
                address.or_else(|| self.client.get().copied()).into_iter().for_each(|address| state.give_back(address));
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
        Places::new(per_address, proxies, ProxyHeader::XForwardedFor, OpenFiles::of(128).unwrap())
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
    async fn a_proxy_is_believed_whom_it_forwards_for_and_nobody_else_is() {
        let headers = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", text.parse().unwrap());
            headers
        };
        let places = places(1);
        let first = take(&places, "10.9.0.1").await;
        first.count_for_forwarded(&headers("192.0.2.1, 203.0.113.9")).unwrap();
        assert_eq!(first.address(), Some("203.0.113.9".parse().unwrap()));
        // A later request of the same connection changes nothing.
        first.count_for_forwarded(&headers("203.0.113.10")).unwrap();
        let second = take(&places, "10.9.0.1").await;
        assert_eq!(second.count_for_forwarded(&headers("203.0.113.9")), Err(Reason::ConnectionsPerAddress));
        assert_eq!(
            reason(&take(&places, "203.0.113.9").await),
            Some(Reason::ConnectionsPerAddress),
            "it counts as one"
        );
        drop(first);
        second.count_for_forwarded(&headers("203.0.113.9")).unwrap();
        drop(second);
        assert!(places.lock().addresses.is_empty());
        let direct = take(&places, "10.0.0.1").await;
        direct.count_for_forwarded(&headers("203.0.113.9")).unwrap();
        assert_eq!(direct.address(), Some("10.0.0.1".parse().unwrap()), "it says so of itself");
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
