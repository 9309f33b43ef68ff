//! A cluster that keeps its promises, as publishers and subscribers see it.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::super::*;

/// A model of a cluster that keeps its promises: each step writes down what publishers and subscribers would.
pub(super) struct Model {
    rng: StdRng,
    at_us: u64,
    history: History,
    groups: Vec<Group>,
    sequences: Vec<u64>,
    subscribers: Vec<Subscriber>,
}

struct Group {
    name: Arc<str>,
    epoch: Epoch,
    log: Vec<Arc<str>>,
}

struct Subscriber {
    /// Index of the open connection.
    connection: usize,
    number: u32,
    positions: BTreeMap<usize, Position>,
}

impl Model {
    pub(super) fn run(seed: u64, steps: usize) -> History {
        let mut rng = StdRng::seed_from_u64(seed);
        let groups = (0..3)
            .map(|n| Group { name: format!("g{n}").into(), epoch: Epoch(rng.random()), log: Vec::new() })
            .collect();
        let history = History { publishes_complete: true, ..History::default() };
        let mut model = Self { rng, at_us: 1_000, history, groups, sequences: vec![0; 3], subscribers: Vec::new() };
        for _ in 0..3 {
            model.subscribers.push(Subscriber { connection: 0, number: 0, positions: BTreeMap::new() });
            model.connect(model.subscribers.len() - 1);
        }
        for _ in 0..steps {
            model.step();
        }
        // Each kind at least once, at the end of it all, for the tests that break one.
        for group in 0..3 {
            for publisher in [0, 0, 1] {
                model.publish(publisher, group);
            }
        }
        model.reconnect(0);
        for subscriber in 0..3 {
            for group in 0..3 {
                model.deliver(subscriber, group, usize::MAX);
            }
            model.history.connections[model.subscribers[subscriber].connection].settled = true;
        }
        model.read_history(0);
        model.history
    }

    fn step(&mut self) {
        self.at_us += self.rng.random_range(1..100);
        let group = self.rng.random_range(0..self.groups.len());
        let subscriber = self.rng.random_range(0..self.subscribers.len());
        match self.rng.random_range(0..100) {
            0..45 => {
                let publisher = self.rng.random_range(0..self.sequences.len());
                self.publish(publisher, group);
            }
            45..90 => {
                let most = self.rng.random_range(0..6);
                self.deliver(subscriber, group, most);
            }
            90..95 => self.reconnect(subscriber),
            95..97 => self.gap(subscriber, group),
            97..98 => self.reset(group),
            _ => self.read_history(group),
        }
    }

    fn publish(&mut self, publisher: usize, group: usize) {
        self.at_us += 10;
        self.sequences[publisher] += 1;
        let sequence = self.sequences[publisher];
        let payload: Arc<str> = format!("\"p{publisher}/{sequence}\"").into();
        let (sent_us, answered_us) = (self.at_us - 5, self.at_us + self.rng.random_range(1..200));
        let sending = Attempt { connection: 1, sequence, sent_us, answered_us, outcome: Outcome::Unknown };
        let kind = self.rng.random_range(0..20);
        let mut attempts = Vec::new();
        if kind < 18 {
            self.groups[group].log.push(payload.clone());
            let at = Position { epoch: self.groups[group].epoch, offset: self.groups[group].log.len() as u64 };
            let acked = Attempt { outcome: Outcome::Acked { at, copies: 2 }, ..sending };
            match kind {
                // Accepted, not answered, and not repeated: nobody knows.
                17 => attempts.push(sending),
                // Repeated once or twice, answered with the same place.
                16 => attempts.extend([sending, acked, acked]),
                _ => attempts.push(acked),
            }
        } else {
            attempts.push(Attempt { outcome: Outcome::Refused, ..sending });
        }
        self.history.publishes.push(PublishLog {
            publisher: format!("p{publisher}").into(),
            group: self.groups[group].name.clone(),
            key: Some(format!("k{sequence}").into()),
            payload,
            attempts,
        });
    }

    fn told(&mut self, subscriber: usize, seen: Seen) {
        self.at_us += 1;
        let connection = self.subscribers[subscriber].connection;
        self.history.connections[connection].events.push(Stamped { at_us: self.at_us, seen });
    }

    fn connect(&mut self, subscriber: usize) {
        self.subscribers[subscriber].number += 1;
        self.subscribers[subscriber].connection = self.history.connections.len();
        self.history.connections.push(ConnectionLog {
            client: format!("s{subscriber}").into(),
            number: self.subscribers[subscriber].number,
            node: "n1".into(),
            welcome: Some(Welcome::at(subscriber, self.at_us)),
            events: Vec::new(),
            settled: false,
        });
        for group in 0..self.groups.len() {
            let Group { name, epoch, log } = &self.groups[group];
            let at = Position { epoch: *epoch, offset: log.len() as u64 };
            let since = self.subscribers[subscriber].positions.get(&group).copied();
            let recovered = since.is_some_and(|since| since.epoch == at.epoch);
            let joined = Seen::Joined { group: name.clone(), since, at, recovered };
            self.told(subscriber, joined);
            if !recovered {
                self.subscribers[subscriber].positions.insert(group, at);
            }
        }
    }

    fn reconnect(&mut self, subscriber: usize) {
        let last = if self.rng.random() { Seen::Closed } else { Seen::Displaced };
        self.told(subscriber, last);
        self.come_back(subscriber);
    }

    /// Connects and takes in what was missed.
    fn come_back(&mut self, subscriber: usize) {
        self.connect(subscriber);
        for group in 0..self.groups.len() {
            self.deliver(subscriber, group, usize::MAX);
        }
    }

    fn deliver(&mut self, subscriber: usize, group: usize, most: usize) {
        let from = self.subscribers[subscriber].positions[&group].offset as usize;
        let Group { name, epoch, log } = &self.groups[group];
        let messages: Vec<Seen> = log
            .iter()
            .enumerate()
            .skip(from)
            .take(most)
            .map(|(index, payload)| Seen::Message {
                group: name.clone(),
                at: Position { epoch: *epoch, offset: index as u64 + 1 },
                payload: payload.clone(),
            })
            .collect();
        for message in messages {
            self.told(subscriber, message);
            self.subscribers[subscriber].positions.get_mut(&group).unwrap().offset += 1;
        }
    }

    fn gap(&mut self, subscriber: usize, group: usize) {
        let position = self.subscribers[subscriber].positions[&group];
        let Group { name, epoch, log } = &self.groups[group];
        let to = log.len() as u64;
        if to > position.offset {
            let gap = Seen::Gap { group: name.clone(), epoch: *epoch, from: position.offset + 1, to };
            self.told(subscriber, gap);
            self.subscribers[subscriber].positions.get_mut(&group).unwrap().offset = to;
        }
    }

    fn reset(&mut self, group: usize) {
        self.groups[group].epoch = Epoch(self.rng.random());
        self.groups[group].log.clear();
        // One is away and finds out when it comes back.
        let away = self.rng.random_range(0..self.subscribers.len());
        self.told(away, Seen::Closed);
        for subscriber in (0..self.subscribers.len()).filter(|subscriber| *subscriber != away) {
            let to = Position { epoch: self.groups[group].epoch, offset: 0 };
            let name = self.groups[group].name.clone();
            self.told(subscriber, Seen::Reset { group: name, to });
            self.subscribers[subscriber].positions.insert(group, to);
        }
        self.come_back(away);
    }

    fn read_history(&mut self, group: usize) {
        let Group { name, epoch, log } = &self.groups[group];
        let messages = log.iter().enumerate().map(|(index, payload)| (index as u64 + 1, payload.clone()));
        self.history.replays.push(Replay {
            what: format!("the history of {name} from n2"),
            group: name.clone(),
            epoch: *epoch,
            at_us: self.at_us,
            messages: messages.collect(),
        });
    }
}
