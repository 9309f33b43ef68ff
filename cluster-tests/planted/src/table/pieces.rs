//! In how a snapshot of a slot is cut into pieces and put together.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "MixesSnapshots",
        "snapshots: pieces of an earlier episode, or of an earlier snapshot, are taken for pieces of a later one",
        100,
        &[
            edit(
                "logic/replication/pieces.rs",
                "let begun = self.receiving.take().filter(|receiving| receiving.origin == origin);",
                r#"let begun =
            self.receiving.take().filter(|receiving| receiving.origin == origin || planted!("MixesSnapshots"));"#,
            ),
            edit(
                "logic/replication/pieces.rs",
                "if self.receiving.as_ref().is_some_and(|receiving| !self.expects(receiving.origin)) {",
                r#"if self
            .receiving
            .as_ref()
            .is_some_and(|receiving| !planted!("MixesSnapshots") && !self.expects(receiving.origin))
        {"#,
            ),
        ],
    ),
    bug(
        "LeavesHoles",
        "rule 3: a snapshot is taken as a whole when its last piece is here, though others are missing",
        10,
        &[edit(
            "logic/replication/pieces.rs",
            "while let Some((is_last, part)) = self.ahead.remove(&self.pieces) {",
            r#"let any = planted!("LeavesHoles") && self.ahead.values().any(|(is_last, _)| *is_last);
        while let Some((is_last, part)) =
            self.ahead.remove(&self.pieces).or_else(|| any.then(|| self.ahead.pop_first())?.map(|(_, piece)| piece))
        {"#,
        )],
    ),
    bug(
        "TakesItWithoutItsEnd",
        "S1: a snapshot is taken as a whole before its last piece is here",
        10,
        &[edit(
            "logic/replication/pieces.rs",
            "            if is_last {\n",
            r#"            if is_last || planted!("TakesItWithoutItsEnd") && self.pieces >= 3 {
"#,
        )],
    ),
    bug(
        "CutsFromTheLiving",
        "S1: pieces of one snapshot are cut from a state that changes meanwhile",
        100,
        &[
            edit(
                "logic/replication/pieces.rs",
                "    frozen: SlotState,\n",
                "    /// For planted!(\"CutsFromTheLiving\") not private.\n    pub(super) frozen: SlotState,\n",
            ),
            edit(
                "logic/replication.rs",
                "let sending = progress.sending.get_or_insert_with(freeze);",
                r#"let sending = progress.sending.get_or_insert_with(freeze);
                    if planted!("CutsFromTheLiving") {
                        sending.frozen = held.state.clone();
                    }"#,
            ),
        ],
    ),
];
