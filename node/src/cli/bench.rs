//! `roost bench`: loads a cluster with clients, and says what they saw and what that cost the nodes. The load itself is in
//! the crate `roost-bench`; all clients are in this process.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use futures_util::future::BoxFuture;
use roost_bench::{Backend, Plan, Report, Scenario, Target, roost::Roost};

use super::{
    api::{Api, ApiArgs},
    print,
};

/// Arguments of `roost bench`. What is not given is the scenario's own.
#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    /// What to measure; everything but `cluster` unless given, and that too where several nodes are named
    #[arg(value_parser = PossibleValuesParser::new(Scenario::ALL.map(Scenario::name))
        .map(|name| name.parse::<Scenario>().expect("it is one of the names")))]
    scenarios: Vec<Scenario>,
    /// The nodes, separated by commas; those of `roost dev` unless given
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8000,http://127.0.0.1:8001,http://127.0.0.1:8002"
    )]
    urls: Vec<String>,
    /// The processes of the nodes, separated by commas; found by their ports where they are on this machine
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// Groups, each with a publisher
    #[arg(long)]
    groups: Option<u32>,
    /// Members of each group, its publisher among them (fanout, groups, cluster, latency)
    #[arg(long)]
    members: Option<u32>,
    /// Clients in all (connect, idle, resume)
    #[arg(long)]
    clients: Option<u32>,
    /// Messages under way in all (fanout, groups, cluster)
    #[arg(long)]
    window: Option<u32>,
    /// Messages a second in all (latency)
    #[arg(long)]
    rate: Option<u32>,
    /// Bytes of JSON in each message
    #[arg(long)]
    bytes: Option<u32>,
    /// Messages of each group that a client misses (resume)
    #[arg(long)]
    missed: Option<u32>,
    /// Clients that connect at once
    #[arg(long)]
    at_once: Option<u32>,
    /// How long each scenario is measured
    #[arg(long)]
    seconds: Option<f64>,
    /// How to publish (fanout, groups, cluster, latency, resume)
    #[arg(long, value_enum, default_value_t = Via::Ws)]
    via: Via,
    /// The key for the HTTP API, for --via http
    #[arg(long, env = "ROOST_API_KEY", hide_env_values = true, default_value = "dev-key")]
    api_key: String,
    /// A line of JSON for each scenario instead of text
    #[arg(long)]
    json: bool,
    /// A page with plots, written to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// How a group's messages are published.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Via {
    /// By a member of the group, over its WebSocket
    Ws,
    /// By a server, over HTTP: each message of a group after the one before is answered
    Http,
}

/// A server that publishes over HTTP, through each of the nodes.
#[derive(Debug)]
struct Http {
    nodes: Vec<Api>,
}

impl Http {
    fn of(urls: &[String], api_key: &str) -> anyhow::Result<Self> {
        let api = |url: &String| Api::new(&ApiArgs { url: url.clone(), api_key: api_key.to_owned() });
        Ok(Self { nodes: urls.iter().map(api).collect::<Result<_, _>>()? })
    }
}

impl Backend for Http {
    fn publish<'a>(&'a self, node: usize, group: &'a str, data: String) -> BoxFuture<'a, Result<(), String>> {
        let path = ["v1", "groups", group, "messages"];
        let body = format!(r#"{{"data":{data}}}"#);
        Box::pin(async move {
            let answer = self.nodes[node].post(&path, body).await;
            answer.map(drop).map_err(|refusal| refusal.to_string())
        })
    }
}

impl BenchArgs {
    fn scenarios(&self) -> Vec<Scenario> {
        let all = || Scenario::ALL.into_iter().filter(|one| *one != Scenario::Cluster || self.urls.len() > 1).collect();
        if self.scenarios.is_empty() { all() } else { self.scenarios.clone() }
    }

    fn plan(&self, scenario: Scenario) -> Plan {
        let of = Plan::of(scenario);
        // A scenario that has no use for a size leaves it at 0.
        let size = |given: Option<u32>, own: u32| if own == 0 { 0 } else { given.unwrap_or(own) };
        let clients = size(self.clients, of.clients);
        let at_once = if scenario == Scenario::Resume { clients } else { of.at_once };
        Plan {
            groups: self.groups.unwrap_or(of.groups),
            members: size(self.members, of.members),
            clients,
            window: size(self.window, of.window),
            rate: size(self.rate, of.rate),
            bytes: self.bytes.unwrap_or(of.bytes),
            missed: size(self.missed, of.missed),
            at_once: self.at_once.unwrap_or(at_once),
            seconds: if of.seconds > 0.0 { self.seconds.unwrap_or(of.seconds) } else { 0.0 },
            ..of
        }
    }
}

pub(super) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let plans: Vec<Plan> = args.scenarios().into_iter().map(|scenario| args.plan(scenario)).collect();
    for plan in &plans {
        plan.check().with_context(|| format!("scenario {}", plan.scenario))?;
        ensure!(
            plan.scenario != Scenario::Cluster || args.urls.len() > 1,
            "scenario cluster needs several nodes: name them with --urls"
        );
    }
    let backend: Option<Arc<dyn Backend>> = match args.via {
        Via::Ws => None,
        Via::Http => Some(Arc::new(Http::of(&args.urls, &args.api_key)?)),
    };
    let target = Target { urls: args.urls, dialect: Arc::new(Roost), backend, pids: args.pid };
    let mut reports: Vec<Report> = Vec::new();
    for plan in plans {
        let report = Box::pin(roost_bench::run(&target, plan)).await?;
        if args.json {
            print::line(report.json())?;
        } else {
            print::line(&report)?;
        }
        reports.push(report);
        // What was measured before a failure is on the page.
        if let Some(path) = &args.html {
            std::fs::write(path, roost_bench::page(&reports)).with_context(|| format!("{}", path.display()))?;
        }
    }
    let failed = reports.iter().filter(|report| !report.is_whole()).map(|report| report.plan.scenario.name());
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), "not everything arrived once and in order, or was let in: {}", failed.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> BenchArgs {
        Line::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).unwrap().bench
    }

    #[test]
    fn a_scenario_keeps_the_sizes_that_are_not_given() {
        let args = parse("fanout resume --members 10 --clients 300 --seconds 2 --rate 7");
        let fanout = args.plan(Scenario::Fanout);
        assert_eq!((fanout.members, fanout.clients, fanout.window, fanout.rate, fanout.seconds), (10, 0, 1, 0, 2.0));
        let resume = args.plan(Scenario::Resume);
        assert_eq!((resume.members, resume.clients, resume.at_once, resume.seconds), (0, 300, 300, 0.0));
        assert_eq!(args.scenarios(), [Scenario::Fanout, Scenario::Resume]);
    }

    #[test]
    fn one_node_is_no_cluster() {
        assert!(!parse("--urls http://a").scenarios().contains(&Scenario::Cluster));
        assert!(parse("--urls http://a,http://b").scenarios().contains(&Scenario::Cluster));
    }
}
