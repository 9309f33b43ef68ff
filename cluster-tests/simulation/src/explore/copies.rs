//! The real code, step by step. Equal copies and equal frames have equal numbers, and each step is made once: the search
//! sees only numbers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

use bytes::Bytes;
use roost_logic::{
    Now,
    entry::{Entry, GroupEntry, NewMessage, Retention},
    few::Few,
    id::{Epoch, GroupName, Index, Member, NodeId, PublishKey, Term},
    map::{MapRequest, SlotAssignment},
    replication::{Replica, ReplicaLimits, ReplicaOutput, ReplicationMessage},
    slot::{Effect, GroupEffect},
};

use super::table::{Numbers, Table};

/// How many nodes there are.
pub(super) const NODES: usize = 3;
/// Each node's first start and its second. The second start of node `n` has the number `NODES + n`.
pub(super) const PROCESSES: usize = 2 * NODES;

/// When everything happens, but for time-outs.
const NOW: Now = Now { mono_ms: 1, wall_ms: 1 };
/// When all time-outs are over.
const LATER: Now = Now { mono_ms: 4_001, wall_ms: 1 };
/// A learner has twenty times as long, and that is over too.
const REPLICA_TIMEOUT_MS: u64 = 100;
/// One entry at a time, so that a longer log comes in steps. A learner that lacks one entry becomes required. Where two
/// entries are to follow a snapshot another takes its place. A message is a piece of a snapshot, and so is its key.
const LIMITS: ReplicaLimits = ReplicaLimits {
    append_entries: 1,
    append_bytes: 1 << 20,
    nearly_there: 1,
    retained_entries: 1,
    piece_bytes: 1,
    pieces_under_way: 2,
};

/// What happens to a copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Input {
    /// The map with this number.
    Map(u32),
    /// The frame with this number.
    Frame(u32),
    /// This message is to be ordered.
    Publish(u8),
    /// The link to this process was reset.
    Reset(usize),
}

/// A process's copy of the slot, and what the checks look at.
#[derive(Debug)]
pub(super) struct Copy {
    replica: Replica,
    /// What the last map that it knows says.
    pub(super) known: Option<SlotAssignment>,
    pub(super) lineage: u64,
    /// The messages that it has applied, in order.
    pub(super) applied: Vec<u8>,
    /// These, and those that it holds besides.
    pub(super) holds: Vec<u8>,
    pub(super) serving: Option<Term>,
}

impl Copy {
    fn new(replica: Replica, known: Option<SlotAssignment>) -> Self {
        let applied: Vec<u8> = replica
            .state()
            .and_then(|state| state.group(&group()))
            .map(|group| group.log.since(0, usize::MAX).messages.iter().map(|message| message.data[0]).collect())
            .unwrap_or_default();
        let mut holds = applied.clone();
        holds.extend(replica.uncommitted_entries().map(message_of));
        let (lineage, serving) = (replica.lineage().unwrap_or(0), replica.serving());
        Self { replica, known, lineage, applied, holds, serving }
    }

    /// The version of the last map that it knows.
    pub(super) fn version(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.changed_at)
    }
}

/// A frame for one process.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) from: usize,
    pub(super) message: ReplicationMessage,
}

/// What came of an input.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) copy: u32,
    /// To whom, and which frame.
    pub(super) sends: Vec<(usize, u32)>,
    pub(super) asks: Vec<MapRequest>,
    /// Index, message and term of what was committed here as by the primary.
    pub(super) committed: Vec<(Index, u8, Term)>,
    pub(super) panicked: bool,
}

impl Step {
    /// Whether the copy is as before, and nobody hears of it.
    pub(super) fn is_idle(&self, before: u32) -> bool {
        self.copy == before && self.sends.is_empty() && self.asks.is_empty() && !self.panicked
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) members: Vec<Member>,
    copies: Table<Copy>,
    frames: Table<Frame>,
    maps: Table<SlotAssignment>,
    steps: Numbers<(u32, Input), Rc<Step>>,
}

impl Copies {
    pub(super) fn new() -> Self {
        let node = |number: usize| NodeId::parse(&format!("n{}", number % NODES + 1)).expect("a node's name");
        let member = |number| Member { node: node(number), generation: (number / NODES + 1) as u64 };
        Self {
            members: (0..PROCESSES).map(member).collect(),
            copies: Table::default(),
            frames: Table::default(),
            maps: Table::default(),
            steps: Numbers::default(),
        }
    }

    pub(super) fn copy(&self, number: u32) -> &Rc<Copy> {
        self.copies.get(number)
    }

    pub(super) fn frame(&self, number: u32) -> &Frame {
        self.frames.get(number)
    }

    pub(super) fn map(&self, number: u32) -> &Rc<SlotAssignment> {
        self.maps.get(number)
    }

    pub(super) fn map_number(&mut self, map: &SlotAssignment) -> u32 {
        self.maps.number(format!("{map:?}"), || map.clone())
    }

    pub(super) fn process(&self, member: &Member) -> usize {
        self.members.iter().position(|other| other == member).expect("a member that there is")
    }

    /// How many different copies, frames and steps of the code there were.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.copies.len(), self.frames.len(), self.steps.len())
    }

    /// A process that has just started.
    pub(super) fn started(&mut self, process: usize) -> u32 {
        let replica = Replica::new(0, self.members[process].clone(), REPLICA_TIMEOUT_MS).with_limits(LIMITS);
        self.copy_number(replica, None)
    }

    fn copy_number(&mut self, replica: Replica, known: Option<SlotAssignment>) -> u32 {
        self.copies.number(format!("{replica:?}"), || Copy::new(replica, known))
    }

    /// What comes of an input, and of all time-outs after it.
    pub(super) fn step(&mut self, process: usize, copy: u32, input: Input) -> Rc<Step> {
        if let Some(step) = self.steps.get(&(copy, input)) {
            return step.clone();
        }
        let before = self.copy(copy).clone();
        let mut replica = before.replica.clone();
        let mut out = Vec::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| self.drive(&mut replica, input, &mut out))).is_err();
        let known = match input {
            Input::Map(map) => Some(self.map(map).as_ref().clone()),
            _ => before.known.clone(),
        };
        let mut step = Step { copy, sends: Vec::new(), asks: Vec::new(), committed: Vec::new(), panicked };
        let term = replica.primary_term().unwrap_or(0);
        for output in out {
            match output {
                ReplicaOutput::Send { to, message } => {
                    let to = self.process(&to);
                    let frame =
                        self.frames.number(format!("{process} {to} {message:?}"), || Frame { from: process, message });
                    step.sends.push((to, frame));
                }
                ReplicaOutput::Ask(request) => step.asks.push(request),
                ReplicaOutput::Committed { index, effect } => step.committed.push((index, published(&effect), term)),
            }
        }
        if !panicked {
            step.copy = self.copy_number(replica, known);
        }
        let step = Rc::new(step);
        self.steps.insert((copy, input), step.clone());
        step
    }

    fn drive(&self, replica: &mut Replica, input: Input, out: &mut Vec<ReplicaOutput>) {
        match input {
            Input::Map(map) => {
                let map = self.map(map);
                replica.on_map(NOW, map.changed_at, map, out);
            }
            Input::Frame(frame) => {
                let Frame { from, message } = self.frame(frame);
                replica.on_message(NOW, &self.members[*from], message.clone(), out);
            }
            Input::Publish(message) => {
                replica.order(entry(message));
            }
            Input::Reset(peer) => replica.link_reset(&self.members[peer]),
        }
        replica.flush(NOW, out);
        // First what is said of itself, then what is said again.
        replica.on_tick(NOW, out);
        replica.on_tick(LATER, out);
        replica.level_times(NOW);
    }
}

fn group() -> GroupName {
    GroupName::parse("g").expect("a group's name")
}

fn entry(message: u8) -> Entry {
    let publish = GroupEntry::Publish {
        epoch: Epoch(1),
        messages: Few::one(NewMessage {
            key: PublishKey(u128::from(message)),
            data: Bytes::copy_from_slice(&[message]),
        }),
        from: None,
        at_ms: 1,
        retention: Retention { messages: 100, bytes: 1_000, age_ms: 1_000, window_ms: 1_000, window_publishes: 100 },
    };
    Entry::Group(group(), publish)
}

fn message_of(entry: &Entry) -> u8 {
    match entry {
        Entry::Group(_, GroupEntry::Publish { messages, .. }) => messages[0].data[0],
        other => unreachable!("nobody ordered {other:?}"),
    }
}

/// The message in what an entry came to.
fn published(effect: &Effect) -> u8 {
    match effect {
        Effect::Group(_, GroupEffect::Published { messages, .. }) if messages.len() == 1 => messages[0].data[0],
        other => unreachable!("each message is published once, and this is {other:?}"),
    }
}
