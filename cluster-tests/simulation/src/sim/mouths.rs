//! What gateways deliver to the connections that have sessions: each takes part in a group, has what is told there in an
//! outbox, and a loop of its own that looks whether it may write and then writes. The node may stand still in between. And the
//! shell of [`Lease`](roost_logic::lease::Lease), which says whether it may.

use bytes::Bytes;
use roost_logic::{
    attachments,
    entry::Presence,
    feed::Subscriber,
    following::Input as Follow,
    hints::HintInput,
    id::{AttachmentNumber, GroupName, Member, NodeId, Seat, SessionId, SlotId},
    lease::{LeaseInput, LeaseOutput},
    primary::SlotInput,
    request::{Leave, SlotAnswer, SlotError, UpdateMember},
};

use super::{asks::Purpose, checks::Told, network::Frame, node::Input, seen::seen, world::World};
use crate::history::Seen;

/// Between a look whether it may be written and the write; at most.
const WRITE_MS: u64 = 3;
/// Between attempts to tell a group what a session shows.
const SHOW_AGAIN_MS: u64 = 500;

/// A connection that was given its session, to its end.
#[derive(Debug)]
pub(super) struct Mouth {
    /// The node and its generation.
    at: (usize, u64),
    group: (GroupName, SlotId),
    /// As whom it takes part.
    seat: Seat,
    /// It is present in the group, since its session is in it.
    is_present: bool,
    log: usize,
    /// The episode in which its attachment was confirmed last; 0 before.
    pub(super) confirmed: u64,
    /// It has joined, and waits for no page of what it missed.
    is_live: bool,
    outbox: Vec<Seen>,
    taken: Vec<Seen>,
    is_open: bool,
}

impl World {
    pub(super) fn lease(&mut self, node: usize, input: LeaseInput) {
        let now_ms = self.clock(node).mono_ms;
        let (before, ahead) = (self.process(node).lease.permission(), self.process(node).ahead.version());
        let mut out = Vec::new();
        self.process(node).lease.handle(now_ms, input, &mut out);
        for output in out {
            match output {
                LeaseOutput::Send { to, message } => {
                    self.send(node, &to, Frame::Lease(message));
                }
                LeaseOutput::May(permission) if permission.episode != before.episode => {
                    self.ledger.count("episodes of leases");
                    self.process(node).ahead.know(permission.map_version);
                    self.attachments(node, attachments::Input::Episode(permission.episode));
                }
                LeaseOutput::May(permission) => {
                    self.process(node).ahead.know(permission.map_version);
                    if before.map_version < ahead && ahead <= permission.map_version {
                        self.attachments(node, attachments::Input::Episode(permission.episode));
                    }
                }
                LeaseOutput::Gone { gateway, since_ms } => {
                    self.ledger.count("gateways that have to confirm all");
                    self.all_slots(node, |_| SlotInput::Gone { gateway: gateway.clone(), since_ms });
                }
            }
        }
    }

    /// A primary's voters are those of a map that may not be known here.
    pub(super) fn hear_voters(&mut self, node: usize, from: &Member, version: u64) {
        let (now_ms, process) = (self.clock(node).mono_ms, self.process(node));
        if process.lease.permission().map_version < version && *from != process.member {
            process.ahead.hear(now_ms, &from.node, version);
            self.hint(node, HintInput::Told { by: from.node.clone(), version });
        }
    }

    /// A peer has told of a map that there is not.
    pub(super) fn lied(&mut self, node: usize, by: &NodeId, until_ms: u64) {
        self.process(node).ahead.lied(by, until_ms);
        let episode = self.process(node).lease.permission().episode;
        self.attachments(node, attachments::Input::Episode(episode));
    }

    /// A connection is welcomed, and takes part in a group.
    pub(super) fn open_mouth(
        &mut self,
        node: usize,
        (connection, attachment): (u64, AttachmentNumber),
        session: SessionId,
    ) {
        let Some(generation) = self.generation(node) else { return };
        let opened_ms = self.opened_ms.get(&connection).copied().unwrap_or(self.now);
        let client = self.client_of(connection);
        let log = self.seen.welcomed(self.now, session, &client, (opened_ms, self.nodes[node].id.as_str()));
        let mouth = Mouth {
            at: (node, generation),
            group: self.groups[0].clone(),
            seat: Seat { session, client: client.key(), attachment },
            is_present: self.views.get(&connection).is_some_and(|view| view.is_in(&self.groups[0].0)),
            log,
            confirmed: 0,
            is_live: false,
            outbox: Vec::new(),
            taken: Vec::new(),
            is_open: true,
        };
        self.mouths.insert(connection, mouth);
        self.input_after(1, node, Input::Enter(connection));
    }

    /// As it is by now: its session may be out of the group since this was due.
    pub(super) fn enter_mouth(&mut self, node: usize, connection: u64) {
        let Some(mouth) = self.mouths.get(&connection).filter(|mouth| mouth.is_open) else { return };
        let ((group, slot), summed) = (mouth.group.clone(), connection.is_multiple_of(2));
        let member = mouth.is_present.then(|| self.presence(connection, mouth.seat));
        let (subscriber, request, since) = (connection, None, None);
        self.follow(node, Follow::Subscribe { slot, group, subscriber, request, member, summed, since });
    }

    /// As the group sees a connection; its attributes are other ones with each change of its session.
    fn presence(&self, connection: u64, Seat { session, client, attachment }: Seat) -> Presence {
        let revision = self.views.get(&connection).map_or(0, |view| view.record.revision);
        let info = Bytes::from(revision.to_string());
        Presence { session, client, user: "".into(), info, revision, attachment }
    }

    /// Its session has other attributes, or its slot has it again and it `enters` the presence once more: said until that is
    /// answered. What the product's client does for the group meanwhile waits for that.
    pub(super) fn show_mouth(&mut self, node: usize, connection: u64, enters: bool) {
        let Some(mouth) = self.mouths.get(&connection).filter(|mouth| mouth.is_open && mouth.is_present) else {
            return;
        };
        if !mouth.is_live {
            return self.input_after(SHOW_AGAIN_MS, node, Input::Show { connection, enters });
        }
        let ((group, slot), seat) = (mouth.group.clone(), mouth.seat);
        let member = self.presence(connection, seat);
        let purpose = Purpose::Show { connection, enters, revision: member.revision };
        self.ask(node, purpose, slot, (group, UpdateMember { member, enters }));
    }

    pub(super) fn shown(
        &mut self,
        node: usize,
        (connection, enters, revision): (u64, bool, u64),
        result: &Result<SlotAnswer, SlotError>,
    ) {
        let Some(mouth) = self.mouths.get(&connection).filter(|mouth| mouth.is_open) else { return };
        let ((group, slot), seat) = (mouth.group.clone(), mouth.seat);
        match (result, mouth.is_present) {
            (Ok(_), true) => {
                self.seen_by.insert((seat.session, seat.client, seat.attachment), revision);
            }
            (Err(_), true) => self.input_after(SHOW_AGAIN_MS, node, Input::Show { connection, enters }),
            (_, false) if enters => self.ask(node, Purpose::Nothing, slot, (group, Leave { seat })),
            (_, false) => {}
        }
    }

    /// Whether the client of this connection is to be seen in the group.
    pub(super) fn is_present(&self, connection: u64) -> bool {
        self.mouths.get(&connection).is_some_and(|mouth| mouth.is_present)
    }

    /// Those who take part in the group, to be seen there.
    pub(super) fn seated(&self) -> impl Iterator<Item = Seat> {
        let is_there = |mouth: &&Mouth| {
            let (node, generation) = mouth.at;
            mouth.is_open && mouth.is_live && mouth.is_present && self.generation(node) == Some(generation)
        };
        self.mouths.values().filter(is_there).map(|mouth| mouth.seat)
    }

    /// Its session is in the group now, or is not any more.
    pub(super) fn move_mouth(&mut self, node: usize, connection: u64) {
        let is_in = self.views.get(&connection).is_some_and(|view| view.is_in(&self.groups[0].0));
        if self.mouths.get(&connection).is_none_or(|mouth| !mouth.is_open || mouth.is_present == is_in) {
            return;
        }
        self.unsubscribe_mouth(node, connection);
        if let Some(mouth) = self.mouths.get_mut(&connection) {
            (mouth.is_present, mouth.is_live) = (is_in, false);
        }
        self.enter_mouth(node, connection);
    }

    pub(super) fn confirm_mouth(&mut self, node: usize, connection: u64, episode: u64) {
        if let Some(mouth) = self.mouths.get_mut(&connection) {
            mouth.confirmed = episode;
            self.input_after(1, node, Input::Take(connection));
        }
    }

    /// It has to be told a page of what it missed first, or is told that from now on.
    pub(super) fn set_mouth_live(&mut self, connection: u64, is_live: bool) {
        if let Some(mouth) = self.mouths.get_mut(&connection) {
            mouth.is_live = is_live;
        }
    }

    /// Nothing more reaches it.
    pub(super) fn shut_mouth(&mut self, connection: u64) {
        if let Some(mouth) = self.mouths.get_mut(&connection) {
            mouth.is_open = false;
        }
    }

    pub(super) fn unsubscribe_mouth(&mut self, node: usize, connection: u64) {
        if let Some(mouth) = self.mouths.get(&connection) {
            let ((group, slot), leave) = (mouth.group.clone(), mouth.is_present.then_some(mouth.seat));
            self.follow(node, Follow::Unsubscribe { slot, group, subscriber: connection, leave });
        }
    }

    /// Something is due to those of this start of a node.
    pub(super) fn tell_mouths(
        &mut self,
        at: (usize, u64),
        group: &GroupName,
        whom: impl Fn(Subscriber) -> bool,
        told: &Told,
    ) {
        let mut due = Vec::new();
        for (connection, mouth) in &mut self.mouths {
            if mouth.is_open && mouth.at == at && mouth.group.0 == *group && whom(*connection) {
                mouth.is_live |= matches!(told, Told::Joined { .. });
                if !mouth.is_live {
                    continue;
                }
                mouth.outbox.push(seen(group, None, told));
                due.push(*connection);
            }
        }
        for connection in due {
            let after = self.random.below(WRITE_MS);
            self.input_after(after, at.0, Input::Take(connection));
        }
    }

    /// What may be written now is taken to be written.
    pub(super) fn take_due(&mut self, node: usize, connection: u64) {
        let now_ms = self.clock(node).mono_ms;
        let Self { nodes, mouths, ledger, .. } = self;
        let Some(process) = &nodes[node].process else { return };
        let Some(mouth) = mouths.get_mut(&connection).filter(|mouth| mouth.is_open) else { return };
        let may = process.lease.permission();
        if !may.allows(mouth.confirmed, now_ms, &process.ahead) {
            ledger.count_if(may.is_behind(&process.ahead), "writes held back for a newer map");
            return ledger.count("writes held back");
        }
        if !mouth.outbox.is_empty() {
            mouth.taken.append(&mut mouth.outbox);
            let after = self.random.below(WRITE_MS);
            self.input_after(after, node, Input::Write(connection));
        }
    }

    pub(super) fn write_taken(&mut self, connection: u64) {
        let Some(mouth) = self.mouths.get_mut(&connection).filter(|mouth| mouth.is_open) else { return };
        for seen in mouth.taken.drain(..) {
            self.seen.wrote(self.now, mouth.log, seen);
        }
    }
}
