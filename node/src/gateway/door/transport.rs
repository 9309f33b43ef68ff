//! What a client's connection is carried by: a bare TCP socket, or TLS over one. Anybody may write to it without waiting, and its
//! own task reads: so it is split into what is tried at once and what is waited for, as a bare socket is.

use std::{
    fmt,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice, Read, Write},
    net::Shutdown,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use rustls::ServerConnection;
use tokio::{io::ReadBuf, net::TcpStream};

/// What a connection holds of its own bytes, encrypted, while its socket takes nothing. More is not taken until then.
const ENCRYPTED_MAX_BYTES: usize = 32 << 10;

/// A client's socket, whoever may read it on the way.
pub struct Transport {
    tcp: TcpStream,
    tls: Option<Box<Mutex<ServerConnection>>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("tcp", &self.tcp).field("tls", &self.tls.is_some()).finish()
    }
}

/// The socket as the TLS library has it: it reads and writes what there is and never waits.
struct Now<'a>(&'a TcpStream);

impl Read for Now<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Now<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport {
    /// Nobody encrypts anything.
    pub fn bare(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }

    /// TLS, the handshake done.
    pub fn encrypted(tcp: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(ENCRYPTED_MAX_BYTES));
        Self { tcp, tls: Some(Box::new(Mutex::new(session))) }
    }

    /// The socket below, for its options.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Writes what is taken at once; `WouldBlock` where that is nothing. With TLS what is taken may not have left: [`Self::try_flush`].
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return match slices {
                [one] => self.tcp.try_write(one),
                several => self.tcp.try_write_vectored(several),
            };
        };
        let mut session = lock(tls);
        push_out(&mut session, &self.tcp)?;
        let taken = session.writer().write_vectored(slices)?;
        match push_out(&mut session, &self.tcp) {
            // It is taken: what did not leave does with the next flush.
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Sends what was taken and has not left; `WouldBlock` where the socket does not take all of it.
    pub fn try_flush(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |tls| push_out(&mut lock(tls), &self.tcp))
    }

    /// Waits until more may be taken since it last was not. One task at a time.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    /// Waits for what comes, and reads it. One task at a time. The socket is asked first, which lets others run after a while.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let room = buf.initialize_unfilled();
            let decrypted = self.tls.as_ref().and_then(|tls| decrypted(&mut lock(tls), room));
            if let Some(read) = decrypted {
                return Poll::Ready(read.map(|count| buf.advance(count)));
            }
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|count| buf.advance(count))),
            }
        }
    }

    /// The same for who has a buffer of its own; 0 at the end.
    ///
    /// # Errors
    /// The socket's, or that of what came.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        poll_fn(|cx| self.poll_read(cx, &mut buf)).await?;
        Ok(buf.filled().len())
    }

    /// Reads what has come; `WouldBlock` where that is nothing.
    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.tcp.try_read(buf) };
        let mut session = lock(tls);
        if let Some(read) = decrypted(&mut session, buf) {
            return read;
        }
        session.read_tls(&mut Now(&self.tcp))?;
        if let Err(error) = session.process_new_packets() {
            // It is told why, if it can be.
            let _ = push_out(&mut session, &self.tcp);
            return Err(io::Error::new(ErrorKind::ConnectionAborted, error));
        }
        // Records may hold nothing, as many as the client likes: whoever reads asks the socket anew, which lets others run.
        decrypted(&mut session, buf).unwrap_or_else(|| Err(ErrorKind::WouldBlock.into()))
    }

    /// Says that nothing more is written. What was taken before should have left.
    ///
    /// # Errors
    /// Where the connection is over.
    pub fn shut_down(&self) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            let mut session = lock(tls);
            session.send_close_notify();
            // Where the socket does not take it the other end sees it closed all the same.
            let _ = push_out(&mut session, &self.tcp);
        }
        socket2::SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }
}

/// What has come and is not read yet; nothing where more has to come first.
fn decrypted(session: &mut ServerConnection, buf: &mut [u8]) -> Option<io::Result<usize>> {
    match session.reader().read(buf) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        // Without a farewell of TLS. HTTP and WebSocket have ends of their own, so nothing can be cut off unseen.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Some(Ok(0)),
        read => Some(read),
    }
}

fn push_out(session: &mut ServerConnection, tcp: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        if session.write_tls(&mut Now(tcp))? == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

fn lock(tls: &Mutex<ServerConnection>) -> MutexGuard<'_, ServerConnection> {
    // The library returns errors and leaves its state whole.
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}
