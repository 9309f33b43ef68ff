//! What JWTs and sets of keys are read by, tried with whatever somebody may have written ([`crate::decoders`]).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign};

use super::{Claims, JwtError, Jwts, jwks::read};
use crate::{
    config::Config,
    gateway::http::sessions::{ATTRIBUTES_MAX_BYTES, GRANTS_MAX, TTL_MAX_S},
};

const SECRET: &str = "a secret that is long enough to be one";
const NOW_MS: u64 = 1_800_000_000_000;
const CLAIMS: &str = r#"{"sub":"ann","exp":1800000060,"nbf":1799999990.5,"info":{"name":"Ann"},"channels":["chat:1"],"subs":{"chat:2":{"data":1}},"meta":{"a":1},
    "roost":{"grants":[{"pattern":"chat:*","join":true,"publish":false}],"groups":["news"]}}"#;

fn jwts() -> Jwts {
    let mut config = Config::default();
    config.jwt.secrets.insert("main".to_owned(), SECRET.to_owned());
    Jwts::load(&config).expect("a secret is a key")
}

fn signature(signed: &str) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes()).expect("a secret is a key");
    sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a text can be signed")
}

fn signed(claims: &[u8]) -> String {
    let signed = format!("{}.{}", BASE64.encode(r#"{"alg":"HS256","kid":"main"}"#), BASE64.encode(claims));
    format!("{signed}.{}", signature(&signed))
}

fn verified(token: &str) -> Result<Claims, JwtError> {
    jwts().verify_at(token, NOW_MS).now_or_never().expect("nothing is waited for where there is no URL")
}

fn judge(verified: &Result<Claims, JwtError>) {
    match verified {
        Ok(claims) => {
            assert!(claims.expires_ms.is_none_or(|at_ms| at_ms > NOW_MS && at_ms <= NOW_MS + TTL_MAX_S * 1_000));
            assert!(claims.attributes.len() <= ATTRIBUTES_MAX_BYTES && claims.grants.len() <= GRANTS_MAX);
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&claims.attributes)
                .expect("attributes are an object");
        }
        Err(error) => assert!(error.to_string().len() < 1_500, "an error of many words: {error}"),
    }
}

/// None is good but those that the secret has signed.
pub(crate) fn jwt(bytes: &[u8]) {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let verified = verified(token);
    judge(&verified);
    if verified.is_ok() {
        let (text, tag) = token.rsplit_once('.').expect("a JWT has three parts");
        let all = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        let key = EncodingKey::from_secret(SECRET.as_bytes()).expect("a secret is a key");
        let by_us = all.into_iter().any(|alg| sign(text.as_bytes(), &key, alg).is_ok_and(|ours| ours == tag));
        assert!(by_us, "a JWT is good that nobody signed: {token}");
    }
}

pub(crate) fn jwt_seeds() -> Vec<Vec<u8>> {
    vec![signed(CLAIMS.as_bytes()).into_bytes(), signed(b"{}").into_bytes()]
}

/// What is signed is bounded all the same.
pub(crate) fn jwt_claims(bytes: &[u8]) {
    judge(&verified(&signed(bytes)));
}

pub(crate) fn jwt_claims_seeds() -> Vec<Vec<u8>> {
    let b64 = r#"{"sub":"","expire_at":0,"b64info":"eyJhIjpbMV19"}"#;
    [CLAIMS, b64, r#"{"channel":"chat:1"}"#].map(|claims| claims.as_bytes().to_vec()).to_vec()
}

/// A set of keys has some that are good for something, or is refused.
pub(crate) fn jwks(bytes: &[u8]) {
    match read(bytes) {
        Ok(keys) => assert!(!keys.is_empty() && keys.iter().all(|key| !key.is_for(Algorithm::HS256))),
        Err(error) => assert!(error.len() < 1_500, "an error of many words: {error}"),
    }
}

pub(crate) fn jwks_seeds() -> Vec<Vec<u8>> {
    let keys = r#"{"keys":[
        {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","kid":"e","use":"sig","alg":"ES256"},
        {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"d"},
        {"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx","e":"AQAB","kid":"r","alg":"RS256"},
        {"kty":"oct","k":"c2VjcmV0","kid":"s"}]}"#;
    vec![keys.as_bytes().to_vec(), br#"{"keys":[]}"#.to_vec()]
}
