//! Slots are told every few seconds which attachments are here, and confirm them. What one has lost sight of is renewed at
//! once with what its client has joined.

use std::collections::BTreeSet;

use super::{Attachments, Connection, Goodbye, Output, Stage};
use crate::{
    entry::{Joined, NAMED_BYTES},
    id::{ClientKey, SessionId, SlotId},
    request::{Renewal, Renewed},
};

/// Every attachment is renewed once in this number of ticks (5 s), the slots one after the other.
pub(super) const RENEWAL_TICKS: u16 = 20;
/// Renewals under way at once. Past it slots wait for their next turn.
pub(super) const RENEWALS_AT_ONCE: usize = 128;
/// Attachments in one renewal.
const ATTACHMENTS_IN_ONE: usize = 500;
/// What those in one renewal say of what their clients have joined, in bytes, about; or one of them, where that says more.
const JOINED_BYTES_IN_ONE: usize = 1 << 20;

/// A renewal that is under way.
#[derive(Debug)]
pub(super) struct Asked {
    slot: SlotId,
    /// What it says is here.
    attachments: Vec<Renewal>,
    /// When it was asked for.
    episode: u64,
}

impl Attachments {
    pub(super) fn renew(&mut self, out: &mut Vec<Output>) {
        self.ticks = (self.ticks + 1) % RENEWAL_TICKS;
        let due: Vec<SlotId> =
            self.attached.keys().copied().filter(|slot| *slot % RENEWAL_TICKS == self.ticks).collect();
        for slot in due {
            let here = self.here(slot, |_| true);
            self.ask(slot, &here, out);
        }
    }

    /// The attachments of a slot that are such.
    fn here(&self, slot: SlotId, is_such: impl Fn(&Connection) -> bool) -> Vec<Renewal> {
        let sessions = self.attached.get(&slot).into_iter().flatten();
        let renewal = |connection: &u64| {
            let there = self.connections.get(connection).filter(|there| is_such(there))?;
            let Stage::Attached(attachment, revision) = there.stage else { return None };
            let (session, client, connection) = (there.session, there.client.clone(), *connection);
            Some(Renewal { session, client, attachment, connection, revision, joined: None })
        };
        sessions.filter_map(|(_, connection)| renewal(connection)).collect()
    }

    /// With what the client has joined; nothing where it is not attached here.
    fn full_renewal(&self, slot: SlotId, whose: (SessionId, ClientKey)) -> Option<Renewal> {
        let (connection, attachment) = self.number_here(slot, whose)?;
        let there = self.connections.get(&connection)?;
        let (revision, joined) = (self.revision(connection)?, Some(there.joined.clone()));
        Some(Renewal { session: whose.0, client: there.client.clone(), attachment, connection, revision, joined })
    }

    fn ask(&mut self, slot: SlotId, attachments: &[Renewal], out: &mut Vec<Output>) {
        let mut left = attachments;
        while !left.is_empty() {
            let (attachments, after) = left.split_at(fitting(left));
            left = after;
            if self.renewals.len() >= RENEWALS_AT_ONCE {
                return;
            }
            self.last_renewal += 1;
            let (number, attachments) = (self.last_renewal, attachments.to_vec());
            let asked = Asked { slot, attachments: attachments.clone(), episode: self.episode };
            self.renewals.insert(number, asked);
            out.push(Output::Renew { number, slot, attachments });
        }
    }

    /// Has the slots confirm what is not confirmed in this episode, and not asked for.
    pub(super) fn confirm(&mut self, out: &mut Vec<Output>) {
        self.confirms = false;
        let episode = self.episode;
        for slot in self.attached.keys().copied().collect::<Vec<_>>() {
            let mut left = self.here(slot, |there| there.episode != episode);
            self.confirms |= !left.is_empty();
            let under_way = self.renewals.values().filter(|asked| asked.slot == slot && asked.episode == episode);
            let asked: BTreeSet<u64> =
                under_way.flat_map(|asked| &asked.attachments).map(|there| there.connection).collect();
            left.retain(|there| !asked.contains(&there.connection));
            self.ask(slot, &left, out);
        }
    }

    /// Where it is so in this episode; else its slot is asked.
    pub(super) fn say_confirmed(&mut self, connection: u64, out: &mut Vec<Output>) {
        let episode = self.episode;
        match self.connections.get(&connection) {
            Some(there) if there.episode == episode => out.push(Output::Confirmed { connection, episode }),
            Some(_) => self.confirm(out),
            None => {}
        }
    }

    /// A renewal that was under way when an attachment ended may have reached the slot after the goodbye, and brought the
    /// attachment back there. So the goodbye is said once more.
    ///
    /// What the slot has lost sight of is renewed at once with what its client has joined.
    pub(super) fn renewed(&mut self, number: u64, renewed: &Renewed, out: &mut Vec<Output>) {
        let Some(Asked { slot, attachments, episode }) = self.renewals.remove(&number) else { return };
        let confirmed: BTreeSet<_> = renewed.confirmed.iter().collect();
        let wanted: BTreeSet<_> = renewed.wanted.iter().collect();
        let again: Vec<_> = wanted.into_iter().filter_map(|whose| self.full_renewal(slot, *whose)).collect();
        for Renewal { connection, .. } in &again {
            self.connections.entry(*connection).and_modify(|there| there.out_of_sight = true);
        }
        self.ask(slot, &again, out);
        for Renewal { session, client, attachment, connection, .. } in attachments {
            let whose = (session, client.key());
            if self.number_here(slot, whose) == Some((connection, attachment)) {
                let Some(there) = self.connections.get_mut(&connection).filter(|_| confirmed.contains(&whose)) else {
                    continue;
                };
                if std::mem::take(&mut there.out_of_sight) {
                    out.push(Output::Restored { connection });
                }
                if episode == self.episode && there.episode != self.episode {
                    there.episode = self.episode;
                    out.push(Output::Confirmed { connection, episode: self.episode });
                }
                continue;
            }
            let goodbye = Goodbye::Detach(whose, attachment);
            match self.leaving.get_mut(&connection) {
                Some(leaving) => leaving.push((slot, goodbye)),
                None => self.goodbyes.add(slot, goodbye),
            }
        }
    }
}

/// How many of the first of these go in one renewal; one at least.
fn fitting(attachments: &[Renewal]) -> usize {
    let mut bytes = 0;
    let fits = attachments.iter().take(ATTACHMENTS_IN_ONE).take_while(|renewal| {
        let groups = renewal.joined.iter().flat_map(Joined::keys);
        bytes += groups.map(|group| NAMED_BYTES + group.as_str().len()).sum::<usize>();
        bytes <= JOINED_BYTES_IN_ONE
    });
    fits.count().clamp(1, attachments.len().max(1))
}
