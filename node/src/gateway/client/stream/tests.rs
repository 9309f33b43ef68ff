use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, response::IntoResponse, routing::any};
use futures_util::{FutureExt, SinkExt, future::BoxFuture};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_tungstenite::{
    MaybeTlsStream, connect_async,
    tungstenite::protocol::frame::{
        Frame as AnyFrame,
        coding::{Data, OpCode},
    },
};

use super::*;
use crate::{
    config::Config,
    gateway::{
        client::outbox::Closing,
        door::listener::{Door, DoorInputs},
    },
    memory::Ledger,
    metrics::Metrics,
    open_files::OpenFiles,
    tasks::Tasks,
    wire::reason::Reason,
};

const FRAME_BYTES: usize = 128 << 10;
const OUTBOX_BYTES: usize = 1 << 28;

type Handler = Arc<dyn Fn(ClientStream) -> BoxFuture<'static, ()> + Send + Sync>;

struct Server {
    address: SocketAddr,
    tasks: Tasks,
}

async fn accept(State((tasks, handler)): State<(Tasks, Handler)>, request: Request) -> Response {
    match Upgrade::accept(request, FRAME_BYTES, true) {
        Ok((upgrade, response)) => {
            tasks.clone().spawn_detached("connection", async move {
                let bare = upgrade.finish().await.unwrap();
                let outbox = Arc::new(Outbox::new(1, OUTBOX_BYTES, Ledger::new(1 << 30)));
                handler(ClientStream::open(bare, outbox, Duration::from_millis(300)).await).await;
            });
            response
        }
        Err(refused) => refused.into_response(),
    }
}

impl Server {
    async fn start(handler: impl Fn(ClientStream) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let handler: Handler = Arc::new(handler);
        let routes = Router::new().route("/", any(accept)).with_state((tasks.clone(), handler));
        let (config, files) = (Config::default(), OpenFiles::of(128).unwrap());
        Door::open(
            listener,
            DoorInputs { config: &config, files, certificate: None, routes, metrics: Metrics::new(), tasks: &tasks },
        );
        Self { address, tasks }
    }

    async fn connect(&self) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        connect_async(format!("ws://{}/", self.address)).await.unwrap().0
    }

    async fn stop(self) {
        assert!(self.tasks.shut_down(Duration::from_secs(10)).await);
    }
}

fn outbox(stream: &ClientStream) -> Arc<Outbox> {
    stream.reading().outbox.clone()
}

async fn end(stream: ClientStream, text: &str, code: u16, reason: &str) {
    let last = [Frame::text(text), Frame::close(code, reason)];
    outbox(&stream).last(last, Closing::new(Reason::BadFrame));
    stream.end().await;
}

/// Ends each connection as soon as a frame is broken, by a last frame that names the fault and its close code.
fn tell_fault(mut stream: ClientStream) -> BoxFuture<'static, ()> {
    async move {
        loop {
            match stream.next().await {
                Incoming::Broken(fault) => {
                    return end(stream, &format!("{fault:?}"), fault.close_code(), "see the last frame").await;
                }
                Incoming::Gone => return,
                Incoming::Text(_) | Incoming::Control | Incoming::Fragments(_) => {}
            }
        }
    }
    .boxed()
}

async fn until_closed(client: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> (Vec<String>, Option<u16>) {
    let mut texts = Vec::new();
    loop {
        match client.next().await {
            Some(Ok(Message::Text(text))) => texts.push(text.to_string()),
            Some(Ok(Message::Close(frame))) => return (texts, frame.map(|frame| frame.code.into())),
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("{error} after {texts:?}"),
            None => return (texts, None),
        }
    }
}

#[tokio::test]
async fn a_client_hears_why_even_while_it_still_sends() {
    let server = Server::start(tell_fault).await;
    for _ in 0..10 {
        let mut client = server.connect().await;
        client.send(Message::text("x".repeat(1 << 20))).await.unwrap();
        assert_eq!(until_closed(&mut client).await, (vec!["TooLarge".to_owned()], Some(1009)));
    }
    server.stop().await;
}

#[tokio::test]
async fn each_fault_has_its_close_code() {
    async fn check(server: &Server, frames: Vec<Message>, fault: &str, code: u16) {
        let mut client = server.connect().await;
        for frame in frames {
            client.send(frame).await.unwrap();
        }
        assert_eq!(until_closed(&mut client).await, (vec![fault.to_owned()], Some(code)));
    }
    let server = Server::start(tell_fault).await;
    let raw =
        |data: Data, bytes: &'static [u8], last| Message::Frame(AnyFrame::message(bytes, OpCode::Data(data), last));
    check(&server, vec![Message::binary(vec![1, 2])], "Binary", 1003).await;
    check(&server, vec![raw(Data::Text, b"\xff\xfe", true)], "NotUtf8", 1007).await;
    check(&server, vec![raw(Data::Continue, b"a", true)], "Protocol", 1002).await;
    check(&server, vec![raw(Data::Reserved(3), b"a", true)], "Protocol", 1002).await;
    // Larger than a message may be, though none of its frames is.
    let mut parts = vec![raw(Data::Text, &[b'a'; 100_000], false)];
    parts.push(raw(Data::Continue, &[b'a'; 100_000], true));
    check(&server, parts, "TooLarge", 1009).await;
    let ping = Message::Ping(vec![1].into());
    check(&server, vec![ping, Message::text("fine"), Message::binary(vec![])], "Binary", 1003).await;
    server.stop().await;
}

#[tokio::test]
async fn garbage_and_vanished_clients_end_the_connection() {
    let (done, mut ended) = mpsc::channel(8);
    let server = Server::start(move |mut stream| {
        let done = done.clone();
        async move {
            let incoming = stream.next().await;
            done.send(format!("{incoming:?}")).await.unwrap();
        }
        .boxed()
    })
    .await;
    let mut client = server.connect().await;
    let MaybeTlsStream::Plain(bare) = client.get_mut() else { panic!("no TLS here") };
    bare.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(ended.recv().await.unwrap(), "Broken(Protocol)");
    drop(server.connect().await);
    assert_eq!(ended.recv().await.unwrap(), "Gone");
    let mut polite = server.connect().await;
    polite.close(None).await.unwrap();
    assert_eq!(ended.recv().await.unwrap(), "Control");
    server.stop().await;
}

#[tokio::test]
async fn what_is_queued_arrives_whole_and_in_order_whoever_writes_it() {
    let server = Server::start(|mut stream| {
        async move {
            let outbox = outbox(&stream);
            let hub = tokio::task::spawn_blocking({
                let outbox = outbox.clone();
                move || {
                    for at in 0..10_000 {
                        outbox.append(Frame::text(&format!("{at} {}", "x".repeat(at % 500))));
                        if at % 7 == 0 {
                            outbox.flush();
                        }
                    }
                    outbox.flush();
                }
            });
            while outbox.queued_bytes() > 0 || !hub.is_finished() {
                tokio::select! {
                    () = outbox.ready() => drop(stream.write().await.unwrap()),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
            end(stream, "10000 last", 4_001, "done").await;
        }
        .boxed()
    })
    .await;
    let mut client = server.connect().await;
    let (texts, code) = until_closed(&mut client).await;
    let numbers: Vec<usize> = texts.iter().map(|text| text.split_once(' ').unwrap().0.parse().unwrap()).collect();
    assert_eq!((numbers, code), ((0..=10_000).collect(), Some(4001)));
    server.stop().await;
}

/// Queues far more than a client takes, and writes it.
async fn write_much(stream: &mut ClientStream) -> Result<Written, WriteError> {
    let outbox = outbox(stream);
    for _ in 0..1_000 {
        outbox.append(Frame::text(&"x".repeat(60_000)));
    }
    outbox.flush();
    assert!(outbox.queued_bytes() > 1 << 20, "it does not read");
    stream.write().await
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let (done, mut ended) = mpsc::channel(8);
    let server = Server::start(move |mut stream| {
        let done = done.clone();
        async move { done.send(write_much(&mut stream).await.unwrap_err()).await.unwrap() }.boxed()
    })
    .await;
    let _idle = server.connect().await;
    assert_eq!(ended.recv().await.unwrap(), WriteError::TimedOut);
    server.stop().await;
}

#[tokio::test]
async fn who_is_cut_off_gets_the_frame_that_was_begun_and_the_last_word() {
    let server = Server::start(move |mut stream| {
        async move {
            let outbox = outbox(&stream);
            let cut = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                outbox.cut_with(Frame::text("displaced"), Closing::new(Reason::Displaced));
            };
            let (written, ()) = tokio::join!(write_much(&mut stream), cut);
            let closing = written.unwrap().closing;
            assert_eq!(closing.map(|closing| closing.reason), Some(Reason::Displaced));
            outbox.append(Frame::text("never"));
            end(stream, "bye", 4_001, "displaced").await;
        }
        .boxed()
    })
    .await;
    let mut client = server.connect().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let (texts, code) = until_closed(&mut client).await;
    let (before, last) = texts.split_at(texts.len() - 2);
    assert!(before.len() < 1_000 && before.iter().all(|text| text.len() == 60_000), "{} came", before.len());
    assert_eq!((last, code), (&["displaced".to_owned(), "bye".to_owned()][..], Some(4_001)));
    server.stop().await;
}

#[tokio::test]
async fn a_plain_request_is_told_what_this_is() {
    let request = http::Request::builder().uri("/ws").body(Body::empty()).unwrap();
    let Err(refused) = Upgrade::accept(request, FRAME_BYTES, true) else { panic!("accepted") };
    assert_eq!((refused.reason.row().status, refused.reason), (Some(426), Reason::UpgradeRequired));
}

#[tokio::test]
async fn parts_of_a_message_are_told_though_it_never_ends() {
    // Ends the connection as a client's rate would.
    let count = |mut stream: ClientStream| -> BoxFuture<'static, ()> {
        async move {
            let mut parts = 0;
            loop {
                match stream.next().await {
                    Incoming::Fragments(more) => parts += more,
                    Incoming::Text(text) => {
                        let told = format!("{} in {parts} more", text.len());
                        return end(stream, &told, 1_000, "").await;
                    }
                    other => panic!("{other:?}"),
                }
                if parts > 5_000 {
                    return end(stream, "too many", 4_005, "").await;
                }
            }
        }
        .boxed()
    };
    let server = Server::start(count).await;
    let part = |kind, bytes: &'static [u8], last| Message::Frame(AnyFrame::message(bytes, OpCode::Data(kind), last));
    let mut client = server.connect().await;
    client.send(part(Data::Text, b"a", false)).await.unwrap();
    for _ in 0..100 {
        client.send(part(Data::Continue, b"", false)).await.unwrap();
    }
    client.send(part(Data::Continue, b"b", true)).await.unwrap();
    assert_eq!(until_closed(&mut client).await, (vec!["2 in 101 more".to_owned()], Some(1_000)));

    let mut client = server.connect().await;
    client.send(part(Data::Text, b"a", false)).await.unwrap();
    let endless = async {
        // Fails when the other end has had enough.
        while client.feed(part(Data::Continue, b"", false)).await.is_ok() {}
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), endless).await.is_ok(), "nobody minds");
    server.stop().await;
}
