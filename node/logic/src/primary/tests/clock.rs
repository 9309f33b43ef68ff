//! What a primary does not end while its wall clock is not trusted.

use super::*;

/// The sessions that were ended, as the store is told.
fn ends(bench: &Bench) -> usize {
    bench.out.iter().filter(|output| matches!(output, SlotOutput::Save { ended: true, .. })).count()
}

#[test]
fn no_session_ends_by_a_clock_that_is_not_trusted() {
    let mut bench = Bench::with_session();
    bench.input(SlotInput::Clock { trusted: false });
    bench.now_ms += 3 * 86_400_000;
    bench.pass(2_000);
    assert_eq!(ends(&bench), 0);
    // It may have left the memory, and comes back from the store.
    let read = bench.ask("g1", (SESSION, ReadSession));
    bench.store(true, Some(record()));
    assert!(matches!(bench.answer(read), Some(Ok(SlotAnswer::Session(_)))), "{:?}", bench.answer(read));
    let attach = bench.attach("g1", 1);
    let attachment = bench.attached(attach);
    bench.ask("g1", (SESSION, Detach { client: key(), attachment }));
    assert_eq!(ends(&bench), 0);
    bench.input(SlotInput::Clock { trusted: true });
    bench.now_ms += 3 * 86_400_000;
    bench.pass(2_000);
    assert_eq!(ends(&bench), 1);
}

#[test]
fn no_message_grows_too_old_by_a_clock_that_is_not_trusted() {
    let mut bench = Bench::new();
    assert!(bench.answer_to("g1", publish(1)).is_ok());
    let kept = |bench: &Bench| bench.core.group_info(&group()).map_or(0, |info| info.kept);
    bench.input(SlotInput::Clock { trusted: false });
    bench.now_ms += 86_400_000;
    bench.pass(10_000);
    assert_eq!(kept(&bench), 1);
    bench.input(SlotInput::Clock { trusted: true });
    bench.pass(10_000);
    assert_eq!(kept(&bench), 0);
}
