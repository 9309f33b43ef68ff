//! One client over WebSocket: from the upgrade to the close frame.
//!
//! One task for each connection: it waits for a frame, for something in the outbox, for a request that is done, or for a
//! change of the session, and is the only one that touches the socket. Whatever is due leaves in one batch. A client that
//! does not read holds up nobody but this task: its outbox fills, and the connection ends.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    connections::Listed,
    hello::{self, NotOpened, Opened},
    jobs::{Client, Job},
    lanes::Lanes,
    outbox::{Batch, Closing, Outbox},
    stream::{ClientStream, Fault, Incoming, Upgrade, WriteError},
};
use crate::{
    clock,
    gateway::{
        Gateway,
        door::{
            admission::{Admitted, Refusal},
            origin::Credentials,
            rate::{OperationRate, Verdict},
            reasons::error,
        },
    },
    logic::entry::SessionRecord,
    metrics::Limit,
    open_files::OpenFile,
    wire::{
        command::{ByeCode, ClientError, Command, Event, RequestId},
        plain::{self, Limits},
    },
};

/// `GET /ws`: upgrades to the plain JSON protocol. Refused with 503 and `Retry-After` where the node has no room.
pub async fn ws(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let admitted =
        if gateway.replays.is_full() { Err(Refusal::Replays) } else { gateway.admission.admit(address.ip()) };
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            // Nor may it hold one of the places that it was refused for.
            return ([(header::CONNECTION, "close")], refusal.answer(&gateway.metrics)).into_response();
        }
    };
    let file = request.extensions().get::<Arc<OpenFile>>().cloned();
    let session = &gateway.config.session;
    let credentials = Credentials::of(request.headers(), &session.cookie_name, &session.allowed_origins);
    match Upgrade::accept(request, gateway.config.limits.frame_bytes) {
        Ok((upgrade, response)) => {
            let tasks = gateway.tasks.clone();
            tasks.spawn_detached("connection", serve(gateway, upgrade, credentials, (admitted, file)));
            response
        }
        Err(refused) => refused.into_response(),
    }
}

/// What a connection counts against while it lasts.
type Places = (Admitted, Option<Arc<OpenFile>>);

/// Serves one connection to its end. The states before and after the long one are boxed, so that a connection at rest
/// holds no room for them.
async fn serve(gateway: Arc<Gateway>, upgrade: Upgrade, credentials: Credentials, places: Places) {
    let write_timeout = Duration::from_millis(gateway.config.limits.write_timeout_ms);
    let Some(mut stream) = upgrade.finish(write_timeout).await else { return };
    let listed = gateway.connections.open(gateway.config.limits.outbox_bytes, &gateway.metrics);
    let limits = &gateway.config.limits;
    let mut rate = OperationRate::new(limits.operations_per_s, limits.operations_burst);
    let greeted = Box::pin(greet(&gateway, &mut stream, &listed, &mut rate, credentials)).await;
    let ending = match greeted {
        Ok((opened, early)) => {
            let mut talk = Talk::begin(stream, &listed, rate, opened);
            let ending = talk.run(early).await;
            stream = talk.stream;
            ending
        }
        Err(ending) => {
            if let Some(ending) = &ending {
                gateway.metrics.connect_refused(plain::bye_name(ending.closing.code));
            }
            ending
        }
    };
    if let Some(ending) = ending {
        Box::pin(ending.carry_out(&gateway, stream)).await;
    }
    drop(places);
}

/// How a connection ends that this node ends.
struct Ending {
    /// Before the `bye`.
    frames: Vec<Utf8Bytes>,
    closing: Closing,
    /// The WebSocket standard's own code, where it has one.
    fault: Option<Fault>,
}

impl Ending {
    fn new(closing: Closing) -> Self {
        Self { frames: Vec::new(), closing, fault: None }
    }

    /// As the outbox says, if it says so.
    fn of(outbox: &Outbox) -> Option<Self> {
        let batch = outbox.take();
        batch.closing.map(|closing| Self { frames: batch.frames, ..Self::new(closing) })
    }

    /// For a client that does not keep to the protocol.
    fn bad_frame(reason: String, fault: Option<Fault>) -> Self {
        let closing = Closing { code: ByeCode::BadFrame, reason, reconnect: false, after_ms: 0 };
        Self { fault, ..Self::new(closing) }
    }

    fn after(mut self, event: &Event) -> Self {
        self.frames.push(plain::encode(event));
        self
    }

    async fn carry_out(self, gateway: &Gateway, stream: ClientStream) {
        let Self { mut frames, closing, fault } = self;
        let Closing { code, reason, reconnect, after_ms } = closing;
        gateway.metrics.connection_closed(plain::bye_name(code));
        match (code, fault) {
            (ByeCode::SlowConsumer, _) => gateway.metrics.limit_hit(Limit::OutboxBytes),
            (_, Some(Fault::TooLarge)) => gateway.metrics.limit_hit(Limit::FrameBytes),
            _ => {}
        }
        let close_code = fault.map_or(plain::close_code(code), Fault::close_code);
        frames.push(plain::encode(&Event::Bye { code, reason: reason.clone(), reconnect, after_ms }));
        stream.end(frames, close_code, &reason).await;
    }
}

/// Waits for `hello` and answers it; with a frame that came too early, if one did. Nothing where the client is gone.
async fn greet(
    gateway: &Arc<Gateway>,
    stream: &mut ClientStream,
    listed: &Listed,
    rate: &mut OperationRate,
    credentials: Credentials,
) -> Result<(Opened, Option<Bytes>), Option<Ending>> {
    let limits = &gateway.config.limits;
    let deadline = clock::deadline(Duration::from_millis(limits.handshake_ms));
    let text = loop {
        let incoming = tokio::select! {
            incoming = stream.next() => incoming,
            () = listed.outbox.ending() => return Err(Ending::of(&listed.outbox)),
            () = tokio::time::sleep_until(deadline) => {
                gateway.metrics.limit_hit(Limit::HandshakeMs);
                let reason = format!("no `hello` came within {} ms", limits.handshake_ms);
                let closing = Closing { code: ByeCode::HelloTimeout, reason, reconnect: true, after_ms: 0 };
                return Err(Some(Ending::new(closing)));
            }
        };
        match incoming {
            Incoming::Text(text) => break text,
            Incoming::Control if rate.take(clock::mono_us()) == Verdict::Excess => return Err(Some(excess())),
            Incoming::Control => {}
            Incoming::Broken(fault) => return Err(Some(broken(fault))),
            Incoming::Gone => return Err(None),
        }
    };
    listed.heard(clock::mono_ms());
    match read(&text, limits.message_bytes) {
        Ok(Command::Hello { id, session, resume }) => {
            let over = CancellationToken::new();
            let opening = hello::open(gateway, &listed.outbox, &credentials, id, session, resume, &over);
            let (opened, early) = while_there(opening, &over, stream, rate).await?;
            let opened = opened.map_err(|why| match why {
                NotOpened::Refused(refused) => Some(Ending::new(refused.closing).after(&Event::Error(refused.error))),
                NotOpened::Over => Ending::of(&listed.outbox),
            });
            opened.map(|opened| (opened, early))
        }
        Ok(other) => {
            let reason = "the first frame is `hello`: {\"type\":\"hello\"}";
            let ending = Ending::bad_frame(reason.to_owned(), None);
            Err(Some(ending.after(&Event::Error(error(id_of(&other), "hello_first", reason)))))
        }
        Err(error) => {
            let ending = Ending::bad_frame(format!("no valid `hello`: {}", error.message), None);
            Err(Some(ending.after(&Event::Error(error))))
        }
    }
}

/// Waits until the session is attached, and looks meanwhile whether the client is still there. One that has gone is not
/// asked for any longer: it may be at another node by now, and would lose the session there to a connection of the past.
async fn while_there<T>(
    opening: impl Future<Output = T>,
    over: &CancellationToken,
    stream: &mut ClientStream,
    rate: &mut OperationRate,
) -> Result<(T, Option<Bytes>), Option<Ending>> {
    let mut opening = pin!(opening);
    let (mut early, mut ended) = (None, None);
    loop {
        tokio::select! {
            biased;
            opened = &mut opening => {
                return match ended {
                    // An attachment that was made all the same goes with what is dropped here.
                    Some(ending) => Err(ending),
                    None => Ok((opened, early)),
                };
            }
            // One frame that does not wait for the welcome is kept; a client that sends more of them is not looked after.
            incoming = stream.next(), if early.is_none() && ended.is_none() => match incoming {
                Incoming::Text(text) => early = Some(text),
                Incoming::Control if rate.take(clock::mono_us()) == Verdict::Excess => ended = Some(Some(excess())),
                Incoming::Control => {}
                Incoming::Broken(fault) => ended = Some(Some(broken(fault))),
                Incoming::Gone => ended = Some(None),
            },
        }
        if ended.is_some() {
            over.cancel();
        }
    }
}

/// A connection whose session is attached.
struct Talk<'a> {
    stream: ClientStream,
    listed: &'a Listed,
    rate: OperationRate,
    client: Arc<Client>,
    lanes: Lanes,
    changes: Option<watch::Receiver<Arc<SessionRecord>>>,
}

impl<'a> Talk<'a> {
    fn begin(stream: ClientStream, listed: &'a Listed, rate: OperationRate, opened: Opened) -> Self {
        let Opened { client, changes, welcome, restore } = opened;
        client.tell(&welcome);
        let mut lanes = Lanes::new(&client.gateway.config.limits);
        for (group, since) in restore {
            // Only requests are ever given back.
            let _ = lanes.add(group, Job::Restore { since });
        }
        Self { stream, listed, rate, client, lanes, changes: Some(changes) }
    }

    /// Until the connection ends. Nothing where the client is gone, or takes nothing any more.
    async fn run(&mut self, early: Option<Bytes>) -> Option<Ending> {
        if let Some(ending) = early.and_then(|text| self.frame(&text)) {
            return self.last_words(ending).await;
        }
        loop {
            self.lanes.start(&self.client);
            tokio::select! {
                () = self.listed.outbox.ready() => {
                    if let Some(ended) = self.write().await {
                        return ended;
                    }
                }
                incoming = self.stream.next() => {
                    let ending = match incoming {
                        Incoming::Text(text) => self.frame(&text),
                        Incoming::Control => self.counted().err(),
                        Incoming::Broken(fault) => Some(broken(fault)),
                        Incoming::Gone => return None,
                    };
                    if let Some(ending) = ending {
                        return self.last_words(ending).await;
                    }
                }
                () = self.lanes.finished(), if self.lanes.is_busy() => {}
                () = changed(&mut self.changes) => self.record_changed(),
            }
        }
    }

    /// Writes what is due. The outer option: the connection has ended.
    async fn write(&mut self) -> Option<Option<Ending>> {
        let outbox = &self.listed.outbox;
        let Batch { frames, closing, behind, replay } = outbox.take();
        let written = self.stream.write(outbox, frames).await;
        drop(replay);
        match written {
            Ok(()) => {
                for group in behind {
                    // Only requests are ever given back.
                    let _ = self.lanes.add(group, Job::Replay);
                }
                // What closed it may have come while this was written.
                closing.map(|closing| Some(Ending::new(closing)))
            }
            // What was taken before the cut is dropped; what was queued with it is the last that the client hears.
            Err(WriteError::Cut) => Some(Ending::of(outbox)),
            Err(WriteError::Gone) => Some(None),
            Err(WriteError::TimedOut) => {
                self.client.gateway.metrics.limit_hit(Limit::WriteTimeoutMs);
                self.client.gateway.metrics.connection_closed("write_timeout");
                Some(None)
            }
        }
    }

    /// What is queued, answers to earlier frames among it, goes before the end.
    async fn last_words(&mut self, ending: Ending) -> Option<Ending> {
        let outbox = &self.listed.outbox;
        let batch = outbox.take();
        match self.stream.write(outbox, batch.frames).await {
            Ok(()) | Err(WriteError::Cut) => Some(ending),
            Err(WriteError::Gone | WriteError::TimedOut) => None,
        }
    }

    /// Counts something that the client sent against its rate.
    fn counted(&mut self) -> Result<Option<u64>, Ending> {
        let now = clock::now();
        self.listed.heard(now.mono_ms);
        match self.rate.take(clock::mono_us()) {
            Verdict::Allowed => Ok(None),
            Verdict::Refused(wait_ms) => {
                self.client.gateway.metrics.limit_hit(Limit::OperationsBurst);
                Ok(Some(wait_ms))
            }
            Verdict::Excess => {
                self.client.gateway.metrics.limit_hit(Limit::OperationsPerS);
                Err(excess())
            }
        }
    }

    /// Deals with a frame; gives the end of the connection where it means that.
    fn frame(&mut self, text: &Bytes) -> Option<Ending> {
        let wait_ms = match self.counted() {
            Ok(wait_ms) => wait_ms,
            Err(ending) => return Some(ending),
        };
        let limits = &self.client.gateway.config.limits;
        let command = match read(text, limits.message_bytes) {
            Ok(command) => command,
            Err(error) if error.code == plain::BAD_JSON => {
                let reason = error.message.clone();
                return Some(Ending::bad_frame(reason, None).after(&Event::Error(error)));
            }
            Err(error) => {
                if error.detail.iter().any(|detail| detail.kind == "too_long" && detail.loc == ["data"]) {
                    self.client.gateway.metrics.limit_hit(Limit::MessageBytes);
                }
                self.client.tell(&Event::Error(error));
                return None;
            }
        };
        if let Some(wait_ms) = wait_ms {
            let message = format!(
                "more than {} operations a second (limits.operations_per_s): not done, try again later",
                limits.operations_per_s
            );
            let error =
                ClientError { retry_after_ms: Some(wait_ms), ..error(id_of(&command), "rate_limited", message) };
            self.client.tell(&Event::Error(error));
            return None;
        }
        self.command(command);
        None
    }

    fn command(&mut self, command: Command) {
        let (group, job) = match command {
            Command::Hello { id, .. } => {
                let message = "this connection has said hello already: open another one for another session";
                return self.client.tell(&Event::Error(error(id, "hello_again", message)));
            }
            Command::Heartbeat { id } => return self.client.tell(&Event::Heartbeat { id }),
            Command::Join { id, group, since } => (group, Job::Join { id, since }),
            Command::Leave { id, group } => (group, Job::Leave { id }),
            Command::Publish { id, group, data, key } => (group, Job::Publish { id, data, key }),
            Command::History { id, group, since, limit } => (group, Job::History { id, since, limit }),
            Command::Members { id, group, after, limit } => (group, Job::Members { id, after, limit }),
        };
        if let Err(job) = self.lanes.add(group, job) {
            self.client.gateway.metrics.limit_hit(Limit::RequestsInFlight);
            let message = "too many requests of this connection are under way (limits.requests_in_flight): not done, wait for answers";
            let error = ClientError { retry_after_ms: Some(100), ..error(job.id().clone(), "busy", message) };
            self.client.tell(&Event::Error(error));
        }
    }

    /// The session's record was changed over HTTP, or there will be no more changes.
    fn record_changed(&mut self) {
        let Some(changes) = &mut self.changes else { return };
        if changes.has_changed().is_err() {
            self.changes = None;
            return;
        }
        let record = changes.borrow_and_update().clone();
        for group in self.client.record_changed(&record) {
            let _ = self.lanes.add(group, Job::Reconcile);
        }
    }
}

/// Waits for a change, or for the end of changes; for ever where that has been seen. Cancel-safe.
async fn changed(changes: &mut Option<watch::Receiver<Arc<SessionRecord>>>) {
    match changes {
        Some(changes) => drop(changes.changed().await),
        None => std::future::pending().await,
    }
}

fn read(text: &Bytes, message_bytes: usize) -> Result<Command, ClientError> {
    match std::str::from_utf8(text) {
        Ok(text) => plain::decode(text, &Limits { message_bytes }),
        Err(_) => Err(error(None, plain::BAD_JSON, Fault::NotUtf8.to_string())),
    }
}

fn id_of(command: &Command) -> RequestId {
    match command {
        Command::Hello { id, .. }
        | Command::Join { id, .. }
        | Command::Leave { id, .. }
        | Command::Publish { id, .. }
        | Command::History { id, .. }
        | Command::Members { id, .. }
        | Command::Heartbeat { id } => id.clone(),
    }
}

fn broken(fault: Fault) -> Ending {
    let code = match fault {
        Fault::TooLarge => "frame_too_large",
        Fault::Binary => "binary_frame",
        Fault::NotUtf8 => "not_utf8",
        Fault::Protocol => "bad_frame",
    };
    Ending::bad_frame(fault.to_string(), Some(fault)).after(&Event::Error(error(None, code, fault.to_string())))
}

fn excess() -> Ending {
    Ending::new(Closing {
        code: ByeCode::RateLimited,
        reason: "far more operations than limits.operations_per_s allows: wait for answers, and slow down".to_owned(),
        reconnect: true,
        after_ms: 5_000,
    })
}
