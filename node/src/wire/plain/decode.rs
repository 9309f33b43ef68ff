//! Frames → commands. Every fault of a frame is found, not only the first, and each is told with the way to its field.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{DEPTH_MAX, ID_MAX_BYTES, LIMIT_DEFAULT, LIMIT_MAX, Limits};
use crate::{
    id::{ClientId, Epoch, GroupName, NUMBER_MAX, Position, SessionId},
    wire::{
        command::{ClientError, Command, Detail, ReadFrom, RequestId},
        reason::Reason,
    },
};

/// So many fields of a frame are looked at; no type has half as many.
const FIELDS_MAX: usize = 16;

/// So many faults are told.
const DETAILS_MAX: usize = 16;

/// How much of a client's own text an error repeats.
const EXCERPT_CHARS: usize = 64;

const TYPES: [&str; 8] = ["hello", "join", "leave", "publish", "history", "members", "heartbeat", "refresh"];

/// Reads one frame. The error carries the frame's id wherever that could be read.
pub fn decode(text: &str, limits: &Limits) -> Result<Command, ClientError> {
    let mut object = Object::default();
    let read = object.read(text, FIELDS_MAX);
    let mut faults = Faults::default();
    let id = request_id(object.take("id"), &mut faults);
    if let Err(fault) = read {
        return Err(ClientError {
            id,
            reason: Reason::BadJson,
            message: format!("{fault}; a frame is one JSON object, for instance {{\"type\":\"heartbeat\"}}"),
            detail: vec![Detail { loc: Vec::new(), msg: fault, kind: "json" }],
            retry_after_ms: None,
        });
    }
    let command = command(id.clone(), object, limits, &mut faults);
    match command {
        Some(command) if faults.details.is_empty() => Ok(command),
        _ => Err(faults.into_error(id)),
    }
}

fn command(id: RequestId, object: Object<'_>, limits: &Limits, faults: &mut Faults) -> Option<Command> {
    let mut fields = Fields { object, within: None, known: vec!["type", "id"] };
    let kind = fields.required("type", faults, string)?;
    let command = match &*kind {
        "hello" => {
            let session =
                fields.optional("session", faults, |at, raw, faults| string(at, raw, faults).map(Cow::into_owned));
            let resume = fields.optional("resume", faults, positions);
            let client = fields.optional("client", faults, client);
            (|| Some(Command::Hello { id, session: session?, client: client?, resume: resume?.unwrap_or_default() }))()
        }
        "join" => {
            let group = fields.required("group", faults, group);
            let since = fields.optional("since", faults, position);
            (|| Some(Command::Join { id, group: group?, since: since? }))()
        }
        "leave" => fields.required("group", faults, group).map(|group| Command::Leave { id, group }),
        "publish" => {
            let group = fields.required("group", faults, group);
            let data = fields.required("data", faults, |at, raw, faults| data(at, raw, limits, faults));
            let key = fields.optional("key", faults, key);
            let ephemeral = fields.optional("ephemeral", faults, boolean).map(|ephemeral| ephemeral.unwrap_or(false));
            if let (Some(true), Some(Some(_))) = (ephemeral, &key) {
                let msg = "an ephemeral publish has no key: it is done at most once, so a repeat would be another one";
                faults.add(vec!["key".to_owned()], msg.to_owned(), "value_error");
            }
            (|| Some(Command::Publish { id, group: group?, data: data?, key: key?, ephemeral: ephemeral? }))()
        }
        "history" => {
            let group = fields.required("group", faults, group);
            let since = fields.optional("since", faults, position);
            let most = fields.optional("limit", faults, limit);
            let last = fields.optional("last", faults, limit);
            if let Some(Some(_)) = last
                && !matches!((&since, &most), (Some(None), Some(None)))
            {
                let msg = "the last messages are read by `last` alone, without `since` and `limit`";
                faults.add(vec!["last".to_owned()], msg.to_owned(), "value_error");
            }
            (|| {
                let (from, limit) = match (last?, since?) {
                    (Some(last), _) => (ReadFrom::Last, last),
                    (None, Some(since)) => (ReadFrom::After(since), most?.unwrap_or(LIMIT_DEFAULT)),
                    (None, None) => (ReadFrom::Oldest, most?.unwrap_or(LIMIT_DEFAULT)),
                };
                Some(Command::History { id, group: group?, from, limit })
            })()
        }
        "members" => {
            let group = fields.required("group", faults, group);
            let after = fields.optional("after", faults, session);
            let limit = fields.optional("limit", faults, limit);
            (|| Some(Command::Members { id, group: group?, after: after?, limit: limit?.unwrap_or(LIMIT_DEFAULT) }))()
        }
        "heartbeat" => Some(Command::Heartbeat { id }),
        "refresh" => {
            let token =
                fields.required("token", faults, |at, raw, faults| string(at, raw, faults).map(Cow::into_owned));
            token.map(|token| Command::Refresh { id, token })
        }
        other => {
            let msg = format!(
                "there is no type {:?}{}; the types are {}",
                excerpt(other),
                nearest(other, &TYPES),
                TYPES.join(", ")
            );
            faults.add(vec!["type".to_owned()], msg, "unknown_type");
            return None;
        }
    };
    fields.end(faults);
    command
}

/// What is wrong with a frame.
#[derive(Default)]
struct Faults {
    details: Vec<Detail>,
    more: usize,
}

impl Faults {
    fn add(&mut self, loc: Vec<String>, msg: String, kind: &'static str) {
        if self.details.len() < DETAILS_MAX {
            self.details.push(Detail { loc, msg, kind });
        } else {
            self.more += 1;
        }
    }

    fn into_error(self, id: RequestId) -> ClientError {
        let message = match &*self.details {
            [] => "the frame is not valid".to_owned(),
            [one] => told(one),
            [first, rest @ ..] => format!("{} (and {} more)", told(first), rest.len() + self.more),
        };
        ClientError { id, reason: Reason::Invalid, message, detail: self.details, retry_after_ms: None }
    }
}

fn told(detail: &Detail) -> String {
    if detail.loc.is_empty() { detail.msg.clone() } else { format!("{}: {}", detail.loc.join("."), detail.msg) }
}

/// A JSON object whose values are still text.
#[derive(Default)]
struct Object<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
    repeated: Vec<Cow<'a, str>>,
}

impl<'a> Object<'a> {
    /// Keeps what it has read when the text turns out to be broken further on.
    fn read(&mut self, text: &'a str, fields_max: usize) -> Result<(), String> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let told = |error: serde_json::Error| {
            if error.is_data() {
                format!("this is {}, not an object", json_type(text))
            } else {
                format!("this is not JSON: {error}")
            }
        };
        Filler { object: self, fields_max }.deserialize(&mut deserializer).map_err(told)?;
        deserializer.end().map_err(|error| format!("this is not JSON: {error}"))
    }

    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.fields.iter().position(|(key, _)| key == name)?;
        Some(self.fields.remove(at).1)
    }
}

struct Filler<'o, 'a> {
    object: &'o mut Object<'a>,
    fields_max: usize,
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> DeserializeSeed<'a> for Filler<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Filler<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let fields = &mut self.object.fields;
        while let Some(Key(key)) = map.next_key()? {
            if fields.len() + self.object.repeated.len() >= self.fields_max {
                map.next_value::<IgnoredAny>()?;
            } else if fields.iter().any(|(known, _)| *known == key) {
                map.next_value::<IgnoredAny>()?;
                self.object.repeated.push(key);
            } else {
                fields.push((key, map.next_value()?));
            }
        }
        Ok(())
    }
}

/// The way to a field. It is told only where something is wrong.
#[derive(Clone, Copy)]
struct At<'p> {
    within: Option<&'p Self>,
    name: &'p str,
}

impl At<'_> {
    fn loc(&self) -> Vec<String> {
        let mut loc = self.within.map_or_else(Vec::new, At::loc);
        loc.push(excerpt(self.name));
        loc
    }
}

/// Takes the fields of an object one by one; what is left at the end is unknown.
struct Fields<'a, 'p> {
    object: Object<'a>,
    within: Option<&'p At<'p>>,
    known: Vec<&'static str>,
}

impl<'a, 'p> Fields<'a, 'p> {
    /// The fields of a nested object.
    fn nested(at: &'p At<'p>, raw: &'a RawValue, faults: &mut Faults) -> Option<Self> {
        let mut object = Object::default();
        // The whole text was read once: it is JSON, so that only its type can be wrong, or the escapes of a name.
        match object.read(raw.get(), FIELDS_MAX) {
            Ok(()) => Some(Self { object, within: Some(at), known: Vec::new() }),
            Err(_) => {
                wrong_type(at, raw, "an object", faults);
                None
            }
        }
    }

    fn at<'n>(&self, name: &'n str) -> At<'n>
    where
        'p: 'n,
    {
        At { within: self.within, name }
    }

    fn required<T>(
        &mut self,
        name: &'static str,
        faults: &mut Faults,
        read: impl FnOnce(&At<'_>, &'a RawValue, &mut Faults) -> Option<T>,
    ) -> Option<T> {
        if !self.known.contains(&name) {
            self.known.push(name);
        }
        match self.object.take(name) {
            Some(raw) => read(&self.at(name), raw, faults),
            None => {
                faults.add(self.at(name).loc(), "this field is required".to_owned(), "missing");
                None
            }
        }
    }

    /// The outer option is for faults, the inner one for a field that is not there or `null`.
    fn optional<T>(
        &mut self,
        name: &'static str,
        faults: &mut Faults,
        read: impl FnOnce(&At<'_>, &'a RawValue, &mut Faults) -> Option<T>,
    ) -> Option<Option<T>> {
        self.known.push(name);
        match self.object.take(name) {
            Some(raw) if raw.get() != "null" => read(&self.at(name), raw, faults).map(Some),
            _ => Some(None),
        }
    }

    fn end(self, faults: &mut Faults) {
        for name in &self.object.repeated {
            faults.add(
                self.at(name).loc(),
                "this field is there twice: which one is meant?".to_owned(),
                "duplicate_field",
            );
        }
        for (name, _) in &self.object.fields {
            let msg = format!(
                "there is no such field here{}; the fields are {}",
                nearest(name, &self.known),
                self.known.join(", ")
            );
            faults.add(self.at(name).loc(), msg, "unknown_field");
        }
    }
}

/// The mark's own text, where it is one that may be echoed.
fn request_id(raw: Option<&RawValue>, faults: &mut Faults) -> RequestId {
    let raw = raw.filter(|raw| raw.get() != "null")?;
    let at = At { within: None, name: "id" };
    let text = raw.get();
    if !text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        wrong_type(&at, raw, "a number or a string", faults);
        return None;
    }
    if text.len() > ID_MAX_BYTES {
        faults.add(at.loc(), format!("an id has at most {ID_MAX_BYTES} bytes, this has {}", text.len()), "too_long");
        return None;
    }
    Some(text.into())
}

fn string<'a>(at: &At<'_>, raw: &'a RawValue, faults: &mut Faults) -> Option<Cow<'a, str>> {
    if !raw.get().starts_with('"') {
        wrong_type(at, raw, "a string", faults);
        return None;
    }
    match serde_json::from_str::<Key<'a>>(raw.get()) {
        Ok(Key(text)) => Some(text),
        Err(error) => {
            faults.add(at.loc(), format!("this string is not valid Unicode: {error}"), "value_error");
            None
        }
    }
}

fn parsed<T>(at: &At<'_>, result: Result<T, String>, faults: &mut Faults) -> Option<T> {
    result.map_err(|msg| faults.add(at.loc(), msg, "value_error")).ok()
}

fn group(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<GroupName> {
    let text = string(at, raw, faults)?;
    parsed(at, GroupName::parse(&text), faults)
}

fn session(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<SessionId> {
    let text = string(at, raw, faults)?;
    let read = Uuid::try_parse(&text).map(SessionId).map_err(|_| "a session id is a UUID, as in `members`".to_owned());
    parsed(at, read, faults)
}

fn key(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<String> {
    let text = string(at, raw, faults)?;
    if text.is_empty() || text.len() > ID_MAX_BYTES {
        let msg = format!("a key has 1 to {ID_MAX_BYTES} bytes, this has {}", text.len());
        faults.add(at.loc(), msg, "value_error");
        return None;
    }
    Some(text.into_owned())
}

fn client(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<ClientId> {
    let text = string(at, raw, faults)?;
    parsed(at, ClientId::parse(&text), faults)
}

fn boolean(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<bool> {
    match raw.get() {
        "true" => Some(true),
        "false" => Some(false),
        _ => {
            wrong_type(at, raw, "true or false", faults);
            None
        }
    }
}

fn limit(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<u32> {
    let number = whole(at, raw, faults)?;
    let read = u32::try_from(number).ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    parsed(at, read.ok_or_else(|| format!("a limit is 1 to {LIMIT_MAX}, not {number}")), faults)
}

fn whole(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<u64> {
    let text = raw.get();
    if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        wrong_type(at, raw, "a whole number", faults);
        return None;
    }
    let read = text.parse::<u64>().ok().filter(|number| *number <= NUMBER_MAX);
    let wrong = || format!("this is a whole number from 0 to {NUMBER_MAX}, not {}", excerpt(text));
    parsed(at, read.ok_or_else(wrong), faults)
}

fn position(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<Position> {
    let mut fields = Fields::nested(at, raw, faults)?;
    let epoch = fields.required("epoch", faults, |at, raw, faults| {
        let text = string(at, raw, faults)?;
        parsed(at, Epoch::parse(&text), faults)
    });
    let offset = fields.required("offset", faults, whole);
    fields.end(faults);
    Some(Position { epoch: epoch?, offset: offset? })
}

fn positions(at: &At<'_>, raw: &RawValue, faults: &mut Faults) -> Option<BTreeMap<GroupName, Position>> {
    // Bounded by the frame; looked up by a map, since there may be thousands.
    let Ok(entries) = serde_json::from_str::<Entries<'_>>(raw.get()) else {
        wrong_type(at, raw, "an object of the form {group: {epoch, offset}}", faults);
        return None;
    };
    let mut positions = BTreeMap::new();
    for (name, raw) in entries.0 {
        let at = At { within: Some(at), name: &name };
        let Some(group) = parsed(&at, GroupName::parse(&name), faults) else { continue };
        let Some(position) = position(&at, raw, faults) else { continue };
        if positions.insert(group, position).is_some() {
            faults.add(at.loc(), "this group is there twice: which position is meant?".to_owned(), "duplicate_field");
        }
    }
    Some(positions)
}

/// The fields of an object in their order, however many.
struct Entries<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Deserialize<'a> for Entries<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'a> Visitor<'a> for All {
            type Value = Entries<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Entries<'a>, A::Error> {
                let mut entries = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    entries.push((key, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// A copy of its own, so that a kept message does not keep the frame and the read buffer that it came in.
fn data(at: &At<'_>, raw: &RawValue, limits: &Limits, faults: &mut Faults) -> Option<Bytes> {
    let text = raw.get();
    if text.len() > limits.message_bytes {
        let msg = format!("data has at most {} bytes of JSON text, this has {}", limits.message_bytes, text.len());
        faults.add(at.loc(), msg, "too_long");
        return None;
    }
    if depth(text) > DEPTH_MAX {
        faults.add(at.loc(), format!("data nests deeper than {DEPTH_MAX} levels"), "too_deep");
        return None;
    }
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

/// How deep JSON text nests. serde_json's own bound does not hold for text that is only skipped over.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn wrong_type(at: &At<'_>, raw: &RawValue, wanted: &str, faults: &mut Faults) {
    faults.add(at.loc(), format!("this is {}, not {wanted}", json_type(raw.get())), "type_error");
}

fn json_type(text: &str) -> &'static str {
    match text.trim_start().bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `, did you mean "x"?`, where something known is near.
fn nearest(text: &str, known: &[&'static str]) -> String {
    if text.len() > EXCERPT_CHARS {
        return String::new();
    }
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(text, known), known)).min();
    match near {
        Some((distance, known)) if distance <= known.len().div_ceil(2) => format!(", did you mean {known:?}?"),
        _ => String::new(),
    }
}
