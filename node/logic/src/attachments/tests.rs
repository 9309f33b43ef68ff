//! A gateway's connections, told what happens to them step by step.

use bytes::Bytes;
use uuid::Uuid;

use super::{
    renewals::{RENEWAL_TICKS, RENEWALS_AT_ONCE},
    *,
};
use crate::entry::SessionRecord;

const SESSION: SessionId = SessionId(Uuid::from_u128(5));
const SLOT: SlotId = 3;

fn client() -> ClientId {
    ClientId::made(1)
}

/// The client of most tests.
fn whose() -> (SessionId, ClientKey) {
    (SESSION, client().key())
}

#[derive(Default)]
struct Bench {
    core: Attachments,
    now_ms: u64,
    out: Vec<Output>,
}

fn view(last_used_ms: u64) -> Arc<ClientView> {
    let record = SessionRecord {
        id: SESSION,
        user: "u".to_owned(),
        created_ms: 0,
        expires_ms: 0,
        idle_ttl_ms: 0,
        last_used_ms,
        attributes: Bytes::from_static(b"{}"),
        groups: Default::default(),
        grants: Vec::new(),
        revision: last_used_ms,
        token: 0,
        clients_max: None,
    };
    Arc::new(ClientView { record, joined: Joined::new() })
}

fn displaced(number: AttachmentNumber) -> Input {
    Input::Displaced { slot: SLOT, session: SESSION, client: client().key(), number, why: Displaced::Elsewhere }
}

fn ended() -> Input {
    Input::Ended { slot: SLOT, session: SESSION, reason: EndReason::Expired }
}

fn say(number: u64, goodbye: Goodbye) -> Output {
    Output::Say { number, slot: SLOT, goodbye }
}

fn renewal(number: u64) -> Output {
    Output::Renew {
        number,
        slot: SLOT,
        attachments: vec![Renewal {
            session: SESSION,
            client: client(),
            attachment: 4,
            connection: 1,
            revision: 10,
            joined: None,
        }],
    }
}

fn says(confirmed: &[(SessionId, ClientKey)], wanted: &[(SessionId, ClientKey)]) -> Renewed {
    Renewed { confirmed: confirmed.to_vec(), wanted: wanted.to_vec() }
}

fn confirmed(connection: u64) -> Output {
    Output::Confirmed { connection, episode: 0 }
}

fn cut(connection: u64, why: Cut) -> Output {
    Output::Cut { connection, why }
}

impl Bench {
    #[track_caller]
    fn gives(&mut self, input: Input, expected: &[Output]) {
        self.core.handle(self.now_ms, input, &mut self.out);
        assert_eq!(std::mem::take(&mut self.out), expected);
    }

    #[track_caller]
    fn open(&mut self, connection: u64) {
        let expected = Output::Attach { connection, session: SESSION, slot: SLOT };
        self.gives(Input::Open { connection, session: SESSION, client: client(), slot: SLOT }, &[expected]);
    }

    #[track_caller]
    fn answer(&mut self, connection: u64, number: AttachmentNumber, expected: &[Output]) {
        self.gives(Input::Answered { connection, result: Ok((number, view(10))) }, expected);
    }

    #[track_caller]
    fn attached(&mut self, connection: u64, number: AttachmentNumber) {
        self.open(connection);
        let episode = self.core.episode;
        let attached = Output::Attached { connection, number, view: view(10) };
        self.answer(connection, number, &[attached, Output::Confirmed { connection, episode }]);
    }

    /// A renewal of this number is under way.
    #[track_caller]
    fn renewed_in(&mut self, expected: u64) {
        for _ in 0..RENEWAL_TICKS {
            self.core.handle(self.now_ms, Input::Tick, &mut self.out);
        }
        assert!(matches!(self.out[..], [Output::Renew { number, .. }] if number == expected), "{:?}", self.out);
        self.out.clear();
    }
}

#[test]
fn a_displaced_connection_is_cut_and_unsubscribed_before_that_is_confirmed() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    bench.gives(displaced(3), &[say(1, Goodbye::Confirm(whose(), 3))]);
    bench.gives(displaced(4), &[cut(1, Cut::Displaced(Displaced::Elsewhere)), Output::Unsubscribe { connection: 1 }]);
    assert!(bench.core.is_empty());
    bench.gives(Input::Unsubscribed { connection: 1 }, &[say(2, Goodbye::Confirm(whose(), 4))]);
    bench.gives(Input::Gone { connection: 1 }, &[Output::Unsubscribe { connection: 1 }]);
    bench.gives(Input::Unsubscribed { connection: 1 }, &[]);
}

#[test]
fn a_later_attachment_here_displaces_the_earlier_in_whatever_order_they_come() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    bench.open(2);
    bench.open(3);
    let earlier = [cut(1, Cut::Displaced(Displaced::Elsewhere)), Output::Unsubscribe { connection: 1 }];
    let expected: Vec<_> = earlier
        .into_iter()
        .chain([Output::Attached { connection: 2, number: 5, view: view(10) }, confirmed(2)])
        .collect();
    bench.answer(2, 5, &expected);
    bench.answer(3, 3, &[cut(3, Cut::Displaced(Displaced::Elsewhere)), say(1, Goodbye::Detach(whose(), 3))]);
    assert_eq!((bench.core.len(), bench.core.connections().next()), (1, Some((2, whose(), Some(5)))));
}

#[test]
fn news_that_overtakes_the_attachment_counts() {
    let mut bench = Bench::default();
    bench.open(1);
    bench.gives(displaced(4), &[say(1, Goodbye::Confirm(whose(), 4))]);
    bench.answer(1, 4, &[cut(1, Cut::Displaced(Displaced::Elsewhere)), say(2, Goodbye::Detach(whose(), 4))]);
    for (connection, used_ms, latest_ms) in [(2, 9, 10), (3, 11, 11)] {
        bench.open(connection);
        bench.gives(Input::Changed { slot: SLOT, client: client().key(), view: view(used_ms) }, &[]);
        let attached = Output::Attached { connection, number: 5, view: view(latest_ms) };
        bench.answer(connection, 5, &[attached, confirmed(connection)]);
        bench.gives(Input::Gone { connection }, &[Output::Unsubscribe { connection }]);
    }
    bench.open(4);
    bench.gives(ended(), &[]);
    bench.answer(4, 6, &[cut(4, Cut::Ended(EndReason::Expired))]);
    assert_eq!(bench.core.connections().count(), 0);
}

#[test]
fn news_goes_to_the_connection_that_has_the_session() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    let changed = Output::Changed { connection: 1, view: view(15) };
    bench.gives(Input::Changed { slot: SLOT, client: client().key(), view: view(15) }, &[changed]);
    bench.gives(Input::Changed { slot: SLOT, client: client().key(), view: view(14) }, &[]);
    bench.gives(Input::Changed { slot: SLOT, client: client().key(), view: view(15) }, &[]);
    let cut = cut(1, Cut::Ended(EndReason::Expired));
    bench.gives(ended(), &[cut, Output::Unsubscribe { connection: 1 }]);
    bench.gives(Input::Unsubscribed { connection: 1 }, &[]);
    bench.gives(Input::Changed { slot: SLOT, client: client().key(), view: view(16) }, &[]);
}

#[test]
fn what_came_of_an_attach_whose_client_is_gone_is_undone() {
    let mut bench = Bench::default();
    bench.open(1);
    bench.gives(Input::Gone { connection: 1 }, &[Output::GiveUp { connection: 1 }]);
    bench.answer(1, 4, &[say(1, Goodbye::Detach(whose(), 4))]);
    bench.open(2);
    bench.gives(Input::Gone { connection: 2 }, &[Output::GiveUp { connection: 2 }]);
    let unknown = Input::Answered { connection: 2, result: Err(SlotError::Unknown) };
    bench.gives(unknown, &[say(2, Goodbye::Withdraw(whose(), 2))]);
    // A client that is still there is told, and closed.
    bench.open(3);
    let refused = Output::Refused { connection: 3, error: SlotError::Unknown };
    let unknown = Input::Answered { connection: 3, result: Err(SlotError::Unknown) };
    bench.gives(unknown, &[refused, say(3, Goodbye::Withdraw(whose(), 3))]);
    bench.open(4);
    let refused = Output::Refused { connection: 4, error: SlotError::Busy };
    bench.gives(Input::Answered { connection: 4, result: Err(SlotError::Busy) }, &[refused]);
    assert_eq!(bench.core.connections().count(), 0);
}

#[test]
fn a_goodbye_is_said_until_it_is_heard() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    bench.gives(Input::Gone { connection: 1 }, &[Output::Unsubscribe { connection: 1 }]);
    let goodbye = Goodbye::Detach(whose(), 4);
    bench.gives(Input::Unsubscribed { connection: 1 }, &[say(1, goodbye)]);
    let mut number = 1;
    for pause_ms in [250, 500, 1_000, 2_000, 4_000, 4_000] {
        bench.gives(Input::Said { number, result: Err(SlotError::Unknown) }, &[]);
        bench.now_ms += pause_ms - 1;
        bench.gives(Input::Tick, &[]);
        bench.now_ms += 1;
        number += 1;
        bench.gives(Input::Tick, &[say(number, goodbye)]);
    }
    // Another slot does not wait for this one.
    let other =
        Input::Displaced { slot: 9, session: SESSION, client: client().key(), number: 1, why: Displaced::Elsewhere };
    let to_other = Output::Say { number: number + 1, slot: 9, goodbye: Goodbye::Confirm(whose(), 1) };
    bench.gives(other, &[to_other]);
    bench.gives(Input::Said { number, result: Err(SlotError::NoSession) }, &[]);
    bench.now_ms += 60_000;
    bench.gives(Input::Tick, &[]);
}

#[test]
fn every_attachment_is_renewed_once_in_a_round() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    let mut renewals = Vec::new();
    for _ in 0..RENEWAL_TICKS * 2 {
        bench.core.handle(0, Input::Tick, &mut renewals);
    }
    assert_eq!(renewals, [renewal(1), renewal(2)]);
    // There is a limit to those under way.
    renewals.clear();
    for _ in 0..u16::try_from(RENEWALS_AT_ONCE).unwrap() * RENEWAL_TICKS {
        bench.core.handle(0, Input::Tick, &mut renewals);
    }
    assert_eq!(renewals.len(), RENEWALS_AT_ONCE - 2);
    bench.core.handle(0, Input::Renewed { number: 1, renewed: Renewed::default() }, &mut renewals);
    for _ in 0..RENEWAL_TICKS {
        bench.core.handle(0, Input::Tick, &mut renewals);
    }
    assert_eq!(renewals.len(), RENEWALS_AT_ONCE - 1);
}

#[test]
fn a_renewal_that_the_goodbye_may_have_overtaken_is_undone() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    bench.renewed_in(1);
    bench.gives(displaced(4), &[cut(1, Cut::Displaced(Displaced::Elsewhere)), Output::Unsubscribe { connection: 1 }]);
    bench.gives(Input::Unsubscribed { connection: 1 }, &[say(1, Goodbye::Confirm(whose(), 4))]);
    bench.gives(Input::Said { number: 1, result: Ok(()) }, &[]);
    bench.gives(Input::Renewed { number: 1, renewed: Renewed::default() }, &[say(2, Goodbye::Detach(whose(), 4))]);
    // Not before its subscriptions have ended.
    bench.attached(2, 5);
    bench.renewed_in(2);
    bench.gives(displaced(5), &[cut(2, Cut::Displaced(Displaced::Elsewhere)), Output::Unsubscribe { connection: 2 }]);
    bench.gives(Input::Renewed { number: 2, renewed: Renewed::default() }, &[]);
    let said = [say(3, Goodbye::Confirm(whose(), 5)), say(4, Goodbye::Detach(whose(), 5))];
    bench.gives(Input::Unsubscribed { connection: 2 }, &said);
    // One that is still there stays.
    bench.attached(3, 6);
    bench.renewed_in(3);
    bench.gives(Input::Renewed { number: 3, renewed: Renewed::default() }, &[]);
}

#[test]
fn in_another_episode_every_attachment_is_confirmed_anew() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    bench.open(2);
    bench.gives(Input::Episode(1), &[renewal(1)]);
    bench.gives(Input::Tick, &[]);
    bench.gives(
        Input::Renewed { number: 1, renewed: says(&[whose()], &[]) },
        &[Output::Confirmed { connection: 1, episode: 1 }],
    );
    bench.gives(Input::Tick, &[]);
    // What was asked for before it began counts for nothing.
    bench.gives(Input::Episode(2), &[renewal(2)]);
    bench.gives(Input::Episode(3), &[renewal(3)]);
    bench.gives(Input::Renewed { number: 2, renewed: says(&[whose()], &[]) }, &[]);
    // Where its slot does not confirm it, or is not heard, it is asked again.
    bench.gives(Input::Renewed { number: 3, renewed: Renewed::default() }, &[]);
    bench.gives(Input::Tick, &[renewal(4)]);
    let attached = Output::Attached { connection: 2, number: 5, view: view(10) };
    let renewed = Output::Renew {
        number: 5,
        slot: SLOT,
        attachments: vec![Renewal {
            session: SESSION,
            client: client(),
            attachment: 5,
            connection: 2,
            revision: 10,
            joined: None,
        }],
    };
    let earlier = [cut(1, Cut::Displaced(Displaced::Elsewhere)), Output::Unsubscribe { connection: 1 }];
    bench.answer(2, 5, &earlier.into_iter().chain([attached, renewed]).collect::<Vec<_>>());
    bench.gives(
        Input::Renewed { number: 5, renewed: says(&[whose()], &[]) },
        &[Output::Confirmed { connection: 2, episode: 3 }],
    );
}

#[test]
fn what_a_slot_has_lost_sight_of_is_renewed_at_once_with_what_its_client_has_joined() {
    let named = |name: &str| GroupName::parse(name).unwrap();
    let joins = |name, needs_grant| Input::Joins { connection: 1, group: named(name), needs_grant };
    let mut bench = Bench::default();
    bench.open(1);
    // From before it attached here, and since.
    let before = Arc::new(ClientView { joined: Joined::from([(named("a"), true)]), ..ClientView::clone(&view(10)) });
    let attached = Output::Attached { connection: 1, number: 4, view: before.clone() };
    bench.gives(Input::Answered { connection: 1, result: Ok((4, before)) }, &[attached, confirmed(1)]);
    for name in ["b", "c"] {
        bench.gives(joins(name, false), &[]);
    }
    bench.gives(Input::Leaves { connection: 1, group: named("b") }, &[]);
    bench.renewed_in(1);
    let full = |number, joined: &[(&str, bool)]| {
        let joined = joined.iter().map(|(name, needs_grant)| (named(name), *needs_grant)).collect();
        let renewal = Renewal {
            session: SESSION,
            client: client(),
            attachment: 4,
            connection: 1,
            revision: 10,
            joined: Some(joined),
        };
        Output::Renew { number, slot: SLOT, attachments: vec![renewal] }
    };
    let wanted = Input::Renewed { number: 1, renewed: says(&[], &[whose()]) };
    bench.gives(wanted, &[full(2, &[("a", true), ("c", false)])]);
    bench.gives(Input::Renewed { number: 2, renewed: Renewed::default() }, &[]);
    // A connection that is cut meanwhile is not brought back.
    bench.renewed_in(3);
    bench.gives(displaced(4), &[cut(1, Cut::Displaced(Displaced::Elsewhere)), Output::Unsubscribe { connection: 1 }]);
    bench.gives(Input::Renewed { number: 3, renewed: says(&[], &[whose()]) }, &[]);
    assert!(bench.core.joined(1).unwrap().is_empty());
}

#[test]
fn what_clients_have_joined_goes_in_renewals_of_bounded_size() {
    let mut core = Attachments::default();
    let mut out = Vec::new();
    let sessions: Vec<_> = (0..300).map(|number| SessionId(Uuid::from_u128(number))).collect();
    let all: Vec<_> = sessions.iter().map(|session| (*session, client().key())).collect();
    for (connection, session) in (1..).zip(&sessions) {
        core.handle(0, Input::Open { connection, session: *session, client: client(), slot: SLOT }, &mut out);
        let mut view = ClientView::clone(&view(10));
        view.record.id = *session;
        view.joined = (0..100).map(|number| (GroupName::parse(&format!("{number:0100}")).unwrap(), false)).collect();
        core.handle(0, Input::Answered { connection, result: Ok((4, Arc::new(view))) }, &mut out);
    }
    for _ in 0..RENEWAL_TICKS {
        core.handle(0, Input::Tick, &mut out);
    }
    let asked = |out: &mut Vec<Output>| {
        let renewal = |output| match output {
            Output::Renew { number, attachments, .. } => Some((number, attachments)),
            _ => None,
        };
        std::mem::take(out).into_iter().filter_map(renewal).collect::<Vec<_>>()
    };
    let plain = asked(&mut out);
    assert_eq!(plain.len(), 1, "that says nothing of groups");
    core.handle(0, Input::Renewed { number: plain[0].0, renewed: says(&[], &all) }, &mut out);
    let full = asked(&mut out);
    let said: Vec<_> = full.iter().flat_map(|(_, attachments)| attachments).map(|there| there.session).collect();
    assert_eq!(said, sessions, "each is in one of them");
    assert!(full.len() > 3 && full.iter().all(|(_, some)| some.len() <= (1 << 20) / (100 * 200)), "{}", full.len());
}

#[test]
fn clients_of_a_session_do_not_displace_each_other_and_end_with_it() {
    let mut bench = Bench::default();
    bench.attached(1, 4);
    let other = ClientId::made(2);
    bench.gives(
        Input::Open { connection: 2, session: SESSION, client: other.clone(), slot: SLOT },
        &[Output::Attach { connection: 2, session: SESSION, slot: SLOT }],
    );
    // News of one client is none of the other's.
    bench.gives(displaced(3), &[say(1, Goodbye::Confirm(whose(), 3))]);
    bench.gives(
        Input::Changed { slot: SLOT, client: whose().1, view: view(11) },
        &[Output::Changed { connection: 1, view: view(11) }],
    );
    bench.answer(2, 3, &[Output::Attached { connection: 2, number: 3, view: view(10) }, confirmed(2)]);
    assert_eq!(bench.core.len(), 2);
    let crowded_out =
        Input::Displaced { slot: SLOT, session: SESSION, client: other.key(), number: 3, why: Displaced::CrowdedOut };
    let expected = [cut(2, Cut::Displaced(Displaced::CrowdedOut)), Output::Unsubscribe { connection: 2 }];
    bench.gives(crowded_out, &expected);
    bench.gives(
        Input::Open { connection: 3, session: SESSION, client: other, slot: SLOT },
        &[Output::Attach { connection: 3, session: SESSION, slot: SLOT }],
    );
    bench.answer(3, 6, &[Output::Attached { connection: 3, number: 6, view: view(10) }, confirmed(3)]);
    bench.core.handle(0, ended(), &mut bench.out);
    let cut: Vec<_> = bench
        .out
        .iter()
        .filter_map(|output| match output {
            Output::Cut { connection, why: Cut::Ended(_) } => Some(*connection),
            _ => None,
        })
        .collect();
    assert_eq!(cut.into_iter().collect::<std::collections::BTreeSet<_>>(), [1, 3].into());
    assert!(bench.core.is_empty());
}
