//! Which connections of this gateway have which sessions, each as one of the session's clients, from a client's first word to the goodbye.
//!
//! A connection is *opening* while its session's slot is asked, then *attached*, and *over* from when it is cut until it is
//! gone. News of a session and the answer that attaches it come by different ways, and so in any order: what is heard while a
//! connection opens is kept with it. A connection is cut in the very step that brings the news, so that nothing reaches it
//! afterwards (S7). Its subscriptions end next, and only then is the slot told, which lets the new attachment proceed.
//!
//! An attachment is good for an episode of this gateway's lease (`logic/lease`). When another one begins, nothing is delivered
//! to a connection before its slot has confirmed the attachment once more.
//!
//! What a slot has to hear is said until it answers: that a connection is cut, or gone, or that an attach of unknown outcome
//! is not wanted any more.
//!
//! What a client has joined is noted with its connection: a slot that has lost all of its copies has it from nowhere else, and
//! wants to be told it before it brings an attachment back.

mod goodbyes;
mod renewals;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use self::{goodbyes::Goodbyes, renewals::Asked};
use super::{
    entry::{EndReason, Joined},
    request::{ClientView, Displaced, Renewal, Renewed, SlotError},
};
use crate::id::{AttachmentNumber, ClientId, ClientKey, GroupName, SessionId, SlotId};

/// Between two [`Input::Tick`], in milliseconds.
pub const TICK_MS: u64 = 250;

/// Something that a slot has to hear of this gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goodbye {
    /// The connection of this attachment is gone.
    Detach((SessionId, ClientKey), AttachmentNumber),
    /// This attachment of the client and earlier ones are cut off.
    Confirm((SessionId, ClientKey), AttachmentNumber),
    /// The client of this connection is gone, and what came of its attach is not known.
    Withdraw((SessionId, ClientKey), u64),
}

/// Why a connection is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// The client has attached from another connection, or has made room for another client.
    Displaced(Displaced),
    /// The session is over.
    Ended(EndReason),
    /// A backend has asked for it. The session goes on.
    Disconnected,
}

/// What happens to the connections. Each has a number that no other has had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A client asks for its session.
    Open { connection: u64, session: SessionId, client: ClientId, slot: SlotId },
    /// To [`Output::Attach`].
    Answered { connection: u64, result: Result<(AttachmentNumber, Arc<ClientView>), SlotError> },
    /// The client is gone, and with it all that it had asked for.
    Gone { connection: u64 },
    /// The client has attached elsewhere, or has to go: this attachment and earlier ones get nothing more.
    Displaced { slot: SlotId, session: SessionId, client: ClientKey, number: AttachmentNumber, why: Displaced },
    /// The session is over.
    Ended { slot: SlotId, session: SessionId, reason: EndReason },
    /// A backend wants the client of this connection gone, where it is attached. It may come back.
    Disconnect { connection: u64 },
    /// The record was changed.
    Changed {
        slot: SlotId,
        /// One of its session's clients.
        client: ClientKey,
        /// As it is now.
        view: Arc<ClientView>,
    },
    /// The client of an attached connection joins a group: said before its slot is asked, so that no renewal comes between.
    Joins {
        connection: u64,
        group: GroupName,
        /// The group's namespace asks for a grant.
        needs_grant: bool,
    },
    /// It is not in the group, or not any more: said when its slot has said so, or has refused the join.
    Leaves { connection: u64, group: GroupName },
    /// To [`Output::Unsubscribe`].
    Unsubscribed { connection: u64 },
    /// To [`Output::Say`].
    Said {
        number: u64,
        /// What the slot answered.
        result: Result<(), SlotError>,
    },
    /// To [`Output::Renew`], whatever came of it.
    Renewed {
        number: u64,
        /// What the slot says; nothing where it has not answered.
        renewed: Renewed,
    },
    /// This gateway has begun another episode, and may deliver in it to whom is confirmed in it; or may deliver again in the
    /// present one.
    Episode(u64),
    /// Time has passed; every [`TICK_MS`].
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Ask the slot for the session.
    Attach { connection: u64, session: SessionId, slot: SlotId },
    /// Do not try that again: the client is gone, and may be elsewhere by now. What is under way is waited for.
    GiveUp { connection: u64 },
    /// The session is this connection's.
    Attached {
        connection: u64,
        number: AttachmentNumber,
        /// As far as it is known here.
        view: Arc<ClientView>,
    },
    /// The attachment is there in this episode: what is due to the connection may be delivered to it.
    Confirmed { connection: u64, episode: u64 },
    /// It is not, for this reason.
    Refused { connection: u64, error: SlotError },
    /// Nothing more may reach the connection but the reason why.
    Cut { connection: u64, why: Cut },
    /// Tell the connection of the new record.
    Changed {
        connection: u64,
        /// As it is now.
        view: Arc<ClientView>,
    },
    /// The slot had lost sight of the attachment and has it again: the client is to be shown anew in its groups.
    Restored { connection: u64 },
    /// End the connection's subscriptions.
    Unsubscribe { connection: u64 },
    /// Tell the slot.
    Say {
        /// For the answer.
        number: u64,
        slot: SlotId,
        goodbye: Goodbye,
    },
    /// Tell the slot which attachments are here: one that has lost sight of them learns of them, and one that has given a
    /// session elsewhere says so again.
    Renew {
        /// For the answer.
        number: u64,
        slot: SlotId,
        /// What is here.
        attachments: Vec<Renewal>,
    },
}

#[derive(Debug)]
struct Connection {
    session: SessionId,
    client: ClientId,
    slot: SlotId,
    stage: Stage,
    /// The episode in which its session was asked for, or the attachment confirmed.
    episode: u64,
    /// What the client of an attached one has joined, or is about to; some of it is perhaps its session's by now.
    joined: Joined,
    /// The slot has lost sight of it, and has not confirmed it since: its client may have been taken out of its groups.
    out_of_sight: bool,
}

impl Connection {
    fn whose(&self) -> (SessionId, ClientKey) {
        (self.session, self.client.key())
    }
}

#[derive(Debug)]
enum Stage {
    Opening(News),
    /// With the revision of the record that the connection was told.
    Attached(AttachmentNumber, u64),
    /// Cut, and not gone yet.
    Over,
}

/// What was heard while a connection was opening.
#[derive(Debug, Default)]
struct News {
    gone: bool,
    displaced: Option<(AttachmentNumber, Displaced)>,
    ended: Option<EndReason>,
    view: Option<Arc<ClientView>>,
}

/// The attachments of a gateway. See the module.
#[derive(Debug, Default)]
pub struct Attachments {
    connections: BTreeMap<u64, Connection>,
    /// The connection of each client that is attached here.
    attached: BTreeMap<SlotId, BTreeMap<(SessionId, ClientKey), u64>>,
    count: usize,
    /// The connections that are opening, by session.
    opening: BTreeMap<SessionId, Vec<u64>>,
    /// What is said once a connection's subscriptions have ended.
    leaving: BTreeMap<u64, Vec<(SlotId, Goodbye)>>,
    goodbyes: Goodbyes,
    ticks: u16,
    last_renewal: u64,
    renewals: BTreeMap<u64, Asked>,
    episode: u64,
    /// Some attachments are not confirmed in it, perhaps.
    confirms: bool,
}

impl Attachments {
    /// Takes an input.
    ///
    /// # Panics
    ///
    /// Where a connection's number is given twice at a time, which is a fault of the shell.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Open { connection, session, client, slot } => {
                let stage = Stage::Opening(News::default());
                let (episode, joined, out_of_sight) = (self.episode, Joined::new(), false);
                let opening = Connection { session, client, slot, stage, episode, joined, out_of_sight };
                let before = self.connections.insert(connection, opening);
                assert!(before.is_none(), "connection {connection} opens twice: {before:?}");
                self.opening.entry(session).or_default().push(connection);
                out.push(Output::Attach { connection, session, slot });
            }
            Input::Answered { connection, result } => self.answered(connection, result, out),
            Input::Gone { connection } => self.gone(connection, out),
            Input::Displaced { slot, session, client, number, why } => {
                self.displaced(slot, (session, client), (number, why), out);
            }
            Input::Ended { slot, session, reason } => self.ended(slot, session, reason, out),
            Input::Disconnect { connection } => self.disconnect(connection, out),
            Input::Changed { slot, client, view } => self.changed(slot, client, &view, out),
            Input::Joins { connection, group, needs_grant } => {
                if let Some(there) = self.attached_mut(connection) {
                    there.joined.insert(group, needs_grant);
                }
            }
            Input::Leaves { connection, group } => {
                if let Some(there) = self.attached_mut(connection) {
                    there.joined.remove(&group);
                }
            }
            Input::Unsubscribed { connection } => {
                for (slot, goodbye) in self.leaving.remove(&connection).unwrap_or_default() {
                    self.goodbyes.add(slot, goodbye);
                }
            }
            Input::Said { number, result } => self.goodbyes.said(now_ms, number, &result),
            Input::Renewed { number, renewed } => self.renewed(number, &renewed, out),
            Input::Episode(episode) => {
                self.episode = episode;
                let confirmed = self.connections.iter().filter(|(_, there)| there.episode == episode);
                let attached = confirmed.filter(|(_, there)| matches!(there.stage, Stage::Attached(..)));
                out.extend(attached.map(|(connection, _)| Output::Confirmed { connection: *connection, episode }));
                self.confirm(out);
            }
            Input::Tick => {
                self.renew(out);
                if self.confirms {
                    self.confirm(out);
                }
            }
        }
        self.goodbyes.flush(now_ms, out);
    }

    /// The connections that are not over, each with its session and client and, where it is attached, the number.
    pub fn connections(&self) -> impl Iterator<Item = (u64, (SessionId, ClientKey), Option<AttachmentNumber>)> {
        self.connections.iter().filter_map(|(connection, there)| match there.stage {
            Stage::Opening(_) => Some((*connection, there.whose(), None)),
            Stage::Attached(number, _) => Some((*connection, there.whose(), Some(number))),
            Stage::Over => None,
        })
    }

    /// What the client of the connection has joined, as far as it is noted.
    pub fn joined(&self, connection: u64) -> Option<&Joined> {
        self.connections.get(&connection).map(|there| &there.joined)
    }

    /// Of the record that the connection was told, where it is attached.
    pub fn revision(&self, connection: u64) -> Option<u64> {
        match self.connections.get(&connection)?.stage {
            Stage::Attached(_, revision) => Some(revision),
            Stage::Opening(_) | Stage::Over => None,
        }
    }

    /// Whether something may still be put out of this connection: from its opening to its end, or to [`Input::Gone`].
    pub fn knows(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }

    /// How many clients are attached.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn answered(
        &mut self,
        connection: u64,
        result: Result<(AttachmentNumber, Arc<ClientView>), SlotError>,
        out: &mut Vec<Output>,
    ) {
        let Some(there) = self.connections.get_mut(&connection) else { return };
        let (whose, slot) = (there.whose(), there.slot);
        let Stage::Opening(news) = &mut there.stage else { return };
        let news = std::mem::take(news);
        self.opened(whose.0, connection);
        match result {
            Ok((number, _)) if news.gone => {
                self.connections.remove(&connection);
                self.goodbyes.add(slot, Goodbye::Detach(whose, number));
            }
            Ok((number, view)) => match (news.ended, self.is_displaced(slot, whose, number, &news)) {
                (Some(reason), _) => self.cut_unattached(connection, Cut::Ended(reason), out),
                (None, Some(why)) => {
                    self.cut_unattached(connection, Cut::Displaced(why), out);
                    // A slot that lost all of its copies may count from a lower number, and knows nothing of the later one.
                    self.goodbyes.add(slot, Goodbye::Detach(whose, number));
                }
                (None, None) => {
                    let later = news.view.filter(|news| news.record.revision > view.record.revision);
                    let view = later.unwrap_or(view);
                    self.attach((slot, whose, number), (connection, &view), out);
                    out.push(Output::Attached { connection, number, view });
                    self.say_confirmed(connection, out);
                }
            },
            Err(error) => {
                self.connections.remove(&connection);
                if error == SlotError::Unknown {
                    // Only the slot knows what came of it, and under which number.
                    self.goodbyes.add(slot, Goodbye::Withdraw(whose, connection));
                }
                if !news.gone {
                    out.push(Output::Refused { connection, error });
                }
            }
        }
    }

    fn is_displaced(
        &self,
        slot: SlotId,
        whose: (SessionId, ClientKey),
        number: AttachmentNumber,
        news: &News,
    ) -> Option<Displaced> {
        let by_later = self.number_here(slot, whose).is_some_and(|(_, here)| here > number);
        let heard = news.displaced.filter(|(displaced, _)| *displaced >= number).map(|(_, why)| why);
        heard.or(by_later.then_some(Displaced::Elsewhere))
    }

    fn attach(
        &mut self,
        (slot, whose, number): (SlotId, (SessionId, ClientKey), AttachmentNumber),
        (connection, view): (u64, &ClientView),
        out: &mut Vec<Output>,
    ) {
        if let Some((earlier, _)) = self.number_here(slot, whose) {
            // The slot knows that there is an earlier one. It asks for its end, and is told then.
            self.cut(earlier, Cut::Displaced(Displaced::Elsewhere), None, out);
        }
        if let Some(there) = self.connections.get_mut(&connection) {
            there.stage = Stage::Attached(number, view.record.revision);
            there.joined.clone_from(&view.joined);
            self.attached.entry(slot).or_default().insert(whose, connection);
            self.count += 1;
        }
    }

    fn gone(&mut self, connection: u64, out: &mut Vec<Output>) {
        let Some(there) = self.connections.get_mut(&connection) else { return };
        let (whose, slot) = (there.whose(), there.slot);
        match &mut there.stage {
            Stage::Opening(news) => {
                news.gone = true;
                return out.push(Output::GiveUp { connection });
            }
            Stage::Attached(number, _) => {
                let goodbye = Goodbye::Detach(whose, *number);
                self.leaving.entry(connection).or_default().push((slot, goodbye));
                self.forget_attached(slot, whose);
            }
            Stage::Over => {}
        }
        self.connections.remove(&connection);
        // Requests that were under way when it was cut may have subscribed it again.
        out.push(Output::Unsubscribe { connection });
    }

    fn displaced(
        &mut self,
        slot: SlotId,
        whose: (SessionId, ClientKey),
        (number, why): (AttachmentNumber, Displaced),
        out: &mut Vec<Output>,
    ) {
        self.tell_opening(whose.0, Some(whose.1), |news| {
            let later = news.displaced.filter(|(known, _)| *known > number);
            news.displaced = later.or(Some((number, why)));
        });
        let goodbye = (slot, Goodbye::Confirm(whose, number));
        match self.number_here(slot, whose) {
            Some((connection, here)) if here <= number => {
                self.cut(connection, Cut::Displaced(why), Some(goodbye), out);
            }
            _ => self.goodbyes.add(slot, goodbye.1),
        }
    }

    /// What is heard of a session, or of one of its clients, while connections of it open.
    fn tell_opening(&mut self, session: SessionId, only: Option<ClientKey>, hear: impl Fn(&mut News)) {
        for connection in self.opening.get(&session).into_iter().flatten() {
            if let Some(Connection { client, stage: Stage::Opening(news), .. }) = self.connections.get_mut(connection)
                && only.is_none_or(|only| client.key() == only)
            {
                hear(news);
            }
        }
    }

    fn ended(&mut self, slot: SlotId, session: SessionId, reason: EndReason, out: &mut Vec<Output>) {
        self.tell_opening(session, None, |news| news.ended = Some(reason));
        let all = (session, ClientKey::MIN)..=(session, ClientKey::MAX);
        let here = self.attached.get(&slot).into_iter().flat_map(|here| here.range(all.clone()));
        for connection in here.map(|(_, connection)| *connection).collect::<Vec<_>>() {
            self.cut(connection, Cut::Ended(reason), None, out);
        }
    }

    /// The slot is told as of one whose client has gone by itself.
    fn disconnect(&mut self, connection: u64, out: &mut Vec<Output>) {
        let Some(there) = self.connections.get(&connection) else { return };
        if let Stage::Attached(number, _) = there.stage {
            let goodbye = (there.slot, Goodbye::Detach(there.whose(), number));
            self.cut(connection, Cut::Disconnected, Some(goodbye), out);
        }
    }

    fn changed(&mut self, slot: SlotId, client: ClientKey, view: &Arc<ClientView>, out: &mut Vec<Output>) {
        let (session, now) = (view.record.id, view.record.revision);
        self.tell_opening(session, Some(client), |news| {
            let newest = news.view.take().filter(|known| known.record.revision > now);
            news.view = newest.or_else(|| Some(view.clone()));
        });
        let Some((connection, _)) = self.number_here(slot, (session, client)) else { return };
        let Some(there) = self.connections.get_mut(&connection) else { return };
        if let Stage::Attached(_, revision) = &mut there.stage
            && *revision < now
        {
            *revision = now;
            out.push(Output::Changed { connection, view: view.clone() });
        }
    }

    /// An attached connection gets nothing more. What its slot is to hear of it is said when its subscriptions have ended.
    fn cut(&mut self, connection: u64, why: Cut, goodbye: Option<(SlotId, Goodbye)>, out: &mut Vec<Output>) {
        let Some(there) = self.connections.get_mut(&connection) else { return };
        there.stage = Stage::Over;
        there.joined.clear();
        let (whose, slot) = (there.whose(), there.slot);
        self.forget_attached(slot, whose);
        self.leaving.entry(connection).or_default().extend(goodbye);
        out.extend([Output::Cut { connection, why }, Output::Unsubscribe { connection }]);
    }

    /// It was over before it was there.
    fn cut_unattached(&mut self, connection: u64, why: Cut, out: &mut Vec<Output>) {
        self.connections.remove(&connection);
        out.push(Output::Cut { connection, why });
    }

    fn opened(&mut self, session: SessionId, connection: u64) {
        if let Some(connections) = self.opening.get_mut(&session) {
            connections.retain(|other| *other != connection);
            if connections.is_empty() {
                self.opening.remove(&session);
            }
        }
    }

    fn forget_attached(&mut self, slot: SlotId, whose: (SessionId, ClientKey)) {
        if let Some(clients) = self.attached.get_mut(&slot) {
            self.count -= usize::from(clients.remove(&whose).is_some());
            if clients.is_empty() {
                self.attached.remove(&slot);
            }
        }
    }

    /// The connection that the client is attached to here, and its number.
    fn number_here(&self, slot: SlotId, whose: (SessionId, ClientKey)) -> Option<(u64, AttachmentNumber)> {
        let connection = *self.attached.get(&slot)?.get(&whose)?;
        match self.connections.get(&connection)?.stage {
            Stage::Attached(number, _) => Some((connection, number)),
            Stage::Opening(_) | Stage::Over => None,
        }
    }

    fn attached_mut(&mut self, connection: u64) -> Option<&mut Connection> {
        self.connections.get_mut(&connection).filter(|there| matches!(there.stage, Stage::Attached(..)))
    }
}
