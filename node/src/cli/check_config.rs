//! `roost check-config`: all that is wrong with a configuration, before a node is started with it.

use std::path::PathBuf;

use super::print;
use crate::{
    config::Config,
    gateway::{door::certificate::Files, jwt::Jwts},
    token::Keyring,
};

/// Arguments of `roost check-config`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckConfigArgs {
    /// The file; without one the defaults and the environment are checked
    file: Option<PathBuf>,
}

pub(super) fn run(args: &CheckConfigArgs) -> anyhow::Result<()> {
    let config = Config::load(args.file.as_deref())?;
    for (key, path) in [("tls.ca", &config.tls.ca), ("tls.cert", &config.tls.cert), ("tls.key", &config.tls.key)] {
        if let Err(error) = std::fs::metadata(path) {
            print::note(format_args!(
                "warning: {key}: {} cannot be read here ({error}): `roost certs` makes it",
                path.display()
            ));
        }
    }
    if let Err(error) = Keyring::load(&config.auth.keyring) {
        print::note(format_args!("warning: auth.keyring: {error}"));
    }
    if config.auth.api_keys.is_empty() {
        print::note(format_args!("warning: auth.api_keys is empty: nobody can use the HTTP API"));
    }
    check_http_tls(&config)?;
    check_jwt(&config);
    let name = args.file.as_ref().map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string());
    print::line(format_args!("{name} is right: node {} of cluster {}", config.node.id, config.cluster.name))?;
    print::line(format_args!("settings that all nodes must share: {}", config.shared_digest().hash))
}

/// A node does not start with what is wrong there.
fn check_http_tls(config: &Config) -> anyhow::Result<()> {
    if let Some(files) = Files::of(&config.node) {
        let shown = files.load().map_err(anyhow::Error::msg)?;
        shown.end_is_near().iter().for_each(|words| print::note(format_args!("warning: {words}")));
        if !config.session.cookie_secure {
            print::note(format_args!(
                "warning: session.cookie_secure is false, and node.http_tls_cert is set: browsers would send the session's cookie over \
                 plain HTTP too"
            ));
        }
    }
    Ok(())
}

/// What nobody would notice before a client is refused, or taken that should not be.
fn check_jwt(config: &Config) {
    if !config.jwt.has_keys() {
        return;
    }
    if let Err(error) = Jwts::load(config) {
        print::note(format_args!("warning: {error}"));
    }
    for (key, value) in [("jwt.audience", &config.jwt.audience), ("jwt.issuer", &config.jwt.issuer)] {
        if value.is_empty() {
            print::note(format_args!(
                "warning: {key} is not set: every JWT that one of these keys has signed is taken, also one for another service"
            ));
        }
    }
}
