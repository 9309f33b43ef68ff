//! The TCP side: accepts connections and serves HTTP/1.1 on them, WebSocket upgrades included, in tasks of the node's own,
//! so that they end with it.
//!
//! A connection costs its owner from the first byte: it has a place ([`Places`]), and a time for its request's head, for
//! the head of the next one, and for taking the answer. What comes before HTTP is read first (`preface.rs`). HTTP/2 is not spoken: what
//! stands in front of a node speaks HTTP/1.1 to it, and an upgrade needs that.

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    response::{IntoResponse, Response},
};
use hyper::{
    Method, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    accepted::{Accepted, AnswerStream},
    admission::count_refused,
    certificate::Shown,
    places::{Places, Probe},
    preface::{Begun, Preface},
    reasons::Refused,
};
use crate::{
    config::{Config, Network},
    metrics::{Limit, Metrics},
    open_files::OpenFiles,
    seldom::Seldom,
    tasks::Tasks,
    wire::reason::Reason,
};

/// How long accepting pauses after an error: the process may have no file descriptor left, in spite of all care.
const PAUSE: Duration = Duration::from_millis(100);
/// What is answered to a connection that has one of the places that are kept back.
const PROBES: [&str; 4] = ["/livez", "/readyz", "/health", "/metrics"];
/// The time that such a connection has, from its first byte to the last of its answer.
pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// When the door is shut, a connection on which nobody has been told so stays open for this time: a request may be on its
/// way.
const LINGER: Duration = Duration::from_secs(1);
/// Attempts to be the last in the system's queue, and the time that each has.
const LAST_ATTEMPTS: u32 = 20;
const LAST_ATTEMPT: Duration = Duration::from_millis(20);

/// Listens at this address, with room for as many who wait as the system allows: when thousands come back at once, who finds none tries
/// again only after 1 s.
///
/// # Errors
/// The system's.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    socket2::SockRef::from(&listener).listen(i32::MAX)?;
    Ok(listener)
}

/// What a door is made of.
#[expect(missing_debug_implementations, reason = "holds routes")]
pub struct DoorInputs<'a> {
    pub config: &'a Config,
    /// What this process may have open.
    pub files: Arc<OpenFiles>,
    /// What is shown over TLS; none for plain HTTP.
    pub certificate: Option<watch::Receiver<Shown>>,
    /// What is served at first.
    pub routes: Router,
    pub metrics: Arc<Metrics>,
    pub tasks: &'a Tasks,
}

/// Where clients come in. Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    places: Arc<Places>,
    preface: Preface,
    head_limit: Duration,
    write_limit: Duration,
    routes: watch::Sender<Router>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    /// Every answer says that it is the last on its connection.
    leaving: AtomicBool,
    shut: CancellationToken,
    /// Nobody is accepted any more.
    gone: CancellationToken,
    /// Connections that are served HTTP.
    served: TaskTracker,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    /// Serves who comes, until the tasks stop.
    pub fn open(listener: TcpListener, inputs: DoorInputs<'_>) -> Self {
        let DoorInputs { config, files, certificate, routes, metrics, tasks } = inputs;
        let limits = &config.limits;
        // What is none was refused when the configuration was checked.
        let proxies = config.node.proxies.iter().filter_map(|text| Network::parse(text).ok()).collect();
        let (header, head_limit) = (config.node.proxy_header, Duration::from_millis(limits.request_head_ms));
        let inner = Arc::new(Inner {
            places: Places::new(limits.connections_per_address, proxies, header, files),
            preface: Preface::new(certificate, header, head_limit),
            head_limit,
            write_limit: Duration::from_millis(limits.write_timeout_ms),
            routes: watch::channel(routes).0,
            metrics,
            tasks: tasks.clone(),
            leaving: AtomicBool::default(),
            shut: CancellationToken::new(),
            gone: CancellationToken::new(),
            served: TaskTracker::new(),
        });
        tasks.spawn("http", inner.clone().accept(listener));
        Self(inner)
    }

    /// Serves this on connections that come from now on.
    pub fn serve(&self, routes: Router) {
        drop(self.0.routes.send_replace(routes));
    }

    /// Each connection ends with its next answer, and says so in it: the client is to open its next one elsewhere.
    pub fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    /// Accepts nobody any more; returns when all requests that came by then are answered, or after `limit`.
    pub async fn shut(&self, limit: Duration) {
        self.leave();
        self.0.shut.cancel();
        let answered = async {
            self.0.gone.cancelled().await;
            self.0.served.close();
            self.0.served.wait().await;
        };
        if tokio::time::timeout(limit, answered).await.is_err() {
            tracing::warn!(left = self.0.served.len(), "requests were not answered before the end");
        }
    }
}

impl Inner {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let complain = Seldom::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shut.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    self.take_in(stream, address).await;
                }
                Err(error) => {
                    // A client that hung up at once, or no file descriptor left: others may still be served.
                    if let Some(left_out) = complain.now() {
                        tracing::warn!(%error, left_out, "a connection could not be accepted; raise the limit of open files if this persists");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        if let Err(error) = self.take_the_last(listener).await {
            tracing::debug!(%error, "the last connections could not be accepted");
        }
        self.gone.cancel();
        std::future::pending::<()>().await;
    }

    /// Connections that the system has made are taken in before the listener goes, since there may be a request on them. So
    /// that none is made between the last look and the end, the only place in the system's queue is taken by one of our own.
    async fn take_the_last(self: &Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let own = reached_at(listener.local_addr()?);
        let listener = listener.into_std()?;
        socket2::SockRef::from(&listener).listen(0)?;
        for _ in 0..LAST_ATTEMPTS {
            while let Ok((stream, address)) = listener.accept() {
                stream.set_nonblocking(true)?;
                self.take_in(TcpStream::from_std(stream)?, address).await;
            }
            if let Ok(Ok(_last)) = tokio::time::timeout(LAST_ATTEMPT, TcpStream::connect(own)).await {
                drop(listener);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn take_in(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let accepted = Accepted::new(self.places.take(address.ip()).await);
        let (this, served) = (self.clone(), self.served.token());
        self.tasks.spawn_detached("http connection", async move {
            this.serve(stream, address, accepted).await;
            drop(served);
        });
    }

    /// Serves one connection until it ends or becomes a client's.
    async fn serve(&self, stream: TcpStream, address: SocketAddr, accepted: Arc<Accepted>) {
        let Some(Begun { transport, refused }) = self.begin(stream, address, &accepted).await else { return };
        let over = CancellationToken::new();
        let probe = accepted.place.probe().cloned().or_else(|| refused.map(|reason| Probe { reason, over }));
        let routes = TowerToHyperService::new(self.routes.borrow().clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            accepted.note_request();
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(address));
            request.extensions_mut().insert(accepted.clone());
            let reason = probe.as_ref().map(|probe| probe.reason).filter(|_| !is_probe(&request));
            let answer = match reason {
                None => Ok(routes.call(request)),
                Some(reason) => Err(self.refuse(reason)),
            };
            let is_probe = probe.is_some();
            async move {
                let mut response = match answer {
                    Ok(answer) => answer.await?,
                    Err(refused) => refused,
                };
                let is_last = is_probe || self.leaving.load(Ordering::Relaxed);
                if is_last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let stream = AnswerStream::new(transport, self.write_limit, self.metrics.clone(), accepted.clone());
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.head_limit).max_buf_size(64 << 10);
        let mut connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let outcome = match &probe {
            None => tokio::select! {
                outcome = answered(&mut connection, &accepted) => outcome,
                () = self.linger() => {
                    Pin::new(&mut connection).graceful_shutdown();
                    answered(&mut connection, &accepted).await
                }
            },
            Some(probe) => tokio::select! {
                outcome = &mut connection => outcome,
                () = probe.over.cancelled() => Ok(()),
                () = tokio::time::sleep(PROBE_LIMIT) => Ok(()),
            },
        };
        if outcome.is_ok() && accepted.is_handed_over() {
            let parts = connection.into_parts();
            parts.into_iter().for_each(|parts| parts.io.into_inner().hand_over());
        }
        match (outcome, probe) {
            (_, Some(probe)) if !accepted.has_asked() => count_refused(probe.reason, &self.metrics),
            (Err(error), None) if error.is_timeout() && !accepted.has_asked() => {
                self.metrics.limit_hit(Limit::RequestHeadMs);
                tracing::debug!(%address, "a connection ended on which no request came");
            }
            (Err(error), _) => tracing::debug!(%error, %address, "an HTTP connection ended with an error"),
            (Ok(()), _) => {}
        }
    }

    /// Reads what comes before HTTP.
    async fn begin(&self, stream: TcpStream, address: SocketAddr, accepted: &Accepted) -> Option<Begun> {
        let probe = accepted.place.probe();
        let over = async {
            match probe {
                Some(probe) => tokio::select! {
                    () = probe.over.cancelled() => {}
                    () = tokio::time::sleep(PROBE_LIMIT) => {}
                },
                None => self.linger().await,
            }
        };
        let error = tokio::select! {
            begun = self.preface.read(stream, &accepted.place) => match begun {
                Ok(begun) => return Some(begun),
                Err(error) => error,
            },
            () = over => ErrorKind::ConnectionAborted.into(),
        };
        match probe {
            Some(probe) => count_refused(probe.reason, &self.metrics),
            None if error.kind() == ErrorKind::TimedOut => self.metrics.limit_hit(Limit::RequestHeadMs),
            None => {}
        }
        tracing::debug!(%error, %address, "a connection ended before HTTP began on it");
        None
    }

    /// Until the door has been shut for a while.
    async fn linger(&self) {
        self.shut.cancelled().await;
        tokio::time::sleep(LINGER).await;
    }

    fn refuse(&self, reason: Reason) -> Response {
        count_refused(reason, &self.metrics);
        Refused::new(reason).into_response()
    }
}

/// Serves a connection until it ends, or is handed over.
async fn answered<C: Future<Output = hyper::Result<()>> + Unpin>(connection: &mut C, accepted: &Accepted) -> C::Output {
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Pending if accepted.is_handed_over() => Poll::Ready(Ok(())),
        polled => polled,
    })
    .await
}

fn is_probe(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && PROBES.contains(&request.uri().path())
}

/// Where this very process reaches its own listener.
fn reached_at(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

#[cfg(test)]
mod tests;
