use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::{
    id::{ClientId, ClientKey, Epoch, GroupName, NUMBER_MAX, Position, SessionId},
    logic::{
        entry::{EphemeralMessage, MemberEvent, Message, Presence, Present, Publisher},
        request::PresentSession,
    },
    wire::{
        command::{ClientError, Command, Detail, Event, LeftBy, ReadFrom, RequestId},
        reason::Reason,
    },
};

const LIMITS: Limits = Limits { message_bytes: 64 << 10 };

fn id(text: &str) -> RequestId {
    Some(text.into())
}

fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

fn position(epoch: u64, offset: u64) -> Position {
    Position { epoch: Epoch(epoch), offset }
}

#[test]
fn reads_each_command() {
    let check = |frame: &str, wanted: Command| assert_eq!(decode(frame, &LIMITS), Ok(wanted), "{frame}");
    check(r#"{"type":"hello"}"#, Command::Hello { id: None, session: None, client: None, resume: [].into() });
    check(
        r#"{"type":"hello","id":1,"session":"v1.a.b.c","client":"tab-1","resume":{"a":{"epoch":"00000000000000ff","offset":7},"b:\u00e9":{"offset":9007199254740991,"epoch":"ffffffffffffffff"}}}"#,
        Command::Hello {
            id: id("1"),
            session: Some("v1.a.b.c".to_owned()),
            client: Some(ClientId::parse("tab-1").unwrap()),
            resume: [(group("a"), position(255, 7)), (group("b:é"), position(u64::MAX, NUMBER_MAX))].into(),
        },
    );
    check(
        r#"{"type":"hello","session":null,"resume":null,"id":null}"#,
        Command::Hello { id: None, session: None, client: None, resume: [].into() },
    );
    check(
        r#" {"group":"chat:1","id":"a\n" , "type":"join"} "#,
        Command::Join { id: id(r#""a\n""#), group: group("chat:1"), since: None },
    );
    check(
        r#"{"type":"join","id":-1.50e3,"group":"g","since":{"epoch":"0000000000000001","offset":9007199254740991}}"#,
        Command::Join { id: id("-1.50e3"), group: group("g"), since: Some(position(1, 9_007_199_254_740_991)) },
    );
    check(r#"{"type":"leave","group":"g"}"#, Command::Leave { id: None, group: group("g") });
    check(
        r#"{"type":"publish","id":3,"group":"g","data": {"a" : [1, 2.50]} ,"key":"k"}"#,
        Command::Publish {
            id: id("3"),
            group: group("g"),
            data: Bytes::from(r#"{"a" : [1, 2.50]}"#),
            key: Some("k".to_owned()),
            ephemeral: false,
        },
    );
    for (field, ephemeral) in [("true", true), ("false", false), ("null", false)] {
        check(
            &format!(r#"{{"type":"publish","group":"g","data":1,"ephemeral":{field}}}"#),
            Command::Publish { id: None, group: group("g"), data: Bytes::from("1"), key: None, ephemeral },
        );
    }
    for data in ["null", "0", "false", "\"\"", "[]", "1e400", "123456789012345678901234567890"] {
        check(
            &format!(r#"{{"type":"publish","group":"g","data":{data}}}"#),
            Command::Publish {
                id: None,
                group: group("g"),
                data: Bytes::copy_from_slice(data.as_bytes()),
                key: None,
                ephemeral: false,
            },
        );
    }
    check(
        r#"{"type":"history","group":"g"}"#,
        Command::History { id: None, group: group("g"), from: ReadFrom::Oldest, limit: 100 },
    );
    check(
        r#"{"type":"history","group":"g","since":{"epoch":"0000000000000001","offset":3},"limit":7}"#,
        Command::History { id: None, group: group("g"), from: ReadFrom::After(position(1, 3)), limit: 7 },
    );
    check(
        r#"{"type":"history","group":"g","last":50}"#,
        Command::History { id: None, group: group("g"), from: ReadFrom::Last, limit: 50 },
    );
    check(
        r#"{"type":"members","group":"g","limit":1000,"after":"5e4a2dc8-2b1c-4a3e-9f55-111111111111"}"#,
        Command::Members {
            id: None,
            group: group("g"),
            after: Some(SessionId(Uuid::parse_str("5e4a2dc8-2b1c-4a3e-9f55-111111111111").unwrap())),
            limit: 1000,
        },
    );
    check(r#"{"type":"heartbeat","id":0}"#, Command::Heartbeat { id: id("0") });
    check(r#"{"type":"refresh","id":1,"token":"a.b.c"}"#, Command::Refresh { id: id("1"), token: "a.b.c".to_owned() });
}

/// The faults of a frame as `field.path type`.
fn faults(frame: &str) -> (RequestId, Reason, Vec<String>) {
    let error = decode(frame, &LIMITS).expect_err(frame);
    assert!(!error.message.is_empty());
    (
        error.id,
        error.reason,
        error.detail.iter().map(|detail| format!("{} {}", detail.loc.join("."), detail.kind)).collect(),
    )
}

#[test]
fn names_the_field_at_fault() {
    let check = |frame: &str, wanted_id: RequestId, wanted: &[&str]| {
        let (id, code, found) = faults(frame);
        assert_eq!(
            (id, code, found),
            (wanted_id, Reason::Invalid, wanted.iter().map(|&text| text.to_owned()).collect()),
            "{frame}"
        );
    };
    check("{}", None, &["type missing"]);
    check(r#"{"type":3,"id":7}"#, id("7"), &["type type_error"]);
    check(r#"{"type":"jion","id":7}"#, id("7"), &["type unknown_type"]);
    check(r#"{"type":"join","id":7}"#, id("7"), &["group missing"]);
    check(r#"{"type":"join","id":7,"group":[]}"#, id("7"), &["group type_error"]);
    check(r#"{"type":"join","id":7,"group":null}"#, id("7"), &["group type_error"]);
    check(r#"{"type":"join","id":7,"group":""}"#, id("7"), &["group value_error"]);
    check(r#"{"type":"join","id":7,"group":"a\u0000b"}"#, id("7"), &["group value_error"]);
    check(r#"{"type":"join","id":7,"group":"\ud800"}"#, id("7"), &["group value_error"]);
    check(&format!(r#"{{"type":"join","id":7,"group":"{}"}}"#, "x".repeat(201)), id("7"), &["group value_error"]);
    check(r#"{"type":"join","id":7,"group":"g","since":5}"#, id("7"), &["since type_error"]);
    check(
        r#"{"type":"join","id":7,"group":"g","since":{}}"#,
        id("7"),
        &["since.epoch missing", "since.offset missing"],
    );
    check(
        r#"{"type":"join","group":"g","since":{"epoch":"0000000000000001","offset":"3"}}"#,
        None,
        &["since.offset type_error"],
    );
    for offset in ["-1", "1.0", "1e3", "18446744073709551616"] {
        check(
            &format!(r#"{{"type":"join","group":"g","since":{{"epoch":"0000000000000001","offset":{offset}}}}}"#),
            None,
            &["since.offset value_error"],
        );
    }
    check(
        r#"{"type":"join","group":"g","since":{"epoch":1,"offset":3,"of":2}}"#,
        None,
        &["since.epoch type_error", "since.of unknown_field"],
    );
    check(r#"{"type":"join","group":"g","since":{"epoch":"x","offset":3}}"#, None, &["since.epoch value_error"]);
    check(
        r#"{"type":"hello","resume":{"a":{"epoch":"0000000000000001"},"":{}}}"#,
        None,
        &["resume.a.offset missing", "resume. value_error"],
    );
    check(
        r#"{"type":"hello","resume":{"a":{"epoch":"0000000000000001","offset":1},"\u0061":{"epoch":"0000000000000001","offset":2}}}"#,
        None,
        &["resume.a duplicate_field"],
    );
    check(r#"{"type":"hello","resume":[]}"#, None, &["resume type_error"]);
    check(r#"{"type":"hello","client":""}"#, None, &["client value_error"]);
    check(r#"{"type":"hello","client":"a b"}"#, None, &["client value_error"]);
    check(&format!(r#"{{"type":"hello","client":"{}"}}"#, "x".repeat(65)), None, &["client value_error"]);
    check(r#"{"type":"hello","client":7}"#, None, &["client type_error"]);
    check(r#"{"type":"hello","sesion":"x","session":1}"#, None, &["session type_error", "sesion unknown_field"]);
    check(r#"{"type":"publish","group":"g"}"#, None, &["data missing"]);
    check(r#"{"type":"publish","group":"g","data":1,"key":""}"#, None, &["key value_error"]);
    check(r#"{"type":"publish","group":"g","data":1,"data":2}"#, None, &["data duplicate_field"]);
    check(r#"{"type":"history","group":"g","limit":0}"#, None, &["limit value_error"]);
    for beyond in ["9007199254740992", "18446744073709551615", "18446744073709551616"] {
        let since = format!(r#"{{"epoch":"00000000000000ff","offset":{beyond}}}"#);
        let join = format!(r#"{{"type":"join","group":"g","since":{since}}}"#);
        check(&join, None, &["since.offset value_error"]);
        check(&format!(r#"{{"type":"hello","resume":{{"g":{since}}}}}"#), None, &["resume.g.offset value_error"]);
    }
    check(
        r#"{"type":"members","group":"g","limit":1001,"after":"me"}"#,
        None,
        &["after value_error", "limit value_error"],
    );
    check(r#"{"type":"heartbeat","id":true}"#, None, &["id type_error"]);
    check(&format!(r#"{{"type":"heartbeat","id":"{}"}}"#, "x".repeat(200)), None, &["id too_long"]);
    check(r#"{"type":"heartbeat","id":1,"id":2}"#, id("1"), &["id duplicate_field"]);
    check(
        &format!(r#"{{"type":"publish","group":"g","data":"{}"}}"#, "x".repeat(LIMITS.message_bytes)),
        None,
        &["data too_long"],
    );
}

#[test]
fn names_the_nearest_known_word() {
    let check = |frame: &str, hint: &str| {
        let message = decode(frame, &LIMITS).unwrap_err().message;
        assert!(message.contains(hint), "{message}");
    };
    check(r#"{"type":"pubish"}"#, r#"did you mean "publish"?"#);
    check(r#"{"type":"join","group":"g","sinse":null}"#, r#"did you mean "since"?"#);
    assert!(!decode(r#"{"type":"qqqqqqqqqqqqqqq"}"#, &LIMITS).unwrap_err().message.contains("mean"));
}

#[test]
fn tells_what_is_not_json_apart_and_keeps_the_id() {
    let check = |frame: &str, wanted: RequestId| {
        let (id, code, _) = faults(frame);
        assert_eq!((id, code), (wanted, Reason::BadJson), "{frame}");
    };
    check("", None);
    check("hello", None);
    check("[]", None);
    check("3", None);
    check("\"x\"", None);
    check("{", None);
    check(r#"{"id":5,"type":"join","#, id("5"));
    check(r#"{"id":5,"type":"join"} {}"#, id("5"));
    check(r#"{"id":5,"data":[1,]}"#, id("5"));
    check(r#"{"id":5,"data":01}"#, id("5"));
    check("{\"id\":5,\"data\":\"\n\"}", id("5"));
}

#[test]
fn a_depth_bomb_is_refused_and_harms_nobody() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for (levels, fits) in [(DEPTH_MAX, true), (DEPTH_MAX + 1, false), (10_000, false)] {
            let data = format!("{}1{}", open.repeat(levels), close.repeat(levels));
            let read = decode(&format!(r#"{{"type":"publish","id":1,"group":"g","data":{data}}}"#), &LIMITS);
            assert_eq!(read.is_ok(), fits, "{open} {levels}");
            if let Err(error) = read {
                assert!(matches!(error.detail[0].kind, "too_deep" | "too_long"));
            }
        }
    }
    // Not only in `data`: anywhere in a frame of the largest size.
    for field in ["type", "id", "group", "since", "other"] {
        let bomb = format!(r#"{{"{field}":{}{}}}"#, "[".repeat(60_000), "]".repeat(60_000));
        assert!(decode(&bomb, &LIMITS).is_err());
    }
    assert_eq!(faults(&"[".repeat(128 << 10)).1, Reason::BadJson);
    // Brackets in strings are no levels.
    let text = format!(r#"{{"type":"publish","group":"g","data":"{}\"["}}"#, "[".repeat(1_000));
    assert!(decode(&text, &LIMITS).is_ok());
}

#[test]
fn thousands_of_faults_are_told_briefly() {
    let fields: String = (0..10_000).map(|n| format!(r#","f{n}":0"#)).collect();
    let error = decode(&format!(r#"{{"type":"heartbeat","id":1{fields}}}"#), &LIMITS).unwrap_err();
    assert!(error.detail.len() <= 16 && error.id == id("1"));
    let resume: String = (0..5_000).map(|n| format!(r#","f{n}":0"#)).collect();
    let error = decode(&format!(r#"{{"type":"hello","resume":{{"f":0{resume}}}}}"#), &LIMITS).unwrap_err();
    assert!(error.detail.len() == 16 && error.message.contains("more"), "{}", error.message);
    let name = "n".repeat(100_000);
    let error = decode(&format!(r#"{{"type":"heartbeat","{name}":0}}"#), &LIMITS).unwrap_err();
    assert!(encode(&Event::Error(error)).len() < 1_000);
}

fn check_encoding(event: &Event, wanted: &Value) {
    let frame = encode(event);
    assert_eq!(
        serde_json::from_str::<Value>(frame.as_str()).unwrap_or_else(|error| panic!("{error}: {}", frame.as_str())),
        *wanted
    );
}

#[test]
fn writes_each_answer() {
    let check = |event: Event, wanted: Value| check_encoding(&event, &wanted);
    let session = SessionId(Uuid::nil());
    let nil = "00000000-0000-0000-0000-000000000000";
    check(
        Event::Welcome {
            id: id("1"),
            session,
            client: ClientId::parse("a\"b").unwrap(),
            user: "a\"b".into(),
            token: Some("t".into()),
            node: "n1".into(),
            heartbeat_s: 30,
            groups: vec![group("g\\"), group("h")],
            expires_in_ms: Some(60_000),
        },
        json!({"type":"welcome","id":1,"session":nil,"client":"a\"b","user":"a\"b","token":"t","node":"n1","heartbeat_s":30,"groups":["g\\","h"],"expires_in_ms":60000}),
    );
    check(
        Event::Welcome {
            id: None,
            session,
            client: ClientId::made(7),
            user: String::new(),
            token: None,
            node: "n1".into(),
            heartbeat_s: 30,
            groups: vec![],
            expires_in_ms: None,
        },
        json!({"type":"welcome","session":nil,"client":"0000000000000007","user":"","node":"n1","heartbeat_s":30,"groups":[]}),
    );
    check(
        Event::Joined { id: id("\"x\""), group: group("g"), epoch: Epoch(10), offset: u64::MAX, recovered: true },
        json!({"type":"joined","id":"x","group":"g","epoch":"000000000000000a","offset":u64::MAX,"recovered":true}),
    );
    let left = |id, by| Event::Left { id, group: group("g"), by };
    check(left(id("2"), LeftBy::Client), json!({"type":"left","id":2,"group":"g"}));
    check(left(None, LeftBy::Server), json!({"type":"left","group":"g","reason":"server"}));
    check(left(None, LeftBy::Grants), json!({"type":"left","group":"g","reason":"grants"}));
    check(
        Event::Published { id: None, group: group("g"), position: position(1, 2), copies: 2 },
        json!({"type":"published","group":"g","epoch":"0000000000000001","offset":2,"copies":2}),
    );
    check(
        Event::PassedOn { id: id("7"), group: group("g") },
        json!({"type":"published","id":7,"group":"g","ephemeral":true}),
    );
    let publisher = Some(Publisher { session, user: "u".into() });
    let messages = vec![
        Message { offset: 1, data: Bytes::from("{\"a\": 1}"), from: publisher, at_ms: 5 },
        Message { offset: 2, data: Bytes::from("null"), from: None, at_ms: 6 },
    ];
    check(
        Event::History { id: id("3"), group: group("g"), position: Some(position(1, 9)), complete: false, messages },
        json!({"type":"history","id":3,"group":"g","epoch":"0000000000000001","offset":9,"complete":false,
            "messages":[{"offset":1,"data":{"a":1},"from":{"session":nil,"user":"u"},"at_ms":5},{"offset":2,"data":null,"at_ms":6}]}),
    );
    check(
        Event::History { id: id("3"), group: group("g"), position: None, complete: true, messages: vec![] },
        json!({"type":"history","id":3,"group":"g","epoch":null,"offset":0,"complete":true,"messages":[]}),
    );
    let member = Presence {
        session,
        client: ClientKey(1),
        user: "u".into(),
        info: Bytes::from("{}"),
        revision: 0,
        attachment: 3,
    };
    let member = PresentSession { member, clients: 2 };
    check(
        Event::Members { id: id("4"), group: group("g"), members: vec![member.clone(), member], more: true },
        json!({"type":"members","id":4,"group":"g","members":[{"session":nil,"user":"u","info":{},"clients":2},{"session":nil,"user":"u","info":{},"clients":2}],"more":true}),
    );
    check(Event::Heartbeat { id: id("5") }, json!({"type":"heartbeat","id":5}));
    check(Event::Refreshed { id: id("7"), expires_in_ms: 9 }, json!({"type":"refreshed","id":7,"expires_in_ms":9}));
    check(Event::Expiring { expires_in_ms: 9 }, json!({"type":"expiring","expires_in_ms":9}));
    let detail = vec![Detail { loc: vec!["since".into(), "offset".into()], msg: "no".into(), kind: "type_error" }];
    check(
        Event::Error(ClientError {
            id: id("6"),
            reason: Reason::Invalid,
            message: "m".into(),
            detail,
            retry_after_ms: Some(50),
        }),
        json!({"type":"error","id":6,"code":"invalid","message":"m","detail":[{"loc":["since","offset"],"msg":"no","type":"type_error"}],"retry_after_ms":50}),
    );
}

#[test]
fn writes_each_push() {
    let check = |event: Event, wanted: Value| check_encoding(&event, &wanted);
    let session = SessionId(Uuid::nil());
    let nil = "00000000-0000-0000-0000-000000000000";
    let from = Some(Publisher { session, user: "u".into() });
    check(
        Event::Message {
            group: group("g"),
            epoch: Epoch(1),
            message: Message { offset: 4, data: Bytes::from("[1]"), from, at_ms: 7 },
        },
        json!({"type":"message","group":"g","epoch":"0000000000000001","offset":4,"data":[1],"from":{"session":nil,"user":"u"},"at_ms":7}),
    );
    let from = Some(Publisher { session, user: "u".into() });
    check(
        Event::Ephemeral { group: group("g"), message: EphemeralMessage { data: Bytes::from("[1]"), from, at_ms: 7 } },
        json!({"type":"message","group":"g","ephemeral":true,"data":[1],"from":{"session":nil,"user":"u"},"at_ms":7}),
    );
    let member =
        Presence { session, client: ClientKey(1), user: "u".into(), info: Bytes::new(), revision: 0, attachment: 3 };
    check(
        Event::Member { group: group("g"), event: MemberEvent::Join, member: member.clone() },
        json!({"type":"member","group":"g","event":"join","session":nil,"user":"u","info":null}),
    );
    check(
        Event::Member { group: group("g"), event: MemberEvent::Leave, member: member.clone() },
        json!({"type":"member","group":"g","event":"leave","session":nil,"user":"u","info":null}),
    );
    check(
        Event::Member { group: group("g"), event: MemberEvent::Update, member },
        json!({"type":"member","group":"g","event":"update","session":nil,"user":"u","info":null}),
    );
    check(
        Event::Presence { group: group("g"), present: Present { sessions: 4, clients: 6, users: 2, anonymous: 1 } },
        json!({"type":"presence","group":"g","sessions":4,"users":2,"anonymous":1}),
    );
    check(
        Event::Gap { group: group("g"), epoch: Epoch(1), from: 2, to: 3, reason: "trimmed" },
        json!({"type":"gap","group":"g","epoch":"0000000000000001","from":2,"to":3,"reason":"trimmed"}),
    );
    check(
        Event::Reset { group: group("g"), epoch: Epoch(1), offset: 2, reason: "lost" },
        json!({"type":"reset","group":"g","epoch":"0000000000000001","offset":2,"reason":"lost"}),
    );
    check(Event::Stale { group: group("g") }, json!({"type":"stale","group":"g"}));
    check(
        Event::Live { group: group("g"), epoch: Epoch(1), offset: 2 },
        json!({"type":"live","group":"g","epoch":"0000000000000001","offset":2}),
    );
    check(Event::Direct { data: Bytes::from("[1]") }, json!({"type":"direct","data":[1]}));
    check(Event::Displaced, json!({"type":"displaced"}));
    check(
        Event::Bye { reason: Reason::SlowConsumer, words: "r".into(), after_ms: 9 },
        json!({"type":"bye","code":"slow_consumer","reason":"r","reconnect":true,"after_ms":9}),
    );
}

#[test]
fn broken_bytes_from_a_peer_do_not_panic() {
    let message = Message { offset: 4, data: Bytes::from_static(b"\"\xff\""), from: None, at_ms: 7 };
    let frame = encode(&Event::Message { group: group("g"), epoch: Epoch(1), message });
    assert!(serde_json::from_str::<Value>(frame.as_str()).is_ok());
}

const VALID: [&str; 6] = [
    r#"{"type":"hello","id":1,"session":"v1.a.b.c","resume":{"a":{"epoch":"00000000000000ff","offset":7}}}"#,
    r#"{"type":"join","id":"x","group":"chat:1","since":{"epoch":"0000000000000001","offset":3}}"#,
    r#"{"type":"publish","id":3,"group":"g","data":{"a":["\u00e9\"",{"b":null}]},"key":"k"}"#,
    r#"{"type":"history","id":4,"group":"g","since":null,"limit":10}"#,
    r#"{"type":"members","id":5,"group":"g","after":"5e4a2dc8-2b1c-4a3e-9f55-111111111111","limit":5}"#,
    r#"{"type":"leave","id":-1.5,"group":"g"}"#,
];

/// Whatever comes out of the decoder must be whole: an error can be written, and what is echoed or kept is JSON.
fn check_whole(text: &str) {
    match decode(text, &LIMITS) {
        Err(error) => drop(serde_json::from_str::<Value>(encode(&Event::Error(error)).as_str()).unwrap()),
        Ok(Command::Publish { id, group, data, .. }) => {
            let message = Message { offset: 1, data, from: None, at_ms: 0 };
            let frame = encode(&Event::Message { group: group.clone(), epoch: Epoch(0), message });
            serde_json::from_str::<Box<serde_json::value::RawValue>>(frame.as_str()).unwrap();
            serde_json::from_str::<Box<serde_json::value::RawValue>>(
                encode(&Event::Left { id, group, by: LeftBy::Client }).as_str(),
            )
            .unwrap();
        }
        Ok(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_survived(text in ".*") {
        check_whole(&text);
    }

    #[test]
    fn damaged_frames_are_survived(
        which in 0..VALID.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, r#"[\[\]{}",:\\0-9a-zu\-\.nul\PC]"#), 1..6),
    ) {
        let mut text: Vec<char> = VALID[which].chars().collect();
        for (at, how, with) in edits {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            match how {
                0 => drop(text.remove(at)),
                1 => text.insert(at, with.chars().next().unwrap_or('"')),
                _ => text[at] = with.chars().next().unwrap_or('"'),
            }
        }
        check_whole(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_text_comes_through(
        user in ".*",
        name in "\\PC{1,40}".prop_filter("a group's name", |name| GroupName::parse(name).is_ok()),
        reason in ".*",
        key in "[ -~]{1,20}",
        number in any::<u64>(),
    ) {
        let group = group(&name);
        let event = Event::Welcome {
            id: None, session: SessionId(Uuid::nil()), client: ClientId::made(number), user: user.clone(), token: None, node: reason.clone(), heartbeat_s: number, groups: vec![group.clone()],
            expires_in_ms: Some(number),
        };
        let read: Value = serde_json::from_str(encode(&event).as_str()).unwrap();
        prop_assert_eq!(&read["user"], &json!(user));
        prop_assert_eq!(&read["node"], &json!(reason));
        prop_assert_eq!(&read["groups"][0], &json!(name));
        prop_assert_eq!(&read["heartbeat_s"], &json!(number));
        let frame = json!({"type": "publish", "id": reason.chars().take(20).collect::<String>(), "group": name, "data": {"user": user}, "key": key});
        let data = serde_json::to_vec(&frame["data"]).unwrap();
        let read = decode(&frame.to_string(), &LIMITS).unwrap();
        prop_assert_eq!(read, Command::Publish { id: Some(frame["id"].to_string().into()), group, data: data.into(), key: Some(key), ephemeral: false });
    }
}
