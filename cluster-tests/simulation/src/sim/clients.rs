//! Publishers outside of the cluster: they try again with the same key, at any node, until they have an answer.

use bytes::Bytes;
use roost_logic::{
    entry::Retention,
    id::{Position, PublishKey, SessionId},
    request::{Ask, Publish, Published, SlotError},
};

use super::{
    asks::Purpose,
    node::Input,
    sessions::new_id,
    world::{Event, World},
};

/// A publisher that is refused tries again after at least this time.
const REFUSED_MS: u64 = 100;

/// Publishes one message after the other.
#[derive(Debug)]
pub(super) struct Publisher {
    group: usize,
    key: PublishKey,
    attempt: u64,
    pub(super) waiting: bool,
    /// This one has been answered before, and is sent again.
    repeat: bool,
    last: Option<Position>,
    min_copies: u8,
}

/// A client with a session.
#[derive(Debug)]
pub(super) struct SessionClient {
    pub(super) id: SessionId,
    pub(super) created: bool,
    /// Nothing is heard of a creation that was asked until then.
    pub(super) creating_until_ms: u64,
    pub(super) ending: bool,
    /// When its end was answered.
    pub(super) ended_ms: Option<u64>,
    /// Its last connection.
    pub(super) last: Option<(usize, u64)>,
    /// The number of the last token that was answered, and when that was.
    pub(super) token: (u32, u64),
}

impl World {
    pub(super) fn create_clients(&mut self) {
        for number in 0..self.profile.publishers {
            let group = self.random.index(self.groups.len());
            let min_copies = if self.random.permille(200) { 2 } else { 1 };
            let (key, last) = (PublishKey(0), None);
            let publisher = Publisher { group, key, attempt: 0, waiting: false, repeat: false, last, min_copies };
            self.publishers.push(publisher);
            let after = self.random.below(2_000);
            self.after(after, Event::Publisher { publisher: number, attempt: 0 });
        }
        for number in 0..self.profile.sessions {
            let id = new_id(&mut self.random);
            self.sessions.push(SessionClient {
                id,
                created: false,
                creating_until_ms: 0,
                ending: false,
                ended_ms: None,
                last: None,
                token: (0, 0),
            });
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
            self.next_publish(number);
            self.try_publish(number);
        }
    }

    /// Time for the next publish, or for another try.
    pub(super) fn publisher(&mut self, number: usize, attempt: u64) {
        let resting = self.resting;
        let publisher = &self.publishers[number];
        if publisher.attempt != attempt || (resting && !publisher.waiting) {
            return;
        }
        let gives_up = publisher.waiting && !resting && self.random.permille(100);
        self.ledger.count_if(gives_up, "publishes given up");
        if !self.publishers[number].waiting || gives_up {
            self.next_publish(number);
        }
        self.try_publish(number);
    }

    fn next_publish(&mut self, number: usize) {
        let fresh = u128::from(self.number());
        let repeats = self.random.permille(100);
        let publisher = &mut self.publishers[number];
        // Only what has been answered is repeated: what was given up may come to stand anywhere later.
        publisher.repeat = repeats && !publisher.waiting && publisher.key.0 != 0;
        if !publisher.repeat {
            publisher.key = PublishKey(fresh);
        }
        publisher.waiting = true;
    }

    fn try_publish(&mut self, number: usize) {
        let again = 700 + self.random.below(2_000);
        let publisher = &mut self.publishers[number];
        publisher.attempt += 1;
        let (attempt, key, min_copies) = (publisher.attempt, publisher.key, publisher.min_copies);
        let (group, slot) = self.groups[publisher.group].clone();
        self.after(again, Event::Publisher { publisher: number, attempt });
        let Some(node) = self.some_node() else { return };
        let sending = self.seen.sends(self.now, number, &group, key);
        let request = (
            group,
            Publish {
                key,
                data: self.data(key),
                from: None,
                retention: Retention {
                    messages: self.profile.retention,
                    bytes: 1 << 20,
                    age_ms: 600_000,
                    window_ms: 300_000,
                    window_publishes: 10_000,
                },
                min_copies,
            },
        );
        let after = self.random.below(4);
        let purpose = Purpose::Publish { publisher: number, key, sending };
        self.input_after(after, node, Input::Client(purpose, slot, request.into_request()));
    }

    /// What a publish says: its key, so that each says something else, and in runs with little memory more than that.
    fn data(&self, key: PublishKey) -> Bytes {
        let width = (key.0 * 997 % u128::from(self.profile.message_bytes.max(1))) as usize;
        Bytes::from(format!("{:0width$}", key.0))
    }

    /// Who is told so does not wait for as long as one who hears nothing.
    fn try_refused_again(&mut self, number: usize, key: PublishKey) {
        let publisher = &self.publishers[number];
        if publisher.key == key && publisher.waiting {
            let attempt = publisher.attempt;
            let pause_ms = REFUSED_MS + self.random.below(REFUSED_MS);
            self.after(pause_ms, Event::Publisher { publisher: number, attempt });
        }
    }

    pub(super) fn published(
        &mut self,
        number: usize,
        (key, sending): (PublishKey, usize),
        result: Result<Published, SlotError>,
    ) {
        let publisher = &mut self.publishers[number];
        let Published { position, copies } = match result {
            Ok(published) => published,
            Err(SlotError::Unknown | SlotError::NotPrimary { .. }) => return,
            Err(_) => {
                self.ledger.count("publishes refused");
                self.seen.refused(self.now, key, sending);
                return self.try_refused_again(number, key);
            }
        };
        self.seen.answered(self.now, key, sending, position, copies);
        if publisher.key != key || !publisher.waiting {
            return;
        }
        if let Some(last) = publisher.last
            && !publisher.repeat
            && last.epoch == position.epoch
            && last.offset >= position.offset
        {
            let what = format!("S5: publisher {number} was answered {last:?} and for its next message {position:?}");
            self.ledger.fail(what);
        }
        if !publisher.repeat {
            publisher.last = Some(position);
        }
        publisher.waiting = false;
        publisher.attempt += 1;
        let attempt = publisher.attempt;
        let after = self.random.waiting(self.profile.publish_ms);
        self.after(after, Event::Publisher { publisher: number, attempt });
    }
}
