//! Where the log goes: standard error, as text or JSON, filtered as `[log]` says.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::LogConfig;

/// The driver of the store tells of every connection; it is heard at `info` only where the level names it.
const QUIET: &str = "scylla=warn";

/// Starts logging for the process. To be called once, by the commands that run nodes.
///
/// # Errors
/// Where the level is not a filter, the format is unknown, or logging was started already.
pub fn init(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.level))
        .with_context(|| format!("log.level {:?} is not a filter", config.level))?;
    // What cannot be written (a full disk) is lost. To say so, the library would write to standard error too, and panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let started = match config.format.as_str() {
        "json" => builder.json().try_init(),
        "text" => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        other => anyhow::bail!("log.format must be text or json, it is {other:?}"),
    };
    started.map_err(|error| anyhow::anyhow!("logging could not be started: {error}"))
}
