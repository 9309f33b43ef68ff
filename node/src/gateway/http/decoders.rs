//! What an HTTP request brings, as far as this node's own code reads it, tried with whatever it may be ([`crate::decoders`]).

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;

use super::{
    error::ApiError,
    extract::{Query, USER_MAX_BYTES, check_user, group_name, parse_json, session_id},
    messages::{NewBatch, NewBroadcast, NewMessage},
    sessions::{GroupToJoin, NewSession, SessionPatch},
};
use crate::{
    gateway::door::origin::Credentials,
    id::{GROUP_NAME_MAX_BYTES, is_hidden},
};

/// A body, as each of those that there are.
pub(crate) fn http_body(bytes: &[u8]) {
    let read = [
        refused::<NewSession>(bytes),
        refused::<SessionPatch>(bytes),
        refused::<GroupToJoin>(bytes),
        refused::<NewMessage>(bytes),
        refused::<NewBroadcast>(bytes),
        refused::<NewBatch>(bytes),
    ];
    read.into_iter().flatten().for_each(|error| has_words(&error, bytes.len()));
}

fn refused<T: DeserializeOwned>(bytes: &[u8]) -> Option<ApiError> {
    parse_json::<T>(bytes).err()
}

/// A refusal is the client's to mend, says what, and is no longer than the request and some words for each problem.
fn has_words(error: &ApiError, bytes: usize) {
    assert!(error.status.is_client_error(), "bad input is answered {}", error.status);
    assert!(!error.detail.is_empty(), "an error says nothing");
    let told = serde_json::to_string(&error.detail).expect("an error has a JSON form");
    assert!(told.len() <= 2_000 * error.detail.len() + 8 * bytes, "an error of {} bytes to {bytes}", told.len());
}

/// A body of each kind.
pub(crate) fn http_body_seeds() -> Vec<Vec<u8>> {
    let bodies = [
        r#"{"user":"alice","ttl_s":86400,"idle_ttl_s":3.0,"attributes":{"name":"Alice"},"groups":["chat:lobby"],"grants":[{"pattern":"chat:*","join":true,"publish":true}]}"#,
        r#"{"ttl_s":3600,"attributes":{"name":"B\u00e9"},"grants":[],"join":["chat:office"],"leave":["chat:lobby"]}"#,
        r#"{"group":"chat:lobby"}"#,
        r#"{"data":{"text":"hello"},"key":"order-17","min_copies":2}"#,
        r#"{"groups":["chat:lobby","chat:office"],"data":[[[1e400]]],"key":"closing-17"}"#,
        r#"{"publishes":[{"group":"chat:lobby","data":"one","key":"a-1"},{"group":"chat:lobby","data":null}]}"#,
    ];
    bodies.map(|body| body.as_bytes().to_vec()).to_vec()
}

/// Path and query of a URL, and the names in them.
pub(crate) fn http_url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    if let Ok(group) = group_name(path) {
        assert_eq!(group.as_str(), path);
        assert!(
            (1..=GROUP_NAME_MAX_BYTES).contains(&path.len()) && !path.chars().any(is_hidden),
            "a group is named {path:?}"
        );
    }
    if check_user(path).is_ok() {
        assert!(path.len() <= USER_MAX_BYTES);
        assert!(group_name(&format!("@user:{path}")).is_ok(), "a user has no group of its own: {path:?}");
    }
    if let Ok(session) = session_id(path) {
        assert_eq!(session.to_string(), path.to_ascii_lowercase(), "a session is named in two ways");
    }
    let mut read = Query::read(Some(query), &["after", "limit", "since"]);
    let limit = read.limit();
    assert!((1..=1_000).contains(&limit), "a limit of {limit}");
    read.parsed("after", group_name);
    read.number("since", 0..=9);
    if let Err(error) = read.done() {
        has_words(&error, bytes.len());
    }
}

/// Names of each kind, with queries.
pub(crate) fn http_url_seeds() -> Vec<Vec<u8>> {
    let urls = [
        "chat:lobby?limit=10&after=chat%3Alobby&since=3",
        "@user:ann?limit=1001&limit=2&x=%C3%A9+b",
        "@session:0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d?since=%zz",
        "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d?after",
        "röst",
    ];
    urls.map(|url| url.as_bytes().to_vec()).to_vec()
}

/// Headers, a line each: a cookie or token that is found stands in them, and a page of elsewhere is not taken for one of here.
pub(crate) fn http_headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let name = halves.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = halves.next().and_then(|value| HeaderValue::from_bytes(value.trim_ascii()).ok());
        if let (Some(name), Some(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let found = Credentials::of(&headers, "roost", &["https://app.example.com".to_owned()]);
    for (token, header) in [(&found.bearer, "authorization"), (&found.cookie, "cookie")] {
        let Some(token) = token else { continue };
        let mut values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
        assert!(!token.is_empty() && values.any(|value| value.contains(token.as_str())), "{header} has no {token:?}");
    }
    let origins: Vec<_> = headers.get_all("origin").iter().collect();
    let elsewhere = origins.iter().any(|origin| origin.as_bytes().eq_ignore_ascii_case(b"https://evil.net"));
    let here = headers.get("host").is_some_and(|host| host.as_bytes().to_ascii_lowercase().starts_with(b"evil.net"));
    assert!(!(found.origin_allowed && elsewhere && !here), "a page of elsewhere may use the cookie");
}

/// Headers of a browser, and of a program.
pub(crate) fn http_headers_seeds() -> Vec<Vec<u8>> {
    let headers = [
        "host: app.example.com\norigin: https://app.example.com\ncookie: a=b; roost=v2.k.AAAA.0.BBBB; c=d\ncookie: roost=\n",
        "host: app.example.com:443\norigin: https://evil.net\n",
        "host: h\nauthorization: Bearer v2.k.AAAA.0.BBBB\n",
    ];
    headers.map(|headers| headers.as_bytes().to_vec()).to_vec()
}
