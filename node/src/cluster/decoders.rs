//! What others write into gossip, tried with whatever it may be ([`crate::decoders`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use chitchat::{
    ChitchatId, ChitchatMessage, Serializable, spawn_chitchat,
    transport::{Socket, Transport},
};
use tokio::sync::Notify;

use super::{
    claims::{self, OwnState},
    gossip,
    gossip_settings::GossipSettings,
    guard::Guard,
    health::{self, ClockView, LocalFacts},
    membership,
    view::{ClusterView, LinkView, StoreView},
};
use crate::{
    config::Config,
    decoders::{member, split},
    id::{GroupName, NodeId},
    logic::map::ClusterMap,
};

const ME: &str = "n1";
const SENDER: &str = "n2";

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7_000))
}

/// Messages of one member, each after its length: what is let through is let through again, and ends no gossip.
pub(crate) fn gossip(bytes: &[u8]) {
    let (me, from) = (ChitchatId::new(ME, 1, addr()), member(SENDER));
    let mut guard = Guard::new(me.clone(), Arc::default());
    let mut heard = VecDeque::new();
    for (number, message) in split(bytes).enumerate() {
        let now_ms = 1_000 * (number as u64 + 1);
        if let Ok(read) = guard.check(&from, addr(), message, now_ms) {
            let refused = guard.check(&from, addr(), message, now_ms).err();
            assert!(refused.is_none(), "what was let through is refused the second time: {refused:?}");
            heard.push_back(read);
        }
    }
    if !heard.is_empty() {
        hear(me, heard);
    }
}

/// Gives the messages to a gossip of its own.
fn hear(me: ChitchatId, messages: VecDeque<ChitchatMessage>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime on one thread");
    runtime.block_on(async {
        let mut settings = GossipSettings::new(&Config::default(), addr(), OwnState::default());
        settings.cluster = "test".to_owned();
        let done = Arc::new(Notify::new());
        let transport = Given(Mutex::new(Some(GivenSocket { messages, done: done.clone() })));
        let config = gossip::chitchat_config(&settings, me);
        let handle = spawn_chitchat(config, Vec::new(), &transport).await.expect("gossip starts");
        done.notified().await;
        let ended = handle.shutdown().await;
        assert!(ended.is_ok(), "gossip was ended by what it heard: {ended:?}");
    });
}

struct Given(Mutex<Option<GivenSocket>>);

struct GivenSocket {
    messages: VecDeque<ChitchatMessage>,
    done: Arc<Notify>,
}

impl Drop for GivenSocket {
    fn drop(&mut self) {
        self.done.notify_one();
    }
}

#[async_trait]
impl Transport for Given {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Box::new(socket.ok_or_else(|| anyhow::anyhow!("it is in use already"))?))
    }
}

#[async_trait]
impl Socket for GivenSocket {
    async fn send(&mut self, _to: SocketAddr, _message: ChitchatMessage) -> anyhow::Result<()> {
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        match self.messages.pop_front() {
            Some(message) => Ok((addr(), message)),
            None => {
                self.done.notify_one();
                std::future::pending().await
            }
        }
    }
}

/// Messages of both kinds, as chitchat writes them.
pub(crate) fn gossip_seeds() -> Vec<Vec<u8>> {
    let id = |node: &str, generation: u64| ChitchatId::new(node, generation, addr());
    let digest = |nodes: &[(ChitchatId, u64)]| {
        let mut bytes = (nodes.len() as u16).serialize_to_vec();
        for (id, counter) in nodes {
            id.serialize(&mut bytes);
            [*counter, 0, *counter].iter().for_each(|counter: &u64| counter.serialize(&mut bytes));
        }
        bytes
    };
    let delta = |node: &ChitchatId, keys: &[(&str, &str)]| {
        let mut plain = vec![0];
        node.serialize(&mut plain);
        plain.extend([0; 16]);
        for (version, (key, value)) in (1_u64..).zip(keys) {
            plain.push(1);
            (*key).to_owned().serialize(&mut plain);
            (*value).to_owned().serialize(&mut plain);
            version.serialize(&mut plain);
            plain.push(0);
        }
        [&[2][..], &(plain.len() as u16).to_le_bytes(), &plain, &[0]].concat()
    };
    let mark = |kind: u8| vec![0x53, 0xb0, 0, kind];
    let own = digest(&[(id(SENDER, 1), 10), (id("n3", 7), 4)]);
    let about = delta(&id(SENDER, 1), &[("state", "\"serving\""), ("map", "3"), ("http", "http://127.0.0.1:8000")]);
    let other = delta(&id("n3", 7), &[("load", "{}"), ("groups.3", "AgU")]);
    // With the version alone, as a node without keys is told; beside keys it is refused.
    let version = |with_key: bool| {
        let mut plain = vec![0];
        id("n3", 8).serialize(&mut plain);
        plain.extend([0; 16]);
        if with_key {
            plain.push(1);
            ["map", "3"].iter().for_each(|text| (*text).to_owned().serialize(&mut plain));
            8_u64.serialize(&mut plain);
            plain.push(0);
        }
        plain.push(2);
        9_u64.serialize(&mut plain);
        if with_key {
            return [&[2][..], &(plain.len() as u16).to_le_bytes(), &plain, &[0]].concat();
        }
        let packed = zstd::bulk::compress(&plain, 0).unwrap_or_default();
        [&[1][..], &(packed.len() as u16).to_le_bytes(), &packed, &[0]].concat()
    };
    let syn = [mark(0), own.clone(), "test".to_owned().serialize_to_vec()].concat();
    let messages = [
        syn.clone(),
        [mark(1), own, about.clone()].concat(),
        [mark(2), about].concat(),
        [mark(2), other].concat(),
        [mark(2), version(false)].concat(),
        [mark(2), version(true)].concat(),
        mark(3),
    ];
    let long = |message: &Vec<u8>| [&(message.len() as u16).to_le_bytes()[..], message].concat();
    let mut seeds: Vec<Vec<u8>> = messages.iter().map(long).collect();
    seeds.push(messages.iter().map(long).collect::<Vec<_>>().concat());
    seeds
}

/// What a member says of itself, as lines `key=value`: read within bounds, and fit to be told on.
pub(crate) fn claims(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (me, other) = (member(ME), member(SENDER));
    let said = text.lines().filter_map(|line| line.split_once('='));
    let view = claims::read(other.clone(), addr(), true, said.clone());
    let texts = [&view.http, &view.zone, &view.version, &view.store_id];
    assert!(texts.iter().all(|text| text.len() <= 256), "a text is longer than its bound");
    assert!(texts.iter().all(|text| !text.chars().any(char::is_control)), "a text has control characters");
    assert!(view.links.len() <= 512, "there are more links than there can be");
    for (number, bucket) in &view.groups {
        let written = membership::encode(&BTreeMap::from([(*number, bucket.clone())]), usize::MAX);
        let again = written.get(number).and_then(|value| membership::decode(value));
        assert_eq!(again.as_ref(), Some(bucket), "a bucket of groups comes back as another one");
    }
    let _ = view.says();
    let nodes = BTreeMap::from([(other.node, view)]);
    let facts = LocalFacts {
        copies: 2,
        certificate_days_left: None,
        http_certificate: None,
        lag_limit_ms: 1_000,
        deaf: false,
        clock: ClockView::default(),
        refused: Vec::new(),
        other_keys: BTreeSet::new(),
        outside: Vec::new(),
    };
    let report = health::report(Some(&ClusterMap::first(&me, 4)), &ClusterView { me, nodes }, &facts);
    assert!(serde_json::to_string(&report).is_ok(), "the report has no JSON form");
}

/// What a node says that has something of everything.
pub(crate) fn claims_seeds() -> Vec<Vec<u8>> {
    let names: Vec<GroupName> =
        ["g", "room:1", "chat:é"].iter().filter_map(|name| GroupName::parse(name).ok()).collect();
    let own = OwnState {
        http: "http://127.0.0.1:8000".to_owned(),
        zone: "west".to_owned(),
        version: "1.2.3".to_owned(),
        map_version: 77,
        store_id: "id".to_owned(),
        settings: r#"{"cluster":{"copies":2}}"#.to_owned(),
        store: StoreView::Slow,
        groups: membership::gather(names.iter().zip(1..), 1_024),
        ..OwnState::default()
    };
    let links: BTreeMap<NodeId, LinkView> =
        [(member("n3").node, LinkView { sends: true, hears: false, rtt_us: 1_234 })].into();
    let mut values = claims::prompt(&own);
    values.extend(claims::gathered(&own, &links, 1_000, std::iter::empty()));
    vec![values.iter().map(|(key, value)| format!("{key}={value}\n")).collect::<String>().into_bytes()]
}
