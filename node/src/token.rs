//! Session tokens: `v2.<kid>.<base64url uuid>.<number>.<base64url HMAC-SHA256>`, the tag over everything before its dot.
//!
//! A token proves that this cluster issued the id and the number, and nothing more: expiry, revocation and which number is
//! the least that is good are in the session's record. A wrong tag is refused before any look-up, which is the cheapest defence there is. The keyring has one signing key and any
//! number that only verify, so that keys can be changed while tokens of the old one live on.

use std::{
    collections::BTreeMap,
    fmt,
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{id::SessionId, private_file};

const VERSION: &str = "v2";
const SECRET_BYTES: usize = 32;
const LONGEST_KID: usize = 32;
const ID_CHARS: usize = 22;
const NUMBER_CHARS: usize = 10;
const TAG_CHARS: usize = 43;
/// The longest token there is, in bytes: nothing longer is looked at.
pub const TOKEN_MAX_BYTES: usize = VERSION.len() + LONGEST_KID + ID_CHARS + NUMBER_CHARS + TAG_CHARS + 4;

/// One signing key and any number of verifying ones. Its `Debug` shows no secrets.
#[derive(Clone)]
pub struct Keyring {
    signing: String,
    keys: BTreeMap<String, Key>,
}

#[derive(Clone)]
struct Key {
    secret: [u8; SECRET_BYTES],
    /// With the secret taken in already: half the work of each tag.
    mac: Hmac<Sha256>,
}

/// What a token says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed {
    pub session: SessionId,
    /// The session's first token has 0, each that takes its place the next.
    pub number: u32,
}

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

/// Why there is no keyring.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file cannot be read or written.
    #[error("the keyring {}: {source}", path.display())]
    File {
        /// The keyring's file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Its content is wrong.
    #[error("{reason}; `roost keys new --file FILE` makes a keyring")]
    Content {
        /// What is wrong; never a secret.
        reason: String,
    },
}

/// The file: `signing = "kid"` and `[keys]` with `kid = "base64url of 32 bytes"`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    signing: String,
    keys: BTreeMap<String, String>,
}

impl Keyring {
    /// A keyring with one new random key.
    pub fn generate() -> Self {
        let mut keyring = Self { signing: String::new(), keys: BTreeMap::new() };
        keyring.rotate();
        keyring
    }

    /// Adds a new random key that signs from now on; the others go on verifying. Gives the new key's id.
    pub fn rotate(&mut self) -> &str {
        let number = self.keys.len() + 1;
        // The random part keeps keys apart that two people make at the same time.
        self.signing = format!("k{number}-{:08x}", rand::random::<u32>());
        self.keys.insert(self.signing.clone(), Key::new(rand::random()));
        &self.signing
    }

    /// Reads a keyring file.
    ///
    /// # Errors
    /// Where it cannot be read, everybody on the machine can, or it is not a keyring; the reason never has a secret in it.
    pub fn load(path: &Path) -> Result<Self, KeyringError> {
        let text =
            private_file::read_text(path).map_err(|source| KeyringError::File { path: path.to_owned(), source })?;
        Self::from_toml(&text).map_err(|error| match error {
            KeyringError::Content { reason } => {
                KeyringError::Content { reason: format!("{}: {reason}", path.display()) }
            }
            other => other,
        })
    }

    /// Reads the text of a keyring file.
    ///
    /// # Errors
    /// Where it is not a keyring.
    pub fn from_toml(text: &str) -> Result<Self, KeyringError> {
        let content = |reason: String| KeyringError::Content { reason };
        // The parser's own message would show the line, and so a secret.
        let file: File = toml::from_str(text).map_err(|_| {
            content("this is not a keyring: it has `signing = \"kid\"` and [keys] with `kid = \"secret\"`".to_owned())
        })?;
        let mut keys = BTreeMap::new();
        for (kid, secret) in &file.keys {
            if !is_kid(kid) {
                return Err(content(format!("a key's id has 1 to {LONGEST_KID} of A-Z a-z 0-9 _ -, {kid:?} is none")));
            }
            let secret = BASE64.decode(secret).ok().and_then(|bytes| <[u8; SECRET_BYTES]>::try_from(bytes).ok());
            let Some(secret) = secret else {
                return Err(content(format!("key {kid:?} is not {SECRET_BYTES} bytes in base64url without padding")));
            };
            keys.insert(kid.clone(), Key::new(secret));
        }
        if !keys.contains_key(&file.signing) {
            return Err(content(format!("the signing key {:?} is not among [keys]", file.signing)));
        }
        Ok(Self { signing: file.signing, keys })
    }

    /// The keyring as a file's text, secrets included.
    pub fn to_toml(&self) -> String {
        use fmt::Write;
        let mut text = format!(
            "# Roost's token keys: secret, and the same on every node.\n# `signing` makes new tokens, every key verifies.\nsigning = \"{}\"\n\n[keys]\n",
            self.signing
        );
        for (kid, key) in &self.keys {
            let _ = writeln!(text, "{kid} = \"{}\"", BASE64.encode(key.secret));
        }
        text
    }

    /// Writes the file, readable by its owner only, whole or not at all.
    ///
    /// # Errors
    /// Where the folder or file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyringError> {
        self.write(path).map_err(|source| KeyringError::File { path: path.to_owned(), source })
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder)?;
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{:08x}.new", rand::random::<u32>()));
        let beside = PathBuf::from(beside);
        let written = (|| {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&beside)?;
            file.write_all(self.to_toml().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, path)
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        written
    }

    /// The id of the key that signs.
    pub fn signing(&self) -> &str {
        &self.signing
    }

    /// The ids of all keys, sorted.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Equal where the ids and the secrets of all keys are, whichever signs: 32 hex digits that tell nothing of the secrets.
    pub fn fingerprint(&self) -> String {
        let mut all = Sha256::new_with_prefix(b"roost keyring\0");
        for (kid, key) in &self.keys {
            all.update(key.mac.clone().chain_update(b"fingerprint of ").chain_update(kid).finalize().into_bytes());
        }
        all.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The token of a session that has this number.
    pub fn sign(&self, session: SessionId, number: u32) -> String {
        let signed = format!("{VERSION}.{}.{}.{number}", self.signing, BASE64.encode(session.0.as_bytes()));
        let key = self.keys.get(&self.signing).expect("the signing key is among the keys: checked when loaded");
        let tag = key.mac.clone().chain_update(signed.as_bytes()).finalize().into_bytes();
        format!("{signed}.{}", BASE64.encode(tag))
    }

    /// Checks the form, then the tag in constant time, and only then says what was signed.
    ///
    /// # Errors
    /// Says why, without a hint at what would have been right.
    pub fn verify(&self, token: &str) -> Result<Signed, TokenError> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(TokenError::Malformed);
        }
        let (signed, tag) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let mut parts = signed.split('.');
        let mut part = || parts.next();
        let (Some(VERSION), Some(kid), Some(id), Some(number), None) = (part(), part(), part(), part(), part()) else {
            return Err(TokenError::Malformed);
        };
        if !is_kid(kid) || id.len() != ID_CHARS || tag.len() != TAG_CHARS {
            return Err(TokenError::Malformed);
        }
        // The engine refuses padding and spare bits, so that a session has one token per key and number and not several.
        let tag: [u8; 32] = decode(tag)?;
        let id: [u8; 16] = decode(id)?;
        let read: u32 = number.parse().map_err(|_| TokenError::Malformed)?;
        if read.to_string() != number {
            return Err(TokenError::Malformed);
        }
        let key = self.keys.get(kid).ok_or(TokenError::UnknownKey)?;
        key.mac.clone().chain_update(signed.as_bytes()).verify_slice(&tag).map_err(|_| TokenError::BadSignature)?;
        Ok(Signed { session: SessionId(Uuid::from_bytes(id)), number: read })
    }
}

fn decode<const N: usize>(text: &str) -> Result<[u8; N], TokenError> {
    let bytes = BASE64.decode(text).map_err(|_| TokenError::Malformed)?;
    bytes.try_into().map_err(|_| TokenError::Malformed)
}

fn is_kid(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=LONGEST_KID).contains(&text.len()) && text.bytes().all(fits)
}

impl Key {
    fn new(secret: [u8; SECRET_BYTES]) -> Self {
        let mac = Hmac::new_from_slice(&secret).expect("HMAC takes keys of any length");
        Self { secret, mac }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kids: Vec<&str> = self.kids().collect();
        f.debug_struct("Keyring").field("signing", &self.signing).field("keys", &kids).finish()
    }
}

#[cfg(test)]
mod tests;
