//! TCP relays in front of Cassandra nodes: the network that a test can cut, slow down, and have lose answers.
//!
//! A relay listens where a Cassandra node says that drivers find it (`broadcast_rpc_address`), so that everything a driver
//! sends and gets goes through. It reads the frames of the native protocol (version 4, not compressed) and carries them in
//! order; what it may do to them is a [`Mode`], which can change at any time.

mod cql;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use roost::{clock, tasks::Tasks};
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::Instant,
};

use self::cql::{Conversation, Fate, Statements};

/// Frames of one direction of one connection that are under way at once: more than anyone sends in a few seconds.
const UNDER_WAY: usize = 65_536;
/// Until a port that was given up is free again, and until a connection's end is done.
const AGAIN: Duration = Duration::from_millis(50);

/// What a relay does with what passes through it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Everything is carried.
    Pass,
    /// A cut network: not a byte goes either way, nobody is told; who connects hears nothing. What was on its way
    /// arrives when the network is back.
    Hold,
    /// Nobody listens: connections are closed, new ones refused.
    Refuse,
    /// Each direction is delayed by this time; the rate stays the same.
    Slow(Duration),
    /// Of every two conditional writes (`… IF …`), one never arrives and the answer to the other is lost; all else passes.
    /// Whoever sent them cannot know which is which.
    LoseConditional,
}

/// How many conditional writes were lost, in which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    /// They never arrived.
    pub requests: u64,
    /// They arrived, and nobody was told.
    pub answers: u64,
}

/// A relay for each node of a Cassandra cluster. Dropped, they are gone.
pub struct Relays {
    modes: Vec<watch::Sender<Mode>>,
    shared: Arc<Shared>,
    tasks: Tasks,
}

/// What all connections of all relays know.
#[derive(Default)]
struct Shared {
    statements: Mutex<Statements>,
    conditional: AtomicU64,
    requests: AtomicU64,
    answers: AtomicU64,
    connections: AtomicU64,
}

impl Relays {
    /// Starts one for each pair: where it listens, and the node that it leads to.
    pub async fn start(pairs: &[(SocketAddr, SocketAddr)]) -> Result<Self> {
        let (shared, tasks) = (Arc::new(Shared::default()), Tasks::new());
        let mut modes = Vec::new();
        for &(from, to) in pairs {
            let (mode, seen) = watch::channel(Mode::Pass);
            let listener = TcpListener::bind(from).await.with_context(|| format!("a relay at {from}"))?;
            let relay = Relay { from, to, mode: seen, shared: shared.clone(), tasks: tasks.clone() };
            tasks.spawn_detached("relay", relay.run(listener));
            modes.push(mode);
        }
        Ok(Self { modes, shared, tasks })
    }

    /// Changes what the relay of a node does, counted from 0.
    pub fn set(&self, node: usize, mode: Mode) {
        self.modes[node].send_replace(mode);
    }

    /// Changes what all of them do.
    pub fn set_all(&self, mode: Mode) {
        for node in 0..self.modes.len() {
            self.set(node, mode);
        }
    }

    /// What was lost so far in [`Mode::LoseConditional`].
    pub fn lost(&self) -> Lost {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Lost { requests: count(&self.shared.requests), answers: count(&self.shared.answers) }
    }

    /// Connections taken so far: a test that sees none has a driver that goes past the relays.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

#[derive(Clone)]
struct Relay {
    from: SocketAddr,
    to: SocketAddr,
    mode: watch::Receiver<Mode>,
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Relay {
    async fn run(mut self, first: TcpListener) {
        let mut listener = Some(first);
        while self.mode.wait_for(|mode| *mode != Mode::Refuse).await.is_ok() {
            let listening = match listener.take() {
                Some(listener) => listener,
                None => match TcpListener::bind(self.from).await {
                    Ok(listener) => listener,
                    Err(_) => {
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                },
            };
            self.listen(&listening).await;
        }
    }

    /// Takes connections until nobody is to listen any more.
    async fn listen(&mut self, listener: &TcpListener) {
        loop {
            let mode = *self.mode.borrow_and_update();
            let accepted = async {
                if mode == Mode::Hold {
                    std::future::pending::<()>().await;
                }
                listener.accept().await
            };
            tokio::select! {
                changed = self.mode.changed() => if changed.is_err() || *self.mode.borrow() == Mode::Refuse { return },
                accepted = accepted => match accepted {
                    Ok((client, _)) => self.tasks.spawn_detached("relayed connection", self.clone().connection(client)),
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    }

    async fn connection(mut self, client: TcpStream) {
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(server) = TcpStream::connect(self.to).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let conversation = Arc::new(Mutex::new(Conversation::default()));
        let asks = Direction { relay: self.clone(), conversation: conversation.clone(), answers: false };
        let answers = Direction { relay: self.clone(), conversation, answers: true };
        tokio::select! {
            () = asks.carry(from_client, to_server) => {}
            () = answers.carry(from_server, to_client) => {}
            _ = self.mode.wait_for(|mode| *mode == Mode::Refuse) => {}
        }
    }
}

/// One way of one connection.
struct Direction {
    relay: Relay,
    conversation: Arc<Mutex<Conversation>>,
    answers: bool,
}

impl Direction {
    /// Until either end closes; what was read by then is still written.
    async fn carry(self, from: OwnedReadHalf, to: OwnedWriteHalf) {
        let (queue, queued) = mpsc::channel(UNDER_WAY);
        let mode = self.relay.mode.clone();
        tokio::join!(self.read(from, queue), write(to, queued, mode));
    }

    async fn read(mut self, mut from: OwnedReadHalf, queue: mpsc::Sender<(Instant, Vec<u8>)>) {
        loop {
            if open(&mut self.relay.mode).await.is_err() {
                return;
            }
            let Ok(frame) = cql::read_frame(&mut from).await else { return };
            let mode = *self.relay.mode.borrow();
            if self.passes(&frame, mode) {
                let late = if let Mode::Slow(each_way) = mode { each_way } else { Duration::ZERO };
                if queue.send((clock::deadline(late), frame)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn passes(&self, frame: &[u8], mode: Mode) -> bool {
        let shared = &self.relay.shared;
        let mut conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut statements = shared.statements.lock().unwrap_or_else(PoisonError::into_inner);
        if self.answers {
            let lost = conversation.answered(frame, &mut statements);
            shared.answers.fetch_add(u64::from(lost), Ordering::Relaxed);
            return !lost;
        }
        let fate = match mode {
            Mode::LoseConditional if conversation.is_conditional(frame, &statements) => {
                if shared.conditional.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    Fate::AnswerLost
                } else {
                    Fate::Lost
                }
            }
            _ => Fate::Answered,
        };
        conversation.asked(frame, fate);
        shared.requests.fetch_add(u64::from(fate == Fate::Lost), Ordering::Relaxed);
        fate != Fate::Lost
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut queued: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut mode: watch::Receiver<Mode>,
) {
    while let Some((due, frame)) = queued.recv().await {
        tokio::time::sleep_until(due).await;
        if open(&mut mode).await.is_err() || to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Waits while the network is cut.
async fn open(mode: &mut watch::Receiver<Mode>) -> Result<(), watch::error::RecvError> {
    mode.wait_for(|mode| *mode != Mode::Hold).await.map(drop)
}

#[cfg(test)]
mod tests;
