//! Arguments → command → exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    roost::cli::run(roost::cli::Cli::parse())
}
