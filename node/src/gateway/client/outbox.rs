//! What is due to one connection: bounded, queued from anywhere without waiting, and written by whoever queued it or by the
//! connection's own task (`queue.rs` says whose turn it is).

mod queue;
mod reading;

use std::{
    borrow::Cow,
    fmt::Debug,
    future::poll_fn,
    io::{self, IoSlice},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::Notify;

use self::queue::{Queue, Wrote};
pub use self::reading::Reading;
use super::replays::Page;
use crate::{
    clock,
    gateway::door::transport::Transport,
    id::{GroupName, Position},
    logic::{memory::Level, request::EPHEMERAL_PART},
    memory::{Account, Hold, Ledger},
    permit::Permit,
    wire::{codec::Codec, frame::Frame, peer::Farewell, reason::Reason},
};

/// What a frame takes in a queue beside its text, or with it where that is short; counted for this number at a time.
const PLACE_BYTES: usize = 128;
const PLACES_AT_ONCE: usize = 128;
/// A connection may have one part in this number of its bound waiting while the node has no memory left.
const LESS_WHEN_FULL: usize = 16;
/// What a client that is being closed gets to take what is left.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What a connection's frames are written to. Anybody may write, one at a time; only the connection's task waits.
pub trait RawSocket: Debug + Send + Sync {
    /// Writes what the socket takes at once; `WouldBlock` where that is nothing.
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends what was taken and has not left; `WouldBlock` where that is not all of it.
    fn try_flush(&self) -> io::Result<()>;

    /// Waits until it may take something since it last did not. One task at a time.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl RawSocket for Transport {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write(slices)
    }

    fn try_flush(&self) -> io::Result<()> {
        self.try_flush()
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_writable(cx)
    }
}

/// One connection's queue. Its bound is in bytes; crossing it ends the connection (`SlowConsumer`). What can be had again
/// later is only offered: it may take half of it.
#[derive(Debug)]
pub struct Outbox {
    /// The connection's number on this node; unique for the process.
    pub connection: u64,
    codec: Codec,
    /// Of a reader of events.
    reading: Option<Box<Reading>>,
    limit_bytes: usize,
    permit: Arc<Permit>,
    /// The episode in which its attachment was confirmed last; [`FREE`] before it has a session, 0 before it is confirmed,
    /// [`FOLLOWS`] where it has none.
    confirmed: AtomicU64,
    ledger: Arc<Ledger>,
    state: Mutex<State>,
    wake: Notify,
}

/// No episode: what is due needs no session.
const FREE: u64 = u64::MAX;
/// Any episode: what is due is due to a reader, which no session attaches.
const FOLLOWS: u64 = u64::MAX - 1;

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    /// Where it is written to by whoever comes first. Without it only the connection's task writes.
    socket: Option<Arc<dyn RawSocket>>,
    /// What the places of the frames take, where they are many.
    places: Option<Hold>,
    /// What pays for the frames of replays here.
    replay: Option<Page>,
    /// Groups that go on when there is room.
    behind: Vec<GroupName>,
    closing: Option<Closing>,
    /// What is queued is the last that the client is told, and needs no permit.
    cut: bool,
    /// The close frame is queued.
    finished: bool,
    /// Nobody writes any more.
    over: bool,
}

impl State {
    fn clear(&mut self) {
        self.queue.clear();
        self.places = None;
        self.replay = None;
        self.behind.clear();
    }

    fn is_idle(&self, may: bool) -> bool {
        let due = self.queue.is_due(may) || may && !self.behind.is_empty();
        // What has not left a socket with a buffer of its own is waited for, too.
        !due && self.closing.is_none() && !self.queue.is_broken() && !self.queue.is_blocked()
    }

    fn is_ending(&self) -> bool {
        self.over || self.closing.is_some()
    }

    /// Writes what may be delivered.
    fn write(&mut self, may: bool, socket: &dyn RawSocket) -> Wrote {
        let wrote = self.queue.write(may, |slices| socket.try_write(slices), || socket.try_flush());
        if self.queue.is_empty() {
            (self.places, self.replay) = (None, None);
        }
        wrote
    }
}

/// What became of a frame that was queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queued {
    /// Nothing else was: whoever queued it has it written ([`Outbox::flush`]).
    First,
    /// It will be written with what is there already.
    Later,
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
    /// The close code.
    pub code: u16,
}

impl Closing {
    /// As the table says it.
    ///
    /// # Panics
    /// Where the reason ends no connection: it has no close code.
    pub fn new(reason: Reason) -> Self {
        let row = reason.row();
        let Some(code) = row.close else { panic!("{} ends no connection", row.code) };
        let after_ms = row.retry_ms.filter(|_| reason.comes_back()).unwrap_or(0);
        Self { reason, words: row.words.into(), after_ms, code }
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

    /// As a backend says that disconnects the client.
    pub fn by_backend(farewell: &Farewell) -> Self {
        let reason = if farewell.reconnect { Reason::Reconnect } else { Reason::Disconnected };
        let table = Self::new(reason);
        let code = farewell.close_code().unwrap_or(table.code);
        let words = farewell.words.clone().map_or(table.words, Cow::Owned);
        Self { reason, words, after_ms: farewell.after_ms.into(), code }
    }
}

/// What the connection's task has to do once all that is due is written.
#[derive(Debug, Default)]
pub struct Written {
    /// Groups that go on now.
    pub behind: Vec<GroupName>,
    /// The connection ends.
    pub closing: Option<Closing>,
}

/// Why what is due was not written whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteError {
    /// The client is gone.
    Gone,
    /// The client took nothing for too long.
    TimedOut,
}

impl Outbox {
    /// An empty queue, from which everything may be delivered.
    pub fn new(connection: u64, limit_bytes: usize, ledger: Arc<Ledger>) -> Self {
        let (permit, confirmed) = (Arc::default(), AtomicU64::new(FREE));
        let (codec, reading, state, wake) = (Codec::Plain, None, Mutex::default(), Notify::new());
        Self { connection, codec, reading, limit_bytes, ledger, permit, confirmed, state, wake }
    }

    /// The same for a WebSocket of this codec.
    #[must_use]
    pub fn told_by(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    /// The same for a reader of events, to which something is delivered while this node may deliver at all.
    #[must_use]
    pub fn of(self, reading: Reading) -> Self {
        let (codec, confirmed) = (reading.codec(), AtomicU64::new(FOLLOWS));
        Self { codec, confirmed, reading: Some(Box::new(reading)), ..self }
    }

    /// The same, from which something is delivered to who has a session only where this allows it.
    #[must_use]
    pub fn under(self, permit: Arc<Permit>) -> Self {
        Self { permit, ..self }
    }

    /// What is queued may be written here by whoever queues it, until [`Outbox::detach`].
    pub fn attach(&self, socket: Arc<dyn RawSocket>) {
        self.lock().socket = Some(socket);
    }

    /// The connection is over: nobody writes any more.
    pub fn detach(&self) {
        let mut state = self.lock();
        state.over = true;
        state.socket = None;
        state.clear();
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
        match self.confirmed.load(Ordering::Acquire) {
            FREE => true,
            FOLLOWS => self.permit.allows_any(),
            confirmed => self.permit.allows(confirmed),
        }
    }

    /// The form of the frames that are queued here.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Queues what the connection is told of a group, by `queue`, in one step with where that brings a reader.
    pub fn tell(
        &self,
        group: &GroupName,
        moves_to: Option<Position>,
        frame: Frame,
        queue: impl FnOnce(Frame) -> Queued,
    ) -> Queued {
        match (&self.reading, moves_to) {
            (Some(reading), Some(to)) if self.codec == Codec::EventsOfMany => {
                reading.moves(group, to, |id| queue(self.counted(frame.after(&id))))
            }
            _ => queue(frame),
        }
    }

    /// Where a reader is with a `joined` that has this position: there, or where it was, if what it missed follows.
    pub fn joined_at(&self, group: &GroupName, position: Position) -> Position {
        self.reading.as_ref().map_or(position, |reading| reading.joined_at(group, position))
    }

    /// A frame that counts in the node's memory for as long as it waits anywhere.
    pub fn counted(&self, frame: Frame) -> Frame {
        self.ledger.frame(frame)
    }

    /// What may wait here: less while the node has no memory left, so that those who do not read give theirs back first.
    fn limit_now(&self, queued_bytes: usize) -> usize {
        let little = self.limit_bytes / LESS_WHEN_FULL;
        if queued_bytes > little && self.ledger.level() == Level::Full { little } else { self.limit_bytes }
    }

    /// Queues a frame and has the connection's task write it. False where the connection is ending (now or before): nothing
    /// more reaches it.
    pub fn push(&self, frame: Frame) -> bool {
        match self.append(frame) {
            Queued::First => self.wake.notify_one(),
            Queued::Later => {}
            Queued::Full | Queued::Ended => return false,
        }
        true
    }

    /// Queues a frame. What does not fit ends the connection.
    pub fn append(&self, frame: Frame) -> Queued {
        let mut state = self.lock();
        if state.is_ending() {
            return Queued::Ended;
        }
        let limit = self.limit_now(state.queue.bytes());
        if state.queue.bytes() + frame.len() > limit && !self.makes_room(&mut state, limit.saturating_sub(frame.len()))
        {
            let queued = state.queue.bytes();
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
            return Queued::Ended;
        }
        self.queue(&mut state, frame)
    }

    /// What is queued may only not have been written yet. Whether no more than this is left then.
    fn makes_room(&self, state: &mut State, bytes: usize) -> bool {
        if !state.queue.is_blocked() {
            self.write_now(state);
        }
        state.queue.bytes() <= bytes
    }

    /// Queues a frame that is no delivery: it goes also while nothing may be delivered, before what waits for that.
    pub fn push_aside(&self, frame: Frame) -> bool {
        let mut state = self.lock();
        let fits = state.queue.bytes() + frame.len() <= self.limit_bytes;
        if !fits || state.is_ending() || self.may_deliver() {
            drop(state);
            return self.push(frame);
        }
        state.queue.push_aside(frame);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// What the WebSocket itself answers (a pong, a close): before all else, and at once if the socket takes it. Where the
    /// connection ends it is dropped.
    pub fn control(&self, frame: Frame) {
        if !self.control_if_room(&frame) {
            self.push(frame);
        }
    }

    /// The same for what the client can do without. False where there was no room.
    pub fn control_if_room(&self, frame: &Frame) -> bool {
        let mut state = self.lock();
        if state.is_ending() {
            return true;
        }
        let fits = state.queue.bytes() + frame.len() <= self.limit_bytes;
        if fits {
            state.queue.push_aside(frame.clone());
            self.write_now(&mut state);
        }
        fits
    }

    /// Queues a frame if it fits into half of the queue, or is alone in it. `page` pays for it where it is of a replay.
    pub fn offer(&self, frame: Frame, page: Option<&mut Page>) -> Queued {
        let mut state = self.lock();
        if state.is_ending() {
            return Queued::Ended;
        }
        let half = self.limit_bytes / 2;
        let fits = |state: &State| state.queue.bytes() == 0 || state.queue.bytes() + frame.len() <= half;
        if !fits(&state) {
            self.makes_room(&mut state, 0);
            if !fits(&state) {
                return Queued::Full;
            }
        }
        if let Some(paid) = page.and_then(|page| page.split(frame.len())) {
            match &mut state.replay {
                Some(replay) => replay.merge(paid),
                none => *none = Some(paid),
            }
        }
        self.queue(&mut state, frame)
    }

    /// Queues a frame that nobody asks for again: only where it may be delivered now, and where it is alone or less than a
    /// quarter of what may wait is in use. So it is never what a connection is closed for.
    pub fn append_ephemeral(&self, frame: Frame) -> Queued {
        let mut state = self.lock();
        if state.is_ending() {
            return Queued::Ended;
        }
        let most = self.limit_now(state.queue.bytes()) / EPHEMERAL_PART;
        let room = most.saturating_sub(frame.len());
        let fits = state.queue.bytes() <= room || self.makes_room(&mut state, room);
        if fits && self.may_deliver() { self.queue(&mut state, frame) } else { Queued::Full }
    }

    /// Has the owner's task see to it that the group goes on when all that is queued was written.
    pub fn behind(&self, group: GroupName) {
        self.lock().behind.push(group);
        self.wake.notify_one();
    }

    fn queue(&self, state: &mut State, frame: Frame) -> Queued {
        let first = state.queue.push(frame);
        let count = state.queue.count();
        if count.is_multiple_of(PLACES_AT_ONCE) {
            let bytes = count * PLACE_BYTES;
            match &mut state.places {
                Some(places) => places.resize(bytes),
                none => *none = Some(self.ledger.hold(Account::Outboxes, bytes)),
            }
        }
        if first { Queued::First } else { Queued::Later }
    }

    /// Writes what is queued, as far as it may be delivered and the socket takes it at once; the rest is left to the
    /// connection's task.
    pub fn flush(&self) {
        let mut state = self.lock();
        if !state.is_ending() {
            self.write_now(&mut state);
        }
    }

    /// Whoever finds that the socket takes nothing more tells the connection's task, before anybody else can look.
    fn write_now(&self, state: &mut State) {
        if state.queue.is_blocked() {
            return;
        }
        // Taken out for the while of the write: a count of its holders would be changed for each delivery.
        let socket = state.socket.take();
        let wrote = socket.as_deref().map(|socket| state.write(self.may_deliver(), socket));
        state.socket = socket;
        if wrote != Some(Wrote::All) {
            self.wake.notify_one();
        }
    }

    /// Writes what is due, waiting for the socket where it takes nothing: `patience` at most for each time, and less in
    /// all where the connection ends. Where it ends, what may not be delivered is dropped; where it is cut off, nobody waits before
    /// the close frame is queued. Only the owner's task.
    pub async fn write(&self, socket: &dyn RawSocket, patience: Duration) -> Result<Written, WriteError> {
        let mut last = None;
        loop {
            match self.write_some(socket) {
                (Wrote::All, written) => return Ok(written),
                (Wrote::Broken, _) => return Err(WriteError::Gone),
                (Wrote::Blocked, _) => {}
            }
            let until = last.unwrap_or_else(|| clock::deadline(patience));
            tokio::select! {
                writable = poll_fn(|cx| socket.poll_writable(cx)) => writable.map_err(|_| WriteError::Gone)?,
                () = tokio::time::sleep_until(until) => return Err(WriteError::TimedOut),
                () = self.ending(), if last.is_none() => {
                    let state = self.lock();
                    if state.cut && !state.finished {
                        return Ok(Written { behind: Vec::new(), closing: state.closing.clone() });
                    }
                    last = Some(clock::deadline(patience.min(CLOSE_LIMIT)));
                }
            }
        }
    }

    fn write_some(&self, socket: &dyn RawSocket) -> (Wrote, Written) {
        let mut state = self.lock();
        let may = self.may_deliver() || state.cut;
        if !may && state.is_ending() {
            state.queue.drop_frames();
        }
        let wrote = state.write(may, socket);
        let behind = if may && wrote == Wrote::All { std::mem::take(&mut state.behind) } else { Vec::new() };
        (wrote, Written { behind, closing: state.closing.clone() })
    }

    /// Ends the connection after what is queued. The first reason stands.
    pub fn close(&self, closing: Closing) {
        self.lock().closing.get_or_insert(closing);
        self.wake.notify_one();
    }

    /// Ends the connection and drops what is queued: nothing more reaches the client but the `bye`.
    pub fn cut(&self, closing: Closing) {
        self.cut_off(None, closing);
    }

    /// Ends the connection, drops what is queued and says one last thing before the `bye`.
    pub fn cut_with(&self, frame: Frame, closing: Closing) {
        self.cut_off(Some(frame), closing);
    }

    fn cut_off(&self, last: Option<Frame>, closing: Closing) {
        let mut state = self.lock();
        state.clear();
        if let Some(frame) = last {
            state.queue.push(frame);
        }
        state.cut = true;
        state.closing.get_or_insert(closing);
        drop(state);
        self.wake.notify_one();
    }

    /// The last frames, for the connection's task, which writes them: nothing comes after them. What is queued and may be delivered goes
    /// before them.
    pub fn last(&self, frames: impl IntoIterator<Item = Frame>, closing: Closing) {
        let mut state = self.lock();
        if !(state.cut || self.may_deliver()) {
            state.queue.drop_frames();
        }
        for frame in frames {
            state.queue.push(frame);
        }
        (state.cut, state.finished) = (true, true);
        state.closing.get_or_insert(closing);
    }

    /// Why the connection is ending, if it is.
    pub fn closing(&self) -> Option<Closing> {
        self.lock().closing.clone()
    }

    /// Whether the connection is ending.
    pub fn is_closing(&self) -> bool {
        self.lock().is_ending()
    }

    /// Waits until the connection is ending. Only the owner's task waits; cancel-safe.
    pub async fn ending(&self) {
        while !self.is_closing() {
            self.wake.notified().await;
        }
    }

    /// How many bytes are queued.
    pub fn queued_bytes(&self) -> usize {
        self.lock().queue.bytes()
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

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock, and the queue is whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests;
