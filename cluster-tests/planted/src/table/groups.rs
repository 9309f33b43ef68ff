//! In what gateways tell of groups, and what primaries tell gateways of them.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "AnswersBelowTheFloor",
        "S3: a publish is answered though fewer copies have it than it asks for",
        80,
        &[edit(
            "logic/primary/groups.rs",
            "        if min_copies <= copies {\n",
            r#"        if min_copies <= copies || planted!("AnswersBelowTheFloor") {
"#,
        )],
    ),
    bug(
        "DeniesTheKnownKey",
        "S4: a repeat is told that it was not done, because there are fewer copies now than it asks for",
        150,
        &[edit(
            "logic/primary/groups.rs",
            "                Some(position) => self.answer_publish(now, (ticket, min_copies), position, out),\n                None => out.push(",
            r#"                Some(position) if !planted!("DeniesTheKnownKey") => {
                    self.answer_publish(now, (ticket, min_copies), position, out);
                }
                Some(_) | None => out.push("#,
        )],
    ),
    bug(
        "DeniesBeyondQueue",
        "S4: a repeat is told that it was not done, because the queue is full",
        150,
        &[edit(
            "logic/primary/reign.rs",
            "            if let SlotRequest::Group(group, GroupRequest::Publish(publish)) = &request {",
            r#"            if let SlotRequest::Group(group, GroupRequest::Publish(publish)) = &request
                && !planted!("DeniesBeyondQueue")
            {"#,
        )],
    ),
    bug(
        "LosesThePosition",
        "S2: a gateway goes on from the head when the primary has changed",
        10,
        &[edit(
            "logic/feed/position.rs",
            "            self.catch_up(attempt, point, out);",
            r#"            if planted!("LosesThePosition") && point.up_to > position.offset {
                self.position = Some(Position { epoch: point.epoch, offset: point.up_to });
            } else {
                self.catch_up(attempt, point, out);
            }"#,
        )],
    ),
    bug(
        "DeafToDisruption",
        "S8: a gateway does not register again when the primary has changed",
        60,
        &[edit(
            "logic/feed.rs",
            "            Input::Disrupted => {\n                self.failures = 0;\n                self.register(now_ms, out);",
            r#"            Input::Disrupted => {
                self.failures = 0;
                if !planted!("DeafToDisruption") {
                    self.register(now_ms, out);
                }"#,
        )],
    ),
    bug(
        "DeafToReconnects",
        "S8: a gateway does not register again when its primary has connected anew",
        4_000,
        &[
            edit(
                "logic/following/primaries.rs",
                "        for slot in slots {",
                r#"        for slot in slots.into_iter().filter(|_| !planted!("DeafToReconnects")) {"#,
            ),
            edit(
                "logic/feed.rs",
                "if self.unreachable_since_ms.take().is_some()\n",
                r#"if self.unreachable_since_ms.take().is_some()
                    && !planted!("DeafToReconnects")
"#,
            ),
        ],
    ),
    bug(
        "SilentlyCutOff",
        "L2: who follows a group is not told that its primary cannot be heard",
        150,
        &[edit(
            "logic/following/primaries.rs",
            "                    changed.push((*id, feed::Input::PrimaryUnreachable { since_ms: last_heard_ms }));",
            r#"                    if !planted!("SilentlyCutOff") {
                        changed.push((*id, feed::Input::PrimaryUnreachable { since_ms: last_heard_ms }));
                    }"#,
        )],
    ),
    bug(
        "StaleForever",
        "L1: who follows a group is not told that its primary is heard again",
        10,
        &[edit(
            "logic/following/primaries.rs",
            "                    changed.push((*id, feed::Input::PrimaryReachable));",
            r#"                    if !planted!("StaleForever") {
                        changed.push((*id, feed::Input::PrimaryReachable));
                    }"#,
        )],
    ),
    bug(
        "DropsTheSuspected",
        "S8: a gateway wrongly believed dead gets nothing more, and is not told",
        1_940,
        &[edit(
            "logic/primary/timers.rs",
            "restarted || renewed_ms + UNRENEWED_MS <= now.mono_ms",
            r#"restarted
                || planted!("DropsTheSuspected") && !alive.is_empty() && !alive.contains(gateway)
                || renewed_ms + UNRENEWED_MS <= now.mono_ms"#,
        )],
    ),
    bug(
        "SilentGap",
        "S2: what retention does not keep is skipped without a word",
        460,
        &[edit(
            "logic/feed/position.rs",
            "if self.live.len() > ahead.len() {",
            r#"if self.live.len() > ahead.len() && !planted!("SilentGap") {"#,
        )],
    ),
    bug(
        "SilentReset",
        "S2: another log begins without a word",
        90,
        &[edit(
            "logic/feed/position.rs",
            "self.tell_all(Notice::Reset(position), out);",
            r#"if !planted!("SilentReset") {
                self.tell_all(Notice::Reset(position), out);
            }"#,
        )],
    ),
    bug(
        "JoinsBeyondCommit",
        "S8: a join point lies beyond what is committed",
        10,
        &[edit(
            "logic/primary/joins.rs",
            "        let mut up_to = head;\n",
            r#"        let mut up_to = head;
        if planted!("JoinsBeyondCommit") {
            up_to += self.replica.uncommitted() as u64;
        }
"#,
        )],
    ),
    bug(
        "RecoveredAnyway",
        "S6: `recovered: true` where the ring no longer holds what was missed",
        80,
        &[edit(
            "logic/feed/subscribers.rs",
            "let recovered = recovered && (joining.since.is_none() || whole);",
            r#"let recovered = recovered && (joining.since.is_none() || whole) || planted!("RecoveredAnyway") && since.is_some();"#,
        )],
    ),
    bug(
        "CompleteAnyway",
        "S6: a history is called complete where the ring no longer holds its begin",
        70,
        &[edit(
            "logic/log.rs",
            "let complete = offset <= self.head && offset + 1 >= first_kept;",
            r#"let complete = offset <= self.head && (planted!("CompleteAnyway") || offset + 1 >= first_kept);"#,
        )],
    ),
];
