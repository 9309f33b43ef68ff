//! A configuration, tried with whatever somebody may have written ([`crate::decoders`]).

use std::ffi::OsString;

use super::load::{ConfigError, load_text};
use crate::config::{Config, differences};

/// A file: taken, or refused with reasons; what is taken can be compared with other nodes'.
pub(crate) fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        judge(load_text(Some(("node.toml".to_owned(), Ok(text.to_owned()))), std::iter::empty()));
    }
}

/// Lines `NAME=value`, as an environment.
pub(crate) fn environment(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let variables = text.lines().filter_map(|line| line.split_once('='));
    judge(load_text(None, variables.map(|(name, value)| (OsString::from(name), OsString::from(value)))));
}

fn judge(loaded: Result<Config, ConfigError>) {
    match loaded {
        Ok(config) => {
            let shared = config.shared_digest();
            assert!(differences(&shared.json, &shared.json).is_empty(), "settings differ from themselves");
            assert!(!format!("{config:?}").is_empty());
        }
        Err(error) => {
            assert!(!error.problems.is_empty(), "a configuration is refused without a reason");
            assert!(error.problems.iter().all(|problem| !problem.message.is_empty()), "a reason has no words");
        }
    }
}

/// The example that operators copy, as it is and with all that it mentions.
pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    let example = include_str!("../../../config/node.toml");
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.contains(" = ") || rest.trim_start().starts_with('[') => rest.trim_start().to_owned(),
        _ => line.to_owned(),
    };
    let whole: Vec<String> = example.lines().map(uncomment).collect();
    let small = "[node]\nid = \"n1\"\n[limits]\nidle_s = 3\n[namespaces.chat]\njoin = \"grant\"\n[store]\nkind = \"embedded\"\n";
    vec![example.as_bytes().to_vec(), whole.join("\n").into_bytes(), small.as_bytes().to_vec()]
}

/// Overrides of every type.
pub(crate) fn environment_seeds() -> Vec<Vec<u8>> {
    let variables = "ROOST_NODE__ID=n1\nROOST_LIMITS__IDLE_S=3\nROOST_CLUSTER__SEEDS=[\"a:1\",\"b:2\"]\nROOST_AUTH__API_KEYS=[\"0123456789abcdef\"]\n\
        ROOST_SESSION__ANONYMOUS=true\nROOST_NAMESPACES__CHAT__JOIN=grant\nROOST_CASSANDRA__REPLICATION__DC1=3\nROOST_PORT=tcp://10.0.0.1\nROOST_NODE_ID=n1\n";
    vec![variables.as_bytes().to_vec()]
}
