//! `roost status`: the health report of any node, as a table.

use anyhow::Context;
use serde::Deserialize;

use super::{
    api::{Api, ApiArgs},
    print,
};

/// Arguments of `roost status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print the report as it came
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// What is shown of the report; a newer node may say more.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    status: String,
    reasons: Vec<String>,
    reported_by: String,
    nodes: Vec<Node>,
    slots: Slots,
    map_version: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    node: String,
    generation: u64,
    alive: bool,
    state: Option<String>,
    version: String,
    zone: String,
    http: String,
    load: Load,
    store: Option<String>,
    links: Vec<Link>,
    slots: Held,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Load {
    connections: u64,
    sessions: u64,
    lag_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Link {
    sends: bool,
    hears: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Held {
    primary: u64,
    replica: u64,
    learning: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Slots {
    total: u64,
    primary: u64,
    short: u64,
    unavailable: u64,
}

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let answer = Api::new(&args.api)?.get(&["v1", "cluster", "health"]).await?;
    if args.json {
        return print::line(answer.trim_end());
    }
    let report: Report =
        serde_json::from_str(&answer).context("the answer is not a health report: is this a Roost node?")?;
    print::line(render(&report).trim_end())
}

fn render(report: &Report) -> String {
    let Report { status, map_version, slots, .. } = report;
    let mut text = format!("cluster {status} (asked {}, map version {map_version})\n", report.reported_by);
    for reason in &report.reasons {
        text += &format!("  - {reason}\n");
    }
    text += &format!(
        "slots   {} of {} have a primary, {} short of copies, {} unavailable\n\n",
        slots.primary, slots.total, slots.short, slots.unavailable
    );
    let mut rows = vec![
        [
            "NODE", "STATE", "PRIMARY", "REPLICA", "LEARNING", "CLIENTS", "SESSIONS", "LAG ms", "STORE", "LINKS",
            "VERSION", "HTTP",
        ]
        .map(str::to_owned),
    ];
    rows.extend(report.nodes.iter().map(row));
    text + &table(&rows)
}

fn row(node: &Node) -> [String; 12] {
    let state = match (&node.state, node.alive) {
        (Some(state), true) => state.clone(),
        (_, false) => "DEAD".to_owned(),
        (None, true) => "unknown".to_owned(),
    };
    let up = node.links.iter().filter(|link| link.sends && link.hears).count();
    let zone = if node.zone.is_empty() { String::new() } else { format!("@{}", node.zone) };
    [
        format!("{}{zone}#{}", node.node, node.generation),
        state,
        node.slots.primary.to_string(),
        node.slots.replica.to_string(),
        node.slots.learning.to_string(),
        node.load.connections.to_string(),
        node.load.sessions.to_string(),
        node.load.lag_ms.to_string(),
        node.store.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{up}/{}", node.links.len()),
        node.version.clone(),
        node.http.clone(),
    ]
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_matters() {
        let report = serde_json::json!({
            "status": "yellow", "reasons": ["node n2 is dead"], "reported_by": "n1", "map_version": 7, "new_field": 1,
            "slots": {"total": 1024, "primary": 1024, "replica": 900, "learning": 2, "short": 124, "unavailable": 0},
            "nodes": [
                {"node": "n1", "generation": 3, "alive": true, "state": "serving", "version": "0.1.0", "zone": "a", "http": "http://x:1",
                 "load": {"connections": 5, "sessions": 9, "lag_ms": 1}, "store": "up",
                 "links": [{"peer": "n2", "sends": false, "hears": true, "rtt_us": 3}, {"peer": "n3", "sends": true, "hears": true}],
                 "slots": {"primary": 512, "replica": 400, "learning": 1}},
                {"node": "n2", "generation": 2, "alive": false, "state": null, "store": null}
            ]
        });
        let text = render(&serde_json::from_value(report).unwrap());
        for part in [
            "cluster yellow (asked n1, map version 7)",
            "- node n2 is dead",
            "124 short",
            "n1@a#3",
            "serving",
            "1/2",
            "n2#2",
            "DEAD",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("NODE") || line.starts_with("n1")).collect();
        assert_eq!(lines[0].find("STATE"), lines[1].find("serving"), "columns line up:\n{text}");
    }
}
