//! Server-sent events, as `EventSource` in a browser reads them (the HTML standard, 9.2): each event one chunk of an answer.
//!
//! The default event is a message; an ephemeral one has no `id`. What else the [plain protocol](super::plain) tells is an event of that name, with the same
//! JSON; an `error` is `refused`, since `EventSource` has an `error` of its own.
//!
//! An `id` is where the reader is after the event. Of one group it is `EPOCH-OFFSET`. Of several it has the positions in all of
//! them, 15 bytes for each after a hash of their names, in base64.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use xxhash_rust::xxh3::Xxh3;

use super::{
    command::Event,
    frame::{Frame, HEADER_ROOM},
    plain,
};
use crate::id::{Epoch, GroupName, NUMBER_MAX, Position};

/// The most groups that one reader follows: its id has them all, and goes with each event.
pub const GROUPS_MAX: usize = 16;
/// The longest id that is read, in bytes.
pub const ID_MAX_BYTES: usize = (NAMES_BYTES + GROUPS_MAX * POSITION_BYTES).div_ceil(3) * 4;

const NAMES_BYTES: usize = 8;
const EPOCH_BYTES: usize = 8;
const OFFSET_BYTES: usize = 7;
const POSITION_BYTES: usize = EPOCH_BYTES + OFFSET_BYTES;
/// In place of a position: more than [`NUMBER_MAX`].
const NOWHERE: [u8; POSITION_BYTES] = [0xff; POSITION_BYTES];

/// Writes an event as one chunk, with the id of a reader of one group if that is given.
pub fn encode(event: &Event, id: Option<Position>) -> Frame {
    let mut out = Vec::with_capacity(HEADER_ROOM + 80 + plain::size_hint(event));
    out.resize(HEADER_ROOM, 0);
    if let Some(position) = id {
        line(&mut out, "id", &one(position));
    }
    if let Event::Bye { reason, after_ms, .. } = event
        && reason.comes_back()
    {
        line(&mut out, "retry", &after_ms.to_string());
    }
    if let Some(name) = name(event) {
        line(&mut out, "event", name);
    }
    out.extend_from_slice(DATA);
    let from = out.len();
    let mut out = in_lines(plain::json(event, out), from);
    out.extend_from_slice(b"\n\n");
    Frame::of_chunk(out)
}

/// When a reader is to come back where nothing has told it, as a chunk.
pub fn retry(after_ms: u64) -> Frame {
    let mut out = vec![0; HEADER_ROOM];
    line(&mut out, "retry", &after_ms.to_string());
    out.push(b'\n');
    Frame::of_chunk(out)
}

/// An id as a chunk of its own, before that of its event.
pub fn id_line(id: &str) -> Frame {
    let mut out = vec![0; HEADER_ROOM];
    line(&mut out, "id", id);
    Frame::of_chunk(out)
}

const DATA: &[u8] = b"data: ";

fn line(out: &mut Vec<u8>, field: &str, value: &str) {
    for part in [field, ": ", value, "\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// JSON may have line ends between its values, and a line of an event ends with each.
fn in_lines(out: Vec<u8>, from: usize) -> Vec<u8> {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if !out[from..].iter().any(is_end) {
        return out;
    }
    let mut lines = out[from..].split(is_end);
    let mut cut = [&out[..from], lines.next().unwrap_or_default()].concat();
    for line in lines {
        cut.push(b'\n');
        cut.extend_from_slice(DATA);
        cut.extend_from_slice(line);
    }
    cut
}

fn name(event: &Event) -> Option<&'static str> {
    Some(match event {
        Event::Message { .. } | Event::Ephemeral { .. } => return None,
        Event::Welcome { .. } => "welcome",
        Event::Joined { .. } => "joined",
        Event::Left { .. } => "left",
        Event::Published { .. } | Event::PassedOn { .. } => "published",
        Event::History { .. } => "history",
        Event::Members { .. } => "members",
        Event::Heartbeat { .. } => "heartbeat",
        Event::Direct { .. } => "direct",
        Event::Refreshed { .. } => "refreshed",
        Event::Expiring { .. } => "expiring",
        Event::Member { .. } => "member",
        Event::Presence { .. } => "presence",
        Event::Gap { .. } => "gap",
        Event::Reset { .. } => "reset",
        Event::Stale { .. } => "stale",
        Event::Live { .. } => "live",
        Event::Displaced => "displaced",
        Event::Error(_) => "refused",
        Event::Bye { .. } => "bye",
    })
}

fn one(Position { epoch, offset }: Position) -> String {
    format!("{epoch}-{offset}")
}

/// Where a reader of these groups is, as an id.
///
/// # Panics
/// Where there is not one place for each group.
pub fn id(groups: &[GroupName], places: &[Option<Position>]) -> String {
    assert_eq!(groups.len(), places.len(), "each group has a place");
    if let ([_], [Some(position)]) = (groups, places) {
        return one(*position);
    }
    let mut bytes = Vec::with_capacity(NAMES_BYTES + groups.len() * POSITION_BYTES);
    bytes.extend_from_slice(&names(groups));
    for place in places {
        match place {
            Some(Position { epoch, offset }) => {
                bytes.extend_from_slice(&epoch.0.to_be_bytes());
                bytes.extend_from_slice(&offset.to_be_bytes()[8 - OFFSET_BYTES..]);
            }
            None => bytes.extend_from_slice(&NOWHERE),
        }
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads what [`id`] has written for the same groups; the error is for people.
pub fn places(groups: &[GroupName], id: &str) -> Result<Vec<Option<Position>>, String> {
    let malformed = || {
        let form = if groups.len() == 1 { "EPOCH-OFFSET" } else { "what the last event had" };
        format!("this is no id of an event of this stream: send the last one as it came ({form}), or none")
    };
    if id.len() > ID_MAX_BYTES {
        return Err(malformed());
    }
    if let [_] = groups {
        let (epoch, offset) = id.split_once('-').ok_or_else(malformed)?;
        let digits = !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_digit());
        let offset = offset.parse().ok().filter(|offset| digits && *offset <= NUMBER_MAX).ok_or_else(malformed)?;
        return Ok(vec![Some(Position { epoch: Epoch::parse(epoch).map_err(|_| malformed())?, offset })]);
    }
    let bytes = URL_SAFE_NO_PAD.decode(id).map_err(|_| malformed())?;
    let (given, bytes) = bytes.split_at_checked(NAMES_BYTES).ok_or_else(malformed)?;
    if given != names(groups) {
        return Err("this is the id of an event of other groups: ask for the same ones again, or send none".to_owned());
    }
    let (chunks, rest) = bytes.as_chunks::<POSITION_BYTES>();
    if chunks.len() != groups.len() || !rest.is_empty() {
        return Err(malformed());
    }
    let place = |chunk: &[u8; POSITION_BYTES]| {
        if *chunk == NOWHERE {
            return Some(None);
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (epoch, offset) = chunk.split_at(EPOCH_BYTES);
        let position = Position { epoch: Epoch(number(epoch)), offset: number(offset) };
        (position.offset <= NUMBER_MAX).then_some(Some(position))
    };
    chunks.iter().map(place).collect::<Option<_>>().ok_or_else(malformed)
}

/// Which groups an id is of.
fn names(groups: &[GroupName]) -> [u8; NAMES_BYTES] {
    let mut hash = Xxh3::new();
    for group in groups {
        hash.update(group.as_str().as_bytes());
        // No name has it.
        hash.update(&[0]);
    }
    hash.digest().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        logic::entry::Message,
        wire::{codec::Codec, reason::Reason},
    };

    fn group(name: &str) -> GroupName {
        GroupName::parse(name).unwrap()
    }

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch: Epoch(epoch), offset }
    }

    /// What is in the chunk.
    fn text(frame: &Frame) -> String {
        let (header, rest) = std::str::from_utf8(frame.as_bytes()).unwrap().split_once("\r\n").unwrap();
        let text = rest.strip_suffix("\r\n").unwrap();
        assert_eq!(usize::from_str_radix(header, 16).unwrap(), text.len());
        text.to_owned()
    }

    fn message(data: &'static str) -> Event {
        let message = Message { offset: 4, data: data.into(), from: None, at_ms: 9 };
        Event::Message { group: group("g"), epoch: Epoch(7), message }
    }

    #[test]
    fn a_message_is_the_default_event_and_its_id_is_where_it_stands() {
        let json = r#"{"type":"message","group":"g","epoch":"0000000000000007","offset":4,"data":1,"at_ms":9}"#;
        let event = message("1");
        assert_eq!(text(&Codec::Events.encode(&event)), format!("id: 0000000000000007-4\ndata: {json}\n\n"));
        assert_eq!(text(&Codec::EventsOfMany.encode(&event)), format!("data: {json}\n\n"));
        assert_eq!(Codec::Plain.encode(&event).as_str(), json);
    }

    #[test]
    fn what_moves_a_reader_has_an_id_and_nothing_else_has() {
        let check = |event: Event, begins: &str| {
            let text = text(&Codec::Events.encode(&event));
            assert!(text.starts_with(begins) && text.ends_with("}\n\n"), "{text}");
        };
        let (group, epoch) = (group("g"), Epoch(7));
        let gap = Event::Gap { group: group.clone(), epoch, from: 2, to: 5, reason: "trimmed" };
        check(gap, "id: 0000000000000007-5\nevent: gap\ndata: {\"type\":\"gap\"");
        let reset = Event::Reset { group: group.clone(), epoch, offset: 3, reason: "log_lost" };
        check(reset, "id: 0000000000000007-3\nevent: reset\ndata: {");
        check(Event::Stale { group: group.clone() }, "event: stale\ndata: {");
        check(Event::Live { group: group.clone(), epoch, offset: 3 }, "event: live\ndata: {");
        check(Event::Joined { id: None, group, epoch, offset: 3, recovered: true }, "event: joined\ndata: {");
        let bye = |reason| Event::Bye { reason, words: String::new(), after_ms: 1_500 };
        check(bye(Reason::Draining), "retry: 1500\nevent: bye\ndata: {");
        check(bye(Reason::SessionEnded), "event: bye\ndata: {");
    }

    /// As the standard has it: lines of data are joined by line feeds.
    #[test]
    fn line_ends_in_data_end_no_event() {
        let text = text(&Codec::Events.encode(&message("[1,\n\n2,\r\n3\r]")));
        let (event, rest) = text.split_once("\n\n").unwrap();
        assert_eq!(rest, "");
        let data: Vec<_> = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let read: serde_json::Value = serde_json::from_str(&data.join("\n")).unwrap();
        assert_eq!(read["data"], serde_json::json!([1, 2, 3]));
    }

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let check = |names: &[&str], given: &[Option<Position>]| {
            let groups: Vec<_> = names.iter().map(|name| group(name)).collect();
            let written = id(&groups, given);
            assert!(written.len() <= ID_MAX_BYTES, "{written}");
            assert_eq!(places(&groups, &written).as_deref(), Ok(given), "{written}");
        };
        check(&["a"], &[Some(at(7, 0))]);
        check(&["a"], &[Some(at(u64::MAX, NUMBER_MAX))]);
        check(&["a", "b"], &[Some(at(7, 3)), None]);
        check(&["a", "b"], &[None, Some(at(u64::MAX, NUMBER_MAX))]);
        let many: Vec<_> = (0..GROUPS_MAX).map(|number| number.to_string()).collect();
        check(&many.iter().map(String::as_str).collect::<Vec<_>>(), &vec![Some(at(u64::MAX, NUMBER_MAX)); GROUPS_MAX]);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let (one, two) = ([group("a")], [group("a"), group("b")]);
        let long = "A".repeat(ID_MAX_BYTES + 1);
        for bad in [
            "",
            "-",
            "7-1",
            "0000000000000007",
            "0000000000000007-",
            "0000000000000007-+1",
            "0000000000000007--1",
            "0000000000000007-9007199254740992",
            "000000000000000g-1",
            "0000000000000007-1 ",
            &long,
        ] {
            assert!(places(&one, bad).is_err(), "{bad}");
            assert!(places(&two, bad).is_err(), "{bad}");
        }
        let good = id(&two, &[Some(at(7, 3)), None]);
        assert!(places(&two, &good[1..]).is_err() && places(&two, &format!("{good}AAAA")).is_err());
        assert!(places(&[group("b"), group("a")], &good).unwrap_err().contains("other groups"));
        let beyond = [&names(&two)[..], &[0; 8], &[0xff, 0, 0, 0, 0, 0, 0], &NOWHERE].concat();
        assert!(places(&two, &URL_SAFE_NO_PAD.encode(beyond)).is_err());
    }
}
