//! Session tokens: `v1.<kid>.<base64url uuid>.<base64url HMAC-SHA256>`, the tag over everything before its dot.

use crate::id::SessionId;

/// One signing key and any number of verifying ones.
#[derive(Debug)]
pub struct Keyring {}

/// Why a token was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// Not of the form.
    #[error("this is not a session token")]
    Malformed,
    /// Signed by a key that this keyring does not have.
    #[error("the token was signed by a key that is not known here")]
    UnknownKey,
    /// The tag does not fit.
    #[error("the token's signature is wrong")]
    BadSignature,
}

impl Keyring {
    /// Signs.
    pub fn sign(&self, _session: SessionId) -> String {
        String::new()
    }
    /// Checks the form, then the tag in constant time, and only then gives the id.
    pub fn verify(&self, _token: &str) -> Result<SessionId, TokenError> {
        Err(TokenError::Malformed)
    }
}
