//! The TCP side: accepts connections and serves HTTP/1.1 and HTTP/2 on them, WebSocket upgrades included, in tasks of the
//! node's own, so that they end with it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
};
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

use crate::{open_files::OpenFiles, tasks::Tasks};

/// The time in which a client has to send its request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// How long accepting pauses after an error: the process may have no file descriptor left, in spite of all care.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the tasks stop.
pub async fn serve(listener: TcpListener, routes: Router, files: Arc<OpenFiles>, tasks: Tasks) {
    let routes = TowerToHyperService::new(routes);
    let mut failing = false;
    loop {
        // Without room the clients wait, in the system's queue.
        let file = files.accept().await;
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // A client that hung up at once, or no file descriptor left: others may still be served.
                if !failing {
                    tracing::warn!(%error, "a connection could not be accepted; raise the limit of open files if this persists");
                }
                failing = true;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        failing = false;
        let _ = stream.set_nodelay(true);
        // A client's connection takes the place along when it is upgraded.
        let (routes, file) = (routes.clone(), Arc::new(file));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(address));
            request.extensions_mut().insert(file.clone());
            routes.call(request)
        });
        tasks.spawn_detached("http connection", async move {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(64 << 10);
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, %address, "an HTTP connection ended with an error");
            }
        });
    }
}
