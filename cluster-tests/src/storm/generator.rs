//! The processes that hold the crowd: the same program again, told what to do over its standard input, answering over its
//! standard output, a line of JSON for each. So that the clients' open files and time are not the test's.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, process::Stdio, sync::Arc};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use roost::open_files::OpenFiles;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{LOST, NODES, Plan, crowd::Crowd};
use crate::cluster::Cluster;

/// The command that runs [`serve`].
pub const COMMAND: &str = "generator";
/// Clients of one process, well below the usual limits of open files.
const CLIENTS_EACH: usize = 5_000;

/// What a generator is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Attach clients to the first of these nodes, and have each join one of the groups.
    Gather { nodes: Vec<SocketAddr>, groups: Vec<Arc<str>>, clients: usize, number: u8 },
    /// Wait until each has come back and has all that was published until then; it must be no less than `heads`.
    CatchUp { heads: BTreeMap<String, u64> },
    /// Wait until each has come as far as `heads`, and say what they have seen.
    Settle { heads: BTreeMap<String, u64> },
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// All are there.
    Gathered,
    /// When each was caught up, in milliseconds by the wall's clock; those that were not are left out.
    CaughtUp { at_ms: Vec<u64> },
    /// What was counted.
    Settled(Tally),
}

/// What clients have counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) byes: u64,
    pub(super) errors: u64,
    pub(super) duplicates: u64,
    pub(super) messages: u64,
    pub(super) wrong: Vec<String>,
}

/// Is a generator, until its standard input ends.
///
/// # Errors
/// Where an order cannot be carried out.
pub async fn serve() -> Result<()> {
    // Raises the limit of this process.
    OpenFiles::of_process()?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let (mut crowd, mut out) = (Crowd::default(), tokio::io::stdout());
    while let Some(order) = orders.next_line().await? {
        let answer = crowd.carry_out(serde_json::from_str(&order)?).await?;
        out.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes()).await?;
        out.flush().await?;
    }
    Ok(())
}

/// The running generators. Dropped, they are killed.
pub(super) struct Generators(Vec<Generator>);

struct Generator {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Generators {
    /// Starts as many as the plan needs and gathers the crowd.
    pub(super) async fn start(plan: &Plan, cluster: &Cluster, groups: &[Arc<str>]) -> Result<Self> {
        let address = |node| Ok(cluster.url(node).trim_start_matches("http://").parse()?);
        let nodes = (LOST..NODES).map(address).collect::<Result<Vec<SocketAddr>>>()?;
        let count = plan.clients.div_ceil(CLIENTS_EACH);
        let mut this = Self((0..count).map(|_| Generator::start(&plan.generator)).collect::<Result<_>>()?);
        let mut left = plan.clients;
        let gathering = this.0.iter_mut().zip(0_u8..).map(|(generator, number)| {
            let clients = left.min(CLIENTS_EACH);
            left -= clients;
            let (nodes, groups) = (nodes.clone(), groups.to_vec());
            generator.asked(Order::Gather { nodes, groups, clients, number })
        });
        try_join_all(gathering).await?;
        Ok(this)
    }

    /// Gives all the same order, and waits for their answers.
    pub(super) async fn all(&mut self, order: &Order) -> Result<Vec<Answer>> {
        try_join_all(self.0.iter_mut().map(|generator| generator.asked(order.clone()))).await
    }

    /// Ends the processes, and waits for them.
    pub(super) async fn end(self) -> Result<()> {
        for Generator { mut child, orders, .. } in self.0 {
            drop(orders);
            child.wait().await?;
        }
        Ok(())
    }
}

impl Generator {
    fn start(program: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let orders = child.stdin.take().context("it has a standard input")?;
        let answers = BufReader::new(child.stdout.take().context("it has a standard output")?).lines();
        Ok(Self { child, orders, answers })
    }

    async fn asked(&mut self, order: Order) -> Result<Answer> {
        self.orders.write_all(format!("{}\n", serde_json::to_string(&order)?).as_bytes()).await?;
        self.orders.flush().await?;
        let answer = self.answers.next_line().await?.context("a generator has ended: its reason is above")?;
        Ok(serde_json::from_str(&answer)?)
    }
}
