//! Many clients that connect, a bounded number at once.

use std::sync::Arc;

use anyhow::Context;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    bar, clock,
    dialect::{Heard, Return},
    member::{Member, Shared, take},
    order::Order,
    scenario::Ready,
    socket::Client,
};

/// What one client is to be.
#[derive(Debug, Clone)]
pub(crate) struct Spot {
    /// The node that it connects to.
    pub node: usize,
    /// The group that it joins.
    pub group: String,
    /// What it comes back with.
    pub back: Option<Return>,
    /// Whether its times count.
    pub timed: bool,
}

/// Connects a client and joins it to its group.
pub(crate) async fn enter(ready: &Ready, spot: &Spot, lane: usize, shared: &Arc<Shared>) -> anyhow::Result<Member> {
    let mut client = Client::open(&ready.addresses[spot.node], &ready.dialect).await?;
    let mut order = Order::default();
    let mut heard = |said: Heard<'_>| match said {
        Heard::Message { data, .. } => take(shared, &mut order, (lane, spot.timed), data, 0),
        Heard::Hole(why) => shared.tally.hole(&why),
        _ => {}
    };
    let entered = client.enter(&spot.group, spot.back.as_ref(), &mut heard).await?;
    Ok(Member { client, order, lane, timed: spot.timed, entered, shared: shared.clone() })
}

/// Connects all; how long each took is counted as its latency. The result has the order of the spots.
pub(crate) async fn gather(
    ready: &Arc<Ready>,
    spots: Vec<Spot>,
    at_once: u32,
    shared: &Arc<Shared>,
) -> Vec<anyhow::Result<Member>> {
    let connect = |lane, spot| {
        let (ready, shared) = (ready.clone(), shared.clone());
        async move {
            let start_us = clock::now_us();
            let member = Box::pin(enter(&ready, &spot, lane, &shared)).await;
            if member.is_ok() {
                shared.tally.took(lane, clock::now_us() - start_us);
            }
            member
        }
    };
    each("connecting", spots, at_once, connect).await
}

/// Has a task of its own for each spot, of which a bounded number are at work at once. The result has the order of the spots, with
/// those that have panicked at the end.
pub(crate) async fn each<T, F>(
    what: &'static str,
    spots: Vec<Spot>,
    at_once: u32,
    work: impl Fn(usize, Spot) -> F,
) -> Vec<anyhow::Result<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let bar = bar::count(spots.len() as u64, what);
    let places = Arc::new(Semaphore::new(at_once as usize));
    let mut tasks = JoinSet::new();
    for (lane, spot) in spots.into_iter().enumerate() {
        let (places, work) = (places.clone(), work(lane, spot));
        tasks.spawn(async move {
            let _place = places.acquire().await;
            (lane, work.await)
        });
    }
    let mut all = Vec::with_capacity(tasks.len());
    while let Some(done) = tasks.join_next().await {
        bar.inc(1);
        all.push(done.unwrap_or_else(|error| (usize::MAX, Err(error.into()))));
    }
    bar.finish_and_clear();
    all.sort_unstable_by_key(|(lane, _)| *lane);
    all.into_iter().map(|(_, result)| result).collect()
}

/// The same where all have to succeed.
pub(crate) async fn gather_all(
    ready: &Arc<Ready>,
    spots: Vec<Spot>,
    at_once: u32,
    shared: &Arc<Shared>,
) -> anyhow::Result<Vec<Member>> {
    let all = gather(ready, spots, at_once, shared).await;
    let (count, failed) = (all.len(), all.iter().filter(|member| member.is_err()).count());
    all.into_iter()
        .collect::<Result<_, _>>()
        .with_context(|| format!("{failed} of {count} clients did not get to join"))
}
