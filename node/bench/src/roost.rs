//! Roost's own dialect: the plain JSON protocol of `/ws`.

use std::borrow::Cow;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::dialect::{Dialect, Heard, Position, Return};

/// The plain JSON protocol.
#[derive(Debug, Clone, Copy)]
pub struct Roost;

/// Any frame; which fields there are depends on `kind`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<u64>,
    #[serde(borrow)]
    group: Cow<'a, str>,
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    offset: u64,
    recovered: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    code: Option<Value>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    token: Option<String>,
    groups: Vec<String>,
}

/// Which client of its session each connection is: the one that comes back is the same.
const CLIENT: &str = "bench";

impl Dialect for Roost {
    fn name(&self) -> &'static str {
        "Roost"
    }

    fn path(&self) -> &'static str {
        "ws"
    }

    fn hello(&self, back: Option<&Return>) -> Option<String> {
        let hello = match back {
            None => json!({ "type": "hello", "client": CLIENT }),
            Some(Return { group, token, since }) => json!({
                "type": "hello", "client": CLIENT, "session": token,
                "resume": { group: { "epoch": since.epoch, "offset": since.offset } },
            }),
        };
        Some(hello.to_string())
    }

    fn join(&self, group: &str, since: Option<&Position>) -> String {
        let since = since.map(|since| json!({ "epoch": since.epoch, "offset": since.offset }));
        json!({ "type": "join", "group": group, "since": since }).to_string()
    }

    fn publish(&self, id: u64, group: &str, data: &str) -> String {
        format!(r#"{{"type":"publish","id":{id},"group":{},"data":{data}}}"#, Value::from(group))
    }

    fn heartbeat(&self) -> Option<String> {
        Some(r#"{"type":"heartbeat"}"#.to_owned())
    }

    fn resumes(&self) -> bool {
        true
    }

    fn read(&self, text: &str, heard: &mut dyn FnMut(Heard<'_>)) -> anyhow::Result<()> {
        let frame: Frame<'_> = serde_json::from_str(text)
            .with_context(|| format!("not a frame of Roost: {}", text.chars().take(200).collect::<String>()))?;
        match &*frame.kind {
            "message" => heard(Heard::Message { data: frame.data.map_or("null", RawValue::get), offset: frame.offset }),
            "published" => {
                if let Some(id) = frame.id {
                    heard(Heard::Answered(id));
                }
            }
            "welcome" => heard(Heard::Welcome { token: frame.token, groups: frame.groups }),
            "joined" => heard(Heard::Joined {
                group: &frame.group,
                position: Position { epoch: frame.epoch.to_string(), offset: frame.offset },
                recovered: frame.recovered,
            }),
            "error" | "bye" => heard(Heard::Refused { id: frame.id, why: why(&frame) }),
            "gap" | "reset" | "stale" => heard(Heard::Hole(text.chars().take(200).collect())),
            _ => {}
        }
        Ok(())
    }
}

fn why(frame: &Frame<'_>) -> String {
    let code = match &frame.code {
        Some(Value::String(word)) => word.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let text = if frame.message.is_empty() { &frame.reason } else { &frame.message };
    let hint = match &*code {
        "unauthorized" => "; the bench needs sessions for anyone (session.anonymous = true)",
        "rate_limited" => "; see limits.operations_per_s, publish_bytes_per_s and new_groups_per_s",
        _ => "",
    };
    format!("{text} ({code}){hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let mut all = Vec::new();
        Roost.read(text, &mut |heard| all.push(format!("{heard:?}"))).unwrap();
        all
    }

    #[test]
    fn frames_are_read() {
        let check = |text: &str, expected: &str| assert_eq!(read(text).concat(), expected, "{text}");
        check(
            r#"{"type":"message","group":"a","epoch":"e","offset":3,"data":{"n":[1]},"from":{"session":"x"}}"#,
            r#"Message { data: "{\"n\":[1]}", offset: 3 }"#,
        );
        check(r#"{"type":"published","id":7,"group":"a","epoch":"e","offset":3,"copies":2}"#, "Answered(7)");
        check(
            r#"{"type":"error","id":7,"code":"rate_limited","message":"slower"}"#,
            r#"Refused { id: Some(7), why: "slower (rate_limited); see limits.operations_per_s, publish_bytes_per_s and new_groups_per_s" }"#,
        );
        check(r#"{"type":"something_new","x":1}"#, "");
        assert!(read(r#"{"type":"gap","from":1,"to":2}"#)[0].starts_with("Hole"));
        assert!(Roost.read("3", &mut |_| ()).is_err());
    }

    #[test]
    fn what_is_said_is_json() {
        let since = Position { epoch: "00".to_owned(), offset: 3 };
        let back = Return { group: "a\"b".to_owned(), token: None, since: since.clone() };
        for text in
            [Roost.hello(Some(&back)).unwrap(), Roost.join("a\"b", Some(&since)), Roost.publish(1, "a\"b", "{}")]
        {
            serde_json::from_str::<Value>(&text).unwrap();
        }
    }
}
