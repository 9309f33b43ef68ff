//! A session's life, entry by entry.

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::id::{NodeId, SessionId};

fn session() -> Session {
    let record = SessionRecord {
        id: SessionId(Uuid::nil()),
        user: "ann".to_owned(),
        created_ms: 0,
        expires_ms: 1_000,
        idle_ttl_ms: 100,
        last_used_ms: 0,
        attributes: Bytes::from_static(b"{}"),
        groups: BTreeSet::from([GroupName::parse("a").unwrap()]),
        grants: vec![],
        revision: 0,
        token: 0,
    };
    Session::new(record, 1, true)
}

fn nothing() -> (u64, Joined) {
    (0, Joined::new())
}

fn named(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

fn other_gateway() -> Member {
    Member { node: NodeId::parse("n2").unwrap(), generation: 1 }
}

fn gateway(generation: u64) -> Member {
    Member { node: NodeId::parse("n1").unwrap(), generation }
}

#[test]
fn a_later_attachment_displaces_and_the_earlier_socket_no_longer_matters() {
    let mut session = session();
    session.attach(gateway(1), 5, 10, 10);
    let first = session.attachment().unwrap().number;
    session.attach(gateway(1), 5, 11, 11);
    assert_eq!(session.attachment().unwrap().number, first, "a repeat is the same attachment");
    session.attach(other_gateway(), 5, 9, 9);
    assert_eq!(session.open, BTreeMap::from([(gateway(1), first)]));
    let second = session.attachment().unwrap().number;
    assert!(second > first, "also when the clock went back");
    session.attach(other_gateway(), 5, 9, 9);
    assert_eq!(session.open.len(), 1, "a repeat waits for the same ones");
    assert!(!session.detach(&gateway(1), first, 20, 50, false));
    assert_eq!(session.open.len(), 1, "that was only believed");
    session.close(&gateway(1), first);
    assert!(session.open.is_empty());
    assert!(session.detach(&other_gateway(), second, 20, 50, true));
    session.grace_over(first);
    assert!(session.is_present());
    session.grace_over(second);
    assert!(!session.is_present());
    assert_eq!(session.departing.into_iter().collect::<Vec<_>>(), vec![(GroupName::parse("a").unwrap(), second)]);
}

#[test]
fn a_connection_that_waited_long_does_not_displace_one_that_came_after_it() {
    let mut session = session();
    assert!(session.attach(gateway(1), 1, 100, 100).is_some());
    // The client has given up waiting for its second connection, and is there by a third.
    assert!(session.attach(gateway(1), 3, 4_000, 5_000).is_some(), "nobody came after it");
    assert_eq!(session.attach(other_gateway(), 2, 200, 5_100), None);
    assert_eq!(session.attachment().unwrap().connection, 3);
    assert!(session.attach(gateway(1), 3, 4_000, 6_000).is_some(), "a repeat is no other");
    assert!(
        session.attach(other_gateway(), 4, 3_900, 4_000).is_some(),
        "a first attempt comes whatever the clocks say"
    );
    assert!(session.detach(&other_gateway(), session.last_number(), 7_000, 8_000, true));
    assert!(session.attach(gateway(1), 3, 200, 7_100).is_some(), "nobody else is there");
}

#[test]
fn an_attach_that_nobody_heard_the_end_of_is_undone_and_no_other() {
    let mut session = session();
    session.attach(gateway(1), 5, 10, 10);
    assert!(!session.withdraw(&gateway(1), 6, 20, 50) && !session.withdraw(&other_gateway(), 5, 20, 50));
    assert!(session.attachment().is_some());
    assert!(session.withdraw(&gateway(1), 5, 20, 50));
    assert_eq!(session.stage, Stage::Grace { until_ms: 50 });
    assert_eq!(session.attach(gateway(1), 5, 25, 25), None, "what was asked for it before comes late");
    assert_eq!(session.stage, Stage::Grace { until_ms: 50 });
    session.attach(other_gateway(), 7, 30, 30);
    assert!(session.open.is_empty(), "nobody is waited for");
    assert!(!session.withdraw(&gateway(1), 5, 40, 60), "it is elsewhere");
    assert!(session.attachment().is_some());
}

#[test]
fn what_is_restored_does_not_overtake_what_was_given_since() {
    let mut session = session();
    session.attach(gateway(1), 1, 100, 100);
    let first = session.last_number();
    // The slot has ordered another attach when the gateway of the first says that it has it still.
    session.attach(other_gateway(), 2, 200, 200);
    assert_eq!(session.restore(gateway(1), 1, first, nothing()), None);
    assert_eq!(session.attachment().unwrap().connection, 2);
    // One of which the slot has lost sight comes back under its number.
    let later = session.last_number() + 50;
    assert_eq!(session.restore(gateway(1), 3, later, nothing()).unwrap().number, later);
}

#[test]
fn only_its_gateway_closes_an_attachment() {
    let mut session = session();
    session.attach(gateway(1), 5, 10, 10);
    let first = session.last_number();
    assert!(session.detach(&gateway(1), first, 20, 50, false), "its gateway is believed dead");
    session.grace_over(first);
    session.attach(other_gateway(), 6, 60, 60);
    assert_eq!(session.open, BTreeMap::from([(gateway(1), first)]), "and may be alive");
    assert!(!session.detach(&gateway(1), session.last_number(), 70, 90, true), "it is not that gateway's");
    assert!(session.detach(&other_gateway(), session.last_number(), 70, 90, true));
    session.attach(gateway(2), 7, 80, 80);
    assert!(session.open.is_empty(), "a node started anew has closed what it had");
}

#[test]
fn it_expires_when_idle_and_in_any_case() {
    let mut session = session();
    assert_eq!(session.expired(99), None);
    assert_eq!(session.expired(100), Some(EndReason::Idle));
    session.attach(gateway(1), 1, 90, 90);
    assert_eq!(session.expired(500), None, "attached is not idle");
    assert_eq!(session.expired(1_000), Some(EndReason::Expired));
    assert!(session.end(EndReason::Expired).is_some());
    assert_eq!(session.expired(2_000), None);
    assert!(!session.is_at_rest(), "its presence has to be taken back first");
}

#[test]
fn a_presence_of_a_later_attachment_is_still_to_be_taken_out_when_an_earlier_one_is() {
    let mut session = session();
    session.attach(gateway(1), 1, 10, 10);
    let first = session.last_number();
    session.join_as_client(named("j"), false).unwrap();
    assert!(session.detach(&gateway(1), first, 20, 30, true));
    session.grace_over(first);
    let asked = session.departing.clone();
    assert_eq!(asked, BTreeMap::from([(named("a"), first), (named("j"), first)]));
    assert!(session.joined.is_empty() && session.is_sound());
    assert_eq!(session.join_as_client(named("j"), false), Err(NotJoined::Absent));
    // Its client comes, joins again, and goes, before the first are known to be out.
    session.attach(gateway(1), 2, 40, 40);
    let second = session.last_number();
    session.join_as_client(named("j"), false).unwrap();
    assert_eq!(session.departing, asked, "that of the earlier attachment harms nobody");
    assert!(session.detach(&gateway(1), second, 50, 60, true));
    session.grace_over(second);
    session.departed(&asked);
    assert_eq!(session.departing, BTreeMap::from([(named("a"), second), (named("j"), second)]));
    session.departed(&session.departing.clone());
    assert!(session.departing.is_empty());
}

#[test]
fn who_is_back_under_its_number_is_not_taken_out_of_its_groups() {
    let mut session = session();
    session.attach(gateway(1), 1, 10, 10);
    let number = session.last_number();
    for name in ["j", "k"] {
        session.join_as_client(named(name), false).unwrap();
    }
    // Its gateway was believed dead, for longer than the grace.
    assert!(session.detach(&gateway(1), number, 20, 30, false));
    session.grace_over(number);
    session.restore(gateway(1), 1, number, (0, Joined::from([(named("j"), false)]))).unwrap();
    assert_eq!(session.departing, BTreeMap::from([(named("k"), number)]), "what it is not in again");
    assert_eq!(session.joined, Joined::from([(named("j"), false)]));
}

#[test]
fn what_a_backend_gives_to_a_session_without_a_client_leaves_no_presence_behind() {
    let mut session = session();
    session.attach(gateway(1), 1, 10, 10);
    let number = session.last_number();
    session.join_as_client(named("j"), false).unwrap();
    assert!(session.detach(&gateway(1), number, 20, 30, true));
    session.grace_over(number);
    let change = SessionChange { join: vec![named("j")], ..SessionChange::default() };
    session.change(change, 40);
    assert_eq!(session.departing.get(&named("j")), Some(&number), "nothing else would take it out");
}
