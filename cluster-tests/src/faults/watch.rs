//! What nodes say of the cluster while a fault is there, and how much memory they take.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use roost::{clock, tasks::Tasks};

use crate::{api::Api, cluster::Cluster};

/// Between two looks at a node.
const LOOK: Duration = Duration::from_millis(100);
/// A node that takes longer does not answer.
const ANSWER: Duration = Duration::from_secs(1);

/// A look at a node's `/health`.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// When it was begun, in microseconds.
    pub(super) at_us: u64,
    /// What it says: the first thing that is not as it should be; empty where all is, `None` where no answer came.
    pub(super) says: Option<String>,
}

/// Looks at nodes until it is dropped.
pub(super) struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    tasks: Tasks,
}

impl Watch {
    /// Begins to look at all nodes of this cluster.
    pub(super) fn start(cluster: &Cluster) -> Self {
        let this = Self { looks: Arc::default(), tasks: Tasks::new() };
        for node in cluster.running() {
            this.tasks.spawn_detached("watch", watch(cluster.api(node), this.looks.clone()));
        }
        this
    }

    /// The first thing that any node that answered in this time found wrong, and how long after the beginning.
    pub(super) fn noticed(&self, during: &Range<u64>) -> Option<(Duration, String)> {
        let looks = self.looks();
        let wrong = looks.iter().filter(|look| during.contains(&look.at_us)).filter_map(|look| {
            let says = look.says.as_ref().filter(|says| !says.is_empty())?;
            Some((Duration::from_micros(look.at_us - during.start), says.clone()))
        });
        wrong.min_by_key(|(after, _)| *after)
    }

    fn looks(&self) -> MutexGuard<'_, Vec<Look>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn watch(api: Api, looks: Arc<Mutex<Vec<Look>>>) {
    loop {
        let at_us = clock::mono_us();
        let answer = tokio::time::timeout(ANSWER, api.get("/health")).await;
        let says = answer.ok().and_then(Result::ok).map(|answer| {
            let checks = answer.body["checks"].as_array().cloned().unwrap_or_default();
            let wrong = checks.iter().find(|check| check["status"] != "pass");
            wrong.map_or(String::new(), |check| check["detail"].as_str().unwrap_or("?").to_owned())
        });
        looks.lock().unwrap_or_else(PoisonError::into_inner).push(Look { at_us, says });
        tokio::time::sleep(LOOK).await;
    }
}
