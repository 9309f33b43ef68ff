//! Who is present in a group: clients have seats, and a session is present while one of its clients is.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
};

use crate::{
    entry::Presence,
    id::{ClientKey, Seat, SessionId},
};

/// The present of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// A session's clients stand beside each other.
    seats: BTreeMap<(SessionId, ClientKey), Presence>,
    sessions: u64,
    /// What all of it takes, in bytes, about.
    pub(super) held_bytes: u64,
}

impl Members {
    /// A client is present, unless a later attachment of it is. Whether it is the first one of its session.
    pub(super) fn join(&mut self, member: Presence) -> bool {
        let is_new = self.of(member.session).next().is_none();
        let place = (member.session, member.client);
        if self.seats.get(&place).is_none_or(|there| there.attachment <= member.attachment) {
            self.held_bytes += member.held_bytes();
            let earlier = self.seats.insert(place, member);
            self.held_bytes -= earlier.as_ref().map_or(0, Presence::held_bytes);
        }
        self.sessions += u64::from(is_new);
        is_new
    }

    /// Whether there is someone on this seat, and by no later attachment.
    pub(super) fn would_leave(&self, seat: &Seat) -> bool {
        self.seats.get(&(seat.session, seat.client)).is_some_and(|there| there.attachment <= seat.attachment)
    }

    /// A client is present no longer. Its presence, where it was the last one of its session.
    pub(super) fn leave(&mut self, seat: &Seat) -> Option<Presence> {
        if !self.would_leave(seat) {
            return None;
        }
        let member = self.seats.remove(&(seat.session, seat.client))?;
        self.held_bytes -= member.held_bytes();
        let is_last = self.of(member.session).next().is_none();
        self.sessions -= u64::from(is_last);
        is_last.then_some(member)
    }

    /// Nobody is there.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// How many sessions are there.
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// How many clients.
    pub fn clients(&self) -> u64 {
        self.seats.len() as u64
    }

    /// The clients of a session that are there.
    pub fn of(&self, session: SessionId) -> impl Iterator<Item = &Presence> {
        let all = (Included((session, ClientKey::MIN)), Included((session, ClientKey::MAX)));
        self.seats.range(all).map(|(_, member)| member)
    }

    /// All clients, by session.
    pub fn iter(&self) -> impl Iterator<Item = &Presence> {
        self.seats.values()
    }

    /// Those that follow a seat, or all.
    pub(super) fn after(&self, seat: Option<(SessionId, ClientKey)>) -> impl Iterator<Item = &Presence> {
        self.seats.range((seat.map_or(Unbounded, Excluded), Unbounded)).map(|(_, member)| member)
    }

    /// The sessions after this one, by id, each with how many of its clients are there: as the latest attachment has it.
    pub fn sessions_after(&self, after: Option<SessionId>) -> impl Iterator<Item = (&Presence, u32)> {
        let last = after.map(|session| (session, ClientKey::MAX));
        let mut seats = self.after(last).peekable();
        std::iter::from_fn(move || {
            let (mut latest, mut clients) = (seats.next()?, 1);
            while let Some(next) = seats.next_if(|next| next.session == latest.session) {
                clients += 1;
                if next.attachment > latest.attachment {
                    latest = next;
                }
            }
            Some((latest, clients))
        })
    }
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
