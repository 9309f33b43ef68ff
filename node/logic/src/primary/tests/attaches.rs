//! Which of a client's connections gets the session, and what waits for a session that is being loaded.

use super::*;

#[test]
fn an_attach_that_was_overtaken_is_answered_at_once() {
    let mut bench = Bench::with_session();
    bench.now_ms += 10_000;
    let later = bench.attach("g1", 2);
    assert!(matches!(bench.answer(later), Some(Ok(SlotAnswer::Attached(_)))));
    let overtaken = bench.ask("g2", (SESSION, Attach { client: client(), connection: 1, waited_ms: 5_000, token: 0 }));
    assert_eq!(bench.answer(overtaken), Some(&Err(SlotError::Busy)));
    assert!(bench.pushes("g1").is_empty(), "who has the session keeps it");
    // Another primary's clock is compared with more care, when the entry is applied.
    bench.term += 1;
    bench.map("p", &["p"]);
    let overtaken = bench.ask("g2", (SESSION, Attach { client: client(), connection: 1, waited_ms: 5_000, token: 0 }));
    assert_eq!(bench.answer(overtaken), Some(&Err(SlotError::Busy)));
    let slow = bench.ask("g2", (SESSION, Attach { client: client(), connection: 1, waited_ms: 500, token: 0 }));
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
    let withdrawn = bench.ask("g2", (SESSION, Withdraw { client: key(), connection: 2 }));
    assert_eq!(bench.answer(withdrawn), None, "the session is not there yet");
    let third = bench.attach("g1", 3);
    bench.acknowledge();
    bench.acknowledge();
    assert!(bench.answer(withdrawn).unwrap().is_ok());
    bench.pass(1_500);
    bench.gone("g1");
    bench.gone("g2");
    let numbers = [first, second, third].map(|ticket| bench.attached(ticket));
    assert!(numbers.is_sorted_by(|one, two| one < two), "each is later than those before: {numbers:?}");
    let late = bench.ask("g2", (SESSION, Attach { client: client(), connection: 4, waited_ms: 1_600, token: 0 }));
    assert_eq!(bench.answer(late), Some(&Err(SlotError::Busy)), "after the second, before the third");
}

#[test]
fn a_primary_that_has_just_started_knows_who_came_later() {
    let mut bench = Bench::with_session();
    let waited = |connection, waited_ms| (SESSION, Attach { client: client(), connection, waited_ms, token: 0 });
    assert!(bench.now_ms < 2_000);
    let later = bench.ask("g1", waited(2, 2_000));
    bench.attached(later);
    assert_eq!(bench.answer_to("g2", waited(1, 3_000)), Err(SlotError::Busy));
}

#[test]
fn an_attach_that_was_slow_on_its_way_does_not_displace_a_later_connection() {
    let mut bench = Bench::with_session();
    bench.now_ms += 10_000;
    let slow = |waited_ms| (SESSION, Attach { client: client(), connection: 1, waited_ms, token: 0 });
    // Neither one that is about to have the session …
    bench.share();
    let later = bench.attach("g1", 2);
    assert_eq!(bench.answer(later), None);
    assert_eq!(bench.answer_to("g2", slow(1)), Err(SlotError::Busy));
    bench.acknowledge();
    let number = bench.attached(later);
    // … nor one that has it. A repeat is no other.
    assert_eq!(bench.answer_to("g2", slow(1)), Err(SlotError::Busy));
    let repeat = bench.ask("g1", (SESSION, Attach { client: client(), connection: 2, waited_ms: 100, token: 0 }));
    bench.acknowledge();
    assert_eq!(bench.attached(repeat), number);
    bench.map("p", &["p"]);
    bench.pass(1_000);
    assert_eq!(bench.answer_to("g2", slow(1_001)), Err(SlotError::Busy));
    // Nobody else is there.
    bench.ask("g1", (SESSION, Detach { client: key(), attachment: number }));
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
    let withdraw = bench.ask("g1", (SESSION, Withdraw { client: key(), connection: 1 }));
    assert_eq!(bench.answer(withdraw), None, "what the store has is not committed yet");
    (0..2).for_each(|_| bench.acknowledge());
    assert!(bench.attached(attach) > 0 && bench.answer(withdraw) == Some(&Ok(SlotAnswer::Done(Done))));
    assert_eq!(bench.core.replica().state().unwrap().session(SESSION).unwrap().attachments().count(), 0);
}

/// Whom the slot wants fenced, each once.
fn fences(bench: &mut Bench) -> Vec<(Member, u64)> {
    let fence = |output: &SlotOutput| match output {
        SlotOutput::Fence { gateway, since_ms } => Some((gateway.clone(), *since_ms)),
        _ => None,
    };
    let mut fences: Vec<_> = bench.out.iter().filter_map(fence).collect();
    bench.out.retain(|output| fence(output).is_none());
    fences.dedup();
    fences
}

#[test]
fn a_gateway_that_does_not_say_that_it_has_cut_the_earlier_one_is_fenced() {
    let mut bench = Bench::with_session();
    let first = bench.attach("g1", 1);
    let first = bench.attached(first);
    let given_ms = bench.now_ms;
    bench.pass(5_000);
    let second = bench.attach("g2", 2);
    bench.pass(200);
    assert_eq!(fences(&mut bench), [], "it has some time");
    bench.pass(3_000);
    assert_eq!(fences(&mut bench), [(member("g1"), given_ms)]);
    assert_eq!(bench.answer(second), None, "whatever the time");
    // What it was confirmed meanwhile comes after the fence.
    bench.input(SlotInput::Gone { gateway: member("g1"), since_ms: given_ms });
    assert_eq!(bench.answer(second), None);
    bench.gone("g1");
    assert!(bench.attached(second) > first);
    // A renewal tells it what has come about, and confirms nothing.
    let renewed = bench.answer_to(
        "g1",
        Renew(vec![Renewal {
            session: SESSION,
            client: client(),
            attachment: first,
            connection: 1,
            revision: 0,
            joined: None,
        }]),
    );
    assert_eq!(renewed, Ok(SlotAnswer::Renewed(Renewed::default())));
    let displaced = bench.pushes("g1");
    assert_eq!(
        displaced.last(),
        Some(&Push::Session(
            SESSION,
            SessionPush::Displace { client: key(), why: Displaced::Elsewhere, attachment: first }
        ))
    );
}

#[test]
fn a_gateway_that_is_believed_dead_is_fenced_at_once_and_counts_again_when_it_was_confirmed_something() {
    let mut bench = Bench::with_session();
    let alive = |names: &[&str]| SlotInput::Alive(Arc::new(names.iter().map(|name| member(name)).collect()));
    let first = bench.attach("g1", 1);
    bench.attached(first);
    bench.pass(100);
    bench.input(alive(&["p", "g2", "g3"]));
    let second = bench.attach("g2", 2);
    assert_eq!(bench.answer(second), None, "it may deliver");
    assert_eq!(fences(&mut bench).len(), 1);
    bench.gone("g1");
    let number = bench.attached(second);
    // Who has to confirm what it has is not waited for; another that was confirmed something since is.
    bench.pass(100);
    let third = bench.attach("g3", 3);
    assert_eq!(bench.answer(third), None);
    bench.ask("g2", (SESSION, ConfirmDisplaced { client: key(), attachment: number }));
    let number = bench.attached(third);
    bench.pass(100);
    let again = bench.attach("g1", 4);
    bench.ask("g3", (SESSION, ConfirmDisplaced { client: key(), attachment: number }));
    let number = bench.attached(again);
    let renewed = bench.answer_to(
        "g1",
        Renew(vec![Renewal {
            session: SESSION,
            client: client(),
            attachment: number,
            connection: 4,
            revision: 0,
            joined: None,
        }]),
    );
    assert_eq!(renewed, Ok(SlotAnswer::Renewed(Renewed { confirmed: vec![(SESSION, key())], wanted: Vec::new() })));
    let last = bench.attach("g2", 5);
    assert_eq!(bench.answer(last), None, "g1 is there");
}

#[test]
fn an_attach_that_nobody_waits_for_any_more_is_left_open() {
    let mut bench = Bench::with_session();
    bench.attach("g1", 1);
    let second = bench.attach("g2", 2);
    bench.pass(11_000);
    assert!(matches!(bench.answer(second), Some(Err(SlotError::NotPrimary { ordered: true, .. }))));
}

#[test]
fn a_session_is_not_forgotten_while_a_gateway_may_deliver_to_it() {
    let mut bench = Bench::with_session();
    bench.attach("g1", 1);
    bench.pass(20_000 + SETTINGS.resume_grace_ms + SETTINGS.memory_ttl_ms + 5_000);
    bench.store(true, None);
    bench.pass(5_000);
    let is_there = |bench: &Bench| bench.core.replica().state().unwrap().session(SESSION).is_some();
    assert!(is_there(&bench) && !fences(&mut bench).is_empty());
    bench.gone("g1");
    bench.pass(5_000);
    assert!(!is_there(&bench));
}

#[test]
fn who_had_to_make_room_and_was_given_the_same_again_is_gone_when_its_gateway_says_so() {
    // Seed 42066 of the simulation: a repeat of the attach came after the client had to go.
    let mut bench = Bench::with_session();
    let first = bench.attach("g1", 1);
    let number = bench.attached(first);
    for nth in [2, 3] {
        bench.now_ms += 10;
        bench.ask("g2", (SESSION, Attach { client: ClientId::made(nth), connection: nth, waited_ms: 0, token: 0 }));
    }
    let why = Displaced::CrowdedOut;
    let displaced = Push::Session(SESSION, SessionPush::Displace { client: key(), why, attachment: number });
    assert_eq!(bench.pushes("g1"), [displaced]);
    let again = bench.attach("g1", 1);
    assert_eq!(bench.attached(again), number);
    bench.ask("g1", (SESSION, ConfirmDisplaced { client: key(), attachment: number }));
    let session = bench.core.replica().state().unwrap().session(SESSION).unwrap();
    assert!(session.client(key()).unwrap().attachment().is_none());
}

#[test]
fn an_attach_waits_for_the_earlier_socket_and_so_do_a_repeat_and_a_third_one() {
    let mut bench = Bench::with_session();
    let first = bench.attach("g1", 1);
    let first = bench.attached(first);
    let second = bench.attach("g2", 2);
    assert_eq!(
        bench.pushes("g1"),
        [Push::Session(SESSION, SessionPush::Displace { client: key(), why: Displaced::Elsewhere, attachment: first })]
    );
    let repeat = bench.attach("g2", 2);
    assert_eq!((bench.answer(second), bench.answer(repeat)), (None, None));
    let third = bench.attach("g3", 3);
    let [Push::Session(_, SessionPush::Displace { attachment: number, .. })] = bench.pushes("g2")[..] else {
        panic!("g2 is told of the third")
    };
    bench.ask("g2", (SESSION, ConfirmDisplaced { client: key(), attachment: number }));
    for waits in [second, repeat, third] {
        assert_eq!(bench.answer(waits), None, "the first one is not known to be gone");
    }
    bench.ask("g1", (SESSION, ConfirmDisplaced { client: key(), attachment: first }));
    assert_eq!((bench.attached(second), bench.attached(repeat)), (number, number));
    assert!(bench.attached(third) > number);
}

#[test]
fn of_two_attachments_with_one_number_the_later_lineage_has_the_session() {
    let mut bench = Bench::with_session();
    let attached = bench.attach("g1", 1);
    let number = bench.attached(attached);
    // Another lineage of the slot gave this number too, by another clock, and all its copies are lost.
    bench.renew("g2", number, 7);
    let displaced =
        Push::Session(SESSION, SessionPush::Displace { client: key(), why: Displaced::Elsewhere, attachment: number });
    assert_eq!((bench.pushes("g2"), bench.pushes("g1")), (vec![displaced], vec![]));
    bench.ask("g2", (SESSION, Detach { client: key(), attachment: number }));
    assert!(bench.view().is_attached(), "that goodbye is not of this connection");
    bench.ask("g1", (SESSION, Detach { client: key(), attachment: number }));
    assert!(!bench.view().is_attached());
}
