//! Explores replication: every state of a scope, or of the scopes that every change is checked with.
//!
//! `explore [--start alone|settled|learning|three] [--messages N] [--changes N] [--crashes N] [--restarts] [--states N]`

use std::{process::ExitCode, time::Instant};

use roost_simulation::explore::{SCOPES, Scope, Start, explore};

const USAGE: &str = "usage: explore [--start alone|settled|learning|three] [--messages N] [--changes N] [--crashes N] \
                     [--restarts] [--states N]";
/// As far as some 3 GB of memory go.
const STATES: usize = 20_000_000;

/// Nothing where it cannot be understood.
fn read(mut arguments: impl Iterator<Item = String>) -> Option<Vec<Scope>> {
    let mut scope = Scope { states: STATES, ..Scope::new(Start::Settled, 2, 2, 1) };
    let mut is_named = false;
    while let Some(argument) = arguments.next() {
        is_named = true;
        match argument.as_str() {
            "--restarts" => scope.restarts = true,
            "--start" => {
                let name = arguments.next()?;
                scope.start = Start::ALL.iter().find(|(other, _)| *other == name)?.1;
            }
            "--messages" => scope.messages = arguments.next()?.parse().ok()?,
            "--changes" => scope.changes = arguments.next()?.parse().ok()?,
            "--crashes" => scope.crashes = arguments.next()?.parse().ok()?,
            "--states" => scope.states = arguments.next()?.parse().ok()?,
            _ => return None,
        }
    }
    Some(if is_named { vec![scope] } else { SCOPES.to_vec() })
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[expect(clippy::disallowed_methods, reason = "tells how long it took")]
fn main() -> ExitCode {
    let Some(scopes) = read(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let mut is_right = true;
    for scope in scopes {
        let start = Instant::now();
        let report = explore(scope, |progress| {
            let seconds = start.elapsed().as_secs();
            eprintln!("{} states, {} wait, depth {}, {seconds} s", progress.states, progress.waiting, progress.depth);
        });
        println!("{scope}: {report}, {:.1} s", start.elapsed().as_secs_f64());
        is_right &= report.found.is_none();
    }
    if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
