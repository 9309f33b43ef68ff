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

/// What the looks at the cluster have shown.
#[derive(Debug, Default)]
pub struct Evidence {
    nodes: BTreeMap<NodeId, Looks>,
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
        let newest = newest_generations(view, map);
        self.nodes.retain(|node, _| newest.contains_key(node));
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

    /// This node doubts itself: what it missed does not count.
    pub fn forget_misses(&mut self) {
        for looks in self.nodes.values_mut() {
            looks.missed = 0;
        }
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
