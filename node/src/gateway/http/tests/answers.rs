//! What valid calls are answered, and what the cluster is asked for them.

use super::*;
use crate::logic::request::PublishEphemeral;

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
            Some(SlotRequest::Group(group, GroupRequest::Publish(Publish { messages, from, min_copies, .. }))) => {
                assert_eq!((group.as_str(), from, min_copies, messages.len()), ("chat:a/b", None, 1, 1));
                (messages[0].data.clone(), messages[0].key)
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
async fn what_is_sent_to_one_client_says_where_it_is_or_is_not() {
    let at = |name: &'static str| {
        Server::answering(move |request| match (obliging(request), name) {
            (Some(Ok(SlotAnswer::Session(mut view))), name) => {
                view.clients[0].gateway.node = node(name);
                Some(Ok(SlotAnswer::Session(view)))
            }
            (other, _) => other,
        })
    };
    let path = |client: &str| format!("/v1/sessions/{SESSION}/clients/{client}/messages");
    for (name, client, status, told) in [
        ("n2", "tab-1", 200, json!({"node": "n2"})),
        ("n1", "tab-1", 404, json!("no_client")),
        ("n3", "tab-1", 504, json!("unknown_outcome")),
        ("n2", "tab-2", 404, json!("no_client")),
    ] {
        let (parts, answer) = at(name).call("POST", &path(client), Some(r#"{"data": 1}"#)).await;
        let said = if status == 200 { answer.clone() } else { answer["detail"][0]["type"].clone() };
        assert_eq!((parts.status.as_u16(), said), (status, told), "{name} {client}: {answer}");
    }
}

#[tokio::test]
async fn who_is_disconnected_is_counted_and_nodes_that_say_nothing_are_named() {
    let server = Server::answering(obliging);
    let of_session = format!("/v1/sessions/{SESSION}/disconnect");
    let (_, answer) = server.call("POST", &of_session, Some(r#"{"client": "tab-1"}"#)).await;
    assert_eq!(answer, json!({"disconnected": 1, "missing_nodes": []}));
    let (_, answer) = server.call("POST", "/v1/users/alice/disconnect", Some("{}")).await;
    assert_eq!(answer, json!({"disconnected": 1, "missing_nodes": ["n3"]}));
    let long = format!(r#"{{"reason": "{}"}}"#, "x".repeat(121));
    for (body, field) in [
        (r#"{"client": ""}"#, "client"),
        (r#"{"after_ms": 86400001}"#, "after_ms"),
        (r#"{"code": 100}"#, "code"),
        (&long, "reason"),
    ] {
        let (parts, answer) = server.call("POST", &of_session, Some(body)).await;
        assert_eq!((parts.status.as_u16(), &answer["detail"][0]["loc"]), (422, &json!(["body", field])), "{answer}");
    }
}

#[tokio::test]
async fn a_broadcast_tells_which_groups_took_it() {
    let server = Server::answering(|request| match request {
        SlotRequest::Group(group, GroupRequest::Publish(_)) if group.as_str() == "b" => Some(Err(SlotError::Busy)),
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

/// What was asked to be published to a group: each request with its messages.
fn published_to(name: &str, asked: &[SlotRequest]) -> Vec<Vec<bytes::Bytes>> {
    let publishes = asked.iter().filter_map(|request| match request {
        SlotRequest::Group(group, GroupRequest::Publish(Publish { messages, .. })) if group.as_str() == name => {
            Some(messages.iter().map(|message| message.data.clone()).collect())
        }
        _ => None,
    });
    publishes.collect()
}

#[tokio::test]
async fn a_batch_keeps_the_order_within_a_group_and_goes_on_past_nothing_that_was_not_accepted() {
    let body = r#"{"publishes": [
        {"group": "b", "data": 1}, {"group": "a", "data": 1}, {"group": "b", "data": 2}, {"group": "b", "data": 3}, {"group": "a", "data": 2}
    ]}"#;
    let check = async |told_of_b: Option<Answer>, statuses: [u64; 5]| {
        let server = Server::answering(move |request| match request {
            SlotRequest::Group(group, GroupRequest::Publish(_)) if group.as_str() == "b" => {
                told_of_b.clone().or_else(|| obliging(request))
            }
            other => obliging(other),
        });
        let (parts, answer) = server.call("POST", "/v1/batch", Some(body)).await;
        assert_eq!(parts.status, if statuses == [200; 5] { 200 } else { 207 });
        let results = answer["results"].as_array().unwrap();
        let told: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
        assert_eq!(told, statuses, "{answer}");
        let groups: Vec<_> = results.iter().map(|result| result["group"].as_str().unwrap()).collect();
        assert_eq!(groups, ["b", "a", "b", "b", "a"]);
        let asked = server.asked();
        assert_eq!(published_to("a", &asked), [["1", "2"]]);
        assert_eq!(published_to("b", &asked), [["1", "2", "3"]]);
    };
    check(None, [200; 5]).await;
    check(Some(Err(SlotError::Unknown)), [504, 200, 504, 504, 200]).await;
    check(Some(Err(SlotError::Unavailable)), [503, 200, 424, 424, 200]).await;
    let position = Position { epoch: Epoch(7), offset: 3 };
    let known = || Ok(Published { position, copies: 2 });
    let few = || Err(SlotError::NotEnoughCopies { copies: 1, min_copies: 2 });
    let all = |all| Some(Ok(SlotAnswer::Published(all)));
    check(all([known(), few(), few()].into()), [200, 200, 503, 424, 200]).await;
    check(all([few(), known(), few()].into()), [503, 200, 200, 424, 200]).await;
    // What is no answer to three messages says nothing about them.
    check(all([known(), few()].into()), [504, 200, 504, 504, 200]).await;
}

#[tokio::test]
async fn a_new_token_is_that_of_the_number_that_the_session_has_now() {
    let server = Server::answering(obliging);
    let (parts, answer) = server.call("POST", &format!("/v1/sessions/{SESSION}/token"), None).await;
    assert_eq!(parts.status, 200, "{answer}");
    let token = answer["token"].as_str().unwrap();
    let id = Uuid::parse_str(SESSION).unwrap();
    assert!(token.starts_with("v2.") && token.split('.').nth(3) == Some("3"), "{token}");
    assert_eq!(answer["session"]["token_number"], 3);
    let cookie = parts.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with(&format!("session_id={token};")) && cookie.contains("HttpOnly"), "{cookie}");
    let change = SessionChange { new_token: true, ..SessionChange::default() };
    assert_eq!(server.asked(), [(SessionId(id), ChangeSession { change }).into_request()]);
    let gone = Server::answering(|_| Some(Err(SlotError::NoSession)));
    is_error(404, "no_session", &json!([]), gone.call("POST", &format!("/v1/sessions/{SESSION}/token"), None).await);
}

#[tokio::test]
async fn reasons_of_the_cluster_become_statuses() {
    for (error, status, kind) in [
        (SlotError::Busy, 503, "busy"),
        (SlotError::Full, 503, "busy"),
        (SlotError::NotEnoughCopies { copies: 1, min_copies: 2 }, 503, "not_enough_copies"),
        (SlotError::Unknown, 504, "unknown_outcome"),
    ] {
        let server = Server::answering(move |_| Some(Err(error.clone())));
        let answer = server.call("POST", "/v1/groups/a/messages", Some(r#"{"data": 1}"#)).await;
        assert_eq!(answer.0.headers["retry-after"], "1");
        is_error(status, kind, &json!([]), answer);
    }
    // A session whose token nobody has may as well not be there.
    let late = Server::answering(|_| Some(Err(SlotError::Unknown)));
    let answer = late.call("POST", "/v1/sessions", Some(r#"{"user": "ann"}"#)).await;
    assert_eq!(answer.0.headers["retry-after"], "1");
    is_error(503, "store_unavailable", &json!([]), answer);
    let gone = Server::answering(|_| Some(Err(SlotError::SessionEnded(EndReason::Idle))));
    let path = format!("/v1/sessions/{SESSION}");
    is_error(410, "session_ended", &json!([]), gone.call("GET", &path, None).await);
    assert_eq!(gone.call("DELETE", &path, None).await.0.status, 204, "to end it again does no harm");
    let to_it = gone.call("POST", &format!("{path}/messages"), Some(r#"{"data": 1}"#)).await;
    is_error(410, "session_ended", &json!([]), to_it);
    let none = Server::answering(|_| Some(Ok(SlotAnswer::Group(None))));
    is_error(404, "no_group", &json!(["path", "group"]), none.call("GET", "/v1/groups/a", None).await);
    let wrong = Server::answering(|_| Some(Ok(SlotAnswer::Done(Done))));
    is_error(504, "unknown_outcome", &json!([]), wrong.call("GET", &path, None).await);
    let broken = Server::answering(|_| panic!("a fault in a handler"));
    is_error(500, "internal", &json!([]), broken.call("GET", &path, None).await);
}

#[tokio::test]
async fn sessions_of_a_user_are_paged() {
    let server = Server::answering(|request| match request {
        SlotRequest::Session(session, SessionRequest::ReadSession(_)) if session.0.as_u128() == 2 => {
            Some(Err(SlotError::SessionEnded(EndReason::Ended)))
        }
        SlotRequest::Session(session, SessionRequest::ReadSession(_)) if session.0.as_u128() == 3 => {
            Some(Err(SlotError::Unavailable))
        }
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
    for path in ["/", "/docs/", "/docs/index.html", "/docs/docs.css", "/docs/docs.js"] {
        let (parts, body) = server.send(HttpRequest::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(parts.status, 200, "{path}");
        assert!(parts.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
        let text = String::from_utf8(body).unwrap();
        assert!(!text.contains("http://") && !text.contains("https://"), "{path} names another place");
        if path.ends_with(".js") {
            // The document is text of the node's own, and yet none of it may become markup.
            assert!(text.contains("fetch(\"/openapi.json\")") && !text.contains("innerHTML"));
        }
    }
}

/// A page from anywhere may import it, and gets it again only where it is another one.
#[tokio::test]
async fn the_client_for_javascript_is_served() {
    let server = Server::silent();
    let get = async |known: Option<&str>| {
        let request = HttpRequest::get("/roost.js");
        let request = known.into_iter().fold(request, |request, tag| request.header("if-none-match", tag));
        server.send(request.body(Body::empty()).unwrap()).await
    };
    let (parts, body) = get(None).await;
    assert_eq!(parts.status, 200);
    assert_eq!(parts.headers["content-type"], "text/javascript; charset=utf-8");
    assert_eq!(parts.headers["access-control-allow-origin"], "*");
    assert_eq!(parts.headers["cache-control"], "no-cache");
    assert_eq!(body, include_bytes!("../../../../clients/js/roost.js"));
    let tag = parts.headers["etag"].to_str().unwrap();
    for known in [tag.to_owned(), format!("\"other\", W/{tag}"), "*".to_owned()] {
        let (parts, body) = get(Some(&known)).await;
        assert_eq!((parts.status.as_u16(), body.len()), (304, 0), "{known}");
        assert_eq!(parts.headers["access-control-allow-origin"], "*");
    }
    assert_eq!(get(Some("\"other\"")).await.0.status, 200);
}

/// Whatever the page names beside itself is there.
#[tokio::test]
async fn the_page_has_all_its_files() {
    let server = Server::silent();
    let (_, body) = server.send(HttpRequest::get("/docs/").body(Body::empty()).unwrap()).await;
    let text = String::from_utf8(body).unwrap();
    let named: Vec<&str> = ["href=\"", "src=\""]
        .into_iter()
        .flat_map(|attribute| text.split(attribute).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .filter(|link| !link.starts_with("data:"))
        .collect();
    assert!(named.contains(&"docs.css") && named.contains(&"docs.js"), "{named:?}");
    for link in named {
        let path = if link.starts_with('/') { link.to_owned() } else { format!("/docs/{link}") };
        let (parts, body) = server.send(HttpRequest::get(&path).body(Body::empty()).unwrap()).await;
        assert!(parts.status == 200 && !body.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn an_ephemeral_message_is_passed_on_and_has_no_place() {
    let server = Server::answering(obliging);
    for path in ["/v1/groups/a/messages", "/v1/users/bob/messages"] {
        let (parts, answer) = server.call("POST", path, Some(r#"{"data": [1, 2], "ephemeral": true}"#)).await;
        assert_eq!((parts.status.as_u16(), answer), (200, json!({"ephemeral": true})));
    }
    let asked = server.asked();
    let passed_on = |request: &SlotRequest| match request {
        SlotRequest::Group(group, GroupRequest::PublishEphemeral(PublishEphemeral { data, from: None })) => {
            Some((group.to_string(), data.iter().map(|data| data.to_vec()).collect::<Vec<_>>()))
        }
        _ => None,
    };
    let all: Vec<_> = asked.iter().filter_map(passed_on).collect();
    let data = || vec![b"[1, 2]".to_vec()];
    assert_eq!(all, [("a".to_owned(), data()), ("@user:bob".to_owned(), data())]);
    let (_, answer) = server.call("POST", "/v1/groups/a/messages", Some(r#"{"data": 1, "ephemeral": false}"#)).await;
    assert_eq!(answer["offset"], 3);
}
