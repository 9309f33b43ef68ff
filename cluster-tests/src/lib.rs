//! Tests of whole clusters.

pub mod sim;
