//! Bugs in sessions, their attachments, and what the store has of them.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "DisplacesLazily",
        "S7: an attach is answered before the earlier connection is cut off",
        10,
        &[edit(
            "logic/primary/sessions/attaches.rs",
            "if displacing.earlier.keys().any(|gateway| !self.is_gone(gateway)) {",
            r#"if displacing.earlier.keys().any(|gateway| !self.is_gone(gateway)) && !planted!("DisplacesLazily") {"#,
        )],
    ),
    bug(
        "ForgetsToDisplace",
        "S7: the gateway of the earlier connection is never told",
        10,
        &[edit(
            "logic/primary/sessions.rs",
            "        self.push(to, Push::Session(session, push), out);",
            r#"        if planted!("ForgetsToDisplace") && matches!(push, SessionPush::Displace { .. }) {
            return;
        }
        self.push(to, Push::Session(session, push), out);"#,
        )],
    ),
    bug(
        "EndsWithoutTheStore",
        "sessions: an end is answered before the store has it",
        20,
        &[edit(
            "logic/primary/sessions.rs",
            "            (Some(SessionPending::End(ticket)), None | Some(SlotError::SessionEnded(_))) => {",
            r#"            (Some(SessionPending::End(ticket)), None) if planted!("EndsWithoutTheStore") => {
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
            }
            (Some(SessionPending::End(ticket)), None | Some(SlotError::SessionEnded(_))) => {"#,
        )],
    ),
    bug(
        "OldSaveWins",
        "sessions: an earlier write that comes late takes the place of a later one",
        220,
        &[edit(
            "sim/store.rs",
            "if row.record.is_some() && (ended || later) {",
            r#"if row.record.is_some() && (ended || later || planted!("OldSaveWins")) {"#,
        )],
    ),
    bug(
        "FailedSaveCounts",
        "sessions: a write that failed is taken for done",
        400,
        &[edit(
            "logic/primary/sessions/stored.rs",
            "        if result.is_ok() {\n            self.order_once(session, SessionEntry::Saved",
            r#"        if result.is_ok() || planted!("FailedSaveCounts") {
            self.order_once(session, SessionEntry::Saved"#,
        )],
    ),
    bug(
        "OrdersWritesWithoutTheTerm",
        "sessions: a write of a slot that has started again loses to one from before",
        40,
        &[edit(
            "logic/primary/sessions/stored.rs",
            "out.push(SlotOutput::Save { record, ended, term: self.term, index });",
            r#"let term = if planted!("OrdersWritesWithoutTheTerm") { 0 } else { self.term };
        out.push(SlotOutput::Save { record, ended, term, index });"#,
        )],
    ),
    bug(
        "EndsInMemory",
        "sessions: an end is never written to the store",
        20,
        &[edit(
            "logic/slot/sessions.rs",
            "            session.mark_changed(index);\n            return SessionEffect::Ended",
            r#"            session.mark_changed(if planted!("EndsInMemory") { session.saved } else { index });
            return SessionEffect::Ended"#,
        )],
    ),
    bug(
        "AnswersTheSecondEnd",
        "sessions: who asks for an end that another has asked for is answered before the store has it",
        700,
        &[edit(
            "logic/primary/sessions/stored.rs",
            "if self.state().and_then(|state| state.session(session)).is_some_and(Session::is_unsaved) {",
            r#"let told = planted!("AnswersTheSecondEnd") && self.sessions.writes.contains(&session);
        if !told && self.state().and_then(|state| state.session(session)).is_some_and(Session::is_unsaved) {"#,
        )],
    ),
    bug(
        "WritesEphemeral",
        "sessions: an ephemeral session is written to the store",
        20,
        &[
            edit(
                "logic/session.rs",
                "!self.record.id.is_ephemeral() && self.saved < self.changed",
                r#"(planted!("WritesEphemeral") || !self.record.id.is_ephemeral()) && self.saved < self.changed"#,
            ),
            edit(
                "logic/primary/sessions/stored.rs",
                "        if session.is_ephemeral() {\n            let answer",
                r#"        if session.is_ephemeral() && !planted!("WritesEphemeral") {
            let answer"#,
            ),
        ],
    ),
    bug(
        "OutlivesItsClient",
        "sessions: an ephemeral session is there when its client's grace is over",
        40,
        &[edit(
            "logic/session.rs",
            "        if over && !self.is_present() && self.record.id.is_ephemeral() {",
            r#"        if over && !self.is_present() && self.record.id.is_ephemeral() && !planted!("OutlivesItsClient") {"#,
        )],
    ),
    bug(
        "WritesJoins",
        "sessions: what a client joins becomes its session's, and is written to the store",
        10,
        &[edit(
            "logic/session.rs",
            "            client.join(group, needs_grant);",
            r#"            if planted!("WritesJoins") {
                self.record.groups.insert(group);
            } else {
                client.join(group, needs_grant);
            }"#,
        )],
    ),
    bug(
        "LosesJoins",
        "sessions: what a client has joined is lost where a renewal brings back its attachment",
        600,
        &[edit(
            "logic/session.rs",
            "if !knows_client && self.taken <= revision {",
            r#"if !knows_client && self.taken <= revision && !planted!("LosesJoins") {"#,
        )],
    ),
    bug(
        "JoinsOutliveTheClient",
        "sessions: what a client has joined is kept when its grace is over",
        10,
        &[edit(
            "logic/session/client.rs",
            "let joined = std::mem::take(&mut self.joined).into_keys();",
            r#"let joined = self.joined.clone().into_keys();
        if !planted!("JoinsOutliveTheClient") {
            self.joined.clear();
        }"#,
        )],
    ),
    bug(
        "RestoresToAnother",
        "sessions: a client that attaches is given what another client of its session has joined",
        100,
        &[edit(
            "logic/session.rs",
            "        let joined = self.client(key).map(|client| client.joined.clone());\n        ClientView",
            r#"        let whose = if planted!("RestoresToAnother") { self.clients.keys().next().copied() } else { Some(key) };
        let joined = whose.and_then(|key| self.client(key)).map(|client| client.joined.clone());
        ClientView"#,
        )],
    ),
    bug(
        "TakesLaterPresences",
        "presence: a late leave of an earlier attachment takes out what a later one of the client has joined",
        400,
        &[edit(
            "logic/slot/members.rs",
            "is_some_and(|there| there.attachment <= seat.attachment)\n    }",
            r#"is_some_and(|there| there.attachment <= seat.attachment || planted!("TakesLaterPresences"))
    }"#,
        )],
    ),
    bug(
        "CountsClientsTwice",
        "presence: a client that is back by another attachment counts as another session",
        50,
        &[edit(
            "logic/slot/members.rs",
            "let before = self.shown(session).map(",
            r#"let is_other = planted!("CountsClientsTwice")
            && self.of(session).all(|there| there.attachment < member.attachment);
        let before = self.shown(session).filter(|_| !is_other).map("#,
        )],
    ),
    bug(
        "ShowsOldAttributes",
        "presence: what a client showed before its session was changed is taken for newer",
        1_000,
        &[edit(
            "logic/slot/members.rs",
            "there.attachment == member.attachment && there.revision < member.revision",
            r#"there.attachment == member.attachment
            && there.revision < member.revision
            && !planted!("ShowsOldAttributes")"#,
        )],
    ),
    bug(
        "StaysUnseen",
        "presence: a client that its slot had lost sight of is not shown again in its groups",
        4_000,
        &[edit(
            "logic/attachments/renewals.rs",
            "if std::mem::take(&mut there.out_of_sight) {",
            r#"if std::mem::take(&mut there.out_of_sight) && !planted!("StaysUnseen") {"#,
        )],
    ),
    bug(
        "LeavesGhosts",
        "presence: what a client has left before it attached anew is not taken out where its earlier gateway has died",
        4_000,
        &[edit(
            "logic/session/client.rs",
            "self.departing.extend(left.into_iter().map(|group| (group, earlier.number)));",
            r#"if !planted!("LeavesGhosts") {
                self.departing.extend(left.into_iter().map(|group| (group, earlier.number)));
            }"#,
        )],
    ),
    bug(
        "ForgetsWhoIsOpen",
        "S7: a new primary does not know which earlier connections may be open",
        2200,
        &[edit(
            "logic/session/client.rs",
            "self.open.insert(earlier.gateway, earlier.number);",
            r#"if planted!("ForgetsWhoIsOpen") {
                self.open.clear();
            }
            self.open.insert(earlier.gateway, earlier.number);"#,
        )],
    ),
    bug(
        "TrustsTheSuspicion",
        "S7: an attachment whose gateway is believed dead counts as closed, also when that is not so",
        400,
        &[edit(
            "logic/session/client.rs",
            "            self.closed |= is_last;\n        }",
            r#"            self.closed |= is_last;
        } else if planted!("TrustsTheSuspicion") {
            self.closed |= is_last;
        }"#,
        )],
    ),
    bug(
        "UndoesTooEarly",
        "sessions: a goodbye is answered while the session is being loaded for the attach that it undoes",
        1_500,
        &[edit(
            "logic/primary/sessions/stored.rs",
            "if self.sessions.loading.contains_key(&session) || self.sessions.renewals.contains_key(&session) =>",
            r#"if !planted!("UndoesTooEarly")
                    && (self.sessions.loading.contains_key(&session) || self.sessions.renewals.contains_key(&session)) =>"#,
        )],
    ),
    bug(
        "GivesToTheSlow",
        "S7: an attach that was slow on its way displaces the connection that its client has opened since",
        460,
        &[edit(
            "logic/primary/sessions/attaches.rs",
            "if self.later_stays((session, key), (&gateway, connection), since_ms) {",
            r#"if self.later_stays((session, key), (&gateway, connection), since_ms) && !planted!("GivesToTheSlow") {"#,
        )],
    ),
    bug(
        "LosesGoodbyes",
        "sessions: a goodbye that was not heard is not said again, and the session stays attached",
        5_000,
        &[edit(
            "logic/attachments/goodbyes.rs",
            "        if is_heard(result) {",
            r#"        if is_heard(result) || planted!("LosesGoodbyes") {"#,
        )],
    ),
    bug(
        "LeavesUnknownAttaches",
        "sessions: an attach of unknown outcome is not undone, and its client is gone",
        1_000,
        &[edit(
            "logic/attachments.rs",
            "if error == SlotError::Unknown {",
            r#"if error == SlotError::Unknown && !planted!("LeavesUnknownAttaches") {"#,
        )],
    ),
    bug(
        "ForgetsNews",
        "S7: that an attachment is displaced is forgotten when it is heard before the answer that made it",
        2_200,
        &[edit(
            "logic/attachments.rs",
            "news.displaced = later.or(Some((number, why)));",
            r#"news.displaced = if planted!("ForgetsNews") { None } else { later.or(Some((number, why))) };"#,
        )],
    ),
];
