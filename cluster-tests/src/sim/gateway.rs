//! A gateway's following of groups, as simple as it can be while it keeps its promise: it has one position for each
//! group, takes the next message only, and asks for what follows its position whenever something may be missing.

use roost::{
    id::{Epoch, GroupName, Member, Position, SlotId, Term},
    logic::{
        entry::Message,
        request::{Interest, JoinPoint, Push, SlotAnswer, SlotError, SlotRequest},
    },
};

use super::{asks::Purpose, checks::Told, world::World};

/// A registration is repeated so often, for losses that nobody has noticed.
const RENEW_MS: u64 = 5_000;

/// A group that this gateway's clients are in.
#[derive(Debug)]
pub(super) struct Follow {
    slot: SlotId,
    pub(super) position: Option<Position>,
    /// Whom it counted on when it registered.
    registered: Option<(Member, Term)>,
    asking: bool,
    wanted: bool,
    renew_at_ms: u64,
}

impl Follow {
    pub(super) fn new(slot: SlotId) -> Self {
        Self { slot, position: None, registered: None, asking: false, wanted: true, renew_at_ms: 0 }
    }
}

impl World {
    /// Something from this member may be lost, or (nobody given) the map has changed.
    pub(super) fn disrupted(&mut self, node: usize, from: Option<&Member>) {
        let map = self.process(node).map.clone();
        for follow in self.process(node).follows.values_mut() {
            let Some(assignment) = map.as_ref().and_then(|map| map.slot(follow.slot)) else { continue };
            follow.wanted |= match from {
                Some(from) => assignment.primary == *from,
                None => follow.registered != Some((assignment.primary.clone(), assignment.term)),
            };
        }
        self.register_all(node);
    }

    pub(super) fn gateway_tick(&mut self, node: usize) {
        let now = self.now;
        for follow in self.process(node).follows.values_mut() {
            follow.wanted |= follow.renew_at_ms <= now && !follow.asking;
        }
        self.register_all(node);
        self.renew(node);
    }

    fn register_all(&mut self, node: usize) {
        let due = |(group, follow): (&GroupName, &Follow)| (follow.wanted && !follow.asking).then(|| group.clone());
        let groups: Vec<_> = self.process(node).follows.iter().filter_map(due).collect();
        for group in groups {
            self.register(node, &group);
        }
    }

    fn register(&mut self, node: usize, group: &GroupName) {
        let Some(follow) = self.process(node).follows.get(group) else { return };
        let (slot, since) = (follow.slot, follow.position);
        let Some(primary) = self.primary(node, slot) else { return };
        if let Some(follow) = self.process(node).follows.get_mut(group) {
            follow.wanted = false;
            follow.asking = true;
            follow.registered = Some(primary);
        }
        let interests = vec![Interest { group: group.clone(), since }];
        self.ask(node, Purpose::Register(group.clone()), slot, SlotRequest::Register { interests });
    }

    pub(super) fn registered(&mut self, node: usize, group: &GroupName, result: Result<SlotAnswer, SlotError>) {
        let now = self.now;
        let Some(follow) = self.process(node).follows.get_mut(group) else { return };
        follow.asking = false;
        follow.renew_at_ms = now + RENEW_MS;
        match result {
            Ok(SlotAnswer::Registered(points)) => {
                for point in points {
                    self.join_point(node, point);
                }
            }
            _ => follow.wanted = true,
        }
        self.register_all(node);
    }

    fn join_point(&mut self, node: usize, point: JoinPoint) {
        let JoinPoint { group, epoch, head, recovered, messages } = point;
        let Some(position) = self.process(node).follows.get(&group).map(|follow| follow.position) else { return };
        match position {
            None => return self.tell(node, &group, Told::Joined(Position { epoch, offset: head })),
            Some(position) if position.epoch != epoch => {
                self.tell(node, &group, Told::Reset(Position { epoch, offset: head }));
            }
            Some(position) if !recovered && head > position.offset => {
                let to = messages.first().map_or(head, |first| first.offset - 1);
                if to > position.offset {
                    self.tell(node, &group, Told::Gap(Position { epoch, offset: to }));
                }
            }
            Some(_) => {}
        }
        for message in messages {
            self.deliver(node, &group, epoch, message);
        }
    }

    fn deliver(&mut self, node: usize, group: &GroupName, epoch: Epoch, message: Message) {
        let Some(follow) = self.process(node).follows.get_mut(group) else { return };
        let Some(position) = follow.position else { return };
        if position.epoch == epoch && message.offset == position.offset + 1 {
            self.tell(node, group, Told::Message(epoch, message));
        } else if position.epoch != epoch || message.offset > position.offset {
            follow.wanted = true;
        }
    }

    /// The clients are told, and the ledger listens.
    fn tell(&mut self, node: usize, group: &GroupName, told: Told) {
        let position = told.position();
        let process = self.process(node);
        let member = process.member.clone();
        if let Some(follow) = process.follows.get_mut(group) {
            follow.position = Some(position);
        }
        self.ledger.told(&member, group, told);
    }

    pub(super) fn pushed(&mut self, node: usize, from: &Member, slot: SlotId, _term: Term, push: Push) {
        match push {
            Push::Deliver { group, epoch, message } => {
                self.deliver(node, &group, epoch, message);
                self.register_all(node);
            }
            Push::Displace { session, attachment } => self.displaced(node, from, slot, session, attachment),
            Push::SessionEnded { session, .. } => self.session_over(node, session),
            Push::Member { .. } | Push::SessionChanged { .. } => {}
        }
    }
}
