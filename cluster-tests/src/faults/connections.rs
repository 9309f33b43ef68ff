//! Faults of clients' connections, and what they cost the node that has them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

use super::scene::{ONE, STAY, Scene};
use crate::{api::Api, process::LIMIT, socket::Socket, wait::wait_until};

/// More than a process with 256 file descriptors can have.
const MANY_CONNECTIONS: usize = 400;

/// Starts the node again with 256 file descriptors.
async fn limit_files(scene: &mut Scene<'_>) -> Result<()> {
    scene.cluster.drain(ONE).await?;
    scene.cluster.servers_mut()?.run_by(ONE, &["prlimit", "--nofile=256:256"]);
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await.map(drop)
}

pub(super) async fn few_descriptors(scene: &mut Scene<'_>) -> Result<()> {
    limit_files(scene).await?;
    let url = scene.cluster.url(ONE);
    scene.begin();
    let mut sockets = Vec::new();
    for _ in 0..MANY_CONNECTIONS {
        // Some are taken, the others wait or are refused: neither may hurt anybody else.
        if let Ok(Ok(socket)) = tokio::time::timeout(Duration::from_millis(200), Socket::connect(&url)).await {
            sockets.push(socket);
        }
        if sockets.len() + 20 < MANY_CONNECTIONS && sockets.len() > 240 {
            break;
        }
    }
    scene.note(format!("{} of them were taken", sockets.len()));
    scene.stay(STAY).await;
    drop(sockets);
    let api = scene.cluster.api(ONE);
    let ready = wait_until("the node to be ready again", LIMIT, async || api.is_ready().await).await?;
    scene.note(format!("it answered {:.1} s after they were gone", ready.as_secs_f64()));
    Ok(())
}

/// Connections that are held and not used, again and again as they are closed. Probes are answered all the time.
pub(super) async fn held(scene: &mut Scene<'_>) -> Result<()> {
    limit_files(scene).await?;
    let url = scene.cluster.url(ONE);
    let address: SocketAddr = url.trim_start_matches("http://").parse()?;
    // Silence, half a head, the beginning of HTTP/2, and requests whose answers are not read.
    let unread = "GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1_000);
    let beginnings = ["", "GET /livez HTTP/1.1\r\nhost:", "PRI * HTTP/2.0\r\n\r\n", unread.as_str()];
    scene.begin();
    let (mut held, mut probes, until_ms) = (Vec::new(), 0, roost::clock::mono_ms() + STAY.as_millis() as u64);
    while roost::clock::mono_ms() < until_ms {
        for number in 0..MANY_CONNECTIONS / 10 {
            let Ok(stream) = TcpStream::connect(address).await else { continue };
            // What does not fit is not sent: the other end takes no more.
            let _ = stream.try_write(beginnings[number % beginnings.len()].as_bytes());
            held.push(stream);
        }
        held.drain(..held.len().saturating_sub(MANY_CONNECTIONS));
        for path in ["/livez", "/readyz"] {
            let answer = Api::new(&url).get(path).await.with_context(|| format!("{path} was not answered"))?;
            ensure!(answer.status == 200, "{path}: {answer:?}");
            probes += 1;
        }
    }
    scene.note(format!("{probes} probes were answered"));
    scene.end();
    drop(held);
    let api = scene.cluster.api(ONE);
    let served = async || api.get("/v1/cluster/map").await.is_ok_and(|answer| answer.status == 200);
    let after = wait_until("the node to serve all again", LIMIT, served).await?;
    scene.note(format!("it served all again {:.1} s after they were gone", after.as_secs_f64()));
    Ok(())
}
