use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, test_runner::TestCaseError};

use super::{Life, NodeFacts, PlanInput, plan};
use crate::{
    id::{Member, NodeId},
    map::{ClusterMap, MapRequest, SlotAssignment},
};

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn member(text: &str) -> Member {
    let (name, generation) = text.split_once('#').unwrap();
    Member { node: node(name), generation: generation.parse().unwrap() }
}

fn members(text: &str) -> Vec<Member> {
    text.split_whitespace().map(member).collect()
}

/// `a#1` serves; then what differs: `a#1:dead`, `:suspect`, `:starting`, `:draining`, `:zone=x`.
fn facts(text: &str) -> BTreeMap<NodeId, NodeFacts> {
    let one = |word: &str| {
        let mut parts = word.split(':');
        let Member { node, generation } = member(parts.next().unwrap());
        let mut facts =
            NodeFacts { generation, alive: true, suspect: false, state: Life::Serving, zone: String::new() };
        for part in parts {
            match part {
                "dead" => facts.alive = false,
                "suspect" => facts.suspect = true,
                "starting" => facts.state = Life::Starting,
                "draining" => facts.state = Life::Draining,
                zone => facts.zone = zone.strip_prefix("zone=").unwrap().to_owned(),
            }
        }
        (node, facts)
    };
    text.split_whitespace().map(one).collect()
}

/// `primary others… [> learner]`
fn slot(text: &str) -> SlotAssignment {
    let (in_sync, learner) =
        text.split_once('>').map_or((text, None), |(left, right)| (left, Some(member(right.trim()))));
    let mut in_sync = members(in_sync);
    let primary = in_sync[0].clone();
    in_sync.sort_unstable();
    SlotAssignment { term: 7, lineage: 1, changed_at: 3, primary, in_sync, learner }
}

fn show(slot: &SlotAssignment) -> String {
    let others = slot.in_sync.iter().filter(|member| **member != slot.primary).map(|member| format!(" {member}"));
    let learner = slot.learner.as_ref().map_or(String::new(), |learner| format!(" > {learner}"));
    format!("{}{}{learner}", slot.primary, others.collect::<String>())
}

fn map(slots: &[&str]) -> ClusterMap {
    let slots: Vec<SlotAssignment> = slots.iter().map(|text| slot(text)).collect();
    let mut nodes = BTreeMap::new();
    for member in slots.iter().flat_map(|slot| slot.in_sync.iter().chain(&slot.learner)) {
        let generation = nodes.entry(member.node.clone()).or_insert(member.generation);
        *generation = member.generation.max(*generation);
    }
    ClusterMap { version: 5, members: nodes, slots }
}

fn next(map: &ClusterMap, nodes: &str, requests: &[MapRequest], forgotten: &str) -> Option<ClusterMap> {
    let forgotten: BTreeSet<Member> = members(forgotten).into_iter().collect();
    plan(&PlanInput { map, nodes: &facts(nodes), requests, forgotten: &forgotten, copies: 2, max_moves: 8 })
}

/// What becomes of one slot: its holders, and how much the term and the lineage grow.
#[track_caller]
fn check(before: &str, nodes: &str, after: &str, term: u64, lineage: u64) {
    check_asked(before, nodes, &[], "", after, term, lineage);
}

#[track_caller]
fn check_asked(
    before: &str,
    nodes: &str,
    requests: &[MapRequest],
    forgotten: &str,
    after: &str,
    term: u64,
    lineage: u64,
) {
    let map = map(&[before]);
    let now = next(&map, nodes, requests, forgotten).unwrap_or_else(|| map.clone());
    let (old, new) = (&map.slots[0], &now.slots[0]);
    assert_eq!(show(new), after);
    assert_eq!((new.term - old.term, new.lineage - old.lineage), (term, lineage));
    assert_eq!(new.changed_at, if before == after { 3 } else { 6 });
}

#[test]
fn failures() {
    // A dead primary: an in-sync member takes over, and a learner is found in the same write.
    check("a#1 b#1", "b#1 c#1", "b#1 > c#1", 1, 0);
    check("a#1 b#1", "a#1:dead b#1", "b#1", 1, 0);
    // It was restarted: another member, which holds nothing, but may learn.
    check("a#1 b#1", "a#2 b#1", "b#1 > a#2", 1, 0);
    check("a#1 b#1 c#1", "b#1:draining c#1 d#1:starting", "c#1", 1, 0);
    check("a#1 b#1 c#1", "b#1:draining c#1 d#1", "c#1 b#1 > d#1", 1, 0);
    // A dead replica, a dead learner.
    check("a#1 b#1", "a#1 c#1", "a#1 > c#1", 0, 0);
    check("a#1 > b#1", "a#1 c#1", "a#1 > c#1", 0, 0);
    // All dead, but not known to be lost: nothing happens, whoever else is there.
    check("a#1 b#1", "c#1 d#1", "a#1 b#1", 0, 0);
    check("a#1 b#1 > c#1", "a#2 d#1", "a#1 b#1 > c#1", 0, 0);
    check("a#1 > b#1", "c#1", "a#1 > b#1", 0, 0);
    // All known to be lost.
    check("a#1 b#1 > c#1", "a#2 b#2 c#1", "a#2", 1, 1);
    check("a#1 b#1", "a#2:dead b#2:starting", "b#2", 1, 1);
    check("a#1", "a#2:starting b#1", "b#1", 1, 1);
    check_asked("a#1 b#1", "a#2:starting c#1", &[], "b#1", "c#1", 1, 1);
    // An operator's word counts only for the dead.
    check_asked("a#1 b#1", "b#1 c#1", &[], "b#1 a#1", "b#1 > c#1", 1, 0);
    // Not heard of for a moment: neither dead nor fit for anything new.
    check("a#1 b#1", "a#1:suspect b#1 c#1", "a#1 b#1", 0, 0);
    check("a#1 b#1", "b#1:suspect c#1", "a#1 b#1", 0, 0);
    check("a#1", "a#1 b#1:suspect", "a#1", 0, 0);
    // The facts are older than the map.
    check("a#2 b#1", "a#1 b#1 c#1", "a#2 b#1", 0, 0);
}

fn promote(changed_at: u64, learner: &str) -> MapRequest {
    MapRequest::Promote { slot: 0, changed_at, learner: member(learner) }
}

fn drop_member(changed_at: u64, gone: &str) -> MapRequest {
    MapRequest::Drop { slot: 0, changed_at, member: member(gone) }
}

#[test]
fn requests() {
    let check = |before, nodes, request, after, term| check_asked(before, nodes, &[request], "", after, term, 0);
    check("b#1 > a#1", "a#1 b#1", promote(3, "a#1"), "b#1 a#1", 0);
    // Asked under another assignment, or for another start of the node.
    check("b#1 > a#1", "a#1 b#1", promote(2, "a#1"), "b#1 > a#1", 0);
    check("b#1 > a#1", "a#1 b#1", promote(3, "a#2"), "b#1 > a#1", 0);
    check("b#1", "b#1", promote(3, "a#1"), "b#1", 0);
    // The learner died, or the primary.
    check("b#1 > a#1", "b#1", promote(3, "a#1"), "b#1", 0);
    check("b#1 > a#1", "a#1", promote(3, "a#1"), "b#1 a#1", 0);
    check("b#1 c#1 > a#1", "a#1 c#1", promote(3, "a#1"), "c#1 > a#1", 1);
    // Too slow: others are preferred, but if there is nobody else it may try again.
    check("b#1 a#1", "a#1 b#1 c#1", drop_member(3, "a#1"), "b#1 > c#1", 0);
    check("b#1 a#1", "a#1 b#1", drop_member(3, "a#1"), "b#1 > a#1", 0);
    check("b#1 > a#1", "a#1 b#1 c#1", drop_member(3, "a#1"), "b#1 > c#1", 0);
    check("b#1 a#1", "a#1 b#1 c#1", drop_member(2, "a#1"), "b#1 a#1", 0);
    check("b#1 a#1", "a#1 b#1 c#1", drop_member(3, "b#1"), "b#1 a#1", 0);
    // What a primary asked before it died is void where another can take over.
    check("b#1 a#1", "a#1", drop_member(3, "a#1"), "a#1", 1);
}

#[test]
fn a_learner_that_is_dropped_and_taken_again_has_another_assignment() {
    let map = map(&["b#1 > a#1"]);
    let now = next(&map, "a#1 b#1", &[drop_member(3, "a#1")], "").unwrap();
    assert_eq!((show(&now.slots[0]), now.slots[0].changed_at), ("b#1 > a#1".to_owned(), 6));
}

#[test]
fn hand_over() {
    // A draining primary: another leads at once, and a learner is found.
    check("a#1 b#1", "a#1:draining b#1 c#1", "b#1 a#1 > c#1", 1, 0);
    check("a#1 b#1", "a#1 b#1:draining c#1", "a#1 b#1 > c#1", 0, 0);
    check("a#1", "a#1:draining b#1 c#1", "a#1 > b#1", 0, 0);
    // It leaves when there are enough without it.
    check("b#1 a#1 c#1", "a#1:draining b#1 c#1", "b#1 c#1", 0, 0);
    check("a#1 b#1 c#1", "a#1:draining b#1 c#1", "b#1 a#1 c#1", 1, 0);
    // Or when there is nobody to replace it.
    check("a#1 b#1", "a#1:draining b#1", "b#1 a#1", 1, 0);
    check("b#1 a#1", "a#1:draining b#1", "b#1", 0, 0);
    // Not when nobody else has the slot.
    check("a#1", "a#1:draining", "a#1", 0, 0);
    check("a#1 b#1", "a#1:draining b#1:draining", "a#1 b#1", 0, 0);
    check("b#1 a#1", "a#1:draining b#1 c#1:starting", "b#1", 0, 0);
    // A draining learner is of no use; a learner that is catching up is not disturbed by a hand-over.
    check("a#1 > b#1", "a#1 b#1:draining c#1", "a#1 > c#1", 0, 0);
    check("a#1 b#1 > c#1", "a#1:draining b#1 c#1", "a#1 b#1 > c#1", 0, 0);
}

#[test]
fn missing_copies() {
    check("a#1", "a#1 b#1:starting", "a#1", 0, 0);
    check("a#1", "a#1 b#1:draining c#1", "a#1 > c#1", 0, 0);
    // Another zone first.
    check("a#1", "a#1:zone=x b#1:zone=x c#1:zone=y", "a#1 > c#1", 0, 0);
    check("a#1", "a#1:zone=x b#1:zone=x", "a#1 > b#1", 0, 0);
    check("a#1", "a#1 b#1 c#1", "a#1 > b#1", 0, 0);
    // Two copies in one zone: one moves.
    check("a#1 b#1", "a#1:zone=x b#1:zone=x c#1:zone=y", "a#1 b#1 > c#1", 0, 0);
    check("a#1 b#1 c#1", "a#1:zone=x b#1:zone=x c#1:zone=y", "a#1 c#1", 0, 0);
}

#[test]
fn members_follow() {
    let check = |nodes: &str, expected: &str| {
        let map = map(&["a#1 b#1"]);
        let members = next(&map, nodes, &[], "").map_or(map.members, |map| map.members);
        let shown: Vec<String> = members.iter().map(|(node, generation)| format!("{node}#{generation}")).collect();
        assert_eq!(shown.join(" "), expected);
    };
    check("a#1 b#1 c#1", "a#1 b#1 c#1");
    check("a#1 b#1 c#1:starting d#1:draining", "a#1 b#1");
    check("a#1", "a#1");
    check("", "a#1 b#1");
    check("a#2 b#1", "a#2 b#1");
}

#[test]
fn unchanged_is_nothing() {
    assert_eq!(next(&map(&["a#1 b#1", "b#1 a#1"]), "a#1 b#1", &[], ""), None);
    assert_eq!(next(&map(&["a#1 b#1"]), "", &[], ""), None);
}

#[test]
fn primaries_are_handed_on_by_way_of_others() {
    // a leads three and c none, but they share no slot.
    let map = map(&["a#1 b#1", "a#1 b#1", "a#1 b#1", "b#1 c#1", "b#1 c#1"]);
    let facts = facts("a#1 b#1 c#1");
    let input =
        PlanInput { map: &map, nodes: &facts, requests: &[], forgotten: &BTreeSet::new(), copies: 2, max_moves: 8 };
    let now = plan(&input).unwrap();
    let leads = |name| now.slots.iter().filter(|slot| slot.primary == member(name)).count();
    assert_eq!((leads("a#1"), leads("b#1"), leads("c#1")), (2, 2, 1));
}

// ---- Whatever happens ----

#[derive(Clone, Debug)]
enum Event {
    Join(u8),
    Kill(u8),
    Restart(u8),
    Drain(u8),
    Suspect(u8),
    Forget(u8),
    /// The primary of this slot finds its last other member slow.
    Slow(u8),
    /// Plans with learners that become in-sync now and then, by the bits of the number.
    Plan(u32),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let name = 0..7_u8;
    let event = prop_oneof![
        3 => name.clone().prop_map(Event::Join),
        2 => name.clone().prop_map(Event::Kill),
        2 => name.clone().prop_map(Event::Restart),
        1 => name.clone().prop_map(Event::Drain),
        1 => name.clone().prop_map(Event::Suspect),
        1 => name.prop_map(Event::Forget),
        2 => (0..40_u8).prop_map(Event::Slow),
        6 => any::<u32>().prop_map(Event::Plan),
    ];
    vec(event, 1..40)
}

struct World {
    map: ClusterMap,
    nodes: BTreeMap<NodeId, NodeFacts>,
    forgotten: BTreeSet<Member>,
    copies: u8,
    max_moves: usize,
    zones: u8,
    requests: Vec<MapRequest>,
}

impl World {
    fn new(slots: u16, copies: u8, max_moves: usize, zones: u8) -> Self {
        let first = member("n0#1");
        let mut world = Self {
            map: ClusterMap::first(&first, slots),
            nodes: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            copies,
            max_moves,
            zones,
            requests: Vec::new(),
        };
        world.join(0);
        world
    }

    fn join(&mut self, number: u8) {
        let zone = if self.zones < 2 { String::new() } else { format!("z{}", number % self.zones) };
        let fresh = NodeFacts { generation: 0, alive: false, suspect: false, state: Life::Serving, zone };
        let facts = self.nodes.entry(node(&format!("n{number}"))).or_insert(fresh);
        if !facts.alive {
            facts.generation += 1;
            (facts.alive, facts.suspect, facts.state) = (true, false, Life::Serving);
        }
    }

    fn apply(&mut self, event: &Event) -> Result<(), TestCaseError> {
        let name = |number: &u8| node(&format!("n{number}"));
        match event {
            Event::Join(number) => self.join(*number),
            Event::Kill(number) => {
                if let Some(facts) = self.nodes.get_mut(&name(number)) {
                    facts.alive = false;
                }
            }
            Event::Restart(number) => {
                if let Some(facts) = self.nodes.get_mut(&name(number)) {
                    facts.alive = false;
                    self.join(*number);
                }
            }
            Event::Drain(number) => {
                if let Some(facts) = self.nodes.get_mut(&name(number)) {
                    facts.state = Life::Draining;
                }
            }
            Event::Suspect(number) => {
                if let Some(facts) = self.nodes.get_mut(&name(number)) {
                    facts.suspect = !facts.suspect;
                }
            }
            Event::Forget(number) => {
                if let Some(facts) = self.nodes.get(&name(number)).filter(|facts| !facts.alive) {
                    self.forgotten.insert(Member { node: name(number), generation: facts.generation });
                }
            }
            Event::Slow(number) => {
                let slot = u16::from(*number) % self.map.slot_count();
                let assignment = self.map.slot(slot).unwrap();
                let others = assignment.in_sync.iter().filter(|member| **member != assignment.primary);
                if let Some(member) = others.chain(&assignment.learner).next_back().cloned() {
                    self.requests.push(MapRequest::Drop { slot, changed_at: assignment.changed_at, member });
                }
            }
            Event::Plan(bits) => {
                self.step(*bits)?;
            }
        }
        Ok(())
    }

    /// One plan; then those learners ask to be in-sync whose slots the bits name. Says whether the map changed.
    fn step(&mut self, bits: u32) -> Result<bool, TestCaseError> {
        let next = plan(&PlanInput {
            map: &self.map,
            nodes: &self.nodes,
            requests: &self.requests,
            forgotten: &self.forgotten,
            copies: self.copies,
            max_moves: self.max_moves,
        });
        let changed = next.is_some();
        if let Some(next) = next {
            self.check_step(&next)?;
            self.map = next;
        }
        for (number, slot) in self.map.slots.iter().enumerate() {
            if let Some(learner) = &slot.learner
                && bits >> (number % 32) & 1 == 1
            {
                let (slot, changed_at, learner) = (number as u16, slot.changed_at, learner.clone());
                self.requests.push(MapRequest::Promote { slot, changed_at, learner });
            }
        }
        // Old ones stay for a while, as they may on a real way.
        let surplus = self.requests.len().saturating_sub(200);
        self.requests.drain(..surplus);
        Ok(changed)
    }

    fn is_dead(&self, member: &Member) -> bool {
        self.nodes.get(&member.node).is_none_or(|facts| facts.generation != member.generation || !facts.alive)
    }

    fn check_step(&self, next: &ClusterMap) -> Result<(), TestCaseError> {
        prop_assert_eq!(next.version, self.map.version + 1);
        for (old, new) in self.map.slots.iter().zip(&next.slots) {
            if new == old {
                continue;
            }
            prop_assert_eq!(new.changed_at, next.version);
            prop_assert!(new.in_sync.contains(&new.primary) && new.in_sync.is_sorted());
            prop_assert!(new.learner.as_ref().is_none_or(|learner| !new.in_sync.contains(learner)));
            prop_assert!(new.in_sync.windows(2).all(|pair| pair[0].node != pair[1].node));
            prop_assert_eq!(new.term > old.term, new.primary != old.primary);
            prop_assert!(new.term >= old.term && new.term <= old.term + 1);
            if new.lineage > old.lineage {
                prop_assert!(old.in_sync.iter().all(|member| self.is_dead(member)));
                let lost = |member: &Member| {
                    self.forgotten.contains(member) || self.nodes[&member.node].generation > member.generation
                };
                prop_assert!(old.in_sync.iter().all(lost));
                continue;
            }
            prop_assert_eq!(new.lineage, old.lineage);
            prop_assert!(old.in_sync.contains(&new.primary));
            for member in new.in_sync.iter().filter(|member| !old.in_sync.contains(member)) {
                prop_assert_eq!(Some(member), old.learner.as_ref());
            }
            if let Some(learner) = new.learner.as_ref().filter(|learner| Some(*learner) != old.learner.as_ref()) {
                let facts = &self.nodes[&learner.node];
                prop_assert!(facts.alive && !facts.suspect && facts.state == Life::Serving);
            }
        }
        Ok(())
    }

    /// Plans until nothing changes, each learner being in-sync at once.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let limit = 40 + 12 * self.map.slots.len() / self.max_moves.max(1) + 12 * self.map.slots.len();
        let mut quiet = 0;
        for _ in 0..limit {
            quiet = if self.step(u32::MAX)? { 0 } else { quiet + 1 };
            if quiet == 2 {
                return Ok(());
            }
        }
        prop_assert!(false, "no end after {limit} plans");
        Ok(())
    }

    fn check_settled(&self) -> Result<(), TestCaseError> {
        let serving: Vec<&NodeId> =
            self.nodes.iter().filter(|(_, facts)| facts.state == Life::Serving).map(|(id, _)| id).collect();
        let full = serving.len().min(usize::from(self.copies)).max(1);
        for slot in &self.map.slots {
            prop_assert_eq!(slot.in_sync.len(), full, "{}", show(slot));
            prop_assert_eq!(&slot.learner, &None);
            prop_assert!(slot.in_sync.iter().all(|member| !self.is_dead(member)));
            prop_assert!(slot.in_sync.iter().all(|member| serving.contains(&&member.node)));
        }
        let count = |of: &dyn Fn(&SlotAssignment) -> Vec<NodeId>| {
            let mut counts: Vec<usize> =
                serving.iter().map(|id| self.map.slots.iter().filter(|slot| of(slot).contains(id)).count()).collect();
            counts.sort_unstable();
            counts[counts.len() - 1] - counts[0]
        };
        if self.zones < 2 {
            let copies = count(&|slot| slot.in_sync.iter().map(|member| member.node.clone()).collect());
            prop_assert!(copies <= 1, "copies differ by {copies}");
            let primaries = count(&|slot| vec![slot.primary.node.clone()]);
            prop_assert!(primaries <= 2, "primaries differ by {primaries}");
        } else {
            let zones: BTreeSet<&str> = serving.iter().map(|id| self.nodes[*id].zone.as_str()).collect();
            for slot in &self.map.slots {
                let used: BTreeSet<&str> =
                    slot.in_sync.iter().map(|member| self.nodes[&member.node].zone.as_str()).collect();
                prop_assert_eq!(used.len(), full.min(zones.len()), "{}", show(slot));
            }
        }
        let members: Vec<&NodeId> = self.map.members.keys().collect();
        prop_assert_eq!(members, serving);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_ends_well(
        events in events(),
        slots in 1..40_u16,
        copies in 1..4_u8,
        max_moves in 1..9_usize,
        zones in 1..4_u8,
    ) {
        let mut world = World::new(slots, copies, max_moves, zones);
        for event in &events {
            world.apply(event)?;
        }
        // Somebody serves; the dead come back; so everything can be made good.
        for facts in world.nodes.values_mut() {
            facts.suspect = false;
            if !facts.alive {
                facts.generation += 1;
                (facts.alive, facts.state) = (true, Life::Serving);
            }
        }
        world.join(7);
        world.settle()?;
        world.check_settled()?;
    }
}

#[test]
fn a_large_cluster_is_planned_in_few_steps() {
    let mut world = World::new(1024, 2, 32, 1);
    for number in 1..50 {
        world.join(number);
    }
    world.settle().unwrap();
    world.check_settled().unwrap();
    let version = world.map.version;
    assert!(version < 400, "{version} maps");
    // One death moves no more than what that node held.
    let before = world.map.clone();
    world.apply(&Event::Kill(9)).unwrap();
    world.step(0).unwrap();
    for (old, new) in before.slots.iter().zip(&world.map.slots) {
        let others = |slot: &SlotAssignment| -> Vec<Member> {
            slot.in_sync.iter().filter(|holder| **holder != member("n9#1")).cloned().collect()
        };
        assert_eq!(new.in_sync, others(old));
        assert!(new.learner.is_none() || new.in_sync.len() == 1);
    }
}
