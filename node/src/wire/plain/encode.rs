//! Events → frames. Written by hand: this is the hot path of a delivery, and `data` goes in as the text that it is.

use bytes::Bytes;

use crate::{
    id::{Epoch, GroupName},
    logic::{
        entry::{EphemeralMessage, MemberEvent, Message, Presence, Present, Publisher},
        request::PresentSession,
    },
    wire::{
        command::{ClientError, Event, RequestId},
        frame::{Frame, HEADER_ROOM},
    },
};

/// Writes an event as one frame. Made once for all receivers of a delivery: the bytes are shared.
pub fn encode(event: &Event) -> Frame {
    let mut room = Vec::with_capacity(HEADER_ROOM + size_hint(event));
    room.resize(HEADER_ROOM, 0);
    Frame::of_text(json(event, room))
}

/// Writes an event's text after what stands there.
///
/// Nothing but `data` and `info` could be other than UTF-8, and the gateway that took them in has checked them; should a
/// peer send others all the same, the broken bytes are replaced rather than the connection lost.
pub(in crate::wire) fn json(event: &Event, before: Vec<u8>) -> Vec<u8> {
    let from = before.len();
    let mut text = Text { out: before };
    text.event(event);
    text.out.push(b'}');
    let out = text.out;
    match std::str::from_utf8(&out[from..]) {
        Ok(_) => out,
        Err(_) => [&out[..from], String::from_utf8_lossy(&out[from..]).as_bytes()].concat(),
    }
}

/// About how long the text is.
pub(in crate::wire) fn size_hint(event: &Event) -> usize {
    match event {
        Event::Message { group, message, .. } => {
            let from = message.from.as_ref().map_or(0, |from| from.user.len() + 70);
            140 + group.as_str().len() + message.data.len() + from
        }
        Event::Ephemeral { group, message } => {
            let from = message.from.as_ref().map_or(0, |from| from.user.len() + 70);
            110 + group.as_str().len() + message.data.len() + from
        }
        Event::History { messages, .. } => 200 + messages.iter().map(|message| message.data.len() + 150).sum::<usize>(),
        Event::Members { members, .. } => {
            200 + members.iter().map(|present| present.member.info.len() + 140).sum::<usize>()
        }
        _ => 200,
    }
}

/// A frame's text under construction; everything but the closing brace.
struct Text {
    out: Vec<u8>,
}

impl Text {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Welcome { id, session, client, user, token, node, heartbeat_s, groups, expires_in_ms } => {
                self.begin("welcome", id);
                self.plain("session", session);
                self.text("client", &client.to_string());
                self.text("user", user);
                if let Some(token) = token {
                    self.text("token", token);
                }
                self.text("node", node);
                self.number("heartbeat_s", *heartbeat_s);
                self.list("groups", groups, |text, group| text.quoted(group.as_str()));
                if let Some(expires_in_ms) = expires_in_ms {
                    self.number("expires_in_ms", *expires_in_ms);
                }
            }
            Event::Refreshed { id, expires_in_ms } => {
                self.begin("refreshed", id);
                self.number("expires_in_ms", *expires_in_ms);
            }
            Event::Joined { id, group, epoch, offset, recovered } => {
                self.begin("joined", id);
                self.position(group, *epoch, *offset);
                self.bool("recovered", *recovered);
            }
            Event::Left { id, group, by } => {
                self.begin("left", id);
                self.text("group", group.as_str());
                if let Some(reason) = by.reason() {
                    self.text("reason", reason);
                }
            }
            Event::Published { id, group, position, copies } => {
                self.begin("published", id);
                self.position(group, position.epoch, position.offset);
                self.number("copies", u64::from(*copies));
            }
            Event::PassedOn { id, group } => {
                self.begin("published", id);
                self.text("group", group.as_str());
                self.bool("ephemeral", true);
            }
            Event::Heartbeat { id } => self.begin("heartbeat", id),
            Event::History { id, group, position, complete, messages } => {
                self.begin("history", id);
                match position {
                    Some(position) => self.position(group, position.epoch, position.offset),
                    None => {
                        self.text("group", group.as_str());
                        self.raw("epoch", b"null");
                        self.number("offset", 0);
                    }
                }
                self.bool("complete", *complete);
                self.list("messages", messages, |text, message| {
                    text.out.push(b'{');
                    text.message(message);
                    text.out.push(b'}');
                });
            }
            Event::Members { id, group, members, more } => {
                self.begin("members", id);
                self.text("group", group.as_str());
                self.list("members", members, |text, PresentSession { member, clients }| {
                    text.out.push(b'{');
                    text.presence(member);
                    text.number("clients", u64::from(*clients));
                    text.out.push(b'}');
                });
                self.bool("more", *more);
            }
            Event::Error(error) => self.error(error),
            pushed => self.pushed(pushed),
        }
    }

    /// What comes without having been asked for.
    fn pushed(&mut self, event: &Event) {
        match event {
            Event::Message { group, epoch, message } => {
                self.begin("message", &None);
                self.text("group", group.as_str());
                self.plain("epoch", epoch);
                self.message(message);
            }
            Event::Expiring { expires_in_ms } => {
                self.begin("expiring", &None);
                self.number("expires_in_ms", *expires_in_ms);
            }
            Event::Ephemeral { group, message: EphemeralMessage { data, from, at_ms } } => {
                self.begin("message", &None);
                self.text("group", group.as_str());
                self.bool("ephemeral", true);
                self.said(data, from.as_ref(), *at_ms);
            }
            Event::Member { group, event, member } => {
                self.begin("member", &None);
                self.text("group", group.as_str());
                let event = match event {
                    MemberEvent::Join => "join",
                    MemberEvent::Leave => "leave",
                    MemberEvent::Update => "update",
                };
                self.text("event", event);
                self.presence(member);
            }
            Event::Presence { group, present: Present { sessions, clients: _, users, anonymous } } => {
                self.begin("presence", &None);
                self.text("group", group.as_str());
                self.number("sessions", *sessions);
                self.number("users", *users);
                self.number("anonymous", *anonymous);
            }
            Event::Gap { group, epoch, from, to, reason } => {
                self.begin("gap", &None);
                self.text("group", group.as_str());
                self.plain("epoch", epoch);
                self.number("from", *from);
                self.number("to", *to);
                self.text("reason", reason);
            }
            Event::Reset { group, epoch, offset, reason } => {
                self.begin("reset", &None);
                self.position(group, *epoch, *offset);
                self.text("reason", reason);
            }
            Event::Direct { data } => {
                self.begin("direct", &None);
                self.raw("data", data);
            }
            Event::Stale { group } => {
                self.begin("stale", &None);
                self.text("group", group.as_str());
            }
            Event::Live { group, epoch, offset } => {
                self.begin("live", &None);
                self.position(group, *epoch, *offset);
            }
            Event::Displaced => self.begin("displaced", &None),
            Event::Bye { reason, words, after_ms } => {
                self.begin("bye", &None);
                self.text("code", reason.code());
                self.text("reason", words);
                self.bool("reconnect", reason.comes_back());
                self.number("after_ms", *after_ms);
            }
            Event::Welcome { .. }
            | Event::Joined { .. }
            | Event::Left { .. }
            | Event::Published { .. }
            | Event::PassedOn { .. }
            | Event::History { .. }
            | Event::Members { .. }
            | Event::Heartbeat { .. }
            | Event::Refreshed { .. }
            | Event::Error(_) => unreachable!("answers are written by `event`"),
        }
    }

    fn error(&mut self, error: &ClientError) {
        self.begin("error", &error.id);
        self.text("code", error.reason.code());
        self.text("message", &error.message);
        self.list("detail", &error.detail, |frame, detail| {
            // The first field of an object: no comma before it.
            frame.out.extend_from_slice(b"{\"loc\":");
            frame.array(&detail.loc, |frame, step| frame.quoted(step));
            frame.text("msg", &detail.msg);
            frame.text("type", detail.kind);
            frame.out.push(b'}');
        });
        if let Some(after) = error.retry_after_ms {
            self.number("retry_after_ms", after);
        }
    }

    fn begin(&mut self, kind: &str, id: &RequestId) {
        self.out.extend_from_slice(b"{\"type\":\"");
        self.out.extend_from_slice(kind.as_bytes());
        self.out.push(b'"');
        if let Some(id) = id {
            self.raw("id", id.as_bytes());
        }
    }

    fn position(&mut self, group: &GroupName, epoch: Epoch, offset: u64) {
        self.text("group", group.as_str());
        self.plain("epoch", &epoch);
        self.number("offset", offset);
    }

    fn message(&mut self, message: &Message) {
        self.number("offset", message.offset);
        self.said(&message.data, message.from.as_ref(), message.at_ms);
    }

    /// What was published, by whom and when.
    fn said(&mut self, data: &Bytes, from: Option<&Publisher>, at_ms: u64) {
        self.raw("data", or_null(data));
        if let Some(from) = from {
            self.key("from");
            self.out.push(b'{');
            self.plain("session", &from.session);
            self.text("user", &from.user);
            self.out.push(b'}');
        }
        self.number("at_ms", at_ms);
    }

    fn presence(&mut self, member: &Presence) {
        self.plain("session", &member.session);
        self.text("user", &member.user);
        self.raw("info", or_null(&member.info));
    }

    /// The field's name, with a comma before it unless it is the object's first.
    fn key(&mut self, key: &str) {
        if !matches!(self.out.last(), Some(b'{')) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn raw(&mut self, key: &str, json: &[u8]) {
        self.key(key);
        self.out.extend_from_slice(json);
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        self.quoted(text);
    }

    /// Something whose text needs no escapes: ids, epochs.
    fn plain(&mut self, key: &str, value: &impl std::fmt::Display) {
        use std::io::Write;
        self.key(key);
        write!(self.out, "\"{value}\"").expect("writing to memory does not fail");
    }

    fn number(&mut self, key: &str, number: u64) {
        use std::io::Write;
        self.key(key);
        write!(self.out, "{number}").expect("writing to memory does not fail");
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.raw(key, if value { b"true" } else { b"false" });
    }

    fn list<T>(&mut self, key: &str, items: &[T], each: impl FnMut(&mut Self, &T)) {
        self.key(key);
        self.array(items, each);
    }

    fn array<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.out.push(b'[');
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            each(self, item);
        }
        self.out.push(b']');
    }

    fn quoted(&mut self, text: &str) {
        if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
            serde_json::to_writer(&mut self.out, text).expect("writing to memory does not fail");
        } else {
            self.out.push(b'"');
            self.out.extend_from_slice(text.as_bytes());
            self.out.push(b'"');
        }
    }
}

fn or_null(json: &Bytes) -> &[u8] {
    if json.is_empty() { b"null" } else { json }
}
