//! Plays faults against real processes in namespaces of its own, and prints a table of what was seen.
//!
//! `faults [--list] [--ci] [--table FILE] [NAME…]`: all of them, or those that CI plays, or the named ones.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use cluster_tests::{
    cassandra::Cassandra,
    faults::{
        catalogue::{ALL, Fault},
        scene::Scene,
        table::{Played, Row, document},
    },
    network::{Network, STORE_RELAYS, enter},
    relay::Mode,
};

const USAGE: &str = "usage: faults [--list] [--ci] [--table FILE] [NAME…]";

/// The most nodes that a fault wants, and one for a stranger.
const HOSTS: usize = 5;

/// Each fault makes a keyspace, and a small Cassandra has no memory for dozens of them.
const EACH_CASSANDRA: usize = 6;

struct Arguments {
    faults: Vec<&'static Fault>,
    table: Option<PathBuf>,
}

fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Arguments>> {
    let (mut faults, mut table) = (Vec::new(), None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" | "--help" => return Ok(None),
            "--ci" => faults.extend(ALL.iter().filter(|fault| fault.in_ci)),
            "--table" => table = Some(arguments.next().context("--table wants a file")?.into()),
            name => {
                let found = ALL.iter().find(|fault| fault.name == name);
                faults.push(found.with_context(|| format!("{USAGE}; there is no fault {name}"))?);
            }
        }
    }
    if faults.is_empty() {
        faults.extend(ALL);
    }
    Ok(Some(Arguments { faults, table }))
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[expect(clippy::disallowed_methods, reason = "tells how long it takes")]
fn main() -> Result<ExitCode> {
    let Some(Arguments { faults, table }) = read(std::env::args().skip(1))? else {
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
            for fault in some {
                eprint!("{:>2}/{} {:16} ", played.len() + 1, faults.len(), fault.name);
                let begun = Instant::now();
                let outcome = play(fault, &network, &cassandra).await;
                let seconds = begun.elapsed().as_secs_f64();
                match &outcome {
                    Ok(row) => eprintln!("as promised, {seconds:.0} s; healed after {:.1} s", row.healed.as_secs_f64()),
                    Err(error) => eprintln!("FAILED, {seconds:.0} s: {error:#}"),
                }
                played.push(Played { fault: fault.name, outcome });
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
    let failed: Vec<&str> = played.iter().filter(|one| one.outcome.is_err()).map(|one| one.fault).collect();
    eprintln!("{} faults in {:.0} s, {} failed", played.len(), start.elapsed().as_secs_f64(), failed.len());
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not as promised: {}", failed.join(", "))
}

async fn play(fault: &Fault, network: &Network, cassandra: &Cassandra) -> Result<Row> {
    let outcome = async { Scene::set(fault, network, cassandra).await?.play(fault).await }.await;
    network.mend_all()?;
    cassandra.relays()?.set_all(Mode::Pass);
    outcome
}
