//! The TCP side: accepts connections and serves HTTP/1.1 and HTTP/2 on them, WebSocket upgrades included, in tasks of the
//! node's own, so that they end with it.

use std::{net::SocketAddr, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

use crate::tasks::Tasks;

/// A client has so long to send its request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// How long accepting pauses when the process has no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the tasks stop.
pub async fn serve(listener: TcpListener, routes: Router, tasks: Tasks) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // A client that hung up at once, or no file descriptor left: others may still be served.
                tracing::warn!(%error, "a connection could not be accepted; raise the limit of open files if this persists");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let routes = routes.clone().layer(Extension(ConnectInfo::<SocketAddr>(address)));
        tasks.spawn_detached("http connection", async move {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(64 << 10);
            let connection =
                builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(routes));
            if let Err(error) = connection.await {
                tracing::debug!(%error, %address, "an HTTP connection ended with an error");
            }
        });
    }
}
