//! What nodes say to each other, and how it becomes bytes (bincode 2, fixed-width integers).
//!
//! The only file that names bincode, so that it can be replaced. The wire's version is in the ALPN (`peer::tls`), and a
//! frame of a kind that this version does not know is an error of that frame alone.

use bincode::{
    config::{Configuration, Fixint, Limit, LittleEndian, NoLimit},
    enc::write::Writer,
    error::{DecodeError, EncodeError},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    id::{ClientId, Member, NODE_NAME_MAX_BYTES, SessionId, SlotId, Term},
    logic::{
        lease::LeaseMessage,
        map::{MapRequest, SharedMap},
        memory::Level,
        replication::ReplicationMessage,
        request::{Push, SlotAnswer, SlotError, SlotRequest},
    },
};

/// One message between nodes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum PeerFrame {
    /// Between the members of a slot.
    Replication {
        slot: SlotId,
        /// The message; it carries its term.
        message: ReplicationMessage,
    },
    /// From a gateway to a slot's primary.
    Request {
        /// Unique for the asking process.
        id: u64,
        slot: SlotId,
        /// The term under which the asker believes the receiver to be primary.
        #[serde(deserialize_with = "crate::id::number")]
        term: Term,
        /// When it was sent, in milliseconds by the asker's own clock.
        sent_ms: u64,
        /// The asker waits for the answer for this time; a request older than that must not be carried out.
        wait_ms: u32,
        /// What is asked.
        request: SlotRequest,
    },
    Response {
        /// Of the request.
        id: u64,
        /// Since which map the voters are those that the sender knows ([`Ahead`](crate::logic::lease::Ahead)).
        #[serde(deserialize_with = "crate::id::number")]
        voters: u64,
        result: Result<SlotAnswer, SlotError>,
    },
    /// From a slot's primary to a gateway.
    Push {
        slot: SlotId,
        /// The primary's term.
        #[serde(deserialize_with = "crate::id::number")]
        term: Term,
        /// As in a [`PeerFrame::Response`].
        #[serde(deserialize_with = "crate::id::number")]
        voters: u64,
        push: Push,
    },
    /// Asks for the cluster map if the receiver's is newer than this version.
    FetchMap {
        /// What the asker has.
        newer_than: u64,
    },
    /// A confirmed cluster map.
    Map(SharedMap),
    /// To the steward.
    MapRequests(Vec<MapRequest>),
    /// How pressed for memory its sender is.
    Memory(Level),
    /// Asks one node, not a slot.
    NodeRequest {
        /// Unique for the asking process.
        id: u64,
        /// What is asked.
        request: NodeRequest,
    },
    /// The answer; nothing where it could not be carried out.
    NodeResponse {
        /// Of the request.
        id: u64,
        answer: NodeAnswer,
    },
    /// On its way from `origin` through the receiver back to `origin`: proves that the node can be heard.
    Probe {
        /// Who sent it first.
        origin: Member,
        /// The origin's number for it.
        nonce: u64,
        /// The wall clock of whoever sent this frame, in milliseconds since 1970.
        wall_ms: u64,
    },
    /// About who may deliver.
    Lease(LeaseMessage),
}

impl PeerFrame {
    /// What it is, for the log.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Replication { .. } => "replication",
            Self::Request { .. } => "request",
            Self::Response { .. } => "response",
            Self::Push { .. } => "push",
            Self::FetchMap { .. } | Self::Map(_) | Self::MapRequests(_) => "map",
            Self::NodeRequest { .. } | Self::NodeResponse { .. } => "node",
            Self::Probe { .. } => "probe",
            Self::Lease(_) => "lease",
            Self::Memory(_) => "memory",
        }
    }
}

/// Asked of a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum NodeRequest {
    /// The groups of all slots that the node is primary of, by name. → `Groups`
    ListGroups {
        /// After this name.
        after: String,
        /// The most groups that are answered.
        limit: u32,
    },
    /// Begin to drain. → `Done`, or `OtherDrains`
    Drain {
        /// Also while another node drains.
        force: bool,
    },
    /// Disconnect clients that are connected to the node; their sessions go on. → `Disconnected`
    Disconnect { whom: Whom, farewell: Farewell },
    /// Send something to a client that is connected to the node, at most once. → `Done`, or `NotHere`
    Send {
        session: SessionId,
        client: ClientId,
        /// JSON text.
        data: Bytes,
    },
    /// Count this node's present start as lost for good (operator's word). Asked of the steward. → `Done`
    Forget {
        /// The node's name.
        node: String,
    },
}

/// Clients that a backend means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Whom {
    /// All clients of a session, or one of them.
    Session { session: SessionId, client: Option<ClientId> },
    /// All clients of all sessions of a user.
    User(String),
}

/// What a client is told that a backend disconnects.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Farewell {
    /// Whether it is to come back, with the same session.
    pub reconnect: bool,
    /// When, in milliseconds from now.
    pub after_ms: u32,
    /// Why, for people.
    pub words: Option<String>,
    /// With a meaning of the application's own, up to [`CODE_MAX`].
    pub code: Option<u8>,
}

/// The highest code that an application gives where it disconnects a client.
pub const CODE_MAX: u8 = 99;

impl Farewell {
    /// The close code; nothing for the usual one. It says whether the client is to come back.
    pub fn close_code(&self) -> Option<u16> {
        let first = if self.reconnect { 4_500 } else { 4_600 };
        self.code.filter(|code| *code <= CODE_MAX).map(|code| first + u16::from(code))
    }
}

/// The answer to a [`NodeRequest`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum NodeAnswer {
    /// Sorted by name.
    Groups {
        /// What there is.
        groups: Vec<crate::logic::request::GroupInfo>,
        /// There are more after the last.
        more: bool,
    },
    /// This number of clients were told to go.
    Disconnected { clients: u64 },
    /// The client is not connected to the node.
    NotHere,
    /// Done.
    Done,
    /// Not done: this node drains, and one at a time is to.
    OtherDrains {
        /// The node's name.
        node: String,
    },
    /// Refused, with the reason.
    Refused(String),
}

/// The longest frame. What may be longer goes in pieces; what cannot is bounded below, and by the configuration.
pub const FRAME_MAX_BYTES: usize = 16 << 20;

/// The longest data of a message that a configuration may allow: what a frame has beside one message (up to 4 MiB of others
/// in an answer, 1 MiB in an append) has room.
pub const MESSAGE_MAX_BYTES: usize = 8 << 20;

/// The longest request. One that is longer is not ordered: the entry would not get to any copy.
pub const REQUEST_MAX_BYTES: usize = MESSAGE_MAX_BYTES + (1 << 20);

/// The longest text of the settings that all nodes share, in the greeting of a connection.
pub const SETTINGS_MAX_BYTES: usize = 48 << 10;

/// The most groups of a session that a configuration may allow: its record has to fit a frame.
pub const SESSION_GROUPS_MAX: usize = 10_000;

/// The most slots whose map surely fits a frame, with this number of copies of each: all names as long as they may be, each
/// slot with a primary, a learner, and a member that is to leave.
pub const fn slots_max(copies: u8) -> u16 {
    const NUMBERS_BYTES: usize = 64;
    let slot_bytes = NUMBERS_BYTES + (copies as usize + 3) * (NODE_NAME_MAX_BYTES + 16);
    let most = (FRAME_MAX_BYTES - (1 << 20)) / slot_bytes;
    if most < u16::MAX as usize { most as u16 } else { u16::MAX }
}

/// Why bytes are no frame, or a frame has no bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// A value that the format cannot say.
    #[error("the frame cannot be encoded: {0}")]
    Encode(String),
    /// Not a frame of this wire version.
    #[error("not a frame of this wire version: {0}")]
    Decode(String),
    /// A frame, and then something else.
    #[error("{0} bytes follow the frame")]
    Trailing(usize),
}

/// Appends the frame's bytes. On an error `out` holds part of them.
pub fn encode_into(frame: &PeerFrame, out: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_writer(frame, Append(out), unlimited())
        .map_err(|error| CodecError::Encode(error.to_string()))
}

/// Reads a frame that the bytes hold whole. What it allocates is in proportion to the bytes there are, whatever lengths
/// they announce.
pub fn decode(bytes: &[u8]) -> Result<PeerFrame, CodecError> {
    let decoded = match bytes.len() {
        0..=0x1000 => decode_within::<0x1000>(bytes),
        0x1001..=0x4000 => decode_within::<0x4000>(bytes),
        0x4001..=0x1_0000 => decode_within::<0x1_0000>(bytes),
        0x1_0001..=0x4_0000 => decode_within::<0x4_0000>(bytes),
        0x4_0001..=0x10_0000 => decode_within::<0x10_0000>(bytes),
        0x10_0001..=0x40_0000 => decode_within::<0x40_0000>(bytes),
        _ => decode_within::<FRAME_MAX_BYTES>(bytes),
    };
    let (frame, read) = decoded.map_err(|error| CodecError::Decode(error.to_string()))?;
    match bytes.len() - read {
        0 => Ok(frame),
        rest => Err(CodecError::Trailing(rest)),
    }
}

/// The limit is part of bincode's configuration type, hence one for each order of size.
fn decode_within<const LIMIT: usize>(bytes: &[u8]) -> Result<(PeerFrame, usize), DecodeError> {
    let config: Configuration<LittleEndian, Fixint, Limit<LIMIT>> = unlimited().with_limit::<LIMIT>();
    bincode::serde::decode_from_slice(bytes, config)
}

const fn unlimited() -> Configuration<LittleEndian, Fixint, NoLimit> {
    bincode::config::standard().with_fixed_int_encoding()
}

struct Append<'a>(&'a mut Vec<u8>);

impl Writer for Append<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        id::{ClientId, ClientKey, Epoch, GroupName, NUMBER_MAX, NodeId, Position, SessionId},
        logic::{
            encoded,
            entry::{
                Entry, GroupEntry, Message, NewMessage, Presence, Publisher, Retention, SessionEntry, SessionRecord,
            },
            few::Few,
            map::ClusterMap,
            replication::Reconcile,
            request::{GroupPush, Interest, JoinPoint, Renewal},
            slot::{Place, SlotState},
        },
    };

    fn check_round_trip(frame: &PeerFrame) {
        let mut bytes = Vec::new();
        encode_into(frame, &mut bytes).unwrap();
        assert_eq!(decode(&bytes).as_ref(), Ok(frame));
        assert_eq!(encoded::bytes(frame), bytes.len(), "bounds are counted without the bytes");
        assert!(decode(&bytes[..bytes.len() - 1]).is_err(), "a cut frame was taken");
        bytes.push(0);
        assert_eq!(decode(&bytes), Err(CodecError::Trailing(1)));
    }

    fn refused(length: usize) -> PeerFrame {
        PeerFrame::NodeResponse { id: 7, answer: NodeAnswer::Refused("x".repeat(length)) }
    }

    #[test]
    fn frames_come_back_whatever_their_size() {
        check_round_trip(&PeerFrame::FetchMap { newer_than: u64::MAX });
        check_round_trip(&PeerFrame::Memory(Level::Tight));
        let origin = Member { node: NodeId::parse("n1").unwrap(), generation: 3 };
        check_round_trip(&PeerFrame::Probe { origin, nonce: 9, wall_ms: 8 });
        // The envelope of `Refused` has 24 bytes: sizes about the borders between the limits.
        for limit in [0x1000, 0x4000, 0x1_0000, 0x40_0000] {
            for length in limit - 27..limit - 20 {
                check_round_trip(&refused(length));
            }
        }
        check_round_trip(&refused(FRAME_MAX_BYTES - 25));
    }

    #[test]
    fn few_travel_as_a_list_does() {
        for list in [vec![], vec![7_u64], vec![7, 8], vec![7; 3_000]] {
            let few: Few<u64> = list.iter().copied().collect();
            let bytes = bincode::serde::encode_to_vec(&list, unlimited()).unwrap();
            assert_eq!(bincode::serde::encode_to_vec(&few, unlimited()).unwrap(), bytes);
            let read: (Few<u64>, usize) = bincode::serde::decode_from_slice(&bytes, unlimited()).unwrap();
            assert_eq!(read, (few, bytes.len()));
        }
        // What says that it is long is not given room for that.
        let claims = bincode::serde::encode_to_vec((u64::MAX >> 8, 1_u64, 2_u64, 3_u64), unlimited()).unwrap();
        assert!(bincode::serde::decode_from_slice::<Few<u64>, _>(&claims, unlimited()).is_err());
    }

    #[test]
    fn a_piece_of_a_slot_comes_back() {
        let (session, group) = (SessionId(uuid::Uuid::from_u128(7)), GroupName::parse("g").unwrap());
        let retention = Retention { messages: 9, bytes: 99, age_ms: 9, window_ms: 9, window_publishes: 9 };
        let (epoch, user) = (Epoch(1), || "somebody".to_owned());
        let member = Presence {
            session,
            client: ClientKey(1),
            user: user().into(),
            info: Bytes::from_static(b"{}"),
            revision: 1,
            attachment: 3,
        };
        let from = Some(Publisher { session, user: user().into() });
        let message = |key| NewMessage { key: crate::id::PublishKey(key), data: Bytes::from_static(b"1") };
        let messages = [message(5), message(6)].into();
        let record = SessionRecord {
            id: session,
            user: user(),
            created_ms: 1,
            expires_ms: 2,
            idle_ttl_ms: 3,
            last_used_ms: 1,
            attributes: Bytes::from_static(b"{}"),
            groups: [group.clone()].into(),
            grants: Vec::new(),
            revision: 0,
            token: 0,
            clients_max: None,
        };
        let mut state = SlotState::default();
        let entries = [
            Entry::Group(group.clone(), GroupEntry::Publish { epoch, messages, from, at_ms: 1, retention }),
            Entry::Group(group, GroupEntry::MemberJoin { epoch, member }),
            Entry::Session(session, SessionEntry::Put { record, stored: true }),
        ];
        for (index, entry) in (1..).zip(entries) {
            let first = NUMBER_MAX;
            let (reconcile, entries) = (None, vec![Arc::new(entry.clone())]);
            let message = ReplicationMessage::Append { term: 1, sync: 1, reconcile, first, commit: 1, entries };
            check_round_trip(&PeerFrame::Replication { slot: 1, message });
            state.apply(index, entry);
        }
        let part = state.piece(&Place::default(), 1 << 20).0;
        let piece = |numbers: [u64; 5]| {
            let ([term, sync, lineage, index, number], part) = (numbers, part.clone());
            let message = ReplicationMessage::Piece { term, sync, lineage, index, number, is_last: true, part };
            PeerFrame::Replication { slot: 1, message }
        };
        check_bounds(piece);
        check_bounds(|[term, sync, index, count]| PeerFrame::Replication {
            slot: 1,
            message: ReplicationMessage::PieceAck { term, sync, index, count },
        });
    }

    #[test]
    fn a_map_of_as_many_slots_as_are_allowed_fits_a_frame() {
        for copies in [1, 2, 3, 9] {
            let member = |number: u8| Member {
                node: NodeId::parse(&char::from(b'a' + number).to_string().repeat(64)).unwrap(),
                generation: 1,
            };
            let mut map = ClusterMap::first(&member(0), slots_max(copies));
            for slot in &mut map.slots {
                slot.in_sync = (0..=copies).map(member).collect();
                slot.learner = Some(member(copies + 1));
            }
            map.members.extend((0..copies).map(|number| (member(number).node, 1)));
            let bytes = encoded::bytes(&PeerFrame::Map(Arc::new(map)));
            assert!((FRAME_MAX_BYTES / 4 * 3..FRAME_MAX_BYTES).contains(&bytes), "{bytes} with {copies} copies");
        }
    }

    /// Whoever adds one to a number of a peer's would come round to 0.
    #[test]
    fn a_number_without_a_next_one_is_refused() {
        let member = |generation| Member { node: NodeId::parse("n1").unwrap(), generation };
        let group = || GroupName::parse("g").unwrap();
        let message = |offset, at_ms| Message { offset, data: Bytes::from_static(b"1"), from: None, at_ms };
        let append = |numbers: [u64; 7]| PeerFrame::Replication {
            slot: 1,
            message: ReplicationMessage::Append {
                term: numbers[0],
                sync: numbers[1],
                reconcile: Some(Reconcile { base: numbers[2], until: numbers[3] }),
                first: numbers[4],
                commit: numbers[5],
                entries: vec![Arc::new(Entry::Group(group(), GroupEntry::Trim { at_ms: numbers[6], remove: false }))],
            },
        };
        let map = |numbers: [u64; 6]| {
            let mut map = ClusterMap::first(&member(1), 1);
            map.version = numbers[0];
            map.members.insert(NodeId::parse("n2").unwrap(), numbers[1]);
            map.slots[0].term = numbers[2];
            map.slots[0].lineage = numbers[3];
            map.slots[0].changed_at = numbers[4];
            map.slots[0].learner = Some(member(numbers[5]));
            PeerFrame::Map(Arc::new(map))
        };
        let joined = |numbers: [u64; 3]| {
            let [head, up_to, offset] = numbers;
            let messages = vec![message(offset, 1)];
            let point = JoinPoint {
                group: group(),
                epoch: Epoch(u64::MAX),
                head,
                up_to,
                recovered: true,
                messages,
                present: Default::default(),
            };
            PeerFrame::Response { id: u64::MAX, voters: 1, result: Ok(SlotAnswer::Joined(point)) }
        };
        let deliver = |numbers: [u64; 4]| {
            let messages = [message(1, 1), message(numbers[1], numbers[2])].into();
            let push = GroupPush::Deliver { epoch: Epoch(u64::MAX), messages };
            PeerFrame::Push { slot: 1, term: numbers[0], voters: numbers[3], push: Push::Group(group(), push) }
        };
        let request = |numbers: [u64; 3]| {
            let renewal = |attachment, connection| Renewal {
                session: SessionId(uuid::Uuid::nil()),
                client: ClientId::made(1),
                attachment,
                connection,
                revision: numbers[2],
                joined: None,
            };
            let attachments = vec![renewal(1, u64::MAX), renewal(numbers[1], 1)];
            let (id, sent_ms, wait_ms) = (u64::MAX, u64::MAX, u32::MAX);
            let renew = SlotRequest::Renew { attachments };
            let since = Some(Position { epoch: Epoch(u64::MAX), offset: numbers[2] });
            let register = SlotRequest::Register { interests: vec![Interest { group: group(), since }] };
            let request = if numbers[1] > 1 { renew } else { register };
            PeerFrame::Request { id, slot: 1, term: numbers[0], sent_ms, wait_ms, request }
        };
        check_bounds(append);
        check_bounds(map);
        check_bounds(joined);
        check_bounds(deliver);
        check_bounds(request);
    }

    /// The highest number comes back in each of a frame's places, and one above it in none.
    fn check_bounds<const N: usize>(frame: impl Fn([u64; N]) -> PeerFrame) {
        for place in 0..N {
            let mut numbers = [1; N];
            numbers[place] = NUMBER_MAX;
            check_round_trip(&frame(numbers));
            for beyond in [NUMBER_MAX + 1, u64::MAX] {
                numbers[place] = beyond;
                let mut bytes = Vec::new();
                encode_into(&frame(numbers), &mut bytes).unwrap();
                assert!(matches!(decode(&bytes), Err(CodecError::Decode(_))), "{:?}", frame(numbers));
            }
        }
    }

    #[test]
    fn an_announced_length_alone_allocates_nothing() {
        let mut bytes = Vec::new();
        encode_into(&refused(0), &mut bytes).unwrap();
        let at = bytes.len() - 8;
        for announced in [1_u64 << 20, 1 << 40, u64::MAX] {
            bytes[at..].copy_from_slice(&announced.to_le_bytes());
            assert!(matches!(decode(&bytes), Err(CodecError::Decode(_))), "{announced}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_frame_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
