//! The only place that spawns. Tasks are declared with a name and awaited: [`Tasks::shut_down`] returns when all are over.

use std::{future::Future, time::Duration};

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
            let run = tokio::spawn(async move {
                let stop = this.stop.clone();
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
                Err(error) if error.is_panic() => {
                    tracing::error!(task = name, "a task panicked: the node stops");
                    this.fatal.cancel();
                }
                Err(_) => {}
            }
        });
    }

    /// Starts a task that may end when it likes (a connection, a request). A panic ends only itself.
    pub fn spawn_detached(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
            let _ = name;
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
