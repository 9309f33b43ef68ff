//! What is taken, and what those try who have no key: each is refused for the reason that it should be.

mod keys_of_a_url;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{self, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{EncodingKey, crypto::sign};
use serde_json::{Value, json};

use super::*;
use crate::config::Purpose;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";
const NOW_S: u64 = 1_800_000_000;

/// A backend's private key.
enum Private {
    Rsa(Box<aws_lc_rs::signature::RsaKeyPair>),
    Ec(Box<EcdsaKeyPair>),
    Ed(Box<Ed25519KeyPair>),
}

impl Private {
    fn rsa() -> Self {
        Self::Rsa(Box::new(rsa::KeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    fn ec() -> Self {
        Self::Ec(Box::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()))
    }

    fn ed() -> Self {
        Self::Ed(Box::new(Ed25519KeyPair::generate().unwrap()))
    }

    fn pem(&self) -> String {
        let der: Vec<u8> = match self {
            Self::Rsa(key) => AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap().as_ref().to_vec(),
            Self::Ec(key) => AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap().as_ref().to_vec(),
            Self::Ed(key) => AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap().as_ref().to_vec(),
        };
        pem("PUBLIC KEY", &der)
    }

    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let public = aws_lc_rs::signature::RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
                json!({"kty": "RSA", "kid": kid, "n": BASE64.encode(public.n), "e": BASE64.encode(public.e)})
            }
            Self::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": BASE64.encode(x), "y": BASE64.encode(y)})
            }
            Self::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": BASE64.encode(key.public_key().as_ref())})
            }
        }
    }

    fn sign(&self, signed: &str) -> Vec<u8> {
        let (message, random) = (signed.as_bytes(), SystemRandom::new());
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        format!("{signed}.{}", BASE64.encode(self.sign(&signed)))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
}

/// Signed by a secret, whatever the header says.
fn hmac_as(alg: Algorithm, secret: &[u8], header: &Value, claims: &Value) -> String {
    let signed = unsigned(header, claims);
    let tag = sign(signed.as_bytes(), &EncodingKey::from_secret(secret).unwrap(), alg).unwrap();
    format!("{signed}.{tag}")
}

fn hs256(secret: &str, header: Value, claims: Value) -> String {
    hmac_as(Algorithm::HS256, secret.as_bytes(), &header, &claims)
}

fn claims() -> Value {
    json!({"sub": "ann", "exp": NOW_S + 60})
}

struct Set {
    config: Config,
    folder: tempfile::TempDir,
}

impl Set {
    fn new() -> Self {
        Self { config: Config::default(), folder: tempfile::tempdir().unwrap() }
    }

    fn secret(mut self, kid: &str, secret: &str) -> Self {
        self.config.jwt.secrets.insert(kid.to_owned(), secret.to_owned());
        self
    }

    fn public(mut self, kid: &str, text: &str) -> Self {
        let path = self.folder.path().join(format!("{}.pem", self.config.jwt.public_keys.len()));
        std::fs::write(&path, text).unwrap();
        self.config.jwt.public_keys.insert(kid.to_owned(), path);
        self
    }

    fn load(&self) -> Jwts {
        self.config.check(Purpose::Serve).unwrap();
        Jwts::load(&self.config).unwrap()
    }

    async fn verify(&self, token: &str) -> Result<Claims, JwtError> {
        self.load().verify_at(token, NOW_S * 1_000).await
    }
}

#[tokio::test]
async fn each_kind_of_key_verifies_its_algorithms_and_no_other() {
    let keys = [("RS256", Private::rsa()), ("ES256", Private::ec()), ("EdDSA", Private::ed())];
    let set = keys.iter().fold(Set::new().secret("HS256", SECRET), |set, (kid, key)| set.public(kid, &key.pem()));
    for (alg, key) in &keys {
        let token = key.token(&json!({"alg": alg, "kid": alg}), &claims());
        assert_eq!(set.verify(&token).await.map(|claims| claims.user), Ok("ann".to_owned()), "{alg}");
        let token = key.token(&json!({"alg": alg}), &claims());
        assert!(set.verify(&token).await.is_ok(), "{alg}: no other key fits it, so it need not be named");
        for wrong in ["RS256", "ES256", "EdDSA", "HS256", "HS384", "RS512", "PS256", "ES384"] {
            if wrong != *alg {
                let token = key.token(&json!({"alg": wrong, "kid": alg}), &claims());
                assert_eq!(set.verify(&token).await, Err(JwtError::WrongAlgorithm), "{alg} as {wrong}");
            }
        }
    }
    for alg in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let token = hmac_as(alg, SECRET.as_bytes(), &json!({"alg": format!("{alg:?}"), "kid": "HS256"}), &claims());
        assert!(set.verify(&token).await.is_ok(), "{alg:?}");
    }
}

/// The classic: the public key is no secret, so whoever has it signs with it as if it were one.
#[tokio::test]
async fn a_public_key_is_no_secret() {
    let key = Private::rsa();
    let text = key.pem();
    let info = SubjectDer::of(&text);
    let set = Set::new().public("k", &text);
    let with_a_secret = Set::new().public("k", &text).secret("s", OTHER);
    for secret in [text.as_bytes(), text.trim().as_bytes(), &info.whole, &info.bits] {
        for kid in [json!("k"), json!("s"), Value::Null] {
            let token = hmac_as(Algorithm::HS256, secret, &json!({"alg": "HS256", "kid": kid}), &claims());
            let error = set.verify(&token).await.unwrap_err();
            assert!(matches!(error, JwtError::WrongAlgorithm | JwtError::UnknownKey(_)), "{kid}: {error:?}");
            let error = with_a_secret.verify(&token).await.unwrap_err();
            assert!(matches!(error, JwtError::WrongAlgorithm | JwtError::BadSignature), "{kid}: {error:?}");
        }
    }
}

struct SubjectDer {
    whole: Vec<u8>,
    bits: Vec<u8>,
}

impl SubjectDer {
    fn of(text: &str) -> Self {
        use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
        use x509_parser::{prelude::FromDer, x509::SubjectPublicKeyInfo};
        let whole = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).unwrap();
        let bits = SubjectPublicKeyInfo::from_der(&whole).unwrap().1.subject_public_key.data.to_vec();
        Self { whole: whole.to_vec(), bits }
    }
}

#[tokio::test]
async fn none_is_never_an_algorithm() {
    let set = Set::new().secret("k", SECRET);
    for alg in ["none", "None", "NONE", "nOnE", "", "HS1", "hs256"] {
        for kid in [json!("k"), Value::Null] {
            let text = unsigned(&json!({"alg": alg, "kid": kid}), &claims());
            for token in
                [format!("{text}."), format!("{text}.AAAA"), hs256(SECRET, json!({"alg": alg, "kid": kid}), claims())]
            {
                assert!(matches!(set.verify(&token).await, Err(JwtError::Malformed(_))), "{alg:?}");
            }
        }
    }
    let text = unsigned(&json!({"alg": "HS256", "kid": "k"}), &claims());
    assert_eq!(set.verify(&format!("{text}.")).await, Err(JwtError::BadSignature));
}

#[tokio::test]
async fn a_kid_is_a_name_and_nothing_else() {
    let (one, other) = (Private::ec(), Private::ec());
    let set = Set::new().public("one", &one.pem()).public("two", &other.pem()).secret("s", SECRET);
    let path = set.config.jwt.public_keys["one"].display().to_string();
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        &path,
        "one' OR '1'='1",
        "x' UNION SELECT 'secret'--",
        "one\u{0}",
        "One",
        " one",
        "",
        "|/usr/bin/id",
        "file:///etc/passwd",
    ] {
        let header = json!({"alg": "HS256", "kid": kid});
        for secret in ["", SECRET, "secret"].into_iter().filter(|secret| !secret.is_empty()) {
            let refused = set.verify(&hs256(secret, header.clone(), claims())).await;
            assert!(matches!(refused, Err(JwtError::UnknownKey(_))), "{kid:?}: {refused:?}");
        }
        let refused = set.verify(&one.token(&json!({"alg": "ES256", "kid": kid}), &claims())).await;
        assert!(matches!(refused, Err(JwtError::UnknownKey(_))), "{kid:?}: {refused:?}");
    }
    // It names another key than the one that signed.
    let token = one.token(&json!({"alg": "ES256", "kid": "two"}), &claims());
    assert_eq!(set.verify(&token).await, Err(JwtError::BadSignature));
    // It names none, and more than one would fit.
    assert_eq!(set.verify(&one.token(&json!({"alg": "ES256"}), &claims())).await, Err(JwtError::NoKid(2)));
    assert!(set.verify(&hs256(SECRET, json!({"alg": "HS256"}), claims())).await.is_ok(), "there is one secret");
    let two = Set::new().secret("a", SECRET).secret("b", OTHER);
    assert_eq!(two.verify(&hs256(SECRET, json!({"alg": "HS256"}), claims())).await, Err(JwtError::NoKid(2)));
    let long = "k".repeat(5_000);
    let refused = set.verify(&hs256(SECRET, json!({"alg": "HS256", "kid": long}), claims())).await.unwrap_err();
    assert!(refused.to_string().len() < 500, "a client's own text is repeated in part: {refused}");
    let two_lines = json!({"alg": "HS256\nWARN all is lost", "kid": "\u{1b}[31m\nWARN"});
    let refused = set.verify(&hs256(SECRET, two_lines, claims())).await.unwrap_err();
    assert!(!refused.to_string().contains(['\n', '\u{1b}']), "what is logged is one line: {refused:?}");
    assert!(matches!(
        set.verify(&hs256(SECRET, json!({"alg": "HS256", "kid": 7}), claims())).await,
        Err(JwtError::Malformed(_))
    ));
}

/// What a header brings along is not asked, and what it says must be understood is refused where it is not.
#[tokio::test]
async fn a_token_brings_no_key_of_its_own() {
    let (ours, theirs) = (Private::rsa(), Private::rsa());
    let set = Set::new().public("k", &ours.pem());
    for more in [
        json!({"jwk": theirs.jwk("k")}),
        json!({"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/cert"}),
        json!({"x5c": [BASE64.encode(theirs.pem())]}),
    ] {
        let mut header = json!({"alg": "RS256", "kid": "k"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let refused = set.verify(&theirs.token(&header, &claims())).await.unwrap_err();
        assert!(matches!(refused, JwtError::BadSignature | JwtError::Malformed(_)), "{more}: {refused:?}");
    }
    for crit in [json!(["exp"]), json!(["b64"]), json!([])] {
        let refused = set.verify(&ours.token(&json!({"alg": "RS256", "kid": "k", "crit": crit}), &claims())).await;
        assert!(matches!(refused, Err(JwtError::Malformed(_))), "{crit}: {refused:?}");
    }
}

#[tokio::test]
async fn what_was_changed_is_refused() {
    let set = Set::new().secret("k", SECRET);
    let header = json!({"alg": "HS256", "kid": "k"});
    let token = hs256(SECRET, header.clone(), claims());
    let (text, tag) = token.rsplit_once('.').unwrap();
    let other = unsigned(&header, &json!({"sub": "root", "exp": NOW_S + 60}));
    for wrong in [format!("{other}.{tag}"), format!("{text}.{}", &tag[..tag.len() - 4]), hs256(OTHER, header, claims())]
    {
        assert_eq!(set.verify(&wrong).await, Err(JwtError::BadSignature), "{wrong}");
    }
    for wrong in ["a.b.c", "..", &format!("{token}="), &format!(" {token}"), &token.replace('.', "..")] {
        assert!(matches!(set.verify(wrong).await, Err(JwtError::Malformed(_) | JwtError::BadSignature)), "{wrong}");
    }
    let huge = hs256(SECRET, json!({"alg": "HS256"}), json!({"sub": "a", "x": "y".repeat(JWT_MAX_BYTES)}));
    assert_eq!(set.verify(&huge).await, Err(JwtError::TooLong(huge.len())));
    assert_eq!(Set::new().verify(&token).await, Err(JwtError::NotConfigured));
}

#[tokio::test]
async fn times_are_those_of_the_cluster_with_a_leeway() {
    let mut set = Set::new().secret("k", SECRET);
    set.config.jwt.leeway_s = 10;
    let verify = async |claims: Value| set.verify(&hs256(SECRET, json!({"alg": "HS256"}), claims)).await;
    let expires = async |claims: Value| verify(claims).await.unwrap().expires_ms;
    assert_eq!(verify(json!({"exp": NOW_S - 10})).await, Err(JwtError::Expired));
    assert_eq!(expires(json!({"exp": NOW_S - 9})).await, Some((NOW_S + 1) * 1_000));
    assert_eq!(expires(json!({"exp": NOW_S as f64 + 0.5})).await, Some(NOW_S * 1_000 + 10_500));
    assert_eq!(expires(json!({"sub": "ann"})).await, None);
    assert_eq!(verify(json!({"nbf": NOW_S + 11})).await, Err(JwtError::NotYet));
    assert!(verify(json!({"nbf": NOW_S + 10, "iat": NOW_S + 500, "jti": "x"})).await.is_ok());
    assert_eq!(expires(json!({"exp": NOW_S + 5, "expire_at": NOW_S + 50})).await, Some((NOW_S + 60) * 1_000));
    assert_eq!(expires(json!({"exp": NOW_S + 5, "expire_at": 0})).await, None);
    assert_eq!(verify(json!({"exp": NOW_S - 50, "expire_at": 0})).await, Err(JwtError::Expired));
    assert_eq!(verify(json!({"expire_at": NOW_S - 50})).await, Err(JwtError::Expired));
    let longest = NOW_S * 1_000 + crate::gateway::http::sessions::TTL_MAX_S * 1_000;
    assert_eq!(expires(json!({"exp": 200_000_000_000_u64})).await, Some(longest));
    for wrong in [json!({"exp": -1}), json!({"exp": 1e300}), json!({"exp": NOW_S * 1_000}), json!({"nbf": -5})] {
        let refused = verify(wrong.clone()).await;
        assert!(matches!(refused, Err(JwtError::Claim { .. })), "{wrong}: {refused:?}");
    }
    for wrong in [json!({"exp": "soon"}), json!({"exp": [1]}), json!([1])] {
        let refused = verify(wrong.clone()).await;
        assert!(matches!(refused, Err(JwtError::Malformed(_))), "{wrong}: {refused:?}");
    }
}

#[tokio::test]
async fn audience_and_issuer_are_checked_where_they_are_set() {
    let mut set = Set::new().secret("k", SECRET);
    let verify = async |set: &Set, claims: Value| set.verify(&hs256(SECRET, json!({"alg": "HS256"}), claims)).await;
    assert!(verify(&set, json!({"sub": "a", "aud": "other", "iss": "who"})).await.is_ok(), "none is configured");
    set.config.jwt.audience = "roost".to_owned();
    for right in [json!("roost"), json!(["else", "roost"])] {
        assert!(verify(&set, json!({"aud": right})).await.is_ok(), "{right}");
    }
    for wrong in
        [json!("other"), json!([]), json!(["other"]), json!(7), json!("roost2"), json!(["roost", 7]), Value::Null]
    {
        assert_eq!(verify(&set, json!({"aud": wrong})).await, Err(JwtError::Audience), "{wrong}");
    }
    assert_eq!(verify(&set, json!({"sub": "a"})).await, Err(JwtError::Audience), "it must be there");
    set.config.jwt.audience.clear();
    set.config.jwt.issuer = "https://id.example.com".to_owned();
    assert!(verify(&set, json!({"iss": "https://id.example.com"})).await.is_ok());
    for wrong in [json!({"iss": "https://id.example.com/"}), json!({"iss": 7}), json!({})] {
        assert_eq!(verify(&set, wrong.clone()).await, Err(JwtError::Issuer), "{wrong}");
    }
}

#[tokio::test]
async fn claims_become_a_session() {
    let set = Set::new().secret("k", SECRET);
    let verify = async |claims: Value| set.verify(&hs256(SECRET, json!({"alg": "HS256"}), claims)).await;
    let said = json!({
        "sub": "ann", "info": {"name": "Ann"}, "channels": ["chat:1"], "subs": {"chat:2": {"data": {}}}, "meta": {"x": 1},
        "roost": {"grants": [{"pattern": "chat:*", "join": true}], "groups": ["news"], "clients_max": 3}, "anything": "else",
    });
    let Claims { user, expires_ms, attributes, groups, grants, clients_max } = verify(said).await.unwrap();
    assert_eq!(clients_max.map(std::num::NonZero::get), Some(3));
    let names: Vec<_> = groups.iter().map(ToString::to_string).collect();
    assert_eq!(
        (user.as_str(), expires_ms, names),
        ("ann", None, vec!["chat:1".into(), "chat:2".into(), "news".into()])
    );
    assert_eq!(&attributes[..], br#"{"name":"Ann"}"#);
    assert_eq!(grants, [crate::logic::entry::Grant { pattern: "chat:*".to_owned(), join: true, publish: false }]);
    let b64 = base64::engine::general_purpose::STANDARD.encode(r#"{"b": [1]}"#);
    let both = verify(json!({"info": {"a": 1}, "b64info": b64})).await.unwrap();
    assert_eq!((&both.attributes[..], both.user.as_str()), (&br#"{"b": [1]}"#[..], ""));
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let deep = base64::engine::general_purpose::STANDARD.encode(format!("{{\"a\":{deep}}}"));
    let many: Vec<String> = (0..1_000).map(|number| format!("g{number}")).collect();
    for (wrong, claim) in [
        (json!({"sub": 7}), "sub"),
        (json!({"sub": "a\u{200b}"}), "sub"),
        (json!({"sub": "x".repeat(300)}), "sub"),
        (json!({"info": [1]}), "info"),
        (json!({"info": {"a": "x".repeat(9_000)}}), "info"),
        (json!({"b64info": "***"}), "b64info"),
        (json!({"b64info": deep}), "b64info"),
        (json!({"channels": ["@user:bob"]}), "channels"),
        (json!({"subs": {"": {}}}), "subs"),
        (json!({"channels": many}), "channels"),
        (json!({"channel": "chat:1"}), "channel"),
        (json!({"roost": {"grants": [{"pattern": ""}]}}), "roost"),
        (json!({"roost": {"groups": ["@session:x"]}}), "roost"),
        (json!({"roost": {"grants": vec![json!({"pattern": "a"}); 101]}}), "roost"),
    ] {
        let refused = verify(wrong.clone()).await.unwrap_err();
        assert!(matches!(&refused, JwtError::Claim { claim: told, .. } if *told == claim), "{wrong}: {refused:?}");
        assert_eq!(Refused::from(refused).reason, Reason::Unauthorized);
    }
    for wrong in [json!({"roost": {"grant": []}}), json!({"roost": 7}), json!({"channels": "chat:1"})] {
        let refused = verify(wrong.clone()).await;
        assert!(matches!(refused, Err(JwtError::Malformed(_))), "{wrong}: {refused:?}");
    }
}

#[test]
fn what_is_no_key_is_not_loaded() {
    let refused = |text: &str| {
        let set = Set::new().public("k", text);
        Jwts::load(&set.config).unwrap_err()
    };
    let ec = EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let p384 = AsDer::<PublicKeyX509Der<'_>>::as_der(ec.public_key()).unwrap().as_ref().to_vec();
    let private = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for (text, words) in [
        ("", "BEGIN PUBLIC KEY"),
        (private.as_str(), "private key"),
        (&pem("PUBLIC KEY", &p384), "P-256"),
        (&pem("PUBLIC KEY", b"nonsense"), "cannot be read"),
    ] {
        let told = refused(text);
        assert!(told.contains(words) && told.contains("jwt.public_keys"), "{told}");
    }
    let mut set = Set::new();
    set.config.jwt.public_keys.insert("k".to_owned(), "/nowhere/key.pem".into());
    assert!(Jwts::load(&set.config).unwrap_err().contains("/nowhere/key.pem"));
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let problems = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.check(Purpose::Serve).unwrap_err().to_string()
    };
    let short = problems(&|config| drop(config.jwt.secrets.insert("k".to_owned(), "guess-me".to_owned())));
    assert!(short.contains("jwt.secrets") && short.contains("32") && !short.contains("guess-me"), "{short}");
    let both = problems(&|config| {
        config.jwt.secrets.insert("k".to_owned(), SECRET.to_owned());
        config.jwt.public_keys.insert("k".to_owned(), "k.pem".into());
    });
    assert!(both.contains("public_keys too"), "{both}");
    assert!(problems(&|config| config.jwt.leeway_s = 301).contains("jwt.leeway_s"));
    let shown = format!("{:?}", Set::new().secret("k", SECRET).config);
    assert!(!shown.contains(SECRET), "configurations end up in logs");
}
