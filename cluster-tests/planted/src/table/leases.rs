//! In who may deliver.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "DeliversPastTheLease",
        "S7: a gateway does not look whether its lease has run out",
        400,
        &[edit(
            "logic/lease.rs",
            "confirmed == self.episode && now_ms < self.until_ms &&",
            r#"confirmed == self.episode && (now_ms < self.until_ms || planted!("DeliversPastTheLease")) &&"#,
        )],
    ),
    bug(
        "TrustsTheThawed",
        "S7: a gateway whose lease had run out, or that was fenced, does not have its attachments confirmed",
        1400,
        &[edit(
            "logic/lease.rs",
            "u64::from(is_fenced || had_run_out)",
            r#"u64::from((is_fenced || had_run_out) && !planted!("TrustsTheThawed"))"#,
        )],
    ),
    bug(
        "FencesAlone",
        "S7: a primary takes its own word for that of all",
        1900,
        &[edit(
            "logic/lease.rs",
            "said + quorum(others + 1) > others + 1",
            r#"(said > 0 && planted!("FencesAlone")) || said + quorum(others + 1) > others + 1"#,
        )],
    ),
    bug(
        "PromisesAtOnce",
        "S7: a fence counts before what was acknowledged has run out",
        400,
        &[edit(
            "logic/lease.rs",
            "*known == round && *since_ms + LAPSED_MS <= now_ms",
            r#"*known == round && (*since_ms + LAPSED_MS <= now_ms || planted!("PromisesAtOnce"))"#,
        )],
    ),
];
