use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::{
    gateway::hub::tests::{Bench, group, outbox, wait_until},
    logic::request::{Ask as _, Push},
};

const SESSION: SessionId = SessionId(Uuid::from_u128(5));

fn record(last_used_ms: u64) -> SessionRecord {
    SessionRecord {
        id: SESSION,
        user: "u".to_owned(),
        created_ms: 0,
        expires_ms: 0,
        idle_ttl_ms: 0,
        last_used_ms,
        attributes: "{}".into(),
        groups: Default::default(),
        grants: Vec::new(),
    }
}

fn attachment(
    number: AttachmentNumber,
    connection: u64,
) -> (Attachment, Arc<Outbox>, watch::Receiver<Arc<SessionRecord>>) {
    let (sender, receiver) = watch::channel(Arc::new(record(10)));
    let outbox = outbox(connection);
    (Attachment { session: SESSION, number, outbox: Arc::clone(&outbox), record: sender }, outbox, receiver)
}

fn push(bench: &Bench, push: SessionPush) {
    bench.hub.attachments().push(SESSION.slot(8), SESSION, push);
}

fn displace(number: AttachmentNumber) -> SessionPush {
    SessionPush::Displace { attachment: number }
}

/// What the client gets last, and with which code it is closed.
fn goodbye(outbox: &Outbox) -> (Vec<String>, Option<Reason>) {
    let batch = outbox.take();
    (batch.frames.iter().map(|frame| frame.as_str().to_owned()).collect(), batch.closing.map(|closing| closing.reason))
}

fn said_displaced() -> (Vec<String>, Option<Reason>) {
    (vec![r#"{"type":"displaced"}"#.to_owned()], Some(Reason::Displaced))
}

async fn confirmed(bench: &Bench, number: AttachmentNumber) {
    wait_until("it is confirmed", || {
        bench.script.asked().contains(&(SESSION, ConfirmDisplaced { attachment: number }).into_request())
    })
    .await;
}

#[tokio::test]
async fn a_displaced_connection_is_cut_and_unsubscribed_before_it_is_confirmed() {
    let bench = Bench::new().await;
    let (attached, outbox, _record) = attachment(4, 1);
    bench.hub.attachments().insert(attached).unwrap();
    bench.joined(&outbox, &group("chat"), None).await;
    push(&bench, displace(3));
    confirmed(&bench, 3).await;
    assert!(!outbox.is_closing(), "an earlier one was meant");
    // All the way that a primary's news comes.
    bench.deliveries.deliver(SESSION.slot(8), 1, Push::Session(SESSION, displace(4))).await;
    confirmed(&bench, 4).await;
    assert_eq!(goodbye(&outbox), said_displaced(), "what was queued is dropped");
    assert!(bench.hub.membership().is_empty() && bench.hub.attachments().is_empty());
    bench.end().await;
}

#[tokio::test]
async fn a_later_attachment_here_displaces_the_earlier_in_whatever_order_they_come() {
    let bench = Bench::new().await;
    let attachments = bench.hub.attachments();
    let (four, outbox_4, _record) = attachment(4, 1);
    let (five, outbox_5, _record) = attachment(5, 2);
    let (three, outbox_3, _record) = attachment(3, 3);
    attachments.insert(four).unwrap();
    attachments.insert(five).unwrap();
    assert_eq!(goodbye(&outbox_4), said_displaced());
    assert_eq!(attachments.insert(three), Err(NotAttached::Displaced));
    assert_eq!(goodbye(&outbox_3), said_displaced());
    attachments.remove(SESSION, 4);
    assert_eq!((attachments.len(), outbox_5.is_closing()), (1, false));
    attachments.remove(SESSION, 5);
    assert!(attachments.is_empty());
    bench.end().await;
}

#[tokio::test]
async fn news_that_overtakes_the_attachment_is_not_forgotten() {
    let bench = Bench::new().await;
    let attachments = bench.hub.attachments();
    push(&bench, displace(4));
    let (four, outbox_4, _record) = attachment(4, 1);
    assert_eq!(attachments.insert(four), Err(NotAttached::Displaced));
    assert_eq!(goodbye(&outbox_4), said_displaced());
    for (used_ms, expected) in [(9, 10), (11, 11)] {
        push(&bench, SessionPush::Changed { record: record(used_ms) });
        let (five, _outbox, changed) = attachment(5, 2);
        attachments.insert(five).unwrap();
        assert_eq!(changed.borrow().last_used_ms, expected, "the later of the two records stands");
        attachments.remove(SESSION, 5);
    }
    push(&bench, SessionPush::Ended { reason: EndReason::Expired });
    let (six, outbox_6, _record) = attachment(6, 3);
    assert_eq!(attachments.insert(six), Err(NotAttached::Ended(EndReason::Expired)));
    assert_eq!(goodbye(&outbox_6), (vec![], Some(Reason::SessionEnded)));
    bench.end().await;
}

#[tokio::test]
async fn a_session_that_ends_or_changes_is_told_to_its_connection() {
    let bench = Bench::new().await;
    let (four, outbox, mut changed) = attachment(4, 1);
    bench.hub.attachments().insert(four).unwrap();
    changed.mark_unchanged();
    push(&bench, SessionPush::Changed { record: record(5) });
    assert!(changed.has_changed().unwrap());
    assert_eq!(changed.borrow().last_used_ms, 5);
    push(&bench, SessionPush::Ended { reason: EndReason::Ended });
    assert_eq!(goodbye(&outbox), (vec![], Some(Reason::SessionEnded)));
    assert!(bench.hub.attachments().is_empty());
    bench.end().await;
}

#[tokio::test]
async fn attachments_are_renewed() {
    let bench = Bench::new().await;
    let (four, outbox, _record) = attachment(4, 1);
    bench.hub.attachments().insert(four).unwrap();
    let renewal = Renew(vec![(SESSION, 4, outbox.connection)]).into_request();
    wait_until("it is renewed", || bench.script.asked().contains(&renewal)).await;
    bench.end().await;
}
