//! The world of a run: one queue of events in virtual time, the nodes, and what is between them. Everything that happens
//! comes out of the queue, and whatever is random out of the seed's streams, so a seed is a run.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use roost_logic::{
    Now,
    clocks::Voice,
    id::{AttachmentNumber, ClientId, ClientKey, GroupName, Member, NodeId, SessionId, SlotId},
    primary::SlotInput,
    request::ClientView,
};

use super::{
    checks::Ledger,
    clients::{Publisher, SessionClient},
    faults::Fired,
    gateway::Listener,
    mouths::Mouth,
    network::{Frame, Link},
    node::{Input, Process},
    random::Random,
    schedule::{Planned, Schedule},
    seen::ClientLog,
    settings::Profile,
    store::{Operation, Store},
};

/// The wall clock at the begin of a run.
const WALL_MS: u64 = 1_700_000_000_000;
pub(super) const DAY_MS: u64 = 86_400_000;
/// After the faults, everything has to be well again within this time. To copy a slot takes most of it where a run has pieces of a
/// few bytes, one under way at a time.
const REST_MS: u64 = 120_000;
/// What a gateway has to tell a slot of its connections is told within this time after the last fault. The slot lets go by
/// itself of what is not renewed, but later.
const GOODBYE_MS: u64 = 15_000;
const LOOK_MS: u64 = 250;
/// Shorter than the feeds' interval of renewal.
const FINALE_MS: u64 = 2_000;
/// No run comes near to this number.
const EVENTS_MAX: u64 = 3_000_000;

/// What happens next.
#[derive(Debug)]
pub(super) enum Event {
    /// A frame reaches its receiver's machine. Frames without a connection are those that the world treats harshly.
    Arrive {
        from: usize,
        to: usize,
        sender: Member,
        receiver: Member,
        connection: Option<u64>,
        frame: Frame,
    },
    /// Something reaches a process; lost if that start of the node is over.
    Input {
        node: usize,
        generation: u64,
        input: Input,
    },
    /// A link is dialled again.
    Dial {
        from: usize,
        to: usize,
        connection: u64,
    },
    /// Whoever does not answer for this time is cut off.
    KeepAlive {
        from: usize,
        to: usize,
        connection: u64,
    },
    /// The store carries something out.
    Store {
        node: usize,
        generation: u64,
        operation: Operation,
    },
    /// It is time for the fault of this number.
    Fault(usize),
    /// A doomed steward crashes.
    Die(usize, Random),
    Start(usize),
    Resume(usize),
    Heal(Vec<(usize, usize)>),
    Undrain(usize),
    /// A start of a node that is to leave does so, once it holds no slots; at the latest then.
    Leave {
        node: usize,
        generation: u64,
        until_ms: u64,
    },
    /// It has left.
    Gone {
        node: usize,
        generation: u64,
    },
    StoreUp,
    Publisher {
        publisher: usize,
        attempt: u64,
    },
    Session(usize),
    Listener(usize),
    Ephemeral(usize),
    /// Look whether everything is at rest.
    Look,
}

/// A machine that a process runs on now and then.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) process: Option<Process>,
    pub(super) paused: bool,
    /// What has reached it while it was paused.
    pub(super) inbox: VecDeque<Input>,
    pub(super) draining: bool,
    /// It leaves, and has closed its links.
    pub(super) closed: bool,
    /// Until then something kept it from being heard.
    pub(super) disturbed_ms: u64,
    pub(super) skew_ms: u64,
}

pub(super) struct World {
    pub(super) now: u64,
    events: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    /// All chance but that of faults.
    pub(super) random: Random,
    pub(super) profile: Profile,
    pub(super) faults: BTreeMap<usize, Planned>,
    pub(super) fired: Vec<Fired>,
    /// The next who proposes a change of the map dies.
    pub(super) doom: Option<Random>,
    pub(super) groups: Vec<(GroupName, SlotId)>,
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Vec<Link>>,
    pub(super) store: Store,
    pub(super) publishers: Vec<Publisher>,
    pub(super) listeners: Vec<Listener>,
    pub(super) sessions: Vec<SessionClient>,
    /// Those that were over, and whose clients have got others.
    pub(super) past_sessions: Vec<SessionId>,
    /// When each connection of a session was opened, and since when its client is gone.
    pub(super) opened_ms: BTreeMap<u64, u64>,
    /// The number of the token that each connection shows.
    pub(super) shown: BTreeMap<u64, u32>,
    /// The revision of its session's record that each attachment was last shown by.
    pub(super) seen_by: BTreeMap<(SessionId, ClientKey, AttachmentNumber), u64>,
    /// Whose each connection is.
    pub(super) clients: BTreeMap<u64, ClientId>,
    /// What each connection was told of its session last.
    pub(super) views: BTreeMap<u64, Arc<ClientView>>,
    /// What is under way for a connection and a group, and whether it is to be looked at once more afterwards.
    pub(super) joining: BTreeMap<(u64, GroupName), bool>,
    pub(super) gone: BTreeMap<u64, u64>,
    pub(super) mouths: BTreeMap<u64, Mouth>,
    pub(super) next_number: u64,
    pub(super) ledger: Ledger,
    pub(super) seen: ClientLog,
    /// The faults are over.
    pub(super) resting: bool,
    finale: Option<u64>,
    /// The run is given up after this number.
    pub(super) events_max: u64,
    trace_hash: u64,
    trace: Option<String>,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The same for the same seed, whatever else changes only if the run does.
    pub trace_hash: u64,
    /// What was exercised, and how often.
    pub counts: BTreeMap<&'static str, u64>,
    /// How many events there were.
    pub events: u64,
    /// The first promise that was broken.
    pub violation: Option<String>,
    /// That was a panic of a core.
    pub panicked: bool,
    /// The faults that happened until then.
    pub faults: Vec<Fired>,
    /// Every event in words, where asked for.
    pub trace: Option<String>,
}

impl World {
    pub(super) fn new(schedule: &Schedule, trace: bool) -> Self {
        let (mut random, profile) = (schedule.random(), schedule.profile());
        let nodes = (0..profile.nodes)
            .map(|number| Node {
                id: NodeId::parse(&format!("n{}", number + 1)).expect("a node name"),
                process: None,
                paused: false,
                inbox: VecDeque::new(),
                draining: false,
                closed: false,
                disturbed_ms: 0,
                skew_ms: random.below(profile.skew_ms + 1) + if number == 0 { profile.days_off * DAY_MS } else { 0 },
            })
            .collect();
        let links = (0..profile.nodes).map(|_| (0..profile.nodes).map(|_| Link::default()).collect()).collect();
        let mut world = Self {
            now: 0,
            events: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            groups: Vec::new(),
            nodes,
            links,
            store: Store::default(),
            publishers: Vec::new(),
            listeners: Vec::new(),
            sessions: Vec::new(),
            past_sessions: Vec::new(),
            opened_ms: BTreeMap::new(),
            shown: BTreeMap::new(),
            seen_by: BTreeMap::new(),
            clients: BTreeMap::new(),
            views: BTreeMap::new(),
            joining: BTreeMap::new(),
            gone: BTreeMap::new(),
            mouths: BTreeMap::new(),
            next_number: 1,
            ledger: Ledger::new(&profile),
            seen: ClientLog::new(),
            resting: false,
            finale: None,
            events_max: u64::MAX,
            trace_hash: 0,
            trace: trace.then(|| format!("{profile:#?}\n")),
            random,
            profile,
            faults: schedule.planned(),
            fired: Vec::new(),
            doom: None,
        };
        world.begin();
        world
    }

    /// One more group.
    pub(super) fn add_group(&mut self) {
        let name = GroupName::parse(&format!("g{}", self.groups.len())).expect("a group name");
        let slot = name.slot(self.profile.slots);
        self.groups.push((name, slot));
    }

    fn begin(&mut self) {
        for _ in 0..self.profile.groups {
            self.add_group();
        }
        for node in 0..self.nodes.len() {
            let after = if node == 0 { 0 } else { self.random.below(self.profile.start_ms) };
            self.after(after, Event::Start(node));
        }
        self.create_clients();
        self.create_listeners();
        self.create_ephemeral();
        for (number, at_ms) in self.faults.iter().map(|(number, planned)| (*number, planned.at_ms)).collect::<Vec<_>>()
        {
            self.after(at_ms, Event::Fault(number));
        }
    }

    /// To the end, or to the first violation.
    pub(super) fn run(mut self) -> Outcome {
        let panic = catch_unwind(AssertUnwindSafe(|| self.go_on())).err();
        let panicked = panic.is_some();
        if let Some(panic) = panic {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            self.ledger.fail(format!("panic: {text}"));
        }
        self.trace_hash ^= self.ledger.digest();
        let counts = self.ledger.counts();
        let violation = self.ledger.violation.take().map(|what| format!("at {} ms: {what}", self.now));
        Outcome {
            trace_hash: self.trace_hash,
            counts,
            events: self.events,
            violation,
            panicked,
            faults: self.fired,
            trace: self.trace,
        }
    }

    fn go_on(&mut self) {
        let rest_at = self.profile.fault_ms;
        while let Some(((at, sequence), event)) = self.queue.pop_first() {
            if !self.resting && at >= rest_at {
                self.now = rest_at;
                self.rest();
            }
            self.now = at;
            self.events += 1;
            self.note(sequence, &event);
            if self.events > self.events_max {
                break;
            }
            if sequence > EVENTS_MAX {
                self.ledger.fail(format!("more than {EVENTS_MAX} events: someone repeats something without end"));
                break;
            }
            if matches!(event, Event::Look) {
                if self.look(rest_at + REST_MS) {
                    self.check_seen();
                    break;
                }
            } else {
                self.handle(event);
            }
            if self.ledger.violation.is_some() {
                break;
            }
        }
    }

    /// Whether the run is over. When all is at rest, one more message goes to each group: it has to be there before any
    /// renewal could have brought to light that somebody was deaf.
    fn look(&mut self, deadline: u64) -> bool {
        self.after(LOOK_MS, Event::Look);
        match self.finale {
            None if self.now >= deadline - REST_MS + GOODBYE_MS && self.unattended().is_some() => {
                let what = self.unattended().unwrap_or_default();
                self.ledger.fail(format!("{GOODBYE_MS} ms after the last fault: {what}"));
            }
            None => match self.unrest() {
                None => {
                    self.finale = Some(self.now + FINALE_MS);
                    self.publish_last();
                }
                Some(reason) if self.now >= deadline => {
                    self.ledger.fail(format!("not at rest {REST_MS} ms after the last fault: {reason}"));
                }
                Some(_) => {}
            },
            Some(until) => match self.undelivered() {
                None => return true,
                // It was not at rest yet: the map has changed since, and who does not know that yet cannot serve by it.
                Some(_) if self.unknown_map().is_some() => self.finale = None,
                Some(reason) if self.now >= until => {
                    self.ledger.fail(format!("{FINALE_MS} ms after the last publish: {reason}"));
                }
                Some(_) => {}
            },
        }
        false
    }

    /// A slot that lost its memory does not know whom it has displaced. In one that lost it twice, a log may have come and gone while nobody listened: there nobody has to have
    /// heard of all that was acknowledged.
    fn check_seen(&mut self) {
        let lineage = |slot: SlotId| self.store.map.as_ref().and_then(|map| map.slot(slot)).map(|slot| slot.lineage);
        let never_lost = |slot: SlotId| lineage(slot).is_some_and(|lineage| lineage <= 1);
        let lost_once = |slot: SlotId| lineage(slot).is_some_and(|lineage| lineage <= 2);
        let listeners = self.listeners.iter().enumerate();
        let settled = listeners.filter(|(_, listener)| listener.live && lost_once(self.groups[listener.group].1));
        let sessions = self.sessions.iter().map(|client| client.id).chain(self.past_sessions.iter().copied());
        let forgotten: Vec<_> = sessions.filter(|id| !never_lost(id.slot(self.profile.slots))).collect();
        let settled = settled.map(|(number, _)| number);
        if let Some(what) = self.seen.violation(settled, &forgotten) {
            self.ledger.fail(what);
        }
    }

    fn note(&mut self, sequence: u64, event: &Event) {
        let mut mixed = self.trace_hash ^ self.now.rotate_left(32) ^ sequence;
        self.trace_hash = Random::new(std::mem::take(&mut mixed)).number();
        if let Some(trace) = &mut self.trace {
            // Writing to a string cannot fail.
            let _ = writeln!(trace, "{:>6} {event:?}", self.now);
        }
    }

    /// Something worth reading in a trace.
    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{:>6}     {}", self.now, what());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, sender, receiver, connection, frame } => {
                self.arrive((from, to), sender, receiver, connection, frame);
            }
            Event::Input { node, generation, input } => self.give(node, generation, input),
            Event::Dial { from, to, connection } => self.dial(from, to, connection),
            Event::KeepAlive { from, to, connection } => self.keep_alive(from, to, connection),
            Event::Store { node, generation, operation } => self.store_operation(node, generation, operation),
            Event::Fault(number) => self.fault(number),
            Event::Die(node, random) => self.die(node, random),
            Event::Start(node) => self.start(node),
            Event::Resume(node) => self.resume(node),
            Event::Heal(links) => self.heal(&links),
            Event::Undrain(node) => self.nodes[node].draining = false,
            Event::Leave { node, generation, until_ms } => self.leave_when_done(node, generation, until_ms),
            Event::Gone { node, generation } => self.gone(node, generation),
            Event::StoreUp => self.store.down = false,
            Event::Publisher { publisher, attempt } => self.publisher(publisher, attempt),
            Event::Session(session) => self.session_client(session),
            Event::Listener(listener) => self.listener(listener),
            Event::Ephemeral(number) => self.send_ephemeral(number),
            Event::Look => {}
        }
    }

    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay_ms, self.sequence), event);
    }

    /// To a process by way of its inbox.
    pub(super) fn input_after(&mut self, delay_ms: u64, node: usize, input: Input) {
        if let Some(process) = &self.nodes[node].process {
            let generation = process.member.generation;
            self.after(delay_ms, Event::Input { node, generation, input });
        }
    }

    /// Hands something to a process, or keeps it until it handles things again.
    pub(super) fn give(&mut self, node: usize, generation: u64, input: Input) {
        let there = &mut self.nodes[node];
        if there.process.as_ref().is_none_or(|process| process.member.generation != generation) {
            return;
        }
        if there.paused {
            there.inbox.push_back(input);
        } else {
            self.input(node, input);
        }
    }

    /// What a process's clocks say.
    pub(super) fn clock(&self, node: usize) -> Now {
        let there = &self.nodes[node];
        let started_ms = there.process.as_ref().map_or(0, |process| process.started_ms);
        let correction_ms = there.process.as_ref().map_or(0, |process| process.clocks.verdict().correction_ms);
        let machine_ms = WALL_MS + self.now + there.skew_ms;
        Now { mono_ms: self.now - started_ms, wall_ms: machine_ms.saturating_add_signed(correction_ms) }
    }

    /// A process hears the clocks of the store and of the others, as the product does with its pings and probes.
    pub(super) fn compare_clocks(&mut self, node: usize) {
        let machine_ms = WALL_MS + self.now + self.nodes[node].skew_ms;
        let now = Now { wall_ms: machine_ms, ..self.clock(node) };
        let mut heard = Vec::new();
        if !self.store.down {
            heard.push((Voice::Store, WALL_MS + self.now));
        }
        for (other, there) in self.nodes.iter().enumerate() {
            let cut = self.links[node][other].blocked || self.links[other][node].blocked;
            if other != node && there.process.is_some() && !there.paused && !cut {
                heard.push((Voice::Node(there.id.clone()), self.clock(other).wall_ms));
            }
        }
        let clocks = &mut self.process(node).clocks;
        let before = clocks.verdict().clone();
        for (voice, theirs_ms) in heard {
            // What was set is followed at once here: there is nothing to make up for.
            clocks.hear((now, machine_ms), voice, theirs_ms, now.mono_ms);
        }
        let after = clocks.verdict().clone();
        self.ledger.count_if(before.correction_ms == 0 && after.correction_ms != 0, "clocks corrected by the store's");
        if before.trusted != after.trusted {
            self.all_slots(node, |_| SlotInput::Clock { trusted: after.trusted });
        }
    }

    /// The next number that nobody else has.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn node_number(&self, member: &Member) -> usize {
        self.nodes.iter().position(|node| node.id == member.node).expect("a node of this world")
    }

    /// The process of this very start, if it is running (paused perhaps).
    pub(super) fn running(&self, member: &Member) -> Option<usize> {
        let node = self.node_number(member);
        self.nodes[node].process.as_ref().is_some_and(|process| process.member == *member).then_some(node)
    }

    pub(super) fn process(&mut self, node: usize) -> &mut Process {
        self.nodes[node].process.as_mut().expect("only called for a running process")
    }

    /// Faults are over: everyone runs, everything is connected.
    fn rest(&mut self) {
        self.resting = true;
        self.say(|| "the faults are over".to_owned());
        self.profile.harsh = None;
        self.profile.unknown = 0;
        self.profile.store_fails = 0;
        self.profile.usurp = 0;
        self.profile.map_lost = 0;
        self.store.down = false;
        let all = 0..self.nodes.len();
        let links: Vec<_> = all.clone().flat_map(|from| all.clone().map(move |to| (from, to))).collect();
        self.heal(&links);
        for node in all {
            self.nodes[node].draining = false;
            if self.nodes[node].closed {
                self.stop(node);
            }
            if self.nodes[node].process.is_none() {
                self.start(node);
            }
            self.resume(node);
            self.trust_all(node);
        }
        self.after(LOOK_MS, Event::Look);
    }
}

/// A map as the processes pass it around.
pub(super) type SharedMap = Arc<roost_logic::map::ClusterMap>;
