//! Readers of server-sent events among the subscribers: which frames they share, and which ids they get.

use super::*;
use crate::{
    gateway::client::outbox::{Queued, Reading},
    wire::{events, frame::Frame},
};

fn reader(connection: u64, groups: &[GroupName], places: &[Option<u64>]) -> Arc<Outbox> {
    reader_with(1 << 20, connection, groups, places)
}

fn reader_with(bytes: usize, connection: u64, groups: &[GroupName], places: &[Option<u64>]) -> Arc<Outbox> {
    let place = |offset: &Option<u64>| offset.map(|offset| Position { epoch: EPOCH, offset });
    let places: Vec<_> = places.iter().map(place).collect();
    let outbox = Outbox::new(connection, bytes, Ledger::new(1 << 30));
    Arc::new(outbox.of(Reading::new(groups, &places)))
}

/// An event in short words, with where it says that the reader is.
fn short_event(groups: &[GroupName], bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let data: serde_json::Value = serde_json::from_str(field("data: ").unwrap()).unwrap();
    let kind = data["type"].as_str().unwrap();
    assert_eq!(field("event: ").unwrap_or("message"), kind);
    let id = field("id: ").map(|id| events::places(groups, id).unwrap());
    let places = id.into_iter().flatten().map(|place| place.map_or("-".to_owned(), |place| place.offset.to_string()));
    format!("{kind} at {}", places.collect::<Vec<_>>().join(","))
}

async fn events_of(outbox: &Outbox, groups: &[GroupName], count: usize) -> Vec<String> {
    let mut got: Vec<String> = Vec::new();
    wait_until(&format!("{count} events are there"), || {
        got.extend(outbox.take().frames.iter().map(|seen| short_event(groups, seen.bytes())));
        got.len() >= count
    })
    .await;
    got
}

#[tokio::test]
async fn a_message_is_encoded_once_for_each_codec() {
    let bench = Bench::new().await;
    let chat = [group("chat:1")];
    let (plain, other_plain) = (outbox(1), outbox(2));
    let (events, other_events) = (reader(3, &chat, &[None]), reader(4, &chat, &[None]));
    let all = [&plain, &other_plain, &events, &other_events];
    for outbox in all {
        bench.joined(outbox, &chat[0], None).await;
        wait_until("it is told", || !outbox.take().frames.is_empty()).await;
    }
    bench.publish(&chat[0]).await;
    wait_until("all have it", || all.iter().all(|outbox| outbox.queued_bytes() > 0)).await;
    let [first, second, third, fourth] = all.map(|outbox| outbox.take().frames.remove(0));
    assert_eq!((first.at, third.at), (second.at, fourth.at));
    assert_ne!(first.at, third.at);
    assert_eq!(short_event(&chat, third.bytes()), "message at 1");
    bench.end().await;
}

/// `joined` says where the log is, and a reader that missed something is not there before it has had that.
#[tokio::test]
async fn an_id_is_where_a_reader_is_and_not_where_its_group_is() {
    let bench = Bench::new().await;
    let chat = [group("chat:1")];
    for _ in 0..3 {
        bench.publish(&chat[0]).await;
    }
    let (new, resumes) = (reader(1, &chat, &[None]), reader(2, &chat, &[Some(1)]));
    bench.joined(&new, &chat[0], None).await;
    assert_eq!(events_of(&new, &chat, 1).await, ["joined at 3"]);
    bench.joined(&resumes, &chat[0], Some(1)).await;
    assert_eq!(events_of(&resumes, &chat, 3).await, ["joined at 1", "message at 2", "message at 3"]);
    // What is gone is told, and passed.
    bench.script.trim(&chat[0], 1);
    let late = reader(3, &chat, &[Some(0)]);
    bench.joined(&late, &chat[0], Some(0)).await;
    assert_eq!(events_of(&late, &chat, 3).await, ["joined at 0", "gap at 2", "message at 3"]);
    bench.end().await;
}

#[tokio::test]
async fn an_id_of_several_groups_has_all_that_came_before_it() {
    let bench = Bench::new().await;
    let groups = [group("a"), group("b")];
    let both = reader(1, &groups, &[None, Some(0)]);
    bench.publish(&groups[1]).await;
    bench.joined(&both, &groups[0], None).await;
    assert_eq!(events_of(&both, &groups, 1).await, ["joined at 0,0"]);
    bench.joined(&both, &groups[1], Some(0)).await;
    assert_eq!(events_of(&both, &groups, 2).await, ["joined at 0,0", "message at 0,1"]);
    bench.publish(&groups[0]).await;
    assert_eq!(events_of(&both, &groups, 1).await, ["message at 1,1"]);
    bench.publish(&groups[1]).await;
    assert_eq!(events_of(&both, &groups, 1).await, ["message at 1,2"]);
    bench.end().await;
}

/// A message that found no room has not moved the reader: the next id would tell of what never came.
#[test]
fn what_is_not_queued_moves_nobody() {
    let groups = [group("a"), group("b")];
    let outbox = reader_with(1_000, 1, &groups, &[Some(1), Some(1)]);
    let frame = |text: &str| Frame::whole(bytes::Bytes::copy_from_slice(text.as_bytes()));
    let tell = |group: &GroupName, offset, text: &str| {
        let to = Some(Position { epoch: EPOCH, offset });
        outbox.tell(group, to, frame(text), |frame| outbox.offer(frame, None))
    };
    assert_eq!(tell(&groups[0], 2, &"x".repeat(300)), Queued::First);
    assert_eq!(tell(&groups[0], 3, &"x".repeat(300)), Queued::Full);
    assert_eq!(tell(&groups[1], 2, "y"), Queued::Later);
    let taken = outbox.take().frames;
    let last = std::str::from_utf8(taken[1].bytes()).unwrap();
    let id = last.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    let offsets = events::places(&groups, id).unwrap().into_iter().map(|place| place.unwrap().offset);
    assert_eq!(offsets.collect::<Vec<_>>(), [2, 2]);
}
