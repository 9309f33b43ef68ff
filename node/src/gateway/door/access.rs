//! What a client may do with a group. The namespace's word comes first, then the session's grants; a group that a session
//! is in by the server's word it may read in any case.

use crate::{
    config::{Allow, NamespaceConfig},
    id::GroupName,
    logic::entry::{Grant, are_granted},
};

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// A name that Roost makes itself.
    #[error(
        "names with '@' are Roost's own: a session is in its private groups from the start, and only the server publishes to them"
    )]
    Private,
    /// The session has grants, or the namespace asks for them, and none fits.
    #[error("none of the session's grants allows this")]
    NotGranted,
    /// Only members.
    #[error("only sessions that have joined the group may do this")]
    NotMember,
    /// Only the server.
    #[error("in this namespace only the server may do this, over HTTP")]
    Nobody,
}

/// Whether a client may join. `member`: the session is in the group already.
pub fn may_join(options: &NamespaceConfig, grants: &[Grant], member: bool, group: &GroupName) -> Result<(), Denied> {
    if group.is_private() {
        return Err(Denied::Private);
    }
    if member {
        return Ok(());
    }
    let granted = are_granted(grants, needs_grant(options), |grant| grant.join && grant.matches(group.as_str()));
    allowed(options.join, granted, member)
}

/// Whether sessions without grants may not join.
pub fn needs_grant(options: &NamespaceConfig) -> bool {
    options.join == Allow::Granted
}

/// Whether a client may read a group's history and members.
pub fn may_read(options: &NamespaceConfig, grants: &[Grant], member: bool, group: &GroupName) -> Result<(), Denied> {
    if member { Ok(()) } else { may_join(options, grants, member, group) }
}

/// Whether a client may publish.
pub fn may_publish(options: &NamespaceConfig, grants: &[Grant], member: bool, group: &GroupName) -> Result<(), Denied> {
    if group.is_private() {
        return Err(Denied::Private);
    }
    let needs_grant = options.publish == Allow::Granted;
    let granted = are_granted(grants, needs_grant, |grant| grant.publish && grant.matches(group.as_str()));
    allowed(options.publish, granted, member)
}

fn allowed(allow: Allow, granted: bool, member: bool) -> Result<(), Denied> {
    match allow {
        Allow::Nobody => Err(Denied::Nobody),
        _ if !granted => Err(Denied::NotGranted),
        Allow::Members if !member => Err(Denied::NotMember),
        Allow::Any | Allow::Members | Allow::Granted => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(pattern: &str, join: bool, publish: bool) -> Grant {
        Grant { pattern: pattern.to_owned(), join, publish }
    }

    fn options(join: Allow, publish: Allow) -> NamespaceConfig {
        NamespaceConfig { join, publish, ..NamespaceConfig::default() }
    }

    #[test]
    fn who_may_join_and_read() {
        let check = |allow,
                     grants: &[Grant],
                     member,
                     group: &str,
                     join: Result<(), Denied>,
                     read: Result<(), Denied>| {
            let (options, group) = (options(allow, Allow::Any), GroupName::parse(group).unwrap());
            assert_eq!(may_join(&options, grants, member, &group), join, "join {allow:?} {grants:?} {member} {group}");
            assert_eq!(may_read(&options, grants, member, &group), read, "read {allow:?} {grants:?} {member} {group}");
        };
        let (not_granted, nobody) = (Err(Denied::NotGranted), Err(Denied::Nobody));
        let chat = [grant("chat:*", true, false)];
        check(Allow::Any, &[], false, "chat:1", Ok(()), Ok(()));
        check(Allow::Any, &chat, false, "chat:1", Ok(()), Ok(()));
        check(Allow::Any, &chat, false, "news", not_granted, not_granted);
        check(Allow::Any, &chat, true, "news", Ok(()), Ok(()));
        check(Allow::Any, &[grant("chat:*", false, true)], false, "chat:1", not_granted, not_granted);
        check(Allow::Granted, &[], false, "chat:1", not_granted, not_granted);
        check(Allow::Granted, &chat, false, "chat:1", Ok(()), Ok(()));
        check(Allow::Members, &[], false, "chat:1", Err(Denied::NotMember), Err(Denied::NotMember));
        check(Allow::Nobody, &chat, false, "chat:1", nobody, nobody);
        check(Allow::Nobody, &[], true, "chat:1", Ok(()), Ok(()));
        check(Allow::Any, &[grant("*", true, true)], false, "@user:a", Err(Denied::Private), Err(Denied::Private));
        check(Allow::Any, &[], true, "@user:a", Err(Denied::Private), Ok(()));
    }

    #[test]
    fn who_may_publish() {
        let check = |allow, grants: &[Grant], member, group: &str, wanted: Result<(), Denied>| {
            let (options, group) = (options(Allow::Any, allow), GroupName::parse(group).unwrap());
            assert_eq!(may_publish(&options, grants, member, &group), wanted, "{allow:?} {grants:?} {member} {group}");
        };
        let chat = [grant("chat:*", true, true), grant("news", true, false)];
        check(Allow::Any, &[], false, "chat:1", Ok(()));
        check(Allow::Members, &[], false, "chat:1", Err(Denied::NotMember));
        check(Allow::Members, &[], true, "chat:1", Ok(()));
        check(Allow::Members, &chat, true, "chat:1", Ok(()));
        check(Allow::Members, &chat, false, "chat:1", Err(Denied::NotMember));
        check(Allow::Members, &chat, true, "news", Err(Denied::NotGranted));
        check(Allow::Granted, &[], true, "chat:1", Err(Denied::NotGranted));
        check(Allow::Granted, &chat, false, "chat:1", Ok(()));
        check(Allow::Nobody, &chat, true, "chat:1", Err(Denied::Nobody));
        check(Allow::Any, &[grant("*", true, true)], true, "@user:a", Err(Denied::Private));
    }
}
