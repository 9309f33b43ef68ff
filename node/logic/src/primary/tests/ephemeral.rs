//! Sessions that no store ever hears of.

use super::*;

const EPHEMERAL: SessionId = SessionId(Uuid::from_u128(7 | (8 << 76) | (2 << 62)));

fn joins(name: &str) -> (SessionId, RecordJoin) {
    (EPHEMERAL, RecordJoin { client: key(), group: GroupName::parse(name).unwrap(), needs_grant: false })
}

impl Bench {
    fn create_ephemeral(&mut self) -> Result<SlotAnswer, SlotError> {
        let record = SessionRecord { id: EPHEMERAL, last_used_ms: self.now_ms, groups: [group()].into(), ..record() };
        self.answer_to("g1", (EPHEMERAL, CreateSession { record }))
    }

    fn attach_ephemeral(&mut self, connection: u64) -> Result<AttachmentNumber, SlotError> {
        match self.answer_to("g1", (EPHEMERAL, Attach { client: client(), connection, waited_ms: 0, token: 0 }))? {
            SlotAnswer::Attached(Attached { attachment, .. }) => Ok(attachment),
            other => panic!("{other:?}"),
        }
    }

    fn read_ephemeral(&mut self) -> Result<SlotAnswer, SlotError> {
        self.answer_to("g1", (EPHEMERAL, ReadSession))
    }

    fn asks_the_store(&self) -> bool {
        let asks = |output: &SlotOutput| matches!(output, SlotOutput::Save { .. } | SlotOutput::Load { .. });
        self.out.iter().any(asks)
    }
}

#[test]
fn it_is_known_by_its_id() {
    assert!(EPHEMERAL.is_ephemeral() && !SESSION.is_ephemeral() && !SESSION.is_made_of_token());
    for random in [Uuid::nil(), Uuid::from_u128(u128::MAX), SESSION.0] {
        let (plain, of_token) = (SessionId::ephemeral(random), SessionId::made_of_token(random));
        assert!(plain.is_ephemeral() && !plain.is_made_of_token(), "{plain}");
        assert!(of_token.is_ephemeral() && of_token.is_made_of_token(), "{of_token}");
    }
}

#[test]
fn the_store_is_asked_nothing_and_nothing_waits_for_it() {
    let mut bench = Bench::new();
    assert!(matches!(bench.create_ephemeral(), Ok(SlotAnswer::Session(_))));
    let number = bench.attach_ephemeral(1).unwrap();
    assert_eq!(bench.answer_to("g1", joins("chat:1")), Ok(SlotAnswer::Done(Done)));
    let change = SessionChange { attributes: Some(Bytes::from_static(b"{\"a\":1}")), ..SessionChange::default() };
    let changed = bench.answer_to("g2", (EPHEMERAL, ChangeSession { change }));
    assert!(matches!(&changed, Ok(SlotAnswer::Session(view)) if view.record.attributes.len() == 7), "{changed:?}");
    // Half of the time after which it would be idle, and more.
    for _ in 0..120 {
        bench.pass(5_000);
        let attachments = vec![Renewal {
            session: EPHEMERAL,
            client: client(),
            attachment: number,
            connection: 1,
            revision: 0,
            joined: None,
        }];
        bench.ask("g1", Renew(attachments));
    }
    assert!(matches!(bench.read_ephemeral(), Ok(SlotAnswer::Session(view)) if view.is_attached()));
    assert_eq!(bench.answer_to("g2", (EPHEMERAL, EndSession)), Ok(SlotAnswer::Done(Done)));
    let told = Push::Session(EPHEMERAL, SessionPush::Ended { reason: EndReason::Ended });
    assert!(bench.pushes("g1").contains(&told));
    bench.pass(2_000);
    assert_eq!(
        bench.answer_to("g2", (EPHEMERAL, EndSession)),
        Ok(SlotAnswer::Done(Done)),
        "its presences are there still"
    );
    assert!(!bench.asks_the_store(), "{:?}", bench.out);
}

#[test]
fn it_is_over_with_its_clients_grace_and_forgotten_without_its_presences() {
    let mut bench = Bench::new();
    bench.create_ephemeral().unwrap();
    let first = bench.attach_ephemeral(1).unwrap();
    bench.answer_to("g1", joins("chat:1")).unwrap();
    bench.ask("g1", (EPHEMERAL, Detach { client: key(), attachment: first }));
    bench.pass(SETTINGS.resume_grace_ms - 200);
    let second = bench.attach_ephemeral(2).unwrap();
    bench.pass(SETTINGS.resume_grace_ms * 2);
    assert!(bench.read_ephemeral().is_ok(), "its client is there again");
    bench.ask("g1", (EPHEMERAL, Detach { client: key(), attachment: second }));
    bench.pass(SETTINGS.resume_grace_ms + 1_000);
    let over = SlotError::SessionEnded(EndReason::Lapsed);
    assert_eq!(bench.attach_ephemeral(3), Err(over.clone()));
    assert_eq!(bench.read_ephemeral(), Err(over));
    let departs = bench.out.iter().find_map(|output| match output {
        SlotOutput::Depart { session, groups, .. } => Some((*session, groups.clone())),
        _ => None,
    });
    let (session, groups) = departs.expect("its presences are taken out");
    assert_eq!((session, groups.len()), (EPHEMERAL, 2), "what it was given, and what its client had joined");
    bench.input(SlotInput::Departed { session, client: key(), groups: groups.into_iter().collect() });
    assert_eq!(bench.read_ephemeral(), Err(SlotError::NoSession), "it is forgotten");
    assert!(bench.core.replica().state().unwrap().sessions().is_empty());
    assert!(!bench.asks_the_store(), "{:?}", bench.out);
}

/// One that has left nothing behind is forgotten with its end, and its gateway is told why it ended all the same.
#[test]
fn its_gateway_is_told_why_it_is_over() {
    let mut bench = Bench::new();
    let expires_ms = bench.now_ms + 5_000;
    let record = SessionRecord { id: EPHEMERAL, last_used_ms: bench.now_ms, expires_ms, ..record() };
    bench.answer_to("g1", (EPHEMERAL, CreateSession { record })).unwrap();
    bench.attach_ephemeral(1).unwrap();
    bench.pass(6_000);
    assert!(bench.core.replica().state().unwrap().sessions().is_empty());
    let told = Push::Session(EPHEMERAL, SessionPush::Ended { reason: EndReason::Expired });
    assert!(bench.pushes("g1").contains(&told), "{:?}", bench.pushes("g1"));
}

#[test]
fn one_that_no_client_claims_is_over_after_a_while() {
    let mut bench = Bench::new();
    bench.create_ephemeral().unwrap();
    bench.pass(SETTINGS.unclaimed_ms - 1_000);
    assert!(bench.read_ephemeral().is_ok());
    bench.pass(2_000);
    assert_eq!(bench.read_ephemeral(), Err(SlotError::NoSession), "and forgotten, since it has left nothing behind");
}

#[test]
fn it_is_not_over_by_a_clock_that_is_not_trusted() {
    let mut bench = Bench::new();
    bench.create_ephemeral().unwrap();
    bench.input(SlotInput::Clock { trusted: false });
    bench.now_ms += 400_000;
    bench.pass(2_000);
    let attachment = bench.attach_ephemeral(1).unwrap();
    bench.ask("g1", (EPHEMERAL, Detach { client: key(), attachment }));
    bench.now_ms += 400_000;
    bench.pass(2_000);
    assert!(bench.read_ephemeral().is_ok());
    bench.input(SlotInput::Clock { trusted: true });
    bench.pass(2_000);
    assert_eq!(bench.read_ephemeral(), Err(SlotError::SessionEnded(EndReason::Lapsed)));
}

/// All that held it are lost, or it was over and the gateway was not told.
#[test]
fn what_its_slot_does_not_know_is_over() {
    let mut bench = Bench::new();
    assert_eq!(bench.attach_ephemeral(1), Err(SlotError::NoSession));
    assert_eq!(bench.read_ephemeral(), Err(SlotError::NoSession));
    assert_eq!(bench.answer_to("g1", joins("chat:1")), Err(SlotError::NoSession));
    let detached = bench.answer_to("g1", (EPHEMERAL, Detach { client: key(), attachment: 900 }));
    assert_eq!(detached, Ok(SlotAnswer::Done(Done)));
    let renewal =
        Renewal { session: EPHEMERAL, client: client(), attachment: 900, connection: 1, revision: 0, joined: None };
    let renewed = bench.answer_to("g1", Renew(vec![renewal]));
    assert_eq!(renewed, Ok(SlotAnswer::Renewed(Renewed::default())), "neither confirmed nor wanted");
    let over = Push::Session(EPHEMERAL, SessionPush::Ended { reason: EndReason::Lapsed });
    assert_eq!(bench.pushes("g1"), [over]);
    assert!(!bench.asks_the_store(), "{:?}", bench.out);
}

#[test]
fn a_primary_that_has_been_replaced_does_not_say_that_one_is_over() {
    // Seeds 1177 and 1321 of the simulation: it did not know what its successor had.
    let mut bench = Bench::new();
    bench.share();
    let attach = bench.ask("g1", (EPHEMERAL, Attach { client: client(), connection: 1, waited_ms: 0, token: 0 }));
    let renewal =
        Renewal { session: EPHEMERAL, client: client(), attachment: 900, connection: 1, revision: 0, joined: None };
    bench.ask("g2", Renew(vec![renewal]));
    assert_eq!(bench.answer(attach), None, "the other copy may know better");
    assert!(bench.pushes("g2").is_empty());
    bench.acknowledge();
    assert_eq!(bench.answer(attach), Some(&Err(SlotError::NoSession)));
    let over = SessionPush::Ended { reason: EndReason::Lapsed };
    assert_eq!(bench.pushes("g2"), [Push::Session(EPHEMERAL, over)]);
}
