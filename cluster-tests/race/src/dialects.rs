//! How the peers are talked to.

use anyhow::{Context, bail};
use roost_bench::dialect::{Dialect, Heard, Position, Return};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

/// Centrifugo's JSON protocol: replies and pushes, several of them in a frame, a line each.
#[derive(Debug)]
pub(crate) struct Centrifuge;

#[derive(Deserialize)]
struct Reply<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
    #[serde(borrow)]
    connect: Option<&'a RawValue>,
    #[serde(borrow)]
    subscribe: Option<Subscribed<'a>>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow, rename = "pub")]
    publication: Option<Publication<'a>>,
    #[serde(borrow)]
    disconnect: Option<&'a RawValue>,
    #[serde(borrow)]
    unsubscribe: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Publication<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default)]
    offset: u64,
}

#[derive(Deserialize)]
struct Subscribed<'a> {
    #[serde(default)]
    epoch: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    recovered: bool,
    #[serde(borrow, default)]
    publications: Vec<Publication<'a>>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u64,
    message: String,
}

impl Dialect for Centrifuge {
    fn name(&self) -> &'static str {
        "Centrifuge"
    }

    fn path(&self) -> &'static str {
        "connection/websocket"
    }

    fn hello(&self, _back: Option<&Return>) -> Option<String> {
        Some(r#"{"id":1,"connect":{}}"#.to_owned())
    }

    fn join(&self, group: &str, since: Option<&Position>) -> String {
        let subscribe = match since {
            None => json!({ "channel": group }),
            Some(Position { epoch, offset }) => {
                json!({ "channel": group, "recover": true, "epoch": epoch, "offset": offset })
            }
        };
        json!({ "id": 2, "subscribe": subscribe }).to_string()
    }

    fn publish(&self, id: u64, group: &str, data: &str) -> String {
        format!(r#"{{"id":{id},"publish":{{"channel":"{group}","data":{data}}}}}"#)
    }

    fn heartbeat(&self) -> Option<String> {
        None
    }

    fn resumes(&self) -> bool {
        true
    }

    fn read(&self, text: &str, heard: &mut dyn FnMut(Heard<'_>)) -> anyhow::Result<()> {
        for line in text.lines().filter(|line| !line.is_empty()) {
            // An empty reply is a ping; an empty command answers it.
            if line == "{}" {
                heard(Heard::Say("{}".to_owned()));
                continue;
            }
            let reply: Reply<'_> = serde_json::from_str(line).with_context(|| format!("not of Centrifuge: {line}"))?;
            match reply {
                Reply { push: Some(push), .. } => pushed(&push, heard),
                Reply { error: Some(Refusal { code, message }), id, .. } => {
                    heard(Heard::Refused { id, why: format!("{message} ({code})") });
                }
                Reply { connect: Some(_), .. } => heard(Heard::Welcome { token: None, groups: Vec::new() }),
                Reply { subscribe: Some(Subscribed { epoch, offset, recovered, publications }), .. } => {
                    heard(Heard::Joined { group: "", position: Position { epoch, offset }, recovered });
                    for Publication { data, offset } in &publications {
                        heard(Heard::Message { data: data.get(), offset: *offset });
                    }
                }
                Reply { id: Some(id), .. } => heard(Heard::Answered(id)),
                Reply { .. } => {}
            }
        }
        Ok(())
    }
}

fn pushed(push: &Push<'_>, heard: &mut dyn FnMut(Heard<'_>)) {
    if let Some(Publication { data, offset }) = &push.publication {
        heard(Heard::Message { data: data.get(), offset: *offset });
    }
    if let Some(why) = push.disconnect.or(push.unsubscribe) {
        heard(Heard::Hole(why.get().to_owned()));
    }
}

/// The naive server's three words, also spoken by the bare send loop.
#[derive(Debug)]
pub(crate) struct Naive(pub(crate) &'static str);

impl Dialect for Naive {
    fn name(&self) -> &'static str {
        self.0
    }

    fn path(&self) -> &'static str {
        "ws"
    }

    fn hello(&self, _back: Option<&Return>) -> Option<String> {
        None
    }

    fn greets(&self) -> bool {
        false
    }

    fn join(&self, group: &str, _since: Option<&Position>) -> String {
        format!("join {group}")
    }

    fn publish(&self, id: u64, group: &str, data: &str) -> String {
        format!("pub {id} {group} {data}")
    }

    fn heartbeat(&self) -> Option<String> {
        None
    }

    fn resumes(&self) -> bool {
        false
    }

    fn read(&self, text: &str, heard: &mut dyn FnMut(Heard<'_>)) -> anyhow::Result<()> {
        match text.split_once(' ') {
            _ if text.starts_with('{') => heard(Heard::Message { data: text, offset: 0 }),
            Some(("ok", id)) => heard(Heard::Answered(id.parse()?)),
            None if text == "joined" => {
                heard(Heard::Joined { group: "", position: Position::default(), recovered: false });
            }
            _ => bail!("not of the naive server: {text}"),
        }
        Ok(())
    }
}

/// Socket.IO 4 over Engine.IO 4: packets are digits in front of JSON.
#[derive(Debug)]
pub(crate) struct SocketIo;

impl Dialect for SocketIo {
    fn name(&self) -> &'static str {
        "Socket.IO"
    }

    fn path(&self) -> &'static str {
        "socket.io/?EIO=4&transport=websocket"
    }

    fn hello(&self, _back: Option<&Return>) -> Option<String> {
        None
    }

    fn join(&self, group: &str, _since: Option<&Position>) -> String {
        format!("420{}", json!(["join", group]))
    }

    fn publish(&self, id: u64, group: &str, data: &str) -> String {
        format!(r#"42{id}["pub","{group}",{data}]"#)
    }

    fn heartbeat(&self) -> Option<String> {
        None
    }

    fn resumes(&self) -> bool {
        false
    }

    fn read(&self, text: &str, heard: &mut dyn FnMut(Heard<'_>)) -> anyhow::Result<()> {
        let (kind, rest) = text.split_at_checked(1).context("an empty packet")?;
        match kind {
            "0" => heard(Heard::Say("40".to_owned())),
            "2" => heard(Heard::Say("3".to_owned())),
            "4" => packet(rest, heard)?,
            _ => bail!("not of Socket.IO: {text}"),
        }
        Ok(())
    }
}

fn packet(packet: &str, heard: &mut dyn FnMut(Heard<'_>)) -> anyhow::Result<()> {
    match packet.split_at_checked(1) {
        Some(("0", _)) => heard(Heard::Welcome { token: None, groups: Vec::new() }),
        Some(("2", event)) => {
            let (_, data): (&str, &RawValue) =
                serde_json::from_str(event).with_context(|| format!("not an event: {event}"))?;
            heard(Heard::Message { data: data.get(), offset: 0 });
        }
        Some(("3", answer)) => match answer.trim_end_matches("[]").parse()? {
            0 => heard(Heard::Joined { group: "", position: Position::default(), recovered: false }),
            id => heard(Heard::Answered(id)),
        },
        _ => bail!("not of Socket.IO: {packet}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dialect: &dyn Dialect, text: &str) -> String {
        let mut all = Vec::new();
        dialect.read(text, &mut |heard| all.push(format!("{heard:?}"))).unwrap();
        all.join(" ")
    }

    #[test]
    fn frames_of_centrifuge_are_read_line_by_line() {
        let check = |text: &str, expected: &str| assert_eq!(read(&Centrifuge, text), expected, "{text}");
        check("{}", r#"Say("{}")"#);
        check(
            "{\"push\":{\"channel\":\"a\",\"pub\":{\"data\":{\"n\":1},\"offset\":4}}}\n{\"id\":3,\"publish\":{}}",
            r#"Message { data: "{\"n\":1}", offset: 4 } Answered(3)"#,
        );
        check(
            r#"{"id":2,"subscribe":{"epoch":"x","offset":4,"recovered":true,"publications":[{"data":1,"offset":4}]}}"#,
            r#"Joined { group: "", position: Position { epoch: "x", offset: 4 }, recovered: true } Message { data: "1", offset: 4 }"#,
        );
        check(r#"{"id":3,"error":{"code":103,"message":"no"}}"#, r#"Refused { id: Some(3), why: "no (103)" }"#);
    }

    #[test]
    fn frames_of_the_others_are_read() {
        assert_eq!(read(&SocketIo, r#"42["m",{"n":1}]"#), r#"Message { data: "{\"n\":1}", offset: 0 }"#);
        assert_eq!(read(&SocketIo, "4312[]"), "Answered(12)");
        assert!(read(&SocketIo, "430[]").starts_with("Joined"));
        assert_eq!(read(&Naive("n"), "ok 12"), "Answered(12)");
        assert!(Naive("n").read("x", &mut |_| ()).is_err() && SocketIo.read("", &mut |_| ()).is_err());
    }
}
