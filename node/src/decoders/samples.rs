//! Values that seeds are made of, and the ways in which bytes are several things.

use std::{collections::BTreeMap, num::NonZero, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    id::{ClientId, ClientKey, Epoch, GroupName, Member, NodeId, Position, PublishKey, Seat, SessionId, SlotId},
    logic::{
        entry::{
            Entry, EphemeralMessage, Grant, GroupEntry, Joined, MemberEvent, Message, NewMessage, Presence, Present,
            Publisher, Retention, SessionChange, SessionEntry, SessionRecord,
        },
        lease::LeaseMessage,
        map::{ClusterMap, MapRequest},
        memory::Level,
        replication::{Reconcile, ReplicationMessage},
        request::{
            Attach, Attached, ChangeSession, ClientView, ConfirmDisplaced, CreateSession, Detach, Displaced, Done,
            EndSession, GroupPush, GroupRequest, History, Interest, Join, JoinPoint, Leave, Publish, PublishEphemeral,
            Published, Push, ReadGroup, ReadHistory, ReadMembers, ReadSession, RecordJoin, RecordLeave, Renewal,
            Renewed, SessionPush, SessionRequest, SlotAnswer, SlotError, SlotRequest, UpdateMember, Withdraw,
        },
        session::{Room, WhenFull},
        slot::{Place, SlotState},
    },
    wire::peer::{Farewell, NodeAnswer, NodeRequest, PeerFrame, Whom, encode_into},
};

/// The first start of a node.
pub(crate) fn member(name: &str) -> Member {
    Member { node: NodeId::parse(name).expect("a sample's name is a node's"), generation: 1 }
}

/// A group.
pub(crate) fn group(name: &str) -> GroupName {
    GroupName::parse(name).expect("a sample's name is a group's")
}

/// A session with something of everything.
pub(crate) fn record() -> SessionRecord {
    SessionRecord {
        id: SessionId(Uuid::from_u128(7)),
        user: "ann".to_owned(),
        created_ms: 1,
        expires_ms: u64::MAX,
        idle_ttl_ms: 3_600_000,
        last_used_ms: 4,
        attributes: Bytes::from_static(br#"{"name":"Ann"}"#),
        groups: [group("g"), group("chat:é")].into(),
        grants: vec![Grant { pattern: "chat:*".to_owned(), join: true, publish: false }],
        revision: 5,
        token: 0,
        clients_max: NonZero::new(2),
    }
}

fn joined() -> Joined {
    Joined::from([(group("chat:é"), false), (group("h"), true)])
}

fn view() -> ClientView {
    ClientView { record: record(), joined: joined() }
}

/// Pieces, each after its length in two bytes; what there is of the last where it is cut.
pub(crate) fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (piece, after) = after.split_at(length);
        rest = after;
        Some(piece)
    })
}

/// The frame as it stands on a lane, after its length.
pub(super) fn on_lane(frame: &PeerFrame) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    encode_into(frame, &mut bytes).expect("a sample has a form");
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

const KEEP: Retention =
    Retention { messages: 10, bytes: 1_000, age_ms: 10_000, window_ms: 300_000, window_publishes: 10_000 };
const SESSION: SessionId = SessionId(Uuid::from_u128(7));
const SEAT: Seat = Seat { session: SESSION, client: ClientKey(11), attachment: 3 };
const PRESENT: Present = Present { sessions: 2, clients: 3, users: 1, anonymous: 1 };
const ROOM: Room = Room { clients_max: 2, when_full: WhenFull::Displace };

fn client() -> ClientId {
    ClientId::made(1)
}

fn presence() -> Presence {
    Presence {
        session: SESSION,
        client: client().key(),
        user: "ann".into(),
        info: Bytes::from_static(b"{}"),
        revision: 2,
        attachment: 3,
    }
}

fn message(offset: u64) -> Message {
    let from = Some(Publisher { session: SESSION, user: "ann".into() });
    Message { offset, data: Bytes::from_static(b"[1]"), from, at_ms: 9 }
}

fn new_message(key: u128, data: &'static [u8]) -> NewMessage {
    NewMessage { key: PublishKey(key), data: Bytes::from_static(data) }
}

fn publish() -> GroupEntry {
    let messages = [new_message(4, b"{}"), new_message(6, b"[]"), new_message(4, b"{}")].into();
    GroupEntry::Publish { epoch: Epoch(3), messages, from: None, at_ms: 5, retention: KEEP }
}

fn entries() -> Vec<Arc<Entry>> {
    let (gateway, attachment) = (member("n2"), 3);
    let of_group = [
        GroupEntry::Open { epoch: Epoch(3) },
        publish(),
        GroupEntry::Recall { keys: vec![PublishKey(4), PublishKey(6)] },
        GroupEntry::MemberJoin { epoch: Epoch(3), member: presence() },
        GroupEntry::MemberUpdate { member: Presence { revision: 3, ..presence() } },
        GroupEntry::MemberLeave { seat: SEAT },
        GroupEntry::Trim { at_ms: 9, remove: true },
    ];
    let change = SessionChange { join: vec![group("h")], new_token: true, ..SessionChange::default() };
    let (at_ms, since_ms, connection, grace_until_ms, key) = (8, 7, 6, 99, client().key());
    let of_session = [
        SessionEntry::Put { record: record(), stored: false },
        SessionEntry::Attach {
            client: client(),
            gateway: gateway.clone(),
            connection,
            since_ms,
            at_ms,
            token: 0,
            room: ROOM,
        },
        SessionEntry::Change { change, at_ms },
        SessionEntry::Restore {
            client: client(),
            gateway: gateway.clone(),
            connection,
            attachment,
            revision: 9,
            joined: joined(),
            room: ROOM,
        },
        SessionEntry::Join { client: key, group: group("g"), needs_grant: false },
        SessionEntry::Detach { client: key, gateway: gateway.clone(), attachment, at_ms, grace_until_ms, closed: true },
        SessionEntry::Withdraw { client: key, gateway: gateway.clone(), connection, at_ms, grace_until_ms },
        SessionEntry::Closed { client: key, gateway, attachment },
        SessionEntry::GraceOver { client: key, attachment },
        SessionEntry::Leave { client: key, attachment, group: group("g"), at_ms },
        SessionEntry::Departed { client: key, groups: BTreeMap::from([(group("g"), attachment)]) },
        SessionEntry::Saved { index: 2 },
        SessionEntry::ForgetClient { client: key, attachment },
        SessionEntry::Forget,
    ];
    let of_group = of_group.into_iter().map(|entry| Arc::new(Entry::Group(group("g"), entry)));
    of_group.chain(of_session.into_iter().map(|entry| Arc::new(Entry::Session(SESSION, entry)))).collect()
}

/// A state that these entries made, as it travels: as one piece, and in small ones.
fn snapshot() -> Vec<ReplicationMessage> {
    let mut state = SlotState::default();
    let entries = entries();
    for (index, entry) in (1..).zip(&entries[..10]) {
        state.apply(index, Entry::clone(entry));
    }
    let piece = |index, number, is_last, part| {
        let (term, sync, lineage) = (2, 4, 1);
        ReplicationMessage::Piece { term, sync, lineage, index, number, is_last, part }
    };
    let mut pieces = vec![piece(9, 0, true, state.piece(&Place::default(), 1 << 20).0)];
    let (mut number, mut next) = (0, Some(Place::default()));
    while let Some(place) = next {
        let (part, after) = state.piece(&place, 1);
        pieces.push(piece(10, number, after.is_none(), part));
        (number, next) = (number + 1, after);
    }
    pieces
}

fn replication(slot: SlotId) -> Vec<PeerFrame> {
    let append = |reconcile, first, entries| ReplicationMessage::Append {
        term: 2,
        sync: 4,
        reconcile,
        first,
        commit: 9,
        entries,
    };
    let messages = [
        append(Some(Reconcile { base: 0, until: 2 }), 1, entries()),
        append(None, 1, entries()),
        append(None, 20, vec![Arc::new(Entry::Group(group("g"), publish()))]),
        ReplicationMessage::Ack { term: 1, sync: 3, index: 2, gap: false },
        ReplicationMessage::Ack { term: 1, sync: 3, index: 0, gap: true },
        ReplicationMessage::PieceAck { term: 1, sync: 3, index: 2, count: 1 },
    ];
    snapshot().into_iter().chain(messages).map(|message| PeerFrame::Replication { slot, message }).collect()
}

fn requests(slot: SlotId) -> Vec<PeerFrame> {
    let since = Some(Position { epoch: Epoch(3), offset: 1 });
    let renewal =
        Renewal { session: SESSION, client: client(), attachment: 3, connection: 6, revision: 5, joined: None };
    let change = SessionChange {
        attributes: Some(Bytes::from_static(b"{}")),
        leave: vec![group("g")],
        ..SessionChange::default()
    };
    let publish = Publish {
        messages: [new_message(4, b"2"), new_message(5, b"3")].into(),
        from: None,
        retention: KEEP,
        min_copies: 1,
    };
    let of_group = [
        GroupRequest::Publish(publish),
        GroupRequest::Join(Join { member: Some(presence()), since }),
        GroupRequest::ReadHistory(ReadHistory { since, limit: 10 }),
        GroupRequest::ReadMembers(ReadMembers { after: Some(SESSION), limit: 10 }),
        GroupRequest::ReadGroup(ReadGroup),
        GroupRequest::UpdateMember(UpdateMember { member: presence(), enters: true }),
        GroupRequest::Leave(Leave { seat: SEAT }),
        GroupRequest::PublishEphemeral(PublishEphemeral { data: [message(1).data].into(), from: message(1).from }),
    ];
    let of_session = [
        SessionRequest::CreateSession(CreateSession { record: record() }),
        SessionRequest::Attach(Attach { client: client(), connection: 6, waited_ms: 1, token: 0 }),
        SessionRequest::ReadSession(ReadSession),
        SessionRequest::RecordJoin(RecordJoin { client: SEAT.client, group: group("h"), needs_grant: true }),
        SessionRequest::ChangeSession(ChangeSession { change }),
        SessionRequest::RecordLeave(RecordLeave { client: SEAT.client, attachment: 3, group: group("g") }),
        SessionRequest::ConfirmDisplaced(ConfirmDisplaced { client: SEAT.client, attachment: 3 }),
        SessionRequest::Withdraw(Withdraw { client: SEAT.client, connection: 6 }),
        SessionRequest::Detach(Detach { client: SEAT.client, attachment: 3 }),
        SessionRequest::EndSession(EndSession),
    ];
    let of_group = of_group.into_iter().map(|request| SlotRequest::Group(group("g"), request));
    let of_session = of_session.into_iter().map(|request| SlotRequest::Session(SESSION, request));
    let of_slot = [
        SlotRequest::Register {
            interests: vec![Interest { group: group("g"), since }, Interest { group: group("h"), since: None }],
        },
        SlotRequest::Renew { attachments: vec![renewal.clone(), Renewal { joined: Some(joined()), ..renewal }] },
        SlotRequest::Unregister { groups: vec![group("h")] },
    ];
    let all = of_slot.into_iter().chain(of_group).chain(of_session);
    all.map(|request| PeerFrame::Request { id: 1, slot, term: 1, sent_ms: 2, wait_ms: 3, request }).collect()
}

fn answers() -> Vec<PeerFrame> {
    let position = Position { epoch: Epoch(3), offset: 2 };
    let point = JoinPoint {
        group: group("g"),
        epoch: Epoch(3),
        head: 3,
        up_to: 2,
        recovered: true,
        messages: vec![message(1), message(2)],
        present: PRESENT,
    };
    let answers = [
        Ok(SlotAnswer::Registered(vec![point.clone()])),
        Ok(SlotAnswer::Joined(point)),
        Ok(SlotAnswer::Done(Done)),
        Ok(SlotAnswer::Renewed(Renewed {
            confirmed: vec![(SESSION, SEAT.client)],
            wanted: vec![(SessionId(Uuid::from_u128(8)), SEAT.client)],
        })),
        Ok(SlotAnswer::Published([Ok(Published { position, copies: 2 }), Err(SlotError::Full)].into())),
        Ok(SlotAnswer::History(History { position: Some(position), complete: true, messages: vec![message(2)] })),
        Ok(SlotAnswer::Attached(Attached { view: view(), attachment: 3 })),
        Err(SlotError::NotPrimary { map_version: 9, ordered: false }),
        Err(SlotError::StoreUnavailable("words".to_owned())),
    ];
    answers.into_iter().map(|result| PeerFrame::Response { id: 1, voters: 4, result }).collect()
}

fn ephemeral() -> EphemeralMessage {
    let Message { data, from, at_ms, .. } = message(1);
    EphemeralMessage { data, from, at_ms }
}

fn pushes(slot: SlotId) -> Vec<PeerFrame> {
    let pushes = [
        Push::Group(group("g"), GroupPush::Deliver { epoch: Epoch(3), messages: [message(1)].into() }),
        Push::Group(group("g"), GroupPush::Deliver { epoch: Epoch(3), messages: [message(4), message(5)].into() }),
        Push::Group(group("g"), GroupPush::Member { event: MemberEvent::Update, member: presence(), present: PRESENT }),
        Push::Group(group("g"), GroupPush::Ephemeral { messages: [ephemeral()].into() }),
        Push::Session(SESSION, SessionPush::Displace { client: SEAT.client, why: Displaced::Elsewhere, attachment: 3 }),
        Push::Session(SESSION, SessionPush::Changed { client: SEAT.client, view: view() }),
    ];
    pushes.map(|push| PeerFrame::Push { slot, term: 2, voters: 4, push }).to_vec()
}

/// Lanes: a kind of frame each, and all of them. `map` is the map that the node knows which hears them.
pub(super) fn lanes(map: &ClusterMap) -> Vec<Vec<u8>> {
    let mut next = map.clone();
    next.version += 1;
    let learner = MapRequest::Promote { slot: 0, changed_at: 3, learner: member("n2") };
    let drop = MapRequest::Drop { slot: 1, changed_at: 4, member: member("n1") };
    let gateway = member("n2");
    let leases = [
        LeaseMessage::Beat { sent_ms: 1_000_000 },
        LeaseMessage::Ack { sent_ms: 1_000_000, number: 1, map_version: 4 },
        LeaseMessage::Fence { gateway: gateway.clone(), round: 1, map_version: 4 },
        LeaseMessage::Lapsed { gateway, round: 1 },
    ];
    let leases = leases.map(PeerFrame::Lease).to_vec();
    let of_nodes = vec![
        PeerFrame::Map(Arc::new(next)),
        PeerFrame::FetchMap { newer_than: 3 },
        PeerFrame::MapRequests(vec![learner, drop]),
        PeerFrame::NodeRequest { id: 1, request: NodeRequest::ListGroups { after: "g".to_owned(), limit: 10 } },
        PeerFrame::NodeRequest {
            id: 2,
            request: NodeRequest::Disconnect {
                whom: Whom::Session { session: SESSION, client: Some(ClientId::made(1)) },
                farewell: Farewell { reconnect: true, after_ms: 5, words: Some("w".to_owned()), code: Some(7) },
            },
        },
        PeerFrame::NodeRequest {
            id: 3,
            request: NodeRequest::Send { session: SESSION, client: ClientId::made(1), data: "1".into() },
        },
        PeerFrame::NodeResponse { id: 1, answer: NodeAnswer::OtherDrains { node: "n3".to_owned() } },
        PeerFrame::Probe { origin: member("n2"), nonce: 1, wall_ms: 2 },
        PeerFrame::Memory(Level::Full),
    ];
    let kinds = [replication(1), replication(0), requests(0), requests(2), answers(), pushes(1), of_nodes, leases];
    let lane = |frames: &Vec<PeerFrame>| frames.iter().flat_map(on_lane).collect::<Vec<u8>>();
    let mut seeds: Vec<Vec<u8>> = kinds.iter().map(lane).collect();
    seeds.push(seeds.concat());
    seeds
}
