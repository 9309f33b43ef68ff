use std::{net::SocketAddr, sync::OnceLock};

use axum::{Router, routing::get};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{
    config::{Config, ProxyHeader},
    gateway::door::listener::{Door, DoorInputs, listen},
    metrics::Limit,
    open_files::OpenFiles,
};

const BIG: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(20);

/// A certificate for 127.0.0.1, and its key.
fn make(days: i64) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(100);
    params.not_after = now + time::Duration::days(days) + time::Duration::hours(1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn write(files: &Files, (cert, key): &(String, String)) {
    fs::write(&files.cert, cert).unwrap();
    fs::write(&files.key, key).unwrap();
    #[cfg(unix)]
    fs::set_permissions(&files.key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

fn files(dir: &TempDir, pair: &(String, String)) -> Files {
    let files = Files { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    write(&files, pair);
    files
}

struct Scene {
    door: Door,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

/// A door that shows this.
async fn open(shown: watch::Receiver<Shown>, change: impl FnOnce(&mut Config)) -> Scene {
    let mut config = Config::default();
    change(&mut config);
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, tasks, metrics) = (listener.local_addr().unwrap(), Tasks::new(), Metrics::new());
    let routes = Router::new()
        .route("/livez", get(|| async { "alive" }))
        .route("/hi", get(|| async { "hi" }))
        .route("/big", get(|| async { vec![b'x'; BIG] }));
    let inputs = DoorInputs {
        config: &config,
        files: OpenFiles::of(256).unwrap(),
        certificate: Some(shown),
        routes,
        metrics: metrics.clone(),
        tasks: &tasks,
    };
    Scene { door: Door::open(listener, inputs), address, metrics, tasks }
}

impl Scene {
    async fn connect(&self, trusted: &str) -> io::Result<TlsStream<TcpStream>> {
        secure(TcpStream::connect(self.address).await?, trusted).await
    }

    async fn stop(self) {
        self.door.shut(LIMIT).await;
        assert!(self.tasks.shut_down(LIMIT).await);
    }
}

async fn secure(tcp: TcpStream, trusted: &str) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

async fn ask(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), path: &str, wanted: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    while !text.ends_with(wanted) {
        let mut buffer = [0; 4_096];
        let count = tokio::time::timeout(LIMIT, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "the connection ended: {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn new_files_are_shown_to_who_comes_and_bad_ones_to_nobody() {
    let (dir, old, new) = (TempDir::new().unwrap(), make(90), make(60));
    let files = files(&dir, &old);
    let (sender, shown) = watch::channel(files.load().unwrap());
    let scene = open(shown, |_| ()).await;
    let follower = Follower {
        files: files.clone(),
        looks: files.looks(),
        sender,
        metrics: scene.metrics.clone(),
        told: Arc::default(),
    };
    let mut early = scene.connect(&old.0).await.unwrap();
    ask(&mut early, "/hi", "hi").await;
    fs::write(&files.cert, &new.0).unwrap();
    assert_ne!(files.looks(), follower.looks, "it is seen");
    follower.take();
    ask(&mut scene.connect(&old.0).await.unwrap(), "/hi", "hi").await;
    write(&files, &new);
    follower.take();
    ask(&mut scene.connect(&new.0).await.unwrap(), "/hi", "hi").await;
    assert!(scene.connect(&old.0).await.is_err(), "the earlier one is shown no more");
    ask(&mut early, "/hi", "hi").await;
    assert_eq!(scene.metrics.certificate_expires.get() as u64, files.load().unwrap().expires_ms / 1_000);
    drop(early);
    scene.stop().await;
}

#[tokio::test]
async fn what_is_big_comes_whole_however_slowly_it_is_read() {
    let (dir, pair) = (TempDir::new().unwrap(), make(90));
    let (_sender, shown) = watch::channel(files(&dir, &pair).load().unwrap());
    let scene = open(shown, |_| ()).await;
    let mut stream = scene.connect(&pair.0).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut got = Vec::new();
    // To the end, which TLS says too: without that this is an error.
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.iter().rev().take_while(|byte| **byte == b'x').count(), BIG);
    scene.stop().await;
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so_and_who_says_nothing_is_closed() {
    let (dir, pair) = (TempDir::new().unwrap(), make(90));
    let (_sender, shown) = watch::channel(files(&dir, &pair).load().unwrap());
    let scene = open(shown, |config| config.limits.request_head_ms = 3_000).await;
    let mut silent = TcpStream::connect(scene.address).await.unwrap();
    let mut plain = TcpStream::connect(scene.address).await.unwrap();
    plain.write_all(b"GET /hi HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut text = String::new();
    plain.read_to_string(&mut text).await.unwrap();
    drop(plain);
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("https://"), "{text}");
    assert_eq!(tokio::time::timeout(LIMIT, silent.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(scene.metrics.limit_hits(Limit::RequestHeadMs), 1);
    scene.stop().await;
}

#[tokio::test]
async fn a_proxy_speaks_for_its_clients_before_tls() {
    let (dir, pair) = (TempDir::new().unwrap(), make(90));
    let (_sender, shown) = watch::channel(files(&dir, &pair).load().unwrap());
    let scene = open(shown, |config| {
        config.node.proxies = vec!["127.0.0.1".to_owned()];
        config.node.proxy_header = ProxyHeader::ProxyProtocol;
        config.limits.connections_per_address = 1;
    })
    .await;
    let speak_for = async |client: &str| {
        let mut tcp = TcpStream::connect(scene.address).await.unwrap();
        tcp.write_all(format!("PROXY TCP4 {client} 192.0.2.1 4711 443\r\n").as_bytes()).await.unwrap();
        secure(tcp, &pair.0).await
    };
    let mut first = speak_for("203.0.113.9").await.unwrap();
    ask(&mut first, "/hi", "hi").await;
    let mut second = speak_for("203.0.113.9").await.unwrap();
    second.write_all(b"GET /hi HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut text = String::new();
    second.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    let mut other = speak_for("203.0.113.10").await.unwrap();
    ask(&mut other, "/hi", "hi").await;
    assert!(scene.connect(&pair.0).await.is_err(), "a proxy that does not say for whom is refused");
    drop((first, other));
    scene.stop().await;
}

#[test]
fn what_is_wrong_with_files_is_told() {
    static OTHER: OnceLock<(String, String)> = OnceLock::new();
    let (dir, good, other) = (TempDir::new().unwrap(), make(90), OTHER.get_or_init(|| make(90)));
    let check = |pair: (&str, &str), says: &str| {
        let error = files(&dir, &(pair.0.to_owned(), pair.1.to_owned())).load().unwrap_err();
        assert!(error.contains(says), "{says}: {error}");
    };
    check(("", &good.1), "node.http_tls_cert");
    check((&good.1, &good.1), "no certificate");
    check((&good.0, &good.0), "node.http_tls_key");
    check((&good.0, &other.1), "must be the key of the first certificate");
    let files = files(&dir, &good);
    assert_eq!(files.load().unwrap().days_left(), 90);
    assert_eq!(files.load().unwrap().end_is_near(), None);
    #[cfg(unix)]
    {
        fs::set_permissions(&files.key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(files.load().unwrap_err().contains("key.pem"));
    }
    fs::remove_file(&files.cert).unwrap();
    assert!(files.load().unwrap_err().contains("cert.pem"));
}

#[test]
fn an_end_that_is_near_or_past_is_told_with_its_date() {
    let dir = TempDir::new().unwrap();
    let words = |days| files(&dir, &make(days)).load().unwrap().end_is_near().unwrap();
    assert!(words(10).contains("in 10 days"), "{}", words(10));
    assert!(words(-10).contains("expired on 20"), "{}", words(-10));
}
