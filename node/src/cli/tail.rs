//! `roost tail`: follows a group, over any of several nodes, and goes on where it stopped when one is lost.
//!
//! Messages go to standard output, one JSON object a line; what happens to the connection, gaps and resets to standard
//! error. So the output of two tails of one group can be compared line by line.

use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::{
    print,
    websocket::{Client, Frame},
};
use crate::id::{Epoch, GroupName, Position};

const FIRST_BACK_OFF_MS: u64 = 200;
const LONGEST_BACK_OFF_MS: u64 = 5_000;
/// A connection that is silent for this number of heartbeats is given up: the node may be gone without a goodbye.
const SILENT_HEARTBEATS: u32 = 3;
const JOIN_ID: u64 = 1;

/// Arguments of `roost tail`.
#[derive(Debug, clap::Args)]
pub(super) struct TailArgs {
    /// The group
    group: String,
    /// Where nodes serve clients; several, separated by commas, are tried in turn
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "ws://127.0.0.1:8000/ws,ws://127.0.0.1:8001/ws,ws://127.0.0.1:8002/ws"
    )]
    url: Vec<String>,
    /// A session's token (`roost token new`); without one a new anonymous session, where the cluster allows it
    #[arg(long, env = "ROOST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Begin after this position, as epoch:offset
    #[arg(long, value_name = "EPOCH:OFFSET", value_parser = parse_position)]
    since: Option<Position>,
}

fn parse_position(text: &str) -> Result<Position, String> {
    let (epoch, offset) = text.split_once(':').ok_or("a position is epoch:offset, as in the messages")?;
    let offset = offset.parse().map_err(|_| format!("{offset:?} is not an offset: a whole number"))?;
    Ok(Position { epoch: Epoch::parse(epoch)?, offset })
}

pub(super) async fn run(args: TailArgs) -> anyhow::Result<()> {
    GroupName::parse(&args.group).map_err(anyhow::Error::msg)?;
    ensure!(!args.url.is_empty(), "name a node with --url");
    let mut tail = Tail { group: args.group, own_token: args.token.is_none(), token: args.token, position: args.since };
    let (mut attempt, mut failures, mut ever) = (0, 0, false);
    loop {
        let url = &args.url[attempt % args.url.len()];
        attempt += 1;
        let mut welcomed = false;
        let ended = Box::pin(tail.follow(url, &mut welcomed)).await;
        failures = if welcomed { 0 } else { failures + 1 };
        ever |= welcomed;
        let wait_ms = match ended {
            Ok(End::Stop(reason)) => bail!(reason),
            Ok(End::Again { after_ms, reason }) => {
                print::note(format_args!("{reason}; connecting again"));
                after_ms
            }
            Err(error) if print::is_broken_pipe(&error) => return Err(error),
            // Never connected, and no node left to try: rather say so than wait for what may not exist.
            Err(error) if !ever && failures >= args.url.len() => return Err(error),
            Err(error) => {
                print::note(format_args!("{error:#}; connecting again"));
                0
            }
        };
        tokio::time::sleep(Duration::from_millis(wait_ms.max(back_off_ms(failures)))).await;
    }
}

/// Doubling, with a random half, so that many tails do not come back in step.
fn back_off_ms(failures: usize) -> u64 {
    let longest = FIRST_BACK_OFF_MS.checked_shl(failures.min(16) as u32).unwrap_or(u64::MAX).min(LONGEST_BACK_OFF_MS);
    rand::random_range(longest / 2..=longest)
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The end of the command, with its reason.
    Stop(String),
    /// To go on elsewhere.
    Again { after_ms: u64, reason: String },
}

#[derive(Debug)]
struct Tail {
    group: String,
    token: Option<String>,
    /// The session is one that we were given: when it is lost another will do.
    own_token: bool,
    position: Option<Position>,
}

impl Tail {
    async fn follow(&mut self, url: &str, welcomed: &mut bool) -> anyhow::Result<End> {
        let mut client = Client::open(url).await?;
        let text = match client.hello(&self.hello()).await {
            Ok(text) => text,
            Err(error) if self.own_token && self.token.take().is_some() => {
                return Ok(End::Again { after_ms: 0, reason: format!("{error:#}; trying with a new session") });
            }
            Err(error) => return Err(error),
        };
        *welcomed = true;
        let welcome = Frame::parse(&text)?;
        self.token = welcome.token.or_else(|| self.token.take());
        print::note(format_args!("connected to node {} ({url})", welcome.node));
        if !welcome.groups.contains(&self.group) {
            client.send(&self.join()).await?;
        }
        let heartbeat = Duration::from_secs((welcome.heartbeat_s / 2).clamp(1, 10));
        let mut unanswered = 0;
        loop {
            match tokio::time::timeout(heartbeat, client.next()).await {
                Ok(text) => {
                    unanswered = 0;
                    if let Some(end) = self.take(&text?)? {
                        return Ok(end);
                    }
                }
                Err(_) if unanswered == SILENT_HEARTBEATS => {
                    return Ok(End::Again { after_ms: 0, reason: format!("{url} has fallen silent") });
                }
                Err(_) => {
                    unanswered += 1;
                    client.send(&json!({ "type": "heartbeat" })).await?;
                }
            }
        }
    }

    fn hello(&self) -> Value {
        // The same client when it comes back, and no other one of its session.
        let mut hello = json!({ "type": "hello", "client": format!("tail-{}", std::process::id()) });
        if let Some(token) = &self.token {
            hello["session"] = token.as_str().into();
        }
        if let Some(position) = self.position {
            hello["resume"] = json!({ &self.group: position_json(position) });
        }
        hello
    }

    fn join(&self) -> Value {
        let mut join = json!({ "type": "join", "id": JOIN_ID, "group": self.group });
        if let Some(position) = self.position {
            join["since"] = position_json(position);
        }
        join
    }

    /// Takes a frame in; says when the connection is over.
    fn take(&mut self, text: &str) -> anyhow::Result<Option<End>> {
        let frame = Frame::parse(text)?;
        match &*frame.kind {
            "error" => return Ok(self.error(&frame)),
            "bye" => return Ok(Some(self.bye(&frame))),
            "displaced" => print::note(format_args!("another connection has taken this session")),
            _ if frame.group == self.group => self.of_group(text, &frame)?,
            _ => {}
        }
        Ok(None)
    }

    fn of_group(&mut self, text: &str, frame: &Frame<'_>) -> anyhow::Result<()> {
        let Frame { group, epoch, offset, reason, .. } = frame;
        match &*frame.kind {
            "joined" => {
                print::note(format_args!("joined {group} at {epoch}:{offset}"));
                match self.position {
                    None => self.position = at(frame),
                    Some(_) if frame.recovered => {}
                    Some(since) => {
                        print::note(format_args!("not everything since {}:{} is there", since.epoch, since.offset));
                    }
                }
            }
            "message" if frame.ephemeral => return line(text),
            "message" => return self.message(text, frame),
            "gap" => {
                let (from, to) = (frame.from.as_ref().map_or_else(String::new, Value::to_string), frame.to);
                print::note(format_args!(
                    "gap: messages {from} to {to} of {group} are not to be had any more ({reason})"
                ));
                self.position = at(frame).map(|position| Position { offset: to, ..position }).or(self.position);
            }
            "reset" => {
                print::note(format_args!("reset: {group} goes on after {epoch}:{offset} ({reason})"));
                self.position = at(frame).or(self.position);
            }
            "stale" => print::note(format_args!("stale: {group} is out of reach for this node, messages may be late")),
            "live" => print::note(format_args!("live: {group} is in reach again")),
            _ => {}
        }
        Ok(())
    }

    fn message(&mut self, text: &str, frame: &Frame<'_>) -> anyhow::Result<()> {
        let Some(position) = at(frame) else { bail!("a message without a position: {text}") };
        match self.position {
            Some(last) if last.epoch == position.epoch && position.offset <= last.offset => return Ok(()),
            Some(last) if last.epoch == position.epoch && position.offset != last.offset + 1 => {
                let (from, to) = (last.offset + 1, position.offset - 1);
                print::note(format_args!(
                    "HOLE: messages {from} to {to} of {} are missing and were not declared so",
                    frame.group
                ));
            }
            _ => {}
        }
        self.position = Some(position);
        line(text)
    }

    fn error(&mut self, frame: &Frame<'_>) -> Option<End> {
        let reason = format!("{} ({})", frame.message, frame.code_text());
        if frame.id != Some(JOIN_ID) {
            print::note(format_args!("{reason}"));
            return None;
        }
        let passing =
            frame.retry_after_ms.is_some() || matches!(&*frame.code_text(), "busy" | "unavailable" | "unknown_outcome");
        Some(if passing {
            End::Again { after_ms: frame.retry_after_ms.unwrap_or(0), reason }
        } else {
            End::Stop(reason)
        })
    }

    fn bye(&mut self, frame: &Frame<'_>) -> End {
        let reason = format!("the node said goodbye: {} ({})", frame.reason, frame.code_text());
        let lost = matches!(&*frame.code_text(), "session_ended" | "unauthorized");
        if frame.reconnect || (lost && self.own_token && self.token.take().is_some()) {
            End::Again { after_ms: frame.after_ms, reason }
        } else {
            End::Stop(reason)
        }
    }
}

fn line(text: &str) -> anyhow::Result<()> {
    // Line ends in JSON are only ever between tokens.
    print::line(text.replace(['\n', '\r'], " "))
}

fn at(frame: &Frame<'_>) -> Option<Position> {
    Some(Position { epoch: Epoch::parse(&frame.epoch).ok()?, offset: frame.offset })
}

fn position_json(position: Position) -> Value {
    json!({ "epoch": position.epoch.to_string(), "offset": position.offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail() -> Tail {
        Tail { group: "g".to_owned(), token: None, own_token: true, position: None }
    }

    /// Takes these frames in and gives the last end and the position.
    fn feed(tail: &mut Tail, frames: &[Value]) -> (Option<End>, Option<(u64, u64)>) {
        let ends: Vec<Option<End>> = frames.iter().map(|frame| tail.take(&frame.to_string()).unwrap()).collect();
        (ends.into_iter().next_back().flatten(), tail.position.map(|position| (position.epoch.0, position.offset)))
    }

    fn message(epoch: u64, offset: u64) -> Value {
        json!({ "type": "message", "group": "g", "epoch": Epoch(epoch).to_string(), "offset": offset, "data": null })
    }

    #[test]
    fn positions_follow_the_frames() {
        let mut tail = tail();
        let joined =
            json!({ "type": "joined", "group": "g", "epoch": Epoch(1).to_string(), "offset": 4, "recovered": false });
        assert_eq!(feed(&mut tail, &[joined]).1, Some((1, 4)));
        assert_eq!(feed(&mut tail, &[message(1, 5), message(1, 5), message(1, 3)]).1, Some((1, 5)));
        let other = json!({ "type": "message", "group": "h", "epoch": Epoch(9).to_string(), "offset": 9, "data": 1 });
        assert_eq!(feed(&mut tail, &[other]).1, Some((1, 5)));
        let gap = json!({ "type": "gap", "group": "g", "epoch": Epoch(1).to_string(), "from": 6, "to": 8, "reason": "trimmed" });
        assert_eq!(feed(&mut tail, &[gap, message(1, 9)]).1, Some((1, 9)));
        let typing = json!({ "type": "message", "group": "g", "ephemeral": true, "data": 1, "at_ms": 1 });
        assert_eq!(feed(&mut tail, &[typing]).1, Some((1, 9)), "it has no position");
        let reset =
            json!({ "type": "reset", "group": "g", "epoch": Epoch(2).to_string(), "offset": 0, "reason": "lost" });
        assert_eq!(feed(&mut tail, &[reset, message(2, 1)]).1, Some((2, 1)));
        assert_eq!(tail.hello()["resume"]["g"], json!({ "epoch": "0000000000000002", "offset": 1 }));
        assert_eq!(tail.join()["since"]["offset"], 1);
    }

    #[test]
    fn ends_are_told_apart() {
        let bye = |code: &str, reconnect| json!({ "type": "bye", "code": code, "reason": "r", "reconnect": reconnect, "after_ms": 7 });
        let error = |id: u64, code: &str| json!({ "type": "error", "id": id, "code": code, "message": "m" });
        let check = |frame: Value, expected: &str| {
            let mut tail = Tail { token: Some("t".to_owned()), ..tail() };
            let found = match feed(&mut tail, std::slice::from_ref(&frame)).0 {
                Some(End::Stop(_)) => "stop",
                Some(End::Again { .. }) => "again",
                None => "on",
            };
            assert_eq!(found, expected, "{frame}");
        };
        check(bye("draining", true), "again");
        check(bye("displaced", false), "stop");
        check(bye("session_ended", false), "again");
        check(error(1, "forbidden"), "stop");
        check(error(1, "unavailable"), "again");
        check(error(2, "forbidden"), "on");
        check(json!({ "type": "displaced" }), "on");
        let mut theirs = Tail { token: Some("t".to_owned()), own_token: false, ..tail() };
        assert!(matches!(feed(&mut theirs, &[bye("session_ended", false)]).0, Some(End::Stop(_))));
    }

    #[test]
    fn positions_parse() {
        assert_eq!(parse_position("00000000000000ff:12"), Ok(Position { epoch: Epoch(255), offset: 12 }));
        for bad in ["", "12", "ff:12", "00000000000000ff:", "00000000000000ff:x"] {
            assert!(parse_position(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn back_off_grows_and_ends() {
        for failures in [0, 1, 5, 1_000] {
            assert!((FIRST_BACK_OFF_MS / 2..=LONGEST_BACK_OFF_MS).contains(&back_off_ms(failures)));
        }
    }
}
