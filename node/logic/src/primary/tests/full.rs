//! Publishes for which the queue of a slot has no room.

use super::*;

fn place(answer: Result<SlotAnswer, SlotError>) -> (u64, u8) {
    places(&answer)[0]
}

/// The keys of those that wait for `q`, which is all that the queue takes.
const UNDER_WAY: std::ops::Range<u128> = 100..100 + SETTINGS.queue as u128;

/// A slot with the two copies `p` and `q`, in which the publish with the key 5 is done and the queue is full.
fn stuck() -> Bench {
    let mut bench = Bench::new();
    bench.share();
    let done = bench.ask("g1", publish(5));
    bench.acknowledge();
    assert_eq!(place(bench.answer(done).unwrap().clone()), (1, 2));
    for key in UNDER_WAY {
        bench.ask("g1", publish(key));
    }
    assert_eq!(bench.core.replica().uncommitted(), SETTINGS.queue);
    bench
}

#[test]
fn a_repeat_is_told_its_place_though_the_queue_is_full() {
    let mut bench = stuck();
    assert_eq!(bench.answer_to("g2", publish(6)), Err(SlotError::Busy), "it would have to be ordered");
    assert_eq!(place(bench.answer_to("g2", publish(5))), (1, 2));
    let other = (GroupName::parse("other").unwrap(), publish(5).1);
    assert_eq!(bench.answer_to("g2", other), Err(SlotError::Busy), "keys are of one group");
    assert_eq!(bench.core.replica().uncommitted(), SETTINGS.queue, "nothing more is ordered");
}

#[test]
fn a_repeat_of_what_waits_in_a_full_queue_is_left_open() {
    let mut bench = stuck();
    let open = SlotError::NotPrimary { map_version: bench.version, ordered: true };
    let last = UNDER_WAY.end - 1;
    assert_eq!(bench.answer_to("g2", publish(last)), Err(open), "it may be done");
    let other = (GroupName::parse("other").unwrap(), publish(last).1);
    assert_eq!(bench.answer_to("g2", other), Err(SlotError::Busy), "keys are of one group");
    bench.acknowledge();
    let again = bench.ask("g2", publish(last));
    bench.acknowledge();
    assert_eq!(place(bench.answer(again).unwrap().clone()), (1 + SETTINGS.queue as u64, 2));
}

#[test]
fn a_repeat_that_too_few_copies_have_waits_though_the_queue_is_full() {
    let mut bench = stuck();
    let (group, twice) = publish(5);
    let thrice = bench.ask("g2", (group, Publish { min_copies: 3, ..twice }));
    assert_eq!((bench.answer(thrice), bench.core.held()), (None, 1));
    bench.map("p", &["p", "q", "r"]);
    assert_eq!(place(bench.answer(thrice).unwrap().clone()), (1, 3));
}

#[test]
fn of_those_that_come_together_the_known_are_told_their_places_and_the_others_are_refused() {
    let mut bench = stuck();
    let last = UNDER_WAY.end - 1;
    let open = Err(SlotError::NotPrimary { map_version: bench.version, ordered: true });
    assert_eq!(places(&bench.answer_to("g2", publish_all([5, 5]))), [(1, 2), (1, 2)]);
    let part = bench.answer_to("g2", publish_all([6, 5, 7]));
    assert_eq!(outcomes(&part), [Err(SlotError::Busy), Ok((1, 2)), Err(SlotError::Busy)]);
    assert_eq!(bench.answer_to("g2", publish_all([6, 7])), Err(SlotError::Busy));
    for with_one_under_way in [[5, last, 6], [6, 5, last], [last, 6, 7]] {
        assert_eq!(bench.answer_to("g2", publish_all(with_one_under_way)), open, "it may be done");
    }
    assert_eq!(bench.core.replica().uncommitted(), SETTINGS.queue, "nothing more is ordered");
}
