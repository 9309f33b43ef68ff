//! Tokens as backends make them, and a server of the keys that they sign with.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};
use roost::{clock, tasks::Tasks};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// `jwt.secrets` of the tests.
pub const SECRET: &str = "a secret of the tests, of more than 32 bytes";

/// Seconds since 1970.
pub fn now_s() -> u64 {
    clock::wall_ms() / 1_000
}

/// Signed by a secret.
pub fn hs256(secret: &str, claims: &Value) -> Result<String> {
    Ok(encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())?)?)
}

/// A key of a backend, with the id that its tokens name.
pub struct Key {
    kid: String,
    pair: KeyPair,
}

impl Key {
    /// A new one, of Ed25519.
    pub fn new(kid: &str) -> Result<Self> {
        Ok(Self { kid: kid.to_owned(), pair: KeyPair::generate_for(&PKCS_ED25519)? })
    }

    /// Signed by it.
    pub fn token(&self, claims: &Value) -> Result<String> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        Ok(encode(&header, claims, &EncodingKey::from_ed_der(self.pair.serialized_der()))?)
    }

    /// The part that everyone may know.
    pub fn jwk(&self) -> Value {
        let x = BASE64.encode(self.pair.der_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": x})
    }
}

/// Somebody's server of public keys, at a URL.
#[derive(Clone, Debug)]
pub struct Keys {
    address: SocketAddr,
    served: Arc<Mutex<Option<String>>>,
}

impl Keys {
    /// It is down at first.
    pub async fn start(tasks: &Tasks) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let keys = Self { address: listener.local_addr()?, served: Arc::default() };
        let this = keys.clone();
        tasks.spawn_detached("keys", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4_096]).await;
                let body = this.served.lock().map_or(None, |served| served.clone());
                let (status, body) = body.map_or(("503 Down", String::new()), |body| ("200 OK", body));
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Ok(keys)
    }

    /// `jwt.jwks_url`.
    pub fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// It is up and has these; down without any.
    pub fn serve(&self, keys: &[&Key]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        let body = (!keys.is_empty()).then(|| json!({"keys": keys}).to_string());
        if let Ok(mut served) = self.served.lock() {
            *served = body;
        }
    }
}
