//! What a run is like. Each seed switches every kind of fault on or off and sets its rate, because some bugs show only
//! where other faults do not get in the way (swarm testing: Groce et al., 2012).

use roost_logic::{
    following::FollowingSettings,
    primary::SlotSettings,
    replication::ReplicaLimits,
    session::{Room, WhenFull},
};

use super::{asks::GIVE_UP_MS, faults::Fault, random::Random};

/// One run's circumstances. Times in milliseconds, chances in a thousand; a mean interval of `None` is never.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Profile {
    /// How many nodes.
    pub nodes: usize,
    /// How many slots.
    pub slots: u16,
    /// How many groups.
    pub groups: usize,
    /// How many copies of each slot the planner aims for.
    pub copies: u8,
    /// How long there are faults.
    pub fault_ms: u64,
    /// All nodes but the first start within this time: those that come late join a cluster at work.
    pub start_ms: u64,
    /// Between publishes of one publisher.
    pub publish_ms: u64,
    /// How many publishers.
    pub publishers: usize,
    /// How many listeners.
    pub listeners: usize,
    /// How many more look in now and then in a group of their own, to which nobody publishes.
    pub visitors: usize,
    /// A listener goes elsewhere.
    pub wander: u64,
    /// How many sessions.
    pub sessions: usize,
    /// And of 1,000 of them, how many are ephemeral.
    pub ephemeral: u64,
    /// How many publish what nobody keeps.
    pub cursors: usize,
    /// Messages that a group keeps.
    pub retention: u32,
    /// The mean delay of a message.
    pub delay_ms: u64,
    /// A message is slow.
    pub slow: u64,
    /// Between rounds of gossip, of which each may bring a change of the map.
    pub round_ms: u64,
    /// Who is not heard of for this time is believed dead.
    pub silent_ms: u64,
    /// A connection that brings nothing for this time is given up.
    pub keep_alive_ms: u64,
    /// Arbitrary loss, repetition and reordering of replication messages, which the product's links do not do.
    pub harsh: Option<Harsh>,
    /// A node crashes.
    pub crash: Option<u64>,
    /// Several crash at once.
    pub massacre: Option<u64>,
    /// A node stops handling for a while.
    pub pause: Option<u64>,
    /// Two or more nodes cannot hear each other.
    pub partition: Option<u64>,
    /// A link is reset.
    pub reset: Option<u64>,
    /// A living node is believed dead.
    pub suspect: Option<u64>,
    /// A node drains for a while.
    pub drain: Option<u64>,
    /// A node leaves, as planned.
    pub leave: Option<u64>,
    /// A member lies by gossip about who was started.
    pub lie: Option<u64>,
    /// The steward dies while its next change of the map is under way.
    pub steward: Option<u64>,
    /// All copies of a slot are lost at once.
    pub bereave: Option<u64>,
    /// A node's wall clock is set, forwards or back.
    pub set_clock: Option<u64>,
    /// The store does not answer for a while.
    pub outage: Option<u64>,
    /// A conditional write's outcome is not learnt.
    pub unknown: u64,
    /// A write or read of a session fails, done or not.
    pub store_fails: u64,
    /// The store takes seconds for a request.
    pub store_slow: u64,
    /// A node acts as the steward although it is not its turn.
    pub usurp: u64,
    /// A confirmed map is not sent to a node.
    pub map_lost: u64,
    /// Inputs are handled several before a flush.
    pub batches: u64,
    /// How far the wall clocks are apart.
    pub skew_ms: u64,
    /// One node's clock is wrong by this number of days.
    pub days_off: u64,
    /// What a node may hold, in bytes.
    pub memory: Option<u64>,
    /// The first node may hold only one part in this number of that.
    pub memory_of_first: u64,
    /// What a message's data takes at most.
    pub message_bytes: u64,
    /// Of the slots.
    pub slot: SlotSettings,
    /// Of the copies.
    pub limits: ReplicaLimits,
    /// Of what gateways follow.
    pub following: FollowingSettings,
}

/// See [`Profile::harsh`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Harsh {
    /// Lost.
    pub lose: u64,
    /// Sent twice.
    pub repeat: u64,
    /// The second time later by up to this.
    pub repeat_ms: u64,
    /// Overtaken by others, by up to this number of milliseconds.
    pub reorder_ms: u64,
}

impl Profile {
    /// As the seed has it.
    pub(super) fn of(random: &mut Random) -> Self {
        let mut some = |permille: u64, low: u64, high: u64| {
            let interval = random.between(low, high);
            random.permille(permille).then_some(interval)
        };
        let crash = some(600, 1_500, 8_000);
        let massacre = some(150, 5_000, 20_000);
        let pause = some(400, 1_000, 6_000);
        let partition = some(500, 1_500, 8_000);
        let reset = some(500, 200, 3_000);
        let suspect = some(500, 500, 5_000);
        let drain = some(300, 3_000, 10_000);
        let outage = some(200, 3_000, 12_000);
        let bereave = some(150, 3_000, 15_000);
        let steward = some(250, 2_000, 8_000);
        let set_clock = some(300, 1_000, 10_000);
        let harsh = random.permille(400).then(|| Harsh {
            lose: random.below(400),
            repeat: random.below(400),
            repeat_ms: random.between(10, 3_000),
            reorder_ms: random.between(1, 300),
        });
        let often = |random: &mut Random, permille: u64, most: u64| {
            let value = random.between(1, most);
            if random.permille(permille) { value } else { 0 }
        };
        let mut profile = Self {
            nodes: if random.permille(100) { 7 } else { random.between(3, 5) as usize },
            slots: random.between(1, 3) as u16,
            groups: random.between(1, 4) as usize,
            copies: if random.permille(300) { 3 } else { 2 },
            fault_ms: random.between(5_000, 20_000),
            start_ms: if random.permille(300) { random.between(3_000, 15_000) } else { 1_500 },
            publish_ms: if random.permille(300) { random.between(1, 5) } else { random.between(20, 300) },
            publishers: random.between(1, 4) as usize,
            listeners: random.between(1, 8) as usize,
            wander: often(random, 500, 300),
            visitors: 0,
            sessions: random.below(4) as usize,
            ephemeral: 0,
            cursors: 0,
            retention: if random.permille(300) { random.between(3, 20) as u32 } else { 1_000 },
            delay_ms: if random.permille(200) { random.between(10, 50) } else { random.between(1, 10) },
            round_ms: if random.permille(500) { random.between(20, 200) } else { 200 },
            silent_ms: if random.permille(500) { random.between(300, 1_000) } else { 1_000 },
            keep_alive_ms: if random.permille(500) { random.between(300, 3_000) } else { 1_000 },
            slow: often(random, 500, 50),
            harsh,
            crash,
            massacre,
            pause,
            partition,
            reset,
            suspect,
            drain,
            leave: None,
            lie: None,
            steward,
            bereave,
            set_clock,
            outage,
            unknown: often(random, 500, 300),
            store_fails: often(random, 400, 200),
            store_slow: often(random, 300, 300),
            usurp: often(random, 500, 300),
            map_lost: often(random, 600, 800),
            batches: often(random, 600, 900),
            skew_ms: often(random, 500, 10_000),
            days_off: 0,
            memory: None,
            memory_of_first: 1,
            message_bytes: 0,
            slot: SlotSettings {
                replica_timeout_ms: if random.permille(300) { random.between(200, 1_000) } else { 1_000 },
                resume_grace_ms: random.between(500, 3_000),
                memory_ttl_ms: random.between(1_000, 6_000),
                unclaimed_ms: 0,
                queue: if random.permille(200) { 4 } else { 4_096 },
                group_idle_ms: 0,
                group_idle_tight_ms: 0,
                groups_per_session: 16,
                room: Room {
                    clients_max: random.between(1, 4) as u16,
                    when_full: if random.permille(300) { WhenFull::Refuse } else { WhenFull::Displace },
                },
            },
            limits: if random.permille(500) {
                ReplicaLimits {
                    append_entries: random.between(1, 5) as usize,
                    append_bytes: 1 << 20,
                    nearly_there: random.below(8),
                    retained_entries: random.between(10, 200) as usize,
                    ..ReplicaLimits::default()
                }
            } else {
                ReplicaLimits::default()
            },
            following: FollowingSettings::default(),
        };
        profile.draw_later(random);
        profile
    }

    /// What is drawn after all else, so that seeds from before it was there are what they were.
    fn draw_later(&mut self, random: &mut Random) {
        self.slot.group_idle_ms = random.between(500, 8_000);
        self.following.noticed_after_ms = self.keep_alive_ms;
        self.following.feed.answer_ms = GIVE_UP_MS * 2 + 2_000;
        self.following.feed.join_ms = GIVE_UP_MS + 3_000;
        self.visitors = if random.permille(300) { random.between(1, 3) as usize } else { 0 };
        if random.permille(200) {
            self.following.in_flight = random.between(1, 3) as usize;
            self.following.groups_at_once = random.between(1, 2) as usize;
        }
        let leave = random.between(3_000, 12_000);
        self.leave = random.permille(300).then_some(leave);
        let lie = random.between(1_000, 8_000);
        self.lie = random.permille(400).then_some(lie);
        self.days_off = if random.permille(200) { random.between(1, 5) } else { 0 };
        self.slot.group_idle_tight_ms = self.slot.group_idle_ms;
        self.draw_memory(random);
        let (bytes, under_way) = (random.between(1, 2_000), random.between(1, 4));
        if random.permille(800) {
            (self.limits.piece_bytes, self.limits.pieces_under_way) = (bytes as usize, under_way as usize);
        }
        let ephemeral = random.between(1, 1_000);
        self.ephemeral = if random.permille(400) { ephemeral } else { 0 };
        self.slot.unclaimed_ms = random.between(3_000, 20_000);
        let cursors = random.between(1, 3);
        self.cursors = if random.permille(300) { cursors as usize } else { 0 };
    }
}

impl Profile {
    /// Some runs have so little memory that what is published does not fit.
    fn draw_memory(&mut self, random: &mut Random) {
        let (least, part) = (random.between(100_000, 200_000), random.between(1, 4));
        let (message_bytes, pause_ms) = (random.between(1_000, 4_000), random.between(100, 200));
        if random.permille(200) {
            self.memory = Some(least * part);
            self.memory_of_first = part;
            self.message_bytes = message_bytes;
            // The keys of publishes stay for their time: those of more publishes would leave no room.
            self.publish_ms = self.publish_ms.max(pause_ms);
            self.slot.group_idle_tight_ms = self.slot.group_idle_ms / 2;
        }
    }

    /// What a node may hold.
    pub(super) fn memory_of(&self, node: usize) -> Option<u64> {
        self.memory.map(|bytes| if node == 0 { bytes / self.memory_of_first } else { bytes })
    }

    /// Between two faults of this kind.
    pub(super) fn mean_ms(&self, fault: Fault) -> Option<u64> {
        match fault {
            Fault::Crash => self.crash,
            Fault::Massacre => self.massacre,
            Fault::Pause => self.pause,
            Fault::Partition => self.partition,
            Fault::Reset => self.reset,
            Fault::Suspect => self.suspect,
            Fault::Drain => self.drain,
            Fault::Steward => self.steward,
            Fault::Outage => self.outage,
            Fault::Bereave => self.bereave,
            Fault::Clock => self.set_clock,
            Fault::Leave => self.leave,
            Fault::Lie => self.lie,
        }
    }
}

/// A setting that a failing run may do without, or with less of.
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// So little is least.
    pub(super) least: u64,
    pub(super) get: fn(&Profile) -> u64,
    pub(super) set: fn(&mut Profile, u64),
}

macro_rules! setting {
    ($name:ident, $least:expr) => {
        Setting {
            name: stringify!($name),
            least: $least,
            get: |profile| profile.$name as u64,
            set: |profile, value| profile.$name = value as _,
        }
    };
    (harsh $name:ident) => {
        Setting {
            name: stringify!($name),
            least: 0,
            get: |profile| profile.harsh.map_or(0, |harsh| harsh.$name),
            set: |profile, value| {
                if let Some(harsh) = &mut profile.harsh {
                    harsh.$name = value;
                }
            },
        }
    };
}

/// Those that leave out most come first.
pub(super) const SETTINGS: &[Setting] = &[
    setting!(sessions, 0),
    setting!(ephemeral, 0),
    setting!(cursors, 0),
    setting!(listeners, 0),
    setting!(visitors, 0),
    setting!(publishers, 0),
    setting!(groups, 1),
    setting!(slots, 1),
    setting!(nodes, 2),
    setting!(copies, 2),
    setting!(wander, 0),
    setting!(harsh lose),
    setting!(harsh repeat),
    setting!(harsh reorder_ms),
    setting!(unknown, 0),
    setting!(store_fails, 0),
    setting!(store_slow, 0),
    setting!(usurp, 0),
    setting!(map_lost, 0),
    setting!(batches, 0),
    setting!(skew_ms, 0),
    setting!(days_off, 0),
    setting!(memory_of_first, 1),
    setting!(slow, 0),
    setting!(start_ms, 1),
    setting!(delay_ms, 1),
    setting!(fault_ms, 1),
];
