//! The router as a whole, with a cluster behind it that answers what the test says, or never.

use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex};

use axum::{
    body::{Body, to_bytes},
    http::{Request as HttpRequest, response::Parts},
};
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

use super::*;
use crate::{
    cluster::view::{ClusterView, Load, NodeState, NodeView, StoreView},
    id::{Epoch, Generation, Member, Position},
    logic::{
        entry::{EndReason, Message, Presence, SessionRecord},
        map::ClusterMap,
        request::SessionView,
    },
    store::{MapChange, StoreError, WriteVersion},
};

const KEY: &str = "test-key-0123456789";
const SESSION: &str = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d";

type Answer = Result<SlotAnswer, SlotError>;

/// Answers what it is told to, and keeps what it was asked.
struct Fake {
    answer: Box<dyn Fn(&SlotRequest) -> Option<Answer> + Send + Sync>,
    asked: Mutex<Vec<SlotRequest>>,
}

#[async_trait]
impl AskSlots for Fake {
    async fn call(&self, _: SlotId, request: SlotRequest, _: Duration) -> Answer {
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
    async fn drain(&self, _: &NodeId) -> Result<(), String> {
        Ok(())
    }
    async fn forget(&self, _: &NodeId) -> Result<(), String> {
        Ok(())
    }
    fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }
    fn facts(&self) -> LocalFacts {
        LocalFacts { copies: 2, certificate_days_left: None, lag_limit_ms: 500, deaf: false }
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
    async fn end_session(&self, _: SessionId, _: WriteVersion) -> Result<(), StoreError> {
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
    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn group_info() -> GroupInfo {
    GroupInfo { group: GroupName::parse("chat:a").unwrap(), epoch: Epoch(7), head: 3, kept: 2, members: 1 }
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
    };
    let view = |record| Ok(SlotAnswer::Session(SessionView { record, attached: true, present: true }));
    Some(match request {
        SlotRequest::Publish { .. } => Ok(SlotAnswer::Published { position, copies: 2 }),
        SlotRequest::CreateSession { record } => view(record.clone()),
        SlotRequest::ReadSession { session } | SlotRequest::ChangeSession { session, .. } => view(record(*session)),
        SlotRequest::EndSession { .. } => Ok(SlotAnswer::Done),
        SlotRequest::Group { .. } => Ok(SlotAnswer::Group(Some(group_info()))),
        SlotRequest::History { .. } => Ok(SlotAnswer::History {
            position: Some(position),
            complete: true,
            messages: vec![Message { offset: 3, data: bytes::Bytes::from_static(b"[1, 2]"), from: None, at_ms: 9 }],
        }),
        SlotRequest::Members { .. } => Ok(SlotAnswer::Members {
            members: vec![Presence {
                session: SessionId(Uuid::from_u128(5)),
                user: "alice".to_owned(),
                info: bytes::Bytes::from_static(b"{}"),
                attachment: 1,
            }],
            more: true,
        }),
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
        let routes = routes(Arc::new(Api {
            slots: fake.clone(),
            config: Arc::new(config),
            keyring: Arc::new(keyring()),
            store: Arc::new(FakeStore),
            maps,
            view,
            metrics: Metrics::new(),
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
    Keyring {}
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
async fn what_is_wrong_is_named_by_its_place() {
    let server = Server::silent();
    let long = "x".repeat(201);
    let (user, grant) = (r#"{"user": "a", "#, r#"{"user": "a", "grants": "#);
    let many_groups = serde_json::to_string(&(0..300).map(|n| format!("g{n}")).collect::<Vec<_>>()).unwrap();
    let many_targets = serde_json::to_string(&(0..101).map(|n| format!("g{n}")).collect::<Vec<_>>()).unwrap();
    let large = format!(r#"{{"data": "{}"}}"#, "x".repeat(64 << 10));
    let cases: Vec<(&str, &str, String, u16, &str, Value)> = vec![
        ("POST", "/v1/sessions", "{}".into(), 422, "missing", json!(["body", "user"])),
        ("POST", "/v1/sessions", r#"{"user": ""}"#.into(), 422, "value_error", json!(["body", "user"])),
        ("POST", "/v1/sessions", r#"{"user": "a\u0000b"}"#.into(), 422, "value_error", json!(["body", "user"])),
        ("POST", "/v1/sessions", format!(r#"{{"user": "{long}"}}"#), 422, "value_error", json!(["body", "user"])),
        ("POST", "/v1/sessions", r#"{"user": ["a"]}"#.into(), 422, "type_error", json!(["body", "user"])),
        ("POST", "/v1/sessions", r#"{"usr": "a"}"#.into(), 422, "unknown_field", json!(["body", "usr"])),
        ("POST", "/v1/sessions", format!(r#"{user}"user": "b"}}"#), 422, "duplicate_field", json!(["body", "user"])),
        ("POST", "/v1/sessions", format!(r#"{user}"ttl_s": "1"}}"#), 422, "type_error", json!(["body", "ttl_s"])),
        ("POST", "/v1/sessions", format!(r#"{user}"ttl_s": 0}}"#), 422, "value_error", json!(["body", "ttl_s"])),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"ttl_s": 18446744073709551615}}"#),
            422,
            "value_error",
            json!(["body", "ttl_s"]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"idle_ttl_s": 1e99}}"#),
            422,
            "type_error",
            json!(["body", "idle_ttl_s"]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"attributes": [1]}}"#),
            422,
            "type_error",
            json!(["body", "attributes"]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"attributes": {{"a": "{}"}}}}"#, "x".repeat(9_000)),
            413,
            "too_large",
            json!(["body", "attributes"]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"groups": ["ok", 3]}}"#),
            422,
            "type_error",
            json!(["body", "groups", 1]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"groups": ["ok", "a\nb"]}}"#),
            422,
            "value_error",
            json!(["body", "groups", 1]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"groups": ["@user:a"]}}"#),
            422,
            "value_error",
            json!(["body", "groups", 0]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{user}"groups": {many_groups}}}"#),
            422,
            "value_error",
            json!(["body", "groups"]),
        ),
        ("POST", "/v1/sessions", format!(r#"{grant}{{}}}}"#), 422, "type_error", json!(["body", "grants"])),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{grant}[{{"pattern": "a", "join": true}}]}}"#),
            422,
            "missing",
            json!(["body", "grants", 0, "publish"]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{grant}[{{"pattern": "a", "join": 1, "publish": true}}]}}"#),
            422,
            "type_error",
            json!(["body", "grants", 0, "join"]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{grant}[{{"pattern": "", "join": true, "publish": true}}]}}"#),
            422,
            "value_error",
            json!(["body", "grants", 0, "pattern"]),
        ),
        (
            "POST",
            "/v1/sessions",
            format!(r#"{grant}[["a", true, true]]}}"#),
            422,
            "type_error",
            json!(["body", "grants", 0]),
        ),
        ("PATCH", "/v1/sessions/SESSION", "{}".into(), 422, "value_error", json!(["body"])),
        ("PATCH", "/v1/sessions/SESSION", r#"{"user": "b"}"#.into(), 422, "unknown_field", json!(["body", "user"])),
        (
            "PATCH",
            "/v1/sessions/SESSION",
            r#"{"join": ["a"], "leave": ["b", "a"]}"#.into(),
            422,
            "value_error",
            json!(["body", "leave", 1]),
        ),
        ("PATCH", "/v1/sessions/nonsense", r#"{"ttl_s": 5}"#.into(), 422, "value_error", json!(["path", "id"])),
        ("GET", "/v1/sessions/%ff", String::new(), 422, "encoding_error", json!(["path", "id"])),
        ("DELETE", "/v1/sessions/SESSION/groups/%ff", String::new(), 422, "encoding_error", json!(["path", "group"])),
        ("DELETE", "/v1/sessions/SESSION/groups/%00", String::new(), 422, "value_error", json!(["path", "group"])),
        ("POST", "/v1/sessions/SESSION/groups", "{}".into(), 422, "missing", json!(["body", "group"])),
        (
            "POST",
            "/v1/sessions/SESSION/groups",
            r#"{"group": "@user:x"}"#.into(),
            422,
            "value_error",
            json!(["body", "group"]),
        ),
        ("GET", "/v1/users/a/sessions?after=x", String::new(), 422, "value_error", json!(["query", "after"])),
        ("GET", "/v1/users/a/sessions?limit=x", String::new(), 422, "type_error", json!(["query", "limit"])),
        ("DELETE", "/v1/users/%01/sessions", String::new(), 422, "value_error", json!(["path", "user"])),
        ("POST", "/v1/groups/a/messages", "{}".into(), 422, "missing", json!(["body", "data"])),
        ("POST", "/v1/groups/a/messages", r#"{"data": 1, "key": 5}"#.into(), 422, "type_error", json!(["body", "key"])),
        (
            "POST",
            "/v1/groups/a/messages",
            r#"{"data": 1, "key": ""}"#.into(),
            422,
            "value_error",
            json!(["body", "key"]),
        ),
        (
            "POST",
            "/v1/groups/a/messages",
            r#"{"data": 1, "min_copies": 9}"#.into(),
            422,
            "value_error",
            json!(["body", "min_copies"]),
        ),
        (
            "POST",
            "/v1/groups/a/messages",
            r#"{"data": 1, "min_copies": 300}"#.into(),
            422,
            "value_error",
            json!(["body", "min_copies"]),
        ),
        ("POST", "/v1/groups/a/messages", r#"{"data": {"a": }}"#.into(), 422, "json_invalid", json!(["body", "data"])),
        ("POST", "/v1/groups/a/messages", "not json".into(), 422, "json_invalid", json!(["body"])),
        ("POST", "/v1/groups/a/messages", "\0".into(), 422, "json_invalid", json!(["body"])),
        (
            "POST",
            "/v1/groups/a/messages",
            format!(r#"{{"data": {}}}"#, "[".repeat(100_000)),
            422,
            "too_deep",
            json!(["body"]),
        ),
        ("POST", "/v1/groups/a/messages", large, 413, "too_large", json!(["body", "data"])),
        ("POST", "/v1/groups/@x/messages", r#"{"data": 1}"#.into(), 422, "value_error", json!(["path", "group"])),
        (
            "GET",
            "/v1/groups/a/messages?since_epoch=1",
            String::new(),
            422,
            "value_error",
            json!(["query", "since_epoch"]),
        ),
        (
            "GET",
            "/v1/groups/a/messages?since_epoch=0000000000000001",
            String::new(),
            422,
            "missing",
            json!(["query", "since_offset"]),
        ),
        ("GET", "/v1/groups/a/messages?since_offset=1", String::new(), 422, "missing", json!(["query", "since_epoch"])),
        ("GET", "/v1/groups/a/messages?limit=0", String::new(), 422, "value_error", json!(["query", "limit"])),
        ("GET", "/v1/groups/a/members?before=x", String::new(), 422, "unknown_field", json!(["query", "before"])),
        ("GET", "/v1/groups?after=%00", String::new(), 422, "value_error", json!(["query", "after"])),
        ("POST", "/v1/broadcast", r#"{"groups": [], "data": 1}"#.into(), 422, "value_error", json!(["body", "groups"])),
        (
            "POST",
            "/v1/broadcast",
            format!(r#"{{"groups": {many_targets}, "data": 1}}"#),
            422,
            "value_error",
            json!(["body", "groups"]),
        ),
        (
            "POST",
            "/v1/broadcast",
            r#"{"groups": ["a", "b", "a"], "data": 1}"#.into(),
            422,
            "value_error",
            json!(["body", "groups", 2]),
        ),
        ("POST", "/v1/batch", r#"{"publishes": []}"#.into(), 422, "value_error", json!(["body", "publishes"])),
        (
            "POST",
            "/v1/batch",
            r#"{"publishes": [{"group": "a", "data": 1}, {"group": "", "data": 1}]}"#.into(),
            422,
            "value_error",
            json!(["body", "publishes", 1, "group"]),
        ),
        (
            "POST",
            "/v1/batch",
            r#"{"publishes": [{"group": "a"}]}"#.into(),
            422,
            "missing",
            json!(["body", "publishes", 0, "data"]),
        ),
        ("DELETE", "/v1/cluster/nodes/a%20b", String::new(), 422, "value_error", json!(["path", "node"])),
        ("POST", "/v1/cluster/nodes/n9/drain", String::new(), 404, "no_node", json!(["path", "node"])),
        ("POST", "/v1/cluster/nodes/n3/drain", String::new(), 409, "node_dead", json!(["path", "node"])),
        ("DELETE", "/v1/cluster/nodes/n2", String::new(), 409, "node_alive", json!(["path", "node"])),
        ("GET", "/v2/groups", String::new(), 404, "not_found", json!(["path"])),
        ("GET", "/docs/nothing.js", String::new(), 404, "not_found", json!(["path", "file"])),
        ("PUT", "/v1/sessions", String::new(), 405, "method_not_allowed", json!([])),
    ];
    for (method, path, body, status, kind, place) in cases {
        let path = path.replace("SESSION", SESSION);
        let shown = format!("{method} {path} {}", body.chars().take(120).collect::<String>());
        let body = Some(body.as_str()).filter(|body| !body.is_empty());
        let answer = server.call(method, &path, body).await;
        let found = answer.1["detail"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["loc"] == place));
        assert!(found && answer.0.status.as_u16() == status, "{shown}: {} {}", answer.0.status, answer.1);
        is_error(status, kind, &place, answer);
    }
    assert!(server.asked().is_empty(), "nothing invalid is passed on");
}

#[tokio::test]
async fn all_that_is_wrong_is_named_at_once() {
    let body = r#"{"user": "", "ttl_s": 0, "groups": ["a", ""]}"#;
    let (parts, answer) = Server::silent().call("POST", "/v1/sessions", Some(body)).await;
    assert_eq!(parts.status, 422);
    let places: Vec<&Value> = answer["detail"].as_array().unwrap().iter().map(|problem| &problem["loc"]).collect();
    assert_eq!(places, [&json!(["body", "user"]), &json!(["body", "ttl_s"]), &json!(["body", "groups", 1])]);
}

#[tokio::test]
async fn content_types_and_sizes() {
    let server = Server::build(|_| None, Ok(()), |config| config.limits.body_bytes = 1_000);
    let post = || HttpRequest::post("/v1/groups/a/messages").header("X-API-Key", KEY);
    let as_error = |(parts, body): (Parts, Vec<u8>)| (parts, serde_json::from_slice::<Value>(&body).unwrap());
    for given in ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "\u{ff}"] {
        let request = post().header("Content-Type", given).body(Body::from(r#"{"data": 1}"#)).unwrap();
        is_error(415, "content_type", &json!(["header", "content-type"]), as_error(server.send(request).await));
    }
    let request = post().header("Content-Type", "application/json").header("Content-Encoding", "gzip");
    let answer = server.send(request.body(Body::from("x")).unwrap()).await;
    is_error(415, "content_type", &json!(["header", "content-encoding"]), as_error(answer));

    let json_post = || post().header("Content-Type", "Application/JSON; charset=UTF-8");
    let announced = json_post().header("Content-Length", "99999999999").body(Body::from("{}")).unwrap();
    is_error(413, "too_large", &json!(["body"]), as_error(server.send(announced).await));
    // Without a length, in pieces, and more than all memory.
    let endless =
        futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[b' '; 500])));
    let request = json_post().body(Body::from_stream(endless)).unwrap();
    is_error(413, "too_large", &json!(["body"]), as_error(server.send(request).await));
    let broken = futures_util::stream::iter([Err::<bytes::Bytes, _>(std::io::Error::other("gone"))]);
    let request = json_post().body(Body::from_stream(broken)).unwrap();
    is_error(400, "incomplete", &json!(["body"]), as_error(server.send(request).await));
}

#[tokio::test]
async fn a_body_that_trickles_in_is_not_waited_for() {
    let request =
        HttpRequest::post("/v1/broadcast").header("X-API-Key", KEY).header("Content-Type", "application/json");
    let stuck = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    let server = Server::build(|_| None, Ok(()), |config| config.limits.handshake_ms = 1);
    let (parts, _) = server.send(request.body(Body::from_stream(stuck)).unwrap()).await;
    assert_eq!(parts.status, 408);
}

#[tokio::test]
async fn keyed_routes_need_a_key_and_no_other_does() {
    let server = Server::silent();
    for route in table() {
        let path = route.path.replace("{id}", SESSION).replace(['{', '}'], "");
        let request = HttpRequest::builder().method(route.method.clone()).uri(&path).body(Body::empty()).unwrap();
        let (parts, body) = server.send(request).await;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if route.key {
            assert_eq!(parts.headers["www-authenticate"], "Bearer realm=\"roost\"", "{} {path}", route.method);
            is_error(401, "unauthorized", &json!(["header", "authorization"]), (parts, body));
        } else {
            assert_eq!(parts.status, 200, "{} {path}", route.method);
        }
    }
    let request =
        HttpRequest::get("/v1/cluster/map").header("Authorization", "Bearer wrong").body(Body::empty()).unwrap();
    assert_eq!(server.send(request).await.0.status, 401);
    let request = HttpRequest::get("/v1/cluster/map").header("Authorization", format!("Bearer {KEY}"));
    assert_eq!(server.send(request.body(Body::empty()).unwrap()).await.0.status, 200);
}

#[tokio::test]
async fn methods_that_a_path_takes_are_told() {
    let (parts, body) = Server::silent().call("PUT", "/v1/groups/a/messages", None).await;
    assert_eq!(
        parts.headers["allow"].to_str().unwrap().split(',').collect::<std::collections::BTreeSet<_>>(),
        ["GET", "HEAD", "POST"].into()
    );
    is_error(405, "method_not_allowed", &json!([]), (parts, body));
}

#[tokio::test]
async fn a_session_is_made() {
    let server = Server::answering(obliging);
    let body = r#"{"user": "ann", "ttl_s": 60, "attributes": {"x": [1,  2]}, "groups": ["g"], "grants": [{"pattern": "a*", "join": true, "publish": false}]}"#;
    let (parts, answer) = server.call("POST", "/v1/sessions", Some(body)).await;
    assert_eq!(parts.status, 201, "{answer}");
    let session = &answer["session"];
    assert_eq!(session["user"], "ann");
    assert_eq!(session["attributes"], json!({"x": [1, 2]}));
    assert_eq!(session["groups"], json!(["g"]));
    assert_eq!(session["grants"], json!([{"pattern": "a*", "join": true, "publish": false}]));
    assert_eq!(session["expires_ms"].as_u64().unwrap() - session["created_ms"].as_u64().unwrap(), 60_000);
    assert_eq!(parts.headers["location"], format!("/v1/sessions/{}", session["id"].as_str().unwrap()));
    let cookie = parts.headers["set-cookie"].to_str().unwrap();
    assert_eq!(
        cookie,
        format!("session_id={}; Path=/; Max-Age=60; HttpOnly; SameSite=Lax", answer["token"].as_str().unwrap())
    );

    let secure = Server::build(obliging, Ok(()), |config| config.session.cookie_same_site = "none".to_owned());
    let (parts, _) = secure.call("POST", "/v1/sessions", Some(r#"{"user": "ann"}"#)).await;
    assert!(parts.headers["set-cookie"].to_str().unwrap().ends_with("; HttpOnly; SameSite=None; Secure"));
}

#[tokio::test]
async fn a_publish_keeps_its_data_and_key() {
    let server = Server::answering(obliging);
    let publish = async |body: &str| {
        let (parts, answer) = server.call("POST", "/v1/groups/chat%3Aa%2Fb/messages", Some(body)).await;
        assert_eq!(
            (parts.status.as_u16(), &answer),
            (200, &json!({"epoch": "0000000000000007", "offset": 3, "copies": 2}))
        );
        match server.asked().pop() {
            Some(SlotRequest::Publish { group, key, data, from, min_copies, .. }) => {
                assert_eq!((group.as_str(), from, min_copies), ("chat:a/b", None, 1));
                (data, key)
            }
            other => panic!("{other:?}"),
        }
    };
    let (data, key) = publish(r#"{"data":  {"b": 1,  "a": 1.00} , "key": "k"}"#).await;
    assert_eq!(data, r#"{"b": 1,  "a": 1.00}"#);
    assert_eq!(publish(r#"{"data": null, "key": "k"}"#).await, (bytes::Bytes::from_static(b"null"), key));
    assert_ne!(publish(r#"{"data": 1, "key": "other"}"#).await.1, key);
    assert_ne!(publish(r#"{"data": 1}"#).await.1, publish(r#"{"data": 1}"#).await.1);
}

#[tokio::test]
async fn a_broadcast_tells_which_groups_took_it() {
    let server = Server::answering(|request| match request {
        SlotRequest::Publish { group, .. } if group.as_str() == "b" => Some(Err(SlotError::Busy)),
        other => obliging(other),
    });
    let (parts, answer) = server.call("POST", "/v1/broadcast", Some(r#"{"groups": ["a", "b", "c"], "data": 1}"#)).await;
    assert_eq!(parts.status, 207);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results[0], json!({"group": "a", "status": 200, "epoch": "0000000000000007", "offset": 3, "copies": 2}));
    assert_eq!((&results[1]["group"], &results[1]["status"]), (&json!("b"), &json!(503)));
    assert_eq!(results[1]["detail"][0]["type"], "busy");
    assert_eq!(results[2]["status"], 200);
    let (parts, _) = server.call("POST", "/v1/broadcast", Some(r#"{"groups": ["a", "c"], "data": 1}"#)).await;
    assert_eq!(parts.status, 200);
}

#[tokio::test]
async fn a_batch_keeps_the_order_within_a_group() {
    let server = Server::answering(|request| match request {
        SlotRequest::Publish { group, data, .. } if group.as_str() == "b" && data == "2" => {
            Some(Err(SlotError::Unknown))
        }
        other => obliging(other),
    });
    let body = r#"{"publishes": [
        {"group": "b", "data": 1}, {"group": "a", "data": 1}, {"group": "b", "data": 2}, {"group": "b", "data": 3}, {"group": "a", "data": 2}
    ]}"#;
    let (parts, answer) = server.call("POST", "/v1/batch", Some(body)).await;
    assert_eq!(parts.status, 207);
    let results: Vec<(&str, u64)> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| (result["group"].as_str().unwrap(), result["status"].as_u64().unwrap()))
        .collect();
    assert_eq!(results, [("b", 200), ("a", 200), ("b", 504), ("b", 424), ("a", 200)]);
    let of = |name: &str, asked: &[SlotRequest]| -> Vec<bytes::Bytes> {
        let publishes = asked.iter().filter_map(|request| match request {
            SlotRequest::Publish { group, data, .. } if group.as_str() == name => Some(data.clone()),
            _ => None,
        });
        publishes.collect()
    };
    let asked = server.asked();
    assert_eq!(of("a", &asked), ["1", "2"]);
    assert_eq!(of("b", &asked), ["1", "2"]);
}

#[tokio::test]
async fn reasons_of_the_cluster_become_statuses() {
    for (error, status, kind) in [
        (SlotError::Busy, 503, "busy"),
        (SlotError::NotEnoughCopies { copies: 1, min_copies: 2 }, 503, "not_enough_copies"),
        (SlotError::Unknown, 504, "unknown_outcome"),
    ] {
        let server = Server::answering(move |_| Some(Err(error.clone())));
        let answer = server.call("POST", "/v1/groups/a/messages", Some(r#"{"data": 1}"#)).await;
        assert_eq!(answer.0.headers["retry-after"], "1");
        is_error(status, kind, &json!([]), answer);
    }
    let gone = Server::answering(|_| Some(Err(SlotError::SessionEnded(EndReason::Idle))));
    let path = format!("/v1/sessions/{SESSION}");
    is_error(410, "session_ended", &json!([]), gone.call("GET", &path, None).await);
    assert_eq!(gone.call("DELETE", &path, None).await.0.status, 204, "to end it again does no harm");
    let to_it = gone.call("POST", &format!("{path}/messages"), Some(r#"{"data": 1}"#)).await;
    is_error(410, "session_ended", &json!([]), to_it);
    let none = Server::answering(|_| Some(Ok(SlotAnswer::Group(None))));
    is_error(404, "no_group", &json!(["path", "group"]), none.call("GET", "/v1/groups/a", None).await);
    let wrong = Server::answering(|_| Some(Ok(SlotAnswer::Done)));
    is_error(500, "internal", &json!([]), wrong.call("GET", &path, None).await);
    let broken = Server::answering(|_| panic!("a fault in a handler"));
    is_error(500, "internal", &json!([]), broken.call("GET", &path, None).await);
}

#[tokio::test]
async fn sessions_of_a_user_are_paged() {
    let server = Server::answering(|request| match request {
        SlotRequest::ReadSession { session } if session.0.as_u128() == 2 => {
            Some(Err(SlotError::SessionEnded(EndReason::Ended)))
        }
        SlotRequest::ReadSession { session } if session.0.as_u128() == 3 => Some(Err(SlotError::Unavailable)),
        other => obliging(other),
    });
    let (mut path, mut seen, mut pages) = ("/v1/users/alice/sessions?limit=200".to_owned(), 0, 0);
    loop {
        let (parts, page) = server.call("GET", &path, None).await;
        assert_eq!(parts.status, 200, "{page}");
        seen += page["sessions"].as_array().unwrap().len() + page["unavailable"].as_array().unwrap().len();
        pages += 1;
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/users/alice/sessions?limit=200&after={next}"),
            None => break,
        }
    }
    assert_eq!((seen, pages), (449, 3));
    let (parts, answer) = server.call("DELETE", "/v1/users/alice/sessions", None).await;
    assert_eq!((parts.status.as_u16(), answer), (200, json!({"ended": 450})));
    is_error(503, "store_unavailable", &json!([]), server.call("DELETE", "/v1/users/bob/sessions", None).await);
    let down = Server::answering(|_| Some(Err(SlotError::Unavailable)));
    is_error(503, "unavailable", &json!([]), down.call("DELETE", "/v1/users/alice/sessions", None).await);
}

#[tokio::test]
async fn probes() {
    let server = Server::answering(obliging);
    let (parts, report) = server.call("GET", "/health", None).await;
    // n3 is silent in the view, so the cluster is yellow and the service degraded, but served.
    assert_eq!(parts.status, 200);
    assert_eq!(
        (&report["status"], &report["database"], &report["cluster"]),
        (&json!("degraded"), &json!("up"), &json!("yellow"))
    );
    assert!(
        report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .all(|check| check["name"].is_string() && check["detail"].is_string())
    );
    assert_eq!(server.call("GET", "/readyz", None).await.0.status, 200);

    let server = Server::build(obliging, Err("draining: on its way out".to_owned()), |_| {});
    is_error(503, "not_ready", &json!([]), server.call("GET", "/readyz", None).await);
    let (parts, report) = server.call("GET", "/health", None).await;
    assert_eq!((parts.status.as_u16(), &report["status"]), (503, &json!("unavailable")));
    assert_eq!(report["checks"][0]["detail"], "draining: on its way out");
    assert_eq!(server.call("GET", "/livez", None).await.0.status, 200);

    let metrics = HttpRequest::get("/metrics").body(Body::empty()).unwrap();
    let (parts, text) = server.send(metrics).await;
    assert!(parts.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(r#"roost_http_requests_total{route="/readyz",status="503"} 1"#), "{text}");
}

#[tokio::test]
async fn pages_load_nothing_from_elsewhere() {
    let server = Server::silent();
    for path in ["/", "/docs/", "/docs/swagger-initializer.js"] {
        let (parts, body) = server.send(HttpRequest::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(parts.status, 200, "{path}");
        assert!(parts.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
        let text = String::from_utf8(body).unwrap();
        assert!(!text.contains("//") || !text.replace("http-equiv", "").contains("http"), "{path}: {text}");
    }
    let (_, body) = server.send(HttpRequest::get("/docs/swagger-initializer.js").body(Body::empty()).unwrap()).await;
    let text = String::from_utf8(body).unwrap();
    assert!(text.contains("/openapi.json") && text.contains(r#""validatorUrl": "none""#), "{text}");
    for file in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js", "index.css"] {
        let (parts, body) = server.send(HttpRequest::get(format!("/docs/{file}")).body(Body::empty()).unwrap()).await;
        assert!(parts.status == 200 && !body.is_empty(), "{file}");
    }
}

/// The document and the table of routes say the same, and every example in it is taken.
#[tokio::test]
async fn the_document_is_true() {
    let document = serde_json::to_value(docs::document()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let documented: BTreeMap<(String, String), &Value> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .iter()
                .map(move |(method, operation)| ((path.clone(), method.to_uppercase()), operation))
        })
        .collect();
    let routed: BTreeMap<(String, String), bool> =
        table().into_iter().map(|route| ((route.path.to_owned(), route.method.to_string()), route.key)).collect();
    assert_eq!(documented.keys().collect::<Vec<_>>(), routed.keys().collect::<Vec<_>>());

    let server = Server::answering(obliging);
    for ((path, method), operation) in documented {
        let keyed = routed[&(path.clone(), method.clone())];
        assert_eq!(operation["security"].is_array(), keyed, "{method} {path}");
        assert!(operation["summary"].is_string(), "{method} {path} says what it does");
        let responses = operation["responses"].as_object().unwrap();
        assert_eq!(responses.contains_key("401"), keyed, "{method} {path}");

        let mut called = path.clone();
        for parameter in
            operation["parameters"].as_array().into_iter().flatten().filter(|parameter| parameter["in"] == "path")
        {
            let example = parameter["example"].as_str().expect("path parameters have examples");
            called = called.replace(&format!("{{{}}}", parameter["name"].as_str().unwrap()), example);
        }
        let body = operation
            .get("requestBody")
            .map(|body| example(&document, &body["content"]["application/json"]["schema"]).to_string());
        let mut request = HttpRequest::builder().method(method.as_str()).uri(&called).header("X-API-Key", KEY);
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let (parts, answer) = server.send(request.body(Body::from(body.unwrap_or_default())).unwrap()).await;
        let status = parts.status.as_u16();
        assert!(parts.status.is_success(), "{method} {called}: {status} {}", String::from_utf8_lossy(&answer));
        assert!(responses.contains_key(&status.to_string()), "{method} {path} does not document {status}");
        let schema = &responses[&status.to_string()]["content"]["application/json"]["schema"];
        if !schema.is_null() {
            fits(&document, schema, &serde_json::from_slice(&answer).unwrap(), &format!("{method} {path}"));
        }
    }
    every_reference_resolves(&document, &document);
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("the reference resolves"),
        None => schema,
    }
}

/// The schema's example, or one made of those of its fields.
fn example(document: &Value, schema: &Value) -> Value {
    let schema = resolved(document, schema);
    if let Some(example) = schema.get("example") {
        return example.clone();
    }
    let fields = schema["properties"].as_object().expect("an example or fields with examples");
    Value::Object(fields.iter().map(|(name, field)| (name.clone(), example(document, field))).collect())
}

/// Whether an answer has the required fields and no undocumented ones.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = resolved(document, schema);
    assert!(schema.get("allOf").is_none(), "{at}: flat types are easier on those who read");
    if let Some(options) = schema["oneOf"].as_array() {
        if let Some(option) = options.iter().find(|option| option["type"] != "null").filter(|_| !value.is_null()) {
            fits(document, option, value, at);
        }
        return;
    }
    match value {
        Value::Object(object) => {
            let Some(fields) = schema["properties"].as_object() else { return };
            for required in schema["required"].as_array().into_iter().flatten() {
                assert!(object.contains_key(required.as_str().unwrap()), "{at}: {required} is missing in {value}");
            }
            for (name, value) in object {
                let field = fields.get(name).unwrap_or_else(|| panic!("{at}: {name} is not documented"));
                fits(document, field, value, &format!("{at}.{name}"));
            }
        }
        Value::Array(items) if schema.get("items").is_some() => {
            items.iter().for_each(|item| fits(document, &schema["items"], item, at));
        }
        _ => {}
    }
    if let Some(options) = schema["enum"].as_array() {
        assert!(options.contains(value), "{at}: {value} is not among {options:?}");
    }
}

fn every_reference_resolves(document: &Value, value: &Value) {
    match value {
        Value::Object(object) => {
            if object.contains_key("$ref") {
                resolved(document, value);
            }
            object.values().for_each(|value| every_reference_resolves(document, value));
        }
        Value::Array(items) => items.iter().for_each(|value| every_reference_resolves(document, value)),
        _ => {}
    }
}
