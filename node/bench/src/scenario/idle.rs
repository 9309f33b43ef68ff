//! `idle`: what clients cost that do nothing but stay.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{Ready, connect::crowd};
use crate::{bar, crowd::gather_all, member::Shared, report::Report};

/// What connecting sets off is over by then.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) async fn run(ready: &Arc<Ready>, report: &mut Report) -> anyhow::Result<()> {
    let plan = report.plan;
    let shared = Arc::new(Shared::default());
    // The first clients have a server make what it keeps for all: that is no memory of a connection.
    drop(gather_all(ready, crowd(plan.clients.min(20), 1, ready.addresses.len()), plan.at_once, &shared).await?);
    bar::wait(SETTLE, "settling", || 0).await;
    let length = Duration::from_secs_f64(plan.seconds);
    let empty = ready.look()?;
    bar::wait(length, "empty", || 0).await;
    let before = ready.look()?;
    let spots = crowd(plan.clients, plan.groups, ready.addresses.len());
    let members = gather_all(ready, spots, plan.at_once, &shared).await?;
    let mut tasks = JoinSet::new();
    for member in members {
        tasks.spawn(Box::pin(member.follow(None)));
    }
    bar::wait(SETTLE, "settling", || 0).await;
    let begin = ready.look()?;
    bar::wait(length, "idle", || u64::from(plan.clients)).await;
    let end = ready.look()?;
    tasks.shutdown().await;
    report.clients = u64::from(plan.clients);
    report.spent(begin, end, 0);
    report.cores_empty = end.cores_since(begin).and(before.cores_since(empty));
    report.memory_each = end.memory_since(before).map(|bytes| bytes as f64 / f64::from(plan.clients));
    report.heard(&shared.tally);
    Ok(())
}
