//! In what a session may do, and in who hears that it changed.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "TellsOfChangesOnce",
        "rights: a gateway that was not reached when a session changed is not told when it renews",
        820,
        &[edit(
            "logic/primary/sessions/renewals.rs",
            "if revision < known.record.revision {",
            r#"if revision < known.record.revision && !planted!("TellsOfChangesOnce") {"#,
        )],
    ),
    bug(
        "BelievesGateways",
        "rights: a join is judged by the grants that its gateway knows, and not by those that stand",
        300,
        &[edit(
            "logic/session.rs",
            "} else if self.record.may_join(&group, needs_grant) {",
            r#"} else if self.record.may_join(&group, needs_grant) || planted!("BelievesGateways") {"#,
        )],
    ),
    bug(
        "TakesOldTokens",
        "rights: a token is good after another has taken its place",
        100,
        &[edit(
            "logic/session.rs",
            "token < self.record.token && ",
            r#"token < self.record.token && !planted!("TakesOldTokens") && "#,
        )],
    ),
    bug(
        "KeepsForbiddenGroups",
        "rights: new grants are for what is joined from then on only",
        100,
        &[edit(
            "logic/session.rs",
            "let forbidden = joined.filter(|(group, needs_grant)| !record.may_join(group, **needs_grant));",
            r#"let forbidden = joined.filter(|(group, needs_grant)| {
                !record.may_join(group, **needs_grant) && !planted!("KeepsForbiddenGroups")
            });"#,
        )],
    ),
];
