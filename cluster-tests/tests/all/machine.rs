//! A machine that runs short: few open files, a full disk under the store, a full disk under the log. The real program
//! refuses what it cannot do, says so, does the rest, and is well again when there is room.

use std::{fs, io::Write, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::Api,
    client::{Client, ClientOptions},
    process::Program,
    socket::Socket,
    turn,
    wait::wait_until,
};
use reqwest::Method;
use tokio::{io::AsyncWriteExt, net::TcpStream};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn few_open_files() -> Result<()> {
    let _turn = turn::take(module_path!());
    let program = Program::dev_in(1, r#"ulimit -n 256 && exec "$@""#).await?;
    let (url, api) = (program.http_url(0), Api::new(program.http_url(0)));
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..400 {
        match Socket::connect(&url).await {
            Ok(socket) => open.push(socket),
            Err(error) => {
                ensure!(format!("{error:#}").contains("503"), "not refused, but {error:#}");
                refused += 1;
            }
        }
    }
    eprintln!("{} connected, {refused} refused", open.len());
    ensure!(open.len() > 100 && refused > 0, "256 open files are no limit here");
    ensure!(api.is_ready().await, "it could not be asked how it is");
    ensure!(api.get("/health").await?.status == 200);
    drop(open);
    wait_until("a client to be taken again", LIMIT, async || Socket::connect(&url).await.is_ok()).await?;
    let complaints = program.complaints();
    ensure!(complaints.iter().all(|line| line.contains("limit of open files")), "{complaints:#?}");
    ensure!(program.shut_down().await?.success());
    Ok(())
}

/// Connections that say nothing, that begin a request and never end it, and that read no answers: each is given up after its
/// time, and meanwhile the node can be asked how it is, however many there are.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_only_held() -> Result<()> {
    let _turn = turn::take(module_path!());
    let scene = r#"ulimit -n 256 && export ROOST_LIMITS__REQUEST_HEAD_MS=4000 && exec "$@""#;
    let program = Program::dev_in(1, scene).await?;
    let url = program.http_url(0);
    let address = url.trim_start_matches("http://").to_owned();
    let beginnings = ["", "GET /livez HTTP/1.1\r\nhost:", "PRI * HTTP/2.0\r\n\r\n"];
    let mut held = Vec::new();
    for number in 0..400 {
        let mut stream = TcpStream::connect(&address).await?;
        let _ = stream.write_all(beginnings[number % beginnings.len()].as_bytes()).await;
        held.push(stream);
    }
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        // With a connection of its own for each: one that is kept would prove nothing.
        let answer = Api::new(&url).raw(Method::GET, path, None, Vec::new()).await?;
        ensure!(answer.status() == 200, "{path}: {answer:?}");
    }
    let refused = Api::new(&url).raw(Method::GET, "/v1/groups", None, Vec::new()).await?;
    ensure!(refused.status() == 503 && refused.headers().contains_key("retry-after"), "{refused:?}");
    let served = async || Api::new(&url).get("/v1/groups").await.is_ok_and(|answer| answer.status == 200);
    wait_until("the places to be given back", LIMIT, served).await?;
    drop(held);
    let mut complaints = program.complaints();
    complaints.retain(|line| !line.contains("the limit of open files leaves room for fewer clients"));
    ensure!(complaints.is_empty(), "{complaints:#?}");
    ensure!(program.shut_down().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_store() -> Result<()> {
    let _turn = turn::take(module_path!());
    let scene = r#"exec unshare -rm sh -c 'mount -t tmpfs -o size=8m tmpfs "$DATA" && exec "$@"' sh "$@""#;
    let program = Program::dev_in(2, scene).await?;
    let api = Api::new(program.http_url(0));
    let nodes = vec![program.http_url(1), program.http_url(0)];
    let client = Client::connect(ClientOptions::new("client", nodes)).await?;
    client.join("chat:1").await?;
    api.create_session("before").await?;

    // As the program sees it.
    let id = program.id().context("it runs")?;
    let filler = PathBuf::from(format!("/proc/{id}/root{}/filler", program.data().display()));
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[0; 1 << 12]).is_ok() {}
    let create = async || {
        let body = br#"{"user": "during"}"#.to_vec();
        api.raw(Method::POST, "/v1/sessions", Some("application/json"), body).await
    };
    let refuses = async || create().await.is_ok_and(|answer| answer.status() == 503);
    wait_until("sessions to be refused", LIMIT, refuses).await?;
    let answer = create().await?;
    let has_retry_after = answer.headers().contains_key("retry-after");
    ensure!(answer.status() == 503 && has_retry_after, "{answer:?}");
    let database =
        async || api.get("/health").await.map_or_else(|_| "?".into(), |health| health.body["database"].clone());
    wait_until("the store to be reported", LIMIT, async || database().await == "down").await?;
    client.publish_now("chat:1", "during").await?;
    client.wait("hear itself", LIMIT, |state| state.received.values().sum::<u64>() > 0).await?;

    fs::remove_file(&filler)?;
    drop(file);
    let taken = wait_until("sessions to be taken", LIMIT, async || api.create_session("after").await.is_ok()).await;
    taken.with_context(|| format!("it said: {:#?}", program.output()))?;
    wait_until("the store to be well", LIMIT, async || database().await == "up").await?;
    client.publish_now("chat:1", "after").await?;
    let complaints = program.complaints();
    ensure!(!complaints.iter().any(|line| line.contains("panicked at")), "{complaints:#?}");
    ensure!(complaints.len() < 200, "{} complaints: {:#?}", complaints.len(), &complaints[..20]);
    ensure!(program.shut_down().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_log() -> Result<()> {
    let _turn = turn::take(module_path!());
    let program = Program::dev_in(2, r#"ROOST_LOG=debug exec "$@" 2>/dev/full"#).await?;
    let nodes = vec![program.http_url(1), program.http_url(0)];
    let client = Client::connect(ClientOptions::new("client", nodes)).await?;
    client.join("chat:1").await?;
    client.publish_now("chat:1", "hello").await?;
    client.wait("hear itself", LIMIT, |state| state.received.values().sum::<u64>() > 0).await?;
    ensure!(program.shut_down().await?.success());
    Ok(())
}
