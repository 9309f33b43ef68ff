//! Everything that reads what others wrote, in one table, with what must hold whatever the bytes are. Compiled for tests and fuzzers
//! alone. Two drivers use it: `harness`, on any toolchain (`scripts/fuzz`, and some seconds of it in the tests), and the
//! targets of `cargo fuzz` in `node/fuzz`.
//!
//! An entry takes bytes, decodes them, and panics where something that must hold does not: what is taken is the same when it is
//! written and read again, the cores that it is for go on, what is refused is refused in bounded words. Each room tries its own
//! decoders (`decoders.rs` beside them). A new decoder is a line in [`ALL`] and a file of three lines in `node/fuzz`.

#[cfg(test)]
mod harness;
mod samples;
mod world;

pub(crate) use samples::{member, record, split};

use crate::{cluster, config, gateway, peer, store, token::Keyring};

/// One way in.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// As `scripts/fuzz` takes it.
    pub name: &'static str,
    /// Panics where something does not hold that must.
    pub decode: fn(&[u8]),
    /// Inputs to begin with, made by the encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What it may hold in memory at once, in bytes, whatever the input.
    pub memory_bytes: u64,
    /// And for each byte of the input.
    pub memory_times: u64,
}

const fn decoder(name: &'static str, decode: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Decoder {
    Decoder { name, decode, seeds, memory_bytes: 256 << 10, memory_times: 64 }
}

/// All of them.
pub const ALL: &[Decoder] = &[
    decoder("client_frame", gateway::client::decoders::client_frame, gateway::client::decoders::client_frame_seeds),
    decoder("websocket", gateway::client::decoders::websocket, gateway::client::decoders::websocket_seeds),
    decoder("deflated", gateway::client::decoders::deflated, gateway::client::decoders::deflated_seeds),
    decoder("event_id", gateway::client::decoders::event_id, gateway::client::decoders::event_id_seeds),
    decoder("http_body", gateway::http::decoders::http_body, gateway::http::decoders::http_body_seeds),
    decoder("http_url", gateway::http::decoders::http_url, gateway::http::decoders::http_url_seeds),
    decoder("http_headers", gateway::http::decoders::http_headers, gateway::http::decoders::http_headers_seeds),
    decoder("token", token, token_seeds),
    decoder("keyring", keyring, keyring_seeds),
    decoder("jwt", gateway::jwt::decoders::jwt, gateway::jwt::decoders::jwt_seeds),
    decoder("jwt_claims", gateway::jwt::decoders::jwt_claims, gateway::jwt::decoders::jwt_claims_seeds),
    decoder("jwks", gateway::jwt::decoders::jwks, gateway::jwt::decoders::jwks_seeds),
    decoder("hello", peer::decoders::hello, peer::decoders::hello_seeds),
    Decoder { memory_bytes: 4 << 20, ..decoder("lane", world::lane, world::lane_seeds) },
    Decoder { memory_bytes: 16 << 20, ..decoder("gossip", cluster::decoders::gossip, cluster::decoders::gossip_seeds) },
    decoder("claims", cluster::decoders::claims, cluster::decoders::claims_seeds),
    decoder("session_row", store::decoders::session_row, store::decoders::session_seeds),
    Decoder { memory_bytes: 4 << 20, ..decoder("map_row", world::map_row, store::decoders::map_seeds) },
    Decoder { memory_bytes: 4 << 20, ..decoder("config", config::decoders::config, config::decoders::config_seeds) },
    Decoder {
        memory_bytes: 4 << 20,
        ..decoder("environment", config::decoders::environment, config::decoders::environment_seeds)
    },
];

/// Tries one, for a fuzzer's target.
///
/// # Panics
/// Where something does not hold that must, or there is no decoder of this name.
pub fn run(name: &str, bytes: &[u8]) {
    let decoder = ALL.iter().find(|decoder| decoder.name == name);
    (decoder.expect("the table has every target's decoder").decode)(bytes);
}

const KEYS: &str = "signing = \"new\"\n[keys]\nnew = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE\"\nold = \"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI\"\n";

fn keys(signing: &str) -> Keyring {
    Keyring::from_toml(&KEYS.replace("\"new\"\n", &format!("\"{signing}\"\n"))).expect("a sample is a keyring")
}

/// No token is good but those that a key has signed.
fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(signed) = keys("new").verify(text) {
        let known = ["new", "old"].iter().any(|signing| keys(signing).sign(signed.session, signed.number) == text);
        assert!(known, "a token is good that nobody signed: {text}");
    }
}

fn token_seeds() -> Vec<Vec<u8>> {
    let signed = |(signing, number)| keys(signing).sign(record().id, number).into_bytes();
    [("new", 3), ("old", 0), ("old", u32::MAX)].map(signed).to_vec()
}

/// A keyring that is taken is the same when it is written and read again.
fn keyring(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Keyring::from_toml(text) {
        Ok(keyring) => {
            let again = Keyring::from_toml(&keyring.to_toml()).expect("a keyring that was written can be read");
            assert!(again.kids().eq(keyring.kids()) && again.signing() == keyring.signing(), "other keys came back");
            let token = keyring.sign(record().id, 1);
            assert!(again.verify(&token).is_ok(), "a keyring does not know its own token");
        }
        Err(error) => {
            let words = error.to_string();
            assert!(words.len() <= 1_000 + 4 * text.len(), "an error of {} bytes", words.len());
        }
    }
}

fn keyring_seeds() -> Vec<Vec<u8>> {
    vec![KEYS.as_bytes().to_vec(), keys("old").to_toml().into_bytes()]
}
