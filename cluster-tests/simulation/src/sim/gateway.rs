//! A gateway's following of groups: the real feeds, driven as the product's hub drives them, with listeners that take
//! part in groups, leave, and resume at other nodes from where they stopped.

use std::{collections::BTreeSet, sync::Arc};

use roost_logic::{
    attachments,
    feed::{self, Attempt, Feed, FeedSettings, Notice, Output, Subscriber, To},
    id::{GroupName, Member, Position, SlotId, Term},
    request::{
        Ask, GroupPush, Interest, Join, JoinPoint, Leave, Push, ReadHistory, Register, SessionPush, SlotError,
        Unregister,
    },
};

use super::{
    asks::Purpose,
    checks::Told,
    node::Input,
    world::{Event, World},
};

/// A group that this gateway's clients are in.
#[derive(Debug)]
pub(super) struct Followed {
    slot: SlotId,
    feed: Feed,
    primary: Option<(Member, Term)>,
    unreachable: bool,
    wake_ms: Option<u64>,
}

/// A client that listens to a group.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) group: usize,
    /// The node, its generation, and the number there of the connection that it has.
    at: Option<(usize, u64, Subscriber)>,
    pub(super) live: bool,
    /// It waits to be told the next page of what it missed.
    behind: bool,
    /// What it has seen, to resume from.
    pub(super) position: Option<Position>,
    asked_ms: u64,
    /// It only looks in now and then, and stays away until then.
    visits: bool,
    away_until_ms: u64,
}

/// A listener that is not answered for so long tries another node.
const PATIENCE_MS: u64 = 10_000;

/// What a listener takes to read a page.
const READ_MS: u64 = 20;

impl World {
    pub(super) fn create_listeners(&mut self) {
        for number in 0..self.profile.listeners {
            let group = self.random.index(self.groups.len());
            self.create_listener(number, group, false);
        }
        if self.profile.visitors > 0 {
            // Nobody publishes to it, so that it is forgotten while nobody is there.
            self.add_group();
            for number in 0..self.profile.visitors {
                self.create_listener(self.profile.listeners + number, self.groups.len() - 1, true);
            }
        }
    }

    fn create_listener(&mut self, number: usize, group: usize, visits: bool) {
        let (at, live, behind, position, asked_ms, away_until_ms) = (None, false, false, None, 0, 0);
        self.listeners.push(Listener { group, at, live, behind, position, asked_ms, visits, away_until_ms });
        let after = self.random.below(2_000);
        self.after(after, Event::Listener(number));
    }

    /// A listener joins, or joins again elsewhere.
    pub(super) fn listener(&mut self, number: usize) {
        let wait = 100 + self.random.waiting(500);
        self.after(wait, Event::Listener(number));
        if self.random.permille(200) {
            self.read_history(number);
        }
        let listener = &self.listeners[number];
        if let Some((node, generation, subscriber)) = listener.at {
            let gone = self.generation(node) != Some(generation);
            let waits = !listener.live && listener.asked_ms + PATIENCE_MS > self.now;
            let (visits, restless) = (listener.visits, if listener.visits { 500 } else { self.profile.wander });
            let stays = listener.live && (self.resting || !self.random.permille(restless));
            if !gone && (waits || stays) {
                return;
            }
            self.listeners[number].at = None;
            self.listeners[number].live = false;
            if visits {
                self.listeners[number].away_until_ms = self.now + self.random.between(5_000, 15_000);
            }
            let group = self.groups[self.listeners[number].group].0.clone();
            if !gone {
                self.input_after(0, node, Input::Feed { group, input: leave(subscriber) });
            }
            return;
        }
        if !self.resting && listener.away_until_ms > self.now {
            return;
        }
        let Some(node) = self.some_node() else { return };
        let Some(generation) = self.generation(node) else { return };
        if self.random.permille(100) {
            self.listeners[number].position = None;
        }
        let subscriber = self.number();
        let listener = &mut self.listeners[number];
        (listener.at, listener.asked_ms) = (Some((node, generation, subscriber)), self.now);
        let group = self.groups[listener.group].0.clone();
        let input = feed::Input::Subscribe { subscriber, request: None, member: None, since: listener.position };
        self.input_after(1, node, Input::Feed { group, input });
    }

    /// Somebody reads what follows a listener's position, or all.
    fn read_history(&mut self, number: usize) {
        let Some(node) = self.some_node() else { return };
        let all = self.random.permille(300);
        let since = self.listeners[number].position.filter(|_| !all);
        let since = since.map(|at| Position { offset: at.offset - self.random.below(at.offset.min(30) + 1), ..at });
        let limit = self.random.between(1, 50) as u32;
        let (group, slot) = self.groups[self.listeners[number].group].clone();
        let request = (group.clone(), ReadHistory { since, limit });
        self.input_after(1, node, Input::Client(Purpose::History { group, since }, slot, request.into_request()));
    }

    fn generation(&self, node: usize) -> Option<u64> {
        self.nodes[node].process.as_ref().map(|process| process.member.generation)
    }

    /// Something from this member may be lost, or (nobody given) the map has changed.
    pub(super) fn disrupted(&mut self, node: usize, from: Option<&Member>) {
        let mut disrupted = Vec::new();
        let map = self.process(node).map.clone();
        for (group, followed) in &mut self.process(node).feeds {
            let assignment = map.as_ref().and_then(|map| map.slot(followed.slot));
            let primary = assignment.map(|assignment| (assignment.primary.clone(), assignment.term));
            let concerned = match from {
                Some(from) => primary.as_ref().is_some_and(|(primary, _)| primary == from),
                None => followed.primary != primary,
            };
            followed.primary = primary;
            if concerned {
                disrupted.push(group.clone());
            }
        }
        for group in disrupted {
            self.feed(node, &group, feed::Input::Disrupted);
        }
        self.look_at_primaries(node);
    }

    /// Tells the feeds whose primary has become unreachable, or reachable again.
    pub(super) fn look_at_primaries(&mut self, node: usize) {
        let since_ms = self.clock(node).mono_ms;
        let process = self.process(node);
        let mut changed = Vec::new();
        for (group, followed) in &mut process.feeds {
            let (heard, alive) = (&process.heard, &process.alive);
            let is_heard = |primary: &Member| heard.contains(primary) && alive.contains(primary);
            let reachable =
                followed.primary.as_ref().is_none_or(|(primary, _)| *primary == process.member || is_heard(primary));
            if followed.unreachable == reachable {
                followed.unreachable = !reachable;
                let lost = feed::Input::PrimaryUnreachable { since_ms };
                changed.push((group.clone(), if reachable { feed::Input::PrimaryReachable } else { lost }));
            }
        }
        for (group, input) in changed {
            self.feed(node, &group, input);
        }
    }

    pub(super) fn wake_feed(&mut self, node: usize, group: &GroupName) {
        let now_ms = self.clock(node).mono_ms;
        let Some(followed) = self.process(node).feeds.get_mut(group) else { return };
        followed.wake_ms = None;
        if followed.feed.next_wake().is_some_and(|wake| wake <= now_ms) {
            self.feed(node, group, feed::Input::Tick);
        } else {
            self.sleep_feed(node, group);
        }
    }

    fn sleep_feed(&mut self, node: usize, group: &GroupName) {
        let now_ms = self.clock(node).mono_ms;
        let Some(followed) = self.process(node).feeds.get_mut(group) else { return };
        let Some(wake) = followed.feed.next_wake() else { return };
        if followed.wake_ms.is_none_or(|planned| wake < planned) {
            followed.wake_ms = Some(wake);
            self.input_after(wake.saturating_sub(now_ms).max(1), node, Input::FeedWake(group.clone()));
        }
    }

    /// Something happens to a group; one that nobody has followed is opened by who comes first.
    pub(super) fn feed(&mut self, node: usize, group: &GroupName, input: feed::Input) {
        let now_ms = self.clock(node).mono_ms;
        if !self.process(node).feeds.contains_key(group) {
            if !matches!(input, feed::Input::Subscribe { .. }) {
                return;
            }
            let slot = group.slot(self.profile.slots);
            let settings = FeedSettings { answer_ms: 7_000, join_ms: 6_000, ..FeedSettings::default() };
            let primary = self.primary(node, slot);
            let process = self.process(node);
            let feed = Feed::new(settings, process.last_attempt);
            let followed = Followed { slot, feed, primary, unreachable: false, wake_ms: None };
            process.feeds.insert(group.clone(), followed);
            self.look_at_primaries(node);
        }
        let Some(followed) = self.process(node).feeds.get_mut(group) else { return };
        let mut out = Vec::new();
        followed.feed.handle(now_ms, input, &mut out);
        let (over, last) = (followed.feed.is_over(), followed.feed.last_attempt());
        if over {
            let process = self.process(node);
            process.feeds.remove(group);
            process.last_attempt = process.last_attempt.max(last);
        }
        for output in out {
            self.perform_feed(node, group, output);
        }
        let generation = self.process(node).member.generation;
        self.check_promises(node, generation);
        self.sleep_feed(node, group);
    }

    fn perform_feed(&mut self, node: usize, group: &GroupName, output: Output) {
        let slot = group.slot(self.profile.slots);
        let of = |attempt: Attempt| Asked { group: group.clone(), attempt };
        match output {
            Output::AskJoin { attempt, subscriber, member, since } => {
                let request = (group.clone(), Join { member, since });
                self.ask(node, Purpose::Join { asked: of(attempt), subscriber }, slot, request);
            }
            Output::AskRegister { attempt, since } => {
                let interests = vec![Interest { group: group.clone(), since: Some(since) }];
                self.ask(node, Purpose::Register(of(attempt)), slot, Register(interests));
            }
            Output::AskUnregister { attempt } => {
                let request = Unregister(vec![group.clone()]);
                self.ask(node, Purpose::Unregister(of(attempt)), slot, request);
            }
            Output::AskLeave { attempt, subscriber, session, attachment } => {
                let request = (group.clone(), Leave { session, attachment });
                self.ask(node, Purpose::Leave { asked: of(attempt), subscriber }, slot, request);
            }
            Output::Joined { subscriber, epoch, offset, recovered, .. } => {
                let told = Told::Joined { at: Position { epoch, offset }, recovered };
                self.tell(node, group, |number| number == subscriber, told);
            }
            Output::JoinFailed { subscriber, .. } => {
                if let Some(listener) = self.listeners.iter_mut().find(|there| there.is_at(node, subscriber)) {
                    listener.at = None;
                }
            }
            Output::Replay { subscriber } => self.set_behind(node, subscriber, false),
            Output::Behind { subscriber } => {
                self.set_behind(node, subscriber, true);
                self.read_on(node, group, subscriber);
            }
            Output::ReplayFailed { subscriber, .. } => self.read_on(node, group, subscriber),
            Output::Tell { to, notice } => {
                let told = match notice {
                    Notice::Message { epoch, message } => Told::Message(epoch, message),
                    Notice::Gap { epoch, from, to } => Told::Gap { epoch, from, to },
                    Notice::Reset(position) => Told::Reset(position),
                    Notice::Live(position) => Told::Live(position),
                    Notice::Member { .. } | Notice::Stale => return,
                };
                match to {
                    To::One(subscriber) => self.tell(node, group, |number| number == subscriber, told),
                    To::AllBut(except) => self.tell(node, group, |number| !except.contains(&number), told),
                }
            }
        }
    }

    fn set_behind(&mut self, node: usize, subscriber: Subscriber, behind: bool) {
        if let Some(listener) = self.listeners.iter_mut().find(|there| there.is_at(node, subscriber)) {
            listener.behind = behind;
        }
    }

    /// The listener has read what it was told, and has room for a page.
    fn read_on(&mut self, node: usize, group: &GroupName, subscriber: Subscriber) {
        let input = feed::Input::Room { subscriber };
        self.input_after(READ_MS, node, Input::Feed { group: group.clone(), input });
    }

    /// The listeners are told, and the ledger looks over their shoulders.
    fn tell(&mut self, node: usize, group: &GroupName, whom: impl Fn(Subscriber) -> bool, told: Told) {
        let Some(generation) = self.generation(node) else { return };
        let Self { listeners, groups, ledger, seen, nodes, now, .. } = self;
        for (number, listener) in listeners.iter_mut().enumerate() {
            let here = |(at, of, subscriber)| at == node && of == generation && whom(subscriber);
            if groups[listener.group].0 != *group || !listener.at.is_some_and(here) {
                continue;
            }
            if let Told::Joined { .. } = told {
                (listener.live, listener.behind) = (true, false);
                ledger.count("joins");
                ledger.count_if(listener.position.is_some(), "resumes");
            }
            if listener.live && !listener.behind {
                seen.told(*now, (number, nodes[node].id.as_str()), group, listener.position, &told);
                listener.position = ledger.told(number, group, listener.position, &told);
            }
        }
    }

    /// What `joined` promises is told in the same step.
    fn check_promises(&mut self, node: usize, generation: u64) {
        for number in 0..self.listeners.len() {
            let listener = &self.listeners[number];
            if listener.at.is_some_and(|(at, of, _)| at == node && of == generation) {
                self.ledger.check_promise(number, listener.position);
            }
        }
    }

    pub(super) fn joined(
        &mut self,
        node: usize,
        asked: &Asked,
        subscriber: Subscriber,
        result: Result<JoinPoint, SlotError>,
    ) {
        let input = feed::Input::JoinAnswer { attempt: asked.attempt, subscriber, result };
        self.feed(node, &asked.group, input);
    }

    pub(super) fn registered(&mut self, node: usize, asked: &Asked, result: Result<Vec<JoinPoint>, SlotError>) {
        let point = |points: Vec<JoinPoint>| points.into_iter().next().ok_or(SlotError::Unavailable);
        let result = result.and_then(point);
        let input = feed::Input::RegisterAnswer { attempt: asked.attempt, result };
        self.feed(node, &asked.group, input);
    }

    pub(super) fn pushed(&mut self, node: usize, slot: SlotId, term: Term, push: Push) {
        match push {
            Push::Group(group, GroupPush::Deliver { epoch, message }) => {
                self.feed(node, &group, feed::Input::Deliver { epoch, message, term });
            }
            Push::Session(session, SessionPush::Displace { attachment }) => {
                self.attachments(node, attachments::Input::Displaced { slot, session, number: attachment });
            }
            Push::Session(session, SessionPush::Ended { reason }) => {
                self.attachments(node, attachments::Input::Ended { slot, session, reason });
            }
            Push::Session(_, SessionPush::Changed { record }) => {
                self.attachments(node, attachments::Input::Changed { slot, record: Arc::new(record) });
            }
            Push::Group(_, GroupPush::Member { .. }) => {}
        }
    }

    pub(super) fn peer_lost(&mut self, node: usize, from: usize) {
        let id = self.nodes[from].id.clone();
        self.asks_disrupted(node, &id);
        let heard = &mut self.process(node).heard;
        let lost: BTreeSet<_> = heard.iter().filter(|member| member.node == id).cloned().collect();
        heard.retain(|member| !lost.contains(member));
        self.look_at_primaries(node);
    }
}

/// Which request of which feed.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) group: GroupName,
    pub(super) attempt: Attempt,
}

impl Listener {
    fn is_at(&self, node: usize, subscriber: Subscriber) -> bool {
        self.at.is_some_and(|(at, _, number)| at == node && number == subscriber)
    }
}

fn leave(subscriber: Subscriber) -> feed::Input {
    feed::Input::Unsubscribe { subscriber, leave: None }
}
