//! Who is connected: the one list of all client connections, for what concerns them all (silence, draining).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::outbox::{Closing, Outbox, Reading};
use crate::{
    clock,
    config::LimitsConfig,
    gateway::door::rate::{OperationRate, Verdict},
    memory::Ledger,
    metrics::{Limit, Metrics},
    permit::Permit,
    wire::{codec::Codec, command::Event, reason::Reason},
};

/// Pings at a time: whoever else wants to run does so between them.
const PINGS_AT_ONCE: usize = 64;
/// So long before the end of a session that is to be refreshed its client is told, and again after each of the second.
const EXPIRING_MS: u64 = 30_000;
const EXPIRING_AGAIN_MS: u64 = 10_000;
/// Past its end for this time a connection is closed here, whatever is heard of its session: longer than a refresh takes.
const OVERDUE_MS: u64 = 30_000;
/// How often a draining node sends some of its clients away.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// All client connections of this node.
#[derive(Debug, Default)]
pub struct Connections {
    permit: Arc<Permit>,
    last: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
}

/// One of them.
#[derive(Debug)]
pub struct Connection {
    /// What is due to it.
    pub outbox: Arc<Outbox>,
    heard_ms: AtomicU64,
    /// It has been silent, and was asked for a sign of life.
    pinged: AtomicBool,
    /// It was silent for longer than it was asked to be, and that was counted.
    late: AtomicBool,
    /// When its session ends unless it is refreshed, in milliseconds since 1970; the highest number where it is not to be.
    expires_ms: AtomicU64,
    /// When it is told of that next, in milliseconds since 1970.
    remind_ms: AtomicU64,
}

/// Keeps a connection in the list; takes it out when dropped.
#[derive(Debug)]
pub struct Listed {
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
    connection: Arc<Connection>,
    rate: OperationRate,
}

/// A client sent far more than it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Excess;

impl Connection {
    /// The client sent something.
    pub fn heard(&self, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
        self.pinged.store(false, Ordering::Relaxed);
        self.late.store(false, Ordering::Relaxed);
    }

    /// When its session ends unless it is refreshed, in milliseconds since 1970.
    pub fn expires(&self, at_ms: Option<u64>) {
        let remind_ms = at_ms.map_or(u64::MAX, |at_ms| at_ms.saturating_sub(EXPIRING_MS));
        let at_ms = at_ms.unwrap_or(u64::MAX);
        // Where it stays, those who were told are told again in their time.
        if self.expires_ms.swap(at_ms, Ordering::Relaxed) != at_ms {
            self.remind_ms.store(remind_ms, Ordering::Relaxed);
        }
    }

    fn silent_since(&self, since_ms: u64) -> bool {
        self.heard_ms.load(Ordering::Relaxed) < since_ms
    }
}

impl Listed {
    /// The client sent something: it is there, and that counts against its rate. Where it is above it, in how many
    /// milliseconds there is room again.
    pub fn counted(&mut self) -> Result<Option<u64>, Excess> {
        self.connection.heard(clock::mono_ms());
        match self.rate.take(clock::mono_us()) {
            Verdict::Allowed => Ok(None),
            Verdict::Refused(wait_ms) => {
                self.metrics.limit_hit(Limit::OperationsBurst);
                Ok(Some(wait_ms))
            }
            Verdict::Excess => {
                self.metrics.limit_hit(Limit::OperationsPerS);
                Err(Excess)
            }
        }
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
    /// Nobody is there yet. `permit`: whether something may be delivered to them.
    pub fn under(permit: Arc<Permit>) -> Arc<Self> {
        Arc::new(Self { permit, ..Self::default() })
    }

    /// Whether this node may deliver to those whose attachments are confirmed.
    #[cfg(test)]
    pub fn may_deliver(&self) -> bool {
        self.permit.allows(*self.permit.episodes().borrow())
    }

    /// The episodes in which something may be delivered ([`Permit::episodes`]).
    pub fn episodes(&self) -> watch::Receiver<u64> {
        self.permit.episodes()
    }

    /// Numbers and lists a new connection.
    pub fn open(
        self: &Arc<Self>,
        limits: &LimitsConfig,
        ledger: &Arc<Ledger>,
        metrics: &Arc<Metrics>,
        codec: Codec,
    ) -> Listed {
        self.list(limits, self.outbox(limits, ledger).told_by(codec), metrics)
    }

    /// The same for a reader of events.
    pub fn open_reader(
        self: &Arc<Self>,
        limits: &LimitsConfig,
        ledger: &Arc<Ledger>,
        metrics: &Arc<Metrics>,
        reading: Reading,
    ) -> Listed {
        self.list(limits, self.outbox(limits, ledger).of(reading), metrics)
    }

    fn outbox(&self, limits: &LimitsConfig, ledger: &Arc<Ledger>) -> Outbox {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Outbox::new(number, limits.outbox_bytes, ledger.clone()).under(self.permit.clone())
    }

    fn list(self: &Arc<Self>, limits: &LimitsConfig, outbox: Outbox, metrics: &Arc<Metrics>) -> Listed {
        let (number, outbox) = (outbox.connection, Arc::new(outbox));
        let heard_ms = AtomicU64::new(clock::mono_ms());
        let [expires_ms, remind_ms] = [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)];
        let (pinged, late) = (AtomicBool::default(), AtomicBool::default());
        let connection = Arc::new(Connection { outbox, heard_ms, pinged, late, expires_ms, remind_ms });
        self.lock().insert(number, connection.clone());
        metrics.connections.inc();
        let rate = OperationRate::new(limits.operations_per_s, limits.operations_burst);
        Listed { connections: self.clone(), metrics: metrics.clone(), connection, rate }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Pings those that have sent nothing for `limits.heartbeat_s`, each once for a silence: the pong is a sign of life, so
    /// that a client whose program sends nothing stays. One that takes nothing is not pinged. A reader of events says nothing
    /// ever: it gets a comment each time, and its socket tells when it is gone.
    pub async fn ping_silent(&self, limits: &LimitsConfig, metrics: &Metrics) {
        self.ping_silent_since(clock::mono_ms().saturating_sub(limits.heartbeat_s.saturating_mul(1_000)), metrics)
            .await;
    }

    async fn ping_silent_since(&self, since_ms: u64, metrics: &Metrics) {
        let silent: Vec<_> = {
            let open = self.lock();
            let silent = open.values().filter(|connection| connection.silent_since(since_ms));
            silent.filter(|connection| !connection.pinged.swap(true, Ordering::Relaxed)).cloned().collect()
        };
        for some in silent.chunks(PINGS_AT_ONCE) {
            for connection in some.iter().filter(|connection| !connection.outbox.is_closing()) {
                metrics.pings.inc();
                let codec = connection.outbox.codec();
                connection.outbox.control_if_room(&codec.sign_of_life());
                if !codec.is_answered() {
                    connection.heard(clock::mono_ms());
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Counts those that are late with a sign of life, each once for a silence, and closes those that have sent nothing for
    /// `limits.idle_s`. A client is late after one and a half times `limits.heartbeat_s`: networks are not punctual.
    pub fn close_idle(&self, limits: &LimitsConfig, metrics: &Metrics) {
        let now_ms = clock::mono_ms();
        let late_since_ms = now_ms.saturating_sub(limits.heartbeat_s.saturating_mul(1_500));
        let silent_since_ms = now_ms.saturating_sub(limits.idle_s.saturating_mul(1_000));
        let silent: Vec<_> = {
            let open = self.lock();
            let late = open.values().filter(|connection| connection.silent_since(late_since_ms));
            for _ in late.filter(|connection| !connection.late.swap(true, Ordering::Relaxed)) {
                metrics.limit_hit(Limit::HeartbeatS);
            }
            open.values().filter(|connection| connection.silent_since(silent_since_ms)).cloned().collect()
        };
        for connection in silent.into_iter().filter(|connection| !connection.outbox.is_closing()) {
            metrics.limit_hit(Limit::IdleS);
            connection.outbox.close(Closing::saying(
                Reason::Idle,
                format!("nothing was heard for {} s: answer pings, or send a heartbeat now and then", limits.idle_s),
            ));
        }
    }

    /// Tells those whose sessions end soon unless they are refreshed.
    pub fn tell_expiring(&self) {
        self.tell_expiring_at(clock::wall_ms());
    }

    fn tell_expiring_at(&self, now_ms: u64) {
        let due: Vec<_> = {
            let open = self.lock();
            let due = open.values().filter(|connection| connection.remind_ms.load(Ordering::Relaxed) <= now_ms);
            due.cloned().collect()
        };
        for connection in due.into_iter().filter(|connection| !connection.outbox.is_closing()) {
            connection.remind_ms.store(now_ms + EXPIRING_AGAIN_MS, Ordering::Relaxed);
            if connection.expires_ms.load(Ordering::Relaxed).saturating_add(OVERDUE_MS) <= now_ms {
                // Its slot should have said so, and cannot at the moment.
                connection.outbox.close(Closing::new(Reason::TokenExpired));
                continue;
            }
            let expires_in_ms = connection.expires_ms.load(Ordering::Relaxed).saturating_sub(now_ms);
            let outbox = &connection.outbox;
            outbox.push_aside(outbox.codec().encode(&Event::Expiring { expires_in_ms }));
        }
    }

    /// Sends all away, at a rate per second, each to come back after a time of its own within `spread`. Returns when there is
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
                let after_ms = rand::random_range(0..=spread_ms);
                connection.outbox.close(Closing::new(Reason::Draining).after(after_ms));
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
    use crate::wire::frame::Frame;

    #[test]
    fn connections_are_listed_while_they_last() {
        let (connections, metrics) = (Connections::under(Arc::default()), Metrics::new());
        let first = connections.open(&LimitsConfig::default(), &Ledger::new(1 << 30), &metrics, Codec::Plain);
        let second = connections.open(&LimitsConfig::default(), &Ledger::new(1 << 30), &metrics, Codec::Plain);
        assert_ne!(first.outbox.connection, second.outbox.connection);
        assert_eq!((connections.count(), metrics.connections.get()), (2, 2));
        drop(first);
        assert_eq!((connections.count(), metrics.connections.get()), (1, 1));
    }

    #[tokio::test]
    async fn who_is_silent_is_pinged_once_for_a_silence() {
        let (connections, metrics) = (Connections::under(Arc::default()), Metrics::new());
        let limits = LimitsConfig { outbox_bytes: 100, ..LimitsConfig::default() };
        let open: [Listed; 4] =
            std::array::from_fn(|_| connections.open(&limits, &Ledger::new(1 << 30), &metrics, Codec::Plain));
        let [silent, heard, closing, full] = &open;
        for connection in &open {
            connection.heard(1_000);
        }
        heard.heard(2_000);
        closing.outbox.close(Closing::new(Reason::Draining));
        assert!(full.outbox.push(Frame::text(&"x".repeat(98))), "it takes a whole outbox");
        let pings = |listed: &Listed| listed.outbox.take().frames.iter().filter(|seen| seen.is(&Frame::ping())).count();

        connections.ping_silent_since(2_000, &metrics).await;
        assert!(full.outbox.closing().is_none(), "a ping that has no room closes nobody");
        assert_eq!(open.each_ref().map(pings), [1, 0, 0, 0]);
        connections.ping_silent_since(2_000, &metrics).await;
        assert_eq!(open.each_ref().map(pings), [0; 4], "one ping, and its answer is waited for");
        silent.heard(3_000);
        connections.ping_silent_since(4_000, &metrics).await;
        assert_eq!(open.each_ref().map(pings), [1, 1, 0, 0], "it is silent anew");
        assert_eq!(metrics.pings.get(), 4, "with the one that had no room");
    }

    #[test]
    fn who_is_to_refresh_is_told_in_time_and_again() {
        let (connections, metrics) = (Connections::under(Arc::default()), Metrics::new());
        let open: [Listed; 3] = std::array::from_fn(|_| {
            connections.open(&LimitsConfig::default(), &Ledger::new(1 << 30), &metrics, Codec::Plain)
        });
        let [soon, later, _never] = &open;
        soon.expires(Some(100_000));
        later.expires(Some(500_000));
        let told = |now_ms: u64| {
            connections.tell_expiring_at(now_ms);
            open.each_ref().map(|listed| listed.outbox.take().frames.len())
        };
        assert_eq!(told(69_999), [0, 0, 0]);
        assert_eq!(told(70_000), [1, 0, 0]);
        assert_eq!(told(75_000), [0, 0, 0], "it has been told");
        assert_eq!(told(80_000), [1, 0, 0], "it has not come with another token");
        soon.expires(Some(600_000));
        assert_eq!(told(95_000), [0, 0, 0], "it has");
        assert_eq!(told(525_000), [0, 1, 0]);
        assert_eq!(told(600_000), [1, 0, 0]);
        let closing = later.outbox.take().closing.expect("it is long over, and its slot has said nothing");
        assert_eq!(closing.reason, Reason::TokenExpired);
        soon.expires(Some(600_000));
        assert_eq!(told(601_000), [0, 0, 0], "a change of something else reminds nobody");
    }

    #[tokio::test]
    async fn draining_tells_everyone_once_and_spreads_their_return() {
        let (connections, metrics) = (Connections::under(Arc::default()), Metrics::new());
        let open: Vec<_> = (0..50)
            .map(|_| connections.open(&LimitsConfig::default(), &Ledger::new(1 << 30), &metrics, Codec::Plain))
            .collect();
        connections.drain(1_000, Duration::from_secs(60)).await;
        let closing: Vec<_> = open.iter().map(|one| one.outbox.take().closing.expect("it was told")).collect();
        assert!(closing.iter().all(|closing| closing.reason == Reason::Draining && closing.after_ms <= 60_000));
        let times: std::collections::BTreeSet<_> = closing.iter().map(|closing| closing.after_ms).collect();
        assert!(times.len() > 25);
    }
}
