//! Gossip to addresses of which only that is known: one of the seeds, or a node that has not been heard of long. Dialled in the
//! background when there is something to say, and given up when there no longer is.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn::Connection;

use super::{
    dial::{Dialler, Pause},
    greeting::{DialError, Goodbye, Purpose, STREAM_GOSSIP},
    queues::Parcels,
};
use crate::{clock, seldom::Seldom, tasks::Tasks};

/// Addresses at once; past it messages to others are dropped.
const ADDRESSES_MAX: usize = 256;

/// Gossip messages waiting for an address, past which new ones are dropped: gossip says it again.
const GOSSIP_QUEUE_BYTES: usize = 512 << 10;

const IDLE_MS: u64 = 30_000;

/// Before an address that turned out to be this node's own is tried again: another node may have it by then.
const MYSELF_PAUSE: Duration = Duration::from_secs(20);

/// The addresses that are spoken to.
pub(super) struct Addresses {
    dialler: Arc<Dialler>,
    tasks: Tasks,
    addresses: Mutex<BTreeMap<SocketAddr, Arc<Address>>>,
}

struct Address {
    addr: SocketAddr,
    connection: Mutex<Option<Connection>>,
    queue: Parcels,
    used_ms: AtomicU64,
}

impl Addresses {
    pub(super) fn new(dialler: Arc<Dialler>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { dialler, tasks, addresses: Mutex::default() })
    }

    /// Sends or queues; says whether either could be done.
    pub(super) fn gossip(self: &Arc<Self>, addr: SocketAddr, message: Bytes) -> bool {
        let mut addresses = self.lock();
        let address = match addresses.get(&addr) {
            Some(address) => address.clone(),
            None if addresses.len() >= ADDRESSES_MAX => return false,
            None => {
                let address = Arc::new(Address::new(addr));
                addresses.insert(addr, address.clone());
                self.tasks.spawn_until_done("peer-address", self.clone().run(address.clone()));
                address
            }
        };
        // Under the lock, so that an address just given up is not spoken to.
        address.gossip(message)
    }

    /// The address's task: ends when nothing was said to it for long.
    async fn run(self: Arc<Self>, address: Arc<Address>) {
        let mut pause = Pause::default();
        let complain = Seldom::new();
        loop {
            let wait = match self.dialler.dial(address.addr, Purpose::GossipOnly, None).await {
                Ok((connection, node, generation)) => {
                    tracing::debug!(addr = %address.addr, %node, generation, "gossip to an address");
                    pause.reset();
                    address.serve(&connection).await;
                    pause.next()
                }
                Err(DialError::Myself) => MYSELF_PAUSE,
                Err(DialError::Refused(why)) => {
                    if let Some(left_out) = complain.now() {
                        tracing::warn!(addr = %address.addr, why, left_out, "no gossip to the address");
                    }
                    pause.next()
                }
                Err(error) => {
                    tracing::debug!(addr = %address.addr, %error, "no gossip to the address");
                    pause.next()
                }
            };
            if self.forget_if_idle(&address) {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn forget_if_idle(&self, address: &Address) -> bool {
        let mut addresses = self.lock();
        let is_idle = address.is_idle();
        if is_idle {
            addresses.remove(&address.addr);
        }
        is_idle
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<Address>>> {
        // No code panics while it holds this lock.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Address {
    fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            connection: Mutex::default(),
            queue: Parcels::bounded(GOSSIP_QUEUE_BYTES),
            used_ms: AtomicU64::new(clock::mono_ms()),
        }
    }

    fn gossip(&self, message: Bytes) -> bool {
        self.used_ms.store(clock::mono_ms(), Ordering::Relaxed);
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match connection {
            Some(connection) => self.queue.send_or_queue(&connection, message),
            None => self.queue.push(message),
        }
    }

    async fn serve(&self, connection: &Connection) {
        self.set_connection(Some(connection.clone()));
        let idle = async {
            while !self.is_idle() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            _ = connection.closed() => {}
            _ = self.queue.write_to(connection, STREAM_GOSSIP, 0) => {}
            () = idle => {}
        }
        self.set_connection(None);
        Goodbye::Done.close(connection);
    }

    fn set_connection(&self, connection: Option<Connection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    fn is_idle(&self) -> bool {
        clock::mono_ms().saturating_sub(self.used_ms.load(Ordering::Relaxed)) > IDLE_MS
    }
}
