//! The WebSocket under one connection: frames in, and an end that the client gets to hear. What goes out is not its business: that
//! is written by whoever queues it in the connection's outbox, which also takes what the WebSocket library answers by itself.
//!
//! The upgrade is done here and not by axum, for three reasons: its task is one of ours (awaited at shut-down), nothing of
//! the HTTP request stays in memory with it, and the bare socket can be shared with those who write to it. It is also read when
//! the WebSocket's own state is broken: closing a connection while the client still sends makes the kernel reset it, and
//! the `bye` would be lost.

use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{self, header::SEC_WEBSOCKET_EXTENSIONS},
    response::Response,
};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf, join};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        handshake::server::create_response,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    deflate::{self, Inflated},
    fragments::Fragments,
    outbox::{CLOSE_LIMIT, Outbox, WriteError, Written},
};
use crate::{
    gateway::door::{accepted::AnswerStream, reasons::Refused, transport::Transport},
    wire::{codec::Codec, frame::Frame, reason::Reason},
};

/// Held by every connection; larger frames get a buffer of their own while they arrive.
const READ_BUFFER_BYTES: usize = 1_024;

/// How long, and how much, is read and thrown away after the close, for the client to read ours.
pub(super) const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 << 20;

/// A request to become a WebSocket, checked.
pub(super) struct Upgrade {
    on_upgrade: OnUpgrade,
    frame_bytes: usize,
    compressed: bool,
}

/// A connection that is HTTP no more.
pub(super) struct Bare {
    socket: Transport,
    /// What was read of it with the request.
    early: Bytes,
    frame_bytes: usize,
    /// Compression was agreed on.
    compressed: bool,
}

/// An open WebSocket.
pub(super) struct ClientStream {
    web: WebSocketStream<Join<Inflated<Fragments<Reading>>, Answers>>,
    /// Came together with fragments, which are told first.
    next: Option<Incoming>,
    write_timeout: Duration,
}

/// The socket as the WebSocket library reads it.
struct Reading {
    early: Bytes,
    socket: Arc<Transport>,
    outbox: Arc<Outbox>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.outbox.detach();
    }
}

impl AsyncRead for Reading {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let count = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..count]);
            self.early.advance(count);
            return Poll::Ready(Ok(()));
        }
        self.socket.poll_read(cx, buf)
    }
}

/// What the WebSocket library writes by itself goes the way of all that is written.
struct Answers(Arc<Outbox>);

impl AsyncWrite for Answers {
    /// Pongs and the answer to a close, each whole.
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.control(Frame::whole(Bytes::copy_from_slice(bytes)));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A text frame.
    Text(Bytes),
    /// A ping or a pong, which was dealt with.
    Control,
    /// This number of parts of a message that has not ended yet, or what a compressed message counts for besides.
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

impl Upgrade {
    /// Checks the request, and makes the answer that accepts it. Compression is agreed on where the client offers it and this
    /// node `compresses`.
    pub(super) fn accept(request: Request, frame_bytes: usize, compresses: bool) -> Result<(Self, Response), Refused> {
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
        let mut response = create_response(&head).map_err(|error| refused(&error))?;
        let extension = compresses.then(|| deflate::accept(head.headers())).flatten();
        let compressed = extension.is_some();
        response.headers_mut().extend(extension.map(|answer| (SEC_WEBSOCKET_EXTENSIONS, answer)));
        let on_upgrade = on_upgrade.ok_or_else(|| refused(&"this connection cannot be upgraded (HTTP/1.1 only)"))?;
        Ok((Self { on_upgrade, frame_bytes, compressed }, response.map(|()| Body::empty())))
    }

    /// Waits until the answer has been sent.
    pub(super) async fn finish(self) -> Option<Bare> {
        let upgraded = self.on_upgrade.await.ok()?;
        let Ok(parts) = upgraded.downcast::<TokioIo<AnswerStream>>() else {
            tracing::error!("a connection was upgraded that the door had not accepted");
            return None;
        };
        // A copy: hyper's own buffer has room for requests, and would stay as long as the connection.
        let early = Bytes::copy_from_slice(&parts.read_buf);
        let Self { frame_bytes, compressed, .. } = self;
        Some(Bare { socket: parts.io.into_inner().into_socket(), early, frame_bytes, compressed })
    }
}

impl Bare {
    /// How its client is told things.
    pub(super) fn codec(&self) -> Codec {
        if self.compressed { Codec::Deflated } else { Codec::Plain }
    }
}

impl ClientStream {
    /// What is queued in the outbox is written to the connection from now on.
    pub(super) async fn open(bare: Bare, outbox: Arc<Outbox>, write_timeout: Duration) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(bare.frame_bytes))
            .max_frame_size(Some(bare.frame_bytes));
        let socket = Arc::new(bare.socket);
        outbox.attach(socket.clone());
        let answers = Answers(outbox.clone());
        let reading = Fragments::new(Reading { early: bare.early, socket, outbox });
        let inflated = Inflated::new(reading, bare.compressed.then_some(bare.frame_bytes));
        let web = WebSocketStream::from_raw_socket(join(inflated, answers), Role::Server, Some(config)).await;
        Self { web, next: None, write_timeout }
    }

    /// Waits for the next frame. Cancel-safe.
    pub(super) async fn next(&mut self) -> Incoming {
        poll_fn(|cx| {
            if let Some(next) = self.next.take() {
                return Poll::Ready(next);
            }
            let polled = self.web.poll_next_unpin(cx).map(incoming);
            let inflated = self.web.get_mut().reader_mut();
            match (inflated.take() + inflated.stream.take(), polled) {
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

    fn reading(&self) -> &Reading {
        &self.web.get_ref().reader().stream.stream
    }

    /// Writes what is due. A client that takes nothing for the write timeout is given up.
    pub(super) async fn write(&mut self) -> Result<Written, WriteError> {
        let Reading { socket, outbox, .. } = self.reading();
        outbox.write(&**socket, self.write_timeout).await
    }

    /// Writes what is queued, which ends with the close frame, and waits a while for the client to take it.
    pub(super) async fn end(mut self) {
        if matches!(tokio::time::timeout(CLOSE_LIMIT, self.write()).await, Ok(Ok(_))) {
            let _ = tokio::time::timeout(LINGER, linger(&self.reading().socket)).await;
        }
    }
}

/// Says that nothing more comes, and reads away what the client still sends, so that it can read what was sent to it.
pub(super) async fn linger(socket: &Transport) {
    if socket.shut_down().is_err() {
        return;
    }
    let mut scratch = [0; 1_024];
    let mut left = LINGER_BYTES;
    while let Ok(read @ 1..) = socket.read(&mut scratch).await
        && read < left
    {
        left -= read;
    }
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
        Error::Io(error) if error.kind() == ErrorKind::FileTooLarge => Some(Fault::TooLarge),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
