//! What is kept nowhere.

use super::*;
use crate::{
    deliveries,
    gateway::client::outbox::Reading,
    logic::entry::EphemeralMessage,
    metrics::{EphemeralDrop, EphemeralMetrics},
};

fn typing(group: &GroupName, count: usize) -> Push {
    let message = EphemeralMessage { data: "\"typing\"".into(), from: None, at_ms: 1 };
    let messages = std::iter::repeat_n(message, count).collect();
    Push::Group(group.clone(), GroupPush::Ephemeral { messages })
}

#[tokio::test]
async fn it_is_told_to_who_is_there_and_moves_nobody() {
    let bench = Bench::new().await;
    let (chat, other) = (group("chat:1"), group("other"));
    let (a, b) = (outbox(1), outbox(2));
    let one = Outbox::new(3, 1 << 20, Ledger::new(1 << 30)).of(Reading::new(std::slice::from_ref(&chat), &[None]));
    let both = [chat.clone(), other.clone()];
    let many = Outbox::new(4, 1 << 20, Ledger::new(1 << 30)).of(Reading::new(&both, &[None, None]));
    let readers = [Arc::new(one), Arc::new(many)];
    bench.push(&chat, typing(&chat, 1)).await;
    bench.joined(&a, &chat, None).await;
    bench.joined(&b, &other, None).await;
    for reader in &readers {
        bench.joined(reader, &chat, None).await;
    }
    bench.push(&chat, typing(&chat, 2)).await;
    bench.publish(&chat).await;
    assert_eq!(frames(&a, 4).await, ["joined 0", "message", "message", "message 1"]);
    assert_eq!(frames(&b, 1).await, ["joined 0"]);
    let counted = &bench.metrics.hub;
    assert_eq!((counted.ephemeral.deliveries.get(), counted.messages.get(), counted.deliveries.get()), (6, 1, 3));
    for reader in &readers {
        let mut told = Vec::new();
        wait_until("the reader has all of it", || {
            told.extend(reader.take().frames.iter().map(|frame| String::from_utf8_lossy(frame.bytes()).into_owned()));
            told.concat().contains("\"offset\":1,")
        })
        .await;
        let told = told.concat();
        let events: Vec<_> = told.split("\n\n").filter(|event| event.contains("\"ephemeral\":true")).collect();
        assert_eq!(events.len(), 2, "{told}");
        assert!(events.iter().all(|event| !event.contains("id: ") && !event.contains("event: ")), "{told}");
    }
    bench.end().await;
}

#[tokio::test]
async fn who_reads_slowly_does_without_it_and_stays_as_it_was() {
    let bench = Bench::new().await;
    for name in ["chat:1", "lag:1"] {
        let group = group(name);
        let slow = Arc::new(Outbox::new(1, 4_000, Ledger::new(1 << 30)));
        bench.joined(&slow, &group, None).await;
        let before = bench.metrics.hub.ephemeral.drops(EphemeralDrop::Client);
        bench.push(&group, typing(&group, 500)).await;
        bench.publish(&group).await;
        let dropped = || bench.metrics.hub.ephemeral.drops(EphemeralDrop::Client) - before;
        wait_until("most of them are dropped", || dropped() > 400).await;
        let told = frames(&slow, 2).await;
        assert!(slow.queued_bytes() < 1_000, "a quarter");
        assert_eq!((told[0].as_str(), told.last().unwrap().as_str()), ("joined 0", "message 1"), "{name}");
        assert_eq!(told.len() as u64, 2 + 500 - dropped());
        assert!(!slow.is_closing());
        bench.hub.left_all(1).await;
    }
    let counted = &bench.metrics.hub;
    assert_eq!((counted.lagged.get(), counted.dropped.get()), (0, 0));
    bench.end().await;
}

#[tokio::test]
async fn it_waits_for_no_shard() {
    let metrics = EphemeralMetrics::default();
    let (deliveries, arrivals) = deliveries::queues(1, metrics.clone());
    let chat = group("chat");
    for _ in 0..5_000 {
        deliveries.deliver(0, 1, typing(&chat, 1)).await;
    }
    let waiting = arrivals.shards[0].len();
    assert_eq!(metrics.drops(EphemeralDrop::Hub), 5_000 - waiting as u64);
    assert!(waiting <= arrivals.shards[0].max_capacity() / 4 + 1, "{waiting}");
}
