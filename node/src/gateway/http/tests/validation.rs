//! What is refused before anything is asked of the cluster, and how it is told.

use super::*;

/// Call, body, and what it is answered: status, `type`, `loc`. `<x*3>` stands for `xxx`, `<names*3>` for so many group names.
const REFUSED: &str = r#"
POST /v1/sessions | {} | 422 missing ["body","user"]
POST /v1/sessions | {"user": ""} | 422 value_error ["body","user"]
POST /v1/sessions | {"user": "a\u0000b"} | 422 value_error ["body","user"]
POST /v1/sessions | {"user": "<x*201>"} | 422 value_error ["body","user"]
POST /v1/sessions | {"user": ["a"]} | 422 type_error ["body","user"]
POST /v1/sessions | {"user": null} | 422 type_error ["body","user"]
POST /v1/sessions | {"usr": "a"} | 422 unknown_field ["body","usr"]
POST /v1/sessions | {"user": "a", "user": "b"} | 422 duplicate_field ["body","user"]
POST /v1/sessions | {"user": "a", "ttl_s": "1"} | 422 type_error ["body","ttl_s"]
POST /v1/sessions | {"user": "a", "ttl_s": 0} | 422 value_error ["body","ttl_s"]
POST /v1/sessions | {"user": "a", "ttl_s": 1.5} | 422 type_error ["body","ttl_s"]
POST /v1/sessions | {"user": "a", "ttl_s": 18446744073709551615} | 422 value_error ["body","ttl_s"]
POST /v1/sessions | {"user": "a", "idle_ttl_s": 1e99} | 422 type_error ["body","idle_ttl_s"]
POST /v1/sessions | {"user": "a", "attributes": [1]} | 422 type_error ["body","attributes"]
POST /v1/sessions | {"user": "a", "attributes": {"a": "<x*9000>"}} | 413 too_large ["body","attributes"]
POST /v1/sessions | {"user": "a", "groups": ["ok", 3]} | 422 type_error ["body","groups",1]
POST /v1/sessions | {"user": "a", "groups": ["ok", "a\nb"]} | 422 value_error ["body","groups",1]
POST /v1/sessions | {"user": "a", "groups": ["@user:a"]} | 422 value_error ["body","groups",0]
POST /v1/sessions | {"user": "a", "groups": <names*300>} | 422 value_error ["body","groups"]
POST /v1/sessions | {"user": "a", "grants": {}} | 422 type_error ["body","grants"]
POST /v1/sessions | {"user": "a", "grants": [{"pattern": "a", "join": true}]} | 422 missing ["body","grants",0,"publish"]
POST /v1/sessions | {"user": "a", "grants": [{"pattern": "a", "join": 1, "publish": true}]} | 422 type_error ["body","grants",0,"join"]
POST /v1/sessions | {"user": "a", "grants": [{"pattern": "", "join": true, "publish": true}]} | 422 value_error ["body","grants",0,"pattern"]
POST /v1/sessions | {"user": "a", "grants": [["a", true, true]]} | 422 type_error ["body","grants",0]
PATCH /v1/sessions/SESSION | {"user": "b"} | 422 unknown_field ["body","user"]
PATCH /v1/sessions/SESSION | {"join": ["a"], "leave": ["b", "a"]} | 422 value_error ["body","leave",1]
PATCH /v1/sessions/nonsense | {"ttl_s": 5} | 422 value_error ["path","id"]
GET /v1/sessions/%ff | | 422 encoding_error ["path","id"]
DELETE /v1/sessions/SESSION/groups/%ff | | 422 encoding_error ["path","group"]
DELETE /v1/sessions/SESSION/groups/%00 | | 422 value_error ["path","group"]
DELETE /v1/sessions/SESSION/groups/@user:a | | 422 value_error ["path","group"]
POST /v1/sessions/SESSION/groups | {} | 422 missing ["body","group"]
POST /v1/sessions/SESSION/groups | {"group": "@user:x"} | 422 value_error ["body","group"]
GET /v1/users/a/sessions?after=x | | 422 value_error ["query","after"]
GET /v1/users/a/sessions?limit=x | | 422 type_error ["query","limit"]
DELETE /v1/users/%01/sessions | | 422 value_error ["path","user"]
POST /v1/groups/a/messages | {} | 422 missing ["body","data"]
POST /v1/groups/a/messages | {"data": 1, "key": 5} | 422 type_error ["body","key"]
POST /v1/groups/a/messages | {"data": 1, "key": ""} | 422 value_error ["body","key"]
POST /v1/groups/a/messages | {"data": 1, "min_copies": 9} | 422 value_error ["body","min_copies"]
POST /v1/groups/a/messages | {"data": 1, "ephemeral": 1} | 422 type_error ["body","ephemeral"]
POST /v1/groups/a/messages | {"data": 1, "ephemeral": true, "key": "k"} | 422 value_error ["body","key"]
POST /v1/users/a/messages | {"data": 1, "ephemeral": true, "min_copies": 1} | 422 value_error ["body","min_copies"]
POST /v1/broadcast | {"groups": ["a"], "data": 1, "ephemeral": true} | 422 unknown_field ["body","ephemeral"]
POST /v1/groups/a/messages | {"data": 1, "min_copies": 300} | 422 value_error ["body","min_copies"]
POST /v1/groups/a/messages | {"data": {"a": } | 422 json_invalid ["body","data"]
POST /v1/groups/a/messages | not json | 422 json_invalid ["body"]
POST /v1/groups/a/messages | {"data": <[*100000>} | 422 too_deep ["body"]
POST /v1/groups/a/messages | {"data": "<x*65536>"} | 413 too_large ["body","data"]
POST /v1/groups/@x/messages | {"data": 1} | 422 value_error ["path","group"]
GET /v1/groups/a/messages?since_epoch=1 | | 422 value_error ["query","since_epoch"]
GET /v1/groups/a/messages?since_epoch=0000000000000001 | | 422 missing ["query","since_offset"]
GET /v1/groups/a/messages?since_offset=1 | | 422 missing ["query","since_epoch"]
GET /v1/groups/a/messages?since_epoch=0000000000000001&since_offset=9007199254740992 | | 422 value_error ["query","since_offset"]
GET /v1/groups/a/messages?since_epoch=0000000000000001&since_offset=18446744073709551616 | | 422 type_error ["query","since_offset"]
GET /v1/groups/a/messages?limit=0 | | 422 value_error ["query","limit"]
GET /v1/groups/a/members?before=x | | 422 unknown_field ["query","before"]
GET /v1/groups?after=%00 | | 422 value_error ["query","after"]
POST /v1/broadcast | {"groups": [], "data": 1} | 422 value_error ["body","groups"]
POST /v1/broadcast | {"groups": <names*101>, "data": 1} | 422 value_error ["body","groups"]
POST /v1/broadcast | {"groups": ["a", "b", "a"], "data": 1} | 422 value_error ["body","groups",2]
POST /v1/batch | {"publishes": []} | 422 value_error ["body","publishes"]
POST /v1/batch | {"publishes": [{"group": "a", "data": 1}, {"group": "", "data": 1}]} | 422 value_error ["body","publishes",1,"group"]
POST /v1/batch | {"publishes": [{"group": "a"}]} | 422 missing ["body","publishes",0,"data"]
DELETE /v1/cluster/nodes/a%20b | | 422 value_error ["path","node"]
POST /v1/cluster/nodes/n9/drain | | 404 no_node ["path","node"]
POST /v1/cluster/nodes/n3/drain | | 409 node_dead ["path","node"]
POST /v1/cluster/nodes/n1/drain | | 409 node_draining ["path","node"]
POST /v1/cluster/nodes/n2/drain?force=1 | | 422 value_error ["query","force"]
POST /v1/cluster/nodes/n2/drain?now=true | | 422 unknown_field ["query","now"]
DELETE /v1/cluster/nodes/n2 | | 409 node_alive ["path","node"]
GET /v2/groups | | 404 not_found ["path"]
GET /docs/nothing.js | | 404 not_found ["path","file"]
PUT /v1/sessions | | 405 method_not_allowed []
"#;

#[tokio::test]
async fn what_is_wrong_is_named_by_its_place() {
    let server = Server::silent();
    for line in REFUSED.trim().lines() {
        let [call, body, expected] = line.splitn(3, '|').map(str::trim).collect::<Vec<_>>().try_into().expect(line);
        let (method, path) = call.split_once(' ').expect(line);
        let [status, kind, place] = expected.splitn(3, ' ').collect::<Vec<_>>().try_into().expect(line);
        let body = filled_in(body);
        let body = Some(body.as_str()).filter(|body| !body.is_empty());
        let answer = server.call(method, &path.replace("SESSION", SESSION), body).await;
        println!("{line}\n  {}", answer.1);
        is_error(status.parse().unwrap(), kind, &serde_json::from_str(place).expect(line), answer);
    }
    assert!(server.asked().is_empty(), "nothing invalid is passed on");
}

fn filled_in(body: &str) -> String {
    let Some((before, rest)) = body.split_once('<') else { return body.to_owned() };
    let (pattern, after) = rest.split_once('>').unwrap();
    let (what, count) = pattern.split_once('*').unwrap();
    let count = count.parse().unwrap();
    let filling = match what {
        "names" => json!((0..count).map(|number| format!("g{number}")).collect::<Vec<_>>()).to_string(),
        text => text.repeat(count),
    };
    format!("{before}{filling}{after}")
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
