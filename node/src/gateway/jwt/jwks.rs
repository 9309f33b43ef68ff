//! The keys of a URL, as they were last seen. One task looks; all who wait for a key that is not known wait for the same look.
//!
//! Keys stay good while the URL is down: nobody could tell whether they are not. A key that is not known has it looked at again, but
//! not soon after another look, so that whoever makes up ids of keys neither loads the URL nor holds up anybody else. Until then it
//! is not known whether there is such a key, and that is what is said.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::jwk::Jwk;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};

use super::{fetch::Source, keys::Key};
use crate::{clock, config::JwtConfig, seldom::Seldom};

/// The first wait after a look that failed; twice as long each time, up to the second.
const RETRY_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 60_000;
/// A token without a `kid` is held against each.
const KEYS_MAX: usize = 64;

/// What there is now.
pub(super) struct Known {
    pub(super) keys: Arc<[Key]>,
    /// They were seen for this: what is not there does not exist.
    pub(super) is_current: bool,
}

/// The keys of a URL.
pub(super) struct Jwks {
    source: Source,
    refresh_ms: u64,
    /// Between two looks, whoever asks.
    again_ms: u64,
    patience: Duration,
    wanted: Notify,
    seen: watch::Sender<Seen>,
    failed: Seldom,
}

#[derive(Clone)]
struct Seen {
    keys: Arc<[Key]>,
    /// The last look succeeded.
    is_read: bool,
    /// How many looks there were.
    looks: u64,
    /// From then on another look is made for who asks, by [`clock::mono_ms`].
    again_ms: u64,
}

/// The form of an answer; each key is read by itself, since there may be others than ours.
#[derive(Deserialize)]
struct Answer {
    keys: Vec<Box<RawValue>>,
}

impl Jwks {
    pub(super) fn new(config: &JwtConfig, again: Duration) -> Result<Self, String> {
        let timeout = Duration::from_millis(config.jwks_timeout_ms);
        Ok(Self {
            source: Source::new(&config.jwks_url, &config.jwks_ca, timeout)?,
            refresh_ms: config.jwks_refresh_s * 1_000,
            again_ms: u64::try_from(again.as_millis()).unwrap_or(u64::MAX),
            patience: timeout,
            wanted: Notify::new(),
            seen: watch::Sender::new(Seen { keys: [].into(), is_read: false, looks: 0, again_ms: 0 }),
            failed: Seldom::new(),
        })
    }

    /// The keys; where none of them is wanted, those of the next look, if there is one soon.
    pub(super) async fn known(&self, is_wanted: impl Fn(&[Key]) -> bool) -> Known {
        let mut seen = self.seen.subscribe();
        let now = seen.borrow_and_update().clone();
        if !is_wanted(&now.keys) && clock::mono_ms() >= now.again_ms {
            self.wanted.notify_one();
            // A look that was under way may have begun before the key was there, and is one that was made for it all the same.
            let _ = tokio::time::timeout(self.patience, seen.wait_for(|seen| seen.looks > now.looks)).await;
        }
        let Seen { keys, is_read, looks, .. } = seen.borrow().clone();
        Known { keys, is_current: is_read && looks > now.looks }
    }

    /// Looks at the URL now, again and again, and when it is asked to, for ever.
    pub(super) async fn look_after(&self) {
        let mut retry_ms = RETRY_MS;
        loop {
            let looked = self.source.get().await.and_then(|answer| read(&answer));
            let wait_ms = match &looked {
                Ok(_) => {
                    retry_ms = RETRY_MS;
                    self.refresh_ms
                }
                Err(error) => {
                    if let Some(left_out) = self.failed.now() {
                        tracing::warn!(
                            error,
                            left_out,
                            "the keys of JWTs could not be read (jwt.jwks_url); those that are known stay good"
                        );
                    }
                    let wait_ms = retry_ms.min(self.refresh_ms);
                    retry_ms = (retry_ms * 2).min(RETRY_MAX_MS);
                    wait_ms
                }
            };
            let now_ms = clock::mono_ms();
            let again_ms = now_ms + self.again_ms.min(wait_ms);
            self.seen.send_modify(|seen| {
                seen.is_read = looked.is_ok();
                if let Ok(keys) = looked {
                    seen.keys = keys;
                }
                seen.looks += 1;
                seen.again_ms = again_ms;
            });
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
                () = self.asked(again_ms) => {}
            }
        }
    }

    /// Waits until somebody asks who may. Who has asked while a look was under way has its answer by now.
    async fn asked(&self, again_ms: u64) {
        loop {
            self.wanted.notified().await;
            if clock::mono_ms() >= again_ms {
                return;
            }
        }
    }
}

/// Reads an answer. Keys that are of no use here stand beside others.
pub(super) fn read(answer: &[u8]) -> Result<Arc<[Key]>, String> {
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|error| format!("this is no set of keys (RFC 7517): {error}"))?;
    let read = |key: &RawValue| serde_json::from_str::<Jwk>(key.get()).ok().and_then(|jwk| Key::of_jwk(&jwk));
    let keys: Arc<[Key]> = answer.keys.iter().filter_map(|key| read(key)).take(KEYS_MAX).collect();
    if keys.is_empty() {
        return Err(format!("none of its {} keys is for RS256, ES256 or EdDSA and for signatures", answer.keys.len()));
    }
    Ok(keys)
}
