//! What is made of a history that breaks none of the rules: what they leave open, and how long things took.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use anyhow::{Result, ensure};

use super::{catalogue::Fault, scene::PUBLISHER};
use crate::{
    history::{History, Outcome, Seen, Stamped, Summary},
    latency::Spread,
};

/// What the history's rules leave open.
pub(super) fn judge(fault: &Fault, may_reset: bool, summary: &Summary, history: &History) -> Result<()> {
    let Summary { refused, unknown, resets, gaps, not_recovered, fewest_copies, .. } = *summary;
    ensure!(refused == 0 && unknown == 0, "{refused} publishes were refused, {unknown} never answered");
    let fewest = fewest_copies.unwrap_or(0);
    ensure!(fewest >= fault.min_copies, "a publish was answered with {fewest} copies");
    let missed = resets + gaps + not_recovered;
    ensure!(
        may_reset || missed == 0,
        "although a copy of everything was left, clients were told of {resets} resets, {gaps} gaps, and {not_recovered} \
         resumes that are not whole: {}",
        not_whole(history)
    );
    Ok(())
}

/// The first resumes that brought less than was missed, for whoever looks for the reason.
fn not_whole(history: &History) -> String {
    let told = history.connections.iter().flat_map(|connection| {
        connection.events.iter().filter_map(move |event| match &event.seen {
            Seen::Joined { group, since: Some(since), at, recovered: false } => Some(format!(
                "{} on {} by its connection {} after {} ms: {group} since {since:?}, goes on at {at:?}",
                connection.client,
                connection.node,
                connection.number,
                event.at_us.saturating_sub(connection.events.first().map_or(0, |first| first.at_us)) / 1_000
            )),
            _ => None,
        })
    });
    told.take(3).collect::<Vec<_>>().join("; ")
}

/// For each beginning how long it took until something that was first sent after it was acknowledged in every group.
pub(super) fn acknowledged_again(history: &History, begun_us: &[u64], healed_us: u64) -> Spread {
    let ends = begun_us.iter().skip(1).copied().chain([healed_us]);
    let longest = begun_us.iter().zip(ends).map(|(&begun_us, end_us)| {
        let mut first: BTreeMap<&str, u64> = BTreeMap::new();
        for publish in &history.publishes {
            let sent_us = publish.attempts.first().map_or(0, |attempt| attempt.sent_us);
            let acked = publish.attempts.iter().find(|attempt| matches!(attempt.outcome, Outcome::Acked { .. }));
            let Some(acked) = acked.filter(|_| (begun_us..end_us).contains(&sent_us)) else { continue };
            let after_us = acked.answered_us - begun_us;
            let earliest = first.entry(&*publish.group).or_insert(after_us);
            *earliest = after_us.min(*earliest);
        }
        first.into_values().max().unwrap_or(0)
    });
    Spread::of(longest.collect())
}

/// How long it took until the last of those connections that were there at the beginning, and were told that they do not hear
/// a group, knew it.
pub(super) fn told_stale(history: &History, during: &Range<u64>) -> Option<Duration> {
    let there = |event: &&Stamped| event.at_us < during.start;
    let first = history.connections.iter().filter(|one| one.events.first().as_ref().is_some_and(there)).filter_map(
        |connection| {
            let stale = |seen: &Seen| matches!(seen, Seen::Stale { .. });
            let mut told = connection.events.iter().filter(|event| stale(&event.seen) && during.contains(&event.at_us));
            told.next().map(|event| Duration::from_micros(event.at_us - during.start))
        },
    );
    first.max()
}

/// How long the publishes took that the scene's own publishers sent in this time, by the nodes that they went to.
pub(super) fn publishes(history: &History, window: &Range<u64>) -> Spread {
    let own = history.publishes.iter().filter(|publish| publish.publisher.starts_with(PUBLISHER));
    let took = own.filter_map(|publish| {
        let sent_us = publish.attempts.first().map(|attempt| attempt.sent_us)?;
        let acked = publish.attempts.iter().find(|attempt| matches!(attempt.outcome, Outcome::Acked { .. }))?;
        window.contains(&sent_us).then(|| acked.answered_us - sent_us)
    });
    Spread::of(took.collect())
}

/// Those who do nothing unusual are served meanwhile, where that is promised.
pub(super) fn bystanders(fault: &Fault, publishes: &Spread) -> Result<()> {
    let Some(bound_ms) = fault.bystanders_p99_ms else { return Ok(()) };
    ensure!(publishes.count > 0, "nobody else published meanwhile");
    ensure!(publishes.p99_us <= bound_ms * 1_000, "others were to wait for {bound_ms} ms at p99: {publishes}");
    Ok(())
}
