//! The WebSocket under one connection: frames in, batches out, and an end that the client gets to hear. A seam, so that
//! what lies beneath can be exchanged when measurement asks for it.
//!
//! The upgrade is done here and not by axum, for three reasons: its task is one of ours (awaited at shut-down), nothing of
//! the HTTP request stays in memory with it, and the bare connection can be reached when the WebSocket's own state is
//! broken: closing a connection while the client still sends makes the kernel reset it, and the `bye` would be lost.

use std::{future::poll_fn, io::ErrorKind, pin::Pin, task::Poll, time::Duration};

use axum::{body::Body, extract::Request, http, response::Response};
use bytes::Bytes;
use futures_util::{Sink, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::ProtocolError,
        handshake::server::create_response,
        protocol::{
            CloseFrame, Role, WebSocketConfig,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};

use super::{fragments::Fragments, outbox::Outbox};
use crate::{gateway::door::reasons::Refused, wire::reason::Reason};

/// Held by every connection; larger frames get a buffer of their own while they arrive.
const READ_BUFFER_BYTES: usize = 2_048;

/// A burst leaves in writes of this size. A connection keeps a buffer as large as its largest burst, up to this.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

/// What a client that is being closed gets to take what is left.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// How long, and how much, is read and thrown away after the close, for the client to read ours.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 << 20;

/// A request to become a WebSocket, checked.
pub(super) struct Upgrade {
    on_upgrade: OnUpgrade,
    frame_bytes: usize,
}

/// An open WebSocket.
pub(super) struct ClientStream {
    socket: WebSocketStream<Fragments<TokioIo<Upgraded>>>,
    /// Came together with fragments, which are told first.
    next: Option<Incoming>,
    write_timeout: Duration,
}

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A text frame.
    Text(Bytes),
    /// A ping or a pong, which was dealt with.
    Control,
    /// This number of parts of a message that has not ended yet.
    Fragments(u32),
    /// A frame that no rule allows; nothing more can be read.
    Broken(Fault),
    /// The client is gone.
    Gone,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    TooLarge,
    Binary,
    NotUtf8,
    Protocol,
}

/// The close code of the WebSocket standard for what breaks its framing.
const PROTOCOL_ERROR: u16 = 1_002;

impl Fault {
    /// What the client is told of it.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::TooLarge => Reason::FrameTooLarge,
            Self::Binary => Reason::BinaryFrame,
            Self::NotUtf8 => Reason::NotUtf8,
            Self::Protocol => Reason::BadFrame,
        }
    }

    /// The close code that the WebSocket standard has for it.
    pub(super) fn close_code(self) -> u16 {
        match self {
            Self::Protocol => PROTOCOL_ERROR,
            _ => self.reason().row().close.unwrap_or(PROTOCOL_ERROR),
        }
    }
}

/// Why a batch was not written whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WriteError {
    /// The client is gone.
    Gone,
    /// The client took nothing for too long.
    TimedOut,
    /// The connection was cut off meanwhile: what is left is not to be written.
    Cut,
}

impl Upgrade {
    /// Checks the request, and makes the answer that accepts it.
    pub(super) fn accept(request: Request, frame_bytes: usize) -> Result<(Self, Response), Refused> {
        let (mut parts, _) = request.into_parts();
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let mut head = http::Request::new(());
        *head.method_mut() = parts.method;
        *head.version_mut() = parts.version;
        *head.headers_mut() = parts.headers;
        let refused = |reason: &dyn std::fmt::Display| {
            let words = Reason::UpgradeRequired.row().words;
            Refused::saying(Reason::UpgradeRequired, format!("{words}: {reason}"))
        };
        let response = create_response(&head).map_err(|error| refused(&error))?;
        let on_upgrade = on_upgrade.ok_or_else(|| refused(&"this connection cannot be upgraded (HTTP/1.1 only)"))?;
        Ok((Self { on_upgrade, frame_bytes }, response.map(|()| Body::empty())))
    }

    /// Waits until the answer has been sent.
    pub(super) async fn finish(self, write_timeout: Duration) -> Option<ClientStream> {
        let upgraded = self.on_upgrade.await.ok()?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_message_size(Some(self.frame_bytes))
            .max_frame_size(Some(self.frame_bytes));
        let stream = Fragments::new(TokioIo::new(upgraded));
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        Some(ClientStream { socket, next: None, write_timeout })
    }
}

impl ClientStream {
    /// Waits for the next frame. Cancel-safe.
    pub(super) async fn next(&mut self) -> Incoming {
        poll_fn(|cx| {
            if let Some(next) = self.next.take() {
                return Poll::Ready(next);
            }
            let polled = self.socket.poll_next_unpin(cx).map(incoming);
            match (self.socket.get_mut().take(), polled) {
                (0, polled) => polled,
                (fragments, polled) => {
                    if let Poll::Ready(next) = polled {
                        self.next = Some(next);
                    }
                    Poll::Ready(Incoming::Fragments(fragments))
                }
            }
        })
        .await
    }

    /// Writes a batch in as few writes as its size allows. A client that takes nothing for the write timeout is given up;
    /// one whose outbox is cut meanwhile gets nothing more.
    pub(super) async fn write(&mut self, outbox: &Outbox, frames: Vec<Utf8Bytes>) -> Result<(), WriteError> {
        for frame in frames {
            self.step(outbox, |socket, cx| socket.poll_ready(cx)).await?;
            self.queue(text(frame))?;
        }
        self.step(outbox, |socket, cx| socket.poll_flush(cx)).await
    }

    /// Writes some last frames and the close frame, and waits a while for the client to take them.
    pub(super) async fn end(mut self, frames: Vec<Utf8Bytes>, code: u16, reason: &str) {
        let whole = async {
            for frame in frames {
                self.poll(|socket, cx| socket.poll_ready(cx)).await?;
                self.queue(text(frame))?;
            }
            self.poll(|socket, cx| socket.poll_ready(cx)).await?;
            self.queue(Message::Close(Some(CloseFrame { code: code.into(), reason: cut(reason).into() })))?;
            self.poll(|socket, cx| socket.poll_flush(cx)).await
        };
        if tokio::time::timeout(CLOSE_LIMIT, whole).await == Ok(Ok(())) {
            let _ = tokio::time::timeout(LINGER, self.linger()).await;
        }
    }

    /// Says that nothing more comes, and reads away what the client still sends, so that it can read what was sent to it.
    async fn linger(&mut self) {
        let bare = &mut self.socket.get_mut().stream;
        if bare.shutdown().await.is_err() {
            return;
        }
        let mut scratch = [0; 1_024];
        let mut left = LINGER_BYTES;
        while let Ok(read @ 1..) = bare.read(&mut scratch).await {
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    }

    fn queue(&mut self, message: Message) -> Result<(), WriteError> {
        Pin::new(&mut self.socket).start_send(message).map_err(|_| WriteError::Gone)
    }

    async fn poll(
        &mut self,
        mut poll: impl FnMut(Socket<'_>, &mut Cx<'_>) -> Poll<Result<(), Error>>,
    ) -> Result<(), WriteError> {
        poll_fn(|cx| poll(Pin::new(&mut self.socket), cx)).await.map_err(|_| WriteError::Gone)
    }

    /// One step of a batch. Timers and locks only where the client does not take it at once.
    async fn step(
        &mut self,
        outbox: &Outbox,
        mut poll: impl FnMut(Socket<'_>, &mut Cx<'_>) -> Poll<Result<(), Error>>,
    ) -> Result<(), WriteError> {
        let write_timeout = self.write_timeout;
        let step = self.poll(&mut poll);
        tokio::pin!(step);
        if let Poll::Ready(done) = futures_util::poll!(&mut step) {
            return done;
        }
        let limit = tokio::select! {
            done = &mut step => return done,
            () = tokio::time::sleep(write_timeout) => return Err(WriteError::TimedOut),
            () = outbox.ending() => CLOSE_LIMIT.min(write_timeout),
        };
        if outbox.is_cut() {
            return Err(WriteError::Cut);
        }
        tokio::time::timeout(limit, step).await.unwrap_or(Err(WriteError::TimedOut))
    }
}

type Socket<'a> = Pin<&'a mut WebSocketStream<Fragments<TokioIo<Upgraded>>>>;
type Cx<'a> = std::task::Context<'a>;

/// The bytes are shared with all other receivers; they were text when they were encoded.
fn text(frame: Utf8Bytes) -> Message {
    Message::Frame(Frame::message(Bytes::from(frame), OpCode::Data(Data::Text), true))
}

fn incoming(read: Option<Result<Message, Error>>) -> Incoming {
    match read {
        Some(Ok(Message::Text(text))) => Incoming::Text(text.into()),
        Some(Ok(Message::Binary(_))) => Incoming::Broken(Fault::Binary),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Incoming::Control,
        // The answer to a close leaves with the next poll, which then ends.
        Some(Ok(Message::Close(_))) => Incoming::Control,
        Some(Err(error)) => broken(&error).map_or(Incoming::Gone, Incoming::Broken),
        None => Incoming::Gone,
    }
}

fn broken(error: &Error) -> Option<Fault> {
    match error {
        Error::Capacity(_) => Some(Fault::TooLarge),
        Error::Utf8(_) => Some(Fault::NotUtf8),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::ReceivedAfterClosing) => None,
        Error::Protocol(_) => Some(Fault::Protocol),
        Error::Io(error) if error.kind() == ErrorKind::InvalidData => Some(Fault::Protocol),
        _ => None,
    }
}

/// A close frame has room for 123 bytes of reason.
fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(123)]
}

#[cfg(test)]
mod tests;
