//! What is published to be kept nowhere.

use super::*;
use crate::{
    entry::EphemeralMessage,
    memory::Level,
    request::{PublishEphemeral, ReadGroup},
};

fn typing(data: &'static str) -> (GroupName, PublishEphemeral) {
    (group(), PublishEphemeral { data: [Bytes::from_static(data.as_bytes())].into(), from: None })
}

fn passed_on(data: &'static str, at_ms: u64) -> Push {
    let message = EphemeralMessage { data: Bytes::from_static(data.as_bytes()), from: None, at_ms };
    Push::Group(group(), GroupPush::Ephemeral { messages: [message].into() })
}

const DONE: Result<SlotAnswer, SlotError> = Ok(SlotAnswer::Done(Done));

#[test]
fn it_goes_to_who_follows_the_group_now_and_makes_nothing_exist() {
    let mut bench = Bench::new();
    assert_eq!(bench.answer_to("g1", typing("0")), DONE);
    assert_eq!(bench.answer_to("g1", (group(), ReadGroup)), Ok(SlotAnswer::Group(None)), "it makes no group");
    bench.ask("g1", register());
    bench.ask("g2", register());
    let applied = bench.core.replica().applied();
    assert_eq!(bench.answer_to("g2", typing("1")), DONE);
    for gateway in ["g1", "g2"] {
        assert_eq!(bench.pushes(gateway), [passed_on("1", bench.now_ms)]);
    }
    assert_eq!(bench.core.replica().applied(), applied, "nothing is ordered");
    bench.ask("g1", Unregister(vec![group()]));
    assert_eq!(bench.answer_to("g1", typing("2")), DONE);
    assert_eq!((bench.pushes("g1"), bench.pushes("g2")), (vec![], vec![passed_on("2", bench.now_ms)]));
    assert_eq!(places(&bench.answer_to("g1", publish(5))), [(1, 1)], "it took no offset");
    let since = Some(Position { epoch: bench.core.group_info(&group()).unwrap().epoch, offset: 0 });
    match bench.answer_to("g1", (group(), ReadHistory { since, limit: 10 })) {
        Ok(SlotAnswer::History(history)) => assert_eq!(history.messages.len(), 1, "only the other is kept"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_waits_for_no_copy_and_no_room() {
    let mut bench = Bench::new();
    bench.share();
    bench.ask("g1", register());
    bench.acknowledge();
    bench.out.clear();
    for key in 0..SETTINGS.queue as u128 {
        bench.ask("g1", publish(100 + key));
    }
    bench.input(SlotInput::Memory { of: member("p"), level: Level::Full });
    assert_eq!(bench.answer_to("g1", publish(5)), Err(SlotError::Busy));
    assert_eq!(bench.answer_to("g1", typing("1")), DONE);
    assert_eq!(bench.pushes("g1"), [passed_on("1", bench.now_ms)], "the others are not committed");
}

#[test]
fn who_is_not_the_primary_passes_nothing_on() {
    let mut bench = Bench::new();
    bench.ask("g1", register());
    bench.out.clear();
    bench.term += 1;
    bench.map("q", &["q", "p"]);
    let refused = SlotError::NotPrimary { map_version: bench.version, ordered: false };
    assert_eq!(bench.answer_to("g1", typing("1")), Err(refused), "it is surely not done");
    assert_eq!(bench.pushes("g1"), []);
}
