//! Who is connected: the one list of all client connections, for what concerns them all (silence, draining).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::outbox::{Closing, Outbox};
use crate::{
    clock,
    metrics::{Limit, Metrics},
    wire::command::ByeCode,
};

/// How often a draining node sends some of its clients away.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// All client connections of this node.
#[derive(Debug, Default)]
pub struct Connections {
    last: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
}

/// One of them.
#[derive(Debug)]
pub struct Connection {
    /// What is due to it.
    pub outbox: Arc<Outbox>,
    heard_ms: AtomicU64,
}

/// Keeps a connection in the list; takes it out when dropped.
#[derive(Debug)]
pub struct Listed {
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
    connection: Arc<Connection>,
}

impl Connection {
    /// The client sent something.
    pub fn heard(&self, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }
}

impl std::ops::Deref for Listed {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.connection.outbox.connection);
        self.metrics.connections.dec();
    }
}

impl Connections {
    /// Nobody is there yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Numbers and lists a new connection.
    pub fn open(self: &Arc<Self>, outbox_bytes: usize, metrics: &Arc<Metrics>) -> Listed {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let outbox = Arc::new(Outbox::new(number, outbox_bytes));
        let connection = Arc::new(Connection { outbox, heard_ms: AtomicU64::new(clock::mono_ms()) });
        self.lock().insert(number, connection.clone());
        metrics.connections.inc();
        Listed { connections: self.clone(), metrics: metrics.clone(), connection }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes those that have sent nothing for so long.
    pub fn close_idle(&self, idle_ms: u64, metrics: &Metrics) {
        let silent_since_ms = clock::mono_ms().saturating_sub(idle_ms);
        let silent: Vec<_> = {
            let open = self.lock();
            let silent = |connection: &&Arc<Connection>| connection.heard_ms.load(Ordering::Relaxed) < silent_since_ms;
            open.values().filter(silent).cloned().collect()
        };
        for connection in silent.into_iter().filter(|connection| !connection.outbox.is_closing()) {
            metrics.limit_hit(Limit::IdleS);
            connection.outbox.close(Closing {
                code: ByeCode::Idle,
                reason: format!("nothing was heard for {} s: send a heartbeat now and then", idle_ms / 1_000),
                reconnect: true,
                after_ms: 0,
            });
        }
    }

    /// Sends all away, so many a second, each to come back after a time of its own within `spread`. Returns when there is
    /// nobody who has not been told.
    pub async fn drain(&self, per_second: u32, spread: Duration) {
        let at_once = (f64::from(per_second.max(1)) * DRAIN_STEP.as_secs_f64()).ceil() as usize;
        let spread_ms = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
        loop {
            let next: Vec<_> = {
                let open = self.lock();
                open.values().filter(|connection| !connection.outbox.is_closing()).take(at_once).cloned().collect()
            };
            if next.is_empty() {
                return;
            }
            for connection in next {
                connection.outbox.close(Closing {
                    code: ByeCode::Draining,
                    reason: "this node is going away: connect to another one".to_owned(),
                    reconnect: true,
                    after_ms: rand::random_range(0..=spread_ms),
                });
            }
            tokio::time::sleep(DRAIN_STEP).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        // No code panics while it holds this lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_listed_while_they_last() {
        let (connections, metrics) = (Connections::new(), Metrics::new());
        let first = connections.open(1_000, &metrics);
        let second = connections.open(1_000, &metrics);
        assert_ne!(first.outbox.connection, second.outbox.connection);
        assert_eq!((connections.count(), metrics.connections.get()), (2, 2));
        drop(first);
        assert_eq!((connections.count(), metrics.connections.get()), (1, 1));
    }

    #[tokio::test]
    async fn draining_tells_everyone_once_and_spreads_their_return() {
        let (connections, metrics) = (Connections::new(), Metrics::new());
        let open: Vec<_> = (0..50).map(|_| connections.open(1_000, &metrics)).collect();
        connections.drain(1_000, Duration::from_secs(60)).await;
        let closing: Vec<_> = open.iter().map(|one| one.outbox.take().closing.expect("it was told")).collect();
        assert!(
            closing
                .iter()
                .all(|closing| closing.code == ByeCode::Draining && closing.reconnect && closing.after_ms <= 60_000)
        );
        let times: std::collections::BTreeSet<_> = closing.iter().map(|closing| closing.after_ms).collect();
        assert!(times.len() > 25);
    }
}
