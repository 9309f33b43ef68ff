//! The load behind `roost bench`: clients of a server that keeps sessions and groups, what they see, and what it costs the
//! server. It knows nothing of the product, so that it can measure other servers in the same way.
//!
//! Reading order: [`plan`] (what is to be done), [`dialect`] (how a server is talked to; [`roost`] is Roost's),
//! [`scenario`] (one file each), [`report`] (what came out). [`member`] is one client, [`tally`] what all of them count.

pub mod backend;
pub mod clock;
pub mod dialect;
pub mod files;
pub mod flight;
pub mod member;
pub mod order;
pub mod plan;
pub mod process;
pub mod report;
pub mod roost;
pub mod scenario;
pub mod socket;
pub mod svg;
pub mod tally;

mod bar;
mod crowd;
mod page;

pub use self::{
    backend::Backend,
    dialect::Dialect,
    page::page,
    plan::{Plan, Scenario},
    report::Report,
    scenario::{Target, run},
};
