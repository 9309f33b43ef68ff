//! What a primary does when memory is short, where it is alone and where another holds the slot too.

use super::*;
use crate::memory::Level;

const KEEP_MUCH: Retention = Retention { messages: 1_000, bytes: 1 << 20, ..KEEP };

impl Bench {
    fn pressed(&mut self, node: &str, level: Level) {
        self.input(SlotInput::Memory { of: member(node), level });
    }

    fn kept(&self, name: &GroupName) -> Option<u64> {
        Some(self.core.replica().state()?.group(name)?.log.kept())
    }
}

fn publish_to(name: &str, key: u128) -> (GroupName, Publish) {
    let messages = [NewMessage { key: PublishKey(key), data: vec![b'1'; 100].into() }].into();
    (GroupName::parse(name).unwrap(), Publish { messages, from: None, retention: KEEP_MUCH, min_copies: 1 })
}

fn join(name: &str) -> (GroupName, Join) {
    (GroupName::parse(name).unwrap(), Join { member: None, since: None })
}

#[test]
fn the_oldest_messages_of_all_groups_go_by_an_entry_and_their_keys_stay() {
    let mut bench = Bench::new();
    let (a, b) = (GroupName::parse("a").unwrap(), GroupName::parse("b").unwrap());
    for key in 0..64 {
        bench.now_ms += 1;
        let name = if key < 32 { "a" } else { "b" };
        assert!(matches!(bench.answer_to("g1", publish_to(name, key)), Ok(SlotAnswer::Published(_))));
    }
    bench.pass(1_000);
    assert_eq!((bench.kept(&a), bench.kept(&b)), (Some(32), Some(32)));
    bench.pressed("p", Level::Tight);
    bench.out.clear();
    bench.pass(200);
    let shed: Vec<_> = bench.out.iter().filter(|output| matches!(output, SlotOutput::Shed { .. })).collect();
    let bytes = 8 * 300;
    assert_eq!(shed, [&SlotOutput::Shed { messages: 8, bytes }], "an eighth, at most once in two ticks");
    assert_eq!((bench.kept(&a), bench.kept(&b)), (Some(24), Some(32)));
    bench.pass(5_000);
    assert_eq!(bench.kept(&a), Some(0), "the pressure goes on");
    bench.pressed("p", Level::Calm);
    let kept = bench.kept(&b);
    bench.pass(1_000);
    assert_eq!(bench.kept(&b), kept);
    assert!(bench.core.replica().counts_right());
    let again = bench.answer_to("g1", publish_to("a", 0));
    assert_eq!(places(&again), [(1, 1)], "a repeat is recognised, its message gone or not");
}

#[test]
fn at_the_end_of_memory_nothing_is_begun_and_all_else_goes_on() {
    let mut bench = Bench::new();
    assert!(bench.answer_to("g1", publish_to("a", 1)).is_ok());
    bench.ask("g1", (SESSION, CreateSession { record: record() }));
    bench.pressed("p", Level::Full);
    assert_eq!(bench.answer_to("g1", publish_to("a", 2)), Err(SlotError::Full));
    assert_eq!(bench.answer_to("g1", publish_to("new", 3)), Err(SlotError::Full));
    assert_eq!(bench.kept(&GroupName::parse("new").unwrap()), None);
    assert!(bench.answer_to("g1", publish_to("a", 1)).is_ok(), "a repeat is not denied");
    assert_eq!(bench.answer_to("g1", join("new")), Err(SlotError::Full));
    assert!(bench.answer_to("g1", join("a")).is_ok());
    assert!(bench.answer_to("g1", join("@session:7")).is_ok());
    let other = SessionRecord { id: SessionId(Uuid::from_u128(8)), ..record() };
    assert_eq!(bench.answer_to("g1", (other.id, CreateSession { record: other })), Err(SlotError::Full));
    bench.pressed("p", Level::Tight);
    assert!(bench.answer_to("g1", publish_to("a", 2)).is_ok());
}

#[test]
fn a_primary_spares_who_holds_the_slot_with_it() {
    let mut bench = Bench::new();
    bench.share();
    bench.pressed("q", Level::Full);
    let refused = bench.ask("g1", publish_to("a", 1));
    bench.acknowledge();
    assert_eq!(bench.answer(refused), Some(&Err(SlotError::Full)));
    bench.pressed("q", Level::Calm);
    let taken = bench.ask("g1", publish_to("a", 1));
    bench.acknowledge();
    assert!(matches!(bench.answer(taken), Some(Ok(_))));
    bench.pressed("stranger", Level::Full);
    let taken = bench.ask("g1", publish_to("a", 2));
    bench.acknowledge();
    assert!(matches!(bench.answer(taken), Some(Ok(_))), "what others lack is nothing to this slot");
}

#[test]
fn an_empty_group_is_forgotten_sooner_when_memory_is_short() {
    let mut bench = Bench::new();
    let brief = Retention { age_ms: 100, window_ms: 100, ..KEEP };
    let there = |bench: &Bench| bench.kept(&group()).is_some();
    let (name, publish) = publish(1);
    assert!(bench.answer_to("g1", (name, Publish { retention: brief, ..publish })).is_ok());
    bench.pressed("p", Level::Tight);
    bench.pass(SETTINGS.group_idle_tight_ms / 2);
    assert!(there(&bench));
    bench.pass(15_000);
    assert!(!there(&bench));
    assert_eq!(bench.core.replica().held_bytes().state.total(), 0);
}

#[test]
fn a_slot_asks_for_ticks_where_something_can_be_due_and_not_otherwise() {
    let mut bench = Bench::new();
    assert_eq!(bench.core.due_ms(), None, "it is empty");
    assert!(bench.answer_to("g1", register()).is_ok());
    let looks_ms = bench.now_ms + 500;
    assert!(bench.core.due_ms().is_some_and(|due_ms| due_ms <= looks_ms), "who follows may be gone");
    bench.pass(1_000);
    assert!(bench.core.due_ms().is_some_and(|due_ms| bench.now_ms < due_ms), "but not at every tick");
    bench.pressed("p", Level::Tight);
    assert_eq!(bench.core.due_ms(), Some(0), "something is to be dropped");
}
