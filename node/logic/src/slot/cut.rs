//! A state in pieces. Each is cut when it is asked for, from a state that does not change meanwhile: nobody holds it twice.
//!
//! A piece is a [`SlotSnapshot`] of a part: groups by name, of each its messages, then its keys, then its members; and then
//! sessions. What does not end with a piece goes on at the beginning of the next one.

use std::ops::Bound::{Excluded, Unbounded};

use super::{Group, SlotSnapshot, SlotState};
use crate::{
    encoded,
    id::{ClientKey, GroupName, SessionId},
};

/// Where in a state a piece begins. The first one begins at [`Place::default`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// All groups up to this one are in earlier pieces.
    group: Option<GroupName>,
    /// So are this number of messages and keys of the next group, and its members up to this one.
    messages: usize,
    keys: usize,
    member: Option<(SessionId, ClientKey)>,
    /// All sessions up to this one.
    session: Option<SessionId>,
}

/// What still fits into a piece.
struct Room {
    used: usize,
    max_bytes: usize,
    /// The first thing always fits, so that a piece brings the learner on.
    is_empty: bool,
}

impl Room {
    fn takes(&mut self, bytes: usize) -> bool {
        let fits = self.is_empty || self.used + bytes <= self.max_bytes;
        if fits {
            self.used += bytes;
            self.is_empty = false;
        }
        fits
    }
}

impl SlotState {
    /// What begins at that place, about `max_bytes` of it as a frame has them, or one thing that is longer; and where the
    /// next piece begins, unless this is the last.
    pub fn piece(&self, from: &Place, max_bytes: usize) -> (SlotSnapshot, Option<Place>) {
        let (mut piece, mut place) = (SlotSnapshot::default(), from.clone());
        let mut room = Room { used: 0, max_bytes, is_empty: true };
        let first = place.group.clone().map_or(Unbounded, Excluded);
        for (name, group) in self.groups().range((first, Unbounded)) {
            if !piece.cut_group(name, group, &mut place, &mut room) {
                return (piece, Some(place));
            }
            place = Place { group: Some(name.clone()), ..Place::default() };
        }
        let first = from.session.map_or(Unbounded, Excluded);
        for (id, session) in self.sessions().range((first, Unbounded)) {
            if !room.takes(encoded::bytes(&**session)) {
                return (piece, Some(place));
            }
            piece.sessions.push((**session).clone());
            place.session = Some(*id);
        }
        (piece, None)
    }
}

impl SlotSnapshot {
    /// Adds what fits of a group. Whether that is the rest of it.
    fn cut_group(&mut self, name: &GroupName, group: &Group, place: &mut Place, room: &mut Room) -> bool {
        let mut log = group.log.bare();
        let mut members = Vec::new();
        let head_bytes = encoded::bytes(&(name, &log, &members));
        if !room.is_empty && room.used + head_bytes > room.max_bytes {
            return false;
        }
        room.used += head_bytes;
        let (before, mut is_whole) = (place.clone(), false);
        'full: {
            while let Some(message) = group.log.message(place.messages) {
                if !room.takes(encoded::bytes(message)) {
                    break 'full;
                }
                log.push_message(message.clone());
                place.messages += 1;
            }
            while let Some(key) = group.log.key(place.keys) {
                if !room.takes(encoded::bytes(&key)) {
                    break 'full;
                }
                log.push_key(key);
                place.keys += 1;
            }
            for member in group.members.after(place.member) {
                if !room.takes(encoded::bytes(member)) {
                    break 'full;
                }
                members.push(member.clone());
                place.member = Some((member.session, member.client));
            }
            is_whole = true;
            room.is_empty = false;
        }
        if is_whole || *place != before {
            self.groups.push((name.clone(), log, members));
        }
        is_whole
    }

    /// Adds the next piece. Whether that can follow.
    pub(crate) fn extend(&mut self, piece: Self) -> bool {
        let mut groups = piece.groups.into_iter().peekable();
        if let Some((name, log, members)) = self.groups.last_mut()
            && let Some((_, more, more_members)) = groups.next_if(|(next, ..)| next == name)
        {
            if !log.extend(more) {
                return false;
            }
            members.extend(more_members);
        }
        if groups.peek().is_some() && !self.sessions.is_empty() {
            return false;
        }
        self.groups.extend(groups);
        self.sessions.extend(piece.sessions);
        true
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::{
        entry::{Entry, GroupEntry, NewMessage, Presence, Retention, SessionEntry, SessionRecord},
        id::{Epoch, PublishKey},
    };

    const KEEP: Retention =
        Retention { messages: 20, bytes: 1 << 20, age_ms: 1_000, window_ms: 1_000, window_publishes: 30 };

    fn entry(what: u8, name: u8, number: u64) -> Entry {
        let group = GroupName::parse(&format!("g{name}")).unwrap();
        let (epoch, session) = (Epoch(u64::from(name)), SessionId(Uuid::from_u128(number.into())));
        match what {
            0 => Entry::Group(group, GroupEntry::Open { epoch }),
            1 => {
                let client = ClientKey(number % 3);
                let member = Presence {
                    session,
                    client,
                    user: "u".into(),
                    info: Bytes::new(),
                    revision: number % 5,
                    attachment: number,
                };
                Entry::Group(group, GroupEntry::MemberJoin { epoch, member })
            }
            2 => {
                let record = SessionRecord {
                    id: session,
                    user: String::new(),
                    created_ms: 1,
                    expires_ms: 2,
                    idle_ttl_ms: 3,
                    last_used_ms: 1,
                    attributes: Bytes::new(),
                    groups: [group].into(),
                    grants: Vec::new(),
                    revision: 0,
                    token: 0,
                    clients_max: None,
                };
                Entry::Session(session, SessionEntry::Put { record, stored: true })
            }
            _ => {
                let (key, data) = (PublishKey(number.into()), Bytes::from(vec![b'1'; number as usize % 90]));
                let messages = [NewMessage { key, data }].into();
                Entry::Group(group, GroupEntry::Publish { epoch, messages, from: None, at_ms: 5, retention: KEEP })
            }
        }
    }

    fn pieces(state: &SlotState, max_bytes: usize) -> Vec<SlotSnapshot> {
        let (mut pieces, mut next) = (Vec::new(), Some(Place::default()));
        while let Some(place) = next {
            let (piece, after) = state.piece(&place, max_bytes);
            pieces.push(piece);
            assert_ne!(after.as_ref(), Some(&place), "a piece brings the learner on");
            next = after;
        }
        pieces
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_make_the_same_state(
            entries in prop::collection::vec((0_u8..7, 0_u8..4, 0_u64..200), 0..120),
            max_bytes in prop_oneof![1_usize..400, Just(100_000)],
        ) {
            let mut state = SlotState::default();
            for (index, (what, name, number)) in (1..).zip(entries) {
                state.apply(index, entry(what, name, number));
            }
            let pieces = pieces(&state, max_bytes);
            // A thing that is longer than a piece stands alone, with the name of its group.
            let bound = max_bytes.max(420) + 100;
            prop_assert!(pieces.iter().all(|piece| encoded::bytes(piece) <= bound));
            let mut whole = SlotSnapshot::default();
            for piece in pieces {
                prop_assert!(whole.extend(piece));
            }
            prop_assert!(whole.is_sound(1_000));
            prop_assert_eq!(SlotState::restore(whole), state);
        }
    }

    #[test]
    fn what_changes_later_is_not_in_a_frozen_state() {
        let mut state = SlotState::default();
        for number in 1..=9 {
            state.apply(number, entry(3, 1, number));
        }
        let frozen = state.clone();
        let before = pieces(&frozen, 100);
        for (index, what) in [(10, 3), (11, 0), (12, 1), (13, 2)] {
            state.apply(index, entry(what, 1, index));
        }
        assert_eq!(pieces(&frozen, 100), before);
        assert_ne!(state, frozen);
    }

    #[test]
    fn a_piece_that_cannot_follow_is_refused() {
        let mut state = SlotState::default();
        for number in 1..=9 {
            state.apply(number, entry(3, 1, number));
        }
        state.apply(10, entry(2, 1, 1));
        let mut pieces = pieces(&state, 100).into_iter();
        let mut whole = pieces.next().unwrap();
        state.apply(11, entry(3, 1, 11));
        let of_a_later_state = state.piece(&Place::default(), 100).0;
        assert!(!whole.extend(of_a_later_state), "another head");
        assert!(pieces.all(|piece| whole.extend(piece)));
        state.apply(12, entry(3, 2, 12));
        let more = state.piece(&Place { group: Some(GroupName::parse("g1").unwrap()), ..Place::default() }, 100).0;
        assert!(!whole.extend(more), "groups come before sessions");
    }
}
