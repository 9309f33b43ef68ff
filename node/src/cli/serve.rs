//! One node.

use std::path::PathBuf;

/// Arguments of `roost serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// The configuration (config/node.toml is an example); the defaults and the environment unless given
    #[arg(long, short)]
    pub config: Option<PathBuf>,
}

/// Runs until it is told to stop.
///
/// # Errors
/// Not merged yet.
#[expect(clippy::unused_async, reason = "awaits once the node is merged")]
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    anyhow::bail!("not merged yet: {args:?}")
}
