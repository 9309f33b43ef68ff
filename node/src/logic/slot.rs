//! placeholder
use serde::{Deserialize, Serialize};
/// snapshot
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlotSnapshot {}
