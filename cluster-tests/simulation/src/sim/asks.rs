//! What a gateway asks of primaries: asked again under newer maps and after silence until there is an answer or it is
//! given up, as the product's router does.

use roost_logic::{
    feed::{self, Subscriber},
    id::{AttachmentNumber, GroupName, Member, Position, PublishKey, SessionId, SlotId},
    request::{Answer, Ask as Question, Attach, History, SessionRequest, SlotAnswer, SlotError, SlotRequest},
};

use super::{gateway::Asked, network::Frame, node::Input, world::World};

const ATTEMPT_MS: u64 = 600;
const GIVE_UP_MS: u64 = 5_000;

/// What the answer is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Register(Asked),
    Unregister(Asked),
    Join {
        asked: Asked,
        subscriber: Subscriber,
    },
    Leave {
        asked: Asked,
        subscriber: Subscriber,
    },
    Publish {
        publisher: usize,
        key: PublishKey,
        sending: usize,
    },
    Create {
        session: usize,
        id: SessionId,
    },
    End {
        session: usize,
    },
    Attach {
        connection: u64,
    },
    Detach {
        session: SessionId,
        number: AttachmentNumber,
    },
    /// A group's slot is asked to take a presence out, for the slot of the session.
    Depart {
        slot: SlotId,
        session: SessionId,
        group: GroupName,
    },
    /// A client reads a group's history.
    History {
        group: GroupName,
        since: Option<Position>,
    },
    /// The answer matters to nobody.
    Nothing,
}

/// Under way.
#[derive(Debug)]
pub(super) struct Ask {
    purpose: Purpose,
    slot: SlotId,
    request: SlotRequest,
    attempt: u64,
    give_up_at: u64,
}

impl World {
    pub(super) fn ask(&mut self, node: usize, purpose: Purpose, slot: SlotId, request: impl Question) {
        self.ask_slot(node, purpose, slot, request.into_request());
    }

    pub(super) fn ask_slot(&mut self, node: usize, purpose: Purpose, slot: SlotId, request: SlotRequest) {
        let give_up_at = self.now + GIVE_UP_MS;
        let process = self.process(node);
        process.next_ask += 1;
        let id = process.next_ask;
        process.asks.insert(id, Ask { purpose, slot, request, attempt: 0, give_up_at });
        self.try_ask(node, id);
    }

    fn try_ask(&mut self, node: usize, id: u64) {
        let now = self.now;
        let Some(ask) = self.process(node).asks.get_mut(&id) else { return };
        ask.attempt += 1;
        if let SlotRequest::Session(_, SessionRequest::Attach(Attach { waited_ms, .. })) = &mut ask.request {
            *waited_ms = (now + GIVE_UP_MS).saturating_sub(ask.give_up_at) as u32;
        }
        let (attempt, slot, request) = (ask.attempt, ask.slot, ask.request.clone());
        let mut wait = 100;
        if let Some((primary, term)) = self.primary(node, slot) {
            self.send(node, &primary, Frame::Request { id, slot, term, request });
            wait = ATTEMPT_MS;
        }
        self.input_after(wait, node, Input::AskDue { id, attempt });
    }

    pub(super) fn ask_due(&mut self, node: usize, id: u64, attempt: u64) {
        let now = self.now;
        let Some(ask) = self.process(node).asks.get(&id).filter(|ask| ask.attempt == attempt) else { return };
        if ask.give_up_at <= now {
            self.complete(node, id, Err(SlotError::Unknown));
        } else {
            self.try_ask(node, id);
        }
    }

    pub(super) fn answered(&mut self, node: usize, from: &Member, id: u64, result: Result<SlotAnswer, SlotError>) {
        let known = self.process(node).map.as_ref().map_or(0, |map| map.version);
        let Some(ask) = self.process(node).asks.get_mut(&id) else { return };
        let pause = match &result {
            Err(SlotError::NotPrimary { .. }) => 20,
            Err(SlotError::Busy | SlotError::Unavailable) => 100,
            _ => return self.complete(node, id, result),
        };
        ask.attempt += 1;
        let attempt = ask.attempt;
        if let Err(SlotError::NotPrimary { map_version }) = result
            && map_version > known
        {
            self.send(node, from, Frame::FetchMap { newer_than: known });
        }
        let after = self.random.waiting(pause);
        self.input_after(after, node, Input::AskDue { id, attempt });
    }

    fn complete(&mut self, node: usize, id: u64, result: Result<SlotAnswer, SlotError>) {
        let Some(Ask { purpose, slot, request, .. }) = self.process(node).asks.remove(&id) else { return };
        match purpose {
            Purpose::Register(asked) => self.registered(node, &asked, read(result)),
            Purpose::Unregister(Asked { group, attempt }) => {
                self.feed(node, &group, feed::Input::UnregisterAnswer { attempt });
            }
            Purpose::Join { asked, subscriber } => self.joined(node, &asked, subscriber, read(result)),
            Purpose::Leave { asked: Asked { group, attempt }, subscriber } => {
                self.feed(node, &group, feed::Input::LeaveAnswer { attempt, subscriber });
            }
            Purpose::Publish { publisher, key, sending } => self.published(publisher, (key, sending), read(result)),
            Purpose::Create { session, id } => self.created(session, id, &result),
            Purpose::End { session } => self.ended(session, &result),
            Purpose::Attach { connection } => self.attached(node, connection, read(result)),
            Purpose::Detach { session, number } => {
                if result == Err(SlotError::Unknown) {
                    self.ask_slot(node, Purpose::Detach { session, number }, slot, request);
                }
            }
            Purpose::Depart { slot, session, group } => {
                let groups = if result.is_ok() { vec![group] } else { Vec::new() };
                self.departed(node, slot, session, groups);
            }
            Purpose::History { group, since } => {
                if let Ok(History { position, complete, messages }) = read(result) {
                    if let Some(position) = position {
                        self.seen.reads(self.now, &group, position, &messages);
                    }
                    self.ledger.history(&group, since, position, complete, &messages);
                }
            }
            Purpose::Nothing => {}
        }
    }
}

/// Of the kind that was asked for.
fn read<A: Answer>(result: Result<SlotAnswer, SlotError>) -> Result<A, SlotError> {
    result.map(|answer| {
        A::read(answer).unwrap_or_else(|other| panic!("answered something else than was asked: {other:?}"))
    })
}
