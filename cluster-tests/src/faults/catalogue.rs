//! The faults.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::LocalBoxFuture;
use rand::RngExt;
use tokio::{
    net::{TcpStream, UdpSocket},
    process::Command,
};

use super::{
    freeze::Frozen,
    repeats::{Repeats, Tally},
    scene::Scene,
};
use crate::{
    api::Api,
    datagrams::Road,
    network::Lost,
    process::LIMIT,
    relay::Mode,
    servers::{ServerSettings, Servers, Signal},
    socket::Socket,
    wait::wait_until,
};

/// A fault: its scene, what is done, and what is promised meanwhile.
pub struct Fault {
    /// For the command line and for the table.
    pub name: &'static str,
    /// What happens, for the table.
    pub what: &'static str,
    /// How many nodes there are.
    pub nodes: usize,
    /// Whether CI plays it.
    pub in_ci: bool,
    /// All copies of a slot may be lost at once: clients may be told of a reset. Otherwise they may not.
    pub loses_all_copies: bool,
    /// There is a relay before each node.
    pub relayed: bool,
    /// The least number of bytes of a message.
    pub message_bytes: usize,
    /// Every publish asks for this number of copies.
    pub min_copies: u8,
    /// Brings it about, has it stay, and takes it back.
    pub act: Act,
}

/// See [`Fault::act`].
pub type Act = for<'s> fn(&'s mut Scene<'_>) -> LocalBoxFuture<'s, Result<()>>;

/// How long a fault stays that can be taken back.
const STAY: Duration = Duration::from_secs(12);
/// The node that things happen to.
const ONE: usize = 0;
/// The thread that looks after the others, by its name.
const WATCHDOG: &str = "roost-watchdog";
const KILLS: usize = 20;
const FEW_KILLS: usize = 6;
const CROWD: usize = 2_000;
/// More than a process with 256 file descriptors can have.
const MANY_CONNECTIONS: usize = 400;

const fn fault(name: &'static str, what: &'static str, act: Act) -> Fault {
    let (nodes, in_ci, loses_all_copies, relayed) = (3, false, false, false);
    Fault { name, what, nodes, in_ci, loses_all_copies, relayed, message_bytes: 0, min_copies: 1, act }
}

impl Fault {
    const fn in_ci(self) -> Self {
        Self { in_ci: true, ..self }
    }

    const fn with_nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    const fn loses_all_copies(self) -> Self {
        Self { loses_all_copies: true, ..self }
    }

    const fn with_messages_of(self, message_bytes: usize) -> Self {
        Self { message_bytes, ..self }
    }

    const fn with_min_copies(self, min_copies: u8) -> Self {
        Self { min_copies, ..self }
    }

    const fn relayed(self) -> Self {
        Self { relayed: true, ..self }
    }
}

/// All of them.
pub const ALL: &[Fault] = &[
    fault("kill-primary", "SIGKILL of a group's primary; started again 12 s later", |s| Box::pin(kill_holder(s, 0)))
        .in_ci(),
    fault("kill-replica", "SIGKILL of a group's replica; started again 12 s later", |s| Box::pin(kill_holder(s, 1))),
    fault("kill-gateway", "SIGKILL of a node with 2,000 clients; started again 12 s later", |s| {
        Box::pin(kill_gateway(s))
    }),
    fault("kill-two", "SIGKILL of two of four nodes at once; started again 12 s later", |s| {
        Box::pin(kill_some(s, &[0, 1]))
    })
    .with_nodes(4)
    .loses_all_copies(),
    fault("kill-all", "SIGKILL of all nodes at once; started again at once", |s| Box::pin(kill_all(s)))
        .loses_all_copies()
        .in_ci(),
    fault("kill-20-times", "SIGKILL of one node after the other, 20 times, each started again", |s| {
        Box::pin(kill_again_and_again(s))
    }),
    fault(
        "min-copies-under-kills",
        "SIGKILL of one node after the other, 6 times, while all publishes ask for two copies",
        |s| Box::pin(kill_below_the_floor(s)),
    )
    .with_min_copies(2),
    fault("drain", "SIGTERM to a node; started again 12 s after it ended", |s| Box::pin(drain(s))).in_ci(),
    fault("rolling-restart", "SIGTERM and start of one node after the other", |s| Box::pin(rolling_restart(s))).in_ci(),
    fault("pause-1", "SIGSTOP of a node for 1 s", |s| Box::pin(pause(s, 1))),
    fault("pause-10", "SIGSTOP of a node for 10 s", |s| Box::pin(pause(s, 10))).in_ci(),
    fault("pause-60", "SIGSTOP of a node for 60 s", |s| Box::pin(pause(s, 60))),
    fault("stalled", "all threads of a node but the watchdog's stand still; started again when it has ended", |s| {
        Box::pin(stalled(s))
    })
    .in_ci(),
    fault(
        "cut-off",
        "a node hears neither of the others, nor they it, for 12 s; clients and the store reach all",
        |s| Box::pin(cut_off(s)),
    )
    .in_ci(),
    fault("halves", "two of four nodes on each side, for 12 s", |s| Box::pin(part(s, &[0, 1], &[2, 3]))).with_nodes(4),
    fault("partial", "two nodes do not hear each other, the third hears both, for 12 s", |s| {
        Box::pin(part(s, &[0], &[1]))
    })
    .in_ci(),
    fault("deaf", "a node hears nothing of the others, which hear it, for 12 s", |s| Box::pin(deaf(s))).in_ci(),
    fault("mute", "nothing of a node reaches the others, which it hears, for 12 s", |s| Box::pin(mute(s))),
    fault("udp-blocked", "no datagram reaches or leaves a node, TCP goes through, for 12 s", |s| {
        Box::pin(without_datagrams(s))
    }),
    fault("loss-1", "1 % of the packets between nodes are lost, for 12 s", |s| Box::pin(lose(s, Lost::Percent(1)))),
    fault("loss-5", "5 % of the packets between nodes are lost, for 12 s", |s| Box::pin(lose(s, Lost::Percent(5))))
        .in_ci(),
    fault("loss-20", "20 % of the packets between nodes are lost, for 12 s", |s| Box::pin(lose(s, Lost::Percent(20)))),
    fault("mtu", "packets of more than 1,300 bytes between nodes are lost without a word, for 12 s", |s| {
        Box::pin(lose(s, Lost::LongerThan(1_300)))
    })
    .with_messages_of(4_000),
    fault("narrow", "a node's link carries 1 Mb/s each way, clients and store included, for 12 s", |s| {
        Box::pin(narrow(s))
    }),
    fault(
        "rough",
        "datagrams between nodes take 5 to 45 ms, overtake each other, and 5 % arrive twice, for 12 s",
        |s| Box::pin(rough(s)),
    )
    .relayed()
    .in_ci(),
    fault("replay", "all datagrams of the last seconds between nodes are sent again, three times", |s| {
        Box::pin(replay(s))
    })
    .relayed(),
    fault("forged", "random datagrams and a node of the same name and cluster with a certificate of another CA", |s| {
        Box::pin(forged(s))
    })
    .in_ci(),
    fault("store-cut-one", "the store is cut off from one node, for 12 s", |s| {
        Box::pin(lose_on(s, &[ONE], Lost::FromStore))
    }),
    fault("store-cut-all", "the store is cut off from all nodes, for 12 s", |s| Box::pin(store_cut(s))),
    fault("store-cut-kill", "the store is cut off from all nodes and a node dies: its slots wait for 12 s", |s| {
        Box::pin(store_cut_and_kill(s))
    }),
    fault("disk-full", "a node's log is on a disk that is full for 12 s, while another node dies and returns", |s| {
        Box::pin(full_disk(s))
    }),
    fault("descriptors", "a node with 256 file descriptors gets 400 connections, for 12 s", |s| {
        Box::pin(few_descriptors(s))
    }),
    fault("held", "a node with 256 file descriptors: 400 connections that are silent, slow, or read no answer", |s| {
        Box::pin(held(s))
    }),
    fault("same-name", "a second process with a node's name, on another host, for 12 s", |s| Box::pin(same_name(s))),
    fault("clock-ahead", "a node's wall clock is set an hour ahead, and back after 12 s", |s| {
        Box::pin(clock(s, "+3600"))
    }),
    fault("clock-behind", "a node's wall clock is set an hour back, and right again after 12 s", |s| {
        Box::pin(clock(s, "-3600"))
    }),
    fault("scale", "two nodes are added to three, and drained again", |s| Box::pin(scale(s))).in_ci(),
];

async fn kill_holder(scene: &mut Scene<'_>, which: usize) -> Result<()> {
    let holders = scene.holders().await?;
    let node = *holders.get(which).context("fewer copies than there should be")?;
    kill_some(scene, &[node]).await
}

async fn kill_some(scene: &mut Scene<'_>, nodes: &[usize]) -> Result<()> {
    scene.begin();
    for node in nodes {
        scene.cluster.crash(*node).await?;
    }
    scene.stay(STAY).await;
    scene.cluster.restart_all().await
}

async fn kill_gateway(scene: &mut Scene<'_>) -> Result<()> {
    scene.crowd(ONE, CROWD).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.begin();
    scene.cluster.crash(ONE).await?;
    let back = scene.all_elsewhere(ONE).await?;
    scene.note(format!("all {CROWD} are back after {:.1} s", back.as_secs_f64()));
    scene.stay(STAY).await;
    scene.cluster.restart(ONE).await
}

async fn kill_all(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.cluster.crash_all().await?;
    scene.end();
    scene.cluster.restart_all().await
}

async fn kill_again_and_again(scene: &mut Scene<'_>) -> Result<()> {
    kill_in_turn(scene, KILLS).await?;
    scene.end();
    Ok(())
}

/// This number of kills. Each finds all copies there.
async fn kill_in_turn(scene: &mut Scene<'_>, kills: usize) -> Result<()> {
    for round in 0..kills {
        let node = round % 3;
        scene.begin();
        scene.cluster.crash(node).await?;
        scene.goes_on().await.context("after a kill")?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.cluster.restart(node).await?;
        scene.cluster.green(LIMIT).await?;
    }
    Ok(())
}

async fn kill_below_the_floor(scene: &mut Scene<'_>) -> Result<()> {
    let repeats = Repeats::start(&scene.cluster, 3, 2);
    kill_in_turn(scene, FEW_KILLS).await?;
    scene.end();
    let Tally { acknowledged, too_few, unknown } = repeats.stop().await?;
    ensure!(acknowledged > 100, "only {acknowledged} messages were repeated");
    scene.note(format!(
        "{acknowledged} messages over HTTP, each repeated once it was answered: none was denied, none was answered with one \
         copy; {too_few} times there were too few copies, {unknown} times no answer"
    ));
    Ok(())
}

async fn drain(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.cluster.drain(ONE).await?;
    scene.stay(STAY).await;
    scene.cluster.restart(ONE).await
}

async fn rolling_restart(scene: &mut Scene<'_>) -> Result<()> {
    for node in scene.cluster.running() {
        scene.begin();
        scene.cluster.drain(node).await?;
        scene.cluster.restart(node).await?;
        scene.cluster.green(LIMIT).await?;
    }
    scene.end();
    Ok(())
}

async fn pause(scene: &mut Scene<'_>, seconds: u64) -> Result<()> {
    scene.begin();
    scene.cluster.servers()?.signal(ONE, Signal::Stop).await?;
    scene.stay(Duration::from_secs(seconds)).await;
    scene.cluster.servers()?.signal(ONE, Signal::Cont).await
}

async fn stalled(scene: &mut Scene<'_>) -> Result<()> {
    let process = scene.cluster.servers()?.id(ONE).context("the node runs")?;
    scene.begin();
    let frozen = Frozen::all_but(process, WATCHDOG)?;
    let begun = roost::clock::mono_ms();
    let status = scene.cluster.ended(ONE).await?;
    drop(frozen);
    let log = scene.cluster.servers()?.last_words(ONE);
    let said = log.lines().rev().find(|line| line.contains("ERROR")).context("it ended without a word")?;
    scene.note(format!("it ended with {status} after {} ms and said:{said}", roost::clock::mono_ms() - begun));
    scene.end();
    scene.cluster.restart(ONE).await
}

async fn part(scene: &mut Scene<'_>, one: &[usize], other: &[usize]) -> Result<()> {
    scene.begin();
    scene.network.part(one, other)?;
    scene.stay(STAY).await;
    mend(scene)
}

async fn cut_off(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.part(&[ONE], &[1, 2])?;
    stay_alone(scene).await
}

async fn deaf(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.lose(ONE, &[Lost::From(1), Lost::From(2)])?;
    stay_alone(scene).await
}

async fn mute(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    for other in [1, 2] {
        scene.network.lose(other, &[Lost::From(ONE)])?;
    }
    stay_alone(scene).await
}

async fn without_datagrams(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.lose(ONE, &[Lost::DatagramsFrom(1), Lost::DatagramsFrom(2)])?;
    for other in [1, 2] {
        scene.network.lose(other, &[Lost::DatagramsFrom(ONE)])?;
    }
    stay_alone(scene).await
}

/// One node is cut off from two that hear each other: these are to have all slots, and not that one theirs.
async fn stay_alone(scene: &mut Scene<'_>) -> Result<()> {
    let begun_ms = roost::clock::mono_ms();
    let elapsed = || Duration::from_millis(roost::clock::mono_ms() - begun_ms);
    scene.cluster.holds_nothing(ONE, STAY).await.context("the node that is cut off kept its slots from the others")?;
    scene.note(format!("the others have all slots after {:.1} s", elapsed().as_secs_f64()));
    scene.stay(STAY.saturating_sub(elapsed())).await;
    mend(scene)
}

/// Takes back what packets were lost by, and sees to it that some were.
fn mend(scene: &mut Scene<'_>) -> Result<()> {
    let lost = scene.network.lost()?;
    ensure!(lost > 0, "no packet was lost");
    scene.note(format!("{lost} packets lost"));
    scene.network.mend_all()
}

async fn lose(scene: &mut Scene<'_>, lost: Lost) -> Result<()> {
    lose_on(scene, &[0, 1, 2], lost).await
}

async fn lose_on(scene: &mut Scene<'_>, nodes: &[usize], lost: Lost) -> Result<()> {
    scene.begin();
    for node in nodes {
        scene.network.lose(*node, &[lost])?;
    }
    scene.stay(STAY).await;
    mend(scene)
}

async fn narrow(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.narrow(ONE, 1_000)?;
    scene.stay(STAY).await;
    scene.network.mend_all()
}

async fn rough(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    let road = Road { least: Duration::from_millis(5), more: Duration::from_millis(40), twice_percent: 5 };
    scene.relays()?.set(road);
    scene.stay(STAY).await;
    scene.relays()?.set(Road::default());
    let carried = scene.relays()?.carried();
    ensure!(carried.twice > 0, "no datagram went through the relays");
    scene.note(format!("{} datagrams, {} twice", carried.datagrams, carried.twice));
    Ok(())
}

async fn replay(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    for _ in 0..3 {
        scene.relays()?.replay().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    scene.end();
    let carried = scene.relays()?.carried();
    ensure!(carried.replayed > 0, "no datagram went through the relays");
    scene.note(format!("{} of {} datagrams sent again", carried.replayed, carried.datagrams));
    Ok(())
}

async fn forged(scene: &mut Scene<'_>) -> Result<()> {
    let servers = scene.cluster.servers()?;
    let nodes: Vec<SocketAddr> = (0..3).map(|node| servers.peer_addresses(node).1).collect();
    let before = members(&scene.cluster.api(1)).await?;
    // Another CA, with the names of this cluster and of its first node.
    let seeds = serde_json::to_string(&nodes)?;
    let settings = ServerSettings::over(scene.cassandra, "fault_forger").on(scene.network.hosts().split_off(4));
    let settings = ServerSettings { cluster: servers.cluster().to_owned(), ..settings };
    let mut forger = Servers::prepare(settings.with("cluster.seeds", seeds), 1).await?;
    scene.begin();
    forger.spawn(0)?;
    let socket = UdpSocket::bind((crate::network::HOME, 0)).await?;
    let mut sent = 0_u64;
    for round in 0..600 {
        for node in &nodes {
            let length = rand::rng().random_range(1..1_400);
            let mut bytes: Vec<u8> = (0..length).map(|_| rand::rng().random()).collect();
            // Every other one looks like the first packet of a QUIC connection.
            if round % 2 == 0 && length > 6 {
                bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            }
            socket.send_to(&bytes, node).await?;
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(forger.is_running(0), "the forger ended by itself: {}", forger.last_words(0));
    let after = members(&scene.cluster.api(1)).await?;
    ensure!(before == after, "the members were {before:?}, and are {after:?}");
    let refused =
        (0..3).map(|node| scene.cluster.servers().map(|servers| servers.log(node))).collect::<Result<Vec<_>>>()?;
    ensure!(refused.iter().any(|log| log.contains("certificate")), "no node ever met the forger");
    scene.end();
    forger.kill(0).await?;
    scene.note(format!("{sent} random datagrams; the members stayed the same"));
    Ok(())
}

/// The members that a node counts on, with their generations.
async fn members(api: &Api) -> Result<String> {
    Ok(api.get("/v1/cluster/map").await?.body["members"].to_string())
}

async fn store_cut(scene: &mut Scene<'_>) -> Result<()> {
    let relays = scene.cassandra.relays()?;
    scene.begin();
    relays.set_all(Mode::Hold);
    scene.stay(STAY).await;
    relays.set_all(Mode::Pass);
    Ok(())
}

async fn store_cut_and_kill(scene: &mut Scene<'_>) -> Result<()> {
    let relays = scene.cassandra.relays()?;
    relays.set_all(Mode::Hold);
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.begin();
    scene.cluster.crash(ONE).await?;
    scene.stay(STAY).await;
    relays.set_all(Mode::Pass);
    scene.cluster.restart(ONE).await
}

async fn full_disk(scene: &mut Scene<'_>) -> Result<()> {
    let disk = scene.cluster.servers()?.folder().join("disk");
    fs::create_dir_all(&disk)?;
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "disk", &disk.to_string_lossy()]).await?;
    scene.cluster.drain(ONE).await?;
    scene.cluster.servers_mut()?.log_to(ONE, disk.join("log"));
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
    let filler = disk.join("filler");
    scene.begin();
    fill(&filler)?;
    scene.cluster.crash(1).await?;
    scene.stay(STAY).await;
    scene.cluster.restart(1).await?;
    ensure!(fill(&filler).is_ok(), "the disk is not there any more");
    fs::remove_file(&filler)?;
    ensure!(scene.cluster.servers_mut()?.is_running(ONE), "the node whose log had no room ended");
    Ok(())
}

/// Writes until nothing more fits.
fn fill(file: &PathBuf) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(file)?;
    loop {
        match file.write_all(&[0]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn few_descriptors(scene: &mut Scene<'_>) -> Result<()> {
    scene.cluster.drain(ONE).await?;
    scene.cluster.servers_mut()?.run_by(ONE, &["prlimit", "--nofile=256:256"]);
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
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
async fn held(scene: &mut Scene<'_>) -> Result<()> {
    scene.cluster.drain(ONE).await?;
    scene.cluster.servers_mut()?.run_by(ONE, &["prlimit", "--nofile=256:256"]);
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
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

async fn same_name(scene: &mut Scene<'_>) -> Result<()> {
    let second = scene.cluster.servers_mut()?.add_impostor(ONE);
    scene.begin();
    scene.cluster.servers_mut()?.spawn(second)?;
    let status = scene.cluster.ended(ONE).await?;
    scene.note(format!("the older one ended with {status}"));
    scene.stay(STAY).await;
    let servers = scene.cluster.servers_mut()?;
    servers.signal(second, Signal::Term).await?;
    servers.ended(second).await?;
    scene.cluster.restart(ONE).await
}

async fn clock(scene: &mut Scene<'_>, offset: &str) -> Result<()> {
    let library = library().await?;
    let file = scene.cluster.servers()?.folder().join("clock");
    fs::write(&file, "+0")?;
    scene.cluster.drain(ONE).await?;
    let preload = format!("LD_PRELOAD={library}");
    let file_name = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    let by =
        ["env", &preload, &file_name, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"];
    scene.cluster.servers_mut()?.run_by(ONE, &by);
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
    scene.begin();
    fs::write(&file, offset)?;
    scene.stay(STAY).await;
    fs::write(&file, "+0")?;
    Ok(())
}

/// Where the library lies that shows a process another time.
async fn library() -> Result<String> {
    let found = Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).output().await?;
    let found = String::from_utf8(found.stdout)?;
    let first = found.lines().next();
    first.map(str::to_owned).context("there is no libfaketime: scripts/setup installs it")
}

async fn scale(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    let added = [scene.cluster.add().await?, scene.cluster.add().await?];
    scene.cluster.green(LIMIT).await?;
    for node in added {
        scene.cluster.holds_slots(node, LIMIT).await?;
    }
    scene.stay(STAY / 2).await;
    for node in added {
        scene.cluster.drain(node).await?;
    }
    scene.end();
    Ok(())
}

async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().await?;
    if !status.success() {
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(())
}
