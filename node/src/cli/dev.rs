//! A cluster on this machine.

use std::path::PathBuf;

/// Arguments of `roost dev`.
#[derive(Debug, Clone, clap::Args)]
pub struct DevArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub nodes: u16,
    /// The first node's HTTP port; the others follow
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub port: u16,
    /// The first node's UDP port for the mesh; the others follow. Any free ones unless given
    #[arg(long)]
    pub peer_port: Option<u16>,
    /// The folder for sessions, certificates and keys; a temporary one unless given
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The key for the HTTP API
    #[arg(long, env = "ROOST_API_KEY", hide_env_values = true, default_value = "dev-key")]
    pub api_key: String,
}

/// Runs until it is told to stop.
///
/// # Errors
/// Not merged yet.
#[expect(clippy::unused_async, reason = "awaits once the nodes are merged")]
pub async fn run(args: DevArgs) -> anyhow::Result<()> {
    anyhow::bail!("not merged yet: {args:?}")
}
