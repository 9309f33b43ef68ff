//! A primary that is alone with its copy, so that what it orders is committed at the next flush, and a second node where a
//! test is about what passes from one primary to the next.

mod attaches;
mod batches;
mod clock;
mod ephemeral;
mod floor;
mod full;
mod joins;
mod memory;
mod passing;
mod rights;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::{
    entry::{EndReason, Joined, NewMessage, Retention, SessionChange},
    id::{ClientId, Epoch, NodeId, Position, PublishKey},
    request::{
        Ask, Attach, Attached, ChangeSession, ClientView, ConfirmDisplaced, CreateSession, Detach, Displaced, Done,
        EndSession, GroupPush, Interest, Join, JoinPoint, MESSAGE_OVERHEAD_BYTES, PAGE_BYTES, Publish, Published,
        ReadHistory, ReadSession, RecordJoin, RecordLeave, Register, Renew, Renewal, Renewed, SessionPush, SessionView,
        Unregister, Withdraw,
    },
    session::WhenFull,
};

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
const KEEP: Retention =
    Retention { messages: 10, bytes: 1_000, age_ms: 10_000, window_ms: 300_000, window_publishes: 10_000 };
const SESSION: SessionId = SessionId(Uuid::from_u128(7));

/// The client of most tests.
fn client() -> ClientId {
    ClientId::made(1)
}

fn key() -> ClientKey {
    client().key()
}

fn member(name: &str) -> Member {
    Member { node: NodeId::parse(name).unwrap(), generation: 1 }
}

fn record() -> SessionRecord {
    SessionRecord {
        id: SESSION,
        user: "ann".to_owned(),
        created_ms: 0,
        expires_ms: u64::MAX,
        idle_ttl_ms: 1_000_000,
        last_used_ms: 0,
        attributes: Bytes::from_static(b"{}"),
        groups: BTreeSet::new(),
        grants: Vec::new(),
        revision: 0,
        token: 0,
        clients_max: None,
    }
}

fn publish(key: u128) -> (GroupName, Publish) {
    publish_all([key])
}

fn publish_all<const N: usize>(keys: [u128; N]) -> (GroupName, Publish) {
    let messages = keys.map(|key| NewMessage { key: PublishKey(key), data: Bytes::from_static(b"1") }).into();
    (group(), Publish { messages, from: None, retention: KEEP, min_copies: 1 })
}

/// The answer to a publish: where each message stands and how many have it, or why it was not taken.
fn outcomes(answer: &Result<SlotAnswer, SlotError>) -> Vec<Result<(u64, u8), SlotError>> {
    let place = |published: Published| (published.position.offset, published.copies);
    match answer {
        Ok(SlotAnswer::Published(published)) => published.iter().map(|one| one.clone().map(place)).collect(),
        other => panic!("{other:?}"),
    }
}

/// The same where all of them stand.
fn places(answer: &Result<SlotAnswer, SlotError>) -> Vec<(u64, u8)> {
    let place = |outcome: Result<_, _>| outcome.unwrap_or_else(|refusal| panic!("{refusal:?}"));
    outcomes(answer).into_iter().map(place).collect()
}

fn register() -> Register {
    Register(vec![Interest { group: group(), since: None }])
}

fn group() -> GroupName {
    GroupName::parse("g").unwrap()
}

/// A slot on node `p`.
struct Bench {
    now_ms: u64,
    core: SlotCore,
    term: Term,
    version: u64,
    /// The version that made `q` in-sync.
    shared_at: u64,
    next: Ticket,
    out: Vec<SlotOutput>,
}

impl Bench {
    /// The session as its client is told of it.
    fn one(&self) -> ClientView {
        self.core.replica().state().unwrap().session(SESSION).unwrap().view(key())
    }

    fn new() -> Self {
        let core = SlotCore::new(0, member("p"), SETTINGS, 1);
        let mut bench = Self { now_ms: 1_000, core, term: 1, version: 0, shared_at: 0, next: 0, out: Vec::new() };
        bench.map("p", &["p"]);
        bench
    }

    fn map(&mut self, primary: &str, in_sync: &[&str]) {
        self.version += 1;
        if in_sync.len() > 1 {
            self.shared_at = self.version;
        }
        let assignment = SlotAssignment {
            term: self.term,
            lineage: 1,
            changed_at: self.version,
            primary: member(primary),
            in_sync: in_sync.iter().map(|name| member(name)).collect(),
            learner: None,
        };
        let version = self.version;
        self.input(SlotInput::Map { version, assignment });
    }

    /// `q` has a copy too from now on, and acknowledges only what it is told to.
    fn share(&mut self) {
        self.term += 1;
        self.map("p", &["p", "q"]);
        self.acknowledge();
    }

    fn acknowledge(&mut self) {
        let index = self.core.replica().applied() + self.core.replica().uncommitted() as u64;
        let message = ReplicationMessage::Ack { term: self.term, sync: self.shared_at, index, gap: false };
        self.input(SlotInput::Peer { from: member("q"), message });
    }

    fn input(&mut self, input: SlotInput) {
        let now = Now { mono_ms: self.now_ms, wall_ms: self.now_ms };
        self.core.handle(now, input, &mut self.out);
        self.core.flush(now, &mut self.out);
    }

    /// What a gateway asks; the ticket.
    fn ask(&mut self, gateway: &str, request: impl Ask) -> Ticket {
        self.next += 1;
        let (ticket, term) = (self.next, self.term);
        self.input(SlotInput::Request { ticket, from: member(gateway), term, request: request.into_request() });
        ticket
    }

    /// The answer to it, if there is one yet.
    fn answer(&self, to: Ticket) -> Option<&Result<SlotAnswer, SlotError>> {
        self.out.iter().find_map(|output| match output {
            SlotOutput::Answer { ticket, result } if *ticket == to => Some(result),
            _ => None,
        })
    }

    fn answer_to(&mut self, gateway: &str, request: impl Ask) -> Result<SlotAnswer, SlotError> {
        let ticket = self.ask(gateway, request);
        self.answer(ticket).expect("answered at once").clone()
    }

    fn pushes(&mut self, gateway: &str) -> Vec<Push> {
        let pushed = |output: &SlotOutput| match output {
            SlotOutput::Push { to, push, .. } if *to == member(gateway) => Some(push.clone()),
            _ => None,
        };
        let pushes = self.out.iter().filter_map(pushed).collect();
        self.out.retain(|output| pushed(output).is_none());
        pushes
    }

    /// The store carries out what it was asked for, or does not.
    fn store(&mut self, ok: bool, row: Option<SessionRecord>) {
        for output in std::mem::take(&mut self.out) {
            match output {
                SlotOutput::Save { record, index, .. } => {
                    self.input(SlotInput::Saved {
                        session: record.id,
                        index,
                        result: if ok { Ok(()) } else { Err("down".to_owned()) },
                    });
                }
                SlotOutput::Load { session } => {
                    let result = if ok { Ok(row.clone()) } else { Err("down".to_owned()) };
                    self.input(SlotInput::Loaded { session, result });
                }
                other => self.out.push(other),
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now_ms += 100;
            self.input(SlotInput::Tick);
        }
    }

    fn with_session() -> Self {
        let mut bench = Self::new();
        let created = bench.ask("g1", (SESSION, CreateSession { record: record() }));
        assert_eq!(bench.answer(created), None, "the store comes first");
        bench.store(true, None);
        assert!(bench.answer(created).unwrap().is_ok());
        bench
    }

    fn attach(&mut self, gateway: &str, connection: u64) -> Ticket {
        self.ask(gateway, (SESSION, Attach { client: client(), connection, waited_ms: 0, token: 0 }))
    }

    fn attached(&self, ticket: Ticket) -> AttachmentNumber {
        match self.answer(ticket) {
            Some(Ok(SlotAnswer::Attached(Attached { attachment, .. }))) => *attachment,
            other => panic!("{other:?}"),
        }
    }

    fn view(&mut self) -> SessionView {
        match self.answer_to("g1", (SESSION, ReadSession)) {
            Ok(SlotAnswer::Session(view)) => view,
            other => panic!("{other:?}"),
        }
    }

    /// What this gateway was confirmed until now counts for nothing.
    fn gone(&mut self, gateway: &str) {
        self.input(SlotInput::Gone { gateway: member(gateway), since_ms: self.now_ms });
    }

    fn renew(&mut self, gateway: &str, attachment: AttachmentNumber, connection: u64) {
        self.ask(
            gateway,
            Renew(vec![Renewal {
                session: SESSION,
                client: client(),
                attachment,
                connection,
                revision: 0,
                joined: Some(Joined::new()),
            }]),
        );
    }
}

#[test]
fn a_publish_is_answered_and_delivered_when_it_is_committed_and_a_repeat_gets_the_same() {
    let mut bench = Bench::new();
    bench.share();
    let registered = bench.ask("g1", register());
    bench.acknowledge();
    assert!(bench.answer(registered).unwrap().is_ok());
    let first = bench.ask("g1", publish(5));
    assert_eq!(bench.answer(first), None, "`q` does not have it");
    assert_eq!(bench.pushes("g1").len(), 0);
    bench.acknowledge();
    let position = match bench.answer(first) {
        Some(Ok(SlotAnswer::Published(published))) => published[0].clone().unwrap().position,
        other => panic!("{other:?}"),
    };
    assert_eq!(position.offset, 1);
    assert_eq!(bench.pushes("g1").len(), 1);
    bench.map("p", &["p"]);
    let one = |position| Ok(SlotAnswer::Published([Ok(Published { position, copies: 1 })].into()));
    assert_eq!(bench.answer_to("g2", publish(5)), one(position));
    assert_eq!(bench.pushes("g1").len(), 0, "a repeat is no message");
    let next = Position { offset: 2, ..position };
    assert_eq!(bench.answer_to("g2", publish(6)), one(next));
}

/// Asks for page after page; the sizes of the pages, in messages.
fn pages(bytes_each: usize, messages: u64) -> Vec<usize> {
    let mut bench = Bench::new();
    let retention = Retention { messages: 10_000, bytes: 1 << 30, ..KEEP };
    for key in 1..=messages {
        let data = vec![b'1'; bytes_each].into();
        let messages = [NewMessage { key: PublishKey(key.into()), data }].into();
        let publish = (group(), Publish { messages, from: None, retention, min_copies: 1 });
        assert!(bench.answer_to("g", publish).is_ok());
    }
    let Ok(SlotAnswer::Joined(JoinPoint { epoch, head, .. })) =
        bench.answer_to("g", (group(), Join { member: None, since: None }))
    else {
        panic!("not joined")
    };
    assert_eq!(head, messages);
    let (mut at, mut pages) = (Position { epoch, offset: 0 }, Vec::new());
    while at.offset < head {
        let join = (group(), Join { member: None, since: Some(at) });
        let Ok(SlotAnswer::Joined(point)) = bench.answer_to("g", join) else { panic!("no page") };
        assert!(point.recovered);
        let offsets: Vec<_> = point.messages.iter().map(|message| message.offset).collect();
        assert_eq!(offsets, (at.offset + 1..=point.up_to).collect::<Vec<_>>(), "it accounts for all up to there");
        assert_eq!((point.head, point.is_partial()), (head, point.up_to < head), "it shows that there is more");
        let (data, overhead) = (offsets.len() * bytes_each, offsets.len() * MESSAGE_OVERHEAD_BYTES);
        assert!(data + overhead < PAGE_BYTES + bytes_each + MESSAGE_OVERHEAD_BYTES, "{} messages", offsets.len());
        pages.push(offsets.len());
        at.offset = point.up_to;
    }
    pages
}

#[test]
fn a_join_since_a_position_brings_a_page_that_ends_where_it_says() {
    assert_eq!(pages(1, 3), [3]);
    assert_eq!(pages(0, 150), [64, 64, 22]);
    assert_eq!(pages(PAGE_BYTES * 2, 2), [1, 1]);
    assert_eq!(pages(7_500, 7), [3, 3, 1]);
}

#[test]
fn who_waits_is_told_when_the_primary_is_deposed_and_wrong_terms_are_refused() {
    let mut bench = Bench::new();
    bench.share();
    let waiting = bench.ask("g1", publish(5));
    bench.term += 1;
    bench.map("q", &["p", "q"]);
    let error = |ordered| SlotError::NotPrimary { map_version: 3, ordered };
    assert_eq!(bench.answer(waiting), Some(&Err(error(true))), "the next primary may have it");
    assert_eq!(bench.answer_to("g1", publish(5)), Err(error(false)));
}

#[test]
fn a_gateway_that_is_believed_dead_keeps_its_interests_while_it_may_be_alive() {
    let mut bench = Bench::new();
    let alive = |names: &[&str]| SlotInput::Alive(Arc::new(names.iter().map(|name| member(name)).collect()));
    bench.input(alive(&["p", "g1"]));
    assert!(bench.answer_to("g1", register()).is_ok());
    bench.input(alive(&["p"]));
    for _ in 0..8 {
        bench.pass(5_000);
        assert!(bench.answer_to("g1", register()).is_ok());
    }
    assert!(bench.answer_to("p", publish(1)).is_ok());
    assert_eq!(bench.pushes("g1").len(), 1);
    bench.pass(30_000);
    assert!(bench.answer_to("p", publish(2)).is_ok());
    assert_eq!(bench.pushes("g1").len(), 0, "it has not been heard of");
}

/// The epoch in an answer to a registration.
fn registered(answer: Option<&Result<SlotAnswer, SlotError>>) -> Epoch {
    match answer {
        Some(Ok(SlotAnswer::Registered(points))) => points[0].epoch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_group_keeps_its_epoch_until_nobody_has_followed_it_for_long() {
    let mut bench = Bench::new();
    let follow = |bench: &mut Bench| {
        let ticket = bench.ask("g1", register());
        registered(bench.answer(ticket))
    };
    let leave = |bench: &mut Bench| {
        assert!(bench.answer_to("g1", Unregister(vec![group()])).is_ok());
    };
    let first = follow(&mut bench);
    for _ in 0..6 {
        bench.pass(10_000);
        assert_eq!(follow(&mut bench), first, "it is followed");
    }
    bench.term += 1;
    bench.map("p", &["p"]);
    bench.pass(5_000);
    assert_eq!(follow(&mut bench), first, "a new primary does not know yet who follows it");
    leave(&mut bench);
    bench.pass(5_000);
    assert_eq!(follow(&mut bench), first, "whoever left may come back");
    leave(&mut bench);
    bench.pass(15_000);
    assert_ne!(follow(&mut bench), first, "it is forgotten");
}

#[test]
fn who_comes_while_a_group_is_being_forgotten_follows_the_one_that_takes_its_place() {
    let mut bench = Bench::new();
    bench.share();
    let ticket = bench.ask("g1", register());
    bench.acknowledge();
    let first = registered(bench.answer(ticket));
    assert!(bench.answer_to("g1", Unregister(vec![group()])).is_ok());
    bench.pass(15_000);
    assert!(bench.core.replica().uncommitted() > 0, "its end is under way");
    let ticket = bench.ask("g1", register());
    assert_eq!(bench.answer(ticket), None, "what is about to go is not what it follows");
    bench.acknowledge();
    let second = registered(bench.answer(ticket));
    assert_ne!(second, first);
    bench.ask("g2", publish(1));
    bench.acknowledge();
    assert!(matches!(&bench.pushes("g1")[..], [Push::Group(_, GroupPush::Deliver { epoch, .. })] if *epoch == second));
}

#[test]
fn an_interest_that_came_after_its_gateway_had_left_goes_unrenewed() {
    let mut bench = Bench::new();
    bench.share();
    bench.ask("g1", register());
    assert!(bench.answer_to("g1", Unregister(vec![group()])).is_ok());
    bench.acknowledge();
    assert_eq!(bench.core.followed().count(), 1, "the registration waited for its group");
    bench.pass(25_000);
    assert_eq!(bench.core.followed().count(), 0);
}

#[test]
fn a_slot_that_cannot_commit_does_not_order_the_same_again_and_again() {
    let mut bench = Bench::with_session();
    let attached = bench.attach("g1", 1);
    let attachment = bench.attached(attached);
    bench.ask("g1", (SESSION, RecordJoin { client: key(), group: group(), needs_grant: false }));
    bench.ask("g1", publish(1));
    bench.ask("g1", (SESSION, Detach { client: key(), attachment }));
    bench.pass(SETTINGS.resume_grace_ms + 1_000);
    let departs = |output: &SlotOutput| matches!(output, SlotOutput::Depart { .. });
    assert!(bench.out.iter().any(departs));
    // From here on the other copy acknowledges nothing, while the store and other slots answer.
    bench.share();
    let (mut saves, mut departures) = (0, 0);
    for _ in 0..720 {
        bench.pass(5_000);
        saves += bench.out.iter().filter(|output| matches!(output, SlotOutput::Save { .. })).count();
        departures += bench.out.iter().filter(|output| departs(output)).count();
        bench.store(true, None);
        if bench.out.iter().any(departs) {
            bench.out.retain(|output| !departs(output));
            bench.input(SlotInput::Departed {
                session: SESSION,
                client: key(),
                groups: BTreeMap::from([(group(), attachment)]),
            });
        }
    }
    assert!(saves > 0 && departures > 0);
    let waiting = bench.core.replica().uncommitted();
    assert!((1..=8).contains(&waiting), "{waiting} entries after an hour");
}

#[test]
fn what_orders_nothing_is_answered_though_the_queue_is_full() {
    let mut bench = Bench::new();
    assert!(bench.answer_to("g1", register()).is_ok());
    bench.share();
    for key in 0..SETTINGS.queue as u128 {
        bench.ask("g1", publish(key));
    }
    assert_eq!(bench.answer_to("g1", publish(1_000)), Err(SlotError::Busy));
    assert_eq!(bench.answer_to("g2", (SESSION, CreateSession { record: record() })), Err(SlotError::Busy));
    assert!(bench.answer_to("g2", register()).is_ok());
    assert!(bench.answer_to("g2", (group(), ReadHistory { since: None, limit: 1 })).is_ok());
    assert!(bench.answer_to("g1", Unregister(vec![group()])).is_ok());
    let other = Interest { group: GroupName::parse("h").unwrap(), since: None };
    let opens = Register(vec![other]);
    assert_eq!(bench.answer_to("g1", opens), Err(SlotError::Busy), "it would have to be opened");
}

#[test]
fn an_attachment_that_is_not_renewed_ends() {
    let mut bench = Bench::with_session();
    let attached = bench.attach("g1", 1);
    let number = bench.attached(attached);
    for _ in 0..6 {
        bench.pass(5_000);
        bench.renew("g1", number, 1);
    }
    assert!(bench.view().is_attached());
    bench.ask("g1", (SESSION, Detach { client: key(), attachment: number }));
    assert!(!bench.view().is_attached());
    // A renewal that was asked before the detach and comes after it.
    bench.renew("g1", number, 1);
    assert!(!bench.view().is_attached(), "its gateway has said that the connection is gone");
    let again = bench.attach("g1", 2);
    bench.attached(again);
    bench.pass(22_000);
    assert!(!bench.view().is_attached(), "nobody has renewed it");
}

#[test]
fn a_slot_that_has_forgotten_an_attachment_asks_the_store() {
    let mut bench = Bench::new();
    let number = 900;
    bench.renew("g1", number, 1);
    bench.store(true, Some(record()));
    assert!(bench.view().is_attached());
    bench.renew("g1", number, 1);
    assert_eq!(bench.pushes("g1"), [], "it is the same attachment, by the same number");
    assert_eq!(
        bench.answer_to("g1", (SESSION, Detach { client: key(), attachment: number })),
        Ok(SlotAnswer::Done(Done))
    );
    assert!(!bench.view().is_attached());

    let mut bench = Bench::new();
    bench.renew("g1", number, 1);
    bench.store(true, None);
    assert_eq!(bench.pushes("g1"), [Push::Session(SESSION, SessionPush::Ended { reason: EndReason::Ended })]);
}

#[test]
fn an_end_is_told_and_a_repeat_waits_for_the_store_too() {
    let mut bench = Bench::with_session();
    bench.attach("g1", 1);
    let first = bench.ask("g2", (SESSION, EndSession));
    assert_eq!(bench.pushes("g1"), [Push::Session(SESSION, SessionPush::Ended { reason: EndReason::Ended })]);
    bench.store(false, None);
    assert_eq!(bench.answer(first), Some(&Err(SlotError::Unknown)));
    let again = bench.ask("g2", (SESSION, EndSession));
    assert_eq!(bench.answer(again), None);
    bench.store(true, None);
    assert_eq!(bench.answer(again), Some(&Ok(SlotAnswer::Done(Done))));
}

#[test]
fn what_an_earlier_primary_had_ordered_is_told_by_the_one_that_commits_it() {
    let mut bench = Bench::with_session();
    bench.attach("g1", 1);
    bench.share();
    bench.ask("g2", (SESSION, EndSession));
    assert_eq!(bench.pushes("g1"), []);
    bench.term += 1;
    bench.map("q", &["p", "q"]);
    bench.term += 1;
    bench.map("p", &["p"]);
    assert_eq!(bench.pushes("g1"), [Push::Session(SESSION, SessionPush::Ended { reason: EndReason::Ended })]);
}

#[test]
fn a_request_that_crosses_with_the_forgetting_of_its_session_is_to_be_repeated() {
    let mut bench = Bench::with_session();
    bench.share();
    // The timer orders the forgetting, which waits for `q`.
    bench.now_ms += SETTINGS.memory_ttl_ms;
    bench.pass(1_000);
    assert!(bench.core.replica().uncommitted() > 0);
    let crossing = bench.ask("g1", (SESSION, ChangeSession { change: SessionChange::default() }));
    bench.map("p", &["p"]);
    assert_eq!(bench.answer(crossing), Some(&Err(SlotError::Busy)));
    let again = bench.ask("g1", (SESSION, ReadSession));
    bench.store(true, Some(record()));
    assert!(bench.answer(again).unwrap().is_ok());
}

#[test]
fn a_repeated_creation_whose_write_fails_ends_nothing() {
    let mut bench = Bench::new();
    let first = bench.ask("g1", (SESSION, CreateSession { record: record() }));
    let second = bench.ask("g1", (SESSION, CreateSession { record: record() }));
    let saves: Vec<_> = bench
        .out
        .iter()
        .filter_map(|output| match output {
            SlotOutput::Save { index, .. } => Some(*index),
            _ => None,
        })
        .collect();
    assert_eq!(saves.len(), 2);
    bench.input(SlotInput::Saved { session: SESSION, index: saves[0], result: Ok(()) });
    bench.input(SlotInput::Saved { session: SESSION, index: saves[1], result: Err("down".to_owned()) });
    assert!(bench.answer(first).unwrap().is_ok());
    assert!(bench.answer(second).unwrap().is_err());
    bench.view();
}

#[test]
fn an_end_that_two_ask_for_is_answered_to_neither_before_the_store_has_it() {
    let mut bench = Bench::with_session();
    bench.share();
    let asked = [(); 2].map(|()| bench.ask("g1", (SESSION, EndSession)));
    bench.acknowledge();
    assert_eq!(asked.map(|ticket| bench.answer(ticket).cloned()), [None, None], "both were ordered, neither is stored");
    bench.store(true, None);
    assert_eq!(
        asked.map(|ticket| bench.answer(ticket).cloned()),
        [Some(Ok(SlotAnswer::Done(Done))), Some(Ok(SlotAnswer::Done(Done)))]
    );
}

#[test]
fn a_client_that_reconnects_costs_the_store_nothing() {
    let mut bench = Bench::with_session();
    for connection in 1..20 {
        let attached = bench.attach("g1", connection);
        let number = bench.attached(attached);
        bench.pass(2_000);
        bench.ask("g1", (SESSION, Detach { client: key(), attachment: number }));
        bench.pass(SETTINGS.resume_grace_ms - 100);
    }
    let saved = |bench: &Bench| {
        let of_save = |output: &SlotOutput| match output {
            SlotOutput::Save { record, .. } => Some(record.last_used_ms),
            _ => None,
        };
        bench.out.iter().filter_map(of_save).collect::<Vec<_>>()
    };
    assert!(saved(&bench).is_empty(), "it was attached for no long time");
    let detached_ms = bench.now_ms + 100 - SETTINGS.resume_grace_ms;
    bench.pass(1_000);
    assert_eq!(saved(&bench), [detached_ms], "from here on nobody else may know");
}

#[test]
fn the_store_learns_that_an_attached_session_is_used() {
    let mut bench = Bench::with_session();
    let attached = bench.attach("g1", 1);
    let number = bench.attached(attached);
    let mut noted = Vec::new();
    for _ in 0..220 {
        bench.pass(5_000);
        bench.renew("g1", number, 1);
        noted.extend(bench.out.iter().filter_map(|output| match output {
            SlotOutput::Save { record, .. } => Some(record.last_used_ms),
            _ => None,
        }));
        bench.store(true, None);
    }
    // Once in half the time after which an unused session ends.
    assert_eq!(noted.len(), 2, "{noted:?}");
    assert!(noted.is_sorted_by(|one, two| *two >= *one + 500_000), "{noted:?}");
    assert_eq!(bench.pushes("g1"), []);
    assert!(bench.view().is_attached());
}

#[test]
fn a_creation_that_was_given_up_is_never_acknowledged_afterwards() {
    let refused = |answer: Option<&Result<SlotAnswer, SlotError>>| {
        assert!(matches!(answer, Some(Err(SlotError::StoreUnavailable(_)))), "{answer:?}");
    };
    let mut bench = Bench::new();
    let create = || (SESSION, CreateSession { record: record() });
    let first = bench.ask("g1", create());
    let second = bench.ask("g1", create());
    let of_save = |output: &SlotOutput| match output {
        SlotOutput::Save { index, .. } => Some(*index),
        _ => None,
    };
    let saves: Vec<_> = bench.out.iter().filter_map(of_save).collect();
    bench.out.retain(|output| of_save(output).is_none());
    // The write of the first failed, that of its repeat came through: whichever is answered, the session is over.
    bench.input(SlotInput::Saved { session: SESSION, index: saves[0], result: Err("down".to_owned()) });
    bench.input(SlotInput::Saved { session: SESSION, index: saves[1], result: Ok(()) });
    refused(bench.answer(first));
    refused(bench.answer(second));
    // A repeat that comes before the end is stored, and one after that.
    let third = bench.ask("g1", create());
    refused(bench.answer(third));
    bench.pass(2_000);
    bench.store(true, None);
    let fourth = bench.ask("g1", create());
    refused(bench.answer(fourth));
}
