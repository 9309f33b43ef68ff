//! Relays for datagrams: a network between nodes that delays, overtakes, repeats and loses, that changes the addresses which
//! nodes see of each other, and remembers what it carried to send it all once more later.
//!
//! A node is told to advertise its relay's address, so that everything which the others send it, and what it answers them
//! with, goes through. A relay drops nothing of its own accord.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rand::RngExt;
use roost::tasks::Tasks;
use tokio::{net::UdpSocket, sync::watch};

/// More than any of them has.
const DATAGRAM: usize = 65_536;
/// Datagrams of each relay that are remembered: a few seconds' worth.
const REMEMBERED: usize = 4_000;

/// What happens to each datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Road {
    /// The least delay.
    pub least: Duration,
    /// The most that chance adds to it; a datagram sent in that time may overtake this one.
    pub more: Duration,
    /// So many of a hundred arrive twice, each time with a delay of its own.
    pub twice_percent: u8,
    /// So many of a hundred are lost.
    pub lost_percent: u8,
}

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Carried {
    /// Datagrams that came.
    pub datagrams: u64,
    /// Datagrams that were sent twice.
    pub twice: u64,
    /// Sent again by [`DatagramRelays::replay`].
    pub replayed: u64,
    /// Datagrams that were lost, by chance or since nothing goes from there to there.
    pub lost: u64,
}

/// A relay before each node. Dropped, they are gone.
pub struct DatagramRelays {
    road: watch::Sender<Road>,
    cut: watch::Sender<Cut>,
    /// Counts how often all addresses were changed.
    rebound: watch::Sender<u64>,
    shared: Arc<Shared>,
    tasks: Tasks,
}

/// Who is not heard by whom.
type Cut = BTreeSet<(IpAddr, IpAddr)>;

#[derive(Default)]
struct Shared {
    lost: AtomicU64,
    datagrams: AtomicU64,
    twice: AtomicU64,
    replayed: AtomicU64,
    remembered: Mutex<VecDeque<Datagram>>,
}

/// A datagram that was carried, and how to send it again.
#[derive(Clone)]
struct Datagram {
    bytes: Arc<[u8]>,
    by: Arc<UdpSocket>,
    /// None for a socket that knows.
    to: Option<SocketAddr>,
}

impl DatagramRelays {
    /// Starts one for each pair: where it listens, and the node that it leads to.
    pub async fn start(pairs: &[(SocketAddr, SocketAddr)]) -> Result<Self> {
        let (road, seen) = watch::channel(Road::default());
        let (cut, seen_cut) = watch::channel(Cut::new());
        let (rebound, seen_rebound) = watch::channel(0);
        let (shared, tasks) = (Arc::new(Shared::default()), Tasks::new());
        for &(from, to) in pairs {
            let outer = UdpSocket::bind(from).await.with_context(|| format!("a relay at {from}"))?;
            let relay = Relay {
                to,
                road: seen.clone(),
                cut: seen_cut.clone(),
                rebound: seen_rebound.clone(),
                shared: shared.clone(),
                tasks: tasks.clone(),
            };
            tasks.spawn_detached("datagram relay", relay.run(Arc::new(outer)));
        }
        Ok(Self { road, cut, rebound, shared, tasks })
    }

    /// Changes what all of them do.
    pub fn set(&self, road: Road) {
        self.road.send_replace(road);
    }

    /// From now on nothing that goes from the first to the second of each of these hosts arrives, and all else does.
    pub fn cut(&self, pairs: impl IntoIterator<Item = (Ipv4Addr, Ipv4Addr)>) {
        self.cut.send_replace(pairs.into_iter().map(|(from, to)| (from.into(), to.into())).collect());
    }

    /// From now on each node sees all others at other addresses, and what it sends to the earlier ones arrives nowhere.
    pub fn rebind(&self) {
        self.rebound.send_modify(|times| *times += 1);
    }

    /// Sends everything again that was carried lately, in the same order, to where it went.
    pub async fn replay(&self) {
        let all: Vec<Datagram> = self.remembered().iter().cloned().collect();
        for (number, datagram) in all.into_iter().enumerate() {
            datagram.send().await;
            self.shared.replayed.fetch_add(1, Ordering::Relaxed);
            if number % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// What they have done.
    pub fn carried(&self) -> Carried {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { datagrams, twice, replayed, lost, .. } = &*self.shared;
        Carried { datagrams: count(datagrams), twice: count(twice), replayed: count(replayed), lost: count(lost) }
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, VecDeque<Datagram>> {
        self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DatagramRelays {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
        // They hold sockets.
        self.remembered().clear();
    }
}

#[derive(Clone)]
struct Relay {
    to: SocketAddr,
    road: watch::Receiver<Road>,
    cut: watch::Receiver<Cut>,
    rebound: watch::Receiver<u64>,
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Relay {
    /// Who sends here gets a socket of their own on the other side, by which the node's answers come back.
    async fn run(mut self, outer: Arc<UdpSocket>) {
        let mut inner: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let received = tokio::select! {
                changed = self.rebound.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    inner.clear();
                    continue;
                }
                received = outer.recv_from(&mut buffer) => received,
            };
            // An error here tells of an earlier datagram that nobody took.
            let Ok((length, from)) = received else { continue };
            let by = match inner.get(&from) {
                Some(by) => by.clone(),
                None => {
                    let Ok(by) = self.another(from, &outer).await else { continue };
                    inner.insert(from, by.clone());
                    by
                }
            };
            if !self.loses(from.ip(), self.to.ip()) {
                self.carry(Datagram { bytes: buffer[..length].into(), by, to: None }).await;
            }
        }
    }

    /// A socket by which the node sees who sends from there.
    async fn another(&self, from: SocketAddr, outer: &Arc<UdpSocket>) -> std::io::Result<Arc<UdpSocket>> {
        let by = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?);
        by.connect(self.to).await?;
        self.tasks.spawn_detached("datagram relay back", self.clone().carry_back(by.clone(), outer.clone(), from));
        Ok(by)
    }

    async fn carry_back(mut self, from: Arc<UdpSocket>, outer: Arc<UdpSocket>, to: SocketAddr) {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let received = tokio::select! {
                _ = self.rebound.changed() => return,
                received = from.recv(&mut buffer) => received,
            };
            let Ok(length) = received else { continue };
            if !self.loses(self.to.ip(), to.ip()) {
                self.carry(Datagram { bytes: buffer[..length].into(), by: outer.clone(), to: Some(to) }).await;
            }
        }
    }

    /// Whether a datagram is lost on this way.
    fn loses(&self, from: IpAddr, to: IpAddr) -> bool {
        let percent = self.road.borrow().lost_percent;
        let lost = self.cut.borrow().contains(&(from, to)) || rand::rng().random_range(0..100) < percent;
        self.shared.lost.fetch_add(u64::from(lost), Ordering::Relaxed);
        lost
    }

    async fn carry(&self, datagram: Datagram) {
        let road = *self.road.borrow();
        self.shared.datagrams.fetch_add(1, Ordering::Relaxed);
        {
            let mut remembered = self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.len() == REMEMBERED {
                remembered.pop_front();
            }
            remembered.push_back(datagram.clone());
        }
        if road == Road::default() {
            return datagram.send().await;
        }
        let twice = rand::rng().random_range(0..100) < road.twice_percent;
        self.shared.twice.fetch_add(u64::from(twice), Ordering::Relaxed);
        for _ in 0..=usize::from(twice) {
            let late = road.least + road.more.mul_f64(rand::rng().random());
            let datagram = datagram.clone();
            self.tasks.spawn_detached("datagram", async move {
                tokio::time::sleep(late).await;
                datagram.send().await;
            });
        }
    }
}

impl Datagram {
    async fn send(&self) {
        // What is refused is lost, as datagrams are.
        let _ = match self.to {
            Some(to) => self.by.send_to(&self.bytes, to).await,
            None => self.by.send(&self.bytes).await,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node, a relay before it, and a client of that.
    async fn relayed() -> Result<(UdpSocket, DatagramRelays, UdpSocket)> {
        let node = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        // A port that is free now: nobody else takes it that fast.
        let listen = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?;
        let relays = DatagramRelays::start(&[(listen, node.local_addr()?)]).await?;
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        client.connect(listen).await?;
        Ok((node, relays, client))
    }

    #[tokio::test]
    async fn carries_both_ways_repeats_and_replays() -> Result<()> {
        let (node, relays, client) = relayed().await?;
        let mut buffer = [0; 16];
        client.send(b"there").await?;
        let (length, from) = node.recv_from(&mut buffer).await?;
        assert_eq!(&buffer[..length], b"there");
        node.send_to(b"back", from).await?;
        let length = client.recv(&mut buffer).await?;
        assert_eq!(&buffer[..length], b"back");
        relays.set(Road { twice_percent: 100, ..Road::default() });
        client.send(b"two").await?;
        for _ in 0..2 {
            let (length, _) = node.recv_from(&mut buffer).await?;
            assert_eq!(&buffer[..length], b"two");
        }
        relays.set(Road::default());
        relays.replay().await;
        let (length, _) = node.recv_from(&mut buffer).await?;
        assert_eq!(&buffer[..length], b"there");
        assert_eq!(relays.carried(), Carried { datagrams: 3, twice: 1, replayed: 3, lost: 0 });
        Ok(())
    }

    #[tokio::test]
    async fn loses_what_is_cut_and_changes_addresses() -> Result<()> {
        let (node, relays, client) = relayed().await?;
        let mut buffer = [0; 16];
        client.send(b"one").await?;
        let (_, before) = node.recv_from(&mut buffer).await?;
        relays.cut([(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)]);
        client.send(b"lost").await?;
        while relays.carried().lost == 0 {
            tokio::task::yield_now().await;
        }
        relays.cut([]);
        relays.rebind();
        // The change and the next datagram are seen in either order.
        let after = loop {
            client.send(b"two").await?;
            let (length, after) = node.recv_from(&mut buffer).await?;
            assert_eq!(&buffer[..length], b"two");
            if after != before {
                break after;
            }
        };
        node.send_to(b"back", after).await?;
        let length = client.recv(&mut buffer).await?;
        assert_eq!(&buffer[..length], b"back");
        Ok(())
    }
}
