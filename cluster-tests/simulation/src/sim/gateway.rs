//! Listeners that take part in groups, leave, and resume at other nodes from where they stopped; and the shell around what
//! their gateways decide, in place of the product's hub.

use std::sync::Arc;

use roost_logic::{
    attachments,
    entry::MemberEvent,
    feed::{Notice, Subscriber, To},
    following::{Input, Output},
    id::{GroupName, Position, SlotId, Term},
    request::{Ask, GroupPush, Push, ReadHistory, SessionPush},
};

use super::{
    asks::{Purpose, follow_request},
    checks::Told,
    node,
    world::{Event, World},
};

/// A client that listens to a group.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) group: usize,
    /// The node, its generation, and the number there of the connection that it has.
    at: Option<(usize, u64, Subscriber)>,
    pub(super) live: bool,
    /// It was told that the primary cannot be heard.
    pub(super) stale: bool,
    /// When it was last told something that it may rely on from then on.
    pub(super) trusts_since_ms: u64,
    /// It waits to be told the next page of what it missed.
    behind: bool,
    /// What it has seen, to resume from.
    pub(super) position: Option<Position>,
    asked_ms: u64,
    /// It only looks in now and then, and stays away until then.
    visits: bool,
    away_until_ms: u64,
}

/// A listener that is not answered for this time tries another node.
const PATIENCE_MS: u64 = 10_000;

/// Between attempts of a connection to join what its session is in.
const JOIN_AGAIN_MS: u64 = 500;

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
        let (at, live, stale, behind, position) = (None, false, false, false, None);
        let (trusts_since_ms, asked_ms, away_until_ms) = (0, 0, 0);
        self.listeners.push(Listener {
            group,
            at,
            live,
            stale,
            trusts_since_ms,
            behind,
            position,
            asked_ms,
            visits,
            away_until_ms,
        });
        let after = self.random.below(2_000);
        self.after(after, Event::Listener(number));
    }

    /// A listener joins, or joins again elsewhere.
    pub(super) fn listener(&mut self, number: usize) {
        // At rest nobody idles past the look at what has become of all.
        let wait = 100 + if self.resting { self.random.below(200) } else { self.random.waiting(500) };
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
            let (group, slot) = self.groups[self.listeners[number].group].clone();
            if !gone {
                let input = Input::Unsubscribe { slot, group, subscriber, leave: None };
                self.input_after(0, node, node::Input::Follow(input));
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
        let (group, slot) = self.groups[listener.group].clone();
        let since = listener.position;
        let input = Input::Subscribe { slot, group, subscriber, request: None, member: None, summed: false, since };
        self.input_after(1, node, node::Input::Follow(input));
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
        let input = node::Input::Client(Purpose::History { group, since }, slot, request.into_request());
        self.input_after(1, node, input);
    }

    pub(super) fn generation(&self, node: usize) -> Option<u64> {
        self.nodes[node].process.as_ref().map(|process| process.member.generation)
    }

    /// Something happens to what this node follows.
    pub(super) fn follow(&mut self, node: usize, input: Input) {
        let now_ms = self.clock(node).mono_ms;
        let mut out = Vec::new();
        self.process(node).following.handle(now_ms, input, &mut out);
        self.perform_following(node, out);
        if !self.random.permille(self.profile.batches) {
            self.flush_following(node);
        } else if !std::mem::replace(&mut self.process(node).following_flush_due, true) {
            let after = self.random.below(5);
            self.input_after(after, node, node::Input::FlushFollowing);
        }
    }

    pub(super) fn flush_following(&mut self, node: usize) {
        let process = self.process(node);
        process.following_flush_due = false;
        let mut out = Vec::new();
        process.following.flush(&mut out);
        self.perform_following(node, out);
    }

    pub(super) fn wake_following(&mut self, node: usize) {
        let now_ms = self.clock(node).mono_ms;
        let process = self.process(node);
        process.following_wake_ms = None;
        if process.following.next_wake().is_some_and(|wake_ms| wake_ms <= now_ms) {
            self.follow(node, Input::Tick);
        } else {
            self.sleep_following(node);
        }
    }

    fn sleep_following(&mut self, node: usize) {
        let now_ms = self.clock(node).mono_ms;
        let process = self.process(node);
        let Some(wake_ms) = process.following.next_wake() else { return };
        if process.following_wake_ms.is_none_or(|planned| wake_ms < planned) {
            process.following_wake_ms = Some(wake_ms);
            self.input_after(wake_ms.saturating_sub(now_ms).max(1), node, node::Input::WakeFollowing);
        }
    }

    fn perform_following(&mut self, node: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Ask(ask) => {
                    let (slot, request) = follow_request(&ask);
                    self.ask_slot(node, Purpose::Follow(ask), slot, request);
                }
                Output::Joined { group, subscriber, epoch, offset, recovered, .. } => {
                    self.ledger.count_if(self.is_present(subscriber), "presences of clients");
                    let told = Told::Joined { at: Position { epoch, offset }, recovered };
                    self.tell(node, &group, |number| number == subscriber, told);
                }
                Output::JoinFailed { subscriber, .. } => {
                    if let Some(listener) = self.listeners.iter_mut().find(|there| there.is_at(node, subscriber)) {
                        listener.at = None;
                    }
                    self.input_after(JOIN_AGAIN_MS, node, node::Input::Enter(subscriber));
                }
                Output::Replay { subscriber, .. } => self.set_behind(node, subscriber, false),
                Output::Behind { group, subscriber } => {
                    self.set_behind(node, subscriber, true);
                    self.read_on(node, &group, subscriber);
                }
                Output::ReplayFailed { group, subscriber, .. } => self.read_on(node, &group, subscriber),
                Output::Tell { group, to, notice } => self.tell_notice(node, &group, to, notice),
                Output::Ended { .. } | Output::Followers { .. } | Output::StaysPresent { .. } => {}
            }
        }
        let generation = self.process(node).member.generation;
        self.check_promises(node, generation);
        self.sleep_following(node);
    }

    fn tell_notice(&mut self, node: usize, group: &GroupName, to: To, notice: Notice) {
        let told = match notice {
            Notice::Message { epoch, message } => Told::Message(epoch, message),
            Notice::Ephemeral(message) => Told::Ephemeral(message.data),
            Notice::Gap { epoch, from, to } => Told::Gap { epoch, from, to },
            Notice::Reset(position) => Told::Reset(position),
            Notice::Live(position) => Told::Live(position),
            Notice::Stale => Told::Stale,
            Notice::Member { .. } | Notice::Present(_) => return,
        };
        match to {
            To::One(subscriber) => self.tell(node, group, |number| number == subscriber, told),
            To::AllBut(except) => self.tell(node, group, |number| !except.contains(&number), told),
        }
    }

    fn set_behind(&mut self, node: usize, subscriber: Subscriber, behind: bool) {
        self.set_mouth_live(subscriber, !behind);
        if let Some(listener) = self.listeners.iter_mut().find(|there| there.is_at(node, subscriber)) {
            (listener.behind, listener.trusts_since_ms) = (behind, self.now);
        }
    }

    /// The listener has read what it was told, and has room for a page.
    fn read_on(&mut self, node: usize, group: &GroupName, subscriber: Subscriber) {
        let slot = group.slot(self.profile.slots);
        let input = Input::Room { slot, group: group.clone(), subscriber };
        self.input_after(READ_MS, node, node::Input::Follow(input));
    }

    /// The listeners are told, and the ledger looks over their shoulders.
    fn tell(&mut self, node: usize, group: &GroupName, whom: impl Fn(Subscriber) -> bool, told: Told) {
        let Some(generation) = self.generation(node) else { return };
        self.tell_mouths((node, generation), group, &whom, &told);
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
                match &told {
                    Told::Stale => listener.stale = true,
                    Told::Joined { .. } | Told::Live(_) => (listener.stale, listener.trusts_since_ms) = (false, *now),
                    Told::Message(..) | Told::Ephemeral(_) | Told::Gap { .. } | Told::Reset(_) => {}
                }
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

    pub(super) fn pushed(&mut self, node: usize, slot: SlotId, term: Term, push: Push) {
        match push {
            Push::Group(group, GroupPush::Deliver { epoch, messages }) => {
                self.ledger.count_if(messages.len() > 1, "pushes with several messages");
                self.follow(node, Input::Deliver { slot, term, group, epoch, messages });
            }
            Push::Group(group, GroupPush::Member { event, member, present }) => {
                self.ledger.count_if(event == MemberEvent::Update, "sessions told of with other attributes");
                self.follow(node, Input::Member { slot, group, event, member, present });
            }
            Push::Group(group, GroupPush::Ephemeral { messages }) => {
                self.follow(node, Input::Ephemeral { slot, group, messages });
            }
            Push::Session(session, SessionPush::Displace { client, why, attachment }) => {
                let number = attachment;
                self.attachments(node, attachments::Input::Displaced { slot, session, client, number, why });
            }
            Push::Session(session, SessionPush::Ended { reason }) => {
                self.attachments(node, attachments::Input::Ended { slot, session, reason });
            }
            Push::Session(_, SessionPush::Changed { client, view }) => {
                self.attachments(node, attachments::Input::Changed { slot, client, view: Arc::new(view) });
            }
        }
    }
}

impl Listener {
    /// At this start of a node, it takes what it was told for all that there is.
    pub(super) fn trusts(&self, node: usize, generation: u64) -> bool {
        let here = self.at.is_some_and(|(at, of, _)| (at, of) == (node, generation));
        here && self.live && !self.behind && !self.stale
    }

    fn is_at(&self, node: usize, subscriber: Subscriber) -> bool {
        self.at.is_some_and(|(at, _, number)| at == node && number == subscriber)
    }
}
