//! What is larger than a frame.

use super::*;
use crate::logic::request::GroupInfo;

const MESSAGE_BYTES: usize = 8 << 20;
/// More than 256 MiB.
const MESSAGES: u64 = 33;
/// Seconds as a rule; a busy machine and a program that is not optimised take longer.
const COPY_LIMIT: Duration = Duration::from_secs(180);

/// The slot of one large group is copied to a node that joins, which leads it when the other one goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_of_more_than_256_mib_moves() {
    let cluster = Cluster::new(ClusterCa::generate().unwrap());
    let config = |name: &str, seeds: &[&Node]| {
        let mut config = cluster.config(name, seeds);
        config.limits.message_bytes = MESSAGE_BYTES;
        config.namespaces.get_mut("default").unwrap().history_bytes = u32::MAX;
        config
    };
    let one = cluster.start_as("n1", config("n1", &[])).await.unwrap();
    let group = GroupName::parse("large").unwrap();
    let slot = usize::from(group.slot(SLOTS));
    wait_until("a primary", || map_of(&one).version > 0 && one.0.maps.current().is_some()).await;
    for number in 0..MESSAGES {
        let data = format!("\"{}\"", char::from(b'a' + (number % 26) as u8).to_string().repeat(MESSAGE_BYTES - 2));
        let message = NewMessage { data: data.into(), key: None };
        one.0.gateway.service.publish_one(&By::Server, &group, message, 1).await.unwrap();
    }
    let before = one.0.gateway.service.group(&group).await.unwrap();
    assert_eq!(before.kept, MESSAGES);
    let two = cluster.start_as("n2", config("n2", &[&one])).await.unwrap();
    let both = || map_of(&two).slots[slot].in_sync.len() == 2;
    wait_within(COPY_LIMIT, "two copies of the large slot", both).await;
    one.drain().await;
    one.shut_down().await;
    wait_until("a new primary", || map_of(&two).slots[slot].primary == *two.member()).await;
    let after: GroupInfo = two.0.gateway.service.group(&group).await.unwrap();
    assert_eq!((after.epoch, after.head, after.kept), (before.epoch, before.head, MESSAGES));
    let frames = two.0.gateway.metrics.peer.frames_received.get();
    assert!(frames > MESSAGES, "it came in {frames} frames");
    two.shut_down().await;
}
