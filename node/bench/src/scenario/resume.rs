//! `resume`: clients are cut off, miss messages, and come back at once. How long until each has what it missed.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{sync::mpsc, task::JoinSet};

use super::{Ready, connect::crowd};
use crate::{
    bar, clock,
    crowd::{Spot, each, enter, gather_all},
    dialect::{Heard, Return},
    member::{Due, Publishing, Shared, take},
    order::Order,
    plan::Plan,
    report::Report,
};

/// Until what was missed is published, and until a client has it.
const LIMIT: Duration = Duration::from_secs(60);
/// The server has seen that the clients are gone by then.
const SETTLE: Duration = Duration::from_secs(1);

pub(super) async fn run(ready: &Arc<Ready>, report: &mut Report) -> anyhow::Result<()> {
    ensure!(ready.dialect.resumes(), "clients of {} cannot come back", ready.dialect.name());
    let plan = report.plan;
    let shared = Arc::new(Shared::default());
    let mut spots = crowd(plan.clients, plan.groups, ready.addresses.len());
    let members = gather_all(ready, spots.clone(), plan.at_once.min(64), &shared).await?;
    for (spot, member) in spots.iter_mut().zip(&members) {
        let since = member.entered.position.clone();
        spot.back = Some(Return { group: spot.group.clone(), token: member.entered.token.clone(), since });
    }
    // The sockets close without a word, as those of a client whose network is gone.
    drop(members);
    publish(ready, plan, &spots).await.context("what the clients are to miss could not be published")?;
    bar::wait(SETTLE, "settling", || 0).await;

    shared.tally.measuring.store(true, Relaxed);
    let begin = ready.look()?;
    come_back(ready, plan, spots, &shared).await;
    let end = ready.look()?;
    let back = shared.tally.histograms().0.len();
    report.clients = back;
    report.deliveries = shared.tally.delivered.load(Relaxed);
    report.spent(begin, end, back);
    report.heard(&shared.tally);
    report.faults.missing = (u64::from(plan.clients) * u64::from(plan.missed)).saturating_sub(report.deliveries);
    Ok(())
}

/// Publishes to each group what its clients are to miss.
async fn publish(ready: &Arc<Ready>, plan: Plan, spots: &[Spot]) -> anyhow::Result<()> {
    let shared = Arc::new(Shared::default());
    let publishers: Vec<Spot> =
        spots[..plan.groups as usize].iter().map(|spot| Spot { back: None, ..spot.clone() }).collect();
    let members = gather_all(ready, publishers.clone(), plan.at_once.min(64), &shared).await?;
    let mut tasks = JoinSet::new();
    let mut queues = Vec::new();
    for (member, spot) in members.into_iter().zip(publishers) {
        let (queue, due) = mpsc::channel(plan.missed as usize);
        for number in 0..u64::from(plan.missed) {
            queue.try_send(Due { number, place: u32::MAX, due_us: clock::now_us() })?;
        }
        queues.push(queue);
        let instead = ready.backend.clone().map(|backend| (backend, spot.node));
        let publishing = Publishing { group: spot.group, bytes: plan.bytes as usize, due, instead };
        tasks.spawn(Box::pin(member.follow(Some(publishing))));
    }
    let all = u64::from(plan.groups) * u64::from(plan.missed);
    let answered = async {
        while shared.tally.answered.load(Relaxed) < all && shared.tally.refused.load(Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(LIMIT, answered).await.is_ok();
    tasks.shutdown().await;
    let answered = shared.tally.answered.load(Relaxed);
    ensure!(
        in_time && answered == all,
        "{answered} of {all} publishes were answered: {}",
        shared.tally.words().join("; ")
    );
    Ok(())
}

/// All come back; the time of each counts until it has everything.
async fn come_back(ready: &Arc<Ready>, plan: Plan, spots: Vec<Spot>, shared: &Arc<Shared>) {
    let come_back = |lane, spot| {
        let (ready, shared) = (ready.clone(), shared.clone());
        async move {
            let start_us = clock::now_us();
            let catching_up = Box::pin(catch_up(&ready, &spot, lane, u64::from(plan.missed), &shared));
            let client = tokio::time::timeout(LIMIT, catching_up).await.context("not in time").flatten()?;
            shared.tally.took(lane, clock::now_us() - start_us);
            Ok(client)
        }
    };
    // Nobody leaves before all are there: what that costs the server is not asked for.
    let back = each("coming back", spots, plan.at_once, come_back).await;
    for error in back.iter().filter_map(|client| client.as_ref().err()) {
        shared.tally.hole(&format!("{error:#}"));
    }
}

async fn catch_up(
    ready: &Ready,
    spot: &Spot,
    lane: usize,
    missed: u64,
    shared: &Arc<Shared>,
) -> anyhow::Result<crate::member::Member> {
    // What a replay takes is told by the clients' times; how old its messages are says nothing.
    let spot = Spot { timed: false, ..spot.clone() };
    let mut member = enter(ready, &spot, lane, shared).await?;
    ensure!(member.entered.recovered, "the server says that it does not have what was missed");
    while !is_whole(&member.order, missed) {
        let text = member.client.text().await?;
        let order = &mut member.order;
        let mut left_bytes = text.len();
        let says = member.client.read(&text, &mut |said| match said {
            Heard::Message { data, .. } => {
                take(shared, order, (lane, false), data, std::mem::take(&mut left_bytes));
            }
            Heard::Hole(why) | Heard::Refused { why, .. } => shared.tally.hole(&why),
            _ => {}
        })?;
        for say in says {
            member.client.say(say).await?;
        }
    }
    Ok(member)
}

/// Whether all messages before this number are there.
fn is_whole(order: &Order, missed: u64) -> bool {
    order.next() >= missed && order.missing() == 0
}
