//! Does the simulator find anything? Here it runs over the cores with a bug in them, one at a time, and each bug of
//! [`table::TABLE`] has to be found within its number of seeds. A check that is never seen to fail proves nothing.
//!
//! The product holds none of these bugs: `build.rs` copies the sources of the cores and of the simulator and plants the
//! bugs in the copies, each behind `planted!("Name")`, which is true only while [`run`] runs with that name. Without one,
//! the copies do what the originals do, event by event (a test compares). The build fails where a bug's place in the
//! code is gone or ambiguous.
//!
//! A new bug is an entry of the table. `scripts/sim --planted` prints where each was found. One that breaks a promise
//! and is not found shows a hole in the simulator: mend that.

use std::cell::Cell;

pub mod find;
#[rustfmt::skip]
pub mod table;

thread_local! {
    static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Whether this thread runs with this bug. The compiler keeps equal names at one address or it does not: both are right.
pub fn is(name: &'static str) -> bool {
    PLANTED.get().is_some_and(|planted| std::ptr::eq(planted, name) || planted == name)
}

macro_rules! planted {
    ($name:literal) => {
        $crate::is($name)
    };
}

#[allow(clippy::all, unreachable_pub, reason = "lints are for the originals; a bug need not be pretty")]
mod copies {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
pub use copies::{explore, history, logic, sim};

/// What is done here goes with this bug, or without any.
pub fn with<T>(bug: Option<&'static str>, run: impl FnOnce() -> T) -> T {
    PLANTED.set(bug);
    let result = run();
    PLANTED.set(None);
    result
}

/// How one seed goes with this bug, or without any.
pub fn run(seed: u64, bug: Option<&'static str>, trace: bool) -> sim::Outcome {
    with(bug, || sim::run(seed, trace))
}
