//! A session's life, entry by entry.

use std::collections::BTreeSet;

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
        clients_max: None,
    };
    Session::new(record, 1, true)
}

fn client() -> ClientId {
    ClientId::made(1)
}

fn key() -> ClientKey {
    client().key()
}

const ROOM: Room = Room { clients_max: 2, when_full: WhenFull::Displace };

/// What happens to the client of most tests.
impl Session {
    fn attach_one(&mut self, gateway: Member, connection: u64, since_ms: u64, at_ms: u64) -> Option<Attachment> {
        let given = self.attach(Asking { client: client(), gateway, connection, since_ms }, at_ms, ROOM);
        given.ok().map(|given| given.attachment)
    }

    fn restore_one(
        &mut self,
        gateway: Member,
        connection: u64,
        number: AttachmentNumber,
        known: (u64, Joined),
    ) -> Option<Attachment> {
        let asking = Asking { client: client(), gateway, connection, since_ms: number };
        self.restore(asking, number, known, ROOM).ok().map(|given| given.attachment)
    }

    fn detach_one(
        &mut self,
        gateway: &Member,
        number: AttachmentNumber,
        at_ms: u64,
        until_ms: u64,
        closed: bool,
    ) -> bool {
        self.detach(key(), (gateway, number), at_ms, until_ms, closed)
    }

    fn withdraw_one(&mut self, gateway: &Member, connection: u64, at_ms: u64, until_ms: u64) -> bool {
        self.withdraw(key(), (gateway, connection), at_ms, until_ms)
    }

    fn one(&self) -> &Client {
        self.client(key()).unwrap()
    }

    fn attachment(&self) -> Option<&Attachment> {
        self.one().attachment()
    }
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
    session.attach_one(gateway(1), 5, 10, 10);
    let first = session.attachment().unwrap().number;
    session.attach_one(gateway(1), 5, 11, 11);
    assert_eq!(session.attachment().unwrap().number, first, "a repeat is the same attachment");
    session.attach_one(other_gateway(), 5, 9, 9);
    assert_eq!(session.one().open, BTreeMap::from([(gateway(1), first)]));
    let second = session.attachment().unwrap().number;
    assert!(second > first, "also when the clock went back");
    session.attach_one(other_gateway(), 5, 9, 9);
    assert_eq!(session.one().open.len(), 1, "a repeat waits for the same ones");
    assert!(!session.detach_one(&gateway(1), first, 20, 50, false));
    assert_eq!(session.one().open.len(), 1, "that was only believed");
    session.close(key(), &gateway(1), first);
    assert!(session.one().open.is_empty());
    assert!(session.detach_one(&other_gateway(), second, 20, 50, true));
    session.grace_over(key(), first);
    assert!(session.is_present());
    session.grace_over(key(), second);
    assert!(!session.is_present());
    assert_eq!(
        session.one().departing.clone().into_iter().collect::<Vec<_>>(),
        vec![(GroupName::parse("a").unwrap(), second)]
    );
}

#[test]
fn a_connection_that_waited_long_does_not_displace_one_that_came_after_it() {
    let mut session = session();
    assert!(session.attach_one(gateway(1), 1, 100, 100).is_some());
    // The client has given up waiting for its second connection, and is there by a third.
    assert!(session.attach_one(gateway(1), 3, 4_000, 5_000).is_some(), "nobody came after it");
    assert_eq!(session.attach_one(other_gateway(), 2, 200, 5_100), None);
    assert_eq!(session.attachment().unwrap().connection, 3);
    assert!(session.attach_one(gateway(1), 3, 4_000, 6_000).is_some(), "a repeat is no other");
    assert!(
        session.attach_one(other_gateway(), 4, 3_900, 4_000).is_some(),
        "a first attempt comes whatever the clocks say"
    );
    assert!(session.detach_one(&other_gateway(), session.last_number, 7_000, 8_000, true));
    assert!(session.attach_one(gateway(1), 3, 200, 7_100).is_some(), "nobody else is there");
}

#[test]
fn an_attach_that_nobody_heard_the_end_of_is_undone_and_no_other() {
    let mut session = session();
    session.attach_one(gateway(1), 5, 10, 10);
    assert!(!session.withdraw_one(&gateway(1), 6, 20, 50) && !session.withdraw_one(&other_gateway(), 5, 20, 50));
    assert!(session.attachment().is_some());
    assert!(session.withdraw_one(&gateway(1), 5, 20, 50));
    assert_eq!(session.one().stage, Stage::Grace { until_ms: 50 });
    assert_eq!(session.attach_one(gateway(1), 5, 25, 25), None, "what was asked for it before comes late");
    assert_eq!(session.one().stage, Stage::Grace { until_ms: 50 });
    session.attach_one(other_gateway(), 7, 30, 30);
    assert!(session.one().open.is_empty(), "nobody is waited for");
    assert!(!session.withdraw_one(&gateway(1), 5, 40, 60), "it is elsewhere");
    assert!(session.attachment().is_some());
}

#[test]
fn what_is_restored_does_not_overtake_what_was_given_since() {
    let mut session = session();
    session.attach_one(gateway(1), 1, 100, 100);
    let first = session.last_number;
    // The slot has ordered another attach when the gateway of the first says that it has it still.
    session.attach_one(other_gateway(), 2, 200, 200);
    assert_eq!(session.restore_one(gateway(1), 1, first, nothing()), None);
    assert_eq!(session.attachment().unwrap().connection, 2);
    // One of which the slot has lost sight comes back under its number.
    let later = session.last_number + 50;
    assert_eq!(session.restore_one(gateway(1), 3, later, nothing()).unwrap().number, later);
}

#[test]
fn only_its_gateway_closes_an_attachment() {
    let mut session = session();
    session.attach_one(gateway(1), 5, 10, 10);
    let first = session.last_number;
    assert!(session.detach_one(&gateway(1), first, 20, 50, false), "its gateway is believed dead");
    session.grace_over(key(), first);
    session.attach_one(other_gateway(), 6, 60, 60);
    assert_eq!(session.one().open, BTreeMap::from([(gateway(1), first)]), "and may be alive");
    assert!(!session.detach_one(&gateway(1), session.last_number, 70, 90, true), "it is not that gateway's");
    assert!(session.detach_one(&other_gateway(), session.last_number, 70, 90, true));
    session.attach_one(gateway(2), 7, 80, 80);
    assert!(session.one().open.is_empty(), "a node started anew has closed what it had");
}

#[test]
fn it_expires_when_idle_and_in_any_case() {
    let mut session = session();
    assert_eq!(session.expired(99), None);
    assert_eq!(session.expired(100), Some(EndReason::Idle));
    session.attach_one(gateway(1), 1, 90, 90);
    assert_eq!(session.expired(500), None, "attached is not idle");
    assert_eq!(session.expired(1_000), Some(EndReason::Expired));
    assert_eq!(session.end(EndReason::Expired, 1_000).len(), 1);
    assert_eq!(session.expired(2_000), None);
    assert!(!session.is_at_rest(), "its presence has to be taken back first");
}

#[test]
fn a_presence_of_a_later_attachment_is_still_to_be_taken_out_when_an_earlier_one_is() {
    let mut session = session();
    session.attach_one(gateway(1), 1, 10, 10);
    let first = session.last_number;
    session.join_as_client(key(), named("j"), false).unwrap();
    assert!(session.detach_one(&gateway(1), first, 20, 30, true));
    session.grace_over(key(), first);
    let asked = session.one().departing.clone();
    assert_eq!(asked, BTreeMap::from([(named("a"), first), (named("j"), first)]));
    assert!(session.one().joined.is_empty() && session.is_sound());
    assert_eq!(session.join_as_client(key(), named("j"), false), Err(NotJoined::Absent));
    // Its client comes, joins again, and goes, before the first are known to be out.
    session.attach_one(gateway(1), 2, 40, 40);
    let second = session.last_number;
    session.join_as_client(key(), named("j"), false).unwrap();
    assert_eq!(session.one().departing, asked, "that of the earlier attachment harms nobody");
    assert!(session.detach_one(&gateway(1), second, 50, 60, true));
    session.grace_over(key(), second);
    session.departed(key(), &asked);
    assert_eq!(session.one().departing, BTreeMap::from([(named("a"), second), (named("j"), second)]));
    let rest = session.one().departing.clone();
    session.departed(key(), &rest);
    assert!(session.one().departing.is_empty());
}

#[test]
fn who_is_back_under_its_number_is_not_taken_out_of_its_groups() {
    let mut session = session();
    session.attach_one(gateway(1), 1, 10, 10);
    let number = session.last_number;
    for name in ["j", "k"] {
        session.join_as_client(key(), named(name), false).unwrap();
    }
    // Its gateway was believed dead, for longer than the grace.
    assert!(session.detach_one(&gateway(1), number, 20, 30, false));
    session.grace_over(key(), number);
    session.restore_one(gateway(1), 1, number, (0, Joined::from([(named("j"), false)]))).unwrap();
    assert_eq!(session.one().departing, BTreeMap::from([(named("k"), number)]), "what it is not in again");
    assert_eq!(session.one().joined, Joined::from([(named("j"), false)]));
}

#[test]
fn what_a_backend_gives_to_a_session_without_a_client_leaves_no_presence_behind() {
    let mut session = session();
    session.attach_one(gateway(1), 1, 10, 10);
    let number = session.last_number;
    session.join_as_client(key(), named("j"), false).unwrap();
    assert!(session.detach_one(&gateway(1), number, 20, 30, true));
    session.grace_over(key(), number);
    let change = SessionChange { join: vec![named("j")], ..SessionChange::default() };
    session.change(change, 40);
    assert_eq!(session.one().departing.get(&named("j")), Some(&number), "nothing else would take it out");
}

fn attach_another(session: &mut Session, nth: u64, at_ms: u64, room: Room) -> Result<Given, NotAttached> {
    let asking = Asking { client: ClientId::made(nth), gateway: gateway(1), connection: nth, since_ms: at_ms };
    session.attach(asking, at_ms, room)
}

#[test]
fn clients_do_not_displace_each_other_and_have_their_own_groups() {
    let mut session = session();
    let first = attach_another(&mut session, 1, 10, ROOM).unwrap();
    let second = attach_another(&mut session, 2, 20, ROOM).unwrap();
    assert!(first.crowded_out.is_empty() && second.crowded_out.is_empty());
    assert!(second.attachment.number > first.attachment.number, "numbers are of the session");
    let other = ClientId::made(2).key();
    session.join_as_client(other, named("j"), false).unwrap();
    assert!(session.one().joined.is_empty());
    // One goes, and what belongs to the session stays with the other.
    assert!(session.detach(other, (&gateway(1), second.attachment.number), 30, 40, true));
    session.grace_over(other, second.attachment.number);
    let gone = session.client(other).unwrap();
    assert_eq!(gone.departing.keys().collect::<Vec<_>>(), [&named("a"), &named("j")]);
    assert!(session.one().departing.is_empty() && session.is_present() && !session.is_at_rest());
    let departing = gone.departing.clone();
    session.departed(other, &departing);
    session.forget_client(other, second.attachment.number);
    assert!(session.client(other).is_none(), "nothing is left of it");
}

#[test]
fn one_client_too_many_takes_the_place_of_one_that_is_gone_or_came_first_or_is_refused() {
    let mut session = session();
    let first = attach_another(&mut session, 1, 10, ROOM).unwrap().attachment;
    let second = attach_another(&mut session, 2, 20, ROOM).unwrap().attachment;
    let refuse = Room { when_full: WhenFull::Refuse, ..ROOM };
    assert_eq!(attach_another(&mut session, 3, 30, refuse), Err(NotAttached::Full));
    assert!(attach_another(&mut session, 2, 30, refuse).is_ok(), "who is there has a place");
    // The first is in its grace: nobody is cut for the third.
    assert!(session.detach_one(&gateway(1), first.number, 40, 90, true));
    assert_eq!(attach_another(&mut session, 3, 50, ROOM).unwrap().crowded_out, []);
    assert!(!session.one().is_present() && !session.one().departing.is_empty());
    let fourth = attach_another(&mut session, 4, 60, ROOM).unwrap();
    assert_eq!(fourth.crowded_out, [(ClientId::made(2).key(), second.clone())]);
    assert!(session.is_sound());
    // It says that it has cut it, or that it has it still.
    let crowded = ClientId::made(2).key();
    let asking = Asking { client: ClientId::made(2), gateway: gateway(1), connection: 2, since_ms: second.number };
    assert_eq!(session.restore(asking, second.number, nothing(), ROOM), Err(NotAttached::Full));
    assert!(session.client(crowded).unwrap().waits_for(&gateway(1), second.number));
    session.close(crowded, &gateway(1), second.number);
    assert!(!session.client(crowded).unwrap().waits_for(&gateway(1), second.number));
}

#[test]
fn a_session_of_one_client_is_the_next_ones() {
    let mut session = session();
    let room = Room { clients_max: 1, ..ROOM };
    let first = attach_another(&mut session, 1, 10, room).unwrap().attachment;
    assert_eq!(attach_another(&mut session, 2, 20, room).unwrap().crowded_out, [(key(), first)]);
}

#[test]
fn what_a_client_leaves_that_a_backend_gave_all_leave() {
    let mut session = session();
    attach_another(&mut session, 1, 10, ROOM).unwrap();
    attach_another(&mut session, 2, 20, ROOM).unwrap();
    let revision = session.record.revision;
    assert_eq!(session.leave_as_client((key(), session.last_number), &named("a"), 30), Ok(true));
    assert!(session.record.groups.is_empty() && session.record.revision > revision && session.taken > revision);
    assert!(session.clients.values().all(|client| client.left.contains(&named("a"))));
    assert_eq!(session.leave_as_client((ClientKey(3), 90), &named("a"), 30), Err(NotJoined::Absent));
}

#[test]
fn a_session_whose_clients_leave_traces_takes_no_more_and_of_the_others_it_keeps_a_few() {
    let mut session = session();
    for nth in 1..=GONE_MAX as u64 {
        let given = attach_another(&mut session, nth, nth, ROOM).unwrap().attachment;
        session.detach(ClientId::made(nth).key(), (&gateway(1), given.number), nth, nth, true);
        session.grace_over(ClientId::made(nth).key(), given.number);
        session.tidy();
    }
    assert_eq!(attach_another(&mut session, 900, 900, ROOM), Err(NotAttached::Full));
    let known = Asking { client: ClientId::made(3), gateway: gateway(1), connection: 900, since_ms: 900 };
    assert!(session.attach(known, 900, ROOM).is_ok(), "who is known may come");
    for nth in 1..=GONE_MAX as u64 {
        let departing = session.client(ClientId::made(nth).key()).unwrap().departing.clone();
        session.departed(ClientId::made(nth).key(), &departing);
        session.tidy();
    }
    let rest: Vec<_> = [3, 61, 62, 63, 64].map(|nth| ClientId::made(nth).key()).into();
    assert_eq!(session.clients.keys().copied().collect::<BTreeSet<_>>(), rest.into_iter().collect());
}

#[test]
fn a_gateway_that_died_leaves_no_presence_in_groups_that_the_client_has_left() {
    // Seed 3226 of the simulation: it had left before it was attached elsewhere, or leaves afterwards.
    for leaves_first in [true, false] {
        let mut session = session();
        session.attach_one(gateway(1), 1, 10, 10);
        let first = session.last_number;
        let leave = SessionChange { leave: vec![named("a")], ..SessionChange::default() };
        if leaves_first {
            session.change(leave.clone(), 20);
        }
        session.attach_one(other_gateway(), 2, 30, 30);
        if !leaves_first {
            assert!(session.one().departing.is_empty(), "it is in it");
            session.change(leave, 40);
        }
        assert_eq!(session.one().departing, BTreeMap::from([(named("a"), first)]));
        // Back in it, the later attachment's presence stays.
        session.change(SessionChange { join: vec![named("a")], ..SessionChange::default() }, 50);
        assert_eq!(session.one().departing, BTreeMap::from([(named("a"), first)]));
    }
}

#[test]
fn a_leave_that_comes_late_does_not_undo_what_the_client_has_joined_since() {
    // Seed 21476 of the simulation: a repeat of the leave of an earlier connection.
    let mut session = session();
    session.attach_one(gateway(1), 1, 10, 10);
    let first = session.last_number;
    session.join_as_client(key(), named("j"), false).unwrap();
    assert_eq!(session.leave_as_client((key(), first), &named("j"), 20), Ok(false));
    session.attach_one(gateway(1), 2, 30, 30);
    session.join_as_client(key(), named("j"), false).unwrap();
    assert_eq!(session.leave_as_client((key(), first), &named("j"), 40), Err(NotJoined::Absent));
    assert!(session.one().joined.contains_key(&named("j")));
}

#[test]
fn a_client_that_leaves_many_groups_takes_no_more_room_for_it() {
    let mut session = session();
    session.attach_one(gateway(1), 1, 10, 10);
    session.attach_one(other_gateway(), 2, 20, 20);
    for number in 0..300 {
        let group = named(&format!("g{number}"));
        session.join_as_client(key(), group.clone(), false).unwrap();
        session.leave_as_client((key(), session.last_number), &group, 30).unwrap();
    }
    let client = session.one();
    assert!(!client.departing.is_empty() && client.departing.len() <= 64 && client.left.len() <= 64);
}

#[test]
fn a_session_may_be_made_for_fewer_clients_and_never_for_more() {
    let mut session = session();
    assert_eq!(session.room(ROOM), ROOM);
    for (own, most) in [(1, 1), (2, 2), (9, 2)] {
        session.record.clients_max = NonZero::new(own);
        assert_eq!(session.room(ROOM), Room { clients_max: most, ..ROOM });
    }
}

#[test]
fn a_session_that_could_not_travel_any_more_takes_no_new_client() {
    let mut session = session();
    session.record.groups = (0..10_000).map(|number| named(&format!("{number:0>190}"))).collect();
    let room = Room { clients_max: 100, when_full: WhenFull::Displace };
    let asking = |client, since_ms| Asking { client, gateway: gateway(1), connection: since_ms, since_ms };
    let taken =
        (1..=100).take_while(|number| session.attach(asking(ClientId::made(*number), *number), *number, room).is_ok());
    let taken = taken.count();
    assert!((2..8).contains(&taken), "{taken} clients leave behind 10,000 groups each");
    assert!(session.attach(asking(ClientId::made(1), 200), 200, room).is_ok(), "those that are there may come back");
    for number in 1..=taken as u64 {
        session.clients.get_mut(&ClientId::made(number).key()).unwrap().go(&session.record.groups, 300);
    }
    assert!(crate::encoded::bytes(&session) < 16 << 20, "it goes in a frame: {}", crate::encoded::bytes(&session));
}

#[test]
fn what_was_left_is_taken_out_though_the_gateway_said_that_the_connection_is_closed() {
    let mut session = session();
    let first = session.attach_one(gateway(1), 5, 10, 10).unwrap().number;
    session.join_as_client(key(), named("b"), false).unwrap();
    session.leave_as_client((key(), first), &named("b"), 20).unwrap();
    assert!(session.detach_one(&gateway(1), first, 30, 1_000, true));
    // It died before the group's slot took its leave.
    session.attach_one(other_gateway(), 6, 40, 40).unwrap();
    assert_eq!(session.one().departing, BTreeMap::from([(named("b"), first)]));
}
