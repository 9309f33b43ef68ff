//! Keys that a URL has: while it is down, when they change, and when somebody makes them up.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::tasks::Tasks;

/// Between two looks, and how long one may take.
const AGAIN: Duration = Duration::from_millis(300);
const TIMEOUT_MS: u64 = 1_000;

/// Somebody's server of keys: what it answers, and how often it was asked.
#[derive(Clone)]
struct Served {
    address: SocketAddr,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Served {
    async fn start(tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let served = Self { address: listener.local_addr().unwrap(), answer: Arc::default(), asked: Arc::default() };
        let (this, all) = (served.clone(), tasks.clone());
        tasks.spawn_detached("keys", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let this = this.clone();
                all.spawn_detached("answer", async move { this.answer(&mut stream).await });
            }
        });
        served
    }

    /// The same behind TLS, and the certificate.
    async fn start_tls(tasks: &Tasks) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let served = Self { address: listener.local_addr().unwrap(), answer: Arc::default(), asked: Arc::default() };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let this = served.clone();
        tasks.spawn_detached("keys", async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    this.answer(&mut stream).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        (served, made.cert.pem())
    }

    async fn answer(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        let mut head = vec![0; 4_096];
        let _ = stream.read(&mut head).await;
        self.asked.fetch_add(1, Ordering::SeqCst);
        // Whoever asks meanwhile waits for this look.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answer = self.answer.lock().unwrap().clone();
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    fn has(&self, keys: &[Value]) {
        self.says("200 OK", &json!({"keys": keys}).to_string());
    }

    fn says(&self, status: &str, body: &str) {
        let length = body.len();
        *self.answer.lock().unwrap() =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn jwts(&self, tasks: &Tasks) -> Arc<Jwts> {
        let mut set = Set::new().secret("s", SECRET);
        set.config.jwt.jwks_url = format!("http://{}/keys?all", self.address);
        set.config.jwt.jwks_timeout_ms = TIMEOUT_MS;
        set.config.check(Purpose::Serve).unwrap();
        let jwts = Arc::new(Jwts::load_looking(&set.config, AGAIN).unwrap());
        jwts.start(tasks);
        jwts
    }
}

fn named(key: &Private, alg: &str, kid: &str) -> String {
    key.token(&json!({"alg": alg, "kid": kid}), &claims())
}

async fn verify(jwts: &Jwts, token: &str) -> Result<String, JwtError> {
    jwts.verify_at(token, NOW_S * 1_000).await.map(|claims| claims.user)
}

fn ann() -> Result<String, JwtError> {
    Ok("ann".to_owned())
}

#[tokio::test]
async fn keys_are_read_and_each_is_for_its_algorithm() {
    let tasks = Tasks::new();
    let served = Served::start(&tasks).await;
    let (rsa, ec, ed) = (Private::rsa(), Private::ec(), Private::ed());
    let mut for_something_else = rsa.jwk("enc");
    for_something_else["use"] = json!("enc");
    let mut of_another_algorithm = rsa.jwk("ps");
    of_another_algorithm["alg"] = json!("PS256");
    let secret = json!({"kty": "oct", "kid": "oct", "k": BASE64.encode(SECRET)});
    let nonsense = json!({"kty": "??", "kid": 7});
    served.has(&[secret, nonsense, for_something_else, of_another_algorithm, rsa.jwk("r"), ec.jwk("e"), ed.jwk("d")]);
    let jwts = served.jwts(&tasks);
    for (key, alg, kid) in [(&rsa, "RS256", "r"), (&ec, "ES256", "e"), (&ed, "EdDSA", "d")] {
        assert_eq!(verify(&jwts, &named(key, alg, kid)).await, ann(), "{kid}");
        assert_eq!(verify(&jwts, &key.token(&json!({"alg": alg}), &claims())).await, ann(), "{kid} unnamed");
        let wrong = verify(&jwts, &named(key, "HS256", kid)).await;
        assert!(matches!(wrong, Err(JwtError::WrongAlgorithm)), "{kid}: {wrong:?}");
    }
    tokio::time::sleep(AGAIN).await;
    let as_secret = hs256(SECRET, json!({"alg": "HS256", "kid": "oct"}), claims());
    for unusable in [as_secret, named(&rsa, "RS256", "enc"), named(&rsa, "RS256", "ps")] {
        tokio::time::sleep(AGAIN).await;
        assert!(matches!(verify(&jwts, &unusable).await, Err(JwtError::UnknownKey(_))), "{unusable}");
    }
    assert_eq!(verify(&jwts, &hs256(SECRET, json!({"alg": "HS256", "kid": "s"}), claims())).await, ann());
    served.has(&[rsa.jwk("r"), Private::rsa().jwk("r")]);
    let jwts = served.jwts(&tasks);
    assert_eq!(verify(&jwts, &named(&rsa, "RS256", "r")).await, Err(JwtError::SameKid("r".to_owned())));
    tasks.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn while_the_url_is_down_known_keys_stay_good_and_others_are_not_denied() {
    let tasks = Tasks::new();
    let served = Served::start(&tasks).await;
    let (key, other) = (Private::ec(), Private::ec());
    for (status, body) in [
        ("500 Internal Server Error", "{}"),
        ("302 Found", ""),
        ("200 OK", "<html>"),
        ("200 OK", "{\"keys\":[]}"),
        ("200 OK", &format!("{{\"keys\":[],\"x\":\"{}\"}}", "y".repeat(fetch::ANSWER_MAX_BYTES))),
    ] {
        served.says(status, body);
        let jwts = served.jwts(&tasks);
        assert_eq!(verify(&jwts, &named(&key, "ES256", "k")).await, Err(JwtError::NoKeys), "{status}");
        let secret = hs256(SECRET, json!({"alg": "HS256", "kid": "s"}), claims());
        assert_eq!(verify(&jwts, &secret).await, ann(), "what the node has itself needs no URL");
    }
    let jwts = served.jwts(&tasks);
    assert_eq!(verify(&jwts, &named(&key, "ES256", "k")).await, Err(JwtError::NoKeys));
    served.has(&[key.jwk("k")]);
    let up = async || verify(&jwts, &named(&key, "ES256", "k")).await == ann();
    let limit = clock::mono_ms() + 10_000;
    while !up().await {
        assert!(clock::mono_ms() < limit, "the URL is up again, and nobody looks");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served.says("503 Service Unavailable", "");
    tokio::time::sleep(AGAIN).await;
    assert_eq!(verify(&jwts, &named(&other, "ES256", "new")).await, Err(JwtError::NoKeys));
    assert_eq!(verify(&jwts, &named(&key, "ES256", "k")).await, ann(), "it was good");
    assert_eq!(Refused::from(JwtError::NoKeys).reason, Reason::Unavailable, "who is told so comes back");
    tasks.shut_down(Duration::from_secs(1)).await;
}

/// All who come with the new key wait for one look; nobody is denied, and whoever makes up keys causes no more of them.
#[tokio::test]
async fn keys_change_under_load() {
    let tasks = Tasks::new();
    let served = Served::start(&tasks).await;
    let (old, new) = (Private::ec(), Private::ec());
    served.has(&[old.jwk("old")]);
    let jwts = served.jwts(&tasks);
    assert_eq!(verify(&jwts, &named(&old, "ES256", "old")).await, ann());
    served.has(&[old.jwk("old"), new.jwk("new")]);
    // Right after a look it is not known whether there is such a key by now.
    assert_eq!(verify(&jwts, &named(&new, "ES256", "new")).await, Err(JwtError::NoKeys));
    tokio::time::sleep(AGAIN).await;
    let before = served.asked();
    let token = named(&new, "ES256", "new");
    let told = futures_util::future::join_all((0..200).map(|_| verify(&jwts, &token))).await;
    assert!(told.iter().all(|told| *told == ann()), "{:?}", told.iter().find(|told| **told != ann()));
    assert_eq!(served.asked() - before, 1, "they wait for the same look");
    assert_eq!(verify(&jwts, &named(&old, "ES256", "old")).await, ann(), "both are good");

    let (began_ms, before) = (clock::mono_ms(), served.asked());
    let mut denied = 0;
    for number in 0..3_000 {
        let forged = named(&old, "ES256", &format!("made-up-{number}"));
        match verify(&jwts, &forged).await {
            Err(JwtError::UnknownKey(_)) => denied += 1,
            Err(JwtError::NoKeys) => {}
            told => panic!("{told:?}"),
        }
    }
    let most = (clock::mono_ms() - began_ms) / AGAIN.as_millis() as u64 + 2;
    let looks = served.asked() - before;
    assert!(looks as u64 <= most && denied <= looks, "{looks} looks, {denied} denied");
    served.has(&[new.jwk("new")]);
    tokio::time::sleep(AGAIN).await;
    assert!(verify(&jwts, &named(&new, "ES256", "nobody")).await.is_err());
    assert!(
        matches!(verify(&jwts, &named(&old, "ES256", "old")).await, Err(JwtError::UnknownKey(_) | JwtError::NoKeys)),
        "it is withdrawn"
    );
    assert_eq!(verify(&jwts, &named(&new, "ES256", "new")).await, ann());
    tasks.shut_down(Duration::from_secs(1)).await;
}

/// Only the server that the certificate is of has keys.
#[tokio::test]
async fn keys_come_by_https_from_who_is_trusted() {
    let tasks = Tasks::new();
    let (served, certificate) = Served::start_tls(&tasks).await;
    let key = Private::ed();
    served.has(&[key.jwk("k")]);
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
    for (ca, host, told) in [
        (&certificate, "localhost", ann()),
        (&other, "localhost", Err(JwtError::NoKeys)),
        (&certificate, "127.0.0.1", Err(JwtError::NoKeys)),
    ] {
        let mut set = Set::new();
        let path = set.folder.path().join("ca.pem");
        std::fs::write(&path, ca).unwrap();
        set.config.jwt.jwks_ca = path;
        set.config.jwt.jwks_url = format!("https://{host}:{}/keys", served.address.port());
        let jwts = Arc::new(set.load());
        jwts.start(&tasks);
        assert_eq!(verify(&jwts, &named(&key, "EdDSA", "k")).await, told, "{host}");
    }
    assert_eq!(served.asked(), 1, "nobody else asked it for anything");
    tasks.shut_down(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_url_that_does_not_answer_holds_nobody_up_for_long() {
    let tasks = Tasks::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Served { address: listener.local_addr().unwrap(), answer: Arc::default(), asked: Arc::default() };
    let jwts = silent.jwts(&tasks);
    let began_ms = clock::mono_ms();
    assert_eq!(verify(&jwts, &named(&Private::ec(), "ES256", "k")).await, Err(JwtError::NoKeys));
    let took_ms = clock::mono_ms() - began_ms;
    assert!(took_ms < TIMEOUT_MS + 1_000, "{took_ms} ms");
    tasks.shut_down(Duration::from_secs(1)).await;
}

#[test]
fn only_what_nobody_on_the_way_can_change_is_read() {
    let refused = |url: &str| {
        let mut config = Config::default();
        config.jwt.jwks_url = url.to_owned();
        Jwts::load(&config).unwrap_err()
    };
    for (url, words) in [
        ("http://id.example.com/keys", "use https"),
        ("http://10.0.0.1/keys", "use https"),
        ("ftp://localhost/keys", "https"),
        ("https://user:secret@id.example.com/keys", "without a user"),
        ("keys.json", "https"),
        ("https://", ""),
    ] {
        let told = refused(url);
        assert!(told.contains(words) && told.contains("jwt.jwks_url"), "{url}: {told}");
    }
    let mut config = Config::default();
    config.jwt.jwks_url = "https://id.example.com/keys".to_owned();
    config.jwt.jwks_ca = "/nowhere/ca.pem".into();
    assert!(Jwts::load(&config).unwrap_err().contains("/nowhere/ca.pem"));
}
