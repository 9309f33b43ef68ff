//! The router as a whole, with a cluster behind it that answers what the test says, or never.

mod answers;
mod document;
mod validation;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    body::{Body, to_bytes},
    http::{Request as HttpRequest, response::Parts},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use super::{
    api::{ClusterControl, Disconnected, GroupPage, NotDrained},
    *,
};
use crate::{
    cluster::{
        health::{ClockView, LocalFacts},
        view::{ClusterView, Load, NodeState, NodeView, SharedView, StoreView},
    },
    config::Config,
    gateway::{
        ask::{Ask, Primaries},
        service::Service,
    },
    id::{ClientId, ClientKey, Epoch, Generation, GroupName, Member, NodeId, Position, SessionId, SlotId},
    logic::{
        entry::{EndReason, Message, Presence, Present, SessionChange, SessionRecord},
        map::{ClusterMap, SharedMap},
        request::{
            Ask as _, ChangeSession, CreateSession, Done, GroupInfo, GroupRequest, History, ListedClient, MemberPage,
            PresentSession, Publish, Published, SessionRequest, SessionView, SlotAnswer, SlotError, SlotRequest,
        },
    },
    memory::Ledger,
    metrics::Metrics,
    store::{MapChange, Store, StoreError, WriteVersion},
    token::Keyring,
    wire::peer::{Farewell, Whom},
};

const KEY: &str = "test-key-0123456789";
const SESSION: &str = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d";

type Answer = Result<SlotAnswer, SlotError>;
type Behaviour = dyn Fn(&SlotRequest) -> Option<Answer> + Send + Sync;

/// Answers what it is told to, and keeps what it was asked.
struct Fake {
    answer: Box<Behaviour>,
    asked: Mutex<Vec<SlotRequest>>,
}

#[async_trait]
impl Primaries for Fake {
    async fn call(&self, _: SlotId, request: SlotRequest, _: Duration, _: Option<&CancellationToken>) -> Answer {
        let answer = (self.answer)(&request);
        self.asked.lock().unwrap().push(request);
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

struct FakeControl {
    ready: Result<(), String>,
}

#[async_trait]
impl ClusterControl for FakeControl {
    async fn list_groups(&self, after: &str, _: u32) -> GroupPage {
        assert!(["", "chat:a"].contains(&after));
        GroupPage { groups: vec![group_info()], more: true, missing_nodes: vec![node("n3")] }
    }
    /// One client, and `n3` does not answer where a user's are meant.
    async fn disconnect(&self, whom: Whom, _: Farewell) -> Disconnected {
        let missing_nodes = if matches!(whom, Whom::User(_)) { vec![node("n3")] } else { Vec::new() };
        Disconnected { clients: 1, missing_nodes }
    }
    /// Who is at `n2` takes it, at `n1` it has gone, and `n3` does not answer.
    async fn send(&self, node: &NodeId, _: (SessionId, ClientId), _: Bytes) -> Option<bool> {
        match node.as_str() {
            "n1" => Some(false),
            "n2" => Some(true),
            _ => None,
        }
    }
    /// `n2` drains already.
    async fn drain(&self, node: &NodeId, force: bool) -> Result<(), NotDrained> {
        if force || node.as_str() == "n2" { Ok(()) } else { Err(NotDrained::OtherDrains(self::node("n2"))) }
    }
    async fn forget(&self, _: &NodeId) -> Result<(), String> {
        Ok(())
    }
    fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }
    fn facts(&self) -> LocalFacts {
        LocalFacts {
            copies: 2,
            certificate_days_left: None,
            http_certificate: None,
            lag_limit_ms: 500,
            deaf: false,
            clock: ClockView::default(),
            refused: Vec::new(),
            other_keys: BTreeSet::new(),
            outside: Vec::new(),
        }
    }
}

struct FakeStore;

#[async_trait]
impl Store for FakeStore {
    async fn store_id(&self) -> Result<Uuid, StoreError> {
        Ok(Uuid::nil())
    }
    async fn next_generation(&self, _: &NodeId) -> Result<Generation, StoreError> {
        Ok(1)
    }
    async fn generation(&self, _: &NodeId) -> Result<Option<Generation>, StoreError> {
        Ok(None)
    }
    async fn read_map(&self) -> Result<Option<ClusterMap>, StoreError> {
        Ok(None)
    }
    async fn change_map(&self, _: u64, _: &ClusterMap) -> Result<MapChange, StoreError> {
        Ok(MapChange::Unknown)
    }
    async fn put_session(&self, _: &SessionRecord, _: WriteVersion) -> Result<(), StoreError> {
        Ok(())
    }
    async fn end_session(&self, _: &SessionRecord, _: WriteVersion) -> Result<(), StoreError> {
        Ok(())
    }
    async fn session(&self, _: SessionId, _: u64) -> Result<Option<SessionRecord>, StoreError> {
        Ok(None)
    }
    /// `alice` has 450 sessions; for `bob` the store is down.
    async fn sessions_of_user(
        &self,
        user: &str,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, StoreError> {
        match user {
            "alice" => {
                let all = (1..=450).map(|number| SessionId(Uuid::from_u128(number)));
                Ok(all.filter(|id| after.is_none_or(|after| *id > after)).take(limit).collect())
            }
            "bob" => Err(StoreError::Unavailable("test".to_owned())),
            _ => Ok(Vec::new()),
        }
    }
    async fn ping(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn group_info() -> GroupInfo {
    let present = Present { sessions: 1, clients: 2, users: 1, anonymous: 0 };
    GroupInfo { group: GroupName::parse("chat:a").unwrap(), epoch: Epoch(7), head: 3, kept: 2, present }
}

fn node_view(name: &str, alive: bool) -> NodeView {
    NodeView {
        member: Member { node: node(name), generation: 1 },
        addr: SocketAddr::from(([127, 0, 0, 1], 1)),
        alive,
        state: NodeState::Serving,
        http: String::new(),
        zone: String::new(),
        version: "0.1.0".to_owned(),
        map_version: 1,
        store_id: String::new(),
        settings: String::new(),
        load: Load::default(),
        store: StoreView::Up,
        links: BTreeMap::new(),
        groups: BTreeMap::new(),
    }
}

/// What a cluster in good order answers.
fn obliging(request: &SlotRequest) -> Option<Answer> {
    let position = Position { epoch: Epoch(7), offset: 3 };
    let record = |id: SessionId| SessionRecord {
        id,
        user: "alice".to_owned(),
        created_ms: 1,
        expires_ms: 2,
        idle_ttl_ms: 60_000,
        last_used_ms: 1,
        attributes: bytes::Bytes::from_static(br#"{"name":"Alice"}"#),
        groups: [GroupName::parse("chat:a").unwrap()].into(),
        grants: Vec::new(),
        revision: 0,
        token: 3,
        clients_max: None,
    };
    let view = |record| {
        let tab = ListedClient {
            id: ClientId::parse("tab-1").unwrap(),
            gateway: Member { node: node("n2"), generation: 1 },
            since_ms: 5,
            attached: true,
            joined: BTreeMap::new(),
        };
        Ok(SlotAnswer::Session(SessionView { record, clients: vec![tab] }))
    };
    Some(match request {
        SlotRequest::Group(_, GroupRequest::Publish(Publish { messages, .. })) => {
            Ok(SlotAnswer::Published(messages.iter().map(|_| Ok(Published { position, copies: 2 })).collect()))
        }
        SlotRequest::Session(_, SessionRequest::CreateSession(CreateSession { record })) => view(record.clone()),
        SlotRequest::Session(session, SessionRequest::ReadSession(_) | SessionRequest::ChangeSession(_)) => {
            view(record(*session))
        }
        SlotRequest::Group(_, GroupRequest::PublishEphemeral(_))
        | SlotRequest::Session(_, SessionRequest::EndSession(_)) => Ok(SlotAnswer::Done(Done)),
        SlotRequest::Group(_, GroupRequest::ReadGroup(_)) => Ok(SlotAnswer::Group(Some(group_info()))),
        SlotRequest::Group(_, GroupRequest::ReadHistory(_)) => Ok(SlotAnswer::History(History {
            position: Some(position),
            complete: true,
            messages: vec![Message { offset: 3, data: bytes::Bytes::from_static(b"[1, 2]"), from: None, at_ms: 9 }],
        })),
        SlotRequest::Group(_, GroupRequest::ReadMembers(_)) => Ok(SlotAnswer::Members(MemberPage {
            members: vec![PresentSession {
                member: Presence {
                    session: SessionId(Uuid::from_u128(5)),
                    client: ClientKey(1),
                    user: "alice".into(),
                    revision: 0,
                    info: bytes::Bytes::from_static(b"{}"),
                    attachment: 1,
                },
                clients: 2,
            }],
            more: true,
        })),
        other => panic!("not asked over HTTP: {other:?}"),
    })
}

struct Server {
    routes: Routes,
    fake: Arc<Fake>,
    // The watches stay open.
    _held: (watch::Sender<Option<SharedMap>>, watch::Sender<SharedView>),
}

impl Server {
    fn answering(answer: impl Fn(&SlotRequest) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::build(answer, Ok(()), |_| {})
    }

    fn silent() -> Self {
        Self::answering(|_| None)
    }

    fn build(
        answer: impl Fn(&SlotRequest) -> Option<Answer> + Send + Sync + 'static,
        ready: Result<(), String>,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::default();
        config.auth.api_keys = vec![KEY.to_owned()];
        configure(&mut config);
        let me = Member { node: node("n1"), generation: 1 };
        let (map, maps) = watch::channel(Some(Arc::new(ClusterMap::first(&me, 16))));
        let nodes = [("n1", true), ("n2", true), ("n3", false)];
        let nodes = nodes.into_iter().map(|(name, alive)| (node(name), node_view(name, alive))).collect();
        let (views, view) = watch::channel(Arc::new(ClusterView { me, nodes }));
        let fake = Arc::new(Fake { answer: Box::new(answer), asked: Mutex::default() });
        let (config, metrics) = (Arc::new(config), Metrics::new());
        let ask = Ask::new(fake.clone(), maps.clone(), &config, metrics.clone());
        let service = Service::new(ask, config.clone(), Arc::new(FakeStore), Ledger::new(1 << 30), metrics.clone());
        let routes = routes(Arc::new(Api {
            service,
            config,
            keyring: Arc::new(keyring()),
            maps,
            view,
            metrics,
            control: Arc::new(FakeControl { ready }),
        }));
        Self { routes, fake, _held: (map, views) }
    }

    async fn send(&self, request: HttpRequest<Body>) -> (Parts, Vec<u8>) {
        let (parts, body) = self.routes.clone().oneshot(request).await.unwrap().into_parts();
        (parts, to_bytes(body, 64 << 20).await.unwrap().to_vec())
    }

    async fn call(&self, method: &str, path: &str, body: Option<&str>) -> (Parts, Value) {
        let mut request = HttpRequest::builder().method(method).uri(path).header("X-API-Key", KEY);
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let (parts, body) = self.send(request.body(Body::from(body.unwrap_or("").to_owned())).unwrap()).await;
        let value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("the body is JSON") };
        (parts, value)
    }

    fn asked(&self) -> Vec<SlotRequest> {
        std::mem::take(&mut self.fake.asked.lock().unwrap())
    }
}

fn keyring() -> Keyring {
    Keyring::generate()
}

#[track_caller]
fn is_error(status: u16, kind: &str, place: &Value, (parts, body): (Parts, Value)) {
    assert_eq!(parts.status.as_u16(), status, "{body}");
    let found =
        body["detail"].as_array().unwrap().iter().any(|problem| problem["type"] == kind && problem["loc"] == *place);
    assert!(found, "no {kind} at {place} in {body}");
    assert_eq!(parts.headers["x-content-type-options"], "nosniff");
    assert_eq!(parts.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn a_request_names_the_host_that_it_is_for_once() {
    let routes = Server::silent().routes.layer(from_fn(names_its_host));
    let cases: [(&[&str], Version, u16); 5] = [
        (&[], Version::HTTP_11, 400),
        (&["a"], Version::HTTP_11, 200),
        (&["a", "a"], Version::HTTP_11, 400),
        (&[], Version::HTTP_10, 200),
        (&[], Version::HTTP_2, 200),
    ];
    for (hosts, version, status) in cases {
        let request = HttpRequest::builder().uri("/livez").version(version);
        let request = hosts.iter().fold(request, |request, host| request.header("Host", *host));
        let answer = routes.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{hosts:?} {version:?}");
    }
}

/// Pages of the origins that are listed may ask and read; others are told nothing, and nothing is said where none is listed.
#[tokio::test]
async fn pages_of_other_origins_may_ask_where_they_are_listed() {
    let listed = ["https://app.example.com".to_owned()];
    let ask = async |origins: &[String], method: &str, origin: &str| {
        let request = HttpRequest::builder().method(method).uri("/v1/groups/g/messages").header("origin", origin);
        let request = request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
        let routes = for_pages_of(origins, Server::silent().routes);
        routes.oneshot(request.body(Body::empty()).unwrap()).await.unwrap().into_parts().0
    };
    for method in ["OPTIONS", "GET"] {
        let told = ask(&listed, method, "https://app.example.com").await;
        let all: Vec<_> = told.headers.get_all("access-control-allow-origin").iter().collect();
        assert_eq!(all, ["https://app.example.com"], "{method}");
        assert_eq!(told.headers["access-control-allow-credentials"], "true");
        assert!(told.headers["vary"].to_str().unwrap().to_ascii_lowercase().contains("origin"));
        let other = ask(&listed, method, "https://app.example.com.evil.example").await;
        assert!(!other.headers.contains_key("access-control-allow-origin"), "{method}");
        let none = ask(&[], method, "https://app.example.com").await;
        assert!(!none.headers.keys().any(|name| name.as_str().starts_with("access-control")), "{method}");
    }
    let preflight = ask(&listed, "OPTIONS", "https://app.example.com").await;
    assert_eq!(preflight.status, 200);
    assert_eq!(preflight.headers["access-control-allow-headers"], "authorization,content-type");
    assert!(preflight.headers["access-control-allow-methods"].to_str().unwrap().contains("PATCH"));
    assert_eq!(preflight.headers["access-control-max-age"], "600");
    assert_eq!(ask(&[], "OPTIONS", "https://app.example.com").await.status, 405);
}
