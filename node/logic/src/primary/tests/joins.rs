//! What a client joins by itself: where that is known, and for how long.

use super::{
    rights::{grants, join, named},
    *,
};

fn leave(name: &str) -> (SessionId, RecordLeave) {
    (SESSION, RecordLeave { client: key(), attachment: u64::MAX >> 11, group: named(name) })
}

fn joined(names: &[&str]) -> Joined {
    names.iter().map(|name| (named(name), false)).collect()
}

const DONE: Result<SlotAnswer, SlotError> = Ok(SlotAnswer::Done(Done));

impl Bench {
    /// With a client at `g1`, by connection 1, and its attachment.
    fn with_client() -> (Self, AttachmentNumber) {
        let mut bench = Self::with_session();
        let attached = bench.attach("g1", 1);
        let number = bench.attached(attached);
        (bench, number)
    }

    /// The same, and the slot has lost sight of the client, which has joined `a` and `b`.
    fn without_sight() -> (Self, AttachmentNumber) {
        let (mut bench, number) = Self::with_client();
        for name in ["a", "b"] {
            assert_eq!(bench.answer_to("g1", join(name, false)), DONE);
        }
        bench.input(SlotInput::Alive(Arc::new([member("p"), member("g2")].into())));
        bench.pass(SETTINGS.resume_grace_ms + 1_000);
        assert!(!bench.view().is_present());
        bench.input(SlotInput::Alive(Arc::new([member("p"), member("g1"), member("g2")].into())));
        (bench, number)
    }

    fn says(&mut self, attachment: AttachmentNumber, revision: u64, joined: Option<Joined>) -> Renewed {
        let renewal = Renewal { session: SESSION, client: client(), attachment, connection: 1, revision, joined };
        match self.answer_to("g1", Renew(vec![renewal])) {
            Ok(SlotAnswer::Renewed(renewed)) => renewed,
            other => panic!("{other:?}"),
        }
    }

    fn saves(&self) -> usize {
        self.out.iter().filter(|output| matches!(output, SlotOutput::Save { .. })).count()
    }
}

#[test]
fn what_a_client_joins_costs_the_store_nothing() {
    let (mut bench, _) = Bench::with_client();
    for _ in 0..100 {
        for name in ["a", "b", "c"] {
            assert_eq!(bench.answer_to("g1", join(name, false)), DONE);
        }
        for name in ["a", "b"] {
            assert_eq!(bench.answer_to("g1", leave(name)), DONE);
        }
        bench.pass(100);
    }
    assert_eq!((bench.saves(), bench.one().joined), (0, joined(&["c"])));
    // What a backend gave is the session's, and so it is in the record.
    bench.change(SessionChange { join: vec![named("c")], ..SessionChange::default() });
    assert_eq!((bench.one().joined, bench.view().record.groups), (joined(&[]), [named("c")].into()));
    assert_eq!(bench.answer_to("g1", leave("c")), DONE);
    bench.pass(1_000);
    assert_eq!(bench.saves(), 1, "as its client leaves it");
}

#[test]
fn a_client_that_comes_back_in_time_finds_what_it_has_joined_and_later_it_does_not() {
    let (mut bench, first) = Bench::with_client();
    assert_eq!(bench.answer_to("g1", join("a", false)), DONE);
    bench.ask("g1", (SESSION, Detach { client: key(), attachment: first }));
    bench.pass(SETTINGS.resume_grace_ms - 200);
    let second = bench.attach("g2", 2);
    let view = |bench: &Bench, ticket| match bench.answer(ticket) {
        Some(Ok(SlotAnswer::Attached(Attached { view, .. }))) => view.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(view(&bench, second).joined, joined(&["a"]));
    let second = bench.attached(second);
    bench.ask("g2", (SESSION, Detach { client: key(), attachment: second }));
    bench.pass(SETTINGS.resume_grace_ms + 1_000);
    let departs = SlotOutput::Depart { session: SESSION, client: key(), groups: vec![(named("a"), second)] };
    assert!(bench.out.contains(&departs), "its presence is taken out");
    let third = bench.attach("g2", 3);
    assert_eq!(view(&bench, third).joined, joined(&[]));
}

#[test]
fn a_join_of_a_displaced_connection_is_the_clients_all_the_same() {
    let (mut bench, first) = Bench::with_client();
    let second = bench.attach("g2", 2);
    assert_eq!(bench.answer_to("g1", join("a", false)), DONE, "its gateway has not heard yet");
    bench.ask("g1", (SESSION, ConfirmDisplaced { client: key(), attachment: first }));
    let Some(Ok(SlotAnswer::Attached(Attached { view, .. }))) = bench.answer(second) else { panic!("not attached") };
    assert_eq!(view.joined, joined(&["a"]), "the connection that takes its place is told of it");
}

#[test]
fn a_join_or_leave_of_a_client_that_is_not_there_is_refused_and_leaves_no_trace() {
    let (mut bench, number) = Bench::with_client();
    bench.share();
    bench.ask("g1", (SESSION, Detach { client: key(), attachment: number }));
    bench.acknowledge();
    bench.pass(SETTINGS.resume_grace_ms + 1_000);
    // The end of the grace is ordered, and the join comes after it.
    let late = bench.ask("g1", join("a", false));
    bench.acknowledge();
    assert_eq!(bench.answer(late), Some(&Err(SlotError::Busy)));
    let late = bench.ask("g1", leave("a"));
    bench.acknowledge();
    assert_eq!(bench.answer(late), Some(&Err(SlotError::Busy)));
    let view = bench.view();
    assert_eq!((view.is_present(), bench.one().joined), (false, joined(&[])));
}

#[test]
fn a_slot_that_lost_its_copies_hears_from_the_gateway_what_the_client_has_joined() {
    let mut bench = Bench::new();
    let number = 900;
    assert_eq!(bench.says(number, 0, None), Renewed { confirmed: vec![], wanted: vec![(SESSION, key())] });
    assert_eq!(bench.says(number, 0, Some(joined(&["a", "b"]))), Renewed::default(), "the store is asked");
    bench.store(true, Some(record()));
    let view = bench.view();
    assert_eq!((view.is_attached(), bench.one().joined), (true, joined(&["a", "b"])));
    assert_eq!(bench.says(number, 0, None).confirmed, [(SESSION, key())]);
    assert_eq!(bench.saves(), 0);
}

#[test]
fn what_is_brought_back_undoes_nothing_that_was_taken_meanwhile() {
    let check = |change: SessionChange, expected: &[&str]| {
        let (mut bench, number) = Bench::without_sight();
        let words = format!("{change:?}");
        bench.change(change);
        assert_eq!(bench.says(number, 0, None).wanted, [(SESSION, key())], "{words}");
        bench.says(number, 0, Some(joined(&["a", "b"])));
        let view = bench.view();
        assert_eq!((view.is_attached(), &bench.one().joined), (true, &joined(expected)), "{words}");
        let view = bench.one();
        assert_eq!(bench.told("g1"), [], "{words}");
        assert_eq!(bench.says(number, 0, None).confirmed, [(SESSION, key())], "{words}");
        assert_eq!(bench.told("g1"), [view], "its gateway learns what is left: {words}");
    };
    let none = SessionChange::default;
    check(none(), &["a", "b"]);
    check(SessionChange { new_token: true, attributes: Some(Bytes::from_static(b"{}")), ..none() }, &["a", "b"]);
    check(SessionChange { join: vec![named("a")], ..none() }, &["b"]);
    // Which of its groups the gateway has not heard of being taken the slot cannot know.
    check(SessionChange { leave: vec![named("a")], ..none() }, &[]);
    check(SessionChange { grants: Some(grants("b")), ..none() }, &[]);
}

#[test]
fn a_slot_that_has_not_forgotten_the_client_knows_better_than_its_gateway() {
    let (mut bench, number) = Bench::with_client();
    assert_eq!(bench.answer_to("g1", join("a", false)), DONE);
    // Believed dead, and not for long enough to be over.
    bench.input(SlotInput::Alive(Arc::new([member("p")].into())));
    bench.pass(600);
    assert!(!bench.view().is_attached());
    assert_eq!(bench.says(number, 0, Some(joined(&["b"]))), Renewed::default());
    let view = bench.view();
    assert_eq!((view.is_attached(), bench.one().joined), (true, joined(&["a"])));
}

#[test]
fn a_client_has_no_more_groups_than_it_may_have() {
    let (mut bench, number) = Bench::without_sight();
    let many: Vec<_> = (0..SETTINGS.groups_per_session + 3).map(|number| number.to_string()).collect();
    bench.says(number, 0, Some(joined(&many.iter().map(String::as_str).collect::<Vec<_>>())));
    assert_eq!(bench.one().joined.len(), SETTINGS.groups_per_session);
    assert_eq!(bench.answer_to("g1", join("a", false)), Err(SlotError::TooManyGroups));
    let change = SessionChange { join: vec![named("a")], ..SessionChange::default() };
    assert_eq!(bench.answer_to("g2", (SESSION, ChangeSession { change })), Err(SlotError::TooManyGroups));
    assert_eq!(bench.answer_to("g1", join("0", false)), DONE, "it is in that one");
}

#[test]
fn groups_that_a_session_has_are_not_counted_again_when_they_are_given_once_more() {
    let (mut bench, _) = Bench::with_client();
    let room = SETTINGS.groups_per_session - bench.view().record.groups.len();
    let mut given = |count: usize| {
        let join = (0..count).map(|number| named(&format!("of-{number}"))).collect();
        let change = SessionChange { join, ..SessionChange::default() };
        let ticket = bench.ask("g2", (SESSION, ChangeSession { change }));
        bench.answer(ticket).cloned()
    };
    assert_eq!(given(room), None, "the store is asked");
    assert_eq!(given(room), None, "as a later token names them");
    assert_eq!(given(room + 1), Some(Err(SlotError::TooManyGroups)));
}
