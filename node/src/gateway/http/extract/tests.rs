//! What parsing finds, and where. The whole way through the router is tested in `http/tests.rs`.

use serde_json::{json, value::RawValue};

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only whether it parses matters")]
struct Sample {
    user: String,
    age: Option<u64>,
    data: Option<Box<RawValue>>,
    #[serde(default)]
    items: Vec<Object<Item>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only whether it parses matters")]
struct Item {
    name: String,
}

#[track_caller]
fn refused(body: &[u8], kind: &str, place: serde_json::Value) -> String {
    let error = parse_json::<Sample>(body).expect_err("it parsed");
    let problem = &error.detail[0];
    assert_eq!((problem.kind, serde_json::to_value(&problem.loc).unwrap()), (kind, place), "{}", problem.msg);
    problem.msg.clone()
}

#[test]
fn the_place_of_what_is_wrong_in_a_body() {
    refused(b"", "missing", json!(["body"]));
    refused(b" \n", "missing", json!(["body"]));
    refused(b"{}", "missing", json!(["body", "user"]));
    refused(b"[\"alice\"]", "type_error", json!(["body"]));
    refused(b"null", "type_error", json!(["body"]));
    refused(br#"{"user": 7}"#, "type_error", json!(["body", "user"]));
    refused(br#"{"user": "a", "age": -1}"#, "value_error", json!(["body", "age"]));
    refused(br#"{"user": "a", "age": 1e400}"#, "type_error", json!(["body", "age"]));
    refused(br#"{"user": "a", "age": 18446744073709551616}"#, "type_error", json!(["body", "age"]));
    refused(br#"{"user": "a", "user": "b"}"#, "duplicate_field", json!(["body", "user"]));
    refused(br#"{"user": "a", "items": [{"name": "x"}, {}]}"#, "missing", json!(["body", "items", 1, "name"]));
    refused(br#"{"user": "a", "items": [["x"]]}"#, "type_error", json!(["body", "items", 0]));
    refused(
        br#"{"user": "a", "items": [{"name": "x", "name": "y"}]}"#,
        "duplicate_field",
        json!(["body", "items", 0, "name"]),
    );
    refused(br#"{"user": "a", "items": {}}"#, "type_error", json!(["body", "items"]));
    refused(br#"{"user": "a", "data": tru}"#, "json_invalid", json!(["body", "data"]));
    refused(br#"{"user": "a"} {"#, "json_invalid", json!(["body"]));
    refused(br#"{"user": "a""#, "json_invalid", json!(["body"]));
    refused(b"\x00", "json_invalid", json!(["body"]));
    refused(b"{\"user\": \"\xff\"}", "encoding_error", json!(["body"]));
    refused(br#"{"user": "\ud800"}"#, "json_invalid", json!(["body", "user"]));
}

#[test]
fn unknown_fields_are_told_the_nearest_known_one() {
    let msg = refused(br#"{"usr": "a"}"#, "unknown_field", json!(["body", "usr"]));
    assert!(msg.contains("did you mean `user`"), "{msg}");
    let msg = refused(br#"{"user": "a", "items": [{"zzz": 1}]}"#, "unknown_field", json!(["body", "items", 0, "zzz"]));
    assert!(msg.contains("`name`"), "{msg}");
    refused(br#"{"a`b, expected `c": 1}"#, "unknown_field", json!(["body", "a`b, expected `c"]));
}

#[test]
fn depth_is_bounded_and_does_not_overflow_the_stack() {
    let bomb = |depth: usize| format!(r#"{{"user": "a", "data": {}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(parse_json::<Sample>(bomb(JSON_DEPTH_MAX - 1).as_bytes()).is_ok());
    refused(bomb(JSON_DEPTH_MAX).as_bytes(), "too_deep", json!(["body"]));
    refused("[".repeat(1_000_000).as_bytes(), "too_deep", json!(["body"]));
    // Brackets in strings are text.
    let text = format!(r#"{{"user": "a", "data": "\"{}"}}"#, "[".repeat(1_000));
    assert!(parse_json::<Sample>(text.as_bytes()).is_ok());
}

#[test]
fn what_is_echoed_is_short() {
    let msg = refused(
        format!(r#"{{"user": "a", "age": "{}"}}"#, "x".repeat(100_000)).as_bytes(),
        "type_error",
        json!(["body", "age"]),
    );
    assert!(msg.len() < 500);
    let error = parse_json::<Sample>(format!(r#"{{"{}": 1}}"#, "k".repeat(100_000)).as_bytes()).unwrap_err();
    assert!(serde_json::to_string(&error.detail).unwrap().len() < 1_000);
}

#[test]
fn queries() {
    let mut query = Query::read(Some("after=a%20b+c&limit=5"), &["after", "limit"]);
    assert_eq!(query.parsed("after", |text| Ok(text.to_owned())), Some("a b c".to_owned()));
    assert_eq!(query.limit(), 5);
    query.done().unwrap();

    #[track_caller]
    fn check(raw: &str, expected: &[(&str, &str)]) {
        let mut query = Query::read(Some(raw), &["after", "limit"]);
        query.limit();
        let error = query.done().expect_err("it was taken");
        let given: Vec<_> = error.detail.iter().map(|problem| (problem.loc.clone(), problem.kind)).collect();
        let expected: Vec<_> = expected.iter().map(|(name, kind)| (loc!["query", *name], *kind)).collect();
        assert_eq!(given, expected);
    }
    check("limit=0", &[("limit", "value_error")]);
    check("limit=1001", &[("limit", "value_error")]);
    check("limit=-1", &[("limit", "type_error")]);
    check("limit=99999999999999999999", &[("limit", "type_error")]);
    check("limit=", &[("limit", "type_error")]);
    check("limit=1&limit=2", &[("limit", "duplicate_field")]);
    check("limt=1&after=%ff", &[("limt", "unknown_field"), ("after", "encoding_error")]);
    check("after=%2", &[("after", "encoding_error")]);
    check("after=%zz", &[("after", "encoding_error")]);
}

#[test]
fn keys() {
    #[track_caller]
    fn check(name: &'static str, value: &str, allowed: bool) {
        let keys = ["first-key".to_owned(), "second-key".to_owned(), String::new()];
        let headers = HeaderMap::from_iter([(name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap())]);
        assert_eq!(check_key(&keys, &headers).is_ok(), allowed, "{name}: {value}");
    }
    check("authorization", "Bearer first-key", true);
    check("authorization", "bearer second-key", true);
    check("x-api-key", "second-key", true);
    check("authorization", "Bearer first-ke", false);
    check("authorization", "Basic first-key", false);
    check("authorization", "Bearer ", false);
    check("authorization", "", false);
    check("x-api-key", "", false);
    check("x-other", "first-key", false);
    assert!(check_key(&[], &HeaderMap::from_iter([(header::AUTHORIZATION, "Bearer x".parse().unwrap())])).is_err());
}

#[test]
fn names() {
    #[track_caller]
    fn check<T>(result: Result<T, String>, valid: bool) {
        assert_eq!(result.is_ok(), valid, "{:?}", result.err());
    }
    check(check_user("alice"), true);
    check(check_user(&"x".repeat(194)), true);
    check(check_user(&"x".repeat(195)), false);
    check(check_user(""), false);
    check(check_user("a\0b"), false);
    check(group_name("@user:alice"), true);
    check(group_name("@admin"), false);
    check(group_name("@session:0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d"), true);
    check(group_name("@session:alice"), false);
    check(group_name("@user:"), false);
    check(group_name("\u{ff20}user:alice"), false);
    check(group_name("chat\u{202e}:1"), false);
    check(group_name(".."), false);
    check(group_name("..."), true);
    check(session_id("0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d"), true);
    check(session_id("0b5f6f0e5a3c4a579d6e7f3c2a1b0c9d"), false);
    check(session_id("{0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d}"), false);
    assert!(session_id("v2.k1.x.y").unwrap_err().contains("token"));
}
