//! The page of results: what was measured how, a table, what falls short, and a plot of each figure. What stands below its
//! last heading is written by people, and is kept.

use std::{fmt::Write, fs, io, path::Path};

use roost_bench::svg::{Bar, bars};

use crate::{
    outcome::{Outcome, Spread},
    peers::Peer,
    rows::{Figure, Row},
};

/// From here on the page is written by hand.
const BY_HAND: &str = "## What to read from it";

/// Writes the page, and its plots into the folder `race/plots` beside it.
pub(crate) fn write(path: &Path, outcome: &Outcome, rows: &[Row]) -> io::Result<()> {
    let plots = path.parent().unwrap_or(Path::new(".")).join("race/plots");
    fs::create_dir_all(&plots)?;
    for (name, svg) in drawn(outcome, rows) {
        fs::write(plots.join(name), svg + "\n")?;
    }
    let kept = fs::read_to_string(path).ok();
    let kept = kept.as_deref().and_then(|text| text.find(BY_HAND).map(|at| text[at..].to_owned()));
    fs::write(path, text(outcome, rows) + &kept.unwrap_or_else(|| format!("{BY_HAND}\n")))
}

fn text(outcome: &Outcome, rows: &[Row]) -> String {
    let mut page = String::from(
        "# Roost beside its peers\n\n\
         `scripts/race --page cluster-tests/RACE.md` writes this page. All servers run turn by turn on one machine, on loopback, each turn\n\
         with a server of its own; the clients are one other process on the same machine and compete with the server for its\n\
         processors. Read ratios: they are of turns of one round, one right after the other. Each number is the middle of the\n\
         rounds, with the least and the most in brackets; where these are far apart, the machine was not quiet.\n\n",
    );
    let (turns, rounds, seconds) = (outcome.turns(), outcome.rounds, outcome.seconds);
    let _ = writeln!(
        page,
        "{turns} turns, {rounds} rounds of each row, {seconds} s measured in each after 1 s of warm-up; {} deliveries looked at.\n",
        outcome.deliveries()
    );
    if let Some(Spread { middle, least, most }) = outcome.others() {
        let _ = writeln!(
            page,
            "Other programs kept {middle:.2} of the machine's processors busy meanwhile ({least:.2} to {most:.2} in a turn).\n"
        );
    }
    let _ = writeln!(page, "Versions and settings:\n");
    for version in &outcome.versions {
        let _ = writeln!(page, "- {version}");
    }
    page += "- Messages: 128 bytes of JSON, text frames, no compression, TCP_NODELAY at the clients; publishers are members of their groups.\n\
         - Roost: `roost dev` with one node, or with three in one process and two copies; presence off, limits of rates raised,\n  \
           all else as delivered (history of 1,000 messages, 10 minutes).\n\
         - Centrifuge: its library with history of 1,000 messages, 10 minutes, and recovery; the broker in memory, or for three nodes three\n  \
           processes and Redis (no persistence). CPU and memory are of all processes of a peer, the broker among them.\n\
         - axum, naive: `tokio::sync::broadcast` for each group; no sessions, no history. Socket.IO: one process, WebSocket alone, no history.\n\
         - Bare send loop: who publishes writes the finished frame to each socket, blocking: the kernel's share, below which nothing\n  \
           gets that sends each message by itself.\n\n\
         | row | figure | Roost | Centrifuge | axum, naive | Socket.IO | bare send loop | Roost to Centrifuge | to naive | to reach | |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for row in rows {
        for figure in &row.figures {
            let cell = |peer| shown(outcome.figure(row, peer, figure.what));
            let ratio = |peer| shown(outcome.ratio(row, peer, figure.what));
            let verdict = match outcome.reached(row, *figure) {
                Some(true) => "reached",
                Some(false) => "**short**",
                None => "",
            };
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {verdict} |",
                row.title,
                figure.what.unit(),
                cell(Peer::Roost),
                cell(Peer::Centrifuge),
                cell(Peer::Naive),
                cell(Peer::SocketIo),
                cell(Peer::Bare),
                ratio(Peer::Centrifuge),
                ratio(Peer::Naive),
                bounds(figure)
            );
        }
    }
    page += "\nµs of CPU each: of the server, for each delivery, connect or return; the same number is CPU-seconds per million.\n\n";
    let faults = outcome.faults();
    if faults.is_empty() {
        page += "In no turn was anything lost, repeated or out of order, and no client was refused.\n\n";
    } else {
        page += "Turns with faults, or without figures:\n\n";
        for fault in faults {
            let _ = writeln!(page, "- {fault}");
        }
        page += "\n";
    }
    for (name, _) in drawn(outcome, rows) {
        let _ = writeln!(page, "![{name}](race/plots/{name})\n");
    }
    page
}

fn shown(spread: Option<Spread>) -> String {
    let number = |value: f64| match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    let text = |Spread { middle, least, most }| format!("{} ({}–{})", number(middle), number(least), number(most));
    spread.map_or_else(|| "–".to_owned(), text)
}

fn bounds(figure: &Figure) -> String {
    let ratio = |bound: Option<f64>, whose: &str| bound.map(|bound| format!("≤ {bound} of {whose}"));
    let most = figure.most.map(|most| format!("≤ {most}"));
    let all = [ratio(figure.of_centrifuge, "Centrifuge"), ratio(figure.of_naive, "naive"), most];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A plot of each figure of each row: its file, and what is in it.
fn drawn(outcome: &Outcome, rows: &[Row]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for row in rows {
        for (at, figure) in row.figures.iter().enumerate() {
            let of_peer = |peer: &Peer| {
                let Spread { middle, least, most } = outcome.figure(row, *peer, figure.what)?;
                Some(Bar { label: peer.dialect().name().to_owned(), value: middle, spread: Some((least, most)) })
            };
            let all_bars: Vec<Bar> = row.peers.iter().filter_map(of_peer).collect();
            if !all_bars.is_empty() {
                all.push((format!("{}-{at}.svg", row.name), bars(row.title, figure.what.unit(), &all_bars)));
            }
        }
    }
    all
}
