//! A connection's first frame: `hello`, and what it comes to.

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    hello::{self, Hello, NotOpened, Opened},
    outbox::Closing,
    socket::{Ending, Heard, Over, Socket, read},
};
use crate::{
    clock,
    gateway::{
        Gateway,
        door::{origin::Credentials, reasons::Refused},
    },
    metrics::Limit,
    wire::{
        command::{Command, Event},
        reason::Reason,
    },
};

/// Waits for `hello` and answers it; with a frame that came too early, if one did.
pub(super) async fn greet(
    gateway: &Arc<Gateway>,
    socket: &mut Socket,
    credentials: Credentials,
    address: Option<IpAddr>,
) -> Result<(Opened, Option<Bytes>), Over> {
    let limits = &gateway.config.limits;
    let outbox = Arc::clone(socket.outbox());
    let deadline = clock::deadline(Duration::from_millis(limits.handshake_ms));
    let text = loop {
        let heard = tokio::select! {
            heard = socket.next() => heard?,
            () = outbox.ending() => return Err(Ending::of(&outbox)),
            () = tokio::time::sleep_until(deadline) => {
                gateway.metrics.limit_hit(Limit::HandshakeMs);
                let words = format!("no `hello` came within {} ms", limits.handshake_ms);
                return Err(Some(Ending::new(Closing::saying(Reason::HelloTimeout, words))));
            }
        };
        if let Heard::Frame(text) = heard {
            break text;
        }
    };
    socket.heard();
    match read(&text, limits.message_bytes) {
        Ok(Command::Hello { id, session, client, resume }) => {
            let over = CancellationToken::new();
            let said = Hello { token: session, client, resume };
            let opening = hello::open(gateway, &outbox, (&credentials, address), id.clone(), said, &over);
            let gone = || {
                over.cancel();
                gateway.attachments.gone(outbox.connection);
            };
            let (opened, early) = while_there(opening, gone, socket).await?;
            let opened = opened.map_err(|why| match why {
                NotOpened::Refused(refused) => {
                    let closing = hello::closing(&refused);
                    Some(Ending::new(closing).after(&Event::Error(refused.frame(id))))
                }
                NotOpened::Over => Ending::of(&outbox),
            });
            opened.map(|opened| (opened, early))
        }
        Ok(other) => {
            let refused = Refused::new(Reason::HelloFirst);
            let ending = Ending::bad_frame(refused.words.clone());
            Err(Some(ending.after(&Event::Error(refused.frame(other.id().clone())))))
        }
        Err(error) => {
            let ending = Ending::bad_frame(format!("no valid `hello`: {}", error.message));
            Err(Some(ending.after(&Event::Error(error))))
        }
    }
}

/// Waits until the session is attached, and looks before and meanwhile whether the client is still there. One that has gone
/// is not asked for any longer: it may be at another node by now, and would lose the session there to a connection of the
/// past.
async fn while_there<T>(
    opening: impl Future<Output = T>,
    gone: impl FnOnce(),
    socket: &mut Socket,
) -> Result<(T, Option<Bytes>), Over> {
    let (mut opening, mut gone) = (pin!(opening), Some(gone));
    let (mut early, mut ended) = (None, None);
    // The runtime looks at its sockets again: an end that has come with `hello` is seen before anyone is asked.
    tokio::task::yield_now().await;
    loop {
        tokio::select! {
            biased;
            // One frame that does not wait for the welcome is kept; a client that sends more of them is not looked after.
            heard = socket.next(), if early.is_none() && ended.is_none() => match heard {
                Ok(Heard::Frame(text)) => early = Some(text),
                Ok(Heard::Sign) => {}
                Err(ending) => {
                    ended = Some(ending);
                    gone.take().into_iter().for_each(|gone| gone());
                }
            },
            opened = &mut opening => {
                return match ended {
                    Some(ending) => Err(ending),
                    None => Ok((opened, early)),
                };
            }
        }
    }
}
