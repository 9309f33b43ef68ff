//! A client's socket with its bounds: what comes in counts against the client's rate and its silence, what goes out is
//! what its outbox has, and an end is told by `bye` and a close code.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    connections::{Excess, Listed},
    outbox::{Closing, Outbox, WriteError, Written},
    stream::{ClientStream, Fault, Incoming},
};
use crate::{
    clock,
    id::GroupName,
    metrics::{Limit, Metrics},
    wire::{
        command::{ClientError, Command, Event},
        frame::Frame,
        plain::{self, Limits},
        reason::Reason,
    },
};

/// One open socket.
pub(super) struct Socket {
    stream: ClientStream,
    listed: Listed,
    metrics: Arc<Metrics>,
}

/// What the client did, where the socket goes on.
pub(super) enum Heard {
    /// It sent a frame, which is not counted yet.
    Frame(Bytes),
    /// It gave a sign of life.
    Sign,
}

/// Why the socket does not go on; nothing where the client is gone, or takes nothing any more.
pub(super) type Over = Option<Ending>;

/// How a connection ends that this node ends.
pub(super) struct Ending {
    /// Before the `bye`.
    frames: Vec<Frame>,
    closing: Closing,
    /// The WebSocket standard's own code, where it has one.
    fault: Option<Fault>,
}

impl Ending {
    pub(super) fn new(closing: Closing) -> Self {
        Self { frames: Vec::new(), closing, fault: None }
    }

    /// As the outbox says, if it says so.
    pub(super) fn of(outbox: &Outbox) -> Over {
        outbox.closing().map(Self::new)
    }

    /// For a client that does not keep to the protocol.
    pub(super) fn bad_frame(words: impl Into<String>) -> Self {
        Self::new(Closing::saying(Reason::BadFrame, words.into()))
    }

    fn broken(fault: Fault) -> Self {
        let (reason, words) = (fault.reason(), fault.reason().row().words);
        let error =
            ClientError { id: None, reason, message: words.to_owned(), detail: Vec::new(), retry_after_ms: None };
        Self { fault: Some(fault), ..Self::bad_frame(words) }.after(&Event::Error(error))
    }

    /// An event comes before the end.
    #[must_use]
    pub(super) fn after(mut self, event: &Event) -> Self {
        self.frames.push(plain::encode(event));
        self
    }

    /// For the count of those that were refused before `welcome`.
    pub(super) fn reason(&self) -> Reason {
        self.closing.reason
    }
}

impl Socket {
    pub(super) fn new(stream: ClientStream, listed: Listed, metrics: Arc<Metrics>) -> Self {
        Self { stream, listed, metrics }
    }

    /// What is due to the client.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.listed.outbox
    }

    /// When the client's session ends unless it is refreshed, in milliseconds since 1970.
    pub(super) fn expires(&self, at_ms: Option<u64>) {
        self.listed.expires(at_ms);
    }

    /// Waits for the client. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Heard, Over> {
        match self.stream.next().await {
            Incoming::Text(text) => Ok(Heard::Frame(text)),
            Incoming::Control => {
                self.counted()?;
                Ok(Heard::Sign)
            }
            Incoming::Fragments(count) => {
                for _ in 0..count {
                    self.counted()?;
                }
                Ok(Heard::Sign)
            }
            Incoming::Broken(fault) => Err(Some(Ending::broken(fault))),
            Incoming::Gone => Err(None),
        }
    }

    /// The client sent something that does not count against its rate.
    pub(super) fn heard(&self) {
        self.listed.heard(clock::mono_ms());
    }

    /// Counts something that the client sent. Where it is above the client's rate, in how many milliseconds there is room.
    pub(super) fn counted(&mut self) -> Result<Option<u64>, Over> {
        self.listed.counted().map_err(|Excess| Some(Ending::new(Closing::new(Reason::RateLimited))))
    }

    /// Writes what is due, and gives the groups that go on once it is written.
    pub(super) async fn write(&mut self) -> Result<Vec<GroupName>, Over> {
        goes_on(self.stream.write().await, &self.metrics).map_err(|closing| closing.map(Ending::new))
    }

    /// Tells the client that and why the connection ends, after what is queued, and closes it.
    pub(super) async fn end(self, ending: Ending) {
        let Ending { mut frames, closing, fault } = ending;
        count_end(&closing, &self.metrics);
        if fault == Some(Fault::TooLarge) {
            self.metrics.limit_hit(Limit::FrameBytes);
        }
        let Closing { reason, words, after_ms, code } = closing.clone();
        let close_code = fault.map_or(code, Fault::close_code);
        frames.push(plain::encode(&Event::Bye { reason, words: words.clone().into_owned(), after_ms }));
        frames.push(Frame::close(close_code, &words));
        self.listed.outbox.last(frames, closing);
        self.stream.end().await;
    }
}

/// The groups that go on after a write, or why the connection does not; nothing where the client is gone.
pub(super) fn goes_on(
    written: Result<Written, WriteError>,
    metrics: &Metrics,
) -> Result<Vec<GroupName>, Option<Closing>> {
    match written {
        Ok(Written { behind, closing: None }) => Ok(behind),
        Ok(Written { closing: Some(closing), .. }) => Err(Some(closing)),
        Err(WriteError::Gone) => Err(None),
        Err(WriteError::TimedOut) => {
            metrics.limit_hit(Limit::WriteTimeoutMs);
            metrics.connection_closed("write_timeout");
            Err(None)
        }
    }
}

/// Counts that this node ends a connection.
pub(super) fn count_end(closing: &Closing, metrics: &Metrics) {
    metrics.connection_closed(closing.reason.code());
    if closing.reason == Reason::SlowConsumer {
        metrics.limit_hit(Limit::OutboxBytes);
    }
}

/// Reads a frame.
pub(super) fn read(text: &Bytes, message_bytes: usize) -> Result<Command, ClientError> {
    match std::str::from_utf8(text) {
        Ok(text) => plain::decode(text, &Limits { message_bytes }),
        Err(_) => Err(ClientError {
            id: None,
            reason: Reason::BadJson,
            message: Reason::NotUtf8.row().words.to_owned(),
            detail: Vec::new(),
            retry_after_ms: None,
        }),
    }
}
