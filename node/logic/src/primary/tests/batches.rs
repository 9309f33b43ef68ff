//! Publishes that come together, and what is committed together.

use super::*;
use crate::{entry::Presence, memory::Level};

/// A slot with the two copies `p` and `q`, in which `g1` follows the group.
fn followed() -> Bench {
    let mut bench = Bench::new();
    bench.share();
    let registered = bench.ask("g1", register());
    bench.acknowledge();
    assert!(bench.answer(registered).unwrap().is_ok());
    bench
}

/// The offsets in each push to `g1`.
fn pushed(bench: &mut Bench) -> Vec<Vec<u64>> {
    let offsets = |push: Push| match push {
        Push::Group(_, GroupPush::Deliver { messages, .. }) => messages.iter().map(|message| message.offset).collect(),
        other => panic!("{other:?}"),
    };
    bench.pushes("g1").into_iter().map(offsets).collect()
}

fn offsets(bench: &Bench, asked: Ticket) -> Vec<u64> {
    places(bench.answer(asked).unwrap()).into_iter().map(|(offset, _)| offset).collect()
}

#[test]
fn what_is_published_together_is_one_entry_one_answer_and_one_push() {
    let mut bench = followed();
    let asked = bench.ask("g1", publish_all([5, 6, 7]));
    assert_eq!((bench.answer(asked), bench.core.replica().uncommitted()), (None, 1));
    bench.acknowledge();
    assert_eq!(places(bench.answer(asked).unwrap()), [(1, 2), (2, 2), (3, 2)]);
    assert_eq!(pushed(&mut bench), [[1, 2, 3]]);
}

#[test]
fn what_is_committed_together_is_one_push_within_bounds() {
    let mut bench = followed();
    let asked = [publish_all([5, 6]), publish_all([7, 8]), publish_all([5, 7])].map(|publish| bench.ask("g2", publish));
    bench.acknowledge();
    let places = asked.map(|ticket| places(bench.answer(ticket).unwrap()));
    assert_eq!(places, [[(1, 2), (2, 2)], [(3, 2), (4, 2)], [(1, 2), (3, 2)]]);
    assert_eq!(pushed(&mut bench), [[1, 2, 3, 4]]);
    let large = |key: u128| {
        let messages = [NewMessage { key: PublishKey(key), data: vec![b'1'; 100 << 10].into() }].into();
        (group(), Publish { messages, from: None, retention: KEEP, min_copies: 1 })
    };
    for key in 20..25 {
        bench.ask("g2", large(key));
    }
    bench.acknowledge();
    assert_eq!(pushed(&mut bench), [vec![5, 6], vec![7, 8], vec![9]], "a push is no longer than a frame can be");
}

#[test]
fn who_comes_between_two_messages_is_not_pushed_the_first() {
    let mut bench = followed();
    bench.ask("g1", publish(5));
    let member = Presence {
        session: SESSION,
        client: client().key(),
        user: "".into(),
        info: Bytes::new(),
        revision: 0,
        attachment: 1,
    };
    let joined = bench.ask("g2", (group(), Join { member: Some(member), since: None }));
    bench.ask("g1", publish(6));
    bench.acknowledge();
    let point = bench.answer(joined);
    assert!(matches!(point, Some(Ok(SlotAnswer::Joined(JoinPoint { head: 2, .. })))), "both are committed: {point:?}");
    let told = |push: Push| match push {
        Push::Group(_, GroupPush::Deliver { messages, .. }) => messages[0].offset,
        Push::Group(_, GroupPush::Member { .. }) => 0,
        other => panic!("{other:?}"),
    };
    assert_eq!(bench.pushes("g1").into_iter().map(told).collect::<Vec<_>>(), [1, 0, 2]);
    assert_eq!(bench.pushes("g2").into_iter().map(told).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_repeat_of_a_part_keeps_the_order_of_the_rest() {
    let mut bench = followed();
    bench.ask("g1", publish_all([5, 6]));
    bench.acknowledge();
    let asked = bench.ask("g2", publish_all([5, 6, 7, 8, 7]));
    bench.acknowledge();
    assert_eq!(offsets(&bench, asked), [1, 2, 3, 4, 3]);
    assert_eq!(pushed(&mut bench), [vec![1, 2], vec![3, 4]]);
    let asked = bench.ask("g2", publish_all([9, 8]));
    bench.acknowledge();
    assert_eq!(offsets(&bench, asked), [5, 4]);
}

#[test]
fn below_the_floor_the_known_are_told_their_places_and_the_others_are_refused_at_one_point_of_the_log() {
    let safe = |(group, publish): (GroupName, Publish)| (group, Publish { min_copies: 2, ..publish });
    let refusal = || SlotError::NotEnoughCopies { copies: 1, min_copies: 2 };
    let mut bench = followed();
    bench.ask("g1", safe(publish_all([5, 6])));
    bench.acknowledge();
    bench.map("p", &["p"]);
    assert_eq!(bench.answer_to("g2", safe(publish_all([7, 8]))), Err(refusal()), "none is known");
    let part = bench.ask("g2", safe(publish_all([7, 6, 8, 5])));
    let repeat = bench.ask("g2", safe(publish_all([6, 5])));
    assert_eq!([part, repeat].map(|ticket| bench.answer(ticket)), [None; 2], "too few have what is known");
    bench.map("p", &["p", "r"]);
    assert_eq!(places(bench.answer(repeat).unwrap()), [(2, 2), (1, 2)]);
    let told = [Err(refusal()), Ok((2, 2)), Err(refusal()), Ok((1, 2))];
    assert_eq!(outcomes(bench.answer(part).unwrap()), told, "also where there are enough copies by now");
    assert_eq!(bench.core.replica().uncommitted(), 0, "what is refused is not ordered");
}

#[test]
fn where_memory_is_full_the_known_are_told_their_places_and_nothing_is_taken() {
    let mut bench = followed();
    bench.ask("g1", publish_all([5, 6]));
    bench.acknowledge();
    bench.input(SlotInput::Memory { of: member("p"), level: Level::Full });
    let asked = bench.ask("g2", publish_all([6, 7, 5]));
    let none = bench.ask("g2", publish_all([7, 8]));
    bench.acknowledge();
    assert_eq!(outcomes(bench.answer(asked).unwrap()), [Ok((2, 2)), Err(SlotError::Full), Ok((1, 2))]);
    assert_eq!(bench.answer(none), Some(&Err(SlotError::Full)));
    bench.input(SlotInput::Memory { of: member("p"), level: Level::Calm });
    let asked = bench.ask("g2", publish_all([7, 8]));
    bench.acknowledge();
    assert_eq!(places(bench.answer(asked).unwrap()), [(3, 2), (4, 2)]);
}

#[test]
fn the_end_of_the_term_leaves_all_of_them_open_and_the_next_primary_has_all_or_none() {
    let mut bench = followed();
    let asked = bench.ask("g1", publish_all([5, 6, 7]));
    bench.term += 1;
    bench.map("q", &["p", "q"]);
    let ordered = SlotError::NotPrimary { map_version: bench.version, ordered: true };
    assert_eq!(bench.answer(asked), Some(&Err(ordered)));
    bench.term += 1;
    bench.map("p", &["p", "q"]);
    bench.acknowledge();
    let repeat = bench.ask("g2", publish_all([5, 6, 7, 8]));
    bench.acknowledge();
    assert_eq!(offsets(&bench, repeat), [1, 2, 3, 4]);
}
