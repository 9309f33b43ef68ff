//! Roost beside its peers: the same scenarios turn by turn in one run on one machine, so that ratios can be read where
//! figures alone say little. `scripts/race` builds what it needs.
//!
//! Each turn has a server of its own, started for it and ended after it, and clients of this process; everything is on
//! loopback. A round is one turn of each peer, one right after the other; ratios are of turns of one round.

mod dialects;
mod noise;
mod outcome;
mod page;
mod peers;
mod rows;
mod servers;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use clap::Parser;

use crate::{outcome::Outcome, peers::Peer, rows::Row, servers::Programs};

/// What is raced, and how long.
#[derive(Debug, Clone, Parser)]
#[command(name = "race", about = "Roost beside its peers, turn by turn")]
struct Args {
    /// Rows to run, separated by commas; all unless given
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Peers to run beside Roost, separated by commas: centrifuge, naive, socketio, bare; all unless given
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Rounds of each row
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// How long each turn measures
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// The program that is measured
    #[arg(long)]
    roost: PathBuf,
    /// The server on Centrifugo's library
    #[arg(long)]
    centrifuge: PathBuf,
    /// The folder of the server on Socket.IO, its modules installed
    #[arg(long)]
    socketio: PathBuf,
    /// The naive server
    #[arg(long)]
    naive: PathBuf,
    /// The bare send loop
    #[arg(long)]
    bare: PathBuf,
    /// Where each turn's report goes, a line of JSON each
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the page of results goes
    #[arg(long)]
    page: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.context("the runtime could not be started").and_then(|runtime| runtime.block_on(race(args)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn race(args: Args) -> anyhow::Result<()> {
    ensure!((0.5..=60.0).contains(&args.seconds), "a turn measures for 0.5 to 60 s");
    let rows = chosen(Row::all(args.seconds), &args.rows, |row| row.name)?;
    let peers = chosen(Peer::OTHERS.to_vec(), &args.peers, |peer| peer.word())?;
    let programs = Programs {
        roost: args.roost,
        centrifuge: args.centrifuge,
        socketio: args.socketio,
        naive: args.naive,
        bare: args.bare,
    };
    let mut outcome = Outcome::new(programs.versions(), args.rounds, args.seconds, args.json)?;
    let racing = async {
        for row in &rows {
            for round in 0..args.rounds {
                let mut turns: Vec<Peer> =
                    row.peers.iter().copied().filter(|peer| *peer == Peer::Roost || peers.contains(peer)).collect();
                // Nobody is always the first after the machine was quiet.
                let shift = round as usize % turns.len();
                turns.rotate_left(shift);
                for peer in turns {
                    let ran = Box::pin(servers::turn(&programs, peer, row)).await;
                    outcome.add(row, round, peer, ran)?;
                }
            }
            eprintln!("{}", outcome.row(row));
        }
        anyhow::Ok(())
    };
    tokio::select! {
        raced = racing => raced?,
        // The servers are ended as they are dropped.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    }
    if let Some(path) = args.page {
        page::write(&path, &outcome, &rows).with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}

/// Those with one of the names; all where none is given.
fn chosen<T>(all: Vec<T>, names: &[String], name_of: impl Fn(&T) -> &'static str) -> anyhow::Result<Vec<T>> {
    for name in names {
        let known: Vec<_> = all.iter().map(&name_of).collect();
        ensure!(known.contains(&name.as_str()), "{name:?} is none of {}", known.join(", "));
    }
    Ok(all.into_iter().filter(|one| names.is_empty() || names.iter().any(|name| name == name_of(one))).collect())
}
