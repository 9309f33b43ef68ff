//! A connection whose session is attached, until it ends: frames become jobs, and what the jobs say is written.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    attachments::Known,
    backed,
    hello::Opened,
    jobs::{Client, Job, ToPublish},
    lanes::Lanes,
    socket::{Ending, Heard, Over, Socket, read},
};
use crate::{
    gateway::door::reasons::Refused,
    id::GroupName,
    logic::few::Few,
    metrics::Limit,
    wire::{
        command::{Command, Event},
        reason::Reason,
    },
};

/// A connection whose session is attached.
pub(super) struct Talk<'a> {
    socket: &'a mut Socket,
    client: Arc<Client>,
    lanes: Lanes,
    changes: Option<watch::Receiver<Known>>,
    /// As it was known last.
    restored: u32,
}

impl<'a> Talk<'a> {
    /// Welcomes the client, and is to restore what it was in.
    pub(super) fn begin(socket: &'a mut Socket, opened: Opened) -> Self {
        let Opened { client, changes, welcome, restore } = opened;
        socket.expires(backed::expires_ms(&changes.borrow().view.record));
        client.tell(&welcome);
        client.gateway.attachments.welcomed(client.outbox.connection);
        let mut lanes = Lanes::new(&client.gateway.config.limits);
        for (group, since) in restore {
            // Only requests are ever given back.
            let _ = lanes.add(group, Job::Restore { since });
        }
        Self { socket, client, lanes, changes: Some(changes), restored: 0 }
    }

    /// Until the connection ends: by what was written, or (the error) by what the client sent. `early`: a frame that came
    /// before the welcome.
    pub(super) async fn run(&mut self, early: Option<Bytes>) -> Result<Over, Over> {
        if let Some(text) = early {
            self.frame(&text)?;
        }
        loop {
            self.client.outbox.flush();
            self.lanes.start(&self.client);
            tokio::select! {
                // What the task was woken for is most often found first, and the socket is not read in vain.
                biased;
                () = self.lanes.finished(), if self.lanes.is_busy() => {}
                () = self.client.outbox.ready() => match self.socket.write().await {
                    Ok(behind) => {
                        for group in behind {
                            // Only requests are ever given back.
                            let _ = self.lanes.add(group, Job::Replay);
                        }
                    }
                    Err(over) => return Ok(over),
                },
                // Boxed, as it is rare: a connection at rest holds no room for it.
                () = changed(&mut self.changes) => Box::pin(self.session_changed()).await,
                heard = self.socket.next() => {
                    if let Heard::Frame(text) = heard? {
                        self.frame(&text)?;
                    }
                }
            }
        }
    }

    /// Deals with a frame.
    fn frame(&mut self, text: &Bytes) -> Result<(), Over> {
        let wait_ms = self.socket.counted()?;
        let limits = &self.client.gateway.config.limits;
        let command = match read(text, limits.message_bytes) {
            Ok(command) => command,
            Err(error) if error.reason == Reason::BadJson => {
                let ending = Ending::bad_frame(error.message.clone());
                return Err(Some(ending.after(&Event::Error(error))));
            }
            Err(error) => {
                if error.detail.iter().any(|detail| detail.kind == "too_long" && detail.loc == ["data"]) {
                    self.client.gateway.metrics.limit_hit(Limit::MessageBytes);
                }
                self.client.tell(&Event::Error(error));
                return Ok(());
            }
        };
        if let Some(wait_ms) = wait_ms {
            let words = format!(
                "more than {} operations a second (limits.operations_per_s): not done, try again later",
                limits.operations_per_s
            );
            self.refuse(&command, Refused::saying(Reason::RateLimited, words).after(wait_ms));
            return Ok(());
        }
        self.command(command);
        Ok(())
    }

    fn command(&mut self, command: Command) {
        let (group, job) = match command {
            Command::Hello { .. } => return self.refuse(&command, Refused::new(Reason::HelloAgain)),
            Command::Heartbeat { id } => return self.client.tell_aside(&Event::Heartbeat { id }),
            Command::Join { id, group, since } => (group, Job::Join { id, since }),
            Command::Leave { id, group } => (group, Job::Leave { id }),
            Command::Publish { id, group, data, key, ephemeral } => {
                (group, Job::Publish { publishes: Few::one(ToPublish { id, data, key }), ephemeral })
            }
            Command::History { id, group, from, limit } => (group, Job::History { id, from, limit }),
            Command::Members { id, group, after, limit } => (group, Job::Members { id, after, limit }),
            // One after the other, like what is asked of a group.
            Command::Refresh { id, token } => {
                (GroupName::of_session(self.client.session()), Job::Refresh { id, token })
            }
        };
        if let Err(job) = self.lanes.add(group, job) {
            self.client.gateway.metrics.limit_hit(Limit::RequestsInFlight);
            let words = "too many requests of this connection are under way (limits.requests_in_flight): not done, wait for answers";
            self.client.tell(&Event::Error(Refused::saying(Reason::Busy, words).frame(job.id().clone())));
        }
    }

    fn refuse(&self, command: &Command, refused: Refused) {
        self.client.tell(&Event::Error(refused.frame(command.id().clone())));
    }

    /// The session was changed over HTTP, or its slot has the client again, or there will be no more changes.
    async fn session_changed(&mut self) {
        let Some(changes) = &mut self.changes else { return };
        if changes.has_changed().is_err() {
            self.changes = None;
            return;
        }
        let Known { view, restored } = changes.borrow_and_update().clone();
        self.socket.expires(backed::expires_ms(&view.record));
        let is_restored = std::mem::replace(&mut self.restored, restored) < restored;
        for (group, job) in self.client.session_changed(&view, is_restored).await {
            let _ = self.lanes.add(group, job);
        }
    }
}

/// Waits for a change, or for the end of changes; for ever where that has been seen. Cancel-safe.
async fn changed(changes: &mut Option<watch::Receiver<Known>>) {
    match changes {
        Some(changes) => drop(changes.changed().await),
        None => std::future::pending().await,
    }
}
