//! Which nodes count as dead. Gossip's word at one moment is not enough: a node that was paused sees all others dead for
//! a moment when it wakes, and one that has just started has not heard of everyone yet.

use std::collections::BTreeMap;

use super::view::{ClusterView, NodeState};
use crate::{
    id::{Generation, Member, NodeId},
    logic::{
        map::ClusterMap,
        plan::{Life, NodeFacts},
    },
};

/// Looks in a row that must not find a node before it counts as dead.
const LOOKS: u32 = 2;
/// The same for a node that was never found: gossip may still be on the way.
const LOOKS_UNHEARD: u32 = 25;
/// Looks in a row that must find fewer than half of the nodes that the map names before such a node changes the map. More
/// likely it is the one that is cut off, and slots that it took would be out of reach for most: those that hear each other
/// are to come first. A node that hears nothing, but is heard, knows it 1 to 2 s before the others do: hence so many.
const LOOKS_OF_FEW: u32 = 17;

/// What the looks at the cluster have shown.
#[derive(Debug, Default)]
pub struct Evidence {
    nodes: BTreeMap<NodeId, Looks>,
    /// How many packets had come from each peer, and when there was one more.
    packets: BTreeMap<NodeId, (u64, u64)>,
    /// Whose last packet is older is not heard.
    quiet_since_ms: u64,
    /// Looks in a row that found few.
    few: u32,
}

/// At the newest start that is known of a node.
#[derive(Debug)]
struct Looks {
    generation: Generation,
    found_once: bool,
    missed: u32,
}

impl Looks {
    fn is_dead(&self) -> bool {
        self.missed >= if self.found_once { LOOKS } else { LOOKS_UNHEARD }
    }
}

impl Evidence {
    /// One look, to be repeated at intervals.
    pub fn look(&mut self, view: &ClusterView, map: Option<&ClusterMap>) {
        self.few = if map.is_some_and(|map| self.hears_few(view, map)) { self.few.saturating_add(1) } else { 0 };
        let newest = newest_generations(view, map);
        self.nodes.retain(|node, _| newest.contains_key(node));
        self.packets.retain(|node, _| newest.contains_key(node));
        for (node, generation) in newest {
            let alive = view.is_alive(&Member { node: node.clone(), generation });
            let looks = self.nodes.entry(node).or_insert(Looks { generation, found_once: false, missed: 0 });
            if looks.generation != generation {
                *looks = Looks { generation, found_once: false, missed: 0 };
            }
            looks.found_once |= alive;
            looks.missed = if alive { 0 } else { looks.missed.saturating_add(1) };
        }
    }

    /// How many packets have come from each peer so far, by the links that are up. A peer from which none comes for
    /// `quiet_ms` counts as not heard: its link ends only later, and the primaries here lose patience in between.
    pub fn listen(&mut self, packets: BTreeMap<NodeId, u64>, now_ms: u64, quiet_ms: u64) {
        for (node, count) in packets {
            let heard = self.packets.entry(node).or_insert((count, now_ms));
            if heard.0 != count {
                *heard = (count, now_ms);
            }
        }
        self.quiet_since_ms = now_ms.saturating_sub(quiet_ms);
    }

    /// Whether this node may change the map: it hears at least half of the nodes there, or others had the time to do it.
    pub fn may_change(&self, view: &ClusterView, map: &ClusterMap) -> bool {
        self.few >= LOOKS_OF_FEW || !self.hears_few(view, map)
    }

    /// Fewer than half of those that the map names, this node included.
    fn hears_few(&self, view: &ClusterView, map: &ClusterMap) -> bool {
        let quiet = |node: &NodeId| self.packets.get(node).is_some_and(|(_, last_ms)| *last_ms < self.quiet_since_ms);
        let alive = |node: &&NodeId| view.nodes.get(*node).is_some_and(|seen| seen.alive);
        map.members.keys().filter(alive).filter(|node| !quiet(node)).count() * 2 < map.members.len()
    }

    /// This node doubts itself: what it missed does not count.
    pub fn forget_misses(&mut self) {
        for looks in self.nodes.values_mut() {
            looks.missed = 0;
        }
        self.few = 0;
    }

    /// Whether enough looks have missed this start of the node, or a newer one is known.
    pub fn is_dead(&self, member: &Member) -> bool {
        self.nodes.get(&member.node).is_some_and(|looks| {
            looks.generation > member.generation || (looks.generation == member.generation && looks.is_dead())
        })
    }

    /// What the planner is told. Nodes that are missing, but not for long enough, are suspect.
    pub fn facts(&self, view: &ClusterView, map: &ClusterMap) -> BTreeMap<NodeId, NodeFacts> {
        let facts = |(node, generation): (NodeId, Generation)| {
            let seen = view.nodes.get(&node).filter(|seen| seen.member.generation == generation);
            let here = seen.is_some_and(|seen| seen.alive);
            let dead = !here && self.is_dead(&Member { node: node.clone(), generation });
            let state = match seen.map(|seen| seen.state) {
                Some(NodeState::Starting) => Life::Starting,
                Some(NodeState::Draining) => Life::Draining,
                Some(NodeState::Serving) | None => Life::Serving,
            };
            let zone = seen.map_or(String::new(), |seen| seen.zone.clone());
            (node, NodeFacts { generation, alive: !dead, suspect: !here, state, zone })
        };
        newest_generations(view, Some(map)).into_iter().map(facts).collect()
    }
}

/// Who is to propose map changes: among the nodes that are alive those whose store answers first, those that are not
/// draining first, then by name. Two that see it differently do no harm.
pub fn steward_of(view: &ClusterView) -> Option<&NodeId> {
    let alive = view.nodes.iter().filter(|(_, node)| node.alive);
    let preference =
        |node: &super::view::NodeView| (node.store == super::view::StoreView::Down, node.state == NodeState::Draining);
    alive.min_by_key(|(id, node)| (preference(node), *id)).map(|(id, _)| id)
}

fn newest_generations(view: &ClusterView, map: Option<&ClusterMap>) -> BTreeMap<NodeId, Generation> {
    let mut newest: BTreeMap<NodeId, Generation> =
        view.nodes.iter().map(|(id, node)| (id.clone(), node.member.generation)).collect();
    let mut note = |node: &NodeId, generation: Generation| match newest.get_mut(node) {
        Some(known) => *known = (*known).max(generation),
        None => {
            newest.insert(node.clone(), generation);
        }
    };
    if let Some(map) = map {
        for (node, generation) in &map.members {
            note(node, *generation);
        }
        for member in map.slots.iter().flat_map(|slot| slot.in_sync.iter().chain(&slot.learner)) {
            note(&member.node, member.generation);
        }
    }
    newest
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::view::{NodeView, StoreView};

    /// A view with these nodes: `n1#1` serves; `:dead`, `:starting`, `:draining`, `:nostore`.
    pub(in crate::cluster) fn view(me: &str, nodes: &str) -> ClusterView {
        let member = |text: &str| {
            let (node, generation) = text.split_once('#').unwrap();
            Member { node: NodeId::parse(node).unwrap(), generation: generation.parse().unwrap() }
        };
        let one = |text: &str| {
            let (name, rest) = text.split_once(':').unwrap_or((text, ""));
            let node = NodeView {
                member: member(name),
                addr: ([127, 0, 0, 1], 1).into(),
                alive: rest != "dead",
                state: match rest {
                    "starting" => NodeState::Starting,
                    "draining" => NodeState::Draining,
                    _ => NodeState::Serving,
                },
                http: String::new(),
                zone: String::new(),
                version: String::new(),
                map_version: 0,
                store_id: String::new(),
                settings: String::new(),
                load: crate::cluster::view::Load::default(),
                store: if rest == "nostore" { StoreView::Down } else { StoreView::Up },
                links: BTreeMap::new(),
                groups: BTreeMap::new(),
            };
            (node.member.node.clone(), node)
        };
        ClusterView { me: member(me), nodes: nodes.split_whitespace().map(one).collect() }
    }

    #[test]
    fn the_steward_is_the_first_that_can() {
        for (nodes, expected) in [
            ("n1#1 n2#1", Some("n1")),
            ("n1#1:dead n2#1 n3#1", Some("n2")),
            ("n1#1:draining n2#1:starting", Some("n2")),
            ("n1#1:draining", Some("n1")),
            ("n1#1:nostore n2#1:draining", Some("n2")),
            ("n1#1:nostore n2#1:nostore", Some("n1")),
            ("n1#1:dead", None),
        ] {
            assert_eq!(steward_of(&view("n2#1", nodes)).map(NodeId::as_str), expected, "{nodes}");
        }
    }

    fn judged(evidence: &Evidence, view: &ClusterView, map: &ClusterMap, node: &str) -> &'static str {
        match evidence.facts(view, map).get(&NodeId::parse(node).unwrap()) {
            None => "unknown",
            Some(facts) if !facts.alive => "dead",
            Some(facts) if facts.suspect => "suspect",
            Some(_) => "alive",
        }
    }

    #[test]
    fn one_look_is_not_enough() {
        let mut evidence = Evidence::default();
        let map = ClusterMap::first(&view("n2#1", "").me, 4);
        let (all, without) = (view("n1#1", "n1#1 n2#1"), view("n1#1", "n1#1 n2#1:dead"));
        evidence.look(&all, Some(&map));
        for (seen, expected) in [
            (&without, "suspect"),
            (&all, "alive"),
            (&without, "suspect"),
            (&without, "dead"),
            (&view("n1#1", "n1#1"), "dead"),
            (&all, "alive"),
        ] {
            evidence.look(seen, Some(&map));
            assert_eq!(judged(&evidence, seen, &map, "n2"), expected);
        }
        evidence.look(&without, Some(&map));
        evidence.forget_misses();
        evidence.look(&without, Some(&map));
        assert_eq!(judged(&evidence, &without, &map, "n2"), "suspect");
    }

    #[test]
    fn who_hears_fewer_than_half_lets_the_others_go_first() {
        let mut map = ClusterMap::first(&view("n1#1", "").me, 4);
        map.members.extend(["n2", "n3"].map(|node| (NodeId::parse(node).unwrap(), 1)));
        let all = view("n1#1", "n1#1 n2#1 n3#1");
        // Who is not in the map is no help.
        for seen in ["n1#1 n2#1:dead n3#1:dead", "n1#1 n2#1:dead", "n1#1 n2#1:dead n3#1:dead n4#1 n5#1"] {
            let (mut evidence, few) = (Evidence::default(), view("n1#1", seen));
            for _ in 0..2 {
                evidence.look(&all, Some(&map));
                assert!(evidence.may_change(&all, &map) && !evidence.may_change(&few, &map), "before the next look");
                for _ in 0..LOOKS_OF_FEW {
                    assert!(!evidence.may_change(&few, &map), "{seen}");
                    evidence.look(&few, Some(&map));
                }
                assert!(evidence.may_change(&few, &map), "{seen}");
            }
            evidence.forget_misses();
            assert!(!evidence.may_change(&few, &map), "what it missed does not count");
        }
        let two = view("n1#1", "n1#1 n2#1 n3#1:dead");
        assert!(Evidence::default().may_change(&two, &map));
        // Gossip still takes them for alive, but nothing comes from them any more.
        let mut evidence = Evidence::default();
        let mut listen = |two: u64, three: u64, now_ms: u64| {
            let packets = [("n2", two), ("n3", three)].map(|(node, count)| (NodeId::parse(node).unwrap(), count));
            evidence.listen(packets.into(), now_ms, 600);
            evidence.may_change(&all, &map)
        };
        assert!(listen(7, 7, 1_000) && listen(7, 8, 1_600) && listen(7, 8, 2_200), "one is quiet");
        assert!(!listen(7, 8, 2_201), "both are");
        assert!(listen(1, 8, 2_400), "a new connection to one of them");
        // One of two is not fewer than half: the other of a pair may be waited for in vain.
        map.members.remove(&NodeId::parse("n3").unwrap());
        assert!(Evidence::default().may_change(&view("n1#1", "n1#1 n2#1:dead"), &map));
    }

    #[test]
    fn a_node_never_heard_of_is_given_time() {
        let mut evidence = Evidence::default();
        let map = ClusterMap::first(&view("n2#7", "").me, 4);
        let alone = view("n1#1", "n1#1");
        for _ in 0..LOOKS_UNHEARD {
            assert_eq!(judged(&evidence, &alone, &map, "n2"), "suspect");
            evidence.look(&alone, Some(&map));
        }
        assert_eq!(judged(&evidence, &alone, &map, "n2"), "dead");
        // An older start of it is no sign of life of this one, a newer one shows that it is gone.
        let older = view("n1#1", "n1#1 n2#6");
        evidence.look(&older, Some(&map));
        assert!(evidence.is_dead(&map.slots[0].primary));
        let newer = view("n1#1", "n1#1 n2#8");
        evidence.look(&newer, Some(&map));
        assert!(evidence.is_dead(&map.slots[0].primary));
        assert_eq!(judged(&evidence, &newer, &map, "n2"), "alive");
    }
}
