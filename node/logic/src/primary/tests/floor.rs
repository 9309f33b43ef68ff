//! Publishes that ask for a number of copies, while there are fewer.

use super::*;
use crate::asking::ATTEMPT_MS;

fn safe(key: u128) -> (GroupName, Publish) {
    let (group, publish) = publish(key);
    (group, Publish { min_copies: 2, ..publish })
}

fn place(answer: Option<&Result<SlotAnswer, SlotError>>) -> (u64, u8) {
    places(answer.expect("an answer"))[0]
}

/// A slot with the two copies `p` and `q`, in which a publish was under way when `q` died.
fn bereft() -> (Bench, Ticket) {
    let mut bench = Bench::new();
    bench.share();
    let registered = bench.ask("g1", register());
    bench.acknowledge();
    assert!(bench.answer(registered).unwrap().is_ok());
    let under_way = bench.ask("g1", safe(5));
    bench.map("p", &["p"]);
    (bench, under_way)
}

#[test]
fn a_publish_under_way_when_a_copy_is_lost_is_answered_when_another_one_has_it() {
    let (mut bench, under_way) = bereft();
    assert_eq!(bench.pushes("g1").len(), 1, "it is delivered when it is committed");
    assert_eq!((bench.answer(under_way), bench.core.held()), (None, 1));
    bench.pass(1_000);
    assert_eq!(bench.answer(under_way), None);
    bench.map("p", &["p", "r"]);
    assert_eq!((place(bench.answer(under_way)), bench.core.held()), ((1, 2), 0));
}

#[test]
fn a_publish_that_finds_no_more_copies_is_of_unknown_outcome() {
    let (mut bench, under_way) = bereft();
    bench.pass(ATTEMPT_MS);
    let unknown = SlotError::NotPrimary { map_version: bench.version, ordered: true };
    assert_eq!((bench.answer(under_way), bench.core.held()), (Some(&Err(unknown)), 0));
}

#[test]
fn below_the_floor_a_new_publish_is_refused_and_a_repeat_is_not() {
    let (mut bench, _) = bereft();
    let refused = Err(SlotError::NotEnoughCopies { copies: 1, min_copies: 2 });
    assert_eq!(bench.answer_to("g2", safe(6)), refused, "certainly not done");
    let repeat = bench.ask("g2", safe(5));
    assert_eq!(bench.answer(repeat), None, "it is done, and fewer copies than it asks for have it");
    let (group, other) = (GroupName::parse("other").unwrap(), safe(5).1);
    assert_eq!(bench.answer_to("g2", (group.clone(), other)), refused, "keys are of one group");
    assert_eq!(bench.core.group_info(&group), None, "what is refused leaves nothing");
    bench.map("p", &["p", "r"]);
    assert_eq!(place(bench.answer(repeat)), (1, 2));
    assert_eq!(bench.pushes("g1").len(), 1, "one message, delivered once");
}

#[test]
fn a_repeat_of_what_is_ordered_and_not_committed_is_not_denied() {
    let three = |key| {
        let (group, publish) = publish(key);
        (group, Publish { min_copies: 3, ..publish })
    };
    let mut bench = Bench::new();
    bench.term += 1;
    bench.map("p", &["p", "q", "s"]);
    let episode = bench.shared_at;
    let first = bench.ask("g1", three(5));
    bench.map("p", &["p", "q"]);
    let (repeat, other) = (bench.ask("g2", three(5)), bench.ask("g2", three(6)));
    assert_eq!([first, repeat, other].map(|ticket| bench.answer(ticket)), [None; 3], "`q` has none of it");
    bench.shared_at = episode;
    bench.acknowledge();
    let refused = Err(SlotError::NotEnoughCopies { copies: 2, min_copies: 3 });
    assert_eq!([first, repeat, other].map(|ticket| bench.answer(ticket)), [None, None, Some(&refused)]);
    bench.map("p", &["p", "q", "r"]);
    assert_eq!([first, repeat].map(|ticket| place(bench.answer(ticket))), [(1, 3); 2]);
}

#[test]
fn who_is_asked_whether_a_publish_is_known_and_is_replaced_has_done_nothing() {
    let mut bench = Bench::new();
    bench.share();
    let (group, publish) = publish(6);
    let asked = bench.ask("g1", (group, Publish { min_copies: 3, ..publish }));
    bench.term += 1;
    bench.map("q", &["p", "q"]);
    let replaced = SlotError::NotPrimary { map_version: bench.version, ordered: false };
    assert_eq!(bench.answer(asked), Some(&Err(replaced)));
}

#[test]
fn who_waits_for_copies_asks_the_next_primary() {
    let (mut bench, under_way) = bereft();
    bench.term += 1;
    bench.map("q", &["p", "q"]);
    let ordered = SlotError::NotPrimary { map_version: bench.version, ordered: true };
    assert_eq!(bench.answer(under_way), Some(&Err(ordered)));
    bench.term += 1;
    bench.map("p", &["p", "q"]);
    bench.acknowledge();
    let repeat = bench.ask("g1", safe(5));
    bench.acknowledge();
    assert_eq!(place(bench.answer(repeat)), (1, 2), "the new primary knows the key from the state");
}

#[test]
fn no_more_publishes_wait_for_copies_than_may_wait_for_their_commit() {
    let (mut bench, _) = bereft();
    let waiting: Vec<_> = (0..SETTINGS.queue).map(|_| bench.ask("g2", safe(5))).collect();
    assert_eq!(bench.core.held(), SETTINGS.queue);
    let told = waiting.iter().filter(|ticket| bench.answer(**ticket).is_some()).count();
    assert_eq!(told, 1, "the last one asks again");
}
