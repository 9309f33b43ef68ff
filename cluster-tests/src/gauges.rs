//! What nodes say of themselves while a test goes on, written down: how they find the store, what waits for it, and how
//! much memory they take.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use roost::{clock, tasks::Tasks};

use crate::{api::Api, cluster::Cluster, servers::resident_mb};

/// Between two looks at a node's health.
const LOOK: Duration = Duration::from_millis(100);
/// So many looks at the health for one at the metrics.
const METRICS_EACH: usize = 5;

/// A look at a node's `/health`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    /// When the answer came, in microseconds.
    pub at_us: u64,
    pub node: usize,
    /// The answer's status; 0 where none came.
    pub status: u16,
    /// What it says of the store: `up`, `slow`, `down`.
    pub database: String,
}

/// A look at a node's metrics and memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// In microseconds.
    pub at_us: u64,
    pub node: usize,
    /// Requests that the store has not answered.
    pub in_flight: u64,
    /// Requests that wait for their turn.
    pub waiting: u64,
    /// Of the process, in MB.
    pub resident_mb: u64,
}

/// The most that was read in a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Most {
    /// Of any node.
    pub in_flight: u64,
    /// Of any node.
    pub waiting: u64,
    /// Of any node, in MB.
    pub resident_mb: u64,
}

/// Looks at all nodes until it is dropped.
pub struct Gauges {
    written: Arc<Mutex<Written>>,
    nodes: usize,
    tasks: Tasks,
}

#[derive(Default)]
struct Written {
    looks: Vec<Look>,
    readings: Vec<Reading>,
    failed: Option<String>,
}

impl Gauges {
    /// Begins to look at the nodes of a cluster of processes, as they run now.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let servers = cluster.servers()?;
        let this = Self { written: Arc::default(), nodes: servers.len(), tasks: Tasks::new() };
        for node in 0..servers.len() {
            let id = servers.id(node).context("it does not run")?;
            this.tasks.spawn_detached("gauges", watch(cluster.api(node), node, id, this.written.clone()));
        }
        Ok(this)
    }

    /// When each node first said, at or after this time, that its store is so; none where one has not by now.
    pub fn first(&self, since_us: u64, is_so: impl Fn(&str) -> bool) -> Option<Vec<u64>> {
        let written = self.written();
        (0..self.nodes)
            .map(|node| {
                let of_node = |look: &&Look| look.node == node && look.at_us >= since_us && is_so(&look.database);
                written.looks.iter().find(of_node).map(|look| look.at_us)
            })
            .collect()
    }

    /// Whether every node's latest word of its store is this.
    pub fn last_is(&self, database: &str) -> bool {
        let written = self.written();
        (0..self.nodes).all(|node| {
            written.looks.iter().rev().find(|look| look.node == node).is_some_and(|look| look.database == database)
        })
    }

    /// How many looks of this time found a node that would have no clients sent to it, or did not answer.
    pub fn not_served(&self, window: &Range<u64>) -> usize {
        let written = self.written();
        written.looks.iter().filter(|look| window.contains(&look.at_us) && look.status != 200).count()
    }

    /// What stood in the metrics at most. An error where the metrics lacked something.
    pub fn most(&self, window: &Range<u64>) -> Result<Most> {
        let written = self.written();
        if let Some(failed) = &written.failed {
            anyhow::bail!("{failed}");
        }
        let mut most = Most::default();
        for reading in written.readings.iter().filter(|reading| window.contains(&reading.at_us)) {
            most.in_flight = most.in_flight.max(reading.in_flight);
            most.waiting = most.waiting.max(reading.waiting);
            most.resident_mb = most.resident_mb.max(reading.resident_mb);
        }
        Ok(most)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn watch(api: Api, node: usize, id: u32, written: Arc<Mutex<Written>>) {
    for round in 0_usize.. {
        let look = match api.get("/health").await {
            Ok(answer) => Look {
                at_us: clock::mono_us(),
                node,
                status: answer.status,
                database: answer.body["database"].as_str().unwrap_or_default().to_owned(),
            },
            Err(_) => Look { at_us: clock::mono_us(), node, status: 0, database: String::new() },
        };
        let reading = if round % METRICS_EACH == 0 { Some(read(&api, node, id).await) } else { None };
        {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            written.looks.push(look);
            match reading {
                Some(Ok(reading)) => written.readings.push(reading),
                Some(Err(error)) => written.failed = Some(format!("{error:#}")),
                None => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn read(api: &Api, node: usize, id: u32) -> Result<Reading> {
    let text = api.raw(reqwest::Method::GET, "/metrics", None, Vec::new()).await?.text().await?;
    let in_flight = metric(&text, "roost_store_in_flight")?;
    let waiting = metric(&text, "roost_store_waiting")?;
    Ok(Reading { at_us: clock::mono_us(), node, in_flight, waiting, resident_mb: resident_mb(id)? })
}

/// The sum of a metric's series.
pub fn metric(text: &str, name: &str) -> Result<u64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']))?;
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    values.map(|value| value as u64).reduce(|sum, value| sum + value).with_context(|| format!("no metric {name}"))
}
