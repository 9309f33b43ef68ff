//! The report and readiness, each case a change to a healthy cluster of three.

use std::net::SocketAddr;

use super::*;
use crate::logic::map::SlotAssignment;

const FACTS: LocalFacts = LocalFacts {
    copies: 2,
    certificate_days_left: Some(300),
    http_certificate: None,
    lag_limit_ms: 500,
    deaf: false,
    clock: ClockView { distrusted: false, correction_ms: 0, differing: Vec::new() },
    refused: Vec::new(),
    other_keys: BTreeSet::new(),
    outside: Vec::new(),
};
const SLOTS: u16 = 12;

fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn member(name: &str) -> Member {
    Member { node: id(name), generation: 1 }
}

fn node(name: &str, all: &[&str]) -> NodeView {
    let up = LinkView { sends: true, hears: true, rtt_us: 100 };
    NodeView {
        member: member(name),
        addr: SocketAddr::from(([127, 0, 0, 1], 7000)),
        alive: true,
        state: NodeState::Serving,
        http: String::new(),
        zone: String::new(),
        version: "0.1.0".to_owned(),
        map_version: 7,
        store_id: "s".to_owned(),
        settings: "d".to_owned(),
        load: Load::default(),
        store: StoreView::Up,
        links: all.iter().filter(|peer| **peer != name).map(|peer| (id(peer), up)).collect(),
        groups: BTreeMap::new(),
    }
}

/// Nodes with the slots spread evenly, two copies of each (one where there is one node).
fn cluster(all: &[&str]) -> (ClusterMap, ClusterView) {
    let mut map = ClusterMap::first(&member(all[0]), SLOTS);
    map.version = 7;
    map.members = all.iter().map(|name| (id(name), 1)).collect();
    for (number, slot) in map.slots.iter_mut().enumerate() {
        let primary = member(all[number % all.len()]);
        let mut in_sync = vec![primary.clone(), member(all[(number + 1) % all.len()])];
        in_sync.sort();
        in_sync.dedup();
        *slot = SlotAssignment { primary, in_sync, ..slot.clone() };
    }
    let view = ClusterView { me: member(all[0]), nodes: all.iter().map(|name| (id(name), node(name, all))).collect() };
    (map, view)
}

fn seen<'a>(view: &'a mut ClusterView, name: &str) -> &'a mut NodeView {
    view.nodes.get_mut(&id(name)).unwrap()
}

type Change = fn(&mut ClusterMap, &mut ClusterView, &mut LocalFacts);

#[track_caller]
fn check(what: &str, change: Change, status: Status, reasons: &[&str]) -> Health {
    let (mut map, mut view) = cluster(&["n1", "n2", "n3"]);
    let mut facts = FACTS;
    change(&mut map, &mut view, &mut facts);
    let health = report(Some(&map), &view, &facts);
    assert_eq!(health.status, status, "{what}: {:?}", health.reasons);
    for reason in reasons {
        assert!(
            health.reasons.iter().any(|given| given.contains(reason)),
            "{what}: {reason:?} is not among {:?}",
            health.reasons
        );
    }
    assert_eq!(health.reasons.is_empty(), status == Status::Green, "{what}: {:?}", health.reasons);
    health
}

#[test]
fn a_whole_cluster_is_green() {
    let health = check("whole", |_, _, _| {}, Status::Green, &[]);
    assert_eq!(health.slots, SlotCounts { total: 12, primary: 12, replica: 12, ..SlotCounts::default() });
    assert_eq!(health.map_version, 7);
    for node in &health.nodes {
        assert!(node.alive && node.member);
        assert_eq!(node.slots, HeldSlots { primary: 4, replica: 4, learning: 0 });
        assert_eq!(node.links.len(), 2);
    }
}

#[test]
fn yellow_for_little_memory() {
    let load = |held_mb: u64| Load { memory_bytes: held_mb << 20, memory_budget_bytes: 100 << 20, ..Load::default() };
    for (held_mb, words) in
        [(79, ""), (80, "the oldest messages go"), (100, "new messages, groups and sessions are refused")]
    {
        let (map, mut view) = cluster(&["n1", "n2", "n3"]);
        seen(&mut view, "n2").load = load(held_mb);
        let health = report(Some(&map), &view, &FACTS);
        if words.is_empty() {
            assert_eq!(health.status, Status::Green);
        } else {
            let reason = format!("node n2 holds {held_mb} of 100 MiB for clients (limits.memory_bytes): {words}");
            assert_eq!((health.status, health.reasons.len()), (Status::Yellow, 1));
            assert!(health.reasons[0].starts_with(&reason), "{:?}", health.reasons);
        }
    }
}

#[test]
fn yellow_for_less_in_reserve() {
    check(
        "a slot short of copies",
        |map, _, _| map.slots[0].in_sync.truncate(1),
        Status::Yellow,
        &["1 of 12 slots have fewer than 2 live copies"],
    );
    check(
        "a silent node without slots",
        |map, view, _| {
            for slot in &mut map.slots {
                slot.primary = member("n1");
                slot.in_sync = vec![member("n1"), member("n2")];
            }
            seen(view, "n3").alive = false;
        },
        Status::Yellow,
        &["node n3 is in the cluster map but is not heard"],
    );
    check(
        "a crashed node that the map has dropped",
        |map, view, _| {
            for slot in &mut map.slots {
                slot.primary = member("n1");
                slot.in_sync = vec![member("n1"), member("n2")];
            }
            map.members.remove(&id("n3"));
            seen(view, "n3").alive = false;
        },
        Status::Yellow,
        &["node n3 was there lately"],
    );
    check(
        "a new node of which only others have heard",
        |_, view, _| {
            let new = NodeView { alive: false, state: NodeState::Starting, ..node("n4", &[]) };
            view.nodes.insert(id("n4"), new);
        },
        Status::Yellow,
        &["node n4 is starting and is not heard yet"],
    );
    check(
        "one direction of a link",
        |_, view, _| {
            seen(view, "n2").links.insert(id("n3"), LinkView { sends: true, hears: false, rtt_us: 0 });
        },
        Status::Yellow,
        &["node n2 cannot hear node n3"],
    );
    check(
        "the other direction",
        |_, view, _| {
            seen(view, "n2").links.insert(id("n3"), LinkView { sends: false, hears: true, rtt_us: 0 });
        },
        Status::Yellow,
        &["node n2 cannot send to node n3"],
    );
    check(
        "a slow store",
        |_, view, _| seen(view, "n3").store = StoreView::Slow,
        Status::Yellow,
        &["the store is slow for n3"],
    );
    check(
        "no store for one",
        |_, view, _| seen(view, "n3").store = StoreView::Down,
        Status::Yellow,
        &["the store does not answer n3"],
    );
    check(
        "a certificate near its end",
        |_, _, facts| facts.certificate_days_left = Some(3),
        Status::Yellow,
        &["ends in 3 days"],
    );
    check(
        "clocks that differ",
        |_, _, facts| facts.clock.differing = vec![("node n2".to_owned(), -259_200_000)],
        Status::Yellow,
        &["259200 s behind that of node n2"],
    );
    check(
        "a clock that nobody shares",
        |_, _, facts| facts.clock.distrusted = true,
        Status::Yellow,
        &["no session and no message ends by it"],
    );
    check(
        "a machine whose clock is corrected",
        |_, _, facts| facts.clock.correction_ms = -86_400_000,
        Status::Yellow,
        &["86400 s ahead of the store's"],
    );
}

#[test]
fn red_for_what_is_not_served() {
    let health = check(
        "a killed node",
        |_, view, _| seen(view, "n2").alive = false,
        Status::Red,
        &[
            "4 of 12 slots have no live primary (4 with n2)",
            "8 of 12 slots have fewer than 2 live copies (8 lost the one on n2)",
            "node n2 is in the cluster map but is not heard",
        ],
    );
    assert_eq!(health.slots, SlotCounts { total: 12, primary: 8, replica: 8, learning: 0, short: 8, unavailable: 4 });
    assert!(health.reasons[0].contains("no live primary"), "the worst comes first: {:?}", health.reasons);
    check(
        "a restarted node before the map knows",
        |_, view, _| seen(view, "n2").member.generation = 2,
        Status::Red,
        &[
            "node n2 has restarted (generation 2), the map still counts on generation 1",
            "4 of 12 slots have no live primary",
        ],
    );
    check(
        "a minority",
        |_, view, _| {
            seen(view, "n2").alive = false;
            view.nodes.remove(&id("n3"));
        },
        Status::Red,
        &["hears only 1 of the 3 nodes"],
    );
    check(
        "no store for any",
        |_, view, _| {
            for name in ["n1", "n2", "n3"] {
                seen(view, name).store = StoreView::Down;
            }
        },
        Status::Red,
        &["the store answers no node"],
    );
    check(
        "a deaf node",
        |_, view, _| {
            for link in seen(view, "n3").links.values_mut() {
                link.hears = false;
            }
        },
        Status::Red,
        &["node n3 hears none of the other nodes (n1, n2)"],
    );
    check(
        "an ended certificate",
        |_, _, facts| facts.certificate_days_left = Some(-1),
        Status::Red,
        &["certificate has ended"],
    );
}

#[test]
fn green_during_planned_work() {
    check(
        "slots being moved",
        |map, _, _| {
            for slot in &mut map.slots {
                slot.learner =
                    ["n1", "n2", "n3"].iter().map(|name| member(name)).find(|member| !slot.is_in_sync(member));
            }
        },
        Status::Green,
        &[],
    );
    check(
        "a node that starts",
        |_, view, _| {
            let mut joining = node("n4", &[]);
            joining.state = NodeState::Starting;
            joining.store = StoreView::Down;
            joining.links.insert(id("n1"), LinkView::default());
            view.nodes.insert(id("n4"), joining);
            seen(view, "n1").links.insert(id("n4"), LinkView::default());
        },
        Status::Green,
        &[],
    );
    check(
        "a node that drained and left",
        |_, view, _| {
            let mut gone = node("n4", &[]);
            gone.state = NodeState::Draining;
            gone.alive = false;
            view.nodes.insert(id("n4"), gone);
        },
        Status::Green,
        &[],
    );
}

#[test]
fn without_a_map_red() {
    let (_, view) = cluster(&["n1"]);
    let health = report(None, &view, &FACTS);
    assert_eq!((health.status, health.map_version), (Status::Red, 0));
    assert!(health.reasons[0].contains("no cluster map"));
}

#[test]
fn one_node_alone_is_short_of_copies() {
    let (map, view) = cluster(&["n1"]);
    let health = report(Some(&map), &view, &FACTS);
    assert_eq!(health.status, Status::Yellow);
    assert_eq!(health.reasons, ["12 of 12 slots have fewer than 2 live copies (no more nodes hold them yet)"]);
    assert_eq!(ready(Some(&map), &view, &FACTS), Ok(()));
}

#[test]
fn a_member_never_heard_is_listed() {
    let (map, mut view) = cluster(&["n1", "n2", "n3"]);
    view.nodes.remove(&id("n3"));
    let health = report(Some(&map), &view, &FACTS);
    let missing = health.nodes.iter().find(|node| node.node == id("n3")).unwrap();
    assert_eq!((missing.alive, missing.member, missing.state, missing.generation), (false, true, None, 1));
    assert_eq!(missing.slots.primary, 4);
}

#[test]
fn readiness() {
    #[track_caller]
    fn check(change: Change, reason: Option<&str>) {
        let (mut map, mut view) = cluster(&["n1", "n2", "n3"]);
        let mut facts = FACTS;
        change(&mut map, &mut view, &mut facts);
        match (ready(Some(&map), &view, &facts), reason) {
            (Ok(()), None) => {}
            (Err(given), Some(reason)) => assert!(given.starts_with(reason), "{given}"),
            (given, reason) => panic!("{given:?} instead of {reason:?}"),
        }
    }
    check(|_, _, _| {}, None);
    check(|_, view, _| seen(view, "n1").state = NodeState::Starting, Some("starting"));
    check(|_, view, _| seen(view, "n1").state = NodeState::Draining, Some("draining"));
    check(|_, view, _| seen(view, "n1").load.lag_ms = 500, Some("lagging"));
    check(|_, _, facts| facts.deaf = true, Some("isolated"));
    check(|_, view, _| seen(view, "n2").alive = false, None);
    check(
        |_, view, _| {
            seen(view, "n2").alive = false;
            seen(view, "n3").alive = false;
        },
        Some("isolated: none of n2, n3 is heard"),
    );
    check(
        |_, view, _| {
            for link in seen(view, "n1").links.values_mut() {
                link.hears = false;
            }
        },
        Some("isolated"),
    );
    let (_, view) = cluster(&["n1"]);
    assert!(ready(None, &view, &FACTS).unwrap_err().contains("no cluster map"));
}

#[test]
fn who_is_refused_is_named_with_the_reason() {
    let health = check(
        "a node of another store",
        |_, _, facts| {
            facts.refused = vec![RefusedNode { node: id("n9"), for_s: 40, why: "it is of another store".to_owned() }];
        },
        Status::Yellow,
        &["node n9 wants to join and is refused, for 40 s now: it is of another store"],
    );
    assert_eq!(health.refused.len(), 1);
}

#[test]
fn other_keys_are_a_warning_for_as_long_as_their_node_is_there() {
    check(
        "a keyring of its own",
        |_, _, facts| facts.other_keys = [id("n2"), id("n8")].into(),
        Status::Yellow,
        &["the keyring of this node has other keys than that of n2:"],
    );
    check("a node that has gone", |_, _, facts| facts.other_keys = [id("n8")].into(), Status::Green, &[]);
}

#[test]
fn yellow_for_a_node_that_lives_and_that_no_map_names() {
    let check = |name: &str, is_allotted, words: &[&str]| {
        let (mut map, mut view) = cluster(&["n1", "n2", "n3"]);
        map.members.remove(&id(name));
        for slot in &mut map.slots {
            let others: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|other| *other != name).map(member).collect();
            (slot.primary, slot.in_sync) = (others[0].clone(), others);
        }
        view.me = member("n1");
        assert_eq!(report(Some(&map), &view, &FACTS).status, Status::Green, "it may be about to be named");
        let outside = vec![OutsideNode { member: member(name), for_s: 37, is_allotted }];
        let health = report(Some(&map), &view, &LocalFacts { outside, ..FACTS });
        assert_eq!((health.status, health.reasons.len()), (Status::Yellow, 1), "{:?}", health.reasons);
        for words in words {
            assert!(health.reasons[0].contains(words), "{words:?} is not in {:?}", health.reasons);
        }
    };
    let always = "no cluster map has named it for 37 s (generation 1), so it holds no slots";
    check("n1", true, &["this node is up, and", always, "start it again"]);
    check("n2", true, &["node n2 is up, and", always, "links are down, start it again"]);
    check("n2", false, &["node n2 is up, and", always, "not read in the store", "start it again"]);
}
