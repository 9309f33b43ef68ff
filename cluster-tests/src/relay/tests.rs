//! The relay before a server that answers whatever comes, prepared statements with their own text as id.

use tokio::io::AsyncReadExt;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
/// What has not come after this time does not come.
const SILENCE: Duration = Duration::from_millis(300);

struct Stage {
    relays: Relays,
    at: SocketAddr,
    _tasks: Tasks,
}

async fn stage() -> Stage {
    let tasks = Tasks::new();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let of_connections = tasks.clone();
    tasks.spawn_detached("server", async move {
        while let Ok((client, _)) = server.accept().await {
            of_connections.spawn_detached("served", serve(client));
        }
    });
    Stage { relays: Relays::start(&[(free, to)]).await.unwrap(), at: free, _tasks: tasks }
}

async fn serve(mut client: TcpStream) {
    while let Ok(request) = cql::read_frame(&mut client).await {
        let body = match request[4] {
            0x09 => [&[0, 0, 0, 4, 0, 2][..], &request[request.len() - 2..]].concat(),
            _ => vec![0, 0, 0, 1],
        };
        if client.write_all(&frame(0x84, [request[2], request[3]], 0x08, &body)).await.is_err() {
            return;
        }
    }
}

fn frame(version: u8, stream: [u8; 2], what: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![version, 0, stream[0], stream[1], what];
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Sends a request on this stream; the streams of the answers that come in time.
async fn ask(client: &mut TcpStream, stream: u8, what: u8, body: &[u8], limit: Duration) -> Option<u8> {
    client.write_all(&frame(4, [0, stream], what, body)).await.unwrap();
    answer(client, limit).await
}

async fn answer(client: &mut TcpStream, limit: Duration) -> Option<u8> {
    tokio::time::timeout(limit, cql::read_frame(client)).await.ok().map(|frame| frame.unwrap()[3])
}

fn text(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

#[tokio::test]
async fn what_is_held_arrives_later_and_in_order() {
    let stage = stage().await;
    let mut client = TcpStream::connect(stage.at).await.unwrap();
    assert_eq!(ask(&mut client, 1, 0x05, b"", LIMIT).await, Some(1));
    stage.relays.set_all(Mode::Hold);
    assert_eq!(ask(&mut client, 2, 0x05, b"", SILENCE).await, None);
    let mut late = TcpStream::connect(stage.at).await.unwrap();
    assert_eq!(ask(&mut late, 3, 0x05, b"", SILENCE).await, None);
    stage.relays.set_all(Mode::Pass);
    assert_eq!(answer(&mut client, LIMIT).await, Some(2));
    assert_eq!(answer(&mut late, LIMIT).await, Some(3));
    assert_eq!(stage.relays.connections(), 2);
}

#[tokio::test]
async fn who_is_refused_is_closed_and_let_in_again() {
    let stage = stage().await;
    let mut client = TcpStream::connect(stage.at).await.unwrap();
    assert_eq!(ask(&mut client, 1, 0x05, b"", LIMIT).await, Some(1));
    stage.relays.set_all(Mode::Refuse);
    let ended = tokio::time::timeout(LIMIT, client.read(&mut [0])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    let refused = async || TcpStream::connect(stage.at).await.is_err();
    crate::wait::wait_until("a refusal", LIMIT, refused).await.unwrap();
    stage.relays.set_all(Mode::Pass);
    let let_in = async || match TcpStream::connect(stage.at).await {
        Ok(mut client) => ask(&mut client, 1, 0x05, b"", LIMIT).await == Some(1),
        Err(_) => false,
    };
    crate::wait::wait_until("a connection", LIMIT, let_in).await.unwrap();
}

#[tokio::test]
async fn what_is_slowed_is_late_by_both_ways_and_as_much_as_before() {
    let stage = stage().await;
    let mut client = TcpStream::connect(stage.at).await.unwrap();
    let each_way = Duration::from_millis(200);
    stage.relays.set_all(Mode::Slow(each_way));
    let start_ms = clock::mono_ms();
    for number in 0..100 {
        client.write_all(&frame(4, [0, number], 0x05, b"")).await.unwrap();
    }
    for number in 0..100 {
        assert_eq!(answer(&mut client, LIMIT).await, Some(number));
    }
    let took_ms = clock::mono_ms() - start_ms;
    assert!((400..4_000).contains(&took_ms), "{took_ms} ms for a hundred requests that are each 400 ms late");
}

#[tokio::test]
async fn conditional_writes_are_lost_one_way_or_the_other_and_nothing_else_is() {
    let stage = stage().await;
    let mut client = TcpStream::connect(stage.at).await.unwrap();
    // The server's ids are the texts' last two bytes.
    for (statement, stream) in [("UPDATE cluster_map SET map = ? WHERE id = 0 IF version = 1", 1), ("SELECT 22", 2)] {
        assert_eq!(ask(&mut client, stream, 0x09, &text(statement), LIMIT).await, Some(stream));
    }
    let (conditional, plain) = ([0, 2, b' ', b'1'], [0, 2, b'2', b'2']);
    assert_eq!(ask(&mut client, 3, 0x0A, &conditional, LIMIT).await, Some(3));
    stage.relays.set_all(Mode::LoseConditional);
    for stream in 4..8 {
        assert_eq!(ask(&mut client, stream, 0x0A, &conditional, SILENCE).await, None);
    }
    assert_eq!(stage.relays.lost(), Lost { requests: 2, answers: 2 });
    assert_eq!(ask(&mut client, 8, 0x0A, &plain, LIMIT).await, Some(8));
    let definition = text("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)");
    assert_eq!(ask(&mut client, 9, 0x07, &definition, LIMIT).await, Some(9));
    assert_eq!(ask(&mut client, 10, 0x07, &text("DELETE FROM t WHERE id = 1 IF EXISTS"), SILENCE).await, None);
    stage.relays.set_all(Mode::Pass);
    assert_eq!(ask(&mut client, 11, 0x0A, &conditional, LIMIT).await, Some(11));
}
