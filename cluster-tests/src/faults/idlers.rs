//! Connections that cost the node which has them, and bring nobody anything: requests that trickle in, and clients that read
//! nothing.

use std::{cell::Cell, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::future::{try_join_all, try_join3};
use reqwest::Method;
use roost::clock;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::scene::{ONE, Scene};
use crate::{
    api::{Api, KEY},
    gauges::metric,
    socket::Socket,
    wait::wait_until,
};

/// Requests of each kind that trickle in.
const TRICKLES: usize = 60;
const BETWEEN_BYTES: Duration = Duration::from_millis(300);
/// What `limits.request_head_ms` and `limits.handshake_ms` are set to here, and what a busy machine may add.
const TRICKLE_ENDS: Duration = Duration::from_millis(4_000 + 4_000);
const BETWEEN_PROBES: Duration = Duration::from_millis(100);

/// Clients that read nothing.
const UNREAD: usize = 20;
/// Of the message that they do not read, and the pause after it.
const UNREAD_BYTES: usize = 32_000;
const UNREAD_PAUSE: Duration = Duration::from_millis(10);
/// What `limits.write_timeout_ms` is set to here, the time until the system's buffers are full, and what a busy machine may add.
const UNREAD_ENDS: Duration = Duration::from_millis(4_000 + 10_000 + 4_000);
/// Twice `limits.outbox_bytes` for each of them, and what else a node may take.
const UNREAD_MB: u64 = UNREAD as u64 * 2 * 4 + 64;

/// Heads, bodies and hellos that come a byte at a time: each is given up in its time. Meanwhile probes are answered.
pub(super) async fn trickle(scene: &mut Scene<'_>) -> Result<()> {
    let url = scene.cluster.url(ONE);
    let address: SocketAddr = url.trim_start_matches("http://").parse()?;
    let head = b"GET /v1/cluster/map HTTP/1.1\r\nhost: a\r\nx-slow: ".to_vec();
    let body = format!(
        "POST /v1/sessions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         content-length: 10000\r\n\r\n{{\"user\": \""
    );
    let upgrade = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    // The beginning of a masked text frame of 125 bytes.
    let hello = [upgrade.as_bytes(), &[0x81, 0xfd, 0, 0, 0, 0]].concat();
    scene.begin();
    let probes = Cell::new(0);
    let kind = |first: Vec<u8>| async move {
        let all = try_join_all((0..TRICKLES).map(|_| given_up(address, &first))).await;
        let all = all.with_context(|| String::from_utf8_lossy(&first).lines().next().unwrap_or_default().to_owned())?;
        anyhow::Ok(all.into_iter().max().unwrap_or_default().as_secs_f64())
    };
    let trickling = try_join3(kind(head), kind(body.into_bytes()), kind(hello));
    let (heads, bodies, hellos) = tokio::select! {
        longest = trickling => longest?,
        failed = probe(&url, &probes) => return failed,
    };
    scene.note(format!(
        "{TRICKLES} each were given up: heads after at most {heads:.1} s, bodies {bodies:.1} s, hellos {hellos:.1} s; {} probes \
         were answered",
        probes.get()
    ));
    scene.end();
    Ok(())
}

/// Sends one byte after another. How long it takes until the node has closed the connection.
async fn given_up(address: SocketAddr, first: &[u8]) -> Result<Duration> {
    let begun_ms = clock::mono_ms();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(first).await?;
    let (mut from, mut to) = stream.split();
    let mut buffer = [0; 4_096];
    // Whatever it says before it closes.
    let closed = async { while from.read(&mut buffer).await.is_ok_and(|length| length > 0) {} };
    let trickle = async {
        while to.write_all(b"a").await.is_ok() {
            tokio::time::sleep(BETWEEN_BYTES).await;
        }
    };
    let ended = async {
        tokio::select! { () = closed => {}, () = trickle => {} }
    };
    tokio::time::timeout(TRICKLE_ENDS, ended).await.context("it was still listened to after that time")?;
    Ok(Duration::from_millis(clock::mono_ms() - begun_ms))
}

/// Until one is not answered.
async fn probe(url: &str, answered: &Cell<u32>) -> Result<()> {
    loop {
        for path in ["/livez", "/readyz"] {
            let answer = Api::new(url).get(path).await.with_context(|| format!("{path} was not answered"))?;
            ensure!(answer.status == 200, "{path}: {answer:?}");
            answered.set(answered.get() + 1);
        }
        tokio::time::sleep(BETWEEN_PROBES).await;
    }
}

/// Clients in a group of long messages that read nothing: they are closed, and what they make the node hold is bounded.
pub(super) async fn unread(scene: &mut Scene<'_>) -> Result<()> {
    let group = "chat:unread";
    let publishers = scene.publishers(&[1], &group.into()).await?;
    scene.heat(publishers, &group.into(), UNREAD_PAUSE, UNREAD_BYTES);
    let before = connections(scene).await?;
    let url = scene.cluster.url(ONE);
    let mut idle = Vec::new();
    let resident_mb = scene.cluster.servers()?.resident_mb(ONE)?;
    scene.begin();
    for _ in 0..UNREAD {
        let mut socket = Socket::connect(&url).await?;
        socket.send(&json!({"type": "hello"})).await?;
        socket.frame_of("welcome").await?;
        socket.send(&json!({"type": "join", "id": 1, "group": group})).await?;
        idle.push(socket);
    }
    let mut most_mb = resident_mb;
    let closed = async || {
        most_mb = most_mb.max(scene.cluster.servers().and_then(|servers| servers.resident_mb(ONE)).unwrap_or(u64::MAX));
        connections(scene).await.is_ok_and(|open| open <= before)
    };
    let closed = wait_until("the node to close who reads nothing", UNREAD_ENDS, closed).await?;
    ensure!(most_mb <= resident_mb + UNREAD_MB, "the node grew from {resident_mb} to {most_mb} MB");
    scene.note(format!(
        "all {UNREAD} were closed after {:.1} s; the node grew from {resident_mb} to at most {most_mb} MB",
        closed.as_secs_f64()
    ));
    scene.end();
    scene.rest().await
}

/// The clients of the first node.
pub(super) async fn connections(scene: &Scene<'_>) -> Result<u64> {
    let answer = scene.cluster.api(ONE).raw(Method::GET, "/metrics", None, Vec::new()).await?;
    metric(&answer.text().await?, "roost_connections")
}
