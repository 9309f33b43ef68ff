//! Plays faults against real processes in namespaces of its own, and prints a table of what was seen.
//!
//! `faults [--list] [--ci] [--long] [--mix SEED]… [--table FILE] [NAME…]`: all of them, or those that CI plays, or the named
//! ones, or three at once that the seed draws. With `--long` those that can be long are.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use cluster_tests::{
    cassandra::Cassandra,
    faults::{
        catalogue::{ALL, Fault, MIX},
        scene::{Ground, Scene},
        table::{Played, Row, document},
    },
    network::{Network, STORE_RELAYS, enter},
    relay::Mode,
};

const USAGE: &str = "usage: faults [--list] [--ci] [--long] [--mix SEED]… [--table FILE] [NAME…]";

/// The most nodes that a fault wants, and one for a stranger.
const HOSTS: usize = 5;

/// Each fault makes a keyspace, and a small Cassandra has no memory for dozens of them.
const EACH_CASSANDRA: usize = 6;

struct Arguments {
    /// Each with its seed, where it has one.
    faults: Vec<(&'static Fault, Option<u64>)>,
    long: bool,
    table: Option<PathBuf>,
}

fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Arguments>> {
    let (mut faults, mut long, mut table) = (Vec::new(), false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" | "--help" => return Ok(None),
            "--ci" => faults.extend(ALL.iter().filter(|fault| fault.in_ci).map(|fault| (fault, None))),
            "--long" => long = true,
            "--mix" => {
                let seed = arguments.next().and_then(|seed| seed.parse().ok());
                faults.push((&MIX, Some(seed.context("--mix wants a number")?)));
            }
            "--table" => table = Some(arguments.next().context("--table wants a file")?.into()),
            name => {
                let found = ALL.iter().find(|fault| fault.name == name);
                faults.push((found.with_context(|| format!("{USAGE}; there is no fault {name}"))?, None));
            }
        }
    }
    if faults.is_empty() {
        faults.extend(ALL.iter().map(|fault| (fault, None)));
    }
    Ok(Some(Arguments { faults, long, table }))
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[expect(clippy::disallowed_methods, reason = "tells how long it takes")]
fn main() -> Result<ExitCode> {
    let Some(Arguments { faults, long, table }) = read(std::env::args().skip(1))? else {
        println!("{USAGE}\n");
        for fault in ALL {
            println!("{:16} {}{}", fault.name, fault.what, if fault.in_ci { " (in CI)" } else { "" });
        }
        return Ok(ExitCode::SUCCESS);
    };
    enter()?;
    let network = Network::new(HOSTS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let start = Instant::now();
    let mut played: Vec<Played> = Vec::new();
    runtime.block_on(async {
        for some in faults.chunks(EACH_CASSANDRA) {
            let cassandra = Cassandra::relayed_at(1, STORE_RELAYS).await?;
            for &(fault, seed) in some {
                let name = fault.named(seed);
                eprint!("{:>2}/{} {name:16} ", played.len() + 1, faults.len());
                let begun = Instant::now();
                let outcome = play(fault, Ground { network: &network, cassandra: &cassandra, long, seed }).await;
                let seconds = begun.elapsed().as_secs_f64();
                match &outcome {
                    Ok(row) => eprintln!("as promised, {seconds:.0} s; healed after {:.1} s", row.healed.as_secs_f64()),
                    Err(error) => eprintln!("FAILED, {seconds:.0} s: {error:#}"),
                }
                played.push(Played { fault: name, outcome });
            }
        }
        anyhow::Ok(())
    })?;
    let cores = std::thread::available_parallelism()?.get();
    let text = document(&played, cores, start.elapsed().as_secs().div_ceil(60));
    println!("{text}");
    if let Some(file) = table {
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let failed: Vec<&str> = played.iter().filter(|one| one.outcome.is_err()).map(|one| one.fault.as_str()).collect();
    eprintln!("{} faults in {:.0} s, {} failed", played.len(), start.elapsed().as_secs_f64(), failed.len());
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not as promised: {}", failed.join(", "))
}

async fn play(fault: &Fault, ground: Ground<'_>) -> Result<Row> {
    let outcome = async { Scene::set(fault, ground).await?.play(fault).await }.await;
    ground.network.mend_all()?;
    ground.cassandra.relays()?.set_all(Mode::Pass);
    outcome
}
