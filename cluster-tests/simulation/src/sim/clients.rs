//! Publishers outside of the cluster: they send several messages without waiting for answers, and what is not answered they
//! send again with the same keys and in the same order, at any node, until it is, alone or with all that they had sent with
//! it. And the shell around what their gateways decide about these, in place of the product's lanes.

use std::{collections::VecDeque, iter::repeat_n};

use bytes::Bytes;
use roost_logic::{
    batch,
    entry::{NewMessage, Retention},
    few::Few,
    id::{ClientId, Epoch, GroupName, Position, PublishKey, SessionId, SlotId},
    request::{Publish, Published, SlotError},
};

use super::{
    asks::Purpose,
    node::Input,
    sessions::new_id,
    world::{Event, World},
};

/// A publisher that is refused tries again after at least this time.
const REFUSED_MS: u64 = 100;
/// Messages that a publisher sends without waiting, at most.
const BURST_MAX: u64 = 12;
/// Several that are sent together take the time of several, at least this for each, or a slot would come to hold more than runs
/// leave time to copy.
const BURST_EACH_MS: u64 = 25;

/// Publishes some messages, and others when these are answered.
#[derive(Debug)]
pub(super) struct Publisher {
    group: usize,
    min_copies: u8,
    /// Those of the last burst, in their order.
    burst: Vec<Message>,
    /// The node, its generation, and the number of the connection.
    at: Option<(usize, u64, u64)>,
    attempt: u64,
    last: Option<Position>,
}

/// A message of a publisher.
#[derive(Debug)]
struct Message {
    key: PublishKey,
    place: Place,
    /// This one has been answered before, and is sent again.
    repeat: bool,
    /// Where it was told that a sending was not, or perhaps not, carried out, others may have overtaken it.
    ordered: bool,
    /// The log in which a gateway was told that it stands, after the publisher had hung up.
    unheard: Option<Epoch>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Unanswered,
    Refused,
    At(Position),
}

/// A message on its way through a gateway.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    publisher: usize,
    key: PublishKey,
    /// Of this publish.
    sending: usize,
    data: Bytes,
}

/// What came of each of several messages.
type Outcomes = Few<Result<Published, SlotError>>;

/// What a connection of a publisher has brought to a gateway.
#[derive(Debug)]
pub(super) struct Lane {
    group: GroupName,
    slot: SlotId,
    min_copies: u8,
    waiting: VecDeque<Sent>,
    under_way: Vec<Sent>,
}

impl Publisher {
    /// Something is not answered.
    pub(super) fn waits(&self) -> bool {
        self.burst.iter().any(|message| !message.is_answered())
    }
}

impl Message {
    fn is_answered(&self) -> bool {
        matches!(self.place, Place::At(_))
    }
}

/// A session, and those who use it.
#[derive(Debug)]
pub(super) struct SessionClient {
    pub(super) id: SessionId,
    pub(super) created: bool,
    /// Nothing is heard of a creation that was asked until then.
    pub(super) creating_until_ms: u64,
    pub(super) ending: bool,
    /// When its end was answered.
    pub(super) ended_ms: Option<u64>,
    /// Its clients, each with its last connection.
    pub(super) clients: Vec<(ClientId, Option<(usize, u64)>)>,
    /// The number of the last token that was answered, and when that was.
    pub(super) token: (u32, u64),
}

impl SessionClient {
    /// One that has yet to be given its session.
    pub(super) fn new(id: SessionId, clients: Vec<ClientId>) -> Self {
        let clients = clients.into_iter().map(|client| (client, None)).collect();
        Self { id, created: false, creating_until_ms: 0, ending: false, ended_ms: None, clients, token: (0, 0) }
    }
}

impl World {
    pub(super) fn create_clients(&mut self) {
        for number in 0..self.profile.publishers {
            let group = self.random.index(self.groups.len());
            let min_copies = if self.random.permille(200) { 2 } else { 1 };
            let (burst, at, last) = (Vec::new(), None, None);
            self.publishers.push(Publisher { group, min_copies, burst, at, attempt: 0, last });
            let after = self.random.below(2_000);
            self.after(after, Event::Publisher { publisher: number, attempt: 0 });
        }
        for number in 0..self.profile.sessions {
            let id = new_id(&mut self.random);
            let clients = (1..=self.random.between(1, 4)).map(ClientId::made);
            self.sessions.push(SessionClient::new(id, clients.collect()));
            let after = self.random.below(3_000);
            self.after(after, Event::Session(number));
        }
    }

    /// A node that a client reaches.
    pub(super) fn some_node(&mut self) -> Option<usize> {
        let running: Vec<_> = (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_some()).collect();
        (!running.is_empty()).then(|| running[self.random.index(running.len())])
    }

    /// One message to the group of each publisher.
    pub(super) fn publish_last(&mut self) {
        for number in 0..self.publishers.len() {
            self.next_burst(number, 1);
            self.send_burst(number);
        }
    }

    /// Time for the next publishes, or for another try.
    pub(super) fn publisher(&mut self, number: usize, attempt: u64) {
        let resting = self.resting;
        let publisher = &self.publishers[number];
        let waits = publisher.waits();
        if publisher.attempt != attempt || (resting && !waits) {
            return;
        }
        let gives_up = waits && !resting && self.random.permille(100);
        self.ledger.count_if(gives_up, "publishes given up");
        if !waits || gives_up {
            let burst = if self.random.permille(300) { self.random.between(2, BURST_MAX) } else { 1 };
            self.next_burst(number, burst);
        }
        self.send_burst(number);
    }

    fn next_burst(&mut self, number: usize, count: u64) {
        // Only what has been answered is repeated: what was given up may come to stand anywhere later.
        let repeats = self.random.permille(100) && !self.publishers[number].waits();
        let mut burst = Vec::new();
        if repeats {
            let before = std::mem::take(&mut self.publishers[number].burst);
            let from = self.random.index(before.len().max(1));
            burst.extend(before.into_iter().skip(from).map(|message| Message { repeat: true, ..message }));
            burst.iter_mut().for_each(|message| message.place = Place::Unanswered);
        }
        if burst.is_empty() || self.random.permille(500) {
            for _ in 0..count {
                let key = PublishKey(u128::from(self.number()));
                burst.push(Message { key, place: Place::Unanswered, repeat: false, ordered: true, unheard: None });
            }
        }
        let known = burst.iter().filter(|message| message.repeat).count();
        self.ledger.count_if(known > 0 && known < burst.len(), "publishes sent again together, some of them known");
        self.publishers[number].burst = burst;
    }

    /// Sends all that is not answered by a new connection, one after the other. What the last one brought and is not under way
    /// goes with it.
    fn send_burst(&mut self, number: usize) {
        let again = 700 + self.random.below(2_000);
        let publisher = &mut self.publishers[number];
        publisher.attempt += 1;
        let (attempt, before) = (publisher.attempt, publisher.at.take());
        let (group, _) = self.groups[publisher.group].clone();
        self.after(again, Event::Publisher { publisher: number, attempt });
        if let Some((node, generation, connection)) = before
            && self.generation(node) == Some(generation)
        {
            self.input_after(0, node, Input::Hangup(connection));
        }
        let Some(node) = self.some_node() else { return };
        let Some(generation) = self.generation(node) else { return };
        let connection = self.number();
        let all_again = self.random.permille(300);
        let publisher = &mut self.publishers[number];
        publisher.at = Some((node, generation, connection));
        for message in publisher.burst.iter_mut().filter(|message| all_again && message.is_answered()) {
            (message.place, message.repeat) = (Place::Unanswered, true);
        }
        let mut keys = Vec::new();
        for message in publisher.burst.iter_mut().filter(|message| !message.is_answered()) {
            message.place = Place::Unanswered;
            keys.push(message.key);
        }
        let mut after = 0;
        for key in keys {
            after += self.random.below(4);
            let sending = self.seen.sends(self.now, (number, connection), &group, key);
            let sent = Sent { publisher: number, key, sending, data: self.data(key) };
            self.input_after(after, node, Input::Publish { connection, sent });
        }
    }

    /// A publisher's message comes to a gateway.
    pub(super) fn publish_comes(&mut self, node: usize, connection: u64, sent: Sent) {
        let now = self.generation(node);
        let publisher = &self.publishers[sent.publisher];
        // It may have hung up before, or the node may have been another process when it was sent.
        if publisher.at.is_none_or(|(_, generation, number)| (Some(generation), number) != (now, connection)) {
            return;
        }
        let min_copies = publisher.min_copies;
        let (group, slot) = self.groups[publisher.group].clone();
        let new = || Lane { group, slot, min_copies, waiting: VecDeque::new(), under_way: Vec::new() };
        self.process(node).lanes.entry(connection).or_insert_with(new).waiting.push_back(sent);
        self.start_lane(node, connection);
    }

    /// What has gathered leaves, if nothing is under way.
    fn start_lane(&mut self, node: usize, connection: u64) {
        let retention = self.retention();
        let Some(lane) = self.process(node).lanes.get_mut(&connection) else { return };
        if !lane.under_way.is_empty() || lane.waiting.is_empty() {
            return;
        }
        let count = batch::fitting(lane.waiting.iter().map(|sent| sent.data.len()), &retention);
        lane.under_way = lane.waiting.drain(..count).collect();
        let message = |sent: &Sent| NewMessage { key: sent.key, data: sent.data.clone() };
        let messages = lane.under_way.iter().map(message).collect();
        let publish = Publish { messages, from: None, retention, min_copies: lane.min_copies };
        let (group, slot) = (lane.group.clone(), lane.slot);
        self.ledger.count_if(count > 1, "publishes that left together");
        self.ask(node, Purpose::Publish { connection }, slot, (group, publish));
    }

    /// A primary answers what is under way of a connection. Where that is gone nobody hears of it.
    pub(super) fn lane_answered(&mut self, node: usize, connection: u64, result: Result<Outcomes, SlotError>) {
        let Some(lane) = self.process(node).lanes.get_mut(&connection) else { return };
        let under_way = std::mem::take(&mut lane.under_way);
        let outcomes = result.unwrap_or_else(|refusal| repeat_n(Err(refusal), under_way.len()).collect());
        let in_part = outcomes.iter().any(Result::is_ok) && outcomes.iter().any(Result::is_err);
        self.ledger.count_if(in_part, "publishes refused that came with known ones");
        for (sent, outcome) in under_way.into_iter().zip(outcomes) {
            self.published(connection, &sent, outcome);
        }
        self.start_lane(node, connection);
    }

    fn retention(&self) -> Retention {
        Retention {
            messages: self.profile.retention,
            bytes: 1 << 20,
            age_ms: 600_000,
            window_ms: 300_000,
            window_publishes: 10_000,
        }
    }

    /// What a publish says: its key, so that each says something else, and in runs with little memory more than that.
    fn data(&self, key: PublishKey) -> Bytes {
        let width = (key.0 * 997 % u128::from(self.profile.message_bytes.max(1))) as usize;
        Bytes::from(format!("{:0width$}", key.0))
    }

    /// The publisher is told what came of a message.
    fn published(&mut self, connection: u64, sent: &Sent, result: Result<Published, SlotError>) {
        let (now, number) = (self.now, sent.publisher);
        let publisher = &mut self.publishers[number];
        let Some(index) = publisher.burst.iter().position(|message| message.key == sent.key) else { return };
        if publisher.at.is_none_or(|(.., at)| at != connection) {
            // Its gateway does not know yet that it has hung up, and goes on with what follows.
            match result {
                Ok(Published { position, .. }) => publisher.burst[index].unheard = Some(position.epoch),
                Err(_) => publisher.burst[index].ordered = false,
            }
            return;
        }
        match result {
            Ok(Published { position, copies }) => {
                let message = &mut publisher.burst[index];
                message.place = Place::At(position);
                // All copies were lost meanwhile, and what followed it may have been the first in the new log.
                message.ordered &= message.unheard.is_none_or(|epoch| epoch == position.epoch);
                self.seen.answered(now, sent.key, sent.sending, position, copies);
                self.check_order(number, index, position);
            }
            Err(SlotError::Unknown | SlotError::NotPrimary { .. }) => publisher.burst[index].ordered = false,
            Err(_) => {
                (publisher.burst[index].place, publisher.burst[index].ordered) = (Place::Refused, false);
                self.ledger.count("publishes refused");
                self.seen.refused(now, sent.key, sent.sending);
            }
        }
        self.next_of_publisher(number);
    }

    /// S5: what a publisher sent later stands later, however often and wherever both were sent.
    fn check_order(&mut self, number: usize, index: usize, position: Position) {
        let publisher = &self.publishers[number];
        let message = &publisher.burst[index];
        if message.repeat || !message.ordered {
            return;
        }
        let is_wrong = |(other, there): (usize, &Message)| match there.place {
            Place::At(at) if !there.repeat && there.ordered && at.epoch == position.epoch => {
                (other < index) != (at.offset < position.offset) && other != index
            }
            _ => false,
        };
        let before = publisher.last.is_some_and(|last| last.epoch == position.epoch && last.offset >= position.offset);
        if before || publisher.burst.iter().enumerate().any(is_wrong) {
            let what = format!("S5: publisher {number}'s message {index} stands at {position:?}: {publisher:?}");
            self.ledger.fail(what);
        }
    }

    /// When all is answered there are others. Who is refused does not wait for as long as one who hears nothing.
    fn next_of_publisher(&mut self, number: usize) {
        let publisher = &mut self.publishers[number];
        if publisher.burst.iter().any(|message| message.place == Place::Unanswered) {
            return;
        }
        publisher.attempt += 1;
        let attempt = publisher.attempt;
        let pause_ms = if publisher.waits() {
            REFUSED_MS + self.random.below(REFUSED_MS)
        } else {
            let fresh = publisher.burst.iter().filter(|message| !message.repeat);
            let at = fresh.filter_map(|message| if let Place::At(at) = message.place { Some(at) } else { None });
            publisher.last = at.max_by_key(|at| at.offset).or(publisher.last);
            let more = publisher.burst.len() as u64 - 1;
            self.random.waiting(self.profile.publish_ms + more * self.profile.publish_ms.max(BURST_EACH_MS))
        };
        self.after(pause_ms, Event::Publisher { publisher: number, attempt });
    }
}
