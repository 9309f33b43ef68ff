//! What a gateway asks of primaries: the shell of [`Asking`], as the product's router is.

use std::ops::Range;

use roost_logic::{
    asking::{Asking, Attempt, Input, Output},
    attachments, following,
    id::{GroupName, Member, NodeId, Position, Seat, SessionId, SlotId, Term},
    request::{Answer, Ask as Question, History, Renewed, SlotAnswer, SlotError, SlotRequest},
};

use super::{joins::MemberStep, network::Frame, node, world::World};

pub(super) const GIVE_UP_MS: u64 = 5_000;

/// What the answer is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// What is asked of the groups that this gateway follows.
    Follow(following::Ask),
    /// What is under way of a publisher's connection.
    Publish {
        connection: u64,
    },
    Create {
        session: usize,
        id: SessionId,
    },
    End {
        session: usize,
        id: SessionId,
    },
    NewToken {
        session: usize,
    },
    Attach {
        connection: u64,
    },
    Goodbye {
        number: u64,
    },
    Renew {
        number: u64,
    },
    /// A group's slot is asked to take a presence out, for the slot of the session.
    Depart {
        slot: SlotId,
        group: GroupName,
        seat: Seat,
    },
    /// The client of a connection joins a group, or leaves it, or its gateway looks whether it is in there.
    Member {
        connection: u64,
        group: GroupName,
        step: MemberStep,
    },
    /// A group is told what a connection's session shows.
    Show {
        connection: u64,
        enters: bool,
        /// Of the session's record.
        revision: u64,
    },
    /// A client reads a group's history.
    History {
        group: GroupName,
        since: Option<Position>,
    },
    /// These are passed on and kept nowhere.
    Ephemeral {
        messages: Range<usize>,
    },
    /// The answer matters to nobody.
    Nothing,
}

/// A request that is being asked.
#[derive(Debug)]
pub(super) struct Ask {
    purpose: Purpose,
    slot: SlotId,
    request: SlotRequest,
    core: Asking,
    /// When it is to be woken.
    wake_ms: Option<u64>,
}

/// Which attempt at which request.
pub(super) type Asked = (u64, Attempt);

impl World {
    pub(super) fn ask(&mut self, node: usize, purpose: Purpose, slot: SlotId, request: impl Question) {
        self.ask_slot(node, purpose, slot, request.into_request());
    }

    pub(super) fn ask_slot(&mut self, node: usize, purpose: Purpose, slot: SlotId, request: SlotRequest) {
        let core = Asking::new(self.now, GIVE_UP_MS, self.random.number()).of(&request);
        let process = self.process(node);
        process.next_ask += 1;
        let id = process.next_ask;
        process.asks.insert(id, Ask { purpose, slot, request, core, wake_ms: None });
        let map = self.map_for(node, slot);
        self.asking(node, id, map);
    }

    /// There is another map.
    pub(super) fn asks_learn_map(&mut self, node: usize) {
        let asks: Vec<_> = self.process(node).asks.iter().map(|(id, ask)| (*id, ask.slot)).collect();
        for (id, slot) in asks {
            let map = self.map_for(node, slot);
            self.asking(node, id, map);
        }
    }

    fn map_for(&self, node: usize, slot: SlotId) -> Input {
        let map = self.nodes[node].process.as_ref().and_then(|process| process.map.as_ref());
        Input::Map { version: map.map_or(0, |map| map.version), primary: self.primary(node, slot) }
    }

    /// Answers of a node may be lost.
    pub(super) fn asks_disrupted(&mut self, node: usize, from: &NodeId) {
        for (id, attempt) in self.process(node).outstanding.disrupted(from) {
            self.asking(node, id, Input::Lost { attempt });
        }
    }

    pub(super) fn answered(&mut self, node: usize, from: &Member, number: u64, result: Result<SlotAnswer, SlotError>) {
        if let Some((id, attempt)) = self.process(node).outstanding.answered(&from.node, number) {
            self.asking(node, id, Input::Answered { attempt, result });
        }
    }

    pub(super) fn ask_due(&mut self, node: usize, id: u64) {
        let now = self.now;
        if let Some(ask) = self.process(node).asks.get_mut(&id)
            && ask.wake_ms.is_some_and(|wake_ms| wake_ms <= now)
        {
            ask.wake_ms = None;
            self.asking(node, id, Input::Due);
        }
    }

    /// The client that this was asked for is gone.
    pub(super) fn give_up(&mut self, node: usize, connection: u64) {
        let of = |ask: &Ask| matches!(ask.purpose, Purpose::Attach { connection: other } if other == connection);
        let asks = self.process(node).asks.iter().filter(|(_, ask)| of(ask));
        for id in asks.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.asking(node, id, Input::Over);
        }
    }

    fn asking(&mut self, node: usize, id: u64, input: Input) {
        let now = self.now;
        let mut out = Vec::new();
        let Some(ask) = self.process(node).asks.get_mut(&id) else { return };
        ask.core.handle(now, input, &mut out);
        for output in out {
            match output {
                Output::Send { attempt, to, term, waited_ms, .. } => {
                    if !self.try_ask(node, id, attempt, (&to, term), waited_ms) {
                        self.asking(node, id, Input::NotSent { attempt });
                    }
                }
                Output::FetchMap { from, newer_than } => {
                    self.send(node, &from, Frame::FetchMap { newer_than });
                }
                Output::Done(result) => return self.complete(node, id, result),
            }
        }
        let Some(ask) = self.process(node).asks.get_mut(&id) else { return };
        if let Some(wake_ms) = ask.core.wake_ms()
            && ask.wake_ms.is_none_or(|planned| wake_ms < planned)
        {
            ask.wake_ms = Some(wake_ms);
            self.input_after(wake_ms.saturating_sub(now).max(1), node, node::Input::AskDue(id));
        }
    }

    /// Whether there is a way to whom it asks.
    fn try_ask(&mut self, node: usize, id: u64, attempt: Attempt, to: (&Member, Term), waited_ms: u64) -> bool {
        let (to, term) = to;
        let Some(ask) = self.process(node).asks.get(&id) else { return false };
        let (slot, request) = (ask.slot, ask.request.clone().waited(waited_ms));
        self.check_asker(&request);
        let outstanding = &mut self.process(node).outstanding;
        let number = outstanding.ask(&to.node, (id, attempt));
        let sent_ms = self.now;
        let sent = self.send(node, to, Frame::Request { id: number, slot, term, sent_ms, request });
        if !sent {
            self.process(node).outstanding.forget(number);
        }
        sent
    }

    fn complete(&mut self, node: usize, id: u64, result: Result<SlotAnswer, SlotError>) {
        let Some(Ask { purpose, .. }) = self.process(node).asks.remove(&id) else { return };
        match purpose {
            Purpose::Follow(ask) => self.follow(node, following::Input::Answered(follow_answer(ask, result))),
            Purpose::Publish { connection } => self.lane_answered(node, connection, read(result)),
            Purpose::Create { session, id } => self.created(session, id, &result),
            Purpose::End { session, id } => self.ended(session, id, &result),
            Purpose::NewToken { session } => self.has_new_token(session, result),
            Purpose::Attach { connection } => self.attached(node, connection, read(result)),
            Purpose::Goodbye { number } => {
                let result = result.map(|_| ());
                self.attachments(node, attachments::Input::Said { number, result });
            }
            Purpose::Renew { number } => {
                let renewed: Renewed = read(result).unwrap_or_default();
                self.ledger.count_if(!renewed.wanted.is_empty(), "attachments that slots had lost sight of");
                self.attachments(node, attachments::Input::Renewed { number, renewed });
            }
            Purpose::Depart { slot, group, seat } => {
                let groups = result.is_ok().then_some((group, seat.attachment)).into_iter().collect();
                self.departed(node, slot, seat, groups);
            }
            Purpose::Member { connection, group, step } => {
                self.member_answered(node, (connection, group), step, result);
            }
            Purpose::Show { connection, enters, revision } => {
                self.shown(node, (connection, enters, revision), &result);
            }
            Purpose::History { group, since } => {
                if let Ok(History { position, complete, messages }) = read(result) {
                    if let Some(position) = position {
                        self.seen.reads(self.now, &group, position, &messages);
                    }
                    self.ledger.history(&group, since, position, complete, &messages);
                }
            }
            Purpose::Ephemeral { messages } => self.ephemeral_answered(messages, read(result)),
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

/// What a gateway asks of the groups that it follows, as it travels.
pub(super) fn follow_request(ask: &following::Ask) -> (SlotId, SlotRequest) {
    match ask {
        following::Ask::Register { slot, request, .. } => (*slot, request.clone().into_request()),
        following::Ask::Unregister { slot, request, .. } => (*slot, request.clone().into_request()),
        following::Ask::Join { asked, request, .. } => {
            (asked.slot, (asked.group.clone(), request.clone()).into_request())
        }
        following::Ask::Leave { asked, request, .. } => (asked.slot, (asked.group.clone(), *request).into_request()),
    }
}

fn follow_answer(ask: following::Ask, result: Result<SlotAnswer, SlotError>) -> following::Answer {
    use following::{Answer, Ask};
    match ask {
        Ask::Register { slot, asked, .. } => Answer::Registered { slot, asked, result: read(result) },
        Ask::Unregister { slot, asked, .. } => Answer::Unregistered { slot, asked },
        Ask::Join { asked, subscriber, .. } => Answer::Joined { asked, subscriber, result: read(result) },
        Ask::Leave { asked, subscriber, request, tries } => {
            Answer::Left { asked, subscriber, request, tries, result: read(result) }
        }
    }
}
