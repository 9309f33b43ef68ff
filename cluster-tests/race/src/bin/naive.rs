//! The naive server: groups are `tokio::sync::broadcast` channels, each connection is one task over axum's WebSocket.
//! No sessions, no history, no offsets: what the least that could be called a server costs.
//!
//! `join GROUP` is answered `joined`; `pub ID GROUP DATA` sends DATA to the group, and is answered `ok ID`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap, StatusCode,
        header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
    },
    response::IntoResponse,
    routing::get,
    serve::ListenerExt,
};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::broadcast;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, Utf8Bytes, handshake::derive_accept_key, protocol::Role},
};

/// Messages that a slow connection may be behind.
const BEHIND: usize = 4_096;

type Groups = Arc<Mutex<HashMap<String, broadcast::Sender<Utf8Bytes>>>>;
type Socket = WebSocketStream<TokioIo<Upgraded>>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::args().nth(1).unwrap_or_default().parse()?;
    let app = Router::new().route("/ws", get(upgrade)).with_state(Groups::default());
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let listener = listener.tap_io(|socket| {
        // A socket that has ended by now is found out by whoever reads it.
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, app).await?;
    Ok(())
}

/// As axum's own extractor does it, which would bring a second version of the same library.
async fn upgrade(State(groups): State<Groups>, headers: HeaderMap, mut request: Request) -> impl IntoResponse {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else { return StatusCode::BAD_REQUEST.into_response() };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    #[expect(clippy::disallowed_methods, reason = "this server ends with its process: nobody waits for its tasks")]
    tokio::spawn(async move {
        // A client that left before this needs no answer.
        let Ok(upgraded) = upgrade.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        serve(socket, groups).await;
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, "websocket"), (SEC_WEBSOCKET_ACCEPT, &accept)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn serve(mut socket: Socket, groups: Groups) {
    let mut messages: Option<broadcast::Receiver<Utf8Bytes>> = None;
    loop {
        let said = tokio::select! {
            Some(message) = next(&mut messages) => message,
            heard = socket.next() => {
                let Some(Ok(Message::Text(text))) = heard else { return };
                match obey(&text, &groups, &mut messages) {
                    Some(answer) => answer.into(),
                    None => return,
                }
            }
        };
        if socket.send(Message::Text(said)).await.is_err() {
            return;
        }
    }
}

async fn next(messages: &mut Option<broadcast::Receiver<Utf8Bytes>>) -> Option<Utf8Bytes> {
    match messages {
        // One that is too far behind misses messages: the bench counts that.
        Some(messages) => loop {
            match messages.recv().await {
                Ok(message) => return Some(message),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        },
        None => std::future::pending().await,
    }
}

fn obey(text: &str, groups: &Groups, messages: &mut Option<broadcast::Receiver<Utf8Bytes>>) -> Option<String> {
    let group = |name: &str| {
        let mut groups = groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.entry(name.to_owned()).or_insert_with(|| broadcast::channel(BEHIND).0).clone()
    };
    match text.split_once(' ')? {
        ("join", name) => {
            *messages = Some(group(name).subscribe());
            Some("joined".to_owned())
        }
        ("pub", rest) => {
            let mut parts = rest.splitn(3, ' ');
            let (id, name, data) = (parts.next()?, parts.next()?, parts.next()?);
            let _ = group(name).send(data.into());
            Some(format!("ok {id}"))
        }
        _ => None,
    }
}
