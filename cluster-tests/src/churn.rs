//! Clients that never rest: some lose their connection and come back, some leave their group and join another one. None of
//! it needs the store, so none of it may wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use roost::{clock, tasks::Tasks};
use tokio::sync::oneshot;

use crate::{
    client::{Client, State},
    history::History,
};

/// Until a client is back, or in a group.
const LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// Restless clients; stopped, they hand over their logs.
pub struct Churn {
    stop: Arc<AtomicBool>,
    tasks: Tasks,
    clients: Vec<oneshot::Receiver<Result<Client>>>,
}

impl Churn {
    /// Begins: one of two clients loses its connection again and again, the other joins one new group after the other, with
    /// this pause in between.
    pub fn start(clients: Vec<Client>, pause: Duration) -> Self {
        let (stop, tasks) = (Arc::new(AtomicBool::new(false)), Tasks::new());
        let restless = clients.into_iter().enumerate().map(|(number, client)| {
            let (done, finished) = oneshot::channel();
            let stop = stop.clone();
            tasks.spawn_detached("restless client", async move {
                let outcome = if number % 2 == 0 {
                    comes_back(&client, pause, &stop).await
                } else {
                    joins(&client, pause, &stop).await
                };
                let _ = done.send(outcome.map(|()| client));
            });
            finished
        });
        let clients = restless.collect();
        Self { stop, tasks, clients }
    }

    /// Ends it. An error where a client could not come back or join.
    pub async fn stop(self, history: &mut History) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let finished = tokio::time::timeout(2 * LIMIT, client).await;
            let client = finished.context("a restless client hangs")?.context("a restless client is gone")??;
            client.finish(false, history).await?;
        }
        ensure!(self.tasks.shut_down(LIMIT).await, "restless clients do not end");
        Ok(())
    }
}

async fn comes_back(client: &Client, pause: Duration, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let before = client.state().connections;
        client.cut().await?;
        // Not by `wait_until`: what it takes cannot be sent between threads.
        let limit = clock::deadline(LIMIT);
        while client.state().connections == before {
            let State { ended, .. } = client.state();
            ensure!(ended.is_none(), "{} ended: {ended:?}", client.name());
            ensure!(clock::deadline(Duration::ZERO) < limit, "{} is not back after {LIMIT:?}", client.name());
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

async fn joins(client: &Client, pause: Duration, stop: &AtomicBool) -> Result<()> {
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let group = format!("chat:new-{}-{number}", client.name());
        client.join(&group).await?;
        tokio::time::sleep(pause).await;
        client.leave(&group).await?;
    }
    Ok(())
}
