//! `roost token`: session tokens from a keyring, or by creating a session over HTTP.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;
use uuid::Uuid;

use super::{
    api::{Api, ApiArgs},
    print,
};
use crate::{
    id::SessionId,
    token::{Keyring, Signed},
};

/// Commands of `roost token`.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Sign a session's id: prints its token
    Sign {
        /// The session's id, a UUID
        session: Uuid,
        /// The token's number: the session's `token_number`
        #[arg(long, default_value_t = 0)]
        number: u32,
        /// The keyring (`auth.keyring` of the nodes)
        #[arg(long, default_value = "keyring.toml")]
        keyring: PathBuf,
    },
    /// Check a token's signature: prints the session's id, and the token's number
    Check {
        /// The token
        token: String,
        /// The keyring (`auth.keyring` of the nodes)
        #[arg(long, default_value = "keyring.toml")]
        keyring: PathBuf,
    },
    /// Give a session a new token over HTTP, and have earlier ones refused: prints it
    Rotate {
        #[command(flatten)]
        api: ApiArgs,
        /// The session's id, a UUID
        session: Uuid,
    },
    /// Create a session over HTTP: prints its token
    New {
        #[command(flatten)]
        api: ApiArgs,
        /// The session's user
        #[arg(long)]
        user: String,
        /// The session ends after this number of seconds; by default the cluster's `session.ttl_s`
        #[arg(long)]
        ttl_s: Option<u64>,
        /// A group that it is in from the start (can be repeated)
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
    },
}

pub(super) async fn run(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Sign { session, number, keyring } => {
            print::line(Keyring::load(&keyring)?.sign(SessionId(session), number))
        }
        TokenCommand::Check { token, keyring } => match Keyring::load(&keyring)?.verify(token.trim()) {
            Ok(Signed { session, number }) => {
                print::line(session)?;
                print::note(format_args!(
                    "the signature is right, the token has the number {number}; whether the session goes on and takes this \
                     number, only the cluster knows"
                ));
                Ok(())
            }
            Err(error) => bail!("{error}"),
        },
        TokenCommand::Rotate { api, session } => {
            let session = session.to_string();
            print_token(&Api::new(&api)?.post(&["v1", "sessions", &session, "token"], String::new()).await?)?;
            print::note(format_args!("earlier tokens of session {session} are refused from now on"));
            Ok(())
        }
        TokenCommand::New { api, user, ttl_s, groups } => {
            let mut body = json!({ "user": user });
            if let Some(ttl_s) = ttl_s {
                body["ttl_s"] = ttl_s.into();
            }
            if !groups.is_empty() {
                body["groups"] = groups.into();
            }
            let answer = print_token(&Api::new(&api)?.post(&["v1", "sessions"], body.to_string()).await?)?;
            print::note(format_args!(
                "session {} of user {user}",
                answer["session"]["id"].as_str().unwrap_or("(unnamed)")
            ));
            Ok(())
        }
    }
}

/// Prints the token of an answer, and gives the answer.
fn print_token(answer: &str) -> anyhow::Result<serde_json::Value> {
    let answer: serde_json::Value = serde_json::from_str(answer).context("the answer is not JSON")?;
    print::line(answer["token"].as_str().context("the answer has no token: is this a Roost node?")?)?;
    Ok(answer)
}
