//! One reader, from the first event to the last: a task that writes what its socket did not take at once, asks for what it is
//! behind with, and looks now and then whether it may still read.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::may_read;
use crate::{
    clock,
    gateway::{
        Gateway,
        client::{
            allowances::Allowance,
            connections::{Excess, Listed},
            jobs::{Client, Job},
            lanes::Lanes,
            outbox::{CLOSE_LIMIT, Closing, Outbox, Reading},
            socket::{count_end, goes_on},
            stream::{LINGER, linger},
        },
        door::{reasons::Refused, transport::Transport},
    },
    id::{GroupName, Position, SessionId},
    logic::request::{ClientView, SessionView, SlotError},
    wire::{
        command::{Event, LeftBy},
        events,
        frame::Frame,
        reason::Reason,
    },
};

/// When a reader comes back to whom nothing was said.
const RETRY_MS: u64 = 2_000;
/// Between two looks at a reader's session, with chance, so that not all of them look at once.
const LOOK_EVERY_MS: std::ops::Range<u64> = 10_000..20_000;

/// Between two looks at the time, which may be set.
const CLOCK_MS: u64 = 5_000;

/// On whose behalf a reader reads.
pub(super) struct Whose {
    pub(super) session: SessionId,
    pub(super) user: String,
    pub(super) standing: Standing,
}

/// By what it may read.
#[derive(Clone, Copy)]
pub(super) enum Standing {
    /// What anybody may.
    Nobody,
    /// What a session may, for as long as a token of this number is good.
    Session { token: u32 },
    /// What a backend's token says, until then.
    Backed { expires_ms: u64 },
}

/// A reader that has its socket.
pub(super) struct Reader {
    gateway: Arc<Gateway>,
    groups: Vec<GroupName>,
    listed: Listed,
    socket: Arc<Transport>,
    client: Arc<Client>,
    lanes: Lanes,
    episodes: watch::Receiver<u64>,
    standing: Standing,
    look: Look,
}

/// The session as it is when it is looked at next, or that the token is over; never, where there is neither.
type Look = Pin<Box<dyn Future<Output = Result<SessionView, Refused>> + Send>>;

/// Why a reader does not go on; nothing where it is gone.
type Over = Option<Closing>;

impl Drop for Reader {
    fn drop(&mut self) {
        self.listed.outbox.detach();
    }
}

impl Reader {
    /// What is queued in its outbox is written to the socket from now on.
    pub(super) fn open(
        gateway: &Arc<Gateway>,
        socket: Transport,
        groups: Vec<GroupName>,
        places: &[Option<Position>],
        whose: Whose,
        allowance: Arc<Allowance>,
    ) -> Self {
        let Gateway { config, ledger, metrics, connections, .. } = &**gateway;
        notice_silence(socket.tcp(), Duration::from_secs(config.limits.idle_s));
        let listed = connections.open_reader(&config.limits, ledger, metrics, Reading::new(&groups, places));
        let (socket, outbox) = (Arc::new(socket), listed.outbox.clone());
        outbox.attach(socket.clone());
        outbox.push(events::retry(RETRY_MS));
        let mut lanes = Lanes::new(&config.limits);
        for (group, since) in groups.iter().zip(places) {
            // Only requests are ever given back.
            let _ = lanes.add(group.clone(), Job::Restore { since: *since });
        }
        let Whose { session, standing, .. } = whose;
        let member_of = groups.iter().cloned().collect();
        let client = Arc::new(Client::reading(gateway.clone(), outbox, session, member_of, allowance));
        let episodes = connections.episodes();
        let look: Look = match standing {
            Standing::Session { .. } => look(gateway.clone(), session),
            Standing::Backed { expires_ms } => {
                listed.expires(Some(expires_ms));
                Box::pin(expires(expires_ms))
            }
            Standing::Nobody => Box::pin(std::future::pending()),
        };
        Self { gateway: gateway.clone(), groups, listed, socket, client, lanes, episodes, standing, look }
    }

    /// Until the reader is gone, or has been told to go.
    pub(super) async fn serve(mut self) {
        if let Err(Some(closing)) = self.run().await {
            Box::pin(self.end(closing)).await;
        }
        let (gateway, connection) = (self.gateway.clone(), self.listed.outbox.connection);
        // No job that is under way has it follow anything from here on.
        drop(self);
        gateway.hub.left_all(connection).await;
    }

    async fn run(&mut self) -> Result<std::convert::Infallible, Over> {
        let outbox = self.listed.outbox.clone();
        loop {
            outbox.flush();
            self.lanes.start(&self.client);
            tokio::select! {
                biased;
                () = self.lanes.finished(), if self.lanes.is_busy() => {}
                () = outbox.ready() => for group in self.write(&outbox).await? {
                    // Only requests are ever given back.
                    let _ = self.lanes.add(group, Job::Replay);
                },
                // What was held back may be due now.
                Ok(()) = self.episodes.changed() => {}
                read = &mut self.look => Box::pin(self.looked(read)).await?,
                gone = heard(&self.socket, &mut self.listed) => gone?,
            }
        }
    }

    async fn write(&mut self, outbox: &Outbox) -> Result<Vec<GroupName>, Over> {
        let patience = Duration::from_millis(self.gateway.config.limits.write_timeout_ms);
        goes_on(outbox.write(&*self.socket, patience).await, &self.gateway.metrics)
    }

    /// Ends a reader whose session is over or whose token is not good any more, and what its session may not read by now. While
    /// the session cannot be read it goes on.
    async fn looked(&mut self, read: Result<SessionView, Refused>) -> Result<(), Over> {
        let Standing::Session { token } = self.standing else {
            return Err(Some(Closing::new(Reason::TokenExpired)));
        };
        self.look = look(self.gateway.clone(), self.client.session());
        match read {
            Ok(view) if token < view.record.token => {
                let refused = Refused::from(SlotError::OldToken);
                Err(Some(Closing::saying(Reason::Unauthorized, refused.words)))
            }
            Ok(view) => self.leave_forbidden(&view.of_any()).await,
            Err(refused) if refused.is_session_over() => {
                Err(Some(Closing::saying(Reason::SessionEnded, refused.words)))
            }
            Err(_) => Ok(()),
        }
    }

    async fn leave_forbidden(&mut self, view: &ClientView) -> Result<(), Over> {
        let may = |group: &GroupName| may_read(&self.gateway, Some(view), group).is_ok();
        let (allowed, forbidden): (Vec<_>, Vec<_>) = self.groups.iter().cloned().partition(may);
        for group in forbidden {
            self.client.depart(None, group, LeftBy::Grants).await;
        }
        self.groups = allowed;
        if self.groups.is_empty() {
            let words = "the session may not read what this stream follows any more";
            return Err(Some(Closing::saying(Reason::Unauthorized, words)));
        }
        Ok(())
    }

    /// Tells the reader that and why the stream ends, after what is queued, and ends the answer.
    async fn end(&mut self, closing: Closing) {
        count_end(&closing, &self.gateway.metrics);
        let Closing { reason, words, after_ms, code: _ } = closing.clone();
        let outbox = self.listed.outbox.clone();
        let bye = outbox.codec().encode(&Event::Bye { reason, words: words.into_owned(), after_ms });
        outbox.last([bye, Frame::end_of_chunks()], closing);
        if matches!(tokio::time::timeout(CLOSE_LIMIT, self.write(&outbox)).await, Ok(Err(Some(_)))) {
            let _ = tokio::time::timeout(LINGER, linger(&self.socket)).await;
        }
    }
}

fn look(gateway: Arc<Gateway>, session: SessionId) -> Look {
    let pause = Duration::from_millis(rand::random_range(LOOK_EVERY_MS));
    Box::pin(async move {
        tokio::time::sleep(pause).await;
        gateway.service.session(session).await
    })
}

/// Waits until a token is over, by the cluster's clock.
async fn expires(at_ms: u64) -> Result<SessionView, Refused> {
    loop {
        match at_ms.saturating_sub(clock::wall_ms()) {
            0 => return Err(Refused::new(Reason::TokenExpired)),
            left_ms => tokio::time::sleep(Duration::from_millis(left_ms.min(CLOCK_MS))).await,
        }
    }
}

/// Waits for the reader, which has nothing to say. Cancel-safe.
async fn heard(socket: &Transport, listed: &mut Listed) -> Result<(), Over> {
    match socket.read(&mut [0; 256]).await {
        Ok(1..) => listed.counted().map(drop).map_err(|Excess| Some(Closing::new(Reason::RateLimited))),
        Ok(0) | Err(_) => Err(None),
    }
}

/// Has the system end the connection when the other end's has acknowledged nothing for this time: it never says anything itself, and
/// comments go into a socket's buffer for hours.
fn notice_silence(socket: &tokio::net::TcpStream, limit: Duration) {
    #[cfg(target_os = "linux")]
    // Where it cannot be set the system gives up later.
    let _ = socket2::SockRef::from(socket).set_tcp_user_timeout(Some(limit));
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, limit);
}
