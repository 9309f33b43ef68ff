//! Tokens that backends make themselves: JWTs, signed by keys of the configuration or of a URL (JWKS).
//!
//! A JWT says who somebody is and what they may do; it is no session. A client that brings one gets an ephemeral session made of it
//! (`client/hello.rs`), and resumes that with the session's own token. So no JWT ever takes up a session that is there.
//!
//! The library reads and verifies (`jsonwebtoken`). What is here decides which key that is done with: each key is for the
//! algorithms of its kind, and what a token says of itself chooses among keys, never how one is used. The time is the cluster's.

mod claims;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
mod fetch;
mod jwks;
mod keys;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};

pub use self::claims::Claims;
use self::{
    claims::{Bounds, Taken},
    jwks::{Jwks, Known},
    keys::Key,
};
use super::door::reasons::Refused;
use crate::{
    clock,
    config::{Config, JwtConfig},
    id::is_hidden,
    seldom::Seldom,
    tasks::Tasks,
    wire::reason::Reason,
};

/// The longest JWT, in bytes: one with the largest attributes, twice over in base64, and room for the rest.
pub const JWT_MAX_BYTES: usize = 32 << 10;
/// Between two looks at a URL of keys, whoever asks for one.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How much of what a token or a library says is repeated.
const EXCERPT_CHARS: usize = 100;

/// What verifies JWTs.
pub struct Jwts {
    keys: Vec<Key>,
    jwks: Option<Jwks>,
    validation: Validation,
    leeway_ms: u64,
    bounds: Bounds,
    refused: Seldom,
}

/// Why a JWT is not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JwtError {
    /// No key is configured.
    #[error("this is a JWT, and no key for JWTs is configured here ([jwt])")]
    NotConfigured,
    #[error("a JWT has at most {JWT_MAX_BYTES} bytes, this has {0}")]
    TooLong(usize),
    /// The library says why.
    #[error("this is no JWT that can be read: {0}")]
    Malformed(String),
    #[error(
        "no key here is for the kid {0:?} of this JWT and its algorithm: add it to [jwt] or to the keys of jwt.jwks_url, or have the backend name one that is there"
    )]
    UnknownKey(String),
    #[error(
        "this JWT has no kid, and {0} keys here fit its algorithm: have the backend name its key in the header (`kid`)"
    )]
    NoKid(usize),
    #[error("several keys here have the kid {0:?} of this JWT: give each an id of its own")]
    SameKid(String),
    #[error(
        "the key that this JWT names is not for its algorithm: secrets verify HS256, HS384 and HS512, RSA keys RS256, P-256 keys ES256, Ed25519 keys EdDSA"
    )]
    WrongAlgorithm,
    #[error("the JWT's signature is wrong: it was signed with another key than its kid says, or changed since")]
    BadSignature,
    #[error("the JWT has expired: get a new one from the backend")]
    Expired,
    #[error("the JWT is not valid yet (nbf): look at the backend's clock, or raise jwt.leeway_s")]
    NotYet,
    #[error("the JWT's aud is not jwt.audience: it was made for another service")]
    Audience,
    #[error("the JWT's iss is not jwt.issuer: somebody else has made it")]
    Issuer,
    /// Its signature is right, what it says is not.
    #[error("the JWT is signed, and its claim {claim} is not right: {why}")]
    Claim { claim: &'static str, why: String },
    /// Whether it is good is not known now.
    #[error("the keys that JWTs are verified with cannot be had now (jwt.jwks_url): try again")]
    NoKeys,
}

impl JwtError {
    fn claim(claim: &'static str, why: impl fmt::Display) -> Self {
        Self::Claim { claim, why: excerpt(&why.to_string()) }
    }
}

impl From<JwtError> for Refused {
    fn from(error: JwtError) -> Self {
        let reason = match error {
            JwtError::Expired => Reason::TokenExpired,
            JwtError::NoKeys => Reason::Unavailable,
            _ => Reason::Unauthorized,
        };
        Self::saying(reason, error.to_string())
    }
}

impl fmt::Debug for Jwts {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwts").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Jwts {
    /// Reads the keys of the configuration.
    ///
    /// # Errors
    /// Where a file cannot be read or is no key that is taken, in words for whoever writes the configuration.
    pub fn load(config: &Config) -> Result<Self, String> {
        Self::load_looking(config, LOOK_AGAIN)
    }

    fn load_looking(config: &Config, again: Duration) -> Result<Self, String> {
        let jwt = &config.jwt;
        let secrets = jwt.secrets.iter().map(|(kid, secret)| Key::of_secret(kid, secret));
        let files = jwt.public_keys.iter().map(|(kid, path)| Key::of_file(kid, path));
        let keys = secrets.chain(files).collect::<Result<_, _>>()?;
        let jwks = (!jwt.jwks_url.is_empty()).then(|| Jwks::new(jwt, again)).transpose()?;
        Ok(Self {
            keys,
            jwks,
            validation: validation(jwt),
            leeway_ms: jwt.leeway_s * 1_000,
            bounds: Bounds { groups_max: config.limits.groups_per_session },
            refused: Seldom::new(),
        })
    }

    /// Has the keys of the URL looked after for as long as the node runs.
    pub fn start(self: &Arc<Self>, tasks: &Tasks) {
        if self.jwks.is_some() {
            let this = self.clone();
            tasks.spawn("jwks", async move {
                if let Some(jwks) = &this.jwks {
                    jwks.look_after().await;
                }
            });
        }
    }

    /// Whether a text is of the form of a JWT: three parts with dots between them. A session's token has five.
    pub fn is_jwt(token: &str) -> bool {
        token.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// What a JWT says, where it is good now. Waits for keys that are not known yet, within bounds.
    ///
    /// # Errors
    /// Says what is wrong, in words for whoever makes the tokens, without a hint at any secret.
    pub async fn verify(&self, token: &str) -> Result<Claims, JwtError> {
        let verified = self.verify_at(token, clock::wall_ms()).await;
        if let Err(error) = &verified
            && let Some(left_out) = self.refused.now()
        {
            tracing::info!(%error, left_out, "a JWT was refused");
        }
        verified
    }

    async fn verify_at(&self, token: &str, now_ms: u64) -> Result<Claims, JwtError> {
        if self.keys.is_empty() && self.jwks.is_none() {
            return Err(JwtError::NotConfigured);
        }
        if token.len() > JWT_MAX_BYTES {
            return Err(JwtError::TooLong(token.len()));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| unread(&error))?;
        let (alg, kid) = (header.alg, header.kid.as_deref());
        // What the node has itself is looked at first, so that nothing is waited for in vain.
        let key = match (choose(&self.keys, kid, alg), &self.jwks) {
            (Ok(key), None) => key.clone(),
            (Ok(key), Some(_)) if kid.is_some() => key.clone(),
            // Where a token names no key, it must be the only one of all that fits.
            (Ok(_) | Err(JwtError::UnknownKey(_)), Some(jwks)) => self.choose_of_all(jwks, kid, alg).await?,
            (Err(error), _) => return Err(error),
        };
        let validation = Validation { algorithms: vec![alg], ..self.validation.clone() };
        let said = jsonwebtoken::decode::<Taken>(token, &key.verifies, &validation).map_err(|error| unread(&error))?;
        said.claims.check(now_ms, self.leeway_ms, self.bounds)
    }

    async fn choose_of_all(&self, jwks: &Jwks, kid: Option<&str>, alg: Algorithm) -> Result<Key, JwtError> {
        let all = |known: &[Key]| self.keys.iter().chain(known).cloned().collect::<Vec<_>>();
        let is_known = |known: &[Key]| !matches!(choose(&all(known), kid, alg), Err(JwtError::UnknownKey(_)));
        let Known { keys, is_current } = jwks.known(is_known).await;
        match choose(&all(&keys), kid, alg) {
            Err(JwtError::UnknownKey(_)) if !is_current => Err(JwtError::NoKeys),
            chosen => chosen.cloned(),
        }
    }
}

/// The one key that a token of this header is verified with.
fn choose<'k>(keys: &'k [Key], kid: Option<&str>, alg: Algorithm) -> Result<&'k Key, JwtError> {
    let named: Vec<&Key> = keys.iter().filter(|key| kid.is_none() || key.kid.as_deref() == kid).collect();
    let fitting: Vec<&Key> = named.iter().copied().filter(|key| key.is_for(alg)).collect();
    match (fitting.as_slice(), kid) {
        ([one], _) => Ok(one),
        // Which of them it is would be decided by trying.
        ([_, _, ..], None) => Err(JwtError::NoKid(fitting.len())),
        ([_, _, ..], Some(kid)) => Err(JwtError::SameKid(excerpt(kid))),
        ([], Some(_)) if !named.is_empty() => Err(JwtError::WrongAlgorithm),
        ([], kid) => Err(JwtError::UnknownKey(excerpt(kid.unwrap_or("")))),
    }
}

/// What the library is to check beside the signature: whose a token is and for whom. Times are checked here, by the cluster's clock.
fn validation(config: &JwtConfig) -> Validation {
    let mut validation = Validation { validate_exp: false, validate_aud: false, ..Validation::default() };
    // It checks only what is there, unless it must be there.
    validation.required_spec_claims.clear();
    if !config.audience.is_empty() {
        validation.validate_aud = true;
        validation.set_audience(&[&config.audience]);
        validation.required_spec_claims.insert("aud".to_owned());
    }
    if !config.issuer.is_empty() {
        validation.set_issuer(&[&config.issuer]);
        validation.required_spec_claims.insert("iss".to_owned());
    }
    validation
}

fn unread(error: &jsonwebtoken::errors::Error) -> JwtError {
    match error.kind() {
        ErrorKind::InvalidSignature => JwtError::BadSignature,
        ErrorKind::InvalidAlgorithm => JwtError::WrongAlgorithm,
        ErrorKind::InvalidAudience => JwtError::Audience,
        ErrorKind::InvalidIssuer => JwtError::Issuer,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) if claim == "aud" => {
            JwtError::Audience
        }
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) if claim == "iss" => {
            JwtError::Issuer
        }
        _ => JwtError::Malformed(excerpt(&error.to_string())),
    }
}

/// What is told, and logged: a part of it, and none of the characters by which it could pass for something else.
fn excerpt(text: &str) -> String {
    let seen = |c: char| if is_hidden(c) { '\u{fffd}' } else { c };
    let mut excerpt: String = text.chars().take(EXCERPT_CHARS).map(seen).collect();
    if text.chars().nth(EXCERPT_CHARS).is_some() {
        excerpt.push('…');
    }
    excerpt
}
