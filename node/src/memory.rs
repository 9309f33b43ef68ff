//! What clients make this node hold, in bytes, all in one place. Whoever holds something says so here: slots what their cores
//! count, after each batch; outboxes and requests by [`Hold`]s that are given back with what they stand for.
//!
//! What is done about it is decided in `logic/memory` and `logic/primary/memory`: here is only the sum, and how it compares
//! with the budget (`limits.memory_bytes`).

mod machine;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use self::machine::bytes_of_machine;
use crate::{
    config::LimitsConfig,
    logic::memory::{CopyBytes, Level},
    wire::frame::Frame,
};

/// Of what there is, clients may have one part in this number; the rest is for what is not counted, and for the allocator.
const SHARE: u64 = 2;
/// No budget that is found by itself is below this.
const LEAST_BYTES: u64 = 32 << 20;
/// Smaller frames are counted by what their place in an outbox takes.
const SMALL_FRAME_BYTES: usize = 256;

/// What something is held for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Account {
    /// Messages that groups keep.
    History,
    /// Keys by which repeated publishes are recognised.
    Repeats,
    /// Groups, and who is present in them.
    Groups,
    /// Sessions.
    Sessions,
    /// Entries that are not committed.
    Uncommitted,
    /// Entries kept for a copy that lacks them, and pieces of a snapshot that comes in.
    Retained,
    /// Publishes under way from this node's clients and backends.
    Requests,
    /// What waits for clients.
    Outboxes,
    /// What waits for other nodes.
    Links,
}

impl Account {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::History,
        Self::Repeats,
        Self::Groups,
        Self::Sessions,
        Self::Uncommitted,
        Self::Retained,
        Self::Requests,
        Self::Outboxes,
        Self::Links,
    ];

    /// As metrics say it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Repeats => "repeats",
            Self::Groups => "groups",
            Self::Sessions => "sessions",
            Self::Uncommitted => "uncommitted",
            Self::Retained => "retained",
            Self::Requests => "requests",
            Self::Outboxes => "outboxes",
            Self::Links => "links",
        }
    }
}

/// All accounts of a node, and its budget.
#[derive(Debug)]
pub struct Ledger {
    budget_bytes: u64,
    accounts: [AtomicU64; Account::ALL.len()],
}

/// Some bytes of an account, given back when dropped.
#[derive(Debug)]
pub struct Hold {
    ledger: Arc<Ledger>,
    account: Account,
    bytes: u64,
}

/// What clients may make each of this number of nodes hold in this process, where nothing is configured.
pub fn budget_of_machine(nodes: u64) -> u64 {
    (bytes_of_machine() / SHARE / nodes.max(1)).max(LEAST_BYTES)
}

impl Ledger {
    /// Nothing is held yet.
    pub fn new(budget_bytes: u64) -> Arc<Self> {
        Arc::new(Self { budget_bytes, accounts: Default::default() })
    }

    /// With the budget that is configured, or that this machine has for a node.
    pub fn of(limits: &LimitsConfig) -> Arc<Self> {
        Self::new(if limits.memory_bytes == 0 { budget_of_machine(1) } else { limits.memory_bytes as u64 })
    }

    /// What may be held.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// What an account has.
    pub fn bytes(&self, account: Account) -> u64 {
        self.accounts[account as usize].load(Ordering::Relaxed)
    }

    /// What is held in all.
    pub fn held_bytes(&self) -> u64 {
        Account::ALL.into_iter().map(|account| self.bytes(account)).sum()
    }

    /// How pressed this node is.
    pub fn level(&self) -> Level {
        Level::of(self.held_bytes(), self.budget_bytes)
    }

    /// Counts something for as long as the hold lives.
    pub fn hold(self: &Arc<Self>, account: Account, bytes: usize) -> Hold {
        self.change(account, 0, bytes as u64);
        Hold { ledger: self.clone(), account, bytes: bytes as u64 }
    }

    /// The frame, which counts as long as it is anywhere.
    pub fn frame(self: &Arc<Self>, frame: Frame) -> Frame {
        if frame.len() < SMALL_FRAME_BYTES {
            return frame;
        }
        let hold = self.hold(Account::Outboxes, frame.len());
        frame.kept_with(hold)
    }

    /// What is found by looking, not by being told.
    pub fn set(&self, account: Account, bytes: u64) {
        self.accounts[account as usize].store(bytes, Ordering::Relaxed);
    }

    /// A copy of a slot takes this instead of what it took.
    pub fn copy(&self, before: &CopyBytes, now: &CopyBytes) {
        for (account, of) in [
            (Account::History, (|copy: &CopyBytes| copy.state.history) as fn(&CopyBytes) -> u64),
            (Account::Repeats, |copy| copy.state.repeats),
            (Account::Groups, |copy| copy.state.groups),
            (Account::Sessions, |copy| copy.state.sessions),
            (Account::Uncommitted, |copy| copy.uncommitted),
            (Account::Retained, |copy| copy.retained + copy.incoming),
        ] {
            self.change(account, of(before), of(now));
        }
    }

    fn change(&self, account: Account, before: u64, now: u64) {
        let sum = &self.accounts[account as usize];
        if now > before {
            sum.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            let all = sum.fetch_sub(before - now, Ordering::Relaxed);
            assert!(all >= before - now, "what is given back was counted: {account:?}");
        }
    }
}

impl Hold {
    /// Counts this number of bytes instead.
    pub fn resize(&mut self, bytes: usize) {
        self.ledger.change(self.account, self.bytes, bytes as u64);
        self.bytes = bytes as u64;
    }

    /// What it stands for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it is counted.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.ledger.change(self.account, self.bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::memory::StateBytes;

    #[test]
    fn what_is_held_counts_until_it_is_given_back() {
        let ledger = Ledger::new(1_000);
        let mut one = ledger.hold(Account::Requests, 300);
        let other = ledger.hold(Account::Outboxes, 500);
        assert_eq!((ledger.held_bytes(), ledger.level()), (800, Level::Tight));
        one.resize(600);
        assert_eq!((ledger.held_bytes(), ledger.level()), (1_100, Level::Full));
        drop(other);
        one.resize(10);
        assert_eq!((ledger.held_bytes(), ledger.level()), (10, Level::Calm));
        drop(one);
        assert_eq!(ledger.held_bytes(), 0);
    }

    #[test]
    fn a_frame_counts_once_wherever_it_is() {
        let ledger = Ledger::new(1_000);
        let frame = ledger.frame(Frame::text(&"x".repeat(396)));
        let elsewhere = vec![frame.clone(); 10];
        assert_eq!((ledger.bytes(Account::Outboxes), frame.as_str()), (400, "x".repeat(396).as_str()));
        drop(frame);
        assert_eq!(ledger.held_bytes(), 400);
        drop(elsewhere);
        assert_eq!(ledger.held_bytes(), 0);
    }

    #[test]
    fn a_copy_replaces_what_it_took() {
        let ledger = Ledger::new(1_000);
        let (none, some) = (
            CopyBytes::default(),
            CopyBytes {
                state: StateBytes { history: 1, repeats: 2, groups: 3, sessions: 4 },
                uncommitted: 5,
                retained: 6,
                incoming: 0,
            },
        );
        ledger.copy(&none, &some);
        assert_eq!((ledger.held_bytes(), ledger.bytes(Account::Retained)), (21, 6));
        ledger.copy(&some, &some);
        ledger.copy(&some, &none);
        assert_eq!(ledger.held_bytes(), 0);
    }
}
