//! The only place that spawns. Tasks are declared with a name and awaited: [`Tasks::shut_down`] returns when all are over.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio::task::JoinError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of one node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    fatal: CancellationToken,
}

impl Tasks {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that owns state: its end before the stop, by a panic or otherwise, stops the node. It is dropped at
    /// its next await once the stop was asked for.
    #[expect(clippy::disallowed_methods, reason = "this is the place that the others are sent to")]
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        self.tracker.spawn(async move {
            let stop = this.stop.clone();
            let run = tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => true,
                    () = task => false,
                }
            });
            match run.await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::error!(task = name, "a task that must not end has ended: the node stops");
                    this.fatal.cancel();
                }
                Err(error) => this.ended_badly(name, &error),
            }
        });
    }

    /// Starts a task that others count on until it is done, such as a link to a peer: a panic stops the node.
    #[expect(clippy::disallowed_methods, reason = "this is the place that the others are sent to")]
    pub fn spawn_until_done(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        self.tracker.spawn(async move {
            if let Err(error) = tokio::spawn(until_stopped(this.stop.clone(), task)).await {
                this.ended_badly(name, &error);
            }
        });
    }

    fn ended_badly(&self, name: &'static str, error: &JoinError) {
        if error.is_panic() {
            tracing::error!(task = name, "a task panicked: the node stops");
            self.fatal.cancel();
        }
    }

    /// Starts a task that may end when it likes (a connection, a request). A panic ends only itself, and is logged.
    pub fn spawn_detached(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        // In a box: each future around it that takes it would have room for it twice.
        let task = AssertUnwindSafe(until_stopped(self.stop.clone(), Box::pin(task))).catch_unwind();
        self.tracker.spawn(async move {
            if task.await.is_err() {
                tracing::error!(task = name, "a task panicked: what it served has ended");
            }
        });
    }

    /// Is cancelled when the tasks are to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Is cancelled when a task that must not end has ended.
    pub fn fatal(&self) -> &CancellationToken {
        &self.fatal
    }

    /// Has all tasks stop at their next await, and waits for none.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops all tasks and waits for them, for `limit` at most; says whether all have ended.
    pub async fn shut_down(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

async fn until_stopped(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = task => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_panic_stops_the_node_where_others_count_on_the_task_and_an_end_does_not() {
        let tasks = Tasks::new();
        tasks.spawn_until_done("done", async {});
        tasks.spawn_detached("alone", async { panic!("on purpose") });
        let told = tasks.fatal().cancelled();
        assert!(tokio::time::timeout(Duration::from_millis(100), told).await.is_err(), "neither is fatal");
        tasks.spawn_until_done("link", async { panic!("on purpose") });
        tokio::time::timeout(LIMIT, tasks.fatal().cancelled()).await.expect("somebody counts on it");
        assert!(tasks.shut_down(LIMIT).await);
    }

    #[tokio::test]
    async fn what_runs_until_it_is_done_stops_with_the_node() {
        let tasks = Tasks::new();
        tasks.spawn_until_done("link", std::future::pending());
        assert!(tasks.shut_down(LIMIT).await);
        assert!(!tasks.fatal().is_cancelled());
    }
}
