//! Random histories: a primary that trims, fails over, or starts again; deposed primaries that still answer; pushes in
//! order but lost with their link (or, now and then, without anybody noticing); answers in any order, a page at a time;
//! connections that have no room for a message. Every client checks what it is told against the true logs.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::{entry::Present, id::GroupName};

#[derive(Clone, Debug)]
enum Step {
    Publish(u8),
    Push(u8),
    LoseLink(u8),
    /// Without a new link: only the renewal heals it.
    LosePush,
    Trim(u8),
    FailOver {
        noticed_late: bool,
    },
    StartAgain,
    Subscribe {
        client: u8,
        resume: bool,
    },
    Unsubscribe(u8),
    /// From now on the client's connection takes this number of messages more, then none.
    Stop {
        client: u8,
        room: u8,
    },
    /// The client reads on: its connection takes everything.
    Read(u8),
    /// A request arrives: at the primary, or at the one deposed last.
    Serve {
        request: u8,
        deposed: bool,
        lost: bool,
    },
    Answer(u8),
    NoticeMap,
    Unreachable,
    Reachable,
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1..4_u8).prop_map(Step::Publish),
        10 => (1..5_u8).prop_map(Step::Push),
        2 => any::<u8>().prop_map(Step::LoseLink),
        1 => Just(Step::LosePush),
        2 => (0..4_u8).prop_map(Step::Trim),
        2 => any::<bool>().prop_map(|noticed_late| Step::FailOver { noticed_late }),
        1 => Just(Step::StartAgain),
        6 => (0..4_u8, any::<bool>()).prop_map(|(client, resume)| Step::Subscribe { client, resume }),
        2 => (0..4_u8).prop_map(Step::Unsubscribe),
        3 => (0..4_u8, 0..6_u8).prop_map(|(client, room)| Step::Stop { client, room }),
        3 => (0..4_u8).prop_map(Step::Read),
        12 => (any::<u8>(), prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(request, deposed, lost)| Step::Serve { request, deposed, lost }),
        12 => any::<u8>().prop_map(Step::Answer),
        2 => Just(Step::NoticeMap),
        1 => Just(Step::Unreachable),
        1 => Just(Step::Reachable),
        5 => (1..1_500_u16).prop_map(Step::Pass),
    ]
}

/// What a primary has: a prefix of the true log.
#[derive(Clone, Debug)]
struct Primary {
    term: Term,
    epoch: Epoch,
    head: u64,
    /// The first offset that is kept.
    kept: u64,
    interest: bool,
}

/// Messages in one answer.
const PAGE: usize = 3;

/// One client, as strict as can be.
#[derive(Debug, Default)]
struct Client {
    joining: bool,
    /// Where it is now; kept when it leaves, to resume from.
    last: Option<Position>,
    live: bool,
    /// It waits for room to be told the next page.
    behind: bool,
    /// How many messages its connection still takes; nothing: all.
    room: Option<u8>,
    /// Messages up to here are due within the step that said `joined`.
    promised: Option<u64>,
}

struct World {
    feed: Feed,
    now_ms: u64,
    primary: Primary,
    deposed: Option<Primary>,
    pushes: VecDeque<Input>,
    requests: Vec<Output>,
    answers: Vec<Input>,
    clients: BTreeMap<Subscriber, Client>,
    /// Whose connection had no room for a message in this step.
    lagging: Vec<Subscriber>,
    /// All that was ever trimmed, by log.
    trimmed: BTreeMap<Epoch, u64>,
    last_epoch: u64,
    map_unnoticed: bool,
    /// Something was lost, or promised by the wrong node, that only the renewal can bring to light.
    undetected: bool,
}

fn message(epoch: Epoch, offset: u64) -> Message {
    Message { offset, data: format!("{}:{offset}", epoch.0).into_bytes().into(), from: None, at_ms: 0 }
}

impl World {
    fn new() -> Self {
        let bounds = Bounds { messages: 8, bytes: 1 << 20 };
        let settings = FeedSettings { bounds, ..FeedSettings::default() };
        Self {
            feed: Feed::new(settings.into(), 0),
            now_ms: 0,
            primary: Primary { term: 1, epoch: Epoch(1), head: 0, kept: 1, interest: false },
            deposed: None,
            pushes: VecDeque::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            clients: BTreeMap::new(),
            lagging: Vec::new(),
            trimmed: BTreeMap::new(),
            last_epoch: 1,
            map_unnoticed: false,
            undetected: false,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish(count) => (0..count).for_each(|_| self.publish()),
            Step::Push(count) => (0..count).for_each(|_| self.push()),
            Step::LoseLink(kept) => {
                let kept = usize::from(kept) % (self.pushes.len() + 1);
                self.pushes.truncate(kept);
                self.pushes.push_back(Input::Disrupted);
            }
            Step::LosePush => {
                if matches!(self.pushes.front(), Some(Input::Deliver { .. })) {
                    self.pushes.pop_front();
                    self.undetected = true;
                }
            }
            Step::Trim(leave) => self.trim(u64::from(leave)),
            Step::FailOver { noticed_late } => {
                self.depose(noticed_late);
                self.primary.term += 1;
                self.primary.interest = false;
            }
            Step::StartAgain => {
                self.depose(false);
                self.last_epoch += 1;
                let term = self.primary.term + 1;
                self.primary = Primary { term, epoch: Epoch(self.last_epoch), head: 0, kept: 1, interest: false };
            }
            Step::Subscribe { client, resume } => self.subscribe(u64::from(client), resume),
            Step::Unsubscribe(client) => {
                let subscriber = u64::from(client);
                if let Some(client) = self.clients.get_mut(&subscriber) {
                    (client.live, client.joining, client.behind) = (false, false, false);
                }
                self.input(Input::Unsubscribe { subscriber, leave: None });
            }
            Step::Stop { client, room } => {
                self.clients.entry(u64::from(client)).or_default().room = Some(room);
            }
            Step::Read(client) => self.read(u64::from(client)),
            Step::Serve { request, deposed, lost } => {
                if !self.requests.is_empty() {
                    let request = self.requests.swap_remove(usize::from(request) % self.requests.len());
                    self.serve(request, deposed, lost);
                }
            }
            Step::Answer(answer) => {
                if !self.answers.is_empty() {
                    let answer = self.answers.swap_remove(usize::from(answer) % self.answers.len());
                    self.input(answer);
                }
            }
            Step::NoticeMap => self.notice_map(),
            Step::Unreachable => self.input(Input::PrimaryUnreachable { since_ms: self.now_ms }),
            Step::Reachable => self.input(Input::PrimaryReachable),
            Step::Pass(ms) => self.pass(u64::from(ms)),
        }
    }

    fn depose(&mut self, noticed_late: bool) {
        self.deposed = Some(self.primary.clone());
        self.map_unnoticed = true;
        if !noticed_late {
            self.notice_map();
        }
    }

    fn notice_map(&mut self) {
        if std::mem::take(&mut self.map_unnoticed) {
            self.input(Input::Disrupted);
        }
    }

    fn publish(&mut self) {
        self.primary.head += 1;
        let Primary { term, epoch, head, interest, .. } = self.primary;
        if interest {
            self.pushes.push_back(Input::Deliver { epoch, message: message(epoch, head), term });
        }
    }

    fn push(&mut self) {
        if let Some(push) = self.pushes.pop_front() {
            self.input(push);
        }
    }

    fn trim(&mut self, leave: u64) {
        let kept = (self.primary.head + 1).saturating_sub(leave).max(self.primary.kept);
        self.primary.kept = kept;
        self.trimmed.insert(self.primary.epoch, kept - 1);
    }

    fn subscribe(&mut self, subscriber: Subscriber, resume: bool) {
        let client = self.clients.entry(subscriber).or_default();
        if client.live || client.joining || client.behind {
            return;
        }
        if !resume {
            client.last = None;
        }
        client.joining = true;
        let since = client.last;
        self.input(Input::Subscribe { subscriber, request: None, member: None, summed: false, since });
    }

    fn read(&mut self, subscriber: Subscriber) {
        let client = self.clients.entry(subscriber).or_default();
        client.room = None;
        if client.behind {
            self.input(Input::Room { subscriber });
        }
    }

    fn serve(&mut self, request: Output, deposed: bool, lost: bool) {
        let primary = match &mut self.deposed {
            Some(old) if deposed => {
                self.undetected |= !self.map_unnoticed;
                old
            }
            _ => &mut self.primary,
        };
        let point = |since: Option<Position>| {
            let Primary { epoch, head, kept, .. } = *primary;
            let first = match since {
                Some(since) if since.epoch == epoch => kept.max(since.offset + 1),
                // As the real one does: of a log that the asker does not know, nothing was missed.
                Some(_) => head + 1,
                None => head + 1,
            };
            let recovered =
                since.is_none_or(|since| since.epoch == epoch && since.offset <= head && since.offset + 1 >= kept);
            let messages: Vec<_> = (first..=head).map(|offset| message(epoch, offset)).take(PAGE).collect();
            let up_to = messages.last().map_or(head, |message| message.offset);
            JoinPoint {
                group: GroupName::parse("g").unwrap(),
                epoch,
                head,
                up_to,
                recovered,
                messages,
                present: Present::default(),
            }
        };
        let answer = match request {
            Output::AskJoin { attempt, subscriber, since, .. } => {
                Input::JoinAnswer { attempt, subscriber, result: Ok(point(since)) }
            }
            Output::AskRegister { attempt, since } => Input::RegisterAnswer { attempt, result: Ok(point(Some(since))) },
            Output::AskUnregister { attempt } => Input::UnregisterAnswer { attempt },
            other => panic!("{other:?} was asked"),
        };
        primary.interest = !matches!(answer, Input::UnregisterAnswer { .. });
        self.answers.push(match answer {
            Input::JoinAnswer { attempt, subscriber, .. } if lost => {
                Input::JoinAnswer { attempt, subscriber, result: Err(SlotError::Unavailable) }
            }
            Input::RegisterAnswer { attempt, .. } if lost => {
                Input::RegisterAnswer { attempt, result: Err(SlotError::Unknown) }
            }
            answer => answer,
        });
    }

    fn pass(&mut self, ms: u64) {
        let until_ms = self.now_ms + ms;
        let mut ticks = 0;
        while let Some(wake) = self.feed.next_wake().filter(|wake| *wake <= until_ms) {
            self.now_ms = self.now_ms.max(wake);
            self.input(Input::Tick);
            ticks += 1;
            assert!(ticks < 1_000, "the feed wakes without end: {:?}", self.feed);
        }
        self.now_ms = until_ms;
    }

    fn input(&mut self, input: Input) {
        if self.feed.is_over() && self.feed.last_attempt > 0 {
            // As the shell does.
            self.feed = Feed::new(self.feed.settings.clone(), self.feed.last_attempt);
        }
        let mut out = Vec::new();
        self.feed.handle(self.now_ms, input, &mut out);
        for output in out {
            self.perform(output);
        }
        for subscriber in std::mem::take(&mut self.lagging) {
            let at = self.clients[&subscriber].last.unwrap();
            let mut out = Vec::new();
            self.feed.handle(self.now_ms, Input::Lag { subscriber, at }, &mut out);
            for output in out {
                self.perform(output);
            }
            assert!(self.clients[&subscriber].behind, "{subscriber} lags, and the feed does not know");
        }
        for (subscriber, client) in &mut self.clients {
            let promised = client.promised.take().filter(|_| !client.behind);
            if let Some(promised) = promised {
                assert!(client.last.unwrap().offset >= promised, "{subscriber} was not given what `joined` promised");
            }
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Joined { subscriber, epoch, offset, recovered, .. } => {
                self.joined(subscriber, Position { epoch, offset }, recovered);
            }
            Output::JoinFailed { subscriber, .. } => self.clients.get_mut(&subscriber).unwrap().joining = false,
            Output::Replay { subscriber } => {
                let client = self.clients.get_mut(&subscriber).unwrap();
                assert!(client.behind, "{subscriber} was not behind");
                (client.live, client.behind) = (true, false);
            }
            Output::ReplayFailed { subscriber, .. } => assert!(self.clients[&subscriber].behind),
            Output::Behind { subscriber } => {
                let client = self.clients.get_mut(&subscriber).unwrap();
                (client.live, client.behind) = (false, true);
            }
            Output::Tell { to: To::One(subscriber), notice } => self.tell(subscriber, &notice),
            Output::Tell { to: To::AllBut(except), notice } => {
                let all: Vec<_> =
                    self.clients.iter().filter(|(_, client)| client.live).map(|(subscriber, _)| *subscriber).collect();
                for subscriber in all.into_iter().filter(|subscriber| !except.contains(subscriber)) {
                    self.tell(subscriber, &notice);
                }
            }
            ask => self.requests.push(ask),
        }
    }

    fn joined(&mut self, subscriber: Subscriber, point: Position, recovered: bool) {
        let client = self.clients.get_mut(&subscriber).unwrap();
        assert!(client.joining, "{subscriber} did not ask to join");
        (client.joining, client.live) = (false, true);
        match client.last {
            Some(since) if since.epoch == point.epoch && since.offset <= point.offset => {
                client.promised = Some(point.offset);
            }
            since => {
                assert!(!recovered || since.is_none(), "{subscriber} at {since:?} cannot be recovered at {point:?}");
                client.last = Some(point);
            }
        }
    }

    fn tell(&mut self, subscriber: Subscriber, notice: &Notice) {
        let client = self.clients.get_mut(&subscriber).unwrap();
        if self.lagging.contains(&subscriber) {
            return;
        }
        assert!(client.live, "{subscriber} is not live and was told {notice:?}");
        if let (Notice::Message { .. }, Some(room)) = (notice, &mut client.room) {
            if *room == 0 {
                client.live = false;
                self.lagging.push(subscriber);
                return;
            }
            *room -= 1;
        }
        let last = client.last.as_mut().unwrap();
        match notice {
            Notice::Message { epoch, message: told } => {
                assert_eq!((*epoch, told.offset), (last.epoch, last.offset + 1), "{subscriber} was at {last:?}");
                assert_eq!(*told, message(*epoch, told.offset), "S1");
                last.offset += 1;
            }
            Notice::Gap { epoch, from, to } => {
                assert_eq!((*epoch, *from), (last.epoch, last.offset + 1), "{subscriber} was at {last:?}");
                assert!(from <= to, "an empty gap");
                let trimmed = self.trimmed.get(epoch).copied().unwrap_or(0);
                assert!(*to <= trimmed, "gap {from}-{to}, but only {trimmed} are trimmed");
                last.offset = *to;
            }
            Notice::Reset(position) => {
                assert_ne!(position.epoch, last.epoch, "a reset into the same log");
                *last = *position;
            }
            Notice::Live(position) => {
                assert!(last.epoch == position.epoch && last.offset >= position.offset, "{last:?} {position:?}");
            }
            Notice::Stale | Notice::Member { .. } | Notice::Present(_) | Notice::Ephemeral(_) => {}
        }
    }

    /// Everything works from now on: every client that wants to be live is, and has everything.
    fn settle(&mut self) {
        self.notice_map();
        self.input(Input::PrimaryReachable);
        self.deposed = None;
        // Without the renewal's help where that is possible: some pauses for retries are all it takes.
        let rounds = if self.undetected { 1_000 } else { 150 };
        for _ in 0..rounds {
            self.pass(20);
            for subscriber in 0..4 {
                self.read(subscriber);
            }
            while let Some(request) = self.requests.pop() {
                self.serve(request, false, false);
            }
            while let Some(answer) = self.answers.pop() {
                self.input(answer);
            }
            while !self.pushes.is_empty() {
                self.push();
            }
        }
        let head = Position { epoch: self.primary.epoch, offset: self.primary.head };
        for (subscriber, client) in &self.clients {
            assert!(!client.joining && !client.behind, "{subscriber} still joins");
            if client.live {
                assert_eq!(client.last, Some(head), "{subscriber} has not got all: {:?}", self.feed);
            }
        }
        assert!(!self.feed.stale, "{:?}", self.feed);
    }
}

proptest! {
    #[test]
    fn nobody_ever_sees_a_silent_hole_or_a_repeat(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}
