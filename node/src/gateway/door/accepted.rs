//! An accepted connection: the place that it holds, what it was used for, and its socket, on which an answer that nobody
//! reads ends the connection.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use super::places::Place;
use crate::metrics::{Limit, Metrics};

/// A connection, as what serves it sees it. Whoever takes it over from HTTP keeps it, and with it the place.
#[derive(Debug)]
pub struct Accepted {
    pub(super) place: Place,
    asked: AtomicBool,
}

impl Accepted {
    pub(super) fn new(place: Place) -> Arc<Self> {
        Arc::new(Self { place, asked: AtomicBool::default() })
    }

    /// The address that it counts for; none where that is a proxy's.
    pub fn address(&self) -> Option<IpAddr> {
        self.place.address()
    }

    /// A whole head of a request has come.
    pub(super) fn note_request(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether a request has ever come.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The socket under HTTP. A client that takes nothing of an answer for the limit is given up. There is a timer only while
/// something waits to be taken.
pub struct AnswerStream {
    stream: TcpStream,
    limit: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    metrics: Arc<Metrics>,
}

impl AnswerStream {
    pub(super) fn new(stream: TcpStream, limit: Duration, metrics: Arc<Metrics>) -> Self {
        Self { stream, limit, stuck: None, metrics }
    }

    /// The socket itself, for who serves no HTTP on it any more.
    pub fn into_socket(self) -> TcpStream {
        self.stream
    }

    fn timed<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let limit = self.limit;
        ready!(self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx));
        self.stuck = None;
        self.metrics.limit_hit(Limit::WriteTimeoutMs);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for AnswerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for AnswerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.timed(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// A TCP socket has nothing to flush.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
