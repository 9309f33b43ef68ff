//! What one client may make the cluster hold in a time: bytes that it publishes, and groups that it is the first in. By
//! session; sessions without a user, which anybody can have any number of, share by the address that they come from, and those made
//! of backends' tokens, of which one makes any number, by their user.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    clock,
    config::LimitsConfig,
    gateway::door::{rate::Bucket, reasons::Refused},
    id::SessionId,
    logic::request::MESSAGE_OVERHEAD_BYTES,
    metrics::{Limit, Metrics},
    wire::reason::Reason,
};

/// How many seconds' worth of bytes, and of new groups, may come at once.
const BYTES_BURST_S: u32 = 4;
const GROUPS_BURST_S: u32 = 30;
/// Bytes are counted in units of this, so that a bucket of nanoseconds can tell them.
const UNIT_BYTES: u32 = 256;

/// Whose an allowance is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Spender {
    /// Of one session.
    Session(SessionId),
    /// Of all sessions without a user that come from this address.
    Address(IpAddr),
    /// Of all sessions made of tokens of a user: the hash of its name.
    User(u64),
}

impl Spender {
    /// Who spends what is done for a session, or for a reader on behalf of it.
    pub fn of(session: SessionId, user: &str, address: Option<IpAddr>) -> Self {
        match address {
            Some(address) if user.is_empty() => Self::Address(address),
            _ if session.is_made_of_token() && !user.is_empty() => Self::User(xxh3_64(user.as_bytes())),
            _ => Self::Session(session),
        }
    }
}

/// All that are in use, or not whole again.
#[derive(Debug)]
pub struct Allowances {
    bytes: Bucket,
    groups: Bucket,
    spenders: Mutex<BTreeMap<Spender, Arc<Allowance>>>,
    metrics: Arc<Metrics>,
}

/// What one spender has left.
#[derive(Debug)]
pub struct Allowance {
    buckets: Mutex<Buckets>,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Copy, Debug)]
struct Buckets {
    bytes: Bucket,
    groups: Bucket,
}

impl Allowances {
    /// Nothing is spent yet.
    pub fn new(limits: &LimitsConfig, metrics: Arc<Metrics>) -> Self {
        let units_per_s = limits.publish_bytes_per_s.div_ceil(UNIT_BYTES);
        Self {
            bytes: Bucket::new(units_per_s, units_per_s.saturating_mul(BYTES_BURST_S)),
            groups: Bucket::new(limits.new_groups_per_s, limits.new_groups_per_s.saturating_mul(GROUPS_BURST_S)),
            spenders: Mutex::default(),
            metrics,
        }
    }

    /// What a spender has left; the same for all its connections here.
    pub fn of(&self, spender: Spender) -> Arc<Allowance> {
        let new = || {
            let buckets = Mutex::new(Buckets { bytes: self.bytes, groups: self.groups });
            Arc::new(Allowance { buckets, metrics: self.metrics.clone() })
        };
        // No code panics while it holds this lock.
        let mut spenders = self.spenders.lock().unwrap_or_else(PoisonError::into_inner);
        spenders.entry(spender).or_insert_with(new).clone()
    }

    /// Forgets those that nobody uses and that are whole again. To be called now and then.
    pub fn tidy(&self) {
        let now_us = clock::mono_us();
        let in_use = |allowance: &Arc<Allowance>| Arc::strong_count(allowance) > 1 || !allowance.is_whole(now_us);
        let mut spenders = self.spenders.lock().unwrap_or_else(PoisonError::into_inner);
        spenders.retain(|_, allowance| in_use(allowance));
    }
}

impl Allowance {
    /// Spends the bytes of a publish, or says when there is room for it.
    pub fn publish(&self, data_bytes: usize) -> Result<(), Refused> {
        let units = u32::try_from((data_bytes + MESSAGE_OVERHEAD_BYTES).div_ceil(UNIT_BYTES as usize));
        let taken = self.lock().bytes.take_many(clock::mono_us(), units.unwrap_or(u32::MAX));
        taken.map_err(|wait_ms| {
            let words = "more bytes published than limits.publish_bytes_per_s allows: not done, try again later";
            self.refused(Limit::PublishBytesPerS, words, wait_ms)
        })
    }

    /// Whether something may be done that could begin a group.
    pub fn may_begin_group(&self) -> Result<(), Refused> {
        let has_one = self.lock().groups.has_one(clock::mono_us());
        has_one.map_err(|wait_ms| {
            let words = "more new groups than limits.new_groups_per_s allows: not done, try again later";
            self.refused(Limit::NewGroupsPerS, words, wait_ms)
        })
    }

    /// It did begin one.
    pub fn began_group(&self) {
        self.lock().groups.owe(clock::mono_us());
    }

    fn refused(&self, limit: Limit, words: &'static str, wait_ms: u64) -> Refused {
        self.metrics.limit_hit(limit);
        Refused::saying(Reason::RateLimited, words).after(wait_ms)
    }

    fn is_whole(&self, now_us: u64) -> bool {
        let Buckets { bytes, groups } = *self.lock();
        bytes.is_full(now_us) && groups.is_full(now_us)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Buckets> {
        // No code panics while it holds this lock.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowances(publish_bytes_per_s: u32, new_groups_per_s: u32) -> (Allowances, Arc<Metrics>) {
        let metrics = Metrics::new();
        let limits = LimitsConfig { publish_bytes_per_s, new_groups_per_s, ..LimitsConfig::default() };
        (Allowances::new(&limits, metrics.clone()), metrics)
    }

    fn address(last: u8) -> Spender {
        Spender::Address(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn who_publishes_too_much_is_refused_and_told_when_to_try_again() {
        let (allowances, metrics) = allowances(64 << 10, 1);
        let one = allowances.of(address(1));
        let mut taken = 0;
        let refused = loop {
            match one.publish(60_000) {
                Ok(()) => taken += 1,
                Err(refused) => break refused,
            }
        };
        assert!((4..6).contains(&taken), "{taken}");
        assert_eq!(refused.reason, Reason::RateLimited);
        assert!(refused.retry_ms.is_some_and(|wait_ms| (1..1_000).contains(&wait_ms)), "{refused:?}");
        assert_eq!(metrics.limit_hits(Limit::PublishBytesPerS), 1);
        assert!(allowances.of(address(1)).publish(60_000).is_err(), "another connection has the same");
        assert!(allowances.of(address(2)).publish(60_000).is_ok());
    }

    #[test]
    fn who_begins_too_many_groups_is_refused() {
        let (allowances, metrics) = allowances(1 << 20, 1);
        let one = allowances.of(address(1));
        for _ in 0..GROUPS_BURST_S {
            assert!(one.may_begin_group().is_ok());
            one.began_group();
        }
        assert_eq!(one.may_begin_group().unwrap_err().reason, Reason::RateLimited);
        one.began_group();
        assert_eq!(metrics.limit_hits(Limit::NewGroupsPerS), 1);
        drop(one);
        allowances.tidy();
        assert!(allowances.of(address(1)).may_begin_group().is_err(), "who comes again has not forgotten");
        let _ = allowances.of(address(2));
        allowances.tidy();
        assert_eq!(allowances.spenders.lock().unwrap().len(), 1);
    }
}
