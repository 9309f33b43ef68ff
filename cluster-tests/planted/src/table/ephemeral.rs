//! In what is passed on and kept nowhere.

use super::{Planted, bug, edit};

pub(super) const TABLE: &[Planted] = &[
    bug(
        "KeepsTheEphemeral",
        "an ephemeral message takes a place in the log",
        30,
        &[edit(
            "logic/primary/groups.rs",
            "                self.pass_on(now, group, publish, out);\n",
            r#"                if planted!("KeepsTheEphemeral") {
                    let message = |data| crate::logic::entry::NewMessage {
                        key: crate::logic::id::PublishKey(u128::from(self.chance.number())),
                        data,
                    };
                    let messages = publish.data.iter().cloned().map(message).collect();
                    let retention = crate::logic::entry::Retention {
                        messages: 1_000,
                        bytes: 1 << 20,
                        age_ms: 600_000,
                        window_ms: 300_000,
                        window_publishes: 10_000,
                    };
                    let epoch = self.new_epoch();
                    let entry = GroupEntry::Publish { epoch, messages, from: None, at_ms: now.wall_ms, retention };
                    self.order_group(group.clone(), entry, None);
                }
                self.pass_on(now, group, publish, out);
"#,
        )],
    ),
    bug(
        "RepeatsTheEphemeral",
        "an ephemeral message is asked for again though it may have been passed on, and comes twice",
        70,
        &[edit(
            "logic/asking.rs",
            "        self.is_over || self.at_most_once && self.may_be_done\n",
            r#"        self.is_over || self.at_most_once && self.may_be_done && !planted!("RepeatsTheEphemeral")
"#,
        )],
    ),
];
