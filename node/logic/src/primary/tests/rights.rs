//! What a session may do, and what becomes of what it did when that changes.

use super::*;
use crate::entry::Grant;

pub(super) fn named(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

pub(super) fn grants(pattern: &str) -> Vec<Grant> {
    vec![Grant { pattern: pattern.to_owned(), join: true, publish: false }]
}

pub(super) fn join(name: &str, needs_grant: bool) -> (SessionId, RecordJoin) {
    (SESSION, RecordJoin { client: key(), group: named(name), needs_grant })
}

impl Bench {
    /// What a backend changes, stored: the session as it is then.
    pub(super) fn change(&mut self, change: SessionChange) -> ClientView {
        let ticket = self.ask("g2", (SESSION, ChangeSession { change }));
        self.store(true, None);
        match self.answer(ticket) {
            Some(Ok(SlotAnswer::Session(_))) => self.one(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn grant(&mut self, grants: Vec<Grant>) -> ClientView {
        self.change(SessionChange { grants: Some(grants), ..SessionChange::default() })
    }

    pub(super) fn told(&mut self, gateway: &str) -> Vec<ClientView> {
        let view = |push| match push {
            Push::Session(SESSION, SessionPush::Changed { view, .. }) => view,
            other => panic!("{other:?}"),
        };
        self.pushes(gateway).into_iter().map(view).collect()
    }
}

#[test]
fn what_new_grants_do_not_allow_is_left_and_what_a_backend_gave_stays() {
    let mut bench = Bench::with_session();
    bench.attach("g1", 1);
    for (name, needs_grant) in [("chat:1", false), ("news", false)] {
        assert_eq!(bench.answer_to("g1", join(name, needs_grant)), Ok(SlotAnswer::Done(Done)));
    }
    bench.change(SessionChange { join: vec![named("office")], ..SessionChange::default() });
    bench.pushes("g1");
    let view = bench.grant(grants("chat:*"));
    assert_eq!(view.record.groups, BTreeSet::from([named("office")]));
    assert_eq!(view.joined, Joined::from([(named("chat:1"), false)]));
    assert_eq!(bench.told("g1"), [view], "its gateway is told when it is committed");
    // What it is in by the server's word stays also where its client had joined it first.
    bench.change(SessionChange { join: vec![named("chat:1")], ..SessionChange::default() });
    assert_eq!(bench.grant(grants("x")).record.groups, BTreeSet::from([named("chat:1"), named("office")]));
    // A gateway that has not heard of it yet lets its client join: the slot does not.
    assert_eq!(bench.answer_to("g1", join("news", false)), Err(SlotError::NotGranted));
    assert_eq!(bench.answer_to("g1", join("office", false)), Ok(SlotAnswer::Done(Done)), "it is in it");
    assert_eq!(bench.view().record.groups.len(), 2);
}

#[test]
fn without_grants_a_session_keeps_what_its_namespaces_allow_to_everyone() {
    let mut bench = Bench::with_session();
    bench.attach("g1", 1);
    bench.grant(grants("*"));
    assert_eq!(bench.answer_to("g1", join("open", false)), Ok(SlotAnswer::Done(Done)));
    assert_eq!(bench.answer_to("g1", join("vip:1", true)), Ok(SlotAnswer::Done(Done)));
    assert_eq!(bench.grant(Vec::new()).joined, Joined::from([(named("open"), false)]));
    assert_eq!(bench.answer_to("g1", join("vip:1", true)), Err(SlotError::NotGranted));
}

#[test]
fn a_join_that_was_ordered_after_the_grants_changed_is_refused_and_one_before_is_undone() {
    let mut bench = Bench::with_session();
    bench.attach("g1", 1);
    bench.share();
    let before = bench.ask("g1", join("news", false));
    let change = SessionChange { grants: Some(grants("chat:*")), ..SessionChange::default() };
    bench.ask("g2", (SESSION, ChangeSession { change }));
    let after = bench.ask("g1", join("news", false));
    bench.acknowledge();
    assert_eq!(bench.answer(before), Some(&Ok(SlotAnswer::Done(Done))));
    assert_eq!(bench.answer(after), Some(&Err(SlotError::NotGranted)));
    assert!(bench.one().joined.is_empty());
}

#[test]
fn a_gateway_that_was_not_reached_is_told_again_when_it_renews() {
    let mut bench = Bench::with_session();
    let attach = bench.attach("g1", 1);
    let attachment = bench.attached(attach);
    let changed = bench.grant(grants("chat:*"));
    assert_eq!(bench.pushes("g1").len(), 1, "and lost with its link");
    // Also by the primary after this one.
    bench.term += 1;
    bench.map("p", &["p"]);
    bench.renew("g1", attachment, 1);
    assert_eq!(bench.told("g1"), std::slice::from_ref(&changed));
    let revision = changed.record.revision;
    bench.ask(
        "g1",
        Renew(vec![Renewal { session: SESSION, client: client(), attachment, connection: 1, revision, joined: None }]),
    );
    assert!(bench.told("g1").is_empty(), "it knows");
}

#[test]
fn an_earlier_token_is_refused_from_the_change_on_and_what_is_attached_stays() {
    let mut bench = Bench::with_session();
    let attach = bench.attach("g1", 1);
    let attachment = bench.attached(attach);
    bench.share();
    let change = SessionChange { new_token: true, ..SessionChange::default() };
    let rotated = bench.ask("g2", (SESSION, ChangeSession { change }));
    let meanwhile = bench.attach("g2", 2);
    bench.acknowledge();
    assert_eq!(bench.answer(rotated), None, "the store comes first");
    assert_eq!(bench.answer(meanwhile), Some(&Err(SlotError::OldToken)), "it was ordered after the change");
    bench.map("p", &["p"]);
    bench.store(true, None);
    assert!(matches!(bench.answer(rotated), Some(Ok(SlotAnswer::Session(view))) if view.record.token == 1));
    let repeat = bench.attach("g1", 1);
    assert_eq!(bench.attached(repeat), attachment, "a repeat of what was attached before");
    assert_eq!(
        bench.answer_to("g2", (SESSION, Attach { client: client(), connection: 3, waited_ms: 0, token: 0 })),
        Err(SlotError::OldToken)
    );
    assert!(bench.view().is_attached());
    bench.ask("g1", (SESSION, Detach { client: key(), attachment }));
    let with_new = bench.ask("g2", (SESSION, Attach { client: client(), connection: 4, waited_ms: 0, token: 1 }));
    assert!(bench.attached(with_new) > attachment);
}

#[test]
fn the_answer_to_a_change_says_what_the_store_has() {
    let mut bench = Bench::with_session();
    let new_token =
        || (SESSION, ChangeSession { change: SessionChange { new_token: true, ..SessionChange::default() } });
    let first = bench.ask("g1", new_token());
    let saved = |bench: &Bench| {
        let of_save = |output: &SlotOutput| match output {
            SlotOutput::Save { index, .. } => Some(*index),
            _ => None,
        };
        bench.out.iter().rev().find_map(of_save).expect("it is written")
    };
    let index = saved(&bench);
    let second = bench.ask("g1", new_token());
    bench.input(SlotInput::Saved { session: SESSION, index, result: Ok(()) });
    let token = |answer: Option<&Result<SlotAnswer, SlotError>>| match answer {
        Some(Ok(SlotAnswer::Session(view))) => view.record.token,
        other => panic!("{other:?}"),
    };
    assert_eq!(token(bench.answer(first)), 1, "the second one is not in the store yet");
    assert_eq!(bench.answer(second), None);
    let index = saved(&bench);
    bench.input(SlotInput::Saved { session: SESSION, index, result: Ok(()) });
    assert_eq!(token(bench.answer(second)), 2);
}
