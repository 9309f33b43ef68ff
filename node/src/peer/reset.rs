//! The key of QUIC's stateless resets, derived from the node's private key: the same in every start of a node.

use hmac::{Hmac, KeyInit, Mac};
use quinn::crypto::{CryptoError, HmacKey};
use sha2::Sha256;

pub(super) struct ResetKey([u8; 32]);

impl ResetKey {
    pub(super) fn derive(private_key: &[u8]) -> Self {
        Self(tag(private_key, b"roost stateless reset"))
    }

    pub(super) fn connection_id_key(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = tag(&self.0, b"roost connection ids");
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&tag(&self.0, data));
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        mac(&self.0, data).verify_slice(signature).map_err(|_| CryptoError)
    }
}

fn tag(key: &[u8], data: &[u8]) -> [u8; 32] {
    mac(key, data).finalize().into_bytes().into()
}

fn mac(key: &[u8], data: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(data);
    mac
}
