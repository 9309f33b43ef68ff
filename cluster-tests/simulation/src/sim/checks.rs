//! What everybody ever saw, and what must hold of it: the promises S1–S5 of the design, and the rules of replication as
//! they show from outside of a copy.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
};

use bytes::Bytes;
use roost_logic::{
    entry::Message,
    id::{AttachmentNumber, ClientKey, Epoch, GroupName, Index, Member, Position, PublishKey, SessionId, SlotId, Term},
    map::ClusterMap,
    replication::{Incoming, Replica},
    slot::SlotState,
};

use super::{coverage::COVERAGE, settings::Profile};

/// A state is compared once in this number of entries.
const COMPARE_EVERY: Index = 8;

/// One unbroken life of a slot: until all its copies are lost.
pub(super) type Life = (SlotId, u64);

/// A publish, as its answer is checked.
#[derive(Clone, Debug)]
pub(super) struct Publish {
    pub(super) group: GroupName,
    pub(super) key: PublishKey,
    pub(super) data: Bytes,
    /// It is to be answered when this number of copies have it, and not before.
    pub(super) min_copies: u8,
}

/// What a gateway tells the clients of a group.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Joined {
        at: Position,
        recovered: bool,
    },
    Message(Epoch, Message),
    /// What has no place says this.
    Ephemeral(Bytes),
    Gap {
        epoch: Epoch,
        from: u64,
        to: u64,
    },
    Reset(Position),
    /// The primary cannot be heard.
    Stale,
    /// Nothing up to here is missing.
    Live(Position),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) violation: Option<String>,
    counts: BTreeMap<&'static str, u64>,
    retention: u64,
    group_idle_ms: u64,
    little_memory: bool,
    /// S1: what stands where.
    messages: BTreeMap<(GroupName, Epoch, u64), Bytes>,
    /// S4: where a message stands.
    places: BTreeMap<(GroupName, Epoch, Bytes), u64>,
    heads: BTreeMap<(GroupName, Epoch), u64>,
    keys: BTreeMap<(PublishKey, Epoch), u64>,
    /// When a group had this epoch: in which life of its slot, and after how often it had been forgotten in it.
    lives: BTreeMap<(GroupName, Epoch), (Life, u32)>,
    epochs: BTreeMap<(GroupName, Life), Epoch>,
    /// When a gateway was last told that it follows a group.
    followed: BTreeMap<GroupName, u64>,
    /// Up to where messages have left a log for want of memory.
    shed: BTreeMap<(GroupName, Epoch), u64>,
    /// S3: the last offset that was acknowledged.
    acknowledged: BTreeMap<(GroupName, Life), Position>,
    /// The same for each group, and when; of those that are old, the last.
    acknowledged_at: BTreeMap<GroupName, VecDeque<(u64, Position)>>,
    /// Who held the last publish that was acknowledged with two copies or more, unless others have been added since.
    holders: BTreeMap<Life, Vec<Member>>,
    /// The state after an entry, whoever has it.
    states: BTreeMap<(Life, Index), (u64, Member)>,
    /// The last entry that anyone knew to be committed.
    committed: BTreeMap<Life, Index>,
    primaries: BTreeMap<(SlotId, Term), Member>,
    /// S6: what was promised to a listener, and has to be told at once; whether without a gap.
    promised: BTreeMap<usize, (Position, bool)>,
    /// The term in which a life of a slot began, where that was not the first.
    begun: BTreeMap<Life, Term>,
    /// S7: in which life of its slot an attachment was given.
    attachments: BTreeMap<((SessionId, ClientKey), AttachmentNumber), Life>,
    /// To which connection each attachment was given first, and in which term.
    given_to: BTreeMap<((SessionId, ClientKey), AttachmentNumber), (u64, Term)>,
}

impl Ledger {
    pub(super) fn new(profile: &Profile) -> Self {
        Self {
            violation: None,
            counts: COVERAGE.iter().map(|what| (*what, 0)).collect(),
            retention: u64::from(profile.retention),
            group_idle_ms: profile.slot.group_idle_tight_ms,
            little_memory: profile.memory.is_some(),
            messages: BTreeMap::new(),
            places: BTreeMap::new(),
            heads: BTreeMap::new(),
            keys: BTreeMap::new(),
            lives: BTreeMap::new(),
            epochs: BTreeMap::new(),
            followed: BTreeMap::new(),
            shed: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            acknowledged_at: BTreeMap::new(),
            holders: BTreeMap::new(),
            states: BTreeMap::new(),
            committed: BTreeMap::new(),
            primaries: BTreeMap::new(),
            promised: BTreeMap::new(),
            begun: BTreeMap::new(),
            attachments: BTreeMap::new(),
            given_to: BTreeMap::new(),
        }
    }

    /// The first violation is the one to look at.
    pub(super) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(super) fn count_if(&mut self, condition: bool, what: &'static str) {
        if condition {
            self.count(what);
        }
    }

    pub(super) fn counts(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.counts)
    }

    /// Of all that the run came to.
    pub(super) fn digest(&self) -> u64 {
        digest_of(&(&self.messages, &self.keys, &self.committed))
    }

    pub(super) fn map_changed(&mut self, map: &ClusterMap) {
        for (slot, assignment) in map.slots.iter().enumerate() {
            let primary = self.primaries.entry((slot as SlotId, assignment.term));
            if *primary.or_insert_with(|| assignment.primary.clone()) != assignment.primary {
                self.fail(format!("two primaries of slot {slot} in term {}", assignment.term));
            }
        }
    }

    /// A committed message was seen by someone.
    pub(super) fn saw(&mut self, group: &GroupName, epoch: Epoch, message: &Message) {
        self.stands(group, epoch, message.offset, &message.data);
    }

    fn stands(&mut self, group: &GroupName, epoch: Epoch, offset: u64, data: &Bytes) {
        let there = self.messages.entry((group.clone(), epoch, offset)).or_insert_with(|| data.clone());
        if there != data {
            let what = format!("S1: {group} {epoch} {offset} was {there:?} for some and is {data:?} for others");
            self.fail(what);
        }
        let before = *self.places.entry((group.clone(), epoch, data.clone())).or_insert(offset);
        if before != offset {
            self.fail(format!("S4: {data:?} stands in {group} {epoch} at {before} and at {offset}"));
        }
        let head = self.heads.entry((group.clone(), epoch)).or_default();
        *head = offset.max(*head);
    }

    /// A primary says that a group has this epoch: another one than before only where the slot was lost, or where the group
    /// was empty and nobody has followed it for long.
    pub(super) fn group_seen(&mut self, now: u64, group: &GroupName, epoch: Epoch, life: Life) {
        let before = *self.epochs.entry((group.clone(), life)).or_insert(epoch);
        let mut forgotten = self.lives.get(&(group.clone(), before)).map_or(0, |(_, forgotten)| *forgotten);
        if before != epoch {
            let followed = self.followed.get(group).copied().unwrap_or(0);
            if followed + self.group_idle_ms > now || self.heads.contains_key(&(group.clone(), before)) {
                let what = format!(
                    "S3: {group} was {before} and is {epoch}, though its slot lost nothing ({life:?}) and it was followed at \
                     {followed} ms"
                );
                self.fail(what);
            }
            self.count("groups forgotten");
            self.epochs.insert((group.clone(), life), epoch);
            forgotten += 1;
        }
        let before = *self.lives.entry((group.clone(), epoch)).or_insert((life, forgotten));
        if before != (life, forgotten) {
            self.fail(format!("{group} has the epoch {epoch} in the lives {before:?} and {life:?} of its slot"));
        }
    }

    /// A primary says to a gateway that it follows a group from now on.
    pub(super) fn follows(&mut self, now: u64, group: &GroupName) {
        self.followed.insert(group.clone(), now);
    }

    /// A primary answers a publish.
    pub(super) fn acknowledged(&mut self, now: u64, publish: &Publish, position: Position, copies: u8, life: Life) {
        let Publish { group, key, data, min_copies } = publish;
        self.count("publishes acknowledged");
        self.count_if(copies == 1, "publishes acknowledged with one copy");
        self.group_seen(now, group, position.epoch, life);
        self.stands(group, position.epoch, position.offset, data);
        let before = *self.keys.entry((*key, position.epoch)).or_insert(position.offset);
        if before != position.offset {
            let what = format!("S4: {key:?} was answered {before} and then {} in {group}", position.offset);
            self.fail(what);
        }
        self.acknowledged_at.entry(group.clone()).or_default().push_back((now, position));
        let last = self.acknowledged.entry((group.clone(), life)).or_insert(position);
        if last.offset < position.offset {
            *last = position;
        }
        if copies < (*min_copies).max(1) {
            self.fail(format!("S3: {key:?} of {group} is answered with {copies} copies, it asked for {min_copies}"));
        }
    }

    /// What was acknowledged last in a group, up to this time. Later calls ask for later times.
    pub(super) fn acknowledged_until(&mut self, group: &GroupName, until_ms: u64) -> Option<Position> {
        let all = self.acknowledged_at.get_mut(group)?;
        while all.get(1).is_some_and(|(at_ms, _)| *at_ms <= until_ms) {
            all.pop_front();
        }
        all.front().filter(|(at_ms, _)| *at_ms <= until_ms).map(|(_, position)| *position)
    }

    pub(super) fn held_by(&mut self, life: Life, holders: &[Member]) {
        if holders.len() > 1 {
            self.holders.insert(life, holders.to_vec());
        }
    }

    pub(super) fn replicated_again(&mut self, life: Life) {
        self.holders.remove(&life);
    }

    pub(super) fn holders(&self, life: Life) -> &[Member] {
        self.holders.get(&life).map_or(&[], Vec::as_slice)
    }

    /// What a listener is told follows on what it was told before (S2, S6, S8). Where it is then.
    pub(super) fn told(
        &mut self,
        listener: usize,
        group: &GroupName,
        before: Option<Position>,
        told: &Told,
    ) -> Option<Position> {
        let (follows, now) = match (told, before) {
            (Told::Joined { at, recovered }, Some(since)) if since.epoch == at.epoch && since.offset <= at.offset => {
                self.promised.insert(listener, (*at, *recovered));
                self.count_if(!recovered, "resumes not recovered");
                (true, since)
            }
            (Told::Joined { at, recovered }, before) => (before.is_none() || !recovered, *at),
            (Told::Message(epoch, message), Some(before)) => {
                self.count("deliveries");
                self.saw(group, *epoch, message);
                let now = Position { epoch: *epoch, offset: message.offset };
                (before.epoch == *epoch && before.offset + 1 == message.offset, now)
            }
            (Told::Ephemeral(_), Some(before)) => {
                self.count("ephemeral messages told");
                (true, before)
            }
            (Told::Gap { epoch, from, to }, Some(before)) => {
                self.count("gaps");
                let head = self.heads.get(&(group.clone(), *epoch)).copied().unwrap_or(0);
                if self.promised.get(&listener).is_some_and(|(at, recovered)| *recovered && *from <= at.offset) {
                    self.fail(format!("S6: listener {listener} of {group} has recovered and is told {told:?}"));
                }
                let right = before.epoch == *epoch && before.offset + 1 == *from && from <= to;
                // Only what the retention does not keep may be missing, or what there was no memory for.
                let shed = self.shed.get(&(group.clone(), *epoch)).copied().unwrap_or(0);
                (right && (to + self.retention <= head || *to <= shed), Position { epoch: *epoch, offset: *to })
            }
            (Told::Reset(to), Some(before)) => {
                self.count("resets");
                let life = |position: Position| self.lives.get(&(group.clone(), position.epoch));
                (before.epoch != to.epoch && life(before) < life(*to), *to)
            }
            (Told::Stale, Some(before)) => {
                self.count("listeners told stale");
                (true, before)
            }
            (Told::Live(at), Some(before)) => (before.epoch == at.epoch && before.offset >= at.offset, before),
            (_, None) => {
                self.fail(format!("S2: listener {listener} of {group} is told {told:?} before it has joined"));
                return None;
            }
        };
        if !follows {
            self.fail(format!("S2: listener {listener} of {group} is at {before:?} and is told {told:?}"));
        }
        Some(now)
    }

    pub(super) fn check_promise(&mut self, listener: usize, position: Option<Position>) {
        if let Some((promised, _)) = self.promised.remove(&listener)
            && position.is_none_or(|at| at.epoch != promised.epoch || at.offset < promised.offset)
        {
            self.fail(format!("S6: listener {listener} joined at {promised:?} and was told up to {position:?}"));
        }
    }

    /// A history was read: what it has agrees with what others have seen, and it is as complete as it says (S1, S6).
    pub(super) fn history(
        &mut self,
        group: &GroupName,
        since: Option<Position>,
        position: Option<Position>,
        complete: bool,
        messages: &[Message],
    ) {
        self.count("histories read");
        self.count_if(!complete, "histories not complete");
        let Some(position) = position else { return };
        for message in messages {
            self.saw(group, position.epoch, message);
        }
        let contiguous = messages.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset);
        let whole = since.is_none_or(|since| {
            let next = messages.first().map_or(position.offset + 1, |message| message.offset);
            since.epoch == position.epoch && since.offset + 1 == next
        });
        if !contiguous || (complete && !whole) {
            let offsets: Vec<_> = messages.iter().map(|message| message.offset).collect();
            self.fail(format!(
                "S6: {group} since {since:?} has {offsets:?} up to {position:?}, said to be complete: {complete}"
            ));
        }
    }

    /// A slot starts again in this term.
    pub(super) fn begins(&mut self, life: Life, term: Term) {
        self.begun.insert(life, term);
    }

    /// The term in which a life of a slot began.
    pub(super) fn begun(&self, life: Life) -> Term {
        self.begun.get(&life).copied().unwrap_or(0)
    }

    /// A primary gives an attachment in this life of its slot.
    pub(super) fn gives(&mut self, whose: (SessionId, ClientKey), number: AttachmentNumber, life: Life) {
        self.attachments.entry((whose, number)).or_insert(life);
    }

    /// This connection is given it in this term.
    pub(super) fn gives_to(
        &mut self,
        whose: (SessionId, ClientKey),
        number: AttachmentNumber,
        connection: u64,
        term: Term,
    ) {
        self.given_to.entry((whose, number)).or_insert((connection, term));
    }

    /// The connection that was given this attachment first, and the term.
    pub(super) fn given_to(&self, whose: (SessionId, ClientKey), number: AttachmentNumber) -> Option<(u64, Term)> {
        self.given_to.get(&(whose, number)).copied()
    }

    /// A session that was not in memory is loaded: its slot has lost sight of what it gave before.
    pub(super) fn loads(&mut self, session: SessionId) {
        self.attachments.retain(|((of, _), _), _| *of != session);
    }

    /// S7: whether an earlier attachment may be open still while a later one is given: its slot has lost its memory of it (the
    /// gateway says at the next renewal that it is there).
    pub(super) fn may_be_open(&self, whose: (SessionId, ClientKey), number: AttachmentNumber, life: Life) -> bool {
        self.attachments.get(&(whose, number)).is_none_or(|given| *given != life)
    }

    /// A current primary begins to serve: nothing that was committed in this life may be missing (rule 4, S3).
    fn serves(&mut self, member: &Member, life: Life, applied: Index, state: &SlotState) {
        let committed = self.committed.get(&life).copied().unwrap_or(0);
        if applied < committed {
            self.fail(format!("{member} serves {life:?} with {applied} entries, {committed} were committed"));
        }
        self.holds_acknowledged(member, life, state);
    }

    /// S3, for the copy of a current primary.
    pub(super) fn holds_acknowledged(&mut self, member: &Member, life: Life, state: &SlotState) {
        let mut missing = Vec::new();
        for ((group, of), last) in self.acknowledged.iter().filter(|((_, of), _)| *of == life) {
            let log = state.group(group).map(|group| &group.log);
            if log.is_none_or(|log| log.epoch() != last.epoch || log.head() < last.offset) {
                let now = log.map(|log| log.position());
                missing.push(format!("S3: {member} has {now:?} of {group} in {of:?}, acknowledged was {last:?}"));
            }
        }
        for what in missing {
            self.fail(what);
        }
    }

    /// In runs with little memory: what a copy does not keep was dropped by an entry, or copies will be seen to differ.
    fn note_shed(&mut self, state: &SlotState) {
        for (name, group) in state.groups() {
            let gone = group.log.head() - group.log.kept();
            let shed = self.shed.entry((name.clone(), group.log.epoch())).or_default();
            *shed = gone.max(*shed);
        }
    }

    /// Compares a copy's messages with what was seen of them.
    pub(super) fn agrees(&mut self, state: &SlotState) {
        for (name, group) in state.groups() {
            let kept = group.log.since(group.log.head() - group.log.kept(), usize::MAX).messages;
            for message in &kept {
                self.saw(name, group.log.epoch(), message);
            }
        }
    }

    /// Two copies that have applied the same entries are the same.
    pub(super) fn state(&mut self, member: &Member, life: Life, applied: Index, state: &SlotState) {
        let digest = digest_of(state);
        self.count("states compared");
        let (before, who) = self.states.entry((life, applied)).or_insert_with(|| (digest, member.clone()));
        if *before != digest {
            let what = format!("{member} and {who} differ after entry {applied} of {life:?}");
            self.fail(what);
        }
    }

    pub(super) fn committed(&self, life: Life) -> Index {
        self.committed.get(&life).copied().unwrap_or(0)
    }
}

/// What was last seen of a copy.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    applied: Index,
    holds: Index,
    lineage: Option<u64>,
    serving: Option<Term>,
    incoming: Option<Incoming>,
}

impl Seen {
    /// Looks at a copy after each of its steps. `term` is the slot's in the store. Whether more is known to be committed,
    /// or less is held than before.
    pub(super) fn look(
        &mut self,
        ledger: &mut Ledger,
        member: &Member,
        slot: SlotId,
        replica: &Replica,
        term: Term,
    ) -> bool {
        let (applied, lineage, serving) = (replica.applied(), replica.lineage(), replica.serving());
        let holds = applied + replica.uncommitted() as u64;
        let same = applied == self.applied && lineage == self.lineage;
        let less = holds < self.holds || lineage != self.lineage;
        self.holds = holds;
        let incoming = replica.incoming();
        if let Some(before) = std::mem::replace(&mut self.incoming, incoming)
            && incoming.is_none_or(|incoming| incoming.of != before.of)
        {
            let is_taken = incoming.is_none() && !same && applied == before.of.1;
            ledger.count(if is_taken { "snapshots taken in pieces" } else { "snapshots given up half-way" });
        }
        if same && serving == self.serving {
            return less;
        }
        let before = std::mem::replace(self, Self { applied, holds, lineage, serving, incoming });
        let (Some(lineage), Some(state)) = (lineage, replica.state()) else { return less };
        let life = (slot, lineage);
        if let Some(primary) = replica.primary_term()
            && ledger.primaries.get(&(slot, primary)) != Some(member)
        {
            ledger.fail(format!("{member} is primary of slot {slot} in term {primary} without the map's word"));
        }
        let mut look = less;
        if !same {
            let committed = ledger.committed.entry(life).or_default();
            look |= applied > *committed;
            *committed = applied.max(*committed);
            if applied % COMPARE_EVERY == 0 {
                ledger.state(member, life, applied, state);
                if !replica.counts_right() {
                    ledger.fail(format!(
                        "{member} has lost count of the bytes of slot {slot}: {:?}",
                        replica.held_bytes()
                    ));
                }
            }
            if ledger.little_memory {
                ledger.note_shed(state);
            }
        }
        if serving != before.serving && serving == Some(term) {
            ledger.serves(member, life, applied, state);
        }
        look
    }
}

/// A number for a value, by all that its `Debug` shows (FNV-1a).
fn digest_of(value: &impl std::fmt::Debug) -> u64 {
    struct Fnv(u64);
    impl std::fmt::Write for Fnv {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            for byte in text.bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            Ok(())
        }
    }
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    // Writing to it cannot fail.
    let _ = write!(fnv, "{value:?}");
    fnv.0
}
