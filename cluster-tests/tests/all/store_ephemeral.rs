//! Clients without a token while the store is away: they get ephemeral sessions, join, publish and resume as ever, and what is
//! left of them in the end is nothing, in the memory of the nodes as in the store.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    cassandra::Cassandra, cluster::Cluster, latency::Spread, relay::Mode, servers::ServerSettings, socket::Socket,
    turn, wait::wait_until,
};
use futures_util::{StreamExt, stream};
use roost::clock;
use serde_json::{Value, json};

const NODES: usize = 3;
const CLIENTS: usize = 300;
/// Under way at once.
const AT_ONCE: usize = 16;
/// `session.resume_grace_s`: a client that is slow on this machine still finds its session.
const GRACE_S: u64 = 5;
const LIMIT: Duration = Duration::from_secs(60);
const GROUP: &str = "chat:fleet";

/// A client that is here.
struct Client {
    socket: Socket,
    session: String,
    token: String,
    /// Where it is.
    at: Value,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_without_tokens_comes_and_goes_and_comes_back_while_the_store_is_away() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cassandra = Cassandra::relayed(1).await?;
    let settings = ServerSettings::over(&cassandra, "ephemeral").with("session.resume_grace_s", GRACE_S);
    let cluster = Cluster::serve(settings, NODES).await?;
    rests(&cluster).await?;
    cassandra.relays()?.set_all(Mode::Hold);
    // A node notices it by a write that fails.
    let refused = async || {
        let made = cluster.api(0).post("/v1/sessions", json!({"user": "stored"})).await;
        made.is_ok_and(|made| made.status == 503)
    };
    wait_until("sessions that are stored to be refused", LIMIT, refused).await?;

    let clients = told(&cluster, come(&cluster).await).await?;
    let members = cluster.api(2).get(&format!("/v1/groups/{GROUP}/members?limit=1")).await?;
    ensure!(members.body["members"].as_array().is_some_and(|members| members.len() == 1), "{members:?}");
    let published = cluster.api(1).post(&format!("/v1/groups/{GROUP}/messages"), json!({"data": "missed"})).await?;
    ensure!(published.status == 200, "{published:?}");
    let clients = told(&cluster, come_back(&cluster, clients).await).await?;
    let made = cluster.api(2).post("/v1/sessions", json!({"user": "ann", "ephemeral": true})).await?;
    ensure!(made.status == 201 && made.body["session"]["ephemeral"] == true, "{made:?}");

    let left: Vec<_> = clients.into_iter().map(|Client { session, token, .. }| (session, token)).collect();
    gone(&cluster, &left).await?;
    // One that comes back too late is told to do as one that has none.
    let mut socket = Socket::connect(&cluster.url(0)).await?;
    socket.send(&json!({"type": "hello", "client": "tab", "session": left[0].1})).await?;
    let (frames, code) = socket.until_closed().await?;
    ensure!(code == 4101, "{code}: {frames:?}");

    cassandra.relays()?.set_all(Mode::Pass);
    let stored = async || {
        let made = cluster.api(0).post("/v1/sessions", json!({"user": "stored"})).await;
        made.is_ok_and(|made| made.status == 201)
    };
    wait_until("sessions to be stored again", LIMIT, stored).await?;
    let rows = cassandra.cql("SELECT session FROM ephemeral.sessions").await?;
    // In CQL's hexadecimal the version is the 13th digit of an id.
    let of_version = |version| rows.iter().filter(|row| row[0].as_bytes().get(14) == Some(&version)).count();
    ensure!(of_version(b'8') == 0 && of_version(b'4') > 0, "the store has {rows:?}");
    cluster.servers()?.without_panic()?;
    cluster.shut_down().await
}

/// All connect, join and publish.
async fn come(cluster: &Cluster) -> Result<Vec<Client>> {
    let connected = async |number: usize, (): ()| {
        let (mut socket, start_us) = (Socket::connect(&cluster.url(number % NODES)).await?, clock::mono_us());
        socket.send(&json!({"type": "hello", "client": "tab"})).await?;
        let welcome = socket.frame_of("welcome").await?;
        let took_us = clock::mono_us() - start_us;
        let text = |name: &str| welcome[name].as_str().map(str::to_owned).with_context(|| format!("{welcome}"));
        let (session, token) = (text("session")?, text("token")?);
        let joined = socket.ask(&json!({"type": "join", "id": 1, "group": GROUP})).await?;
        ensure!(joined["type"] == "joined", "{joined}");
        let published = json!({"type": "publish", "id": 2, "group": GROUP, "data": number, "key": "one"});
        let published = socket.ask(&published).await?;
        ensure!(published["copies"] == 2, "{published}");
        let at = json!({"epoch": published["epoch"], "offset": published["offset"]});
        Ok((Client { socket, session, token, at }, took_us))
    };
    at_once("anonymous connects", vec![(); CLIENTS], connected).await
}

/// All are cut off without a close and come back, to another node, where they find what they had joined and what they missed.
async fn come_back(cluster: &Cluster, clients: Vec<Client>) -> Result<Vec<Client>> {
    let resumed = async |number: usize, client: Client| {
        let Client { socket, session, token, at } = client;
        drop(socket);
        let (mut socket, start_us) = (Socket::connect(&cluster.url((number + 1) % NODES)).await?, clock::mono_us());
        socket.send(&json!({"type": "hello", "client": "tab", "session": token, "resume": {GROUP: at}})).await?;
        let welcome = socket.frame_of("welcome").await?;
        let took_us = clock::mono_us() - start_us;
        ensure!(welcome["session"] == *session, "another session than {session}: {welcome}");
        ensure!(welcome["groups"].as_array().is_some_and(|groups| groups.contains(&json!(GROUP))), "{welcome}");
        loop {
            let message = socket.frame_of("message").await?;
            if message["group"] == GROUP && message["data"] == "missed" {
                break;
            }
        }
        Ok((Client { socket, session, token, at }, took_us))
    };
    at_once("resumes on another node", clients, resumed).await
}

/// After their grace their sessions are over, and nobody is in the group.
async fn gone(cluster: &Cluster, clients: &[(String, String)]) -> Result<()> {
    let over = async || {
        let members = cluster.api(0).get(&format!("/v1/groups/{GROUP}/members?limit=1")).await;
        let mut all_over =
            members.is_ok_and(|members| members.body["members"].as_array().is_some_and(|members| members.is_empty()));
        for (session, _) in clients.iter().step_by(50) {
            let read = cluster.api(1).get(&format!("/v1/sessions/{session}")).await;
            all_over &= read.is_ok_and(|read| [404, 410].contains(&read.status));
        }
        all_over
    };
    wait_until("all sessions to be over, and nobody to be in the group", LIMIT, over).await.map(drop)
}

/// Waits until no slot is on its way between nodes: one that is when the store goes waits for it.
async fn rests(cluster: &Cluster) -> Result<()> {
    let mut since_ms = clock::mono_ms();
    let rests = async || {
        let health = cluster.api(0).health().await.unwrap_or_default();
        let slots = &health["slots"];
        if health["status"] != "green" || slots["learning"] != 0 || slots["replica"] != slots["total"] {
            since_ms = clock::mono_ms();
        }
        // Moves come in rounds, with a moment between them.
        clock::mono_ms() - since_ms > 3_000
    };
    wait_until("all slots to be where they are to be", LIMIT, rests).await.map(drop)
}

/// With what the cluster says of itself, where something went wrong.
async fn told<T>(cluster: &Cluster, result: Result<T>) -> Result<T> {
    match result {
        Ok(done) => Ok(done),
        Err(error) => {
            let health = cluster.api(0).health().await?;
            Err(error
                .context(format!("the cluster reports {} {} {}", health["status"], health["reasons"], health["slots"])))
        }
    }
}

/// Does it for each client; prints how many a second, and how long each waited for its welcome.
async fn at_once<I>(
    what: &str,
    clients: Vec<I>,
    one: impl AsyncFn(usize, I) -> Result<(Client, u64)>,
) -> Result<Vec<Client>> {
    let start_us = clock::mono_us();
    let doing = stream::iter(clients.into_iter().enumerate()).map(|(number, client)| one(number, client));
    let all: Vec<Result<(Client, u64)>> = doing.buffered(AT_ONCE).collect().await;
    let took = Duration::from_micros(clock::mono_us() - start_us);
    let all: Vec<(Client, u64)> = all.into_iter().collect::<Result<_>>()?;
    let (clients, waited): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let a_second = CLIENTS as f64 / took.as_secs_f64();
    eprintln!("{what} with the store away: {a_second:.0}/s; hello to welcome: {}", Spread::of(waited));
    Ok(clients)
}
