//! `fanout`, `groups` and `cluster`: as many messages as a window allows. `latency`: as many as are due.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};

use super::{Ready, groups};
use crate::{
    bar, clock,
    crowd::{Spot, gather_all},
    flight::Flight,
    member::{Due, Member, Publishing, Shared},
    plan::{Plan, Scenario},
    report::Report,
};

/// How long nothing may arrive before the rest counts as missing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages that wait for their publisher.
const QUEUE: usize = 1_024;

/// A message of an open loop has no place.
const NO_PLACE: u32 = u32::MAX;

pub(super) async fn run(ready: &Arc<Ready>, report: &mut Report) -> anyhow::Result<()> {
    let plan = report.plan;
    let (flight, free) = Flight::new(plan.window);
    let flight = (plan.scenario != Scenario::Latency).then_some(flight);
    let shared = Arc::new(Shared { flight, ..Shared::default() });
    let names = groups(plan.groups);
    let members = gather_all(ready, spots(plan, &names, ready.addresses.len()), plan.at_once, &shared).await?;
    let mut tasks = JoinSet::new();
    let due = start(ready, members, &names, plan, &mut tasks);

    let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let pace = Pace { plan, due, shared: shared.clone(), stop: stop.clone(), published: published.clone() };
    let mut pacing = JoinSet::new();
    match plan.scenario {
        Scenario::Latency => pacing.spawn_blocking(move || pace.open_loop()),
        _ => pacing.spawn(pace.closed_loop(free)),
    };
    tokio::time::sleep(Duration::from_secs_f64(plan.warm_up_s)).await;
    let begin = (ready.look()?, counts(&shared));
    shared.tally.measuring.store(true, Relaxed);
    bar::wait(Duration::from_secs_f64(plan.seconds), plan.scenario.name(), || shared.tally.delivered.load(Relaxed))
        .await;
    shared.tally.measuring.store(false, Relaxed);
    let end = (ready.look()?, counts(&shared));
    stop.store(true, Relaxed);
    let ran_on = wait_for_the_rest(plan, &shared, &published).await;
    tasks.shutdown().await;
    pacing.shutdown().await;

    report.answered = end.1.answered - begin.1.answered;
    report.deliveries = end.1.delivered - begin.1.delivered;
    report.frame_bytes = (end.1.bytes - begin.1.bytes) as f64 / report.deliveries.max(1) as f64;
    report.spent(begin.0, end.0, report.deliveries);
    report.heard(&shared.tally);
    let all = counts(&shared);
    report.faults.missing = (all.answered * u64::from(plan.members)).saturating_sub(all.delivered);
    report.faults.unanswered = published.load(Relaxed).saturating_sub(all.answered + report.faults.refused);
    report.faults.late_s = ran_on.as_secs_f64();
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    answered: u64,
    delivered: u64,
    bytes: u64,
}

fn counts(shared: &Shared) -> Counts {
    let tally = &shared.tally;
    Counts {
        answered: tally.answered.load(Relaxed),
        delivered: tally.delivered.load(Relaxed),
        bytes: tally.bytes.load(Relaxed),
    }
}

/// A group's first member is its publisher, at its home node. The others are on the other nodes, where there are any.
fn spots(plan: Plan, names: &[String], nodes: usize) -> Vec<Spot> {
    let spot = |(group, name): (usize, &String), member: usize| {
        let home = group % nodes;
        let node = if member == 0 || nodes == 1 { home } else { (home + 1 + (member - 1) % (nodes - 1)) % nodes };
        Spot { node, group: name.clone(), back: None, timed: member > 0 || nodes == 1 }
    };
    let members = plan.members as usize;
    names.iter().enumerate().flat_map(|named| (0..members).map(move |member| spot(named, member))).collect()
}

/// Starts the members; what is due goes into these queues, one for each group.
fn start(
    ready: &Ready,
    members: Vec<Member>,
    names: &[String],
    plan: Plan,
    tasks: &mut JoinSet<()>,
) -> Vec<mpsc::Sender<Due>> {
    let mut queues = Vec::with_capacity(names.len());
    for (at, member) in members.into_iter().enumerate() {
        let (group, member_of) = (at / plan.members as usize, at % plan.members as usize);
        let publishing = (member_of == 0).then(|| {
            let (queue, due) = mpsc::channel(QUEUE);
            queues.push(queue);
            let instead = ready.backend.clone().map(|backend| (backend, group % ready.addresses.len()));
            Publishing { group: names[group].clone(), bytes: plan.bytes as usize, due, instead }
        });
        tasks.spawn(Box::pin(member.follow(publishing)));
    }
    queues
}

/// Shows how long it takes until what is under way has arrived, or nothing more comes.
async fn wait_for_the_rest(plan: Plan, shared: &Shared, published: &AtomicU64) -> Duration {
    let start_us = clock::now_us();
    let (mut last, mut since_us) = (counts(shared), start_us);
    loop {
        let (now, now_us) = (counts(shared), clock::now_us());
        let told = now.answered + shared.tally.refused.load(Relaxed);
        let all = told >= published.load(Relaxed) && now.delivered >= now.answered * u64::from(plan.members);
        if now != last {
            (last, since_us) = (now, now_us);
        }
        if all || now_us - since_us > PATIENCE.as_micros() as u64 {
            return Duration::from_micros(since_us - start_us);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Hands messages to their publishers.
struct Pace {
    plan: Plan,
    due: Vec<mpsc::Sender<Due>>,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
}

impl Pace {
    /// One for each place that is free.
    async fn closed_loop(self, mut free: mpsc::Receiver<u32>) {
        let Some(flight) = &self.shared.flight else { return };
        let mut count = 0;
        while let Some(place) = free.recv().await
            && !self.stop.load(Relaxed)
        {
            flight.leave(place, self.plan.members + 1);
            self.published.fetch_add(1, Relaxed);
            let (queue, due) = self.next(count, place, clock::now_us());
            if queue.send(due).await.is_err() {
                return;
            }
            count += 1;
        }
    }

    /// One whenever it is due. In a thread of its own: the runtime's timers are a millisecond late.
    fn open_loop(self) {
        let start_us = clock::now_us();
        for count in 0_u64.. {
            let due_us = start_us + count.saturating_mul(1_000_000) / u64::from(self.plan.rate);
            while let ahead_us @ 1.. = due_us.saturating_sub(clock::now_us()) {
                if self.stop.load(Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_micros(ahead_us.min(50_000)));
            }
            if self.stop.load(Relaxed) {
                return;
            }
            self.published.fetch_add(1, Relaxed);
            let (queue, due) = self.next(count, NO_PLACE, due_us);
            // Waits where the publisher is behind by its whole queue; the messages that wait keep their times.
            if queue.blocking_send(due).is_err() {
                return;
            }
        }
    }

    /// Groups take turns.
    fn next(&self, count: u64, place: u32, due_us: u64) -> (&mpsc::Sender<Due>, Due) {
        let groups = self.due.len() as u64;
        (&self.due[(count % groups) as usize], Due { number: count / groups, place, due_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_are_on_other_nodes_than_their_subscribers() {
        let plan = Plan { groups: 4, members: 5, ..Plan::of(Scenario::Cluster) };
        let names = groups(4);
        for spots in spots(plan, &names, 3).chunks(5) {
            assert!(spots.iter().all(|spot| spot.group == spots[0].group));
            assert!(!spots[0].timed && spots[1..].iter().all(|spot| spot.timed && spot.node != spots[0].node));
        }
        assert!(spots(plan, &names, 1).iter().all(|spot| spot.node == 0 && spot.timed));
    }
}
