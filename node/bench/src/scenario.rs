//! The scenarios, a file each, and what they have in common: the server that they are run against.

mod connect;
mod idle;
mod load;
mod resume;

use std::sync::Arc;

use anyhow::{Context, ensure};

use crate::{
    backend::Backend,
    clock,
    dialect::Dialect,
    files,
    plan::{Plan, Scenario},
    process::{Processes, Usage, own},
    report::Report,
    socket::Address,
};

/// The server that is measured.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its nodes, `http://host:port`.
    pub urls: Vec<String>,
    /// How it is talked to.
    pub dialect: Arc<dyn Dialect>,
    /// Who publishes; clients, members of their groups, unless given.
    pub backend: Option<Arc<dyn Backend>>,
    /// Its processes; those that listen at the nodes' ports on this machine where none are named.
    pub pids: Vec<u32>,
}

/// The same, with what was looked up.
#[derive(Debug)]
pub(crate) struct Ready {
    pub addresses: Vec<Address>,
    pub dialect: Arc<dyn Dialect>,
    pub backend: Option<Arc<dyn Backend>>,
    pub processes: Processes,
}

impl Ready {
    async fn of(target: &Target) -> anyhow::Result<Self> {
        ensure!(!target.urls.is_empty(), "name the nodes");
        let mut addresses = Vec::new();
        for url in &target.urls {
            addresses.push(Address::resolve(url, &*target.dialect).await?);
        }
        let processes = if target.pids.is_empty() {
            Processes::listening_at(&addresses.iter().map(Address::socket).collect::<Vec<_>>())
        } else {
            Processes::of(&target.pids)?
        };
        Ok(Self { addresses, dialect: target.dialect.clone(), backend: target.backend.clone(), processes })
    }

    /// What server and clients have used by now.
    fn look(&self) -> anyhow::Result<Look> {
        let server = if self.processes.pids().is_empty() { None } else { Some(self.processes.usage()?) };
        Ok(Look { at_us: clock::now_us(), server, own: own() })
    }
}

/// What both ends have used by a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub at_us: u64,
    /// Unknown where its processes are.
    pub server: Option<Usage>,
    pub own: Usage,
}

impl Look {
    /// Processor time of the server since then.
    pub(crate) fn cpu_us_since(&self, then: Self) -> Option<u64> {
        Some(self.server?.cpu_us.saturating_sub(then.server?.cpu_us))
    }

    /// The same as a number of processors that were kept busy.
    pub(crate) fn cores_since(&self, then: Self) -> Option<f64> {
        Some(self.cpu_us_since(then)? as f64 / (self.at_us - then.at_us).max(1) as f64)
    }

    /// By how much the server's memory has grown; negative where it has shrunk.
    pub(crate) fn memory_since(&self, then: Self) -> Option<i64> {
        Some(self.server?.memory_bytes as i64 - then.server?.memory_bytes as i64)
    }
}

/// Groups of this run: other runs against the same server have others.
fn groups(count: u32) -> Vec<String> {
    let run: u32 = rand::random();
    (0..count).map(|group| format!("bench-{run:08x}-{group}")).collect()
}

/// Runs one scenario.
///
/// # Errors
/// Where it cannot be carried out: the plan or a URL is wrong, a client is not let in, the server's process ends. What
/// goes wrong with messages is in the report.
pub async fn run(target: &Target, plan: Plan) -> anyhow::Result<Report> {
    plan.check()?;
    files::make_room(plan.connections())?;
    let ready = Arc::new(Ready::of(target).await?);
    let mut report = Report::new(&ready, target, plan);
    let outcome = match plan.scenario {
        Scenario::Fanout | Scenario::Groups | Scenario::Cluster | Scenario::Latency => {
            Box::pin(load::run(&ready, &mut report)).await
        }
        Scenario::Connect => Box::pin(connect::run(&ready, &mut report)).await,
        Scenario::Idle => Box::pin(idle::run(&ready, &mut report)).await,
        Scenario::Resume => Box::pin(resume::run(&ready, &mut report)).await,
    };
    outcome.with_context(|| format!("scenario {}", plan.scenario))?;
    Ok(report)
}
