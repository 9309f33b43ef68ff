//! Maps that peers tell of: when a node takes one.
//!
//! What a peer says is a hint, since a certificate proves who it is and not that it speaks the truth. Whoever hears of a
//! newer map asks the store, and takes what that has.
//!
//! Where the store does not answer this node, other nodes may change the map all the same, and clients here wait for that. Then
//! a map is taken that two peers say alike, or all that this node has a link with and takes for alive: one that lies cannot do
//! that while another is there that does not. Such a map has to follow the one that is known, in every slot.
//!
//! A peer that tells of a map which the store does not have is not listened to for a while, longer each time, so that the
//! store is not asked without end.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::{id::NodeId, map::SharedMap};

/// Between two readings of the map.
const READ_MS: u64 = 20;
/// After a reading that failed.
const READ_AGAIN_MS: u64 = 500;
/// A store that takes longer is as good as away.
const SLOW_MS: u64 = 500;
/// Between two rounds of asking the peers.
const FETCH_MS: u64 = 200;
/// A peer that told of a map which there is not is not listened to for this long; twice as long each time, up to
/// [`DISTRUST_MAX_MS`].
const DISTRUST_MS: u64 = 5_000;
const DISTRUST_MAX_MS: u64 = 80_000;
/// A map that peers agree on is at most this many versions ahead of the one that is known.
const AHEAD_MAX: u64 = 10_000;

/// What happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HintInput {
    /// The map that this node knows.
    Map(SharedMap),
    /// The peers that are alive and that this node has a link with.
    Peers(BTreeSet<NodeId>),
    /// A peer says that there is a map of this version.
    Told {
        /// Who, by its certificate.
        by: NodeId,
        version: u64,
    },
    /// A peer is primary, it says, under a term that a map does not have: there is a newer one.
    Ahead {
        /// Who, by its certificate.
        by: NodeId,
        /// The version of that map, 0 if there was none. A newer one may be known by now.
        of: u64,
    },
    /// A peer says that this is the map.
    Sent {
        /// Who, by its certificate.
        by: NodeId,
        map: SharedMap,
    },
    /// The answer to [`HintOutput::ReadMap`]; nothing where the store gave none.
    Read(Option<SharedMap>),
    /// Whether the store answers this node.
    StoreIsUp(bool),
    /// It is [`Hints::wake_at_ms`].
    Wake,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HintOutput {
    /// Read the map from the store. To be answered by [`HintInput::Read`].
    ReadMap,
    /// Ask a peer for its map, should that be newer than this version.
    FetchMap {
        from: NodeId,
        /// The version that is known.
        newer_than: u64,
    },
    /// This is the map.
    Take(SharedMap),
    /// The peer has told of a map that the store does not have. It is not listened to for a while.
    Lied {
        by: NodeId,
        /// Of which it told.
        version: u64,
        /// That the store has.
        stored: u64,
        /// It is not listened to before that, by the monotonic clock in milliseconds.
        until_ms: u64,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub struct Hints {
    known: Option<SharedMap>,
    peers: BTreeSet<NodeId>,
    store_is_down: bool,
    told: BTreeMap<NodeId, Told>,
    distrusted: BTreeMap<NodeId, Distrusted>,
    reading: Option<Reading>,
    read_not_before_ms: u64,
    failed_until_ms: u64,
    fetch_not_before_ms: u64,
    wake_at_ms: Option<u64>,
}

/// What a peer said last.
#[derive(Debug)]
struct Told {
    version: u64,
    map: Option<SharedMap>,
}

#[derive(Debug)]
struct Distrusted {
    until_ms: u64,
    for_ms: u64,
}

/// The store was asked.
#[derive(Debug)]
struct Reading {
    since_ms: u64,
    /// Because of these.
    told: BTreeMap<NodeId, u64>,
}

impl Hints {
    /// Knows no map yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// When [`HintInput::Wake`] is due, by the monotonic clock.
    pub fn wake_at_ms(&self) -> Option<u64> {
        self.wake_at_ms
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, now_ms: u64, input: HintInput, out: &mut Vec<HintOutput>) {
        match input {
            HintInput::Map(map) => self.learn(map),
            HintInput::Peers(peers) => self.peers = peers,
            HintInput::Told { by, version } => self.hear(by, Told { version, map: None }, now_ms),
            HintInput::Ahead { by, of } => self.hear(by, Told { version: of + 1, map: None }, now_ms),
            HintInput::Sent { by, map } => self.hear(by, Told { version: map.version, map: Some(map) }, now_ms),
            HintInput::Read(found) => self.read(found, now_ms, out),
            HintInput::StoreIsUp(is_up) => self.store_is_down = !is_up,
            HintInput::Wake => {}
        }
        self.act(now_ms, out);
    }

    fn version(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.version)
    }

    fn learn(&mut self, map: SharedMap) {
        if self.version() < map.version {
            self.known = Some(map);
        }
        let version = self.version();
        self.told.retain(|_, told| told.version > version);
    }

    fn is_distrusted(&self, peer: &NodeId, now_ms: u64) -> bool {
        self.distrusted.get(peer).is_some_and(|distrusted| now_ms < distrusted.until_ms)
    }

    fn hear(&mut self, by: NodeId, told: Told, now_ms: u64) {
        if told.version <= self.version() || self.is_distrusted(&by, now_ms) {
            return;
        }
        match self.told.get_mut(&by) {
            // What it sent says more than a number; a newer one is asked for anew.
            Some(before) if before.version == told.version && told.map.is_none() => {}
            Some(before) => *before = told,
            None => {
                self.told.insert(by, told);
            }
        }
    }

    fn read(&mut self, found: Option<SharedMap>, now_ms: u64, out: &mut Vec<HintOutput>) {
        let told = self.reading.take().map(|reading| reading.told).unwrap_or_default();
        let Some(map) = found else {
            self.failed_until_ms = now_ms + READ_AGAIN_MS;
            return;
        };
        self.failed_until_ms = 0;
        let stored = map.version;
        if self.version() < stored {
            out.push(HintOutput::Take(map.clone()));
        }
        self.learn(map);
        for (by, version) in told {
            if version <= stored {
                self.distrusted.remove(&by);
                continue;
            }
            self.told.remove(&by);
            let before_ms = self.distrusted.get(&by).map_or(0, |distrusted| distrusted.for_ms);
            let for_ms = (before_ms * 2).clamp(DISTRUST_MS, DISTRUST_MAX_MS);
            let until_ms = now_ms + for_ms;
            self.distrusted.insert(by.clone(), Distrusted { until_ms, for_ms });
            out.push(HintOutput::Lied { by, version, stored, until_ms });
        }
    }

    /// Does what there is to do now, and says when to look again.
    fn act(&mut self, now_ms: u64, out: &mut Vec<HintOutput>) {
        self.wake_at_ms = None;
        if self.told.is_empty() {
            return;
        }
        let mut next = Vec::new();
        let is_away = self.store_is_down || now_ms < self.failed_until_ms;
        match &self.reading {
            None if !is_away && self.read_not_before_ms <= now_ms => {
                let told = self.told.iter().map(|(by, told)| (by.clone(), told.version)).collect();
                self.reading = Some(Reading { since_ms: now_ms, told });
                self.read_not_before_ms = now_ms + READ_MS;
                out.push(HintOutput::ReadMap);
                next.push(now_ms + SLOW_MS);
            }
            None if !is_away => next.push(self.read_not_before_ms),
            None if !self.store_is_down => next.push(self.failed_until_ms),
            Some(reading) if now_ms < reading.since_ms + SLOW_MS => next.push(reading.since_ms + SLOW_MS),
            None | Some(_) => {}
        }
        let is_slow = self.reading.as_ref().is_some_and(|reading| reading.since_ms + SLOW_MS <= now_ms);
        if is_away || is_slow {
            if let Some(map) = self.agreed(now_ms) {
                out.push(HintOutput::Take(map.clone()));
                self.learn(map);
            }
            if !self.told.is_empty() {
                self.fetch(now_ms, out);
                next.push(self.fetch_not_before_ms);
            }
        }
        self.wake_at_ms = next.into_iter().min().filter(|_| !self.told.is_empty());
    }

    /// Has every peer say which map it knows.
    fn fetch(&mut self, now_ms: u64, out: &mut Vec<HintOutput>) {
        if now_ms < self.fetch_not_before_ms {
            return;
        }
        self.fetch_not_before_ms = now_ms + FETCH_MS;
        let newer_than = self.version();
        out.extend(self.peers.iter().map(|from| HintOutput::FetchMap { from: from.clone(), newer_than }));
    }

    /// The newest map that enough peers say alike, and that may follow the one that is known.
    fn agreed(&self, now_ms: u64) -> Option<SharedMap> {
        let known = self.known.as_ref()?;
        let counts = |peer: &&NodeId| !self.is_distrusted(peer, now_ms);
        let needed = self.peers.iter().filter(counts).count().min(2);
        let sent: Vec<_> =
            self.peers.iter().filter(counts).filter_map(|peer| self.told.get(peer)?.map.as_ref()).collect();
        let is_agreed = |map: &&&SharedMap| {
            let alike = sent.iter().filter(|other| **other == **map).count();
            needed > 0 && alike >= needed && map.version <= known.version + AHEAD_MAX && map.may_follow(known)
        };
        sent.iter().filter(is_agreed).max_by_key(|map| map.version).map(|map| (*map).clone())
    }
}
