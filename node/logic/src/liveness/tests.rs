use super::*;
use crate::plan::Life;

const LOOK_MS: u64 = 200;
const SETTINGS: LivenessSettings = LivenessSettings { look_ms: LOOK_MS, quiet_ms: 600 };

pub(crate) fn member(text: &str) -> Member {
    let (node, generation) = text.split_once('#').unwrap();
    Member { node: NodeId::parse(node).unwrap(), generation: generation.parse().unwrap() }
}

fn at(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: 0 }
}

/// `n1#1` is there and serves; `:dead`, `:starting`, `:draining`, `:nostore`, `:unlinked`, `:map7`, `:answers9`.
fn sign(text: &str) -> Sign {
    let mut parts = text.split(':');
    let mut sign = Sign {
        member: member(parts.next().unwrap()),
        says: Says { life: Life::Serving, zone: String::new(), store_up: true, map_version: 0 },
        heartbeat: 0,
        live: true,
        linked: true,
        answers: None,
    };
    for part in parts {
        match part {
            "dead" => sign.live = false,
            "starting" => sign.says.life = Life::Starting,
            "draining" => sign.says.life = Life::Draining,
            "nostore" => sign.says.store_up = false,
            "unlinked" => sign.linked = false,
            "beats" => sign.heartbeat = 1,
            _ => match (part.strip_prefix("map"), part.strip_prefix("answers")) {
                (Some(version), _) => sign.says.map_version = version.parse().unwrap(),
                (_, Some(count)) => sign.answers = Some(count.parse().unwrap()),
                _ => panic!("{part}"),
            },
        }
    }
    sign
}

fn signs(text: &str) -> Vec<Sign> {
    text.split_whitespace().map(sign).collect()
}

/// The judge of `n1#1`, at its looks.
pub(crate) struct Judge {
    liveness: Liveness,
    /// The store is asked of each start that is shown, and has it.
    is_allotted: bool,
    now_ms: u64,
    out: Vec<LivenessOutput>,
}

impl Judge {
    pub(crate) fn new() -> Self {
        let liveness = Liveness::new(member("n1#1"), SETTINGS, at(0));
        Self { liveness, is_allotted: true, now_ms: 0, out: Vec::new() }
    }

    /// With a map that names these nodes.
    fn of(members: &str) -> Self {
        let mut judge = Self::new();
        judge.learns(&map(members));
        judge
    }

    pub(crate) fn learns(&mut self, map: &ClusterMap) {
        self.liveness.handle(at(self.now_ms), LivenessInput::Map(Arc::new(map.clone())), &mut self.out);
    }

    fn store_has(&mut self, members: &str) {
        let allotted = members.split_whitespace().map(|text| (member(text).node, member(text).generation));
        let input = LivenessInput::Generations(allotted.collect());
        self.liveness.handle(at(self.now_ms), input, &mut self.out);
    }

    fn shows(&mut self, after_ms: u64, input: LivenessInput) -> SharedPicture {
        self.now_ms += after_ms;
        self.out.clear();
        if let LivenessInput::Look(signs) | LivenessInput::Glance(signs) = &input
            && self.is_allotted
        {
            let shown: Vec<_> = signs.iter().map(|sign| sign.member.to_string()).collect();
            self.store_has(&shown.join(" "));
        }
        self.liveness.handle(at(self.now_ms), input, &mut self.out);
        self.liveness.shown().clone()
    }

    /// The next look.
    pub(crate) fn looks(&mut self, signs_text: &str) -> SharedPicture {
        self.shows(LOOK_MS, LivenessInput::Look(signs(signs_text)))
    }

    fn looks_late(&mut self, signs_text: &str) -> SharedPicture {
        self.shows(4 * LOOK_MS, LivenessInput::Look(signs(signs_text)))
    }

    fn glances(&mut self, signs_text: &str) -> SharedPicture {
        self.shows(0, LivenessInput::Glance(signs(signs_text)))
    }

    fn may_change(&mut self, map: &ClusterMap, signs_text: &str) -> bool {
        let now_ms = self.now_ms;
        self.glances(signs_text).may_change(map, now_ms)
    }
}

/// The first of them has all slots.
pub(crate) fn map(members: &str) -> ClusterMap {
    let members: Vec<_> = members.split_whitespace().map(member).collect();
    let mut map = ClusterMap::first(&members[0], 4);
    map.members = members.iter().map(|member| (member.node.clone(), member.generation)).collect();
    map
}

fn standing(picture: &Picture, of: &str) -> &'static str {
    let member = member(of);
    match (picture.is_alive(&member), picture.is_dead(&member)) {
        (true, false) => "alive",
        (false, true) => "dead",
        (false, false) => "missing",
        (true, true) => panic!("{of} is alive and dead"),
    }
}

/// Looks at `n2#1` at intervals, with what they show; a `~` before it stands for a glance in between, a `…` for a late look.
fn check(looks: &[(&str, &str)]) {
    let mut judge = Judge::of("n2#1");
    for (number, (shown, expected)) in looks.iter().enumerate() {
        let picture = match (shown.strip_prefix('~'), shown.strip_prefix('…')) {
            (Some(shown), _) => judge.glances(shown),
            (_, Some(shown)) => judge.looks_late(shown),
            _ => judge.looks(shown),
        };
        assert_eq!(standing(&picture, "n2#1"), *expected, "look {number}: {shown}");
        let facts = &picture.facts(&map("n2#1"))[&member("n2#1").node];
        assert_eq!((facts.alive, facts.suspect), (*expected != "dead", *expected != "alive"), "look {number}");
        assert_eq!(picture.alive().contains(&member("n2#1")), *expected == "alive", "look {number}");
    }
}

#[test]
fn life_shows_at_once_and_death_takes_looks() {
    check(&[("n2#1:dead", "missing"), ("~n2#1", "alive"), ("n2#1", "alive")]);
    check(&[("n2#1", "alive"), ("n2#1:dead", "alive"), ("n2#1", "alive"), ("n2#1:dead", "alive")]);
    check(&[("n2#1", "alive"), ("n2#1:dead", "alive"), ("n2#1:dead", "missing"), ("n2#1", "alive")]);
    check(&[("n2#1", "alive"), ("n2#1:dead", "alive"), ("n2#1:dead", "missing"), ("n2#1:dead", "dead"), ("", "dead")]);
    // Glances find nobody missing, however many there are.
    check(&[("n2#1", "alive"), ("~n2#1:dead", "alive"), ("~n2#1:dead", "alive"), ("~n2#1:dead", "alive")]);
    // Neither do the looks of a node that stood still.
    check(&[
        ("n2#1", "alive"),
        ("n2#1:dead", "alive"),
        ("…n2#1:dead", "alive"),
        ("n2#1:dead", "alive"),
        ("n2#1:dead", "alive"),
        ("n2#1:dead", "alive"),
        ("n2#1:dead", "alive"),
        ("n2#1:dead", "missing"),
        ("n2#1:dead", "dead"),
        // Who was dead has to be missed anew.
        ("…n2#1:dead", "missing"),
    ]);
}

#[test]
fn no_link_and_no_heartbeat_for_a_second_is_no_life() {
    let mut looks = vec![("n2#1:unlinked", "alive"); 7];
    looks.extend([("n2#1:unlinked", "missing"), ("n2#1:unlinked", "dead"), ("n2#1", "alive")]);
    check(&looks);
    check(&[("n2#1", "alive"); 20]);
    let mut looks = vec![("n2#1:unlinked", "alive"); 6];
    looks.extend([("n2#1:unlinked:beats", "alive"); 7]);
    looks.push(("n2#1:unlinked:beats", "missing"));
    check(&looks);
}

#[test]
fn a_node_never_heard_of_is_given_time() {
    let mut looks = vec![("n1#1", "missing"); UNHEARD_LOOKS as usize - 1];
    looks.push(("n1#1", "dead"));
    // An older start of it is no sign of life of this one, a newer one shows that it is gone.
    looks.extend([("n1#1 n2#0", "dead"), ("n1#1 n2#1", "alive")]);
    check(&looks);
    let picture = Judge::of("n2#1").looks("n1#1 n2#2");
    assert_eq!((standing(&picture, "n2#1"), standing(&picture, "n2#2")), ("dead", "alive"));
    let picture = Judge::of("n2#7").looks("n1#1 n2#6");
    assert_eq!((standing(&picture, "n2#6"), standing(&picture, "n2#7")), ("dead", "missing"));
    // Of one that only another map tells of nothing is known.
    let picture = Judge::new().looks("n1#1 n2#6");
    let facts = &picture.facts(&map("n2#7"))[&member("n2#7").node];
    assert!(facts.generation == 7 && facts.alive && facts.suspect);
}

#[test]
fn a_node_is_sure_of_itself() {
    let picture = Judge::of("n1#1").looks("");
    assert!(picture.is_alive(&member("n1#1")) && picture.alive().len() == 1);
    let mut judge = Judge::of("n1#2");
    for _ in 0..=UNHEARD_LOOKS {
        let picture = judge.looks("n1#1");
        assert!(picture.alive().contains(&member("n1#1")));
        assert_ne!(picture.steward(), Some(&member("n1#1").node), "the map counts on a later start");
    }
}

#[test]
fn what_has_changed_is_told() {
    let mut judge = Judge::new();
    let alive = |judge: &Judge| {
        judge.out.iter().find_map(|output| match output {
            LivenessOutput::Alive(alive) => Some(alive.iter().map(|member| member.to_string()).collect::<Vec<_>>()),
            _ => None,
        })
    };
    judge.looks("n1#1 n2#1");
    assert_eq!(alive(&judge), Some(vec!["n1#1".to_owned(), "n2#1".to_owned()]));
    judge.looks("n1#1 n2#1");
    assert!(alive(&judge).is_none() && matches!(judge.out[..], [LivenessOutput::Picture(_)]), "{:?}", judge.out);
    judge.glances("n1#1 n2#1");
    assert_eq!(judge.out, []);
    judge.glances("n1#1 n2#1:map3");
    assert!(matches!(judge.out[..], [LivenessOutput::Picture(_)]), "{:?}", judge.out);
    let picture = judge.looks_late("n1#1 n2#1");
    assert!(judge.out.contains(&LivenessOutput::StoodStill(4 * LOOK_MS)) && picture.doubts);
    assert!(picture.is_good(judge.now_ms) && !picture.is_good(judge.now_ms + 4 * LOOK_MS));
    // A glance makes it no younger.
    judge.now_ms += 2 * LOOK_MS;
    assert_eq!(judge.glances("n1#1 n2#2").good_until_ms, picture.good_until_ms);
}

#[test]
fn the_steward_is_the_first_that_can() {
    for (nodes, expected) in [
        ("n1#1 n2#1", Some("n1")),
        ("n1#1:dead n2#1 n3#1", Some("n1")),
        ("n1#1 n0#1:dead n3#1", Some("n1")),
        ("n1#1:draining n2#1:starting", Some("n2")),
        ("n1#1:draining", Some("n1")),
        ("n1#1:nostore n2#1:draining", Some("n2")),
        ("n1#1:nostore n2#1:nostore", Some("n1")),
        ("n0#1 n1#1", Some("n0")),
        ("", None),
    ] {
        assert_eq!(Judge::new().looks(nodes).steward().map(NodeId::as_str), expected, "{nodes}");
    }
}

#[test]
fn who_says_that_it_knows_a_newer_map_is_told_of() {
    for (nodes, version, expected) in [
        ("n1#1:map9 n2#1:map3 n3#1:map4", 2, &[("n2#1", 3), ("n3#1", 4)][..]),
        ("n1#1 n2#1:map3 n3#1:map4", 4, &[]),
        ("n1#1 n2#1:map3 n3#1:map4:dead", 2, &[("n2#1", 3)]),
    ] {
        let expected: Vec<_> = expected.iter().map(|(text, version)| (member(text), *version)).collect();
        assert_eq!(Judge::new().looks(nodes).know_more(version).collect::<Vec<_>>(), expected, "{nodes}");
    }
}

/// Gossip tells of later starts of the nodes of the map, which the store has not allotted.
#[test]
fn a_start_counts_when_the_store_has_it() {
    let three = map("n1#1 n2#5 n3#5");
    let mut judge = Judge::of("n1#1 n2#5 n3#5");
    judge.is_allotted = false;
    let lies = "n1#1 n2#5 n2#1099511627776 n3#1099511627776 n3#5 n4#7";
    let asked = |picture: &Picture| picture.to_ask().map(NodeId::to_string).collect::<Vec<_>>();
    for _ in 0..2 * UNHEARD_LOOKS {
        let picture = judge.looks(lies);
        for living in ["n2#5", "n3#5", "n4#7"] {
            assert_eq!(standing(&picture, living), "alive", "{living}");
        }
        let facts = picture.facts(&three);
        let of = |text: &str| facts.get(&member(text).node).map(|facts| (facts.generation, facts.alive, facts.suspect));
        assert_eq!([of("n2#5"), of("n3#5"), of("n4#7")], [Some((5, true, false)), Some((5, true, false)), None]);
        assert_eq!(asked(&picture), ["n2", "n3", "n4"]);
        // The store was asked, and knows of no such start.
        judge.store_has("n2#5 n3#5");
    }
    judge.store_has("n4#7 n3#6");
    let picture = judge.looks(lies);
    assert!(picture.is_lost(&member("n3#5")) && !picture.is_lost(&member("n2#5")));
    assert_eq!(picture.facts(&three)[&member("n4#7").node].generation, 7);
    // Nothing goes back.
    judge.store_has("n3#4");
    assert_eq!(judge.looks(lies).generation(&member("n3#6").node), Some(6));
    // One that is not heard, and of which nothing is told, is asked about too.
    let mut judge = Judge::of("n1#1 n2#5");
    judge.is_allotted = false;
    assert_eq!(asked(&judge.looks("n1#1")), ["n2"]);
}

#[test]
fn who_is_there_by_hearsay_alone_proposes_nothing_and_gets_nothing() {
    let mut judge = Judge::of("n1#1 n2#1");
    let picture = judge.looks("n0#3:unlinked n1#1 n2#1");
    assert_eq!(picture.steward(), Some(&member("n1#1").node));
    assert!(picture.is_alive(&member("n0#3")) && picture.facts(&map("n1#1 n2#1"))[&member("n0#3").node].suspect);
    assert!(!picture.facts(&map("n1#1 n0#3"))[&member("n0#3").node].suspect, "it is in the map, and others reach it");
    judge.is_allotted = false;
    let picture = judge.looks("n0#3 n00#9 n1#1 n2#1");
    assert_eq!(picture.steward(), Some(&member("n0#3").node), "there is a link with it, and not allotted is n00#9");
}

#[test]
fn who_hears_fewer_than_half_lets_the_others_go_first() {
    let three = map("n1#1 n2#1 n3#1");
    let all = "n1#1 n2#1 n3#1";
    // Who is not in the map is no help.
    for few in ["n1#1 n2#1:dead n3#1:dead", "n1#1", "n1#1 n2#1:dead n3#1:dead n4#1 n5#1"] {
        let mut judge = Judge::of("n1#1 n2#1 n3#1");
        for _ in 0..2 {
            judge.looks(all);
            judge.looks(few);
            assert!(judge.may_change(&three, few), "one look that missed them is none");
            for _ in 0..LOOKS_OF_FEW {
                judge.looks(few);
                let waits = judge.liveness.few < LOOKS_OF_FEW;
                assert_eq!(judge.may_change(&three, few), !waits, "{few}");
            }
            assert!(judge.may_change(&three, few), "{few}");
            assert!(judge.may_change(&three, all), "{few}");
        }
        for _ in 0..GONE_LOOKS + LOOKS_OF_FEW {
            judge.looks(few);
        }
        judge.looks_late(few);
        assert!(!judge.may_change(&three, few), "what it missed does not count");
    }
    let mut judge = Judge::of("n1#1 n2#1 n3#1");
    judge.looks(all);
    for _ in 0..5 {
        judge.looks("n1#1 n2#1 n3#1:dead");
        assert!(judge.may_change(&three, "n1#1 n2#1 n3#1:dead"), "two of three are enough");
    }
    // One of two is not fewer than half: the other of a pair may be waited for in vain.
    let mut judge = Judge::of("n1#1 n2#1");
    judge.looks("n1#1");
    assert!(judge.may_change(&map("n1#1 n2#1"), "n1#1"));
}

/// Gossip still takes them for alive, but no answer comes from them any more.
#[test]
fn who_does_not_answer_is_not_heard() {
    let three = map("n1#1 n2#1 n3#1");
    let mut judge = Judge::of("n1#1 n2#1 n3#1");
    let mut listens = |two: &str, three_: &str, after_ms: u64| {
        let text = format!("n1#1 n2#1:{two} n3#1:{three_}");
        let picture = judge.shows(after_ms, LivenessInput::Look(signs(&text)));
        (picture, judge.now_ms)
    };
    let may = |(picture, now_ms): (SharedPicture, u64)| picture.may_change(&three, now_ms);
    assert!(may(listens("answers7", "answers7", 200)));
    assert!(may(listens("answers7", "answers8", 600)));
    assert!(may(listens("answers7", "answers8", 600)), "one is quiet");
    let (picture, now_ms) = listens("answers7", "answers8", 0);
    assert!(!picture.may_change(&three, now_ms + 1), "both are, before the next look tells");
    assert!(!may(listens("answers7", "answers8", 200)), "both are");
    assert!(may(listens("answers1", "answers8", 200)), "a new connection to one of them");
}

/// Looks with what they show, and who is outside after them, since when.
#[test]
fn who_is_there_and_no_map_names_is_told() {
    let mut judge = Judge::new();
    judge.is_allotted = false;
    let outside = |picture: &Picture| -> Vec<String> {
        let told = picture.outside.iter();
        told.map(|(node, outside)| format!("{node}#{} {}", outside.generation, outside.since_ms)).collect()
    };
    assert_eq!(outside(&judge.looks("n1#1 n2#1")), [""; 0], "there is no map");
    judge.learns(&map("n1#1 n2#1"));
    let all = "n1#1 n2#1 n3#1 n4#1:draining n5#1:unlinked n6#1:dead n7#1:starting";
    assert_eq!(
        outside(&judge.looks(all)),
        ["n3#1 400", "n7#1 400"],
        "who leaves and who is hearsay are not to be there"
    );
    assert_eq!(outside(&judge.looks(all)), ["n3#1 400", "n7#1 400"]);
    assert_eq!(
        outside(&judge.looks("n1#1 n2#1:dead n2#2 n3#1")),
        ["n2#2 800", "n3#1 400"],
        "the map names another start"
    );
    assert_eq!(outside(&judge.looks("n1#1 n2#1 n2#2 n3#2")), ["n3#2 1000"], "the start that the map names lives");
    judge.learns(&map("n2#2 n3#2"));
    assert_eq!(outside(&judge.glances("n1#1 n2#2 n3#2")), ["n1#1 1000"], "this node itself");
    judge.learns(&map("n1#1 n2#2 n3#2"));
    assert_eq!(outside(&judge.looks("n1#1 n2#2 n3#2")), [""; 0]);
}
