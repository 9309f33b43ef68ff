//! An accepted connection: the place that it holds, what it was used for, and its socket, on which an answer that nobody
//! reads ends the connection.
//!
//! An answer without end is written by others than HTTP: once its head is written, the socket is handed to them, and nothing of
//! the request stays in memory.

use std::{
    io::{self, ErrorKind, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::HeaderMap,
};
use hyper::body::Frame;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
    time::Sleep,
};

use super::{places::Place, reasons::Refused, transport::Transport};
use crate::metrics::{Limit, Metrics};

/// A connection, as what serves it sees it. Whoever takes it over from HTTP keeps it, and with it the place.
#[derive(Debug)]
pub struct Accepted {
    pub(super) place: Place,
    asked: AtomicBool,
    /// Who is to have the socket.
    taker: Mutex<Option<oneshot::Sender<Transport>>>,
    /// The head of the answer that the taker goes on with is made, and is written.
    head_made: AtomicBool,
    head_written: AtomicBool,
}

/// The body of an answer that others write: it never has anything.
struct WrittenByOthers(Arc<Accepted>);

impl HttpBody for WrittenByOthers {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    /// Asked for once the head is made.
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.0.head_made.store(true, Ordering::Relaxed);
        Poll::Pending
    }
}

impl Accepted {
    pub(super) fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            place,
            asked: AtomicBool::default(),
            taker: Mutex::default(),
            head_made: AtomicBool::default(),
            head_written: AtomicBool::default(),
        })
    }

    /// A body, and the socket once the head of its answer is written; the receiver fails where the connection ends before.
    pub fn hand_over(self: &Arc<Self>) -> (Body, oneshot::Receiver<Transport>) {
        let (taker, socket) = oneshot::channel();
        *self.taker.lock().unwrap_or_else(PoisonError::into_inner) = Some(taker);
        (Body::new(WrittenByOthers(self.clone())), socket)
    }

    /// Whether the socket is to be handed over now.
    pub(super) fn is_handed_over(&self) -> bool {
        self.head_written.load(Ordering::Relaxed)
    }

    fn taker(&self) -> Option<oneshot::Sender<Transport>> {
        // No code panics while it holds this lock.
        self.taker.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The address that it counts for; none where that is a proxy's which has not said whom it speaks for.
    pub fn address(&self) -> Option<IpAddr> {
        self.place.address()
    }

    /// Counts for whom a proxy forwards this request for, which keeps the connection.
    ///
    /// # Errors
    /// That one has as many connections as an address may have.
    pub fn count_for_client(&self, headers: &HeaderMap) -> Result<(), Refused> {
        self.place.count_for_forwarded(headers).map_err(Refused::new)
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
    stream: Transport,
    limit: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    metrics: Arc<Metrics>,
    ends: Ends,
}

/// Whoever waits for the socket hears when there is none any more.
struct Ends(Arc<Accepted>);

impl Drop for Ends {
    fn drop(&mut self) {
        drop(self.0.taker());
    }
}

impl AnswerStream {
    pub(super) fn new(stream: Transport, limit: Duration, metrics: Arc<Metrics>, accepted: Arc<Accepted>) -> Self {
        Self { stream, limit, stuck: None, metrics, ends: Ends(accepted) }
    }

    /// Gives the socket to who goes on with the answer.
    pub(super) fn hand_over(self) {
        if let Some(taker) = self.ends.0.taker() {
            // Where it has gone, the connection ends here.
            let _ = taker.send(self.stream);
        }
    }

    /// The socket itself, for who serves no HTTP on it any more.
    pub fn into_socket(self) -> Transport {
        self.stream
    }

    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.stream.try_flush() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.stream.poll_writable(cx))?,
                done => return Poll::Ready(done),
            }
        }
    }

    /// The socket is asked first, which lets others run after a while.
    fn poll_written(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_writable(cx))?;
            match self.stream.try_write(bufs) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
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
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read(cx, buf)
    }
}

impl AsyncWrite for AnswerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_written(cx, bufs);
        self.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is over it asks for this when it has written all that it had.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.poll_flushed(cx);
        ready!(self.timed(cx, flushed))?;
        let accepted = &self.ends.0;
        if accepted.head_made.load(Ordering::Relaxed) {
            accepted.head_written.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.poll_flushed(cx);
        ready!(self.timed(cx, flushed))?;
        Poll::Ready(self.stream.shut_down())
    }
}
