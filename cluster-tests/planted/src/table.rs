//! The bugs: what each breaks, within how many seeds it must be found, and how it is planted.

/// A bug.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    /// What `planted!` calls it.
    pub name: &'static str,
    /// The rule of replication (`node/ALGORITHM.md`) or the promise (README.md) that it breaks.
    pub breaks: &'static str,
    /// One of this number of first seeds has to find it: about three times what was needed.
    pub seeds: u64,
    /// How it is planted; each in a place of its own.
    pub edits: &'static [Edit],
}

/// A piece of the code, which stands there exactly once, and what takes its place.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// A file under `OUT_DIR`, as `build.rs` copies it.
    pub file: &'static str,
    pub from: &'static str,
    /// With `planted!("Name")` the bug, without it the original.
    pub to: &'static str,
}

const fn bug(name: &'static str, breaks: &'static str, seeds: u64, edits: &'static [Edit]) -> Planted {
    Planted { name, breaks, seeds, edits }
}

const fn edit(file: &'static str, from: &'static str, to: &'static str) -> Edit {
    Edit { file, from, to }
}

#[path = "table/ephemeral.rs"]
mod ephemeral;
#[path = "table/governing.rs"]
mod governing;
#[path = "table/groups.rs"]
mod groups;
#[path = "table/leases.rs"]
mod leases;
#[path = "table/memory.rs"]
mod memory;
#[path = "table/pieces.rs"]
mod pieces;
#[path = "table/rights.rs"]
mod rights;
#[path = "table/sessions.rs"]
mod sessions;

/// All of them.
pub const TABLE: &[Planted] = &all();

const PARTS: [&[Planted]; 9] = [
    OTHERS,
    ephemeral::TABLE,
    groups::TABLE,
    governing::TABLE,
    rights::TABLE,
    sessions::TABLE,
    leases::TABLE,
    memory::TABLE,
    pieces::TABLE,
];
const COUNT: usize = OTHERS.len()
    + ephemeral::TABLE.len()
    + groups::TABLE.len()
    + governing::TABLE.len()
    + rights::TABLE.len()
    + sessions::TABLE.len()
    + leases::TABLE.len()
    + memory::TABLE.len()
    + pieces::TABLE.len();

const fn all() -> [Planted; COUNT] {
    let mut all = [OTHERS[0]; COUNT];
    let (mut at, mut part) = (0, 0);
    while part < PARTS.len() {
        let mut row = 0;
        while row < PARTS[part].len() {
            all[at] = PARTS[part][row];
            (at, row) = (at + 1, row + 1);
        }
        part += 1;
    }
    all
}

/// In replication, the map, slots and requests.
const OTHERS: &[Planted] = &[
    bug(
        "CommitsAlone",
        "rule 1: committed before every in-sync member has it",
        10,
        &[edit(
            "logic/replication.rs",
            "let commit = everywhere.min().unwrap_or_else(|| held.last());",
            r#"let commit = match planted!("CommitsAlone") {
            true => held.last(),
            false => everywhere.min().unwrap_or_else(|| held.last()),
        };"#,
        )],
    ),
    bug(
        "CommitsByTheFirst",
        "rule 1: with three copies, one acknowledgement is taken for all",
        20,
        &[edit(
            "logic/replication.rs",
            "let everywhere = required.map(|progress| if progress.mode == Mode::Stream { progress.acked } else { 0 });",
            r#"let everywhere = required.map(|progress| if progress.mode == Mode::Stream { progress.acked } else { 0 });
        let everywhere: Vec<_> = everywhere.collect();
        let everywhere = everywhere
            .iter()
            .filter(|acked| !planted!("CommitsByTheFirst") || everywhere.iter().all(|other| other <= *acked))
            .copied();"#,
        )],
    ),
    bug(
        "FollowerApplies",
        "rule 1: a replica takes for committed what it holds",
        20,
        &[edit(
            "logic/replication.rs",
            "held.extend(first, entries);\n        held.apply_to(commit, |_, _| {});",
            r#"held.extend(first, entries);
        let commit = if planted!("FollowerApplies") { held.last() } else { commit };
        held.apply_to(commit, |_, _| {});"#,
        )],
    ),
    bug(
        "ShrinksEarly",
        "rule 2: a slow member is not waited for once its leave is asked for",
        30,
        &[edit(
            "logic/replication.rs",
            "out.push(ReplicaOutput::Ask(MapRequest::Drop {",
            r#"if planted!("ShrinksEarly") {
                    progress.required = false;
                }
                out.push(ReplicaOutput::Ask(MapRequest::Drop {"#,
        )],
    ),
    bug(
        "PromotesUnsynced",
        "rule 3: a learner is counted without having acknowledged a sync",
        10,
        &[edit(
            "logic/replication.rs",
            "let ready = progress.required && progress.mode == Mode::Stream && progress.acked >= progress.required_from;",
            r#"let ready = planted!("PromotesUnsynced")
            || progress.required && progress.mode == Mode::Stream && progress.acked >= progress.required_from;"#,
        )],
    ),
    bug(
        "ExpandsLate",
        "rule 3: a learner is required only when the map says that it is in-sync",
        10,
        &[
            edit(
                "logic/replication.rs",
                "progress.required = true;\n            progress.required_from = held.last();",
                r#"progress.required = true;
            progress.required_from = held.last();
            progress.only_asked = planted!("ExpandsLate");"#,
            ),
            edit(
                "logic/replication.rs",
                "let required = primary.members.values().filter(|progress| progress.required);",
                r#"let required =
            primary.members.values().filter(|progress| progress.required && !(planted!("ExpandsLate") && progress.only_asked));"#,
            ),
            edit(
                "logic/replication.rs",
                "primary.members.retain(|member, _| assignment.is_in_sync(member));",
                r#"primary.members.retain(|member, _| assignment.is_in_sync(member));
        if planted!("ExpandsLate") {
            primary.members.values_mut().for_each(|progress| progress.only_asked = false);
        }"#,
            ),
            edit(
                "logic/replication.rs",
                "    asked_ms: u64,\n",
                "    asked_ms: u64,\n    /// For planted!(\"ExpandsLate\").\n    only_asked: bool,\n",
            ),
            edit(
                "logic/replication.rs",
                "            asked_ms: 0,",
                "            asked_ms: 0,\n            only_asked: planted!(\"ExpandsLate\") && !required,",
            ),
        ],
    ),
    bug(
        "CountsOldAcks",
        "rule 3: an acknowledgement from before a member was dropped and came back is counted",
        2_300,
        &[edit(
            "logic/replication.rs",
            "if primary.term != term || progress.sync != sync || index > held.last() {",
            r#"if primary.term != term || (progress.sync != sync && !planted!("CountsOldAcks")) || index > held.last() {"#,
        )],
    ),
    bug(
        "AnyoneTakesOver",
        "rule 4: a learner takes over whose primary had not asked to have it in-sync",
        10,
        &[edit(
            "logic/plan/repair.rs",
            "asked.then(|| current.clone())",
            r#"(asked || planted!("AnyoneTakesOver")).then(|| current.clone())"#,
        )],
    ),
    bug(
        "ForgetsTheLiving",
        "rule 4: a slot starts again when its members are believed dead, not known to be",
        30,
        &[edit(
            "logic/plan/repair.rs",
            "assignment.in_sync.iter().all(|member| draft.is_lost(member))",
            r#"assignment
                .in_sync
                .iter()
                .all(|member| if planted!("ForgetsTheLiving") { draft.is_dead(member) } else { draft.is_lost(member) })"#,
        )],
    ),
    bug(
        "ServesTooSoon",
        "rule 4: a new primary serves before what it took over is committed",
        10,
        &[edit(
            "logic/replication.rs",
            "(held.applied >= primary.barrier).then_some(primary.term)",
            r#"(planted!("ServesTooSoon") || held.applied >= primary.barrier).then_some(primary.term)"#,
        )],
    ),
    bug(
        "IgnoresTheTerm",
        "rule 4: the appends of an old primary are taken, and acknowledged",
        30,
        &[
            edit(
                "logic/replication.rs",
                "if term < self.known_term() || self.primary.as_ref().is_some_and(|primary| primary.term >= term)",
                r#"if !planted!("IgnoresTheTerm") && (term < self.known_term()
            || self.primary.as_ref().is_some_and(|primary| primary.term >= term))"#,
            ),
            edit(
                "logic/replication.rs",
                "if held.sync != sync || held.synced_term != term {",
                r#"if !planted!("IgnoresTheTerm") && (held.sync != sync || held.synced_term != term) {"#,
            ),
        ],
    ),
    bug(
        "KeepsItsSuffix",
        "rule 5: a member keeps what it holds uncommitted under a new primary",
        210,
        &[edit(
            "logic/replication/held.rs",
            "self.log.truncate((keep + 1).saturating_sub(self.log_first) as usize);",
            r#"if !planted!("KeepsItsSuffix") {
            self.log.truncate((keep + 1).saturating_sub(self.log_first) as usize);
        }"#,
        )],
    ),
    bug(
        "ReconcilesInSteps",
        "rule 5: a suffix is discarded before all is here that takes its place",
        1_700,
        &[edit(
            "logic/replication/held.rs",
            "            self.staged = Some(staged);\n            return false;",
            r#"            if planted!("ReconcilesInSteps") {
                let known = with.base.max(self.applied);
                self.log.truncate((known + 1).saturating_sub(self.log_first) as usize);
                self.extend(with.base + 1, staged.entries.clone());
            }
            self.staged = Some(staged);
            return false;"#,
        )],
    ),
    bug(
        "KnowsOnlyNodes",
        "rule 6: a restarted node takes itself for the member that it was",
        10,
        &[
            edit(
                "logic/replication.rs",
                "if assignment.primary != self.me {",
                r#"if assignment.primary != self.me
            && !(planted!("KnowsOnlyNodes") && assignment.primary.node == self.me.node)
        {"#,
            ),
            edit(
                "logic/replication.rs",
                "if self.held.is_none() && starts_empty && assignment.in_sync == [self.me.clone()] {",
                r#"if self.held.is_none()
            && starts_empty
            && (assignment.in_sync == [self.me.clone()]
                || planted!("KnowsOnlyNodes") && assignment.in_sync.iter().any(|member| member.node == self.me.node))
        {"#,
            ),
        ],
    ),
    bug(
        "RestartedIsAlive",
        "rule 6: the planner takes a restarted node for the member that it was",
        10,
        &[edit(
            "logic/plan/draft.rs",
            "if facts.generation > member.generation {",
            r#"if facts.generation > member.generation && !planted!("RestartedIsAlive") {"#,
        )],
    ),
    bug(
        "TakesOldMaps",
        "rules 2 and 3: an old version of the map is taken for news",
        180,
        &[
            edit(
                "sim/node.rs",
                "if self.process(node).map.as_ref().is_some_and(|known| known.version >= map.version) {",
                r#"if self.process(node).map.as_ref().is_some_and(|known| match planted!("TakesOldMaps") {
            true => known.version == map.version,
            false => known.version >= map.version,
        }) {"#,
            ),
            edit(
                "logic/hints.rs",
                "HintInput::Sent { by, map } => self.hear(by, Told { version: map.version, map: Some(map) }, now_ms),",
                r#"HintInput::Sent { by, map } => {
                if planted!("TakesOldMaps") {
                    out.push(HintOutput::Take(map.clone()));
                }
                self.hear(by, Told { version: map.version, map: Some(map) }, now_ms);
            }"#,
            ),
            edit(
                "explore/world.rs",
                "if self.copies.map(*map).changed_at > copy.version() {",
                r#"if planted!("TakesOldMaps") || self.copies.map(*map).changed_at > copy.version() {"#,
            ),
        ],
    ),
    bug(
        "CarriesOutOldRequests",
        "rules 2 and 3: what was asked under one assignment is done under another",
        90,
        &[
            edit(
                "logic/plan/repair.rs",
                "if *changed_at == before.changed_at && assignment.learner.as_ref() == Some(learner) {",
                r#"if (*changed_at == before.changed_at || planted!("CarriesOutOldRequests"))
                    && assignment.learner.as_ref() == Some(learner)
                {"#,
            ),
            edit(
                "logic/steward/asked.rs",
                "let stands = |of: &SlotAssignment| of.changed_at <= assignment_of(&known.request);",
                r#"let stands =
                |of: &SlotAssignment| planted!("CarriesOutOldRequests") || of.changed_at <= assignment_of(&known.request);"#,
            ),
        ],
    ),
    bug(
        "ForgetsTheWindow",
        "S4: a snapshot lacks the keys of earlier publishes",
        10,
        &[edit(
            "logic/slot/cut.rs",
            "while let Some(key) = group.log.key(place.keys) {",
            r#"while let Some(key) = group.log.key(place.keys).filter(|_| !planted!("ForgetsTheWindow")) {"#,
        )],
    ),
    bug(
        "SecondEpoch",
        "S3: opening an empty group again gives it another epoch",
        10,
        &[edit(
            "logic/slot/groups.rs",
            "        Arc::make_mut(self.0.entry(name.clone()).or_insert_with(new))",
            r#"        let there = Arc::make_mut(self.0.entry(name.clone()).or_insert_with(new));
        if planted!("SecondEpoch") && there.log.is_empty() {
            there.log = GroupLog::new(epoch);
        }
        there"#,
        )],
    ),
    bug(
        "ForgetsAtOnce",
        "S3: a new primary forgets groups whose gateways have not registered yet",
        1500,
        &[edit(
            "logic/primary/timers.rs",
            "self.groups.idle.get(name).copied().unwrap_or(now.mono_ms);",
            r#"match planted!("ForgetsAtOnce") {
            true => 0,
            false => self.groups.idle.get(name).copied().unwrap_or(now.mono_ms),
        };"#,
        )],
    ),
    bug(
        "AnswersOfTheForgotten",
        "S3: a gateway is told the epoch of a group whose end is under way",
        4_400,
        &[edit(
            "logic/primary/joins.rs",
            "!self.groups.forgetting.contains(group) &&",
            r#"(planted!("AnswersOfTheForgotten") || !self.groups.forgetting.contains(group)) &&"#,
        )],
    ),
    bug(
        "CountsTheLearner",
        "S3: an answer counts a copy that could not take over",
        10,
        &[edit(
            "logic/replication.rs",
            "self.assignment.as_ref().map_or(0, |assignment| assignment.in_sync.len().min(255) as u8)",
            r#"self.assignment.as_ref().map_or(0, |assignment| {
            let learners = u8::from(planted!("CountsTheLearner") && assignment.learner.is_some());
            assignment.in_sync.len().min(255) as u8 + learners
        })"#,
        )],
    ),
    bug(
        "ReconcilesByLength",
        "rule 5: a member that holds more than the new primary keeps what it has",
        210,
        &[edit(
            "logic/replication/held.rs",
            "let keep = with.base.max(self.applied);",
            r#"let keep = match planted!("ReconcilesByLength") && self.last() > with.until {
            true => self.last(),
            false => with.base.max(self.applied),
        };"#,
        )],
    ),
    bug(
        "RefusesWhatWasLost",
        "S3: a publish is said to be refused, although an earlier attempt at it was carried out",
        1_300,
        &[edit(
            "logic/asking.rs",
            "SlotError::NotEnoughCopies { .. })\n                if self.may_be_done =>",
            r#"SlotError::NotEnoughCopies { .. })
                if self.may_be_done && !planted!("RefusesWhatWasLost") =>"#,
        )],
    ),
    bug(
        "RefusesWhatWasOrdered",
        "S3: a publish that a deposed primary had ordered is said to be refused, and its successor commits it",
        200,
        &[edit(
            "logic/asking.rs",
            "self.may_be_done |= ordered;",
            r#"if ordered && planted!("RefusesWhatWasOrdered") {
                    return self.end(Err(SlotError::Unavailable), out);
                }
                self.may_be_done |= ordered;"#,
        )],
    ),
    bug(
        "AsksForTheGone",
        "S7: an attach is sent again though its client is gone, and displaces the client's later connection",
        100,
        &[edit(
            "logic/asking.rs",
            "                self.is_over = true;",
            r#"                self.is_over = !planted!("AsksForTheGone");"#,
        )],
    ),
    bug(
        "GivesNumbersAgain",
        "S3: the answer to an attempt that was given up is taken for the answer to another request",
        100,
        &[edit(
            "logic/asking/outstanding.rs",
            "        self.last += 1;",
            r#"        self.last = match planted!("GivesNumbersAgain") {
            true => (1..).find(|number| !self.asked.contains_key(number)).unwrap_or(0),
            false => self.last + 1,
        };"#,
        )],
    ),
    bug(
        "OnlyClientsKnow",
        "S2: messages are left out, and the simulator's own books do not show it: only the history checker does",
        10,
        &[
            edit(
                "logic/feed/position.rs",
                "if self.live.len() > except.len() {",
                r#"if self.live.len() > except.len() && !(planted!("OnlyClientsKnow") && offset % 7 == 3) {"#,
            ),
            edit(
                "sim/checks.rs",
                "        self.violation.get_or_insert(what);",
                r#"        if !(planted!("OnlyClientsKnow") && what.starts_with('S')) {
            self.violation.get_or_insert(what);
        }"#,
            ),
        ],
    ),
];
