//! What is due to one connection: bounded, pushed to from anywhere without waiting, emptied in one write by the
//! connection's own task.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::replays::Page;
use crate::{
    id::GroupName,
    logic::memory::Level,
    memory::{Account, Hold, Ledger},
    permit::Permit,
    wire::reason::Reason,
};

/// What a frame takes in a queue beside its text, or with it where that is short; counted for this number at a time.
const PLACE_BYTES: usize = 128;
const PLACES_AT_ONCE: usize = 128;
/// A connection may have one part in this number of its bound waiting while the node has no memory left.
const LESS_WHEN_FULL: usize = 16;

/// One connection's queue. Its bound is in bytes; crossing it ends the connection (`SlowConsumer`). What can be had again
/// later is only offered: it may take half of it.
#[derive(Debug)]
pub struct Outbox {
    /// The connection's number on this node; unique for the process.
    pub connection: u64,
    limit_bytes: usize,
    permit: Arc<Permit>,
    /// The episode in which its attachment was confirmed last; [`FREE`] before it has a session, 0 before it is confirmed.
    confirmed: AtomicU64,
    ledger: Arc<Ledger>,
    state: Mutex<State>,
    wake: Notify,
}

/// No episode: what is due needs no session.
const FREE: u64 = u64::MAX;

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Utf8Bytes>,
    /// Goes before them, also while these may not be delivered.
    asides: VecDeque<Utf8Bytes>,
    bytes: usize,
    /// What the places of the frames take, where they are many.
    places: Option<Hold>,
    /// What pays for the frames of replays here.
    replay: Option<Page>,
    /// Groups that go on when there is room.
    behind: Vec<GroupName>,
    closing: Option<Closing>,
    cut: bool,
}

impl State {
    fn clear(&mut self) {
        self.frames.clear();
        self.asides.clear();
        self.places = None;
        self.bytes = 0;
        self.replay = None;
        self.behind.clear();
    }

    fn is_idle(&self, may: bool) -> bool {
        let due = may && !(self.frames.is_empty() && self.behind.is_empty());
        !due && self.asides.is_empty() && self.closing.is_none()
    }
}

/// What became of a frame that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// It is queued.
    Queued,
    /// There is no room for it now.
    Full,
    /// The connection is ending: nothing more reaches it.
    Ended,
}

/// Why the connection is to end; the owner's task writes what is queued, then `bye`, and closes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closing {
    /// Why; also whether the client is to come back.
    pub reason: Reason,
    /// For people.
    pub words: Cow<'static, str>,
    /// When it is to come back, in milliseconds from now.
    pub after_ms: u64,
}

impl Closing {
    /// As the table says it.
    ///
    /// # Panics
    /// Where the reason ends no connection: it has no close code.
    pub fn new(reason: Reason) -> Self {
        let row = reason.row();
        assert!(row.close.is_some(), "{} ends no connection", row.code);
        let after_ms = row.retry_ms.filter(|_| reason.comes_back()).unwrap_or(0);
        Self { reason, words: row.words.into(), after_ms }
    }

    /// In words that fit the occasion.
    pub fn saying(reason: Reason, words: impl Into<Cow<'static, str>>) -> Self {
        Self { words: words.into(), ..Self::new(reason) }
    }

    /// The client is to come back after this time.
    #[must_use]
    pub fn after(self, after_ms: u64) -> Self {
        Self { after_ms, ..self }
    }
}

/// What the connection's task finds.
#[derive(Debug, Default)]
pub struct Batch {
    /// To be written, in this order, in one write.
    pub frames: Vec<Utf8Bytes>,
    /// Then the connection ends.
    pub closing: Option<Closing>,
    /// Groups that go on once this is written.
    pub behind: Vec<GroupName>,
    /// What pays for the frames of replays among these; to be dropped when they are written.
    pub replay: Option<Page>,
    /// What the places of the frames take, until they are written.
    pub places: Option<Hold>,
}

impl Outbox {
    /// An empty queue, from which everything may be delivered.
    pub fn new(connection: u64, limit_bytes: usize, ledger: Arc<Ledger>) -> Self {
        let (permit, confirmed) = (Arc::default(), AtomicU64::new(FREE));
        Self { connection, limit_bytes, ledger, permit, confirmed, state: Mutex::default(), wake: Notify::new() }
    }

    /// The same, from which something is delivered to who has a session only where this allows it.
    #[must_use]
    pub fn under(self, permit: Arc<Permit>) -> Self {
        Self { permit, ..self }
    }

    /// The connection has a session: nothing is delivered before that is confirmed.
    pub fn hold(&self) {
        self.confirmed.store(0, Ordering::Release);
    }

    /// The connection's attachment was confirmed in this episode of the node's lease.
    pub fn confirm(&self, episode: u64) {
        self.confirmed.store(episode, Ordering::Release);
        self.wake.notify_one();
    }

    /// How long what is read from the client now may have lain there ([`Permit::late_ms`]).
    pub fn late_ms(&self) -> u64 {
        self.permit.late_ms()
    }

    /// Whether a write may begin.
    fn may_deliver(&self) -> bool {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        confirmed == FREE || self.permit.allows(confirmed)
    }

    /// A frame that counts in the node's memory for as long as it waits anywhere.
    pub fn counted(&self, frame: Utf8Bytes) -> Utf8Bytes {
        self.ledger.frame(frame)
    }

    /// What may wait here: less while the node has no memory left, so that those who do not read give theirs back first.
    fn limit_now(&self, queued_bytes: usize) -> usize {
        let little = self.limit_bytes / LESS_WHEN_FULL;
        if queued_bytes > little && self.ledger.level() == Level::Full { little } else { self.limit_bytes }
    }

    /// Queues a frame. False where the connection is ending (now or before): nothing more reaches it.
    pub fn push(&self, frame: Utf8Bytes) -> bool {
        let mut state = self.lock();
        if state.closing.is_some() {
            return false;
        }
        let limit = self.limit_now(state.bytes);
        if state.bytes + frame.len() > limit {
            let queued = state.bytes;
            state.clear();
            state.cut = true;
            state.closing = Some(Closing::saying(
                Reason::SlowConsumer,
                format!(
                    "{queued} bytes were waiting for this connection, the limit is {limit}: read faster, or join fewer groups"
                ),
            ));
            drop(state);
            self.wake.notify_one();
            return false;
        }
        self.queue(state, frame);
        true
    }

    /// Queues a frame that is no delivery: it goes also while nothing may be delivered, before what waits for that.
    pub fn push_aside(&self, frame: Utf8Bytes) -> bool {
        let mut state = self.lock();
        let fits = state.bytes + frame.len() <= self.limit_bytes;
        if !fits || state.closing.is_some() || self.may_deliver() {
            drop(state);
            return self.push(frame);
        }
        state.bytes += frame.len();
        state.asides.push_back(frame);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// Queues a frame if it fits into half of the queue, or is alone in it. `page` pays for it where it is of a replay.
    pub fn offer(&self, frame: Utf8Bytes, page: Option<&mut Page>) -> Offered {
        let mut state = self.lock();
        if state.closing.is_some() {
            return Offered::Ended;
        }
        if state.bytes > 0 && state.bytes + frame.len() > self.limit_bytes / 2 {
            return Offered::Full;
        }
        if let Some(paid) = page.and_then(|page| page.split(frame.len())) {
            match &mut state.replay {
                Some(replay) => replay.merge(paid),
                none => *none = Some(paid),
            }
        }
        self.queue(state, frame);
        Offered::Queued
    }

    /// Has the owner's task see to it that the group goes on when all that is queued was written.
    pub fn behind(&self, group: GroupName) {
        self.lock().behind.push(group);
        self.wake.notify_one();
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, frame: Utf8Bytes) {
        state.bytes += frame.len();
        state.frames.push_back(frame);
        let count = state.frames.len();
        if count.is_multiple_of(PLACES_AT_ONCE) {
            let bytes = count * PLACE_BYTES;
            match &mut state.places {
                Some(places) => places.resize(bytes),
                none => *none = Some(self.ledger.hold(Account::Outboxes, bytes)),
            }
        }
        let first = count == 1;
        drop(state);
        if first {
            self.wake.notify_one();
        }
    }

    /// Ends the connection after what is queued. The first reason stands.
    pub fn close(&self, closing: Closing) {
        self.lock().closing.get_or_insert(closing);
        self.wake.notify_one();
    }

    /// Ends the connection and drops what is queued: nothing more reaches the client but the `bye`.
    pub fn cut(&self, closing: Closing) {
        let mut state = self.lock();
        state.clear();
        state.cut = true;
        state.closing.get_or_insert(closing);
        drop(state);
        self.wake.notify_one();
    }

    /// Ends the connection, drops what is queued and says one last thing before the `bye`.
    pub fn cut_with(&self, frame: Utf8Bytes, closing: Closing) {
        let mut state = self.lock();
        state.clear();
        state.bytes = frame.len();
        state.frames.push_back(frame);
        state.cut = true;
        state.closing.get_or_insert(closing);
        drop(state);
        self.wake.notify_one();
    }

    /// Whether the connection is ending.
    pub fn is_closing(&self) -> bool {
        self.lock().closing.is_some()
    }

    /// Whether nothing more but the `bye` may reach the client, also of what was taken before.
    pub fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// Waits until the connection is ending. Only the owner's task waits; cancel-safe.
    pub async fn ending(&self) {
        while !self.is_closing() {
            self.wake.notified().await;
        }
    }

    /// How many bytes are queued.
    pub fn queued_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Waits until there is something to do. Only the owner's task waits; cancel-safe.
    pub async fn ready(&self) {
        loop {
            if !self.lock().is_idle(self.may_deliver()) {
                return;
            }
            self.wake.notified().await;
        }
    }

    /// Takes all that is queued and may be delivered now: to be called right before it is written. Where the connection ends,
    /// the rest is dropped.
    pub fn take(&self) -> Batch {
        let mut state = self.lock();
        let may = self.may_deliver() || state.cut;
        if !may && state.closing.is_none() {
            let frames: Vec<_> = std::mem::take(&mut state.asides).into();
            state.bytes -= frames.iter().map(|frame| frame.len()).sum::<usize>();
            return Batch { frames, ..Batch::default() };
        }
        if !may {
            state.frames.clear();
        }
        while let Some(aside) = state.asides.pop_back() {
            state.frames.push_front(aside);
        }
        state.bytes = 0;
        Batch {
            frames: std::mem::take(&mut state.frames).into(),
            closing: state.closing.clone(),
            behind: std::mem::take(&mut state.behind),
            replay: state.replay.take(),
            places: state.places.take(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock, and the queue is whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::LimitsConfig, gateway::client::replays::Replays, metrics::Metrics};

    fn frame(bytes: usize) -> Utf8Bytes {
        "x".repeat(bytes).into()
    }

    #[test]
    fn what_is_offered_leaves_room_for_what_has_to_be_taken() {
        let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
        assert_eq!(outbox.offer(frame(800), None), Offered::Queued, "alone");
        assert_eq!(outbox.offer(frame(1), None), Offered::Full);
        outbox.take();
        assert_eq!(outbox.offer(frame(300), None), Offered::Queued);
        assert_eq!(outbox.offer(frame(201), None), Offered::Full);
        assert_eq!(outbox.offer(frame(200), None), Offered::Queued);
        assert!(outbox.push(frame(500)));
        assert_eq!(outbox.queued_bytes(), 1_000);
        assert!(!outbox.push(frame(1)), "the connection ends");
        assert_eq!(outbox.offer(frame(1), None), Offered::Ended);
        assert_eq!(outbox.take().closing.map(|closing| closing.reason), Some(Reason::SlowConsumer));
    }

    #[test]
    fn who_does_not_read_is_closed_sooner_when_memory_is_short() {
        let ledger = Ledger::new(100_000);
        let outbox = Outbox::new(1, 16_000, ledger.clone());
        assert!(outbox.push(outbox.counted(frame(2_000))));
        assert_eq!(ledger.bytes(Account::Outboxes), 2_000);
        let _all = ledger.hold(Account::Requests, 100_000);
        assert!(!outbox.push(frame(1)), "there is more than a sixteenth of what may wait");
        assert_eq!(ledger.bytes(Account::Outboxes), 0);
        let other = Outbox::new(2, 16_000, ledger.clone());
        assert!(other.push(frame(900)) && other.push(frame(1)), "who reads goes on");
        drop(other.take());
        for _ in 0..PLACES_AT_ONCE {
            other.push(frame(1));
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
        let batch = outbox.take();
        assert_eq!((batch.frames.len(), replays.held_bytes()), (3, 300));
        drop(batch);
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
        outbox.push(frame(1));
        assert_eq!(outbox.take().frames.len(), 1, "there is no session yet");
        outbox.hold();
        outbox.confirm(7);
        outbox.push(frame(1));
        outbox.behind(GroupName::parse("g").unwrap());
        outbox.push_aside(frame(2));
        let batch = outbox.take();
        assert_eq!((batch.frames, batch.behind.len()), (vec![frame(2)], 0), "it is another episode");
        assert_eq!(outbox.queued_bytes(), 1);
        outbox.confirm(0);
        assert_eq!(outbox.take().frames, vec![frame(1)]);
        outbox.hold();
        outbox.confirm(7);
        outbox.push(frame(1));
        outbox.close(Closing::new(Reason::Idle));
        let batch = outbox.take();
        assert!(batch.frames.is_empty() && batch.closing.is_some(), "the end comes, and not what waited");
        let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
        outbox.hold();
        outbox.confirm(7);
        outbox.push(frame(1));
        outbox.cut_with(frame(3), Closing::new(Reason::Displaced));
        assert_eq!(outbox.take().frames, vec![frame(3)], "it is told why");
    }

    #[tokio::test]
    async fn who_is_behind_is_something_to_do() {
        let outbox = Outbox::new(1, 1_000, Ledger::new(1 << 30));
        outbox.behind(GroupName::parse("g").unwrap());
        outbox.ready().await;
        assert_eq!(outbox.take().behind.len(), 1);
        assert!(outbox.take().behind.is_empty());
    }
}
