use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, response::IntoResponse, routing::any};
use futures_util::{FutureExt, SinkExt, future::BoxFuture};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_tungstenite::{MaybeTlsStream, connect_async};

use super::*;
use crate::{gateway::client::outbox::Closing, memory::Ledger, tasks::Tasks, wire::reason::Reason};

const FRAME_BYTES: usize = 128 << 10;

type Handler = Arc<dyn Fn(ClientStream) -> BoxFuture<'static, ()> + Send + Sync>;

struct Server {
    address: SocketAddr,
    tasks: Tasks,
}

async fn accept(State((tasks, handler)): State<(Tasks, Handler)>, request: Request) -> Response {
    match Upgrade::accept(request, FRAME_BYTES) {
        Ok((upgrade, response)) => {
            tasks.clone().spawn_detached("connection", async move {
                if let Some(stream) = upgrade.finish(Duration::from_millis(300)).await {
                    handler(stream).await;
                }
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
        tasks.spawn_detached("server", async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, tasks }
    }

    async fn connect(&self) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        connect_async(format!("ws://{}/", self.address)).await.unwrap().0
    }

    async fn stop(self) {
        assert!(self.tasks.shut_down(Duration::from_secs(10)).await);
    }
}

/// Ends each connection as soon as a frame is broken, by a last frame that names the fault and its close code.
fn tell_fault(mut stream: ClientStream) -> BoxFuture<'static, ()> {
    async move {
        loop {
            match stream.next().await {
                Incoming::Broken(fault) => {
                    return stream
                        .end(vec![format!("{fault:?}").into()], fault.close_code(), "see the last frame")
                        .await;
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
    let raw = |data: Data, bytes: &'static [u8], last| Message::Frame(Frame::message(bytes, OpCode::Data(data), last));
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
async fn a_batch_arrives_whole_and_in_order() {
    let server = Server::start(|mut stream| {
        async move {
            let outbox = Outbox::new(1, 1 << 20, Ledger::new(1 << 30));
            for batch in 0..10 {
                let frames =
                    (0..1_000).map(|at| Utf8Bytes::from(format!("{} {}", batch * 1_000 + at, "x".repeat(at % 500))));
                stream.write(&outbox, frames.collect()).await.unwrap();
            }
            stream.end(vec![Utf8Bytes::from_static("10000 last")], 4001, "done").await;
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

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up_and_one_that_is_cut_off_gets_no_more() {
    let (done, mut ended) = mpsc::channel(8);
    let outbox = Arc::new(Outbox::new(1, 1 << 30, Ledger::new(1 << 30)));
    let shared = outbox.clone();
    let server = Server::start(move |mut stream| {
        let (done, outbox) = (done.clone(), shared.clone());
        async move {
            let frames = std::iter::repeat_n(Utf8Bytes::from("x".repeat(60_000)), 1_000).collect();
            done.send(stream.write(&outbox, frames).await).await.unwrap();
        }
        .boxed()
    })
    .await;
    let _idle = server.connect().await;
    assert_eq!(ended.recv().await.unwrap(), Err(WriteError::TimedOut));
    outbox.cut(Closing::new(Reason::Displaced));
    let _cut = server.connect().await;
    assert_eq!(ended.recv().await.unwrap(), Err(WriteError::Cut));
    server.stop().await;
}

#[tokio::test]
async fn a_plain_request_is_told_what_this_is() {
    let request = http::Request::builder().uri("/ws").body(Body::empty()).unwrap();
    let Err(refused) = Upgrade::accept(request, FRAME_BYTES) else { panic!("accepted") };
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
                        return stream.end(vec![told.into()], 1_000, "").await;
                    }
                    other => panic!("{other:?}"),
                }
                if parts > 5_000 {
                    return stream.end(vec!["too many".into()], 4_005, "").await;
                }
            }
        }
        .boxed()
    };
    let server = Server::start(count).await;
    let part = |kind, bytes: &'static [u8], last| Message::Frame(Frame::message(bytes, OpCode::Data(kind), last));
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
