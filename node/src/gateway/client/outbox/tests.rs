mod orders;

use super::*;
use crate::{config::LimitsConfig, gateway::client::replays::Replays, metrics::Metrics};

/// What was written at once, for who looks at an outbox that has no socket.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) frames: Vec<Seen>,
    pub(crate) closing: Option<Closing>,
    pub(crate) behind: Vec<GroupName>,
}

/// A frame, and where its bytes were.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    frame: Frame,
    pub(crate) at: usize,
}

impl Seen {
    pub(crate) fn as_str(&self) -> &str {
        self.frame.as_str()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.frame.as_bytes()
    }

    pub(crate) fn is(&self, frame: &Frame) -> bool {
        self.frame == *frame
    }
}

/// Takes everything, each slice one frame.
#[derive(Debug, Default)]
struct Taker(Mutex<Vec<Seen>>);

impl RawSocket for Taker {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let frame = |slice: &IoSlice<'_>| Frame::whole(bytes::Bytes::copy_from_slice(slice));
        let seen = slices.iter().map(|slice| Seen { frame: frame(slice), at: slice.as_ptr() as usize });
        self.0.lock().unwrap().extend(seen);
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Outbox {
    /// Writes what the connection's task would write now.
    pub(crate) fn take(&self) -> Taken {
        let taker = Taker::default();
        let (_, Written { behind, closing }) = self.write_some(&taker);
        Taken { frames: taker.0.into_inner().unwrap(), closing, behind }
    }
}

/// With its header it has this number of bytes.
fn frame(bytes: usize) -> Frame {
    let header = if bytes < 128 { 2 } else { 4 };
    Frame::text(&"x".repeat(bytes - header))
}

fn lengths(taken: &Taken) -> Vec<usize> {
    taken.frames.iter().map(|seen| seen.frame.len()).collect()
}

#[test]
fn what_is_offered_leaves_room_for_what_has_to_be_taken() {
    let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
    assert_eq!(outbox.offer(frame(800), None), Queued::First, "alone");
    assert_eq!(outbox.offer(frame(3), None), Queued::Full);
    outbox.take();
    assert_eq!(outbox.offer(frame(300), None), Queued::First);
    assert_eq!(outbox.offer(frame(201), None), Queued::Full);
    assert_eq!(outbox.offer(frame(200), None), Queued::Later);
    assert!(outbox.push(frame(500)));
    assert_eq!(outbox.queued_bytes(), 1_000);
    assert!(!outbox.push(frame(3)), "the connection ends");
    assert_eq!(outbox.offer(frame(3), None), Queued::Ended);
    assert_eq!(outbox.take().closing.map(|closing| closing.reason), Some(Reason::SlowConsumer));
}

#[test]
fn who_does_not_read_is_closed_sooner_when_memory_is_short() {
    let ledger = Ledger::new(100_000);
    let outbox = Outbox::new(1, 16_000, ledger.clone());
    assert!(outbox.push(outbox.counted(frame(2_000))));
    assert_eq!(ledger.bytes(Account::Outboxes), 2_000);
    let _all = ledger.hold(Account::Requests, 100_000);
    assert!(!outbox.push(frame(3)), "there is more than a sixteenth of what may wait");
    assert_eq!(ledger.bytes(Account::Outboxes), 0);
    let other = Outbox::new(2, 16_000, ledger.clone());
    assert!(other.push(frame(900)) && other.push(frame(3)), "who reads goes on");
    drop(other.take());
    for _ in 0..PLACES_AT_ONCE {
        other.push(frame(3));
    }
    assert_eq!(ledger.bytes(Account::Outboxes), (PLACES_AT_ONCE * PLACE_BYTES) as u64);
    drop(other.take());
    assert_eq!(ledger.bytes(Account::Outboxes), 0);
}

#[tokio::test]
async fn a_replay_is_paid_for_until_its_batch_is_written() {
    let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
    let replays = Replays::new(&LimitsConfig::default(), Metrics::new());
    let mut page = replays.page().await.unwrap();
    outbox.offer(frame(100), Some(&mut page));
    outbox.offer(frame(200), Some(&mut page));
    outbox.push(frame(50));
    drop(page);
    assert_eq!(replays.held_bytes(), 300);
    assert_eq!(replays.held_bytes(), 300);
    assert_eq!(outbox.take().frames.len(), 3);
    assert_eq!(replays.held_bytes(), 0);
    let mut page = replays.page().await.unwrap();
    outbox.offer(frame(100), Some(&mut page));
    drop(page);
    outbox.cut(Closing::new(Reason::Idle));
    assert_eq!(replays.held_bytes(), 0);
}

#[test]
fn nothing_is_delivered_before_the_attachment_is_confirmed_but_what_needs_none() {
    let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
    outbox.push(frame(3));
    assert_eq!(outbox.take().frames.len(), 1, "there is no session yet");
    outbox.hold();
    outbox.confirm(7);
    outbox.push(frame(3));
    outbox.behind(GroupName::parse("g").unwrap());
    outbox.push_aside(frame(4));
    let batch = outbox.take();
    assert_eq!((lengths(&batch), batch.behind.len()), (vec![4], 0), "it is another episode");
    assert_eq!(outbox.queued_bytes(), 3);
    outbox.confirm(0);
    assert_eq!(lengths(&outbox.take()), [3]);
    outbox.hold();
    outbox.confirm(7);
    outbox.push(frame(3));
    outbox.close(Closing::new(Reason::Idle));
    let batch = outbox.take();
    assert!(batch.frames.is_empty() && batch.closing.is_some(), "the end comes, and not what waited");
    let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
    outbox.hold();
    outbox.confirm(7);
    outbox.push(frame(3));
    outbox.cut_with(frame(5), Closing::new(Reason::Displaced));
    assert_eq!(lengths(&outbox.take()), [5], "it is told why");
}

#[tokio::test]
async fn who_is_behind_is_something_to_do() {
    let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
    outbox.behind(GroupName::parse("g").unwrap());
    outbox.ready().await;
    assert_eq!(outbox.take().behind.len(), 1);
    assert!(outbox.take().behind.is_empty());
}

#[test]
fn what_is_ephemeral_goes_only_where_little_waits_and_ends_nothing() {
    let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
    assert_eq!(outbox.append_ephemeral(frame(400)), Queued::First, "it is alone");
    assert_eq!(outbox.append_ephemeral(frame(10)), Queued::Full);
    assert_eq!(lengths(&outbox.take()), [400]);
    assert_eq!(outbox.append(frame(200)), Queued::First);
    assert_eq!(outbox.append_ephemeral(frame(50)), Queued::Later);
    assert_eq!(outbox.append_ephemeral(frame(3)), Queued::Full, "a quarter is in use");
    assert_eq!(outbox.append(frame(700)), Queued::Later, "what is kept has all of it");
    assert_eq!(outbox.append_ephemeral(frame(3)), Queued::Full);
    let batch = outbox.take();
    assert_eq!((lengths(&batch), batch.closing), (vec![200, 50, 700], None));
    // Who may not be delivered to is not there.
    outbox.hold();
    outbox.confirm(7);
    assert_eq!(outbox.append_ephemeral(frame(3)), Queued::Full);
    assert_eq!(outbox.queued_bytes(), 0);
    outbox.close(Closing::new(Reason::Idle));
    assert_eq!(outbox.append_ephemeral(frame(3)), Queued::Ended);
}
