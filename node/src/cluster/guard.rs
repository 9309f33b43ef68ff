//! Looks at every gossip message before chitchat sees it. chitchat believes what it reads: one message could overwrite a
//! node's own keys, make a peer look dead for good by a heartbeat that the peer will never reach, unpack to gigabytes, or
//! end the gossip task by an assertion. Such messages are refused whole.
//!
//! What is in a message is not open to a program that uses chitchat 0.11, so this reads its bytes itself. The claims that
//! a member passes on about a third node cannot be proved; they are bounded in how far they may jump, and in how many starts
//! they name. What a member says of itself is noted ([`Spoken`]): that counts before what others say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use chitchat::{ChitchatId, ChitchatMessage, Deserializable};

use super::{
    claims::{KEY_MAX_BYTES, VALUE_MAX_BYTES},
    spoken::Spoken,
};
use crate::id::{Member, NodeId};

/// chitchat's own bound.
const MESSAGE_MAX_BYTES: usize = 65_507;
const UNPACKED_MAX_BYTES: usize = 4 << 20;

/// Starts of nodes remembered; past it the one heard of longest ago is forgotten.
const REMEMBERED_MAX: usize = 4_096;

/// Starts of nodes that one member may tell of and no other has named: a cluster has fewer nodes.
const HEARSAY_MAX: usize = 256;

/// A start of which nobody says anything new is forgotten after this: longer than gossip itself remembers it.
const FORGOTTEN_MS: u64 = 1_200_000;

/// No heartbeat or version comes near in a node's life.
const COUNTER_MAX: u64 = 1 << 40;

/// What a heartbeat or version may jump at once, and by each millisecond since it was last heard of.
const JUMP: u64 = 20_000;
const JUMP_PER_MS: u64 = 5;

/// Why a message is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("it cannot be read")]
    Malformed,
    #[error("it is too large, unpacked")]
    TooLarge,
    #[error("it changes what this node says of itself")]
    OwnClaims,
    #[error("its sender does not list itself as its certificate and address say")]
    NotTheSender,
    #[error("a heartbeat or version in it jumps")]
    Jump,
    #[error("it names more starts of nodes than there can be")]
    TooMany,
    #[error("a name, key or value in it has no permitted form")]
    Form,
}

/// What has been heard of each start of a node.
pub(super) struct Guard {
    me: ChitchatId,
    heard: BTreeMap<ChitchatId, Heard>,
    /// What the senders say of themselves.
    spoken: Arc<Spoken>,
}

#[derive(Clone, Default)]
struct Heard {
    /// Who named it first, where that was not the node itself.
    hearsay_of: Option<NodeId>,
    heartbeat: u64,
    version: u64,
    at_ms: u64,
}

/// A message's content, as far as it matters here.
#[derive(Default)]
struct Content {
    has_digest: bool,
    /// From the digest: heartbeat, version of the last deletion, version.
    digest: Vec<(ChitchatId, [u64; 3])>,
    /// From the delta: nodes with the highest version said of them.
    delta: Vec<(ChitchatId, u64)>,
}

impl Guard {
    pub(super) fn new(me: ChitchatId, spoken: Arc<Spoken>) -> Self {
        Self { me, heard: BTreeMap::new(), spoken }
    }

    /// Reads a message that `from` sent, who says that it is reached at `addr`.
    pub(super) fn check(
        &mut self,
        from: &Member,
        addr: SocketAddr,
        message: &[u8],
        now_ms: u64,
    ) -> Result<ChitchatMessage, Refused> {
        if message.len() > MESSAGE_MAX_BYTES {
            return Err(Refused::TooLarge);
        }
        let content = read(message)?;
        let sender = ChitchatId::new(from.node.as_str(), from.generation, addr);
        if content.has_digest && !content.digest.iter().any(|(id, _)| *id == sender) {
            return Err(Refused::NotTheSender);
        }
        for (id, counters) in &content.digest {
            self.check_id(id)?;
            if self.is_me(id) {
                continue;
            }
            let [heartbeat, deleted, version] = *counters;
            let heard = self.heard.get(id);
            let bound = |value: fn(&Heard) -> u64| heard.map_or(COUNTER_MAX, |heard| heard.bound(value(heard), now_ms));
            if heartbeat > bound(|heard| heard.heartbeat) || version.max(deleted) > bound(|heard| heard.version) {
                return Err(Refused::Jump);
            }
        }
        for (id, version) in &content.delta {
            self.check_id(id)?;
            if self.is_me(id) {
                return Err(Refused::OwnClaims);
            }
            if *version > self.heard.get(id).map_or(COUNTER_MAX, |heard| heard.bound(heard.version, now_ms)) {
                return Err(Refused::Jump);
            }
        }
        if self.names_too_many(from, &content, now_ms) {
            return Err(Refused::TooMany);
        }
        let decoded = ChitchatMessage::deserialize(&mut &*message).map_err(|_| Refused::Malformed)?;
        self.remember(from, &sender, &content, now_ms);
        if let Some((_, [heartbeat, ..])) = content.digest.iter().find(|(id, _)| *id == sender) {
            self.spoken.hear(from, addr, *heartbeat, now_ms);
        }
        Ok(decoded)
    }

    /// Whether a member tells of more starts than there can be that nobody but it has named: gossip remembers each of them, and
    /// speaks to it.
    fn names_too_many(&mut self, from: &Member, content: &Content, now_ms: u64) -> bool {
        let named = content.digest.iter().map(|(id, _)| id).chain(content.delta.iter().map(|(id, _)| id));
        let new: BTreeSet<_> = named.filter(|id| !self.is_me(id) && !self.heard.contains_key(id)).collect();
        if new.is_empty() {
            return false;
        }
        self.heard.retain(|_, heard| now_ms < heard.at_ms.saturating_add(FORGOTTEN_MS));
        let is_theirs = |heard: &&Heard| heard.hearsay_of.as_ref() == Some(&from.node);
        self.heard.values().filter(is_theirs).count() + new.len() > HEARSAY_MAX
    }

    /// Also with another address: it is this process that is meant.
    fn is_me(&self, id: &ChitchatId) -> bool {
        id.node_id == self.me.node_id && id.generation_id == self.me.generation_id
    }

    fn check_id(&self, id: &ChitchatId) -> Result<(), Refused> {
        NodeId::parse(&id.node_id).map(drop).map_err(|_| Refused::Form)
    }

    fn remember(&mut self, from: &Member, sender: &ChitchatId, content: &Content, now_ms: u64) {
        // The last deletion is bounded like the version, and can be ahead of it where a delta was cut.
        let digest =
            content.digest.iter().map(|(id, [heartbeat, deleted, version])| (id, *heartbeat, *version.max(deleted)));
        let delta = content.delta.iter().map(|(id, version)| (id, 0, *version));
        for (id, heartbeat, version) in digest.chain(delta) {
            if self.is_me(id) {
                continue;
            }
            let new = || Heard { at_ms: now_ms, hearsay_of: Some(from.node.clone()), ..Heard::default() };
            let heard = self.heard.entry(id.clone()).or_insert_with(new);
            if id == sender {
                heard.hearsay_of = None;
            }
            if heartbeat > heard.heartbeat || version > heard.version {
                heard.at_ms = now_ms;
            }
            heard.heartbeat = heard.heartbeat.max(heartbeat);
            heard.version = heard.version.max(version);
        }
        while self.heard.len() > REMEMBERED_MAX {
            let oldest = self.heard.iter().min_by_key(|(_, heard)| heard.at_ms).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.heard.remove(&id));
        }
    }
}

impl Heard {
    fn bound(&self, value: u64, now_ms: u64) -> u64 {
        let grown = now_ms.saturating_sub(self.at_ms).saturating_mul(JUMP_PER_MS);
        value.saturating_add(JUMP).saturating_add(grown).min(COUNTER_MAX)
    }
}

/// Reads a message's bytes: a mark, a version, a kind; then what the kind has.
fn read(message: &[u8]) -> Result<Content, Refused> {
    let [_, _, _, kind, rest @ ..] = message else { return Err(Refused::Malformed) };
    let mut rest = rest;
    let mut content = Content { has_digest: *kind <= 1, ..Content::default() };
    if content.has_digest {
        content.digest = read_digest(&mut rest)?;
    }
    if *kind == 1 || *kind == 2 {
        content.delta = read_delta(&unpack(rest)?)?;
    }
    Ok(content)
}

fn read_digest(bytes: &mut &[u8]) -> Result<Vec<(ChitchatId, [u64; 3])>, Refused> {
    let nodes: u16 = take(bytes)?;
    (0..nodes).map(|_| Ok((take(bytes)?, [take(bytes)?, take(bytes)?, take(bytes)?]))).collect()
}

/// A delta is packed in blocks: a kind (0: the end, 1: zstd, 2: plain), a length, the bytes.
fn unpack(mut packed: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut unpacked = Vec::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let kind: u8 = take(&mut packed)?;
        if kind == 0 {
            return Ok(unpacked);
        }
        let length: u16 = take(&mut packed)?;
        let (block, rest) = packed.split_at_checked(usize::from(length)).ok_or(Refused::Malformed)?;
        packed = rest;
        match kind {
            1 => {
                let length = zstd::bulk::decompress_to_buffer(block, &mut buffer).map_err(|_| Refused::Malformed)?;
                unpacked.extend_from_slice(&buffer[..length]);
            }
            2 => unpacked.extend_from_slice(block),
            _ => return Err(Refused::Malformed),
        }
        if unpacked.len() > UNPACKED_MAX_BYTES {
            return Err(Refused::TooLarge);
        }
    }
}

/// A delta is a row of operations: 0 begins a node, 1 sets a key of it, 2 says its version where no key does.
fn read_delta(mut bytes: &[u8]) -> Result<Vec<(ChitchatId, u64)>, Refused> {
    let mut nodes: Vec<(ChitchatId, u64)> = Vec::new();
    let mut has_keys = false;
    while !bytes.is_empty() {
        match take::<u8>(&mut bytes)? {
            0 => {
                let id = take(&mut bytes)?;
                let (deleted, from): (u64, u64) = (take(&mut bytes)?, take(&mut bytes)?);
                if deleted.max(from) > COUNTER_MAX {
                    return Err(Refused::Jump);
                }
                nodes.push((id, deleted));
                has_keys = false;
            }
            1 => {
                let (key, value): (String, String) = (take(&mut bytes)?, take(&mut bytes)?);
                let (version, _status): (u64, u8) = (take(&mut bytes)?, take(&mut bytes)?);
                if key.len() > KEY_MAX_BYTES || value.len() > VALUE_MAX_BYTES {
                    return Err(Refused::Form);
                }
                let node = nodes.last_mut().ok_or(Refused::Malformed)?;
                node.1 = node.1.max(version);
                has_keys = true;
            }
            2 => {
                let version: u64 = take(&mut bytes)?;
                // Beside keys, one lower than theirs would trip an assertion.
                let node = nodes.last_mut().filter(|_| !has_keys).ok_or(Refused::Malformed)?;
                node.1 = node.1.max(version);
            }
            _ => return Err(Refused::Malformed),
        }
    }
    Ok(nodes)
}

fn take<T: Deserializable>(bytes: &mut &[u8]) -> Result<T, Refused> {
    T::deserialize(bytes).map_err(|_| Refused::Malformed)
}

#[cfg(test)]
mod tests {
    use chitchat::Serializable;
    use proptest::prelude::*;

    use super::*;

    const MARK: [u8; 3] = [0x53, 0xb0, 0];

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn id(node: &str, generation: u64) -> ChitchatId {
        ChitchatId::new(node, generation, addr(7_000))
    }

    fn digest(nodes: &[(ChitchatId, [u64; 3])]) -> Vec<u8> {
        let mut bytes = (nodes.len() as u16).serialize_to_vec();
        for (id, counters) in nodes {
            id.serialize(&mut bytes);
            counters.iter().for_each(|counter| counter.serialize(&mut bytes));
        }
        bytes
    }

    fn syn(nodes: &[(ChitchatId, [u64; 3])]) -> Vec<u8> {
        [&MARK[..], &[0], &digest(nodes), &"test".to_owned().serialize_to_vec()].concat()
    }

    enum Op {
        Node(ChitchatId),
        Key(&'static str, u64),
        Version(u64),
    }

    fn ack(ops: &[Op]) -> Vec<u8> {
        let mut plain = Vec::new();
        for op in ops {
            match op {
                Op::Node(id) => {
                    plain.push(0);
                    id.serialize(&mut plain);
                    plain.extend_from_slice(&[0; 16]);
                }
                Op::Key(key, version) => {
                    plain.push(1);
                    (*key).to_owned().serialize(&mut plain);
                    "value".to_owned().serialize(&mut plain);
                    version.serialize(&mut plain);
                    plain.push(0);
                }
                Op::Version(version) => {
                    plain.push(2);
                    version.serialize(&mut plain);
                }
            }
        }
        let packed = zstd::bulk::compress(&plain, 0).unwrap();
        let block = [&[1][..], &(packed.len() as u16).to_le_bytes(), &packed, &[0]].concat();
        [&MARK[..], &[2], &block].concat()
    }

    /// What becomes of messages from n2 (start 5), one after the other.
    fn check(messages: &[(Vec<u8>, Option<Refused>)]) {
        let from = Member { node: NodeId::parse("n2").unwrap(), generation: 5 };
        let mut guard = Guard::new(id("n1", 9), Arc::default());
        for (number, (message, expected)) in messages.iter().enumerate() {
            let refused = guard.check(&from, addr(7_000), message, 1_000).err();
            assert_eq!(refused, *expected, "message {number}");
        }
    }

    #[test]
    fn good_messages_pass() {
        let sender = (id("n2", 5), [10, 0, 20]);
        check(&[
            (syn(&[sender.clone(), (id("n1", 9), [u64::MAX, 0, 7]), (id("n3", 1), [1 << 30, 5, 1 << 30])]), None),
            (
                ack(&[
                    Op::Node(id("n2", 5)),
                    Op::Key("a", 21),
                    Op::Key("b", 22),
                    Op::Node(id("n1", 8)),
                    Op::Version(3),
                ]),
                None,
            ),
            (syn(&[(id("n2", 5), [JUMP + 10, 0, JUMP])]), None),
            ([&MARK[..], &[3]].concat(), None),
        ]);
    }

    #[test]
    fn what_passes_passes_again() {
        let deleted_ahead = syn(&[(id("n2", 5), [10, 1 << 30, 10])]);
        check(&[(deleted_ahead.clone(), None), (deleted_ahead, None)]);
    }

    #[test]
    fn forged_messages_are_refused() {
        let sender = (id("n2", 5), [10, 0, 20]);
        let other_address = ChitchatId::new("n1", 9, addr(1));
        check(&[
            (syn(std::slice::from_ref(&sender)), None),
            (syn(&[(id("n2", 4), [10, 0, 20])]), Some(Refused::NotTheSender)),
            (syn(&[(id("n3", 5), [10, 0, 20])]), Some(Refused::NotTheSender)),
            (syn(&[(ChitchatId::new("n2", 5, addr(1)), [10, 0, 20])]), Some(Refused::NotTheSender)),
            (syn(&[(id("n2", 5), [u64::MAX, 0, 20])]), Some(Refused::Jump)),
            (syn(&[(id("n2", 5), [10, 0, JUMP + 21])]), Some(Refused::Jump)),
            (syn(&[(id("n2", 5), [10, JUMP + 21, 20])]), Some(Refused::Jump)),
            (syn(&[sender.clone(), (id("n3", 1), [COUNTER_MAX + 1, 0, 1])]), Some(Refused::Jump)),
            (syn(&[sender, (id("no name", 1), [1, 0, 1])]), Some(Refused::Form)),
            (ack(&[Op::Node(id("n1", 9)), Op::Key("state", 5)]), Some(Refused::OwnClaims)),
            (ack(&[Op::Node(other_address), Op::Key("state", 5)]), Some(Refused::OwnClaims)),
            (ack(&[Op::Node(id("n2", 5)), Op::Key("a", 1 << 30)]), Some(Refused::Jump)),
            (ack(&[Op::Node(id("n2", 5)), Op::Key("a", 5), Op::Version(3)]), Some(Refused::Malformed)),
            (ack(&[Op::Key("a", 5)]), Some(Refused::Malformed)),
            (ack(&[Op::Node(id("n2", 5)), Op::Key("a", 5), Op::Key("b", 4)]), Some(Refused::Malformed)),
            (vec![0; 100], Some(Refused::NotTheSender)),
            (vec![0xff; 70_000], Some(Refused::TooLarge)),
        ]);
    }

    #[test]
    fn one_member_names_no_more_starts_than_there_can_be() {
        let from = |name: &str| Member { node: NodeId::parse(name).unwrap(), generation: 5 };
        let mut guard = Guard::new(id("n1", 9), Arc::default());
        let mut tells = |name: &str, first: u64, count: u64| {
            let others = (first..first + count).map(|generation| (id("n3", generation), [1, 0, 1]));
            let nodes: Vec<_> = [(id(name, 5), [10, 0, 20])].into_iter().chain(others).collect();
            guard.check(&from(name), addr(7_000), &syn(&nodes), 1_000).err()
        };
        assert_eq!(tells("n2", 1 << 39, 200), None);
        assert_eq!(tells("n2", 1 << 39, 200), None, "they are known");
        assert_eq!(tells("n2", 1 << 38, 200), Some(Refused::TooMany));
        assert_eq!(tells("n4", 1 << 39, 250), None, "another pays for what is new only");
    }

    #[test]
    fn what_unpacks_without_end_is_refused() {
        let block = zstd::bulk::compress(&vec![0; 60_000], 0).unwrap();
        let block = [&[1][..], &(block.len() as u16).to_le_bytes(), &block].concat();
        let message = [&MARK[..], &[2], &block.repeat(1_000)].concat();
        assert!(message.len() < MESSAGE_MAX_BYTES);
        check(&[(message, Some(Refused::TooLarge))]);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(kind in 0_u8..5, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let from = Member { node: NodeId::parse("n2").unwrap(), generation: 5 };
            let _ = Guard::new(id("n1", 9), Arc::default()).check(&from, addr(1), &[&MARK[..], &[kind], &bytes].concat(), 0);
        }
    }
}
