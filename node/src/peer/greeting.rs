//! How a connection begins: the dialler says who it is and whom it means, on a two-way stream; the other end answers, or
//! closes with a reason. Nothing else is sent or read before that.

use std::{fmt, time::Duration};

use quinn::{Connection, ConnectionError, VarInt};

use super::{
    belongs::{BELONGS_MAX_BYTES, Belongs},
    tls,
};
use crate::id::{Generation, NUMBER_MAX, NodeId};

/// For a whole greeting, handshake not included.
const GREETING_LIMIT: Duration = Duration::from_secs(3);

/// What another end may say of why it refuses this one.
const WHY_MAX_BYTES: usize = 1_200;

const MARK: [u8; 4] = *b"RST2";
const HELLO_MAX_BYTES: usize = 64 + BELONGS_MAX_BYTES;

/// The first byte of a stream: frames of a lane. The next byte is its number.
pub(super) const STREAM_LANE: u8 = 1;
/// The first byte of a stream: one large frame.
pub(super) const STREAM_BULK: u8 = 2;
/// The first byte of a stream: one gossip message too large for a datagram.
pub(super) const STREAM_GOSSIP: u8 = 3;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// All that one node sends to another. There is at most one of these for each direction of a pair.
    Everything,
    /// Gossip to an address of which only that is known.
    GossipOnly,
}

/// What the dialler says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    pub(super) purpose: Purpose,
    /// Of the dialler.
    pub(super) generation: Generation,
    /// Of the node it means; 0 where it does not know or care.
    pub(super) to_generation: Generation,
    /// Where it belongs.
    pub(super) belongs: Belongs,
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MARK.to_vec();
        bytes.push(match self.purpose {
            Purpose::Everything => 0,
            Purpose::GossipOnly => 1,
        });
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.to_generation.to_le_bytes());
        self.belongs.encode(&mut bytes);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (purpose, rest) = bytes.strip_prefix(&MARK)?.split_first()?;
        let purpose = match purpose {
            0 => Purpose::Everything,
            1 => Purpose::GossipOnly,
            _ => return None,
        };
        let (generation, rest) = rest.split_first_chunk()?;
        let (to_generation, belongs) = rest.split_first_chunk()?;
        let [generation, to_generation] = [generation, to_generation].map(|bytes| Generation::from_le_bytes(*bytes));
        let belongs = Belongs::decode(belongs)?;
        (generation <= NUMBER_MAX).then_some(Self { purpose, generation, to_generation, belongs })
    }
}

/// Why a connection is closed; travels as QUIC's application error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goodbye {
    /// The node stops, or does not need the connection any more.
    Done,
    /// The hello names another cluster.
    WrongCluster,
    /// The hello means an earlier or later start of this node, or comes from an earlier start of the dialler.
    WrongGeneration,
    /// A newer connection from the same peer is there.
    Replaced,
    /// The other end does not keep up.
    Overflow,
    /// Bytes that no rule allows.
    Garbage,
    /// The certificate is not of the node that was meant, or is this node's own.
    WrongNode,
    /// Too many connections.
    TooMany,
    /// The hello names another store.
    WrongStore,
    /// The hello has other settings, of those that all nodes must share.
    WrongSettings,
}

const GOODBYES: [(Goodbye, u32, &str); 10] = [
    (Goodbye::Done, 0, "done"),
    (Goodbye::WrongCluster, 1, "another cluster's name"),
    (Goodbye::WrongGeneration, 2, "another start of the node"),
    (Goodbye::Replaced, 3, "replaced by a newer connection"),
    (Goodbye::Overflow, 4, "the peer does not keep up"),
    (Goodbye::Garbage, 5, "not understood"),
    (Goodbye::WrongNode, 6, "another node's certificate"),
    (Goodbye::TooMany, 7, "too many connections"),
    (Goodbye::WrongStore, 8, "another store"),
    (Goodbye::WrongSettings, 9, "other settings"),
];

impl Goodbye {
    pub(super) fn of(error: &ConnectionError) -> Option<Self> {
        let ConnectionError::ApplicationClosed(close) = error else { return None };
        GOODBYES.iter().find(|(_, code, _)| VarInt::from_u32(*code) == close.error_code).map(|(goodbye, ..)| *goodbye)
    }

    pub(super) fn close(self, connection: &Connection) {
        let (_, code, text) = self.row();
        connection.close(VarInt::from_u32(*code), text.as_bytes());
    }

    /// Tells the other end why in words for people.
    pub(super) fn close_saying(self, connection: &Connection, why: &str) {
        let (_, code, _) = self.row();
        connection.close(VarInt::from_u32(*code), why.as_bytes());
    }

    fn row(self) -> &'static (Self, u32, &'static str) {
        GOODBYES.iter().find(|(goodbye, ..)| *goodbye == self).expect("the table has every reason")
    }

    /// What the other end has said of why.
    pub(super) fn words(error: &ConnectionError) -> String {
        let ConnectionError::ApplicationClosed(close) = error else { return String::new() };
        let said = &close.reason[..close.reason.len().min(WHY_MAX_BYTES)];
        String::from_utf8_lossy(said).chars().filter(|one| !one.is_control()).collect()
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum DialError {
    /// The other end closed, or nobody answered.
    Lost(ConnectionError),
    /// Said by this end, or told in no better way.
    Refused(String),
    /// The other end is this very node.
    Myself,
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => error.fmt(f),
            Self::Refused(why) => f.write_str(why),
            Self::Myself => f.write_str("this node itself"),
        }
    }
}

/// The dialler's side, on a connection whose handshake is done: gives the node at the other end and its generation.
pub(super) async fn greet(
    connection: &Connection,
    me: &NodeId,
    expected: Option<&NodeId>,
    hello: &Hello,
) -> Result<(NodeId, Generation), DialError> {
    let node = tls::peer_of(connection).map_err(|why| refuse(connection, why))?;
    if node == *me {
        Goodbye::WrongNode.close(connection);
        return Err(DialError::Myself);
    }
    if expected.is_some_and(|expected| *expected != node) {
        return Err(refuse(connection, format!("the certificate there is node {node}'s")));
    }
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(DialError::Lost)?;
        let failed = |error: String| connection.close_reason().map_or(DialError::Refused(error), DialError::Lost);
        send.write_all(&hello.encode()).await.map_err(|error| failed(error.to_string()))?;
        send.finish().map_err(|error| failed(error.to_string()))?;
        let mut generation = [0; 8];
        receive.read_exact(&mut generation).await.map_err(|error| failed(error.to_string()))?;
        match Generation::from_le_bytes(generation) {
            generation @ 0..=NUMBER_MAX => Ok(generation),
            beyond => {
                Err(DialError::Refused(format!("it says that this is its start {beyond}: there is no such number")))
            }
        }
    };
    match tokio::time::timeout(GREETING_LIMIT, exchange).await {
        Ok(Ok(generation)) => Ok((node, generation)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(refuse(connection, "the peer did not answer the greeting in time".to_owned())),
    }
}

fn refuse(connection: &Connection, why: String) -> DialError {
    Goodbye::WrongNode.close(connection);
    DialError::Refused(why)
}

/// The other side: reads the hello. What is returned with it takes the answer.
pub(super) async fn hear(connection: &Connection) -> Option<(Hello, quinn::SendStream)> {
    let exchange = async {
        let (send, mut receive) = connection.accept_bi().await.ok()?;
        let bytes = receive.read_to_end(HELLO_MAX_BYTES).await.ok()?;
        Some((Hello::decode(&bytes)?, send))
    };
    tokio::time::timeout(GREETING_LIMIT, exchange).await.ok().flatten()
}

/// The answer to a hello that is welcome.
pub(super) async fn welcome(mut send: quinn::SendStream, generation: Generation) -> bool {
    send.write_all(&generation.to_le_bytes()).await.is_ok() && send.finish().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_comes_back_and_garbage_does_not() {
        for purpose in [Purpose::Everything, Purpose::GossipOnly] {
            let belongs = Belongs {
                cluster: "röst".to_owned(),
                store_id: "a".to_owned(),
                settings: "{}".to_owned(),
                keyring: "k".to_owned(),
            };
            let hello = Hello { purpose, generation: 7, to_generation: u64::MAX, belongs };
            let bytes = hello.encode();
            assert_eq!(Hello::decode(&bytes), Some(hello));
            for cut in 0..21 {
                assert_eq!(Hello::decode(&bytes[..cut]), None);
            }
        }
        assert_eq!(Hello::decode(&[0xff; 40]), None);
        let belongs = Belongs {
            cluster: "c".to_owned(),
            store_id: "a".to_owned(),
            settings: "{}".to_owned(),
            keyring: String::new(),
        };
        let hello =
            |generation| Hello { purpose: Purpose::Everything, generation, to_generation: 1, belongs: belongs.clone() };
        assert!(Hello::decode(&hello(NUMBER_MAX).encode()).is_some());
        assert_eq!(Hello::decode(&hello(NUMBER_MAX + 1).encode()), None, "one more start would be none");
    }
}
