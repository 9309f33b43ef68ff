//! Which of a client's connections gets the session, and what waits for a session that is being loaded.

use super::*;

#[test]
fn an_attach_that_was_overtaken_is_answered_at_once() {
    let mut bench = Bench::with_session();
    bench.now_ms += 10_000;
    let later = bench.attach("g1", 2);
    assert!(matches!(bench.answer(later), Some(Ok(SlotAnswer::Attached(_)))));
    let overtaken = bench.ask("g2", (SESSION, Attach { connection: 1, waited_ms: 5_000, token: 0 }));
    assert_eq!(bench.answer(overtaken), Some(&Err(SlotError::Busy)));
    assert!(bench.pushes("g1").is_empty(), "who has the session keeps it");
    // Another primary's clock is compared with more care, when the entry is applied.
    bench.term += 1;
    bench.map("p", &["p"]);
    let overtaken = bench.ask("g2", (SESSION, Attach { connection: 1, waited_ms: 5_000, token: 0 }));
    assert_eq!(bench.answer(overtaken), Some(&Err(SlotError::Busy)));
    let slow = bench.ask("g2", (SESSION, Attach { connection: 1, waited_ms: 500, token: 0 }));
    assert_eq!(bench.answer(slow), None, "it waits for the earlier one to be cut off");
    assert_eq!(bench.pushes("g1").len(), 1);
}

#[test]
fn what_comes_while_a_loaded_session_is_being_committed_waits_and_its_wait_counts() {
    let mut bench = Bench::new();
    bench.now_ms += 10_000;
    bench.share();
    let first = bench.attach("g1", 1);
    bench.now_ms += 1_000;
    let second = bench.attach("g2", 2);
    bench.store(true, Some(record()));
    let withdrawn = bench.ask("g2", (SESSION, Withdraw { connection: 2 }));
    assert_eq!(bench.answer(withdrawn), None, "the session is not there yet");
    let third = bench.attach("g1", 3);
    bench.acknowledge();
    bench.acknowledge();
    assert!(bench.answer(withdrawn).unwrap().is_ok());
    bench.pass(1_500);
    let numbers = [first, second, third].map(|ticket| bench.attached(ticket));
    assert!(numbers.is_sorted_by(|one, two| one < two), "each is later than those before: {numbers:?}");
    let late = bench.ask("g2", (SESSION, Attach { connection: 4, waited_ms: 1_600, token: 0 }));
    assert_eq!(bench.answer(late), Some(&Err(SlotError::Busy)), "after the second, before the third");
}

#[test]
fn a_primary_that_has_just_started_knows_who_came_later() {
    let mut bench = Bench::with_session();
    let waited = |connection, waited_ms| (SESSION, Attach { connection, waited_ms, token: 0 });
    assert!(bench.now_ms < 2_000);
    let later = bench.ask("g1", waited(2, 2_000));
    bench.attached(later);
    assert_eq!(bench.answer_to("g2", waited(1, 3_000)), Err(SlotError::Busy));
}

#[test]
fn an_attach_that_was_slow_on_its_way_does_not_displace_a_later_connection() {
    let mut bench = Bench::with_session();
    bench.now_ms += 10_000;
    let slow = |waited_ms| (SESSION, Attach { connection: 1, waited_ms, token: 0 });
    // Neither one that is about to have the session …
    bench.share();
    let later = bench.attach("g1", 2);
    assert_eq!(bench.answer(later), None);
    assert_eq!(bench.answer_to("g2", slow(1)), Err(SlotError::Busy));
    bench.acknowledge();
    let number = bench.attached(later);
    // … nor one that has it. A repeat is no other.
    assert_eq!(bench.answer_to("g2", slow(1)), Err(SlotError::Busy));
    let repeat = bench.ask("g1", (SESSION, Attach { connection: 2, waited_ms: 100, token: 0 }));
    bench.acknowledge();
    assert_eq!(bench.attached(repeat), number);
    bench.map("p", &["p"]);
    bench.pass(1_000);
    assert_eq!(bench.answer_to("g2", slow(1_001)), Err(SlotError::Busy));
    // Nobody else is there.
    bench.ask("g1", (SESSION, Detach { attachment: number }));
    let alone = bench.ask("g2", slow(2_000));
    assert!(bench.attached(alone) > number);
    assert!(bench.pushes("g1").is_empty());
    // Who comes later has it from the next that comes.
    let next = bench.attach("g1", 3);
    assert_eq!(bench.answer(next), None, "it waits for the earlier one to be cut off");
    assert_eq!(bench.pushes("g2").len(), 1);
}

#[test]
fn what_undoes_an_attach_waits_until_its_session_is_loaded_and_committed() {
    let mut bench = Bench::new();
    bench.share();
    let attach = bench.attach("g1", 1);
    bench.store(true, Some(record()));
    let withdraw = bench.ask("g1", (SESSION, Withdraw { connection: 1 }));
    assert_eq!(bench.answer(withdraw), None, "what the store has is not committed yet");
    (0..2).for_each(|_| bench.acknowledge());
    assert!(bench.attached(attach) > 0 && bench.answer(withdraw) == Some(&Ok(SlotAnswer::Done(Done))));
    assert_eq!(bench.core.replica().state().unwrap().session(SESSION).unwrap().attachment(), None);
}
