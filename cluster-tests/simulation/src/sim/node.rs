//! A process: the cores of all slots, and the shell around them as the product has it. What it believes of the others
//! comes late and may be wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use roost_logic::{
    Now,
    asking::Outstanding,
    attachments::{self, Attachments},
    clocks::Clocks,
    entry::{EndReason, Entry, GroupEntry, NewMessage, SessionRecord},
    following::{self, Following},
    hints::HintInput,
    id::{AttachmentNumber, GroupName, Index, Member, PublishKey, Seat, SessionId, SlotId, Term},
    lease::{self, Ahead, Lease, LeaseInput},
    liveness::{Liveness, Says},
    map::{Leads, MapChange, SlotAssignment},
    memory::{Level, Teller},
    primary::{SlotCore, SlotInput, SlotOutput, Ticket},
    replication::Replica,
    request::{
        self, Attached, Displaced, GroupPush, GroupRequest, JoinPoint, Published, Push, SessionPush, SessionRequest,
        SlotAnswer, SlotError, SlotRequest,
    },
    session::Session,
    steward::{self, StewardInput},
};

use super::{
    asks::{Ask, Asked, Purpose},
    checks::{Life, Publish, Seen},
    clients::{Lane, Sent},
    heard::HeardPrimaries,
    hints::HintsOf,
    liveness::Heard,
    network::Frame,
    steward::Steward,
    store::{Operation, SessionWrite},
    world::{Event, SharedMap, World},
};

const TICK_MS: u64 = 100;
/// A frame waits this long for the map that it was sent under.
const MAP_WAIT_MS: u64 = 300;
/// Between looks whether that has come.
const HELD_MS: u64 = 10;
/// Above what clocks are apart that are not days off.
const CLOCK_BOUND_MS: u64 = 60_000;

/// What reaches a process.
#[derive(Debug)]
pub(super) enum Input {
    Frame {
        from: Member,
        frame: Frame,
    },
    PeerConnected(Member),
    PeerLost(Member),
    LinkReset(Member),
    Gossip {
        from: Member,
        says: Says,
    },
    Tick,
    Round,
    Flush(SlotId),
    AskDue(u64),
    Saved {
        slot: SlotId,
        session: SessionId,
        index: Index,
        ok: bool,
    },
    Loaded {
        slot: SlotId,
        session: SessionId,
        result: Result<Option<SessionRecord>, String>,
    },
    MapRead(u64, Result<Option<SharedMap>, ()>),
    MapChanged(u64, MapChange),
    /// The store has not answered what has this number.
    StoreSilent(u64),
    StewardWake,
    WatchStore,
    /// A publisher sends a message, or is gone.
    Publish {
        connection: u64,
        sent: Sent,
    },
    Hangup(u64),
    /// A client asks its gateway for something.
    Client(Purpose, SlotId, SlotRequest),
    Follow(following::Input),
    FlushFollowing,
    WakeFollowing,
    /// A client opens or closes a connection.
    Connect {
        session: SessionId,
        connection: u64,
    },
    Disconnect(u64),
    /// The client of a connection joins a group, or leaves it.
    Member {
        connection: u64,
        group: GroupName,
        joins: bool,
    },
    /// A connection takes part in its group.
    Enter(u64),
    /// Its group is told once more what it shows.
    Show {
        connection: u64,
        enters: bool,
    },
    /// Its gateway looks whether it is in there.
    Reconcile {
        connection: u64,
        group: GroupName,
    },
    Attachments(attachments::Input),
    HintsWake,
    /// A frame under a term that the map here does not have, looked at again.
    Held {
        from: Member,
        frame: Frame,
        until_ms: u64,
    },
    LeaseTick,
    /// A connection's own loop looks whether it may write what is due, or writes what it has taken to be written.
    Take(u64),
    Write(u64),
}

/// Who is to get an answer, and to what.
#[derive(Debug)]
pub(super) struct Asker {
    from: Member,
    id: u64,
    request: SlotRequest,
    /// The keys of those publishes of it that stood in the log here when it came.
    known: BTreeSet<PublishKey>,
    /// When it came this node had no memory left.
    full: bool,
}

/// One start of a node.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) member: Member,
    pub(super) started_ms: u64,
    pub(super) cores: Vec<SlotCore>,
    pub(super) seen: Vec<Seen>,
    flush_due: Vec<bool>,
    pub(super) map: Option<SharedMap>,
    /// What it has heard of each node.
    pub(super) heard_of: Vec<Heard>,
    pub(super) liveness: Liveness,
    pub(super) clocks: Clocks,
    pub(super) alive: Arc<BTreeSet<Member>>,
    tickets: BTreeMap<Ticket, Asker>,
    next_ticket: Ticket,
    /// What publishers have sent here, by their connections.
    pub(super) lanes: BTreeMap<u64, Lane>,
    pub(super) asks: BTreeMap<u64, Ask>,
    pub(super) next_ask: u64,
    pub(super) outstanding: Outstanding<Asked>,
    pub(super) steward: Steward,
    pub(super) hints: HintsOf,
    pub(super) following: Following,
    pub(super) following_flush_due: bool,
    pub(super) following_wake_ms: Option<u64>,
    pub(super) heard: HeardPrimaries,
    pub(super) attachments: Attachments,
    pub(super) lease: Lease,
    pub(super) ahead: Ahead,
    /// How pressed for memory it is, as its slots know it.
    pub(super) pressed: Level,
    pub(super) teller: Teller,
}

impl World {
    /// A node starts, with nothing but a number that nobody had before.
    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            return;
        }
        if self.store.down {
            return self.after(200, Event::Start(node));
        }
        let id = self.nodes[node].id.clone();
        let generation = self.store.generations.entry(id.clone()).or_default();
        *generation += 1;
        let member = Member { node: id, generation: *generation };
        let cores = (0..self.profile.slots)
            .map(|slot| {
                let core = SlotCore::new(slot, member.clone(), self.profile.slot, self.random.number());
                core.with_limits(self.profile.limits)
            })
            .collect();
        let slots = usize::from(self.profile.slots);
        let following = Following::new(member.clone(), self.profile.following);
        let alive = BTreeSet::from([member.clone()]);
        let born = Now { mono_ms: 0, wall_ms: 0 };
        let liveness = Liveness::new(member.clone(), self.liveness_settings(), born);
        let lease = Lease::new(member.clone(), born.mono_ms);
        let steward = Steward::new(steward::Steward::new(member.clone(), self.steward_settings()));
        let joins = member.generation == 1 && !self.resting && self.now > 2_000;
        self.ledger.count_if(member.generation > 1, "restarts with a new generation");
        self.ledger.count_if(joins, "nodes joined under load");
        self.nodes[node].process = Some(Process {
            member,
            started_ms: self.now,
            cores,
            seen: vec![Seen::default(); slots],
            flush_due: vec![false; slots],
            map: None,
            heard_of: vec![Heard::default(); self.nodes.len()],
            liveness,
            clocks: Clocks::new(CLOCK_BOUND_MS),
            alive: Arc::new(alive),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            lanes: BTreeMap::new(),
            asks: BTreeMap::new(),
            next_ask: 0,
            outstanding: Outstanding::default(),
            steward,
            hints: HintsOf::default(),
            following,
            following_flush_due: false,
            following_wake_ms: None,
            heard: HeardPrimaries::default(),
            attachments: Attachments::default(),
            lease,
            ahead: Ahead::default(),
            pressed: Level::Calm,
            teller: Teller::default(),
        });
        self.nodes[node].inbox.clear();
        self.reset_links_of(node);
        self.disturbs(node);
        self.compare_clocks(node);
        self.steward_wakes(node);
        self.watch_store_later(node);
        let (tick, round) = (self.random.below(TICK_MS), self.random.below(self.profile.round_ms));
        self.input_after(tick, node, Input::Tick);
        self.input_after(tick, node, Input::Attachments(attachments::Input::Tick));
        self.input_after(round, node, Input::Round);
        self.input_after(tick, node, Input::LeaseTick);
    }

    /// A running, unpaused process handles what has come.
    pub(super) fn input(&mut self, node: usize, input: Input) {
        match input {
            Input::Frame { from, frame } => self.frame(node, from, frame),
            Input::PeerConnected(from) => {
                self.asks_disrupted(node, &from.node);
                self.follow(node, following::Input::PeerConnected(from));
            }
            Input::PeerLost(from) => {
                self.asks_disrupted(node, &from.node);
                self.follow(node, following::Input::PeerLost(from));
            }
            Input::Follow(input) => self.follow(node, input),
            Input::FlushFollowing => self.flush_following(node),
            Input::WakeFollowing => self.wake_following(node),
            Input::LinkReset(member) => self.all_slots(node, |_| SlotInput::LinkReset(member.clone())),
            Input::Gossip { from, says } => self.gossip(node, &from, says),
            Input::Tick => {
                self.compare_clocks(node);
                self.tell_memory(node);
                self.tick_slots(node);
                self.check_heard(node);
                self.input_after(TICK_MS, node, Input::Tick);
            }
            Input::Round => {
                self.round(node);
                self.input_after(self.profile.round_ms, node, Input::Round);
            }
            Input::Flush(slot) => {
                self.process(node).flush_due[usize::from(slot)] = false;
                self.flush(node, slot);
            }
            Input::AskDue(id) => self.ask_due(node, id),
            Input::Saved { slot, session, index, ok } => {
                self.slot_input(
                    node,
                    slot,
                    SlotInput::Saved { session, index, result: ok.then_some(()).ok_or_else(|| "down".to_owned()) },
                );
            }
            Input::Loaded { slot, session, result } => {
                self.ledger.loads(session);
                self.slot_input(node, slot, SlotInput::Loaded { session, result });
            }
            Input::MapRead(number, result) => self.map_read(node, number, result),
            Input::MapChanged(number, change) => self.map_changed(node, number, change),
            Input::StoreSilent(number) => self.store_is_silent(node, number),
            Input::StewardWake => self.steward_wakes(node),
            Input::WatchStore => self.watch_store(node),
            Input::HintsWake => self.hints_wake(node),
            Input::Held { from, frame, until_ms } => self.hold(node, from, frame, until_ms),
            Input::Publish { connection, sent } => self.publish_comes(node, connection, sent),
            Input::Hangup(connection) => drop(self.process(node).lanes.remove(&connection)),
            Input::Client(purpose, slot, request) => self.ask_slot(node, purpose, slot, request),
            Input::Connect { session, connection } => self.connect(node, session, connection),
            Input::Disconnect(connection) => self.disconnect(node, connection),
            Input::Member { connection, group, joins } => self.member(node, connection, group, joins),
            Input::Enter(connection) => self.enter_mouth(node, connection),
            Input::Show { connection, enters } => self.show_mouth(node, connection, enters),
            Input::Reconcile { connection, group } => self.reconcile(node, connection, group),
            Input::Attachments(input) => {
                if input == attachments::Input::Tick {
                    self.input_after(attachments::TICK_MS, node, Input::Attachments(attachments::Input::Tick));
                }
                self.attachments(node, input);
            }
            Input::LeaseTick => {
                self.lease(node, LeaseInput::Tick);
                self.input_after(lease::TICK_MS, node, Input::LeaseTick);
            }
            Input::Take(connection) => self.take_due(node, connection),
            Input::Write(connection) => self.write_taken(connection),
        }
    }

    fn frame(&mut self, node: usize, from: Member, frame: Frame) {
        let until_ms = self.now + MAP_WAIT_MS;
        self.hold(node, from, frame, until_ms);
    }

    /// Who speaks as a slot's primary has to be that by the map. Where a later map may say so, the frame waits for it.
    fn hold(&mut self, node: usize, from: Member, frame: Frame, until_ms: u64) {
        let led = match &frame {
            Frame::Replication { message, .. } if message.is_answer() => None,
            // What comes of an old term is left to the copy here, which knows that by itself.
            Frame::Replication { slot, message }
                if self.assignment(node, *slot).is_some_and(|known| message.term() < known.term) =>
            {
                None
            }
            Frame::Replication { slot, message } => Some((*slot, message.term())),
            Frame::Push { slot, term, .. } => Some((*slot, *term)),
            _ => None,
        };
        let map = self.process(node).map.clone();
        let of = map.as_ref().map_or(0, |map| map.version);
        let leads = |(slot, term)| map.map_or(Leads::NotKnownYet, |map| map.leads(slot, term, &from));
        match led.map_or(Leads::Yes, leads) {
            // What a node sends itself needs no map.
            _ if from == self.process(node).member => self.handle_frame(node, from, frame),
            Leads::Yes => self.handle_frame(node, from, frame),
            Leads::No => {}
            Leads::NotKnownYet => {
                self.ledger.count("frames that waited for a map");
                self.hint(node, HintInput::Ahead { by: from.node.clone(), of });
                if self.now < until_ms {
                    self.input_after(HELD_MS, node, Input::Held { from, frame, until_ms });
                }
            }
        }
    }

    fn handle_frame(&mut self, node: usize, from: Member, frame: Frame) {
        match frame {
            Frame::Replication { slot, message } => self.slot_input(node, slot, SlotInput::Peer { from, message }),
            Frame::Request { id, slot, term, sent_ms, request } => {
                // The product knows only how much longer than others it took.
                let request = request.waited(self.now - sent_ms);
                let process = self.process(node);
                process.next_ticket += 1;
                let ticket = process.next_ticket;
                let known = known(process.cores[usize::from(slot)].replica(), &request);
                let full = process.pressed == Level::Full;
                process.tickets.insert(ticket, Asker { from: from.clone(), id, request: request.clone(), known, full });
                self.slot_input(node, slot, SlotInput::Request { ticket, from, term, request });
            }
            Frame::Response { id, voters, result } => {
                self.hear_voters(node, &from, voters);
                self.answered(node, &from, id, result);
            }
            Frame::Push { slot, term, voters, push } => {
                self.hear_voters(node, &from, voters);
                self.pushed(node, slot, term, push);
            }
            Frame::FetchMap { newer_than } => {
                if let Some(map) = self.process(node).map.clone().filter(|map| map.version > newer_than) {
                    self.send(node, &from, Frame::Map(map));
                }
            }
            Frame::Map(map) => self.hint(node, HintInput::Sent { by: from.node, map }),
            Frame::Lease(message) => self.lease(node, LeaseInput::Message { from, message }),
            Frame::MapRequest(request) => {
                self.steward(node, StewardInput::Requested { from, requests: vec![request] });
            }
            Frame::Memory(level) => self.all_slots(node, |_| SlotInput::Memory { of: from.clone(), level }),
        }
    }

    /// A confirmed map; older ones are nothing new.
    pub(super) fn learn_map(&mut self, node: usize, map: SharedMap) {
        if self.process(node).map.as_ref().is_some_and(|known| known.version >= map.version) {
            return;
        }
        let before = self.process(node).map.replace(map.clone());
        if before.is_some_and(|before| before.version + 1 < map.version) {
            self.ledger.count("map versions skipped");
        }
        let version = map.version;
        let assignment = |slot: SlotId| map.slots[usize::from(slot)].clone();
        self.all_slots(node, |slot| SlotInput::Map { version, assignment: assignment(slot) });
        self.asks_learn_map(node);
        self.judge_map(node, &map);
        self.hint(node, HintInput::Map(map.clone()));
        self.lease(node, LeaseInput::Map(map.clone()));
        self.follow(node, following::Input::Map(map.clone()));
        self.steward(node, StewardInput::Map(map));
    }

    pub(super) fn all_slots(&mut self, node: usize, input: impl Fn(SlotId) -> SlotInput) {
        for slot in 0..self.profile.slots {
            self.slot_input(node, slot, input(slot));
        }
    }

    /// Every slot has its tick here. A process leaves out those that have nothing due: in these a tick must change nothing.
    fn tick_slots(&mut self, node: usize) {
        let now = self.clock(node);
        for slot in 0..self.profile.slots {
            let core = &self.process(node).cores[usize::from(slot)];
            let (due_ms, ordered) = (core.due_ms(), core.replica().applied() + core.replica().uncommitted() as u64);
            let wanted = self.handled(node, slot, SlotInput::Tick);
            let replica = self.process(node).cores[usize::from(slot)].replica();
            let is_due = due_ms.is_some_and(|due_ms| due_ms <= now.mono_ms);
            let is_same = wanted == 0 && replica.applied() + replica.uncommitted() as u64 == ordered;
            assert!(is_due || is_same, "slot {slot} of {node} did something at a tick that it had not asked for");
        }
    }

    pub(super) fn slot_input(&mut self, node: usize, slot: SlotId, input: SlotInput) {
        self.handled(node, slot, input);
    }

    /// How many outputs come of it.
    fn handled(&mut self, node: usize, slot: SlotId, input: SlotInput) -> usize {
        let now = self.clock(node);
        let mut out = Vec::new();
        self.process(node).cores[usize::from(slot)].handle(now, input, &mut out);
        let wanted = out.len();
        self.observe(node, slot);
        self.perform(node, slot, out);
        if !self.random.permille(self.profile.batches) {
            self.flush(node, slot);
        } else if !std::mem::replace(&mut self.process(node).flush_due[usize::from(slot)], true) {
            let after = self.random.below(5);
            self.input_after(after, node, Input::Flush(slot));
        }
        wanted
    }

    fn flush(&mut self, node: usize, slot: SlotId) {
        let now = self.clock(node);
        let mut out = Vec::new();
        self.process(node).cores[usize::from(slot)].flush(now, &mut out);
        self.observe(node, slot);
        self.perform(node, slot, out);
    }

    fn perform(&mut self, node: usize, slot: SlotId, outputs: Vec<SlotOutput>) {
        for output in outputs {
            match output {
                SlotOutput::Send { to, message } => {
                    self.send(node, &to, Frame::Replication { slot, message });
                }
                SlotOutput::Answer { ticket, result } => self.answer(node, slot, ticket, result),
                SlotOutput::Push { to, term, push } => {
                    match &push {
                        Push::Group(group, GroupPush::Deliver { epoch, messages }) => {
                            messages.iter().for_each(|message| self.ledger.saw(group, *epoch, message));
                        }
                        Push::Session(
                            session,
                            SessionPush::Displace { client, why: Displaced::Elsewhere, attachment },
                        ) => {
                            self.check_displaced((node, slot), (*session, *client), *attachment, term);
                        }
                        Push::Session(_, SessionPush::Displace { why: Displaced::CrowdedOut, .. }) => {
                            self.ledger.count("clients that had to make room");
                        }
                        _ => {}
                    }
                    let voters = self.process(node).lease.voters_since();
                    self.send(node, &to, Frame::Push { slot, term, voters, push });
                }
                SlotOutput::Fence { gateway, since_ms } => {
                    self.ledger.count("gateways fenced");
                    self.lease(node, LeaseInput::Wanted { gateway, since_ms });
                }
                SlotOutput::Ask(request) => self.ask_steward(node, request),
                SlotOutput::Load { session } => self.ask_store(node, Operation::Load { slot, session }),
                SlotOutput::Save { record, ended, term, index } => {
                    self.check_why_ended(node, slot, record.id);
                    let lineage = self.process(node).cores[usize::from(slot)].replica().lineage().unwrap_or(0);
                    let wall_ms = self.clock(node).wall_ms;
                    let write =
                        SessionWrite { record, ended, version: (term, index), order: (lineage, index), wall_ms };
                    self.ask_store(node, Operation::Save { slot, write });
                }
                SlotOutput::Depart { session, client, groups } => self.depart(node, slot, (session, client), groups),
                SlotOutput::Shed { messages, .. } => {
                    self.ledger.count_if(messages > 0, "messages dropped for want of memory");
                }
            }
        }
    }

    /// No session is old enough in a run to end by itself.
    fn check_why_ended(&mut self, node: usize, slot: SlotId, session: SessionId) {
        let state = self.process(node).cores[usize::from(slot)].replica().state();
        let reason = state.and_then(|state| state.session(session)).and_then(|session| session.ended);
        if let Some(reason @ (EndReason::Expired | EndReason::Idle)) = reason {
            let who = self.process(node).member.clone();
            self.ledger.fail(format!("sessions: {who} ends {session} by a wrong clock: {reason:?}"));
        }
    }

    fn answer(&mut self, node: usize, slot: SlotId, ticket: Ticket, result: Result<SlotAnswer, SlotError>) {
        let process = self.nodes[node].process.as_mut().expect("only a running process answers");
        let Some(asker) = process.tickets.remove(&ticket) else {
            let who = process.member.clone();
            return self.ledger.fail(format!("{who} answers twice or to nobody: {result:?}"));
        };
        let lineage = process.cores[usize::from(slot)].replica().lineage().unwrap_or(0);
        match (&result, &asker.request) {
            (
                Ok(SlotAnswer::Published(published)),
                SlotRequest::Group(group, GroupRequest::Publish(request::Publish { messages, min_copies, .. })),
            ) => {
                if published.len() != messages.len() {
                    self.ledger.fail(format!("S3: {} publishes of {group} are answered {published:?}", messages.len()));
                }
                for (NewMessage { key, .. }, outcome) in messages.iter().zip(published) {
                    match (outcome, asker.known.contains(key)) {
                        (Ok(_), false) if asker.full => {
                            let what = "is taken by a node that has no memory left";
                            self.ledger.fail(format!("L3: {key:?} of {group} {what}"));
                        }
                        (Err(_), true) => {
                            let what = "which stands in the log, is told";
                            self.ledger.fail(format!("S4: a repeat of {key:?} of {group}, {what} {outcome:?}"));
                        }
                        (Ok(_) | Err(_), _) => {}
                    }
                }
                let known = process.map.as_ref().and_then(|map| map.slot(slot));
                self.ledger.held_by((slot, lineage), known.map_or(&[], |assignment| &assignment.in_sync));
                for (NewMessage { key, data }, outcome) in messages.iter().zip(published) {
                    let Ok(Published { position, copies }) = outcome else { continue };
                    let (group, data) = (group.clone(), data.clone());
                    let publish = Publish { group, key: *key, data, min_copies: *min_copies };
                    self.ledger.acknowledged(self.now, &publish, *position, *copies, (slot, lineage));
                }
                if let Some(Published { copies, .. }) = published.iter().flatten().next() {
                    self.check_holders(node, slot, *copies);
                }
            }
            (Err(SlotError::NotEnoughCopies { .. } | SlotError::Full | SlotError::Busy), request)
                if !asker.known.is_empty() =>
            {
                self.ledger.fail(format!("S4: a repeat of what stands in the log is told {result:?}: {request:?}"));
            }
            (
                Ok(SlotAnswer::Attached(Attached { attachment, .. })),
                SlotRequest::Session(session, SessionRequest::Attach(attach)),
            ) => {
                self.check_attached((node, slot), &asker.from, (*session, attach.client.key()), *attachment);
            }
            (Err(SlotError::TooManyClients), _) => self.ledger.count("clients refused, the session is full"),
            (Ok(_), SlotRequest::Session(session, SessionRequest::EndSession(_))) => self.check_ended(*session),
            (Ok(_), SlotRequest::Session(_, SessionRequest::ChangeSession(_))) => self.ledger.count("sessions changed"),
            (Ok(_), SlotRequest::Session(_, SessionRequest::RecordJoin(_) | SessionRequest::RecordLeave(_))) => {
                self.ledger.count("session joins and leaves");
            }
            (Err(SlotError::Full), _) => self.ledger.count("requests refused for want of memory"),
            (Err(SlotError::NotGranted), _) => self.ledger.count("joins without a right refused"),
            (Ok(SlotAnswer::Joined(point)), _) => self.points(std::slice::from_ref(point), (slot, lineage)),
            (Ok(SlotAnswer::Registered(points)), _) => self.points(points, (slot, lineage)),
            _ => {}
        }
        let voters = self.process(node).lease.voters_since();
        self.send(node, &asker.from, Frame::Response { id: asker.id, voters, result });
    }

    fn points(&mut self, points: &[JoinPoint], life: Life) {
        for point in points {
            self.ledger.group_seen(self.now, &point.group, point.epoch, life);
            self.ledger.follows(self.now, &point.group);
            for message in &point.messages {
                self.ledger.saw(&point.group, point.epoch, message);
            }
        }
    }

    /// Told by the shell that a client's presences are out of these groups.
    pub(super) fn departed(
        &mut self,
        node: usize,
        slot: SlotId,
        Seat { session, client, .. }: Seat,
        groups: BTreeMap<GroupName, AttachmentNumber>,
    ) {
        self.slot_input(node, slot, SlotInput::Departed { session, client, groups });
    }

    /// Compares what is now with what was, and both with what must be.
    fn observe(&mut self, node: usize, slot: SlotId) {
        let Self { nodes, ledger, store, .. } = self;
        let process = nodes[node].process.as_mut().expect("only a running process is observed");
        let term = store.map.as_ref().and_then(|map| map.slot(slot)).map_or(0, |assignment| assignment.term);
        let core = &process.cores[usize::from(slot)];
        ledger.count_if(core.held() > 0, "publishes held until enough copies have them");
        let there = |group| core.replica().state().is_some_and(|state| state.group(group).is_some());
        let sessions = core.replica().state().into_iter().flat_map(|state| state.sessions().values());
        let outlives = |session: &&Arc<Session>| {
            let is_left = !session.clients.is_empty() && !session.is_present();
            session.record.id.is_ephemeral() && session.ended.is_none() && is_left
        };
        let keeps = |session: &&Arc<Session>| {
            session.clients.values().any(|client| !client.is_present() && !client.joined.is_empty())
        };
        if let Some(session) = sessions.clone().find(keeps) {
            ledger.fail(format!("sessions: what a client has joined outlives it: {session:?}"));
        }
        if let Some(session) = sessions.into_iter().find(outlives) {
            ledger.fail(format!("sessions: an ephemeral one outlives its client's grace: {session:?}"));
        }
        if let Some(group) = core.followed().find(|group| !there(group)) {
            ledger.fail(format!("{} has gateways that follow {group}, which it has forgotten", process.member));
        }
        if process.seen[usize::from(slot)].look(ledger, &process.member, slot, core.replica(), term) {
            self.check_copies(slot);
        }
        self.weigh(node);
    }

    /// What the map, as the node knows it, says of a slot.
    pub(super) fn assignment(&self, node: usize, slot: SlotId) -> Option<&SlotAssignment> {
        self.nodes[node].process.as_ref()?.map.as_ref()?.slot(slot)
    }

    pub(super) fn primary(&self, node: usize, slot: SlotId) -> Option<(Member, Term)> {
        self.assignment(node, slot).map(|assignment| (assignment.primary.clone(), assignment.term))
    }
}

/// The keys of those of these publishes that stand in the log of this copy.
fn known(replica: &Replica, request: &SlotRequest) -> BTreeSet<PublishKey> {
    let SlotRequest::Group(group, GroupRequest::Publish(request::Publish { messages, .. })) = request else {
        return BTreeSet::new();
    };
    let log = replica.state().and_then(|state| state.group(group)).map(|there| &there.log);
    let ordered = replica.uncommitted_entries().filter_map(|entry| match entry {
        Entry::Group(name, GroupEntry::Publish { messages, .. }) if name == group => Some(messages),
        Entry::Group(..) | Entry::Session(..) | Entry::Shed { .. } => None,
    });
    let ordered: BTreeSet<_> = ordered.flatten().map(|message| message.key).collect();
    let keys = messages.iter().map(|message| message.key);
    keys.filter(|key| ordered.contains(key) || log.is_some_and(|log| log.seen(*key).is_some())).collect()
}
