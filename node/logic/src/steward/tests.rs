use super::*;
use crate::{
    liveness::tests::{Judge, member},
    map::SlotAssignment,
};

const SETTINGS: StewardSettings = StewardSettings { slots: 8, copies: 2, max_moves: 8 };
const LOOK_MS: u64 = 200;

/// A steward beside its judge, and what it was told to do. Time passes with the looks.
struct Node {
    judge: Judge,
    steward: Steward,
    now_ms: u64,
    out: Vec<StewardOutput>,
}

impl Node {
    /// It has read that there is this map.
    fn with(map: Option<ClusterMap>) -> Self {
        let (judge, steward) = (Judge::new(), Steward::new(member("n1#1"), SETTINGS));
        let mut node = Self { judge, steward, now_ms: 0, out: Vec::new() };
        node.is_told(StewardInput::Wake);
        assert_eq!(node.out, [StewardOutput::ReadMap]);
        node.is_told(StewardInput::Read(Ok(map)));
        node
    }

    fn is_told(&mut self, input: StewardInput) {
        self.out.clear();
        self.steward.handle(Now { mono_ms: self.now_ms, wall_ms: 0 }, input, &mut self.out);
    }

    /// A look, and what comes of it.
    fn looks(&mut self, signs: &str) -> &[StewardOutput] {
        self.now_ms += LOOK_MS;
        if let Some(map) = &self.steward.map {
            self.judge.learns(&map.clone());
        }
        let picture = self.judge.looks(signs);
        self.is_told(StewardInput::Picture(picture));
        assert_eq!(self.out, [], "what comes together is looked at together");
        self.now_ms += GATHER_MS;
        self.is_told(StewardInput::Wake);
        self.now_ms -= GATHER_MS;
        &self.out
    }

    /// A look that makes it propose, for its answer.
    fn proposes(&mut self, signs: &str) -> (u64, SharedMap) {
        match self.looks(signs) {
            [StewardOutput::ChangeMap { expected, next }] => (*expected, next.clone()),
            other => panic!("it proposes nothing: {other:?}"),
        }
    }

    fn is_answered(&mut self, result: Result<MapChange, &str>) -> Vec<StewardOutput> {
        self.is_told(StewardInput::Changed(result.map_err(str::to_owned)));
        self.out.clone()
    }

    /// Whether it says that it failed; then it asks nothing until it may.
    fn backs_off(&mut self, expected_ms: u64) {
        let [StewardOutput::Failed { retry_ms, .. }] = &self.out[..] else { panic!("{:?}", self.out) };
        assert_eq!(*retry_ms, expected_ms);
    }
}

fn map_of(text: &str) -> ClusterMap {
    let mut map = crate::liveness::tests::map(text);
    map.slots.resize(usize::from(SETTINGS.slots), map.slots[0].clone());
    map
}

/// One map with all slots on `n1#1` and `n2#1`, led by the first of these two that is named.
fn shared(primary: &str) -> ClusterMap {
    let mut map = map_of("n1#1 n2#1");
    for slot in &mut map.slots {
        (slot.primary, slot.in_sync) = (member(primary), vec![member("n1#1"), member("n2#1")]);
    }
    map
}

#[test]
fn the_first_map_is_the_stewards() {
    let mut node = Node::with(None);
    assert_eq!(node.looks("n0#1 n1#1:starting"), []);
    let (expected, next) = node.proposes("n1#1:starting");
    assert_eq!((expected, &*next), (0, &ClusterMap::first(&member("n1#1"), SETTINGS.slots)));
    let told = node.is_answered(Ok(MapChange::Applied));
    assert_eq!(told, [StewardOutput::Learned(next.clone()), StewardOutput::Announce(next)]);
}

#[test]
fn only_the_steward_proposes_and_only_where_there_is_something_to_do() {
    for (signs, looks, expected) in [
        ("n1#1 n2#1", 5, false),
        ("n0#1 n1#1 n2#1:dead", 5, false),
        ("n1#1 n2#1:dead", 2, false),
        ("n1#1 n2#1:dead", 3, true),
    ] {
        let mut node = Node::with(Some(shared("n2#1")));
        // A node that leads nothing is handed some slots.
        node.looks("n1#1 n2#1");
        node.is_answered(Ok(MapChange::Conflict(Some(shared("n2#1")))));
        let mut made = Vec::new();
        for _ in 0..looks {
            made.extend(node.looks(signs).to_vec());
            node.is_answered(Ok(MapChange::Conflict(Some(shared("n2#1")))));
        }
        let takes_over = |slot: &SlotAssignment| slot.in_sync == [member("n1#1")];
        let took = made.iter().any(|output| match output {
            StewardOutput::ChangeMap { next, .. } => next.slots.iter().all(takes_over),
            _ => false,
        });
        assert_eq!(took, expected, "{signs}, {looks} looks");
    }
}

#[test]
fn nothing_is_proposed_on_a_picture_that_is_old_or_doubted() {
    let propose = |late_ms: u64, doubts: bool| {
        let mut node = Node::with(Some(map_of("n1#1")));
        let mut picture = (*node.judge.looks("n1#1 n2#1")).clone();
        picture.doubts = doubts;
        node.now_ms = LOOK_MS;
        node.is_told(StewardInput::Picture(Arc::new(picture)));
        node.now_ms += late_ms;
        node.is_told(StewardInput::Wake);
        !node.out.is_empty()
    };
    assert_eq!([propose(20, false), propose(20, true), propose(700, false)], [true, false, false]);
}

#[test]
fn one_thing_at_a_time_is_asked_of_the_store() {
    let mut node = Node::with(Some(map_of("n1#1")));
    node.proposes("n1#1 n2#1");
    assert!(node.steward.is_changing());
    for _ in 0..10 {
        assert_eq!(node.looks("n1#1 n2#1"), []);
    }
    node.is_answered(Ok(MapChange::Applied));
    assert!(!node.steward.is_changing());
    node.proposes("n1#1 n2#1 n3#1");
}

/// What comes of an answer: whether the map is read next, and after how many milliseconds anything is asked.
#[test]
fn answers_of_the_store() {
    let older = || ClusterMap { version: 0, ..map_of("n1#1") };
    let newer = || ClusterMap { version: 9, ..map_of("n1#1") };
    for (answer, reads, back_off_ms, learns) in [
        (Ok(MapChange::Applied), false, 0, Some(2)),
        (Ok(MapChange::Conflict(Some(newer()))), false, 0, Some(9)),
        (Ok(MapChange::Conflict(Some(older()))), false, BACK_OFF_MS, None),
        (Ok(MapChange::Conflict(None)), false, BACK_OFF_MS, None),
        (Ok(MapChange::Unknown), true, 0, None),
        (Err("down"), true, BACK_OFF_MS, None),
    ] {
        let mut node = Node::with(Some(map_of("n1#1")));
        node.proposes("n1#1 n2#1");
        let told = node.is_answered(answer.clone());
        let learnt = told.iter().find_map(|output| match output {
            StewardOutput::Learned(map) => Some(map.version),
            _ => None,
        });
        assert_eq!(learnt, learns, "{answer:?}");
        assert_eq!(node.steward.must_read, reads, "{answer:?}");
        assert_eq!(node.steward.not_before_ms.saturating_sub(node.now_ms), back_off_ms, "{answer:?}");
        if reads {
            assert_eq!(node.looks("n1#1 n2#1"), [StewardOutput::ReadMap], "{answer:?}");
        }
    }
}

#[test]
fn a_change_of_unknown_outcome_is_read_back() {
    let unknown = || {
        let mut node = Node::with(Some(map_of("n1#1")));
        let (_, next) = node.proposes("n1#1 n2#1");
        node.is_answered(Ok(MapChange::Unknown));
        assert_eq!(node.looks("n1#1 n2#1"), [StewardOutput::ReadMap]);
        (node, next)
    };
    let (mut made, next) = unknown();
    made.is_told(StewardInput::Read(Ok(Some((*next).clone()))));
    assert_eq!(made.out, [StewardOutput::Learned(next.clone()), StewardOutput::Announce(next)], "it was made");
    let (mut not_made, _) = unknown();
    not_made.is_told(StewardInput::Read(Ok(Some(map_of("n1#1")))));
    not_made.backs_off(BACK_OFF_MS);
    let (mut gone, _) = unknown();
    gone.is_told(StewardInput::Read(Ok(None)));
    gone.backs_off(BACK_OFF_MS);
    // Until the store can be read, it is read, each time after a longer pause.
    let (mut down, _) = unknown();
    for expected_ms in [100, 200, 400, 800, 1_600, 3_000, 3_000] {
        down.is_told(StewardInput::Read(Err("down".to_owned())));
        down.backs_off(expected_ms);
        down.now_ms += expected_ms;
        assert_eq!(down.looks("n1#1 n2#1").last(), Some(&StewardOutput::ReadMap));
    }
}

#[test]
fn a_node_that_leaves_proposes_nothing() {
    let mut node = Node::with(Some(shared("n2#1")));
    node.proposes("n1#1 n2#1");
    node.is_told(StewardInput::Retire);
    node.is_answered(Ok(MapChange::Unknown));
    for _ in 0..50 {
        assert_eq!(node.looks("n1#1 n2#1:dead"), []);
    }
}

#[test]
fn what_the_steward_is_not_told_another_one_does() {
    let mut node = Node::with(Some(shared("n2#1")));
    let drop = MapRequest::Drop { slot: 3, member: member("n1#1"), changed_at: 1 };
    let mut waited_ms = 0;
    // By gossip the steward lives, but this node's primary does not reach it.
    while node.looks("n0#1 n1#1 n2#1").is_empty() {
        node.is_told(StewardInput::Requested { from: member("n2#1"), requests: vec![drop.clone()] });
        waited_ms += LOOK_MS;
        assert!(waited_ms < 3_000);
    }
    let [StewardOutput::ChangeMap { next, .. }] = &node.out[..] else { panic!("{:?}", node.out) };
    assert_eq!((waited_ms, &next.slots[3].in_sync[..]), (1_600, &[member("n2#1")][..]));
}

#[test]
fn what_another_than_the_primary_asks_is_not_done() {
    let mut node = Node::with(Some(shared("n2#1")));
    node.looks("n0#1 n1#1 n2#1 n3#1");
    let requests = (0..SETTINGS.slots).flat_map(|slot| {
        let (member, changed_at) = (member("n1#1"), 1);
        [
            MapRequest::Drop { slot, member: member.clone(), changed_at },
            MapRequest::Promote { slot, learner: member, changed_at },
        ]
    });
    let requests: Vec<_> = requests.collect();
    for _ in 0..20 {
        node.is_told(StewardInput::Requested { from: member("n3#1"), requests: requests.clone() });
        assert_eq!(node.looks("n0#1 n1#1 n2#1 n3#1"), [], "what is not done is overdue, and then any node does it");
    }
}

#[test]
fn another_number_of_slots_is_told() {
    let mut node = Node::with(None);
    node.is_told(StewardInput::Map(Arc::new(ClusterMap::first(&member("n2#1"), 64))));
    assert_eq!(node.out, [StewardOutput::WrongSlots { has: 64 }]);
}

fn ask_to_forget(node: &mut Node, name: &str) -> Result<Member, ForgetError> {
    node.is_told(StewardInput::Forget { ticket: 7, node: member(name).node });
    match node.out.pop() {
        Some(StewardOutput::Forgotten { ticket: 7, result }) => result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_operators_word_frees_slots_of_the_dead() {
    assert_eq!(ask_to_forget(&mut Node::with(None), "n2#1"), Err(ForgetError::NoMap));
    // n2 has everything, alone.
    let mut node = Node::with(Some(map_of("n2#4 n1#1")));
    let n2 = member("n2#4").node;
    assert_eq!(ask_to_forget(&mut node, "n9#1"), Err(ForgetError::HoldsNothing(member("n9#1").node)));
    assert_eq!(ask_to_forget(&mut node, "n2#4"), Err(ForgetError::NotSure(n2.clone())));
    node.looks("n1#1 n2#4");
    node.is_answered(Err("down"));
    assert_eq!(ask_to_forget(&mut node, "n2#4"), Err(ForgetError::Alive(n2.clone())));
    node.looks("n1#1 n2#5");
    assert_eq!(ask_to_forget(&mut node, "n2#4"), Err(ForgetError::CameBack(n2, 5)));

    // A word that is given while another node is steward counts when this one is.
    let mut node = Node::with(Some(map_of("n2#4 n1#1")));
    for signs in ["n0#1 n1#1 n2#4", "n0#1 n1#1 n2#4:dead", "n0#1 n1#1 n2#4:dead", "n0#1 n1#1 n2#4:dead"] {
        assert_eq!(node.looks(signs), []);
    }
    assert_eq!(ask_to_forget(&mut node, "n2#4"), Ok(member("n2#4")));
    assert_eq!(node.looks("n0#1:dead n1#1 n2#4:dead"), []);
    let (_, next) = node.proposes("n0#1:dead n1#1 n2#4:dead");
    assert!(next.slots.iter().all(|slot| (&slot.primary, slot.lineage, slot.term) == (&member("n1#1"), 2, 2)));
    // It does not count for one that has come back.
    node.looks("n1#1 n2#4");
    assert!(node.steward.forgotten.is_empty());
}
