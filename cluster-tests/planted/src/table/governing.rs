//! In the judge of liveness, and in when a node proposes a map.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "TrustsItsFirstLook",
        "liveness: one look that misses a node counts as its death, also where it was this node that stood still",
        100,
        &[
            edit(
                "logic/liveness.rs",
                "if let Some(still_ms) = self.pace.look(now_ms) {",
                r#"if let Some(still_ms) = self.pace.look(now_ms).filter(|_| !planted!("TrustsItsFirstLook")) {"#,
            ),
            edit(
                "logic/liveness.rs",
                "known.is_alive &= known.missed < GONE_LOOKS;",
                r#"known.is_alive &= known.missed < if planted!("TrustsItsFirstLook") { 1 } else { GONE_LOOKS };"#,
            ),
            edit(
                "logic/liveness.rs",
                "let enough = if self.was_found { DEAD_LOOKS } else { UNHEARD_LOOKS };",
                r#"let enough = if planted!("TrustsItsFirstLook") {
                1
            } else if self.was_found {
                DEAD_LOOKS
            } else {
                UNHEARD_LOOKS
            };"#,
            ),
        ],
    ),
    bug(
        "BelievesGenerations",
        "liveness: a later start that gossip tells of counts, though the store has not allotted it",
        30,
        &[edit(
            "logic/liveness.rs",
            "if let Some(counts) = proven.or(heard) {",
            r#"let counts = if planted!("BelievesGenerations") { proven.max(heard) } else { proven.or(heard) };
            if let Some(counts) = counts {"#,
        )],
    ),
    bug(
        "FewChangeTheMap",
        "liveness: a node that hears fewer than half of the others changes the map at once",
        30,
        &[edit(
            "logic/liveness/picture.rs",
            "self.few >= LOOKS_OF_FEW || !self.hears_few(&map.members, now_ms)",
            r#"planted!("FewChangeTheMap") || self.few >= LOOKS_OF_FEW || !self.hears_few(&map.members, now_ms)"#,
        )],
    ),
    bug(
        "ProposesWhileLeaving",
        "steward: a node that leaves, and hears nobody any more, changes the map",
        240,
        &[edit(
            "logic/steward.rs",
            "StewardInput::Retire => self.is_retired = true,",
            r#"StewardInput::Retire => self.is_retired = !planted!("ProposesWhileLeaving"),"#,
        )],
    ),
    bug(
        "ExpiresByAWrongClock",
        "clocks: sessions end by a clock that differs from all that are heard",
        60,
        &[edit(
            "logic/clocks.rs",
            "let fitting = candidates.into_iter().flatten().find(|correction_ms| self.fits(*correction_ms));",
            r#"let fits = |by: &i64| planted!("ExpiresByAWrongClock") || self.fits(*by);
        let fitting = candidates.into_iter().flatten().find(fits);"#,
        )],
    ),
    bug(
        "ProposesUnsure",
        "steward: a map is proposed before it is read what came of the last one",
        10,
        &[edit(
            "logic/steward.rs",
            "(self.must_read, self.outcome_unknown) = (true, true);",
            r#"(self.must_read, self.outcome_unknown) = (!planted!("ProposesUnsure"), true);"#,
        )],
    ),
];
