//! The UDP socket under the mesh, with a gate: shut at once, nothing goes in or out any more and the port is free, while
//! quinn still winds its connections up. That is how a crash is played within a process, and how a shutdown ends.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    task::{Context, Poll},
};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller, udp};
use socket2::{Domain, Protocol, Socket, Type};

const BUFFER_BYTES: usize = 4 << 20;

type PollerSlot = Mutex<Option<Pin<Box<dyn UdpPoller>>>>;

pub(super) struct Gate {
    local_addr: SocketAddr,
    max_transmit_segments: usize,
    max_receive_segments: usize,
    may_fragment: bool,
    open: RwLock<Option<Arc<dyn AsyncUdpSocket>>>,
    /// The pollers hold the socket too.
    pollers: Mutex<Vec<Weak<PollerSlot>>>,
}

impl Gate {
    pub(super) fn bind(listen: SocketAddr) -> io::Result<Arc<Self>> {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // The system may grant less; then bursts are lost and sent again.
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
        socket.bind(&listen.into())?;
        let socket = TokioRuntime.wrap_udp_socket(socket.into())?;
        Ok(Arc::new(Self {
            local_addr: socket.local_addr()?,
            max_transmit_segments: socket.max_transmit_segments(),
            max_receive_segments: socket.max_receive_segments(),
            may_fragment: socket.may_fragment(),
            open: RwLock::new(Some(socket)),
            pollers: Mutex::default(),
        }))
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Closes the socket. What quinn still sends vanishes.
    pub(super) fn shut(&self) {
        let socket = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        let pollers = std::mem::take(&mut *self.pollers.lock().unwrap_or_else(PoisonError::into_inner));
        for poller in pollers.iter().filter_map(Weak::upgrade) {
            poller.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        drop(socket);
    }
}

impl AsyncUdpSocket for Gate {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        // The lock on `open` is held so that a poller is either made before the gate shuts, and listed, or never.
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let slot = Arc::new(Mutex::new(open.as_ref().map(|socket| socket.clone().create_io_poller())));
        let mut pollers = self.pollers.lock().unwrap_or_else(PoisonError::into_inner);
        pollers.retain(|poller| poller.strong_count() > 0);
        pollers.push(Arc::downgrade(&slot));
        Box::pin(GatePoller(slot))
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        match &*self.open.read().unwrap_or_else(PoisonError::into_inner) {
            Some(socket) => socket.try_send(transmit),
            None => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match &*self.open.read().unwrap_or_else(PoisonError::into_inner) {
            Some(socket) => socket.poll_recv(cx, bufs, meta),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }

    fn max_transmit_segments(&self) -> usize {
        self.max_transmit_segments
    }

    fn max_receive_segments(&self) -> usize {
        self.max_receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.may_fragment
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

struct GatePoller(Arc<PollerSlot>);

impl UdpPoller for GatePoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(poller) => poller.as_mut().poll_writable(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl fmt::Debug for GatePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatePoller")
    }
}
