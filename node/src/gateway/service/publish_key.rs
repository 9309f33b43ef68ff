//! What makes a repeated publish the same one.

use sha2::{Digest, Sha256};

use crate::id::{PublishKey, SessionId};

/// The identity of a publish by this session (or by the server) with this key; without a key one of its own.
///
/// A cryptographic hash, cut: with a weaker one a client could find a key of its own that collides with the next one of
/// somebody else, whose publish would then be taken for a repeat and dropped.
pub(super) fn publish_key(session: Option<SessionId>, key: Option<&str>) -> PublishKey {
    let Some(key) = key else { return PublishKey(rand::random()) };
    let mut hash = Sha256::new();
    match session {
        Some(session) => {
            hash.update(b"session");
            hash.update(session.0.as_bytes());
        }
        None => hash.update(b"server"),
    }
    hash.update(key.as_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    PublishKey(hash[..16].iter().fold(0, |key, byte| key << 8 | u128::from(*byte)))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_same_publisher_and_key_are_the_same_publish() {
        let session = |number| Some(SessionId(Uuid::from_u128(number)));
        assert_eq!(publish_key(session(1), Some("a")), publish_key(session(1), Some("a")));
        assert_ne!(publish_key(session(1), Some("a")), publish_key(session(2), Some("a")));
        assert_ne!(publish_key(session(1), Some("a")), publish_key(session(1), Some("b")));
        assert_ne!(publish_key(session(1), Some("a")), publish_key(None, Some("a")));
        assert_ne!(publish_key(session(1), None), publish_key(session(1), None));
    }
}
