//! What a certified peer sends once it is welcome: frames are decoded as on a lane, and given to the cores that they are for, as
//! [`crate::node`] does it. None of it ends a core, and what the cores say of it can be told and kept.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::samples::{group, member, record};
use crate::{
    id::{Epoch, Member, Position, SlotId},
    logic::{
        Now,
        entry::SessionRecord,
        following::{self, Answer, Ask, Following, FollowingSettings},
        hints::{HintInput, HintOutput, Hints},
        lease::{Ahead, Lease, LeaseInput, LeaseOutput},
        map::{ClusterMap, Leads, SharedMap},
        primary::{SlotCore, SlotInput, SlotOutput, SlotSettings},
        request::{self, GroupPush, JoinPoint, Push, SlotAnswer, SlotError},
        session::{Room, WhenFull},
        steward::{Steward, StewardInput, StewardOutput, StewardSettings},
    },
    store,
    wire::{
        command::Event,
        peer::{PeerFrame, decode, encode_into},
        plain,
    },
};

const SLOTS: u16 = 3;
const SETTINGS: SlotSettings = SlotSettings {
    replica_timeout_ms: 1_000,
    resume_grace_ms: 1_000,
    memory_ttl_ms: 5_000,
    unclaimed_ms: 5_000,
    group_idle_ms: 5_000,
    group_idle_tight_ms: 1_000,
    queue: 64,
    groups_per_session: 4,
    room: Room { clients_max: 2, when_full: WhenFull::Displace },
};

/// A node that leads slot 0 alone (the peer learns) and slot 2 with the peer, and follows the peer in slot 1.
struct World {
    now: Now,
    peer: Member,
    map: SharedMap,
    cores: Vec<SlotCore>,
    following: Following,
    asked: VecDeque<Ask>,
    hints: Hints,
    steward: Steward,
    lease: Lease,
    ahead: Ahead,
    /// What the lease wants done; what a slot is told of it, it is told with the next input.
    lent: Vec<LeaseOutput>,
}

/// The map that the node knows.
pub(super) fn map() -> ClusterMap {
    let (me, peer) = (member("n1"), member("n2"));
    let mut map = ClusterMap::first(&me, SLOTS);
    map.version = 4;
    map.members.insert(peer.node.clone(), peer.generation);
    map.slots[0].learner = Some(peer.clone());
    map.slots[0].changed_at = 3;
    for slot in &mut map.slots[1..] {
        slot.in_sync = vec![me.clone(), peer.clone()];
        slot.changed_at = 4;
    }
    map.slots[1].primary = peer;
    map.slots[1].term = 2;
    map
}

impl World {
    fn new() -> Self {
        let (me, peer) = (member("n1"), member("n2"));
        let core = |slot| SlotCore::new(slot, me.clone(), SETTINGS, 1);
        let stewards = StewardSettings { slots: SLOTS, copies: 2, max_moves: 4 };
        let mut world = Self {
            now: Now { mono_ms: 1_000_000, wall_ms: 1_700_000_000_000 },
            peer: peer.clone(),
            map: Arc::new(ClusterMap::first(&me, SLOTS)),
            cores: (0..SLOTS).map(core).collect(),
            following: Following::new(me.clone(), FollowingSettings::default()),
            asked: VecDeque::new(),
            hints: Hints::new(),
            steward: Steward::new(me.clone(), stewards),
            lease: Lease::new(me.clone(), 900_000),
            ahead: Ahead::default(),
            lent: Vec::new(),
        };
        let alive = Arc::new(BTreeSet::from([me, peer.clone()]));
        world.take_map(world.map.clone());
        world.take_map(Arc::new(map()));
        for slot in 0..SLOTS {
            world.slot(slot, SlotInput::Alive(alive.clone()));
        }
        world.follow(following::Input::Alive(alive));
        world.follow(following::Input::PeerConnected(peer.clone()));
        for (subscriber, name, offset) in [(1, "g", None), (2, "g", Some(1)), (3, "h", Some(2))] {
            let (group, since) = (group(name), offset.map(|offset| Position { epoch: Epoch(3), offset }));
            let slot = group.slot(SLOTS);
            world.follow(following::Input::Subscribe {
                slot,
                group,
                subscriber,
                request: None,
                member: None,
                summed: subscriber % 2 == 0,
                since,
            });
        }
        world.hint(HintInput::Peers(BTreeSet::from([peer.node])));
        world.hint(HintInput::StoreIsUp(false));
        world
    }

    fn take_map(&mut self, map: SharedMap) {
        self.map = map.clone();
        for (slot, assignment) in (0..).zip(map.slots.clone()) {
            self.slot(slot, SlotInput::Map { version: map.version, assignment });
        }
        self.follow(following::Input::Map(map.clone()));
        self.hint(HintInput::Map(map.clone()));
        self.ahead.know(map.version);
        self.lend(LeaseInput::Map(map.clone()));
        self.govern(StewardInput::Map(map));
    }

    fn hear(&mut self, frame: PeerFrame) {
        let from = self.peer.clone();
        match frame {
            PeerFrame::Replication { slot, message } => {
                if message.is_answer() || self.leads(slot, message.term()) {
                    self.slot(slot, SlotInput::Peer { from, message });
                }
            }
            PeerFrame::Request { id, slot, term, wait_ms, request, .. } => {
                let request = request.waited(u64::from(wait_ms));
                self.slot(slot, SlotInput::Request { ticket: id, from, term, request });
            }
            PeerFrame::Response { voters, result, .. } => {
                self.ahead.hear(self.now.mono_ms, &from.node, voters);
                self.answered(result);
            }
            PeerFrame::Push { slot, term, voters, push } => {
                if self.leads(slot, term) {
                    self.ahead.hear(self.now.mono_ms, &from.node, voters);
                    self.pushed(slot, term, push);
                }
            }
            PeerFrame::Map(map) => self.hint(HintInput::Sent { by: from.node, map }),
            PeerFrame::Lease(message) => self.lend(LeaseInput::Message { from, message }),
            PeerFrame::MapRequests(requests) => self.govern(StewardInput::Requested { from, requests }),
            PeerFrame::Memory(level) => {
                for slot in 0..SLOTS {
                    self.slot(slot, SlotInput::Memory { of: from.clone(), level });
                }
            }
            PeerFrame::FetchMap { .. }
            | PeerFrame::NodeRequest { .. }
            | PeerFrame::NodeResponse { .. }
            | PeerFrame::Probe { .. } => {}
        }
    }

    fn leads(&self, slot: SlotId, term: u64) -> bool {
        self.map.leads(slot, term, &self.peer) == Leads::Yes
    }

    fn pass(&mut self, ms: u64) {
        self.now = Now { mono_ms: self.now.mono_ms + ms, wall_ms: self.now.wall_ms + ms };
        for slot in 0..SLOTS {
            self.slot(slot, SlotInput::Tick);
        }
        self.follow(following::Input::Tick);
        self.hint(HintInput::Wake);
        self.govern(StewardInput::Wake);
        self.lend(LeaseInput::Tick);
    }

    fn slot(&mut self, slot: SlotId, input: SlotInput) {
        let Some(core) = self.cores.get_mut(usize::from(slot)) else { return };
        let mut inputs = VecDeque::from([input]);
        // What a slot wants done is done at once, a bounded number of times: a slot may go on asking.
        for _ in 0..20 {
            let mut out = Vec::new();
            let Some(input) = inputs.pop_front() else { break };
            core.handle(self.now, input, &mut out);
            core.flush(self.now, &mut out);
            for output in out {
                match output {
                    SlotOutput::Fence { gateway, since_ms } => {
                        self.lease.handle(self.now.mono_ms, LeaseInput::Wanted { gateway, since_ms }, &mut self.lent);
                    }
                    output => inputs.extend(perform(slot, output)),
                }
            }
        }
    }

    fn pushed(&mut self, slot: SlotId, term: u64, push: Push) {
        match push {
            Push::Group(group, GroupPush::Deliver { epoch, messages }) => {
                for message in &messages {
                    let _ = plain::encode(&Event::Message { group: group.clone(), epoch, message: message.clone() });
                }
                self.follow(following::Input::Deliver { slot, term, group, epoch, messages });
            }
            Push::Group(group, GroupPush::Member { event, member, present }) => {
                let _ = plain::encode(&Event::Member { group: group.clone(), event, member: member.clone() });
                let _ = plain::encode(&Event::Presence { group: group.clone(), present });
                self.follow(following::Input::Member { slot, group, event, member, present });
            }
            Push::Group(group, GroupPush::Ephemeral { messages }) => {
                for message in &messages {
                    let _ = plain::encode(&Event::Ephemeral { group: group.clone(), message: message.clone() });
                }
                self.follow(following::Input::Ephemeral { slot, group, messages });
            }
            Push::Session(..) => {}
        }
    }

    fn answered(&mut self, result: Result<SlotAnswer, SlotError>) {
        let Some(asked) = self.asked.pop_front() else { return };
        let answer = match asked {
            Ask::Register { slot, asked, .. } => Answer::Registered { slot, asked, result: read(result) },
            Ask::Unregister { slot, asked, .. } => Answer::Unregistered { slot, asked },
            Ask::Join { asked, subscriber, .. } => {
                Answer::Joined { asked, subscriber, result: read::<JoinPoint>(result) }
            }
            Ask::Leave { asked, subscriber, request, tries } => {
                Answer::Left { asked, subscriber, request, tries, result: read(result) }
            }
        };
        self.follow(following::Input::Answered(answer));
    }

    fn follow(&mut self, input: following::Input) {
        let mut out = Vec::new();
        self.following.handle(self.now.mono_ms, input, &mut out);
        self.following.flush(&mut out);
        self.asked.extend(out.into_iter().filter_map(|output| match output {
            following::Output::Ask(ask) => Some(ask),
            _ => None,
        }));
    }

    fn hint(&mut self, input: HintInput) {
        let mut out = Vec::new();
        self.hints.handle(self.now.mono_ms, input, &mut out);
        for output in out {
            if let HintOutput::Take(map) = output {
                assert!(map.may_follow(&self.map), "a map is taken that cannot follow the one that is known");
                self.take_map(map);
            }
        }
    }

    fn lend(&mut self, input: LeaseInput) {
        let mut out = std::mem::take(&mut self.lent);
        self.lease.handle(self.now.mono_ms, input, &mut out);
        for output in out {
            match output {
                LeaseOutput::Send { message, .. } => comes_back(&PeerFrame::Lease(message)),
                LeaseOutput::May(permission) => {
                    let _ = permission.allows(permission.episode, self.now.mono_ms, &self.ahead);
                }
                LeaseOutput::Gone { gateway, since_ms } => {
                    for slot in 0..SLOTS {
                        self.slot(slot, SlotInput::Gone { gateway: gateway.clone(), since_ms });
                    }
                }
            }
        }
    }

    fn govern(&mut self, input: StewardInput) {
        let mut out = Vec::new();
        self.steward.handle(self.now, input, &mut out);
        for output in out {
            if let StewardOutput::ChangeMap { next, .. } = output {
                assert!(next.may_follow(&self.map), "a map is proposed that cannot follow the one that is known");
            }
        }
    }
}

/// A router gives on what is of the kind that was asked for.
fn read<T: request::Answer>(result: Result<SlotAnswer, SlotError>) -> Result<T, SlotError> {
    result.and_then(|answer| T::read(answer).map_err(|_| SlotError::Unknown))
}

/// Does what a slot wants done. What it says to others can be said; what it keeps can be kept.
fn perform(slot: SlotId, output: SlotOutput) -> Option<SlotInput> {
    let frame = match output {
        SlotOutput::Send { message, .. } => PeerFrame::Replication { slot, message },
        SlotOutput::Answer { ticket, result } => PeerFrame::Response { id: ticket, voters: 0, result },
        SlotOutput::Push { term, push, .. } => PeerFrame::Push { slot, term, voters: 0, push },
        SlotOutput::Ask(request) => PeerFrame::MapRequests(vec![request]),
        SlotOutput::Load { session } => {
            let known = session.0.as_u128().is_multiple_of(2);
            return Some(SlotInput::Loaded {
                session,
                result: Ok(known.then(|| SessionRecord { id: session, ..record() })),
            });
        }
        SlotOutput::Save { record, index, .. } => {
            store::decoders::comes_back(&record, false);
            return Some(SlotInput::Saved { session: record.id, index, result: Ok(()) });
        }
        SlotOutput::Depart { session, client, groups } => {
            return Some(SlotInput::Departed { session, client, groups: groups.into_iter().collect() });
        }
        // The caller has taken fences out.
        SlotOutput::Fence { .. } | SlotOutput::Shed { .. } => return None,
    };
    comes_back(&frame);
    None
}

/// What one node says is what another hears.
fn comes_back(frame: &PeerFrame) {
    let mut bytes = Vec::new();
    encode_into(frame, &mut bytes).expect("what is decoded or said has a form");
    match decode(&bytes) {
        Ok(again) => assert_eq!(again, *frame, "a frame comes back as another one"),
        Err(error) => panic!("what a node says is not heard: {error}: {frame:?}"),
    }
}

/// A byte that says how the bytes are cut, then a lane.
pub(super) fn lane(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let frames = crate::peer::decoders::frames(bytes, usize::from(*cut).max(1) * 16);
    let said: usize = frames.iter().map(|frame| frame.len() + 4).sum();
    assert!(said <= bytes.len(), "frames of {said} bytes were cut out of {}", bytes.len());
    let mut world = None;
    for frame in frames.iter().take(200) {
        let Ok(frame) = decode(frame) else { continue };
        comes_back(&frame);
        let world = world.get_or_insert_with(World::new);
        world.hear(frame);
        world.pass(50);
    }
    if let Some(mut world) = world {
        world.pass(2_000);
        world.pass(10_000);
    }
}

/// See [`lane`].
pub(super) fn lane_seeds() -> Vec<Vec<u8>> {
    super::samples::lanes(&map()).into_iter().map(|lane| [&[3][..], &lane].concat()).collect()
}

/// A map that was read out of the store reaches the cores.
pub(super) fn map_row(bytes: &[u8]) {
    let Some(map) = store::decoders::map_row(bytes) else { return };
    let mut world = World::new();
    let _ = map.may_follow(&world.map);
    // Whatever the store holds is the map, where it is newer and of as many slots.
    if map.version > world.map.version && map.slots.len() == usize::from(SLOTS) {
        world.take_map(Arc::new(map));
        world.pass(50);
        world.pass(2_000);
    }
}
