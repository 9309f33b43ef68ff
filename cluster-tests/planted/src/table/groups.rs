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
        "AcknowledgesBeforeTheLast",
        "S3: messages that were published together are answered before the last of them is committed",
        30,
        &[
            edit(
                "logic/primary/reign.rs",
                "    pub(super) delivering: Option<Delivering>,\n",
                r#"    pub(super) delivering: Option<Delivering>,
    /// For planted!("AcknowledgesBeforeTheLast").
    pub(super) late: Vec<(Ticket, GroupName, GroupEntry)>,
"#,
            ),
            edit(
                "logic/primary/reign.rs",
                "delivering: _, interests: _,",
                r#"delivering: _, late: _, /* for planted!("AcknowledgesBeforeTheLast") */ interests: _,"#,
            ),
            edit(
                "logic/primary/groups.rs",
                "        let entry = GroupEntry::Publish { epoch, messages, from, at_ms: now.wall_ms, retention };\n",
                r#"        let mut messages = messages;
        if planted!("AcknowledgesBeforeTheLast") && messages.len() > 1 {
            let (at_ms, from) = (now.wall_ms, from.clone());
            let mut all: Vec<_> = messages.into_iter().collect();
            let last = all.pop().into_iter().collect();
            messages = all.into_iter().collect();
            let entry = GroupEntry::Publish { epoch, messages: last, from, at_ms, retention };
            self.groups.late.push((ticket, group.clone(), entry));
        }
        let entry = GroupEntry::Publish { epoch, messages, from, at_ms: now.wall_ms, retention };
"#,
            ),
            edit(
                "logic/primary/groups.rs",
                "                let Some((epoch, offsets)) = placed else { unreachable!(\"a publish has come to no place\") };\n",
                r#"                let Some((epoch, mut offsets)) = placed else { unreachable!("a publish has come to no place") };
                if planted!("AcknowledgesBeforeTheLast")
                    && let Some(at) = self.groups.late.iter().position(|(of, ..)| *of == ticket)
                {
                    let (_, group, entry) = self.groups.late.remove(at);
                    let next = offsets.last().map(|last| last + 1);
                    offsets.extend(next);
                    self.order_group(group, entry, None);
                }
"#,
            ),
        ],
    ),
    bug(
        "ReordersTheRest",
        "S5: where some of the messages that are published together are repeats, the others come to stand in another order",
        30,
        &[
            edit(
                "logic/slot/groups.rs",
                "                for NewMessage { key, data } in new {\n",
                r#"                let mut new = new;
                let turns = planted!("ReordersTheRest") && new.iter().any(|message| log.seen(message.key).is_some());
                if turns {
                    new.reverse();
                }
                for NewMessage { key, data } in new {
"#,
            ),
            edit(
                "logic/slot/groups.rs",
                "                GroupEffect::Published { epoch: log.epoch(), offsets, messages }\n",
                r#"                if turns && planted!("ReordersTheRest") {
                    offsets.reverse();
                }
                GroupEffect::Published { epoch: log.epoch(), offsets, messages }
"#,
            ),
        ],
    ),
    bug(
        "DeniesTheKnownKey",
        "S4: a repeat is told that it was not done, because there are fewer copies now than it asks for",
        150,
        &[edit(
            "logic/primary/groups.rs",
            "                self.answer_recalled(now, (ticket, min_copies), recalled, refusal, out);\n",
            r#"                let recalled = recalled.filter(|_| !planted!("DeniesTheKnownKey"));
                self.answer_recalled(now, (ticket, min_copies), recalled, refusal, out);
"#,
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
