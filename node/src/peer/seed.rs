//! Gossip to an address of which only that is known: a seed, or a node that has not been heard of long. Dialled in the
//! background when there is something to say, and given up when there no longer is.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn::Connection;

use super::{
    Seldom,
    hello::{DialError, Goodbye, Purpose, STREAM_GOSSIP},
    link::{self, GOSSIP_QUEUE_BYTES, Pause},
    mesh::Shared,
    outbox::Parcels,
};
use crate::clock;

/// Addresses at once; past it messages to others are dropped.
pub(super) const SEEDS_MAX: usize = 256;

const IDLE_MS: u64 = 30_000;

/// Before an address that turned out to be this node's own is tried again: another node may have it by then.
const MYSELF_PAUSE: Duration = Duration::from_secs(20);

pub(super) struct Seed {
    addr: SocketAddr,
    connection: Mutex<Option<Connection>>,
    queue: Parcels,
    used_ms: AtomicU64,
}

impl Seed {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            connection: Mutex::default(),
            queue: Parcels::bounded(GOSSIP_QUEUE_BYTES),
            used_ms: AtomicU64::new(clock::mono_ms()),
        }
    }

    /// Sends or queues; says whether either could be done.
    pub(super) fn gossip(&self, message: Bytes) -> bool {
        self.used_ms.store(clock::mono_ms(), Ordering::Relaxed);
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match connection {
            Some(connection) => link::send_gossip(&connection, &self.queue, message),
            None => self.queue.push(message),
        }
    }

    fn set_connection(&self, connection: Option<Connection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    fn is_idle(&self) -> bool {
        clock::mono_ms().saturating_sub(self.used_ms.load(Ordering::Relaxed)) > IDLE_MS
    }
}

/// The address's task: ends when nothing was said to it for long.
pub(super) async fn run(shared: Arc<Shared>, seed: Arc<Seed>) {
    let mut pause = Pause::default();
    let complain = Seldom::every(Duration::from_secs(10));
    loop {
        let wait = match link::dial(&shared, seed.addr, Purpose::GossipOnly, None).await {
            Ok((connection, node, generation)) => {
                tracing::debug!(addr = %seed.addr, %node, generation, "gossip to an address");
                pause.reset();
                serve(&seed, &connection).await;
                pause.next()
            }
            Err(DialError::Myself) => MYSELF_PAUSE,
            Err(DialError::Refused(why)) if complain.now() => {
                tracing::warn!(addr = %seed.addr, why, "no gossip to the address");
                pause.next()
            }
            Err(error) => {
                tracing::debug!(addr = %seed.addr, %error, "no gossip to the address");
                pause.next()
            }
        };
        if shared.forget_seed(&seed.addr, Seed::is_idle) {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

async fn serve(seed: &Seed, connection: &Connection) {
    seed.set_connection(Some(connection.clone()));
    let idle = async {
        while !seed.is_idle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        _ = connection.closed() => {}
        _ = link::write_parcels(connection, &seed.queue, STREAM_GOSSIP, 0) => {}
        () = idle => {}
    }
    seed.set_connection(None);
    Goodbye::Done.close(connection);
}
