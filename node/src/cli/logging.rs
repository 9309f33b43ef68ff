//! Where the log goes: standard error, as text or JSON, filtered as `[log]` says.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogConfig;

/// The driver of the store tells of every connection; it is heard at `info` only where the level names it.
const QUIET: &str = "scylla=warn";

/// Starts logging for the process. To be called once, by the commands that run nodes.
///
/// # Errors
/// Where the level is not a filter, the format is unknown, or logging was started already.
pub fn init(config: &LogConfig) -> anyhow::Result<()> {
    let filter: Targets = format!("{QUIET},{}", config.level)
        .parse()
        .with_context(|| format!("log.level {:?} is not a filter", config.level))?;
    // What cannot be written (a full disk) is lost. To say so, the library would write to standard error too, and panic.
    let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry();
    let started = match config.format.as_str() {
        "json" => registry.with(lines.json()).with(filter).try_init(),
        "text" => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).with(filter).try_init(),
        other => anyhow::bail!("log.format must be text or json, it is {other:?}"),
    };
    started.map_err(|error| anyhow::anyhow!("logging could not be started: {error}"))
}
