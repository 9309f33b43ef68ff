//! Who is present in a group: clients have seats, and a session is present while one of its clients is.

use std::{
    collections::BTreeMap,
    ops::{
        Bound::{Excluded, Unbounded},
        RangeInclusive,
    },
    sync::Arc,
};

use crate::{
    entry::{MemberEvent, Presence, Present},
    id::{AttachmentNumber, ClientKey, Seat, SessionId},
};

/// The present of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// A session's clients stand beside each other.
    seats: BTreeMap<(SessionId, ClientKey), Presence>,
    sessions: u64,
    /// How many of these each user has; that of those without one is empty.
    users: BTreeMap<Arc<str>, u64>,
    /// What all of it takes, in bytes, about.
    pub(super) held_bytes: u64,
}

impl Members {
    /// A client is present, unless a later attachment of it is, or more is known of its session already. What the group is told
    /// of the session, if anything.
    pub(super) fn join(&mut self, mut member: Presence) -> Option<(MemberEvent, Presence)> {
        let session = member.session;
        let before = self.shown(session).map(|shown| (shown.user.clone(), shown.info.clone()));
        let place = (session, member.client);
        if self.seats.get(&place).is_none_or(|there| Self::succeeds(&member, there)) {
            // A session has one user, and a user one text.
            member.user = match &before {
                Some((user, _)) => user.clone(),
                None => self.users.get_key_value(&member.user).map_or(member.user, |(user, _)| user.clone()),
            };
            self.held_bytes += member.held_bytes();
            let earlier = self.seats.insert(place, member);
            self.held_bytes -= earlier.as_ref().map_or(0, Presence::held_bytes);
        }
        let shown = self.shown(session)?;
        if let Some((_, info)) = before {
            return (info != shown.info).then(|| (MemberEvent::Update, shown.clone()));
        }
        let shown = shown.clone();
        self.sessions += 1;
        *self.users.entry(shown.user.clone()).or_default() += 1;
        Some((MemberEvent::Join, shown))
    }

    /// Whether it takes the place of what is known of its client.
    fn succeeds(member: &Presence, there: &Presence) -> bool {
        let order = |presence: &Presence| (presence.attachment, presence.revision);
        order(there) <= order(member)
    }

    /// Whether its client is present by the same attachment, and less is known of its session.
    pub(super) fn would_update(&self, member: &Presence) -> bool {
        let there = self.seats.get(&(member.session, member.client));
        there.is_some_and(|there| there.attachment == member.attachment && there.revision < member.revision)
    }

    /// Whether there is someone on this seat, and by no later attachment.
    pub(super) fn would_leave(&self, seat: &Seat) -> bool {
        self.seats.get(&(seat.session, seat.client)).is_some_and(|there| there.attachment <= seat.attachment)
    }

    /// A client is present no longer. Its presence, where it was the last one of its session.
    ///
    /// # Panics
    /// Where a session was counted for no user.
    pub(super) fn leave(&mut self, seat: &Seat) -> Option<Presence> {
        if !self.would_leave(seat) {
            return None;
        }
        let member = self.seats.remove(&(seat.session, seat.client))?;
        self.held_bytes -= member.held_bytes();
        let left = self.seats.range_mut(of(member.session)).map(|(_, left)| left);
        if let Some(shown) = left.max_by_key(|left| knows(left)) {
            // What the group was told last of the session stays so, whichever client knew it.
            if shown.revision < member.revision {
                self.held_bytes -= shown.held_bytes();
                (shown.info, shown.revision) = (member.info, member.revision);
                self.held_bytes += shown.held_bytes();
            }
            return None;
        }
        self.sessions -= 1;
        let of_user = self.users.get_mut(&member.user).expect("a session that is present is its user's");
        *of_user -= 1;
        if *of_user == 0 {
            self.users.remove(&member.user);
        }
        Some(member)
    }

    /// Nobody is there.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// How many are there; it takes no longer where there are many.
    pub fn present(&self) -> Present {
        let anonymous = self.users.get("").copied();
        Present {
            sessions: self.sessions,
            clients: self.seats.len() as u64,
            users: self.users.len() as u64 - u64::from(anonymous.is_some()),
            anonymous: anonymous.unwrap_or(0),
        }
    }

    /// What is told of a session: by the client that knows most of it.
    fn shown(&self, session: SessionId) -> Option<&Presence> {
        self.of(session).max_by_key(|member| knows(member))
    }

    /// The clients of a session that are there.
    pub fn of(&self, session: SessionId) -> impl Iterator<Item = &Presence> {
        self.seats.range(of(session)).map(|(_, member)| member)
    }

    /// All clients, by session.
    pub fn iter(&self) -> impl Iterator<Item = &Presence> {
        self.seats.values()
    }

    /// Those that follow a seat, or all.
    pub(super) fn after(&self, seat: Option<(SessionId, ClientKey)>) -> impl Iterator<Item = &Presence> {
        self.seats.range((seat.map_or(Unbounded, Excluded), Unbounded)).map(|(_, member)| member)
    }

    /// The sessions after this one, by id, each with how many of its clients are there: as the client has it that knows most of it.
    pub fn sessions_after(&self, after: Option<SessionId>) -> impl Iterator<Item = (&Presence, u32)> {
        let last = after.map(|session| (session, ClientKey::MAX));
        let mut seats = self.after(last).peekable();
        std::iter::from_fn(move || {
            let (mut shown, mut clients) = (seats.next()?, 1);
            while let Some(next) = seats.next_if(|next| next.session == shown.session) {
                clients += 1;
                shown = [shown, next].into_iter().max_by_key(|member| knows(member))?;
            }
            Some((shown, clients))
        })
    }
}

/// How much a client knows of its session: the one that knows most is shown.
fn knows(member: &Presence) -> (u64, AttachmentNumber) {
    (member.revision, member.attachment)
}

/// The places of a session's clients.
fn of(session: SessionId) -> RangeInclusive<(SessionId, ClientKey)> {
    (session, ClientKey::MIN)..=(session, ClientKey::MAX)
}

impl FromIterator<Presence> for Members {
    fn from_iter<I: IntoIterator<Item = Presence>>(members: I) -> Self {
        let mut this = Self::default();
        members.into_iter().for_each(|member| {
            this.join(member);
        });
        this
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    fn member(session: u128, client: u64, user: &str, (attachment, revision): (u64, u64)) -> Presence {
        let (session, client) = (SessionId(Uuid::from_u128(session)), ClientKey(client));
        let info = Bytes::from(format!("{{\"of\":{revision}}}"));
        Presence { session, client, user: user.into(), info, revision, attachment }
    }

    fn told(changed: Option<(MemberEvent, Presence)>) -> Option<(MemberEvent, u64)> {
        changed.map(|(event, member)| (event, member.revision))
    }

    #[test]
    fn a_session_comes_with_its_first_client_and_goes_with_its_last() {
        let mut members = Members::default();
        assert_eq!(told(members.join(member(1, 1, "ann", (1, 0)))), Some((MemberEvent::Join, 0)));
        assert_eq!(told(members.join(member(1, 2, "ann", (2, 0)))), None);
        assert_eq!(members.leave(&member(1, 1, "ann", (1, 0)).seat()), None);
        assert_eq!(members.leave(&member(1, 2, "ann", (1, 0)).seat()), None, "a later attachment has the seat");
        assert!(members.leave(&member(1, 2, "ann", (2, 0)).seat()).is_some());
        assert_eq!(members, Members::default(), "nothing is left");
    }

    #[test]
    fn other_attributes_are_told_once_whichever_client_brings_them() {
        let mut members = Members::default();
        members.join(member(1, 1, "ann", (1, 0)));
        members.join(member(1, 2, "ann", (2, 0)));
        let (first, second) = (member(1, 1, "ann", (1, 3)), member(1, 2, "ann", (2, 3)));
        assert!(members.would_update(&first) && members.would_update(&second));
        assert_eq!(
            told(members.join(first.clone())),
            Some((MemberEvent::Update, 3)),
            "though the other one attached last"
        );
        assert_eq!(told(members.join(second.clone())), None);
        assert!(!members.would_update(&first), "it is known");
        assert_eq!(members.join(member(1, 2, "ann", (2, 1))), None, "a late one changes nothing");
        assert_eq!(members.sessions_after(None).map(|(shown, clients)| (shown.revision, clients)).next(), Some((3, 2)));
        members.leave(&first.seat());
        assert!(!members.would_update(&member(1, 1, "ann", (1, 9))), "who has left does not come back by it");
        assert!(!members.would_update(&member(1, 2, "ann", (1, 9))), "nor does an earlier attachment speak");
    }

    #[test]
    fn what_was_told_of_a_session_stays_when_the_client_goes_that_brought_it() {
        let mut members = Members::default();
        members.join(member(1, 1, "ann", (1, 0)));
        // One that is in its grace: nobody brings it what is new.
        members.join(member(1, 2, "ann", (2, 0)));
        members.join(member(1, 1, "ann", (1, 5)));
        assert_eq!(members.leave(&member(1, 1, "ann", (1, 5)).seat()), None);
        let (shown, _) = members.sessions_after(None).next().unwrap();
        assert_eq!((shown.revision, shown.client), (5, ClientKey(2)));
        let recounted: u64 = members.iter().map(Presence::held_bytes).sum();
        assert_eq!(members.held_bytes, recounted);
    }

    #[test]
    fn users_are_counted_once_and_those_without_a_name_by_session() {
        let mut members = Members::default();
        for (session, client, user) in
            [(1, 1, "ann"), (1, 2, "ann"), (2, 1, "ann"), (3, 1, "bob"), (4, 1, ""), (5, 1, "")]
        {
            members.join(member(session, client, user, (1, 0)));
        }
        assert_eq!(members.present(), Present { sessions: 5, clients: 6, users: 2, anonymous: 2 });
        members.join(member(3, 2, "eve", (1, 0)));
        assert_eq!(members.present().users, 2, "a session has one user, whatever a peer says");
        for (session, client) in [(1, 1), (3, 1), (3, 2), (4, 1), (5, 1)] {
            members.leave(&member(session, client, "", (1, 0)).seat());
        }
        assert_eq!(members.present(), Present { sessions: 2, clients: 2, users: 1, anonymous: 0 });
        let again: Members = members.iter().cloned().collect();
        assert_eq!(again, members, "a copy counts the same");
    }
}
