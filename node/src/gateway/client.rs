//! One client over WebSocket, from the upgrade to the close frame: its stream, its session, what it asks for and what is
//! due to it. What only reads may do so by server-sent events (`events.rs`), with the same outbox and the same jobs.
//!
//! One task for each connection: it waits for a frame, for something in the outbox, for a request that is done, or for a
//! change of the session. What the hub delivers the hub writes (`outbox.rs`); this task writes all else, and whatever the
//! socket did not take at once. A client that does not read holds up nobody but this task: its outbox fills, and the
//! connection ends.

pub mod allowances;
pub mod attachments;
mod backed;
pub mod connections;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
mod deflate;
pub mod events;
mod fragments;
mod greeting;
mod hello;
mod jobs;
mod lanes;
pub mod outbox;
pub mod replays;
mod socket;
mod stream;
mod talk;

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};

use self::{
    greeting::greet,
    socket::Socket,
    stream::{ClientStream, Upgrade},
    talk::Talk,
};
use super::{
    Gateway,
    door::{
        accepted::Accepted,
        admission::{Admitted, count_refused},
        origin::Credentials,
        reasons::Refused,
    },
};
use crate::wire::reason::Reason;

/// `GET /ws`: upgrades to the plain JSON protocol. Refused with 503 and `Retry-After` where the node has no room.
pub async fn ws(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    // Who is refused may not hold the place that it was refused for, nor leave a proxy a connection that counts for it.
    let goodbye = |refused: Refused| ([(header::CONNECTION, "close")], refused).into_response();
    let accepted = request.extensions().get::<Arc<Accepted>>().cloned();
    let counted = accepted.as_ref().map_or(Ok(()), |accepted| accepted.count_for_client(request.headers()));
    if let Err(refused) = counted {
        count_refused(refused.reason, &gateway.metrics);
        return goodbye(refused);
    }
    let admitted = match admit(&gateway) {
        Ok(admitted) => admitted,
        Err(refused) => return goodbye(refused),
    };
    let session = &gateway.config.session;
    let credentials = Credentials::of(request.headers(), &session.cookie_name, &session.allowed_origins);
    match Upgrade::accept(request, gateway.config.limits.frame_bytes, gateway.config.compresses()) {
        Ok((upgrade, response)) => {
            let tasks = gateway.tasks.clone();
            tasks.spawn_detached("connection", serve(gateway, upgrade, credentials, (admitted, accepted)));
            response
        }
        Err(refused) => goodbye(refused),
    }
}

/// Takes a place for a client, or counts that there was none.
fn admit(gateway: &Gateway) -> Result<Admitted, Refused> {
    let admitted =
        if gateway.replays.is_full() { Err(Refused::new(Reason::Replays)) } else { gateway.admission.admit() };
    admitted.inspect_err(|refused| count_refused(refused.reason, &gateway.metrics))
}

/// What a connection counts against while it lasts.
type Places = (Admitted, Option<Arc<Accepted>>);

/// Serves one connection to its end. The states before and after the long one are boxed, so that a connection at rest
/// holds no room for them.
async fn serve(gateway: Arc<Gateway>, upgrade: Upgrade, credentials: Credentials, places: Places) {
    let write_timeout = Duration::from_millis(gateway.config.limits.write_timeout_ms);
    let Some(bare) = upgrade.finish().await else { return };
    let listed = gateway.connections.open(&gateway.config.limits, &gateway.ledger, &gateway.metrics, bare.codec());
    let stream = ClientStream::open(bare, listed.outbox.clone(), write_timeout).await;
    let mut socket = Socket::new(stream, listed, gateway.metrics.clone());
    let address = places.1.as_ref().and_then(|accepted| accepted.address());
    let over = match Box::pin(greet(&gateway, &mut socket, credentials, address)).await {
        Ok((opened, early)) => match Talk::begin(&mut socket, opened).run(early).await {
            Ok(over) | Err(over) => over,
        },
        Err(over) => {
            if let Some(ending) = &over {
                gateway.metrics.connect_refused(ending.reason().code());
            }
            over
        }
    };
    if let Some(ending) = over {
        Box::pin(socket.end(ending)).await;
    }
    drop(places);
}
