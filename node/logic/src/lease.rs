//! Whether this node, as a gateway, may deliver to the clients whose sessions it has; and, for the slots that it is primary
//! of, whether another gateway may not any more (S7).
//!
//! - A gateway beats. Whoever hears that acknowledges it, and an acknowledgement of a beat is good for [`LEASE_MS`] from when
//!   that was *sent*. The gateway may deliver while it has those of a [`quorum`] of the voters: the members that are primary or
//!   in-sync of some slot, and itself.
//! - Who has not acknowledged a gateway for [`LAPSED_MS`], or has promised that it counts for nothing, acknowledges it under
//!   another number from then on. A gateway that is given another number, or whose lease had run out, begins a new *episode*:
//!   it delivers to nobody before the slot of its session has confirmed the attachment once more.
//! - A primary that cannot hear from a gateway asks the voters for a fence. One that has not acknowledged the gateway for
//!   [`LAPSED_MS`] says so at once. Each other one promises another number, and says so when what it acknowledged before has
//!   run out. When as many have said so as every quorum has one of, the gateway confirms each attachment before it delivers.
//!
//! A gateway that hears the others is not held up for long by the fence of a primary that does not hear it: it confirms what it
//! has with the other primaries. Nobody compares clocks: each measures by its own, which has to count the time that the machine
//! is suspended.
//!
//! Voters change with the map. An acknowledgement by somebody who knows a newer map counts for nothing, so a gateway that was
//! fenced asks the primary that fenced it, or a later one. A primary fences with the voters of every map that somebody who can
//! still commit entries may be at. Members that have been dropped since may go on acknowledging a gateway that does not know it
//! either. So whatever a primary sends says since which map the voters are those that it knows, and a gateway that does not know
//! that map delivers nothing before it does ([`Ahead`]).

mod ahead;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

pub use self::ahead::Ahead;
use crate::{id::Member, map::ClusterMap, map::SharedMap};

/// Between two [`LeaseInput::Tick`], in milliseconds.
pub const TICK_MS: u64 = 100;
/// Beats go out once in this number of ticks.
const BEAT_TICKS: u64 = 2;
/// An acknowledgement of a beat is good for this many milliseconds from when that was sent.
pub const LEASE_MS: u64 = 800;
/// Whoever was not acknowledged for this many milliseconds has nothing left of it: more than [`LEASE_MS`] by what clocks may
/// differ in their pace.
pub const LAPSED_MS: u64 = 900;
/// A fence that no slot asks for any more is given up after this many milliseconds.
const UNWANTED_MS: u64 = 2_000;
/// A peer that was not acknowledged for this many milliseconds is forgotten.
const FORGET_MS: u64 = 60_000;
/// Maps with other voters that are remembered, and peers; past it the oldest map is forgotten, and no further peer is heard.
const MAPS: usize = 16;
const PEERS: usize = 4_096;

/// How many of this number of voters a gateway has to hear from to deliver, itself counted: half of them, as for changing the
/// map, but never it alone.
pub fn quorum(voters: usize) -> usize {
    voters.min(2).max(voters.div_ceil(2))
}

/// What peers say to each other about leases.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LeaseMessage {
    /// A gateway is there.
    Beat {
        /// By the gateway's own clock, in milliseconds.
        sent_ms: u64,
    },
    /// To a [`LeaseMessage::Beat`].
    Ack {
        /// Of the beat.
        sent_ms: u64,
        /// Another one than before where what was acknowledged before is not to be relied upon.
        number: u64,
        /// The map that the acknowledging node knows.
        map_version: u64,
    },
    /// The gateway is to confirm its attachments before it delivers again.
    Fence {
        gateway: Member,
        /// Of the asking node; later ones are greater.
        round: u64,
        /// The map that the asking node knows.
        map_version: u64,
    },
    /// To a [`LeaseMessage::Fence`]: nothing is left of what was acknowledged to the gateway before that was asked.
    Lapsed {
        gateway: Member,
        /// Of the fence.
        round: u64,
    },
}

/// What it is told.
#[derive(Clone, Debug)]
pub enum LeaseInput {
    /// The map that this node knows.
    Map(SharedMap),
    /// A peer says something.
    Message { from: Member, message: LeaseMessage },
    /// A slot served here wants to know that the gateway has to confirm whatever it confirmed up to this time, by this node's
    /// clock. Repeated until it is told.
    Wanted { gateway: Member, since_ms: u64 },
    /// Every [`TICK_MS`].
    Tick,
}

/// What it wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseOutput {
    /// Without any promise that it arrives.
    Send { to: Member, message: LeaseMessage },
    /// This node may deliver until then, to those whose attachments were confirmed in this episode.
    May(Permission),
    /// To [`LeaseInput::Wanted`]: whatever the gateway was confirmed until then counts for nothing.
    Gone { gateway: Member, since_ms: u64 },
}

/// When a gateway may deliver to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Permission {
    /// Only those whose attachments were confirmed in this episode.
    pub episode: u64,
    /// Not at this time and later, by this node's clock in milliseconds.
    pub until_ms: u64,
    /// Of the map that this node knows.
    pub map_version: u64,
}

impl Permission {
    /// Whether a write may begin now to a connection whose attachment was confirmed in this episode. `ahead`: what is known of
    /// newer maps.
    pub fn allows(self, confirmed: u64, now_ms: u64, ahead: &Ahead) -> bool {
        confirmed == self.episode && now_ms < self.until_ms && !self.is_behind(ahead)
    }

    /// Whether somebody who delivers to this node knows of other voters.
    pub fn is_behind(self, ahead: &Ahead) -> bool {
        self.map_version < ahead.version()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Lease {
    me: Member,
    started_ms: u64,
    ticks: u64,
    /// The voters of each map since which they are others, the last of them the present one.
    maps: VecDeque<(u64, BTreeSet<Member>)>,
    map_version: u64,
    peers: BTreeMap<Member, Peer>,
    /// The last number under which somebody was acknowledged.
    last_number: u64,
    permission: Permission,
    rounds: BTreeMap<Member, Round>,
    last_round: u64,
}

#[derive(Debug)]
struct Peer {
    /// What it acknowledged last: under which number, and until when that is good.
    given: Option<(u64, u64)>,
    /// The map that it was last known to know.
    map_version: u64,
    /// It was last acknowledged then; where that never was, when this process began.
    acknowledged_ms: u64,
    /// It is acknowledged under this number.
    number: u64,
    /// What was promised last to each that asked: the round, and since when.
    promised: BTreeMap<Member, (u64, u64)>,
}

/// A fence that is asked for.
#[derive(Debug)]
struct Round {
    number: u64,
    since_ms: u64,
    wanted_ms: u64,
    /// A slot wants a later one.
    again: bool,
    lapsed: BTreeSet<Member>,
    /// As many have said so as it takes: whoever still wants it is told at once.
    is_over: bool,
}

impl Lease {
    /// It may not deliver yet.
    pub fn new(me: Member, now_ms: u64) -> Self {
        Self {
            me,
            started_ms: now_ms,
            ticks: 0,
            maps: VecDeque::new(),
            map_version: 0,
            peers: BTreeMap::new(),
            last_number: 0,
            permission: Permission::default(),
            rounds: BTreeMap::new(),
            last_round: 0,
        }
    }

    /// What this node may do, as it was last said.
    pub fn permission(&self) -> Permission {
        self.permission
    }

    /// Since which map the voters are those that this node knows: to be said with all that its slots send.
    pub fn voters_since(&self) -> u64 {
        self.maps.back().map_or(0, |(version, _)| *version)
    }

    /// Takes an input.
    pub fn handle(&mut self, now_ms: u64, input: LeaseInput, out: &mut Vec<LeaseOutput>) {
        match input {
            LeaseInput::Map(map) => {
                self.learn(&map);
                self.count(now_ms, false, out);
            }
            LeaseInput::Message { from, message } => self.message(now_ms, from, message, out),
            LeaseInput::Wanted { gateway, since_ms } => self.wanted(now_ms, gateway, since_ms, out),
            LeaseInput::Tick => {
                if self.ticks.is_multiple_of(BEAT_TICKS) {
                    let others = self.voters().filter(|voter| **voter != self.me).cloned();
                    let beat = |to| LeaseOutput::Send { to, message: LeaseMessage::Beat { sent_ms: now_ms } };
                    out.extend(others.map(beat));
                }
                self.ticks += 1;
                self.rounds.retain(|_, round| now_ms < round.wanted_ms + UNWANTED_MS);
                for gateway in self.rounds.keys().cloned().collect::<Vec<_>>() {
                    self.ask(now_ms, &gateway, out);
                }
                let votes: BTreeSet<Member> = self.voters().cloned().collect();
                self.peers.retain(|peer, there| {
                    votes.contains(peer) || now_ms < there.acknowledged_ms.saturating_add(FORGET_MS)
                });
            }
        }
    }

    fn learn(&mut self, map: &ClusterMap) {
        if map.version <= self.map_version {
            return;
        }
        self.map_version = map.version;
        let primaries = map.slots.iter().map(|slot| &slot.primary);
        let voters: BTreeSet<Member> =
            primaries.chain(map.slots.iter().flat_map(|slot| &slot.in_sync)).cloned().collect();
        if self.maps.back().is_none_or(|(_, before)| *before != voters) {
            self.maps.push_back((map.version, voters));
        }
        if self.maps.len() > MAPS {
            self.maps.pop_front();
        }
    }

    /// By the map that this node knows. It is one of them itself, also where it is not named.
    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.maps.back().into_iter().flat_map(|(_, voters)| voters)
    }

    fn message(&mut self, now_ms: u64, from: Member, message: LeaseMessage, out: &mut Vec<LeaseOutput>) {
        match message {
            LeaseMessage::Beat { sent_ms } => self.beat(now_ms, from, sent_ms, out),
            LeaseMessage::Ack { sent_ms, number, map_version } => {
                // What this node does not know of the map may concern its attachments.
                let counts = map_version <= self.map_version && sent_ms <= now_ms;
                let Some(peer) = self.peer(&from) else { return };
                peer.map_version = peer.map_version.max(map_version);
                if !counts {
                    return;
                }
                let is_other = peer.given.is_none_or(|(before, _)| before != number);
                let until_ms = sent_ms + LEASE_MS;
                let later_ms = peer.given.map_or(0, |(_, until_ms)| until_ms).max(until_ms);
                peer.given = Some((number, later_ms));
                let votes = self.voters().any(|voter| *voter == from);
                self.count(now_ms, is_other && votes, out);
            }
            LeaseMessage::Fence { gateway, round, map_version } => {
                if let Some(peer) = self.peer(&from) {
                    peer.map_version = peer.map_version.max(map_version);
                }
                // Whoever is primary of a slot has a vote.
                let votes = self.maps.iter().any(|(_, voters)| voters.contains(&from));
                if votes && map_version <= self.map_version && self.has_lapsed(now_ms, &gateway, (&from, round)) {
                    let message = LeaseMessage::Lapsed { gateway, round };
                    out.push(LeaseOutput::Send { to: from, message });
                }
            }
            LeaseMessage::Lapsed { gateway, round } => {
                let asked = self.rounds.get_mut(&gateway).filter(|asked| asked.number == round);
                if let Some(asked) = asked {
                    asked.lapsed.insert(from);
                    self.look(now_ms, &gateway, out);
                }
            }
        }
    }

    /// What is known of a peer, which is known from now on; nothing where there are too many.
    fn peer(&mut self, member: &Member) -> Option<&mut Peer> {
        if !self.peers.contains_key(member) {
            if self.peers.len() >= PEERS {
                return None;
            }
            self.last_number += 1;
            let (number, acknowledged_ms) = (self.last_number, self.started_ms);
            let promised = BTreeMap::new();
            let peer = Peer { given: None, map_version: 0, acknowledged_ms, number, promised };
            self.peers.insert(member.clone(), peer);
        }
        self.peers.get_mut(member)
    }

    fn beat(&mut self, now_ms: u64, from: Member, sent_ms: u64, out: &mut Vec<LeaseOutput>) {
        let (map_version, next) = (self.map_version, self.last_number + 1);
        let Some(peer) = self.peer(&from) else { return };
        let lapsed = peer.acknowledged_ms.saturating_add(LAPSED_MS) <= now_ms;
        peer.acknowledged_ms = now_ms;
        if lapsed {
            peer.number = next;
        }
        let number = peer.number;
        self.last_number = self.last_number.max(number);
        out.push(LeaseOutput::Send { to: from, message: LeaseMessage::Ack { sent_ms, number, map_version } });
    }

    /// Whether nothing is left of what this node acknowledged to the gateway before this fence was asked for. Where
    /// something may be, it is promised.
    fn has_lapsed(&mut self, now_ms: u64, gateway: &Member, (asker, round): (&Member, u64)) -> bool {
        let next = self.last_number + 1;
        let Some(peer) = self.peer(gateway) else { return false };
        if peer.acknowledged_ms.saturating_add(LAPSED_MS) <= now_ms {
            return true;
        }
        match peer.promised.get(asker) {
            Some((known, since_ms)) if *known >= round => *known == round && *since_ms + LAPSED_MS <= now_ms,
            Some(_) | None => {
                peer.promised.insert(asker.clone(), (round, now_ms));
                peer.number = next;
                self.last_number = next;
                false
            }
        }
    }

    /// Until when this node may deliver; it begins a new episode where it was fenced or could not.
    fn count(&mut self, now_ms: u64, is_fenced: bool, out: &mut Vec<LeaseOutput>) {
        let Some((_, voters)) = self.maps.back() else { return };
        let others = voters.iter().filter(|voter| **voter != self.me);
        let given =
            |voter| self.peers.get(voter).and_then(|peer: &Peer| peer.given).map_or(0, |(_, until_ms)| until_ms);
        let mut given: Vec<u64> = others.map(given).collect();
        given.sort_unstable_by(|one, other| other.cmp(one));
        let until_ms = match quorum(given.len() + 1) {
            ..2 => u64::MAX,
            quorum => given[quorum - 2],
        };
        let had_run_out = self.permission.until_ms <= now_ms && now_ms < until_ms;
        let episode = self.permission.episode + u64::from(is_fenced || had_run_out);
        let permission = Permission { episode, until_ms, map_version: self.map_version };
        if permission != self.permission {
            self.permission = permission;
            out.push(LeaseOutput::May(permission));
        }
    }

    fn wanted(&mut self, now_ms: u64, gateway: Member, since_ms: u64, out: &mut Vec<LeaseOutput>) {
        match self.rounds.get_mut(&gateway) {
            Some(round) if !round.is_over => {
                round.wanted_ms = now_ms;
                round.again |= round.since_ms <= since_ms;
            }
            Some(round) if since_ms < round.since_ms => {
                out.push(LeaseOutput::Gone { since_ms: round.since_ms, gateway });
            }
            Some(_) | None => self.begin(now_ms, &gateway, out),
        }
    }

    fn begin(&mut self, now_ms: u64, gateway: &Member, out: &mut Vec<LeaseOutput>) {
        self.last_round += 1;
        let (number, lapsed) = (self.last_round, BTreeSet::new());
        let round = Round { number, since_ms: now_ms, wanted_ms: now_ms, again: false, lapsed, is_over: false };
        self.rounds.insert(gateway.clone(), round);
        self.ask(now_ms, gateway, out);
    }

    /// Asks those who have not said so yet.
    fn ask(&mut self, now_ms: u64, gateway: &Member, out: &mut Vec<LeaseOutput>) {
        let Some(round) = self.rounds.get(gateway).filter(|round| !round.is_over) else { return };
        let (number, map_version) = (round.number, self.map_version);
        let voters: BTreeSet<&Member> = self.maps.iter().flat_map(|(_, voters)| voters).collect();
        let left = voters.into_iter().filter(|voter| **voter != self.me && *voter != gateway);
        let left = left.filter(|voter| !round.lapsed.contains(*voter));
        let fence = |to: &Member| LeaseOutput::Send {
            to: to.clone(),
            message: LeaseMessage::Fence { gateway: gateway.clone(), round: number, map_version },
        };
        out.extend(left.map(fence));
        let me = self.me.clone();
        if self.has_lapsed(now_ms, gateway, (&me, number))
            && let Some(round) = self.rounds.get_mut(gateway)
        {
            round.lapsed.insert(me);
        }
        self.look(now_ms, gateway, out);
    }

    /// Whether enough have said so.
    fn look(&mut self, now_ms: u64, gateway: &Member, out: &mut Vec<LeaseOutput>) {
        let Some(round) = self.rounds.get(gateway) else { return };
        if round.is_over || !self.relevant(gateway).all(|voters| blocks(voters, gateway, &round.lapsed)) {
            return;
        }
        let Some(round) = self.rounds.get_mut(gateway) else { return };
        round.is_over = true;
        out.push(LeaseOutput::Gone { gateway: gateway.clone(), since_ms: round.since_ms });
        if round.again {
            self.begin(now_ms, gateway, out);
        }
    }

    /// The voters of the maps that somebody besides the gateway who votes now may be at.
    fn relevant<'a>(&'a self, gateway: &'a Member) -> impl Iterator<Item = &'a BTreeSet<Member>> {
        let others = self.voters().filter(|voter| **voter != self.me && *voter != gateway);
        let known = others.map(|voter| self.peers.get(voter).map_or(0, |peer| peer.map_version));
        let oldest = known.min().unwrap_or(self.map_version);
        let ends = self.maps.iter().skip(1).map(|(version, _)| *version).chain([u64::MAX]);
        self.maps.iter().zip(ends).filter(move |(_, end)| oldest < *end).map(|((_, voters), _)| voters)
    }
}

/// Whether every quorum of these voters and the gateway, which the gateway is one of, has one of those that lapsed.
fn blocks(voters: &BTreeSet<Member>, gateway: &Member, lapsed: &BTreeSet<Member>) -> bool {
    let others = voters.iter().filter(|voter| *voter != gateway).count();
    let said = voters.iter().filter(|voter| *voter != gateway && lapsed.contains(*voter)).count();
    said + quorum(others + 1) > others + 1
}

#[cfg(test)]
mod tests;
