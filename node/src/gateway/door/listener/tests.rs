use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::LimitsConfig;

const BIG: usize = 64 << 20;

struct Scene {
    door: Door,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

/// The limit of open files leaves room for 88 connections.
async fn open(limits: LimitsConfig) -> Scene {
    let config = Config { limits, ..Config::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, tasks, metrics) = (listener.local_addr().unwrap(), Tasks::new(), Metrics::new());
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        "late"
    };
    let routes = Router::new()
        .route("/livez", get(|| async { "alive" }))
        .route("/big", get(|| async { vec![0_u8; BIG] }))
        .route("/slow", get(slow));
    let files = OpenFiles::of(128).unwrap();
    let inputs =
        DoorInputs { config: &config, files, certificate: None, routes, metrics: metrics.clone(), tasks: &tasks };
    Scene { door: Door::open(listener, inputs), address, metrics, tasks }
}

impl Scene {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The answer to a request on a connection of its own.
    async fn ask(&self, path: &str) -> String {
        let mut stream = self.connect().await;
        send(&mut stream, path).await;
        answer(&mut stream).await
    }

    async fn stop(self) {
        assert!(self.tasks.shut_down(Duration::from_secs(10)).await);
    }
}

async fn send(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn many_may_wait_until_they_are_accepted() {
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for number in 0..300.min(most) {
        // Who finds no room is not answered, and asks again after 1 s.
        let connecting = tokio::time::timeout(Duration::from_millis(900), TcpStream::connect(address)).await;
        waiting.push(connecting.unwrap_or_else(|_| panic!("{number} wait, and there is no room for more")).unwrap());
    }
}

/// Of an answer with a short body; empty where there is none.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"alive") && !text.ends_with(b"late") && !text.ends_with(b"}]}") {
        let mut part = [0; 1_024];
        match stream.read(&mut part).await {
            Ok(read @ 1..) => text.extend(&part[..read]),
            Ok(0) | Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0; 1])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_ends() {
    let scene = open(LimitsConfig { request_head_ms: 200, ..LimitsConfig::default() }).await;
    // Silence, half a head, and the beginning of HTTP/2.
    for beginning in ["", "GET /livez HTTP/1.1\r\nhost:", "PRI * HTTP/2.0\r\n\r\n"] {
        let mut stream = scene.connect().await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{beginning:?} is kept");
    }
    assert!(scene.metrics.limit_hits(Limit::RequestHeadMs) >= 2);
    // A head that trickles in has no more time than another.
    let mut stream = scene.connect().await;
    let trickle = async {
        for byte in "GET /livez HTTP/1.1\r\nhost: abcdefghijklmnopqrstuvwxyz".bytes().cycle() {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), trickle).await.is_ok());
    assert!(scene.ask("/livez").await.ends_with("alive"));
    scene.stop().await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_its_connection() {
    let scene = open(LimitsConfig { write_timeout_ms: 300, ..LimitsConfig::default() }).await;
    let mut stream = scene.connect().await;
    send(&mut stream, "/big").await;
    let limit = clock_limit();
    while scene.metrics.limit_hits(Limit::WriteTimeoutMs) == 0 {
        assert!(crate::clock::deadline(Duration::ZERO) < limit, "an answer waits for its reader for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One that reads slowly is let be for as long as it reads.
    let mut stream = scene.connect().await;
    send(&mut stream, "/big").await;
    let (mut read, mut part) = (0, vec![0; 8 << 20]);
    while read < BIG {
        match stream.read(&mut part).await.unwrap() {
            0 => panic!("broken off after {read} bytes"),
            more => read += more,
        }
        if read < 4 << 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    scene.stop().await;
}

fn clock_limit() -> tokio::time::Instant {
    crate::clock::deadline(Duration::from_secs(10))
}

#[tokio::test]
async fn a_probe_is_answered_while_every_place_is_taken() {
    let scene = open(LimitsConfig::default()).await;
    let mut silent = Vec::new();
    for _ in 0..120 {
        silent.push(scene.connect().await);
    }
    for _ in 0..20 {
        let answer = scene.ask("/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    }
    let refused = scene.ask("/slow").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after"), "{refused}");
    assert!(refused.contains("open_files"), "{refused}");
    // Whoever has only a place for a moment loses it soon, also where nobody else comes.
    assert!(is_closed(silent.last_mut().unwrap()).await);
    drop(silent);
    let limit = clock_limit();
    while !scene.ask("/slow").await.ends_with("late") {
        assert!(crate::clock::deadline(Duration::ZERO) < limit, "places are not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.stop().await;
}

#[tokio::test]
async fn an_address_has_no_more_connections_than_it_may() {
    let scene = open(LimitsConfig { connections_per_address: 3, ..LimitsConfig::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(scene.connect().await);
    }
    let refused = scene.ask("/slow").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("connections_per_address"), "{refused}");
    assert_eq!(scene.metrics.limit_hits(Limit::ConnectionsPerAddress), 1);
    assert!(scene.ask("/livez").await.ends_with("alive"));
    scene.stop().await;
}

#[tokio::test]
async fn nothing_that_was_asked_of_a_door_goes_unanswered_when_it_is_shut() {
    let scene = Arc::new(open(LimitsConfig::default()).await);
    // Each asks one thing after the other on a connection, until it is told that this is the last, or is not let in.
    let clients = (0..20).map(|number| {
        let scene = scene.clone();
        async move {
            let (mut answers, mut stream) = (0, scene.connect().await);
            loop {
                let path = if number % 4 == 0 { "/slow" } else { "/livez" };
                send(&mut stream, path).await;
                let answer = answer(&mut stream).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "client {number}, answer {answers}: {answer:?}");
                answers += 1;
                if answer.contains("connection: close") {
                    match TcpStream::connect(scene.address).await {
                        Ok(next) => stream = next,
                        Err(_) => return answers,
                    }
                }
            }
        }
    });
    let idle = scene.connect().await;
    let shut = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        scene.door.leave();
        tokio::time::sleep(Duration::from_millis(300)).await;
        scene.door.shut(Duration::from_secs(10)).await;
        drop(idle);
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(clients), shut);
    assert!(answers.iter().all(|answers| *answers > 1), "{answers:?}");
    assert!(TcpStream::connect(scene.address).await.is_err());
}

#[tokio::test]
async fn what_is_served_changes_for_who_comes_next() {
    let scene = open(LimitsConfig::default()).await;
    scene.door.serve(Router::new().route("/livez", get(|| async { "still alive" })));
    assert!(scene.ask("/livez").await.ends_with("still alive"));
    scene.stop().await;
}
