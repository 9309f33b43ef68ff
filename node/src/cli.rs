//! The commands, one file each. Results go to standard output, everything else to standard error; the exit code is 0 when
//! it worked, 1 when not, 2 when the arguments were wrong, 3 when the watchdog has ended a node ([`crate::watchdog`]).

mod api;
mod bench;
mod check_config;
pub mod dev;
mod drain;
mod keys;
pub mod logging;
mod print;
mod publish;
pub mod serve;
mod status;
mod store;
mod tail;
mod token;
mod url;
mod websocket;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::certs;

/// Client sessions for a whole cluster: groups, broadcast and resume without a broker.
#[derive(Debug, Parser)]
#[command(name = "roost", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster on this machine, to try things out: nothing to set up
    Dev(dev::DevArgs),
    /// Run one node
    Serve(serve::ServeArgs),
    /// Make the cluster's CA and the nodes' certificates
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Make, rotate and list the keys that sign session tokens
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Make and check session tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Follow a group: a line of JSON for each message
    Tail(tail::TailArgs),
    /// Publish a message to a group
    Publish(publish::PublishArgs),
    /// Make and check the tables of the store in Cassandra or ScyllaDB
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Say all that is wrong with a configuration
    CheckConfig(check_config::CheckConfigArgs),
    /// Load a cluster with clients: what they see, and what it costs the nodes
    Bench(bench::BenchArgs),
    /// Show the health of the cluster
    Status(status::StatusArgs),
    /// Have a node hand over its slots and clients, and end
    Drain(drain::DrainArgs),
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Make the cluster's CA: ca.pem for every node, ca.key to keep safe
    Init {
        /// Where to put the files
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
    },
    /// Make the certificate and key of one node
    Node {
        /// The node's name: `node.id` of its configuration
        name: String,
        /// Where the CA is, and the files go
        #[arg(long, default_value = "certs")]
        dir: PathBuf,
        /// A DNS name or IP address of the node (can be repeated)
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
    },
}

/// Runs the command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")
        .and_then(|runtime| {
            let result = runtime.block_on(Box::pin(dispatch(cli.command)));
            // A read of standard input cannot be interrupted, and would be waited for.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough (`roost tail chat | head`).
        Err(error) if print::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Certs(command) => make_certs(command),
        Command::Keys(command) => keys::run(command),
        Command::Token(command) => token::run(command).await,
        Command::Tail(args) => tail::run(args).await,
        Command::Publish(args) => publish::run(args).await,
        Command::Store(command) => store::run(command).await,
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Bench(args) => bench::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Drain(args) => drain::run(args).await,
    }
}

fn make_certs(command: CertsCommand) -> anyhow::Result<()> {
    let (files, next) = match command {
        CertsCommand::Init { dir } => {
            (certs::init_ca(&dir)?, "next: `roost certs node NAME` for each node; keep ca.key off the nodes")
        }
        CertsCommand::Node { name, dir, hosts } => (
            certs::node_cert(&dir, &name, &hosts)?,
            "next: give the node these as tls.cert and tls.key, and ca.pem as tls.ca",
        ),
    };
    for file in files {
        print::line(file.display())?;
    }
    print::note(format_args!("{next}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_declared_soundly() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_readme_parses() {
        for line in [
            "dev",
            "dev --nodes 5 --port 9000 --data /tmp/x --api-key k",
            "serve --config config/node.toml",
            "certs init",
            "certs node n1 --dir c --host a --host 10.0.0.1",
            "keys new",
            "keys new --file k.toml --rotate",
            "keys list",
            "token sign 0f0e0d0c-0b0a-4908-8706-050403020100 --keyring k.toml",
            "token check v1.a.b.c",
            "token new --user ann",
            "tail chat:1 --since 00000000000000ff:12",
            "tail chat:1 --url ws://a/ws,ws://b/ws --token t",
            "publish chat:1 {\"a\":1} --key once",
            "publish chat:1 -5",
            "check-config",
            "check-config config/node.toml",
            "bench",
            "bench fanout groups --urls http://a:1,http://b:2 --members 50 --window 16 --seconds 3 --json",
            "bench latency --via http --rate 50 --api-key k",
            "bench resume --clients 300 --missed 20 --pid 1,2 --html bench.html",
            "status --url http://127.0.0.1:8001",
            "drain n2",
            "drain n2 --force --url http://127.0.0.1:8001",
        ] {
            if let Err(error) = Cli::try_parse_from(std::iter::once("roost").chain(line.split(' '))) {
                panic!("{line}: {error}");
            }
        }
    }
}
