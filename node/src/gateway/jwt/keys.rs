//! Keys that JWTs are verified with. A key knows the algorithms that it is for, by its kind: a public key never becomes a secret.

use std::path::Path;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use rustls::pki_types::{
    PrivateKeyDer, SubjectPublicKeyInfoDer,
    pem::{self, PemObject},
};
use x509_parser::{prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo};

/// Larger than any key.
const FILE_MAX_BYTES: u64 = 64 << 10;
/// Shorter RSA keys can be broken; longer ones cost whoever verifies too much.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;
const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: &[Algorithm] = &[Algorithm::RS256];
const EC: &[Algorithm] = &[Algorithm::ES256];
const ED: &[Algorithm] = &[Algorithm::EdDSA];
const P_256: &str = "1.2.840.10045.3.1.7";
const ED25519: &str = "1.3.101.112";
const POINT_BYTES: usize = 65;
const ED25519_BYTES: usize = 32;

/// One key.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) kid: Option<String>,
    pub(super) verifies: DecodingKey,
    algorithms: &'static [Algorithm],
}

impl Key {
    /// Whether a token of this algorithm may be verified with it.
    pub(super) fn is_for(&self, alg: Algorithm) -> bool {
        self.algorithms.contains(&alg)
    }

    /// A secret of the configuration, as the bytes of its text.
    pub(super) fn of_secret(kid: &str, secret: &str) -> Result<Self, String> {
        let verifies = DecodingKey::from_secret(secret.as_bytes());
        let verifies = verifies.map_err(|_| format!("jwt.secrets: {kid:?} is empty"))?;
        Ok(Self { kid: Some(kid.to_owned()), verifies, algorithms: HMAC })
    }

    /// A public key in a PEM file.
    pub(super) fn of_file(kid: &str, path: &Path) -> Result<Self, String> {
        let wrong = |why: String| format!("jwt.public_keys: {kid:?} = {}: {why}", path.display());
        let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if length > FILE_MAX_BYTES {
            return Err(wrong(format!("a key has at most {FILE_MAX_BYTES} bytes, this has {length}")));
        }
        let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        Self::of_pem(kid, &text).map_err(wrong)
    }

    fn of_pem(kid: &str, text: &[u8]) -> Result<Self, String> {
        const MEND: &str = "`openssl pkey -in PRIVATE.pem -pubout` writes the public one";
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(|error| match error {
            _ if PrivateKeyDer::from_pem_slice(text).is_ok() => {
                format!("this is a private key, which only the backend should have: {MEND}")
            }
            pem::Error::NoItemsFound => format!("there is no PEM text with `BEGIN PUBLIC KEY` in it: {MEND}"),
            error => format!("this is no PEM text: {error}"),
        })?;
        let not_read = || "this public key cannot be read".to_owned();
        let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| not_read())?;
        let (verifies, algorithms) = of_info(&info)?;
        Ok(Self { kid: Some(kid.to_owned()), verifies, algorithms })
    }

    /// A key of a URL. Nothing where it is for something else, or of a kind that is not taken: such may stand beside others. A
    /// secret that is told to everyone is none.
    pub(super) fn of_jwk(jwk: &Jwk) -> Option<Self> {
        let (verifies, algorithms) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (DecodingKey::from_jwk(jwk).ok()?, RSA),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (DecodingKey::from_jwk(jwk).ok()?, EC)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (DecodingKey::from_jwk(jwk).ok()?, ED)
            }
            _ => return None,
        };
        let fits = matches!(
            (algorithms, jwk.common.key_algorithm),
            (_, None)
                | (RSA, Some(KeyAlgorithm::RS256))
                | (EC, Some(KeyAlgorithm::ES256))
                | (ED, Some(KeyAlgorithm::EdDSA))
        );
        let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        (fits && signs).then(|| Self { kid: jwk.common.key_id.clone(), verifies, algorithms })
    }
}

fn of_info(info: &SubjectPublicKeyInfo<'_>) -> Result<(DecodingKey, &'static [Algorithm]), String> {
    let bytes = &*info.subject_public_key.data;
    match info.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let bits = key.modulus.iter().skip_while(|byte| **byte == 0).count() * 8;
            if !RSA_BITS.contains(&bits) {
                let (least, most) = RSA_BITS.into_inner();
                return Err(format!("an RSA key has {least} to {most} bits, this has {bits}"));
            }
            Ok((DecodingKey::from_rsa_der(bytes), RSA))
        }
        Ok(PublicKey::EC(_)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            if curve.is_none_or(|curve| curve.to_id_string() != P_256) || bytes.len() != POINT_BYTES {
                return Err("this is a key of another curve than P-256, which is the one for ES256".to_owned());
            }
            Ok((DecodingKey::from_ec_der(bytes), EC))
        }
        _ if info.algorithm.algorithm.to_id_string() == ED25519 && bytes.len() == ED25519_BYTES => {
            Ok((DecodingKey::from_ed_der(bytes), ED))
        }
        _ => Err("RSA, P-256 and Ed25519 keys are taken, this is of another kind".to_owned()),
    }
}
