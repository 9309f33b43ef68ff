//! In how memory is bounded.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "ShedsAlone",
        "memory: a primary that is pressed drops messages by itself, without an entry",
        100,
        &[
            edit(
                "logic/primary/memory.rs",
                "        if let Some(index) = self.replica.order(Entry::Shed { until_ms }) {",
                r#"        if planted!("ShedsAlone") {
            return self.replica.shed_alone(until_ms);
        }
        if let Some(index) = self.replica.order(Entry::Shed { until_ms }) {"#,
            ),
            edit(
                "logic/replication/look.rs",
                "    /// Whether the running sums of bytes are what a recount gives; for whoever checks that.",
                r#"    /// For planted!("ShedsAlone").
    pub(crate) fn shed_alone(&mut self, until_ms: u64) {
        if let Some(held) = &mut self.held {
            let _ = held.state.apply(held.applied, Entry::Shed { until_ms });
        }
    }

    /// Whether the running sums of bytes are what a recount gives; for whoever checks that."#,
            ),
        ],
    ),
    bug(
        "TakesWhenFull",
        "memory: a node that has no memory left still takes publishes",
        100,
        &[edit(
            "logic/primary/groups.rs",
            "            Level::Full => Some(SlotError::Full),",
            r#"            Level::Full => (!planted!("TakesWhenFull")).then_some(SlotError::Full),"#,
        )],
    ),
    bug(
        "SparesOnlyItself",
        "memory: a primary looks at its own memory and not at that of the others which hold the slot",
        400,
        &[edit(
            "logic/memory.rs",
            "holders.filter_map(said).fold(self.own, Level::max)",
            r#"holders.filter_map(said).filter(|_| !planted!("SparesOnlyItself")).fold(self.own, Level::max)"#,
        )],
    ),
    bug(
        "DeniesWhenFull",
        "S4: a repeat is told that it was not done, because there is no memory for more",
        100,
        &[edit(
            "logic/primary/reign.rs",
            "if self.memory == Level::Full && self.begins_something(&request) {",
            r#"let publishes = matches!(&request, SlotRequest::Group(_, GroupRequest::Publish(_)));
        if self.memory == Level::Full
            && (self.begins_something(&request) || planted!("DeniesWhenFull") && publishes)
        {"#,
        )],
    ),
    bug(
        "LosesCount",
        "memory: the messages that leave a log still count as held",
        30,
        &[edit(
            "logic/log.rs",
            "        self.held_bytes -= oldest.held_bytes();",
            r#"        self.held_bytes -= if planted!("LosesCount") { 0 } else { oldest.held_bytes() };"#,
        )],
    ),
];
