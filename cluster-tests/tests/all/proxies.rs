//! Clients behind nginx and HAProxy, by the very files that config/ shows, and clients over TLS without a proxy.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    api::Api,
    client::{Client, ClientOptions},
    cluster::Cluster,
    load::{self, Load},
    lone::Lone,
    ports::free_block,
    reader::{Reader, Refusal},
    turn,
    wait::wait_until,
};
use futures_util::{SinkExt, StreamExt};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::elsewhere::repository;

const LIMIT: Duration = Duration::from_secs(30);
const NODES: usize = 3;
/// `limits.connections_per_address`, on each node.
const PER_ADDRESS: usize = 16;
/// Where the proxy's connections to nodes come from: those of this test, which come directly, are no proxy's.
const PROXY: &str = "127.0.0.2";
const SUBSCRIBERS: usize = 6;

// --- Behind a proxy --------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_nginx() -> Result<()> {
    let _turn = turn::take(module_path!());
    let mut cluster = start("x-forwarded-for").await?;
    let proxy = nginx(&cluster).await?;
    limits_bound_the_client_itself(&proxy).await?;
    events_come_as_they_happen(&proxy).await?;
    a_drain_loses_nothing(&mut cluster, &proxy).await?;
    cluster.shut_down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_haproxy() -> Result<()> {
    let _turn = turn::take(module_path!());
    let mut cluster = start("proxy-protocol").await?;
    let proxy = haproxy(&cluster).await?;
    limits_bound_the_client_itself(&proxy).await?;
    events_come_as_they_happen(&proxy).await?;
    let drained = a_drain_loses_nothing(&mut cluster, &proxy).await?;
    let is_down = |node: &str, log: &str| log.contains(&format!("Server roost/{node} is DOWN"));
    wait_until("the checks to take the node out", LIMIT, async || is_down(&drained, &proxy.log())).await?;
    let log = proxy.log();
    let others = (0..NODES).map(Cluster::name).filter(|node| *node != drained);
    for node in others {
        ensure!(!is_down(&node, &log), "{node} serves and was taken out: {log}");
    }
    cluster.shut_down().await
}

async fn start(header: &str) -> Result<Cluster> {
    let per_address = PER_ADDRESS.to_string();
    let settings = [
        ("ROOST_NODE__PROXIES", PROXY),
        ("ROOST_NODE__PROXY_HEADER", header),
        ("ROOST_LIMITS__CONNECTIONS_PER_ADDRESS", per_address.as_str()),
    ];
    Cluster::program_with(NODES, &settings).await
}

/// A proxy in front of all nodes. It ends with this.
struct Proxy {
    url: String,
    folder: TempDir,
    _process: Child,
}

impl Proxy {
    async fn start(folder: TempDir, url: String, command: &mut Command) -> Result<Self> {
        let log = fs::File::create(folder.path().join("log"))?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let process = command.spawn().context("starting a proxy: scripts/setup installs nginx and haproxy")?;
        let this = Self { url, folder, _process: process };
        let api = Api::new(&this.url);
        wait_until("the proxy to serve", LIMIT, async || api.is_ready().await).await.with_context(|| this.log())?;
        Ok(this)
    }

    /// What it has said so far.
    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// A file of config/ with other words in place of some of its own, each of which has to be there.
fn configuration(name: &str, words: &[(&str, String)]) -> Result<String> {
    let mut text = fs::read_to_string(repository().join("config").join(name))?;
    for (shown, own) in words {
        ensure!(text.contains(shown), "config/{name} has no `{shown}` any more");
        text = text.replace(shown, own);
    }
    Ok(text)
}

fn address_of(url: &str) -> &str {
    url.trim_start_matches("http://")
}

async fn nginx(cluster: &Cluster) -> Result<Proxy> {
    let (folder, listen) = (tempfile::tempdir()?, format!("127.0.0.1:{}", free_block(1)?));
    let server = |node| format!("server {} max_fails=1 fail_timeout=5s;", address_of(&cluster.url(node)));
    let here = folder.path().display();
    // Anybody may run it: what it writes lies in the folder.
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = temporary.iter().map(|what| format!("\n{what}_temp_path {here}/{what};")).collect();
    let words = [
        ("/run/nginx-roost.pid", format!("{here}/pid")),
        ("access_log off;", format!("access_log off;{temporary}")),
        ("server 127.0.0.1:8000 max_fails=1 fail_timeout=5s;", format!("{}{}", server(0), server(2))),
        ("server 127.0.0.1:8001 max_fails=1 fail_timeout=5s;", server(1)),
        ("listen 127.0.0.1:8080;", format!("listen {listen};")),
        ("proxy_pass http://roost;", format!("proxy_bind {PROXY};\nproxy_pass http://roost;")),
    ];
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration("nginx.conf", &words)?)?;
    let mut command = Command::new(installed("nginx"));
    // One process, which ends when it is killed: workers would go on without their master.
    command
        .args(["-e", "stderr", "-g", "daemon off; master_process off;", "-p"])
        .arg(folder.path())
        .arg("-c")
        .arg(file);
    Proxy::start(folder, format!("http://{listen}"), &mut command).await
}

async fn haproxy(cluster: &Cluster) -> Result<Proxy> {
    let (folder, listen) = (tempfile::tempdir()?, format!("127.0.0.1:{}", free_block(1)?));
    let server = |node| format!("server {} {} check", Cluster::name(node), address_of(&cluster.url(node)));
    let words = [
        // Two of the system's open files for each, of which a test's machine may have few.
        ("maxconn 32768", "maxconn 1000".to_owned()),
        ("bind 127.0.0.1:8080", format!("bind {listen}")),
        ("default-server inter", format!("default-server source {PROXY} inter")),
        ("server n1 127.0.0.1:8000 check", server(0)),
        ("server n2 127.0.0.1:8001 check", format!("{}\n    {}", server(1), server(2))),
    ];
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, configuration("haproxy.cfg", &words)?)?;
    let mut command = Command::new(installed("haproxy"));
    command.arg("-db").arg("-f").arg(file);
    Proxy::start(folder, format!("http://{listen}"), &mut command).await
}

/// Debian has them where only root looks for programs.
fn installed(program: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(program);
    if path.is_file() { path } else { program.into() }
}

/// A reader of events whose connection to the proxy comes from this address.
async fn read_from(from: &str, proxy: &Proxy, headers: &[(&str, &str)]) -> Result<Result<Reader, Refusal>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse()?, 0))?;
    // Or nginx leaves the connection open after a refusal.
    let headers = [headers, &[("Connection", "close")]].concat();
    Reader::open_over(socket, &proxy.url, "/v1/groups/news:all/events", &headers).await
}

/// Each node lets in as many of an address as it is to, whatever they claim, and another address all the same.
async fn limits_bound_the_client_itself(proxy: &Proxy) -> Result<()> {
    let (one, other) = ("127.0.0.9", "127.0.0.10");
    let mut readers = Vec::new();
    let refusal = loop {
        match read_from(one, proxy, &[]).await? {
            Ok(reader) => readers.push(reader),
            Err(refusal) => break refusal,
        }
        ensure!(readers.len() <= NODES * PER_ADDRESS, "{} readers of one address were let in", readers.len());
    };
    let limited = |refusal: &Refusal| {
        refusal.status == 503 && refusal.body.to_string().contains("limits.connections_per_address")
    };
    ensure!(readers.len() >= PER_ADDRESS && limited(&refusal), "after {} readers: {refusal:?}", readers.len());
    for (name, value) in [("X-Forwarded-For", "127.0.0.77"), ("Forwarded", "for=127.0.0.77")] {
        match read_from(one, proxy, &[(name, value)]).await? {
            Ok(_) => bail!("{name}: a client was believed who it is"),
            Err(refusal) => ensure!(limited(&refusal), "{name}: {refusal:?}"),
        }
        let claims = [(name, one)];
        let let_in = read_from(other, proxy, &claims).await?;
        ensure!(let_in.is_ok(), "another address was refused for what it claims in {name}");
    }
    eprintln!("{} readers of one address, and no more", readers.len());
    Ok(())
}

async fn events_come_as_they_happen(proxy: &Proxy) -> Result<()> {
    let reader = read_from("127.0.0.1", proxy, &[]).await?;
    let mut reader = reader.map_err(|refusal| anyhow::anyhow!("refused: {refusal:?}"))?;
    reader.event("joined").await?;
    let api = Api::new(&proxy.url);
    for number in 0..3 {
        api.publish("news:all", &json!(number), None).await?;
        let event = reader.event("message").await?;
        ensure!(event.data["data"] == number, "{event:?} is not {number}");
    }
    ensure!(!reader.ended_whole(), "the answer has ended");
    Ok(())
}

/// Drains a node with clients, all of which come back through the proxy, and says which node that was.
async fn a_drain_loses_nothing(cluster: &mut Cluster, proxy: &Proxy) -> Result<String> {
    let group: Arc<str> = "chat:drain".into();
    let through = |options: ClientOptions| ClientOptions { nodes: vec![proxy.url.clone()], ..options };
    let mut clients = Vec::new();
    for number in 0..=SUBSCRIBERS {
        let name = format!("client-{number}");
        clients.push(load::client_with(cluster, number % NODES, &name, std::slice::from_ref(&group), through).await?);
    }
    let at = |client: &Client| client.state().node.unwrap_or_default();
    let drained = at(&clients[0]);
    let there = clients.iter().filter(|client| at(client) == drained).count();
    ensure!(there < clients.len(), "all clients are at {drained}: nothing is balanced");
    let node = (0..NODES).find(|node| Cluster::name(*node) == drained).context("a node of the cluster")?;

    let publisher = clients.pop().context("there are clients")?;
    let load = Load::start(vec![publisher], &[group], Duration::from_millis(4));
    load::goes_on(&clients, &load::received(&clients), LIMIT).await?;
    cluster.drain(node).await?;
    for client in &clients {
        let elsewhere = |state: &cluster_tests::client::State| state.node.as_ref().is_some_and(|at| *at != drained);
        client.wait("come back elsewhere", LIMIT, elsewhere).await?;
    }
    load::goes_on(&clients, &load::received(&clients), LIMIT).await?;
    let (publishers, heads) = load.stop().await?;
    let connections: u32 = clients.iter().map(|client| client.state().connections).sum();
    ensure!(connections > SUBSCRIBERS as u32, "nobody had to come back");
    clients.extend(publishers);
    let sum = load::settle(clients, &heads).await?.check()?;
    eprintln!("{drained} was drained with {there} of {} clients: {sum:?}", SUBSCRIBERS + 1);
    Ok(drained)
}

// --- TLS -------------------------------------------------------------------------------------------------------------

/// What is published while its reader does not read: more than sockets hold, less than `limits.outbox_bytes`.
const BURST: usize = 60;
const PIECE: usize = 50_000;

/// The files of a node that speaks TLS.
struct Files {
    folder: TempDir,
}

impl Files {
    fn cert(&self) -> PathBuf {
        self.folder.path().join("http.crt")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("http.key")
    }

    /// Writes a new certificate, which is its own root, and its key.
    fn write_new(&self) -> Result<CertificateDer<'static>> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        fs::write(self.key(), made.signing_key.serialize_pem())?;
        #[cfg(unix)]
        fs::set_permissions(self.key(), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        fs::write(self.cert(), made.cert.pem())?;
        Ok(made.cert.der().clone())
    }
}

/// A WebSocket over TLS.
struct Secure {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

async fn shake_hands(address: SocketAddr, trusted: &CertificateDer<'static>) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone())?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpSocket::new_v4()?;
    // So that a burst waits at the node, not here.
    socket.set_recv_buffer_size(16 << 10)?;
    let shaking = async {
        let tcp = socket.connect(address).await?;
        let name = ServerName::try_from("127.0.0.1")?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
    };
    tokio::time::timeout(LIMIT, shaking).await.context("no handshake")?
}

impl Secure {
    /// A client that was welcomed and is in the group, at a node that shows this certificate.
    async fn join(address: SocketAddr, trusted: &CertificateDer<'static>) -> Result<Self> {
        let stream = shake_hands(address, trusted).await?;
        let (socket, _) = client_async(format!("wss://{address}/ws"), stream).await?;
        let mut this = Self { socket };
        this.send(&json!({"type": "hello", "resume": {}})).await?;
        this.frame_of("welcome").await?;
        this.send(&json!({"type": "join", "id": 1, "group": "chat:tls"})).await?;
        // Its own group is joined as well, and may be so before.
        while this.frame_of("joined").await?["group"] != "chat:tls" {}
        Ok(this)
    }

    async fn send(&mut self, frame: &Value) -> Result<()> {
        Ok(self.socket.send(Message::text(frame.to_string())).await?)
    }

    async fn publish(&mut self, data: &str) -> Result<()> {
        self.send(&json!({"type": "publish", "id": 2, "group": "chat:tls", "data": data})).await?;
        self.frame_of("published").await.map(drop)
    }

    /// The next frame of this type; others before it are passed over, but for those that tell of a failure or loss.
    async fn frame_of(&mut self, kind: &str) -> Result<Value> {
        loop {
            let next = tokio::time::timeout(LIMIT, self.socket.next()).await;
            let message = next.with_context(|| format!("no {kind} came"))?.context("the connection has ended")??;
            let Message::Text(text) = message else { continue };
            let frame: Value = serde_json::from_str(text.as_str())?;
            match frame["type"].as_str().context("a frame has a type")? {
                found if found == kind => return Ok(frame),
                "error" | "gap" | "reset" | "bye" => bail!("{frame} came before a {kind}"),
                _ => {}
            }
        }
    }

    async fn hears(&mut self, data: &str) -> Result<()> {
        let message = self.frame_of("message").await?;
        ensure!(message["data"] == data, "{} bytes of something else came", message.to_string().len());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_tls() -> Result<()> {
    let _turn = turn::take(module_path!());
    let files = Files { folder: tempfile::tempdir()? };
    let first = files.write_new()?;
    let tls = format!("http_tls_cert = \"{}\"\nhttp_tls_key = \"{}\"", files.cert().display(), files.key().display());
    let settings = "[store]\nkind = \"embedded\"\n[session]\nanonymous = true\n";
    let node = Lone::start_as(&tls, |_| settings.to_owned()).await?;
    let address: SocketAddr = address_of(&node.url).parse()?;
    let mut open = None;
    wait_until("a client to be welcomed over TLS", LIMIT, async || {
        open = Secure::join(address, &first).await.ok();
        open.is_some()
    })
    .await?;
    let mut slow = open.context("it was welcomed")?;
    let mut publisher = Secure::join(address, &first).await?;

    let piece = |number: usize| format!("{number:0>PIECE$}");
    for number in 0..BURST {
        publisher.publish(&piece(number)).await?;
    }
    for number in 0..BURST {
        slow.hears(&piece(number)).await.with_context(|| format!("message {number} of the burst"))?;
    }
    eprintln!("a reader that waited has heard {} bytes", BURST * PIECE);

    let second = files.write_new()?;
    node.signal("-HUP").await?;
    wait_until("the new certificate to be shown", LIMIT, async || {
        shake_hands(address, &second).await.is_ok_and(|stream| {
            let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
            shown == Some(&second)
        })
    })
    .await?;
    ensure!(shake_hands(address, &first).await.is_err(), "the first certificate is shown still");
    let mut late = Secure::join(address, &second).await?;
    publisher.publish("after the exchange").await?;
    slow.hears("after the exchange").await.context("who stayed")?;
    late.hears("after the exchange").await.context("who came after it")?;
    node.end().await
}
