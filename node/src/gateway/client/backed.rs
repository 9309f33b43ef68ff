//! Sessions that are made of a backend's token (a JWT): what one becomes, how long it lasts, and what a later token changes in it.
//!
//! The session has all that the token says, so it is resumed by its own token like every other, on any node, and no JWT ever takes
//! up a session that is there. It ends when the token does; each node knows by its id what its end means.

use uuid::Uuid;

use super::jobs::Client;
use crate::{
    clock,
    config::SessionConfig,
    gateway::{door::reasons::Refused, jwt::Claims},
    id::SessionId,
    logic::{
        entry::{EndReason, SessionChange, SessionRecord},
        request::{ClientView, SlotError},
    },
    wire::{
        command::{Event, RequestId},
        reason::Reason,
    },
};

/// The session that a token makes.
pub(super) fn record_of(claims: Claims, config: &SessionConfig, now_ms: u64) -> SessionRecord {
    let Claims { user, expires_ms, attributes, groups, grants, clients_max } = claims;
    SessionRecord {
        id: SessionId::made_of_token(Uuid::new_v4()),
        user,
        created_ms: now_ms,
        expires_ms: expires_ms.unwrap_or_else(|| longest_ms(config, now_ms)),
        idle_ttl_ms: config.idle_ttl_s.saturating_mul(1_000),
        last_used_ms: now_ms,
        attributes,
        groups,
        grants,
        revision: 0,
        token: 0,
        clients_max,
    }
}

/// The same for a reader, for whom none is made.
pub(super) fn view_of(claims: Claims, config: &SessionConfig, now_ms: u64) -> ClientView {
    ClientView { record: record_of(claims, config, now_ms), joined: Default::default() }
}

/// Of a token that says no end.
fn longest_ms(config: &SessionConfig, now_ms: u64) -> u64 {
    now_ms.saturating_add(config.ttl_s.saturating_mul(1_000))
}

/// When a session ends that is to be refreshed, in milliseconds since 1970.
pub(super) fn expires_ms(record: &SessionRecord) -> Option<u64> {
    record.id.is_made_of_token().then_some(record.expires_ms)
}

/// How long that is from now.
pub(super) fn expires_in_ms(record: &SessionRecord) -> Option<u64> {
    expires_ms(record).map(|expires_ms| expires_ms.saturating_sub(clock::wall_ms()))
}

/// Why a session cannot be had: where it lasted as long as its token, that is what is over.
pub(super) fn refused(session: SessionId, error: SlotError) -> Refused {
    match error {
        SlotError::SessionEnded(EndReason::Expired) if session.is_made_of_token() => Refused::new(Reason::TokenExpired),
        error => error.into(),
    }
}

impl Client {
    /// Takes a later token of the same user in place of the one that the session was made of. Its rights and attributes are those
    /// of the session from now on, and it is in the token's groups too.
    pub(super) async fn refresh(&self, id: RequestId, token: &str) -> Result<(), Refused> {
        if !self.session().is_made_of_token() {
            let words = "this session was not made of a JWT: nothing is to be refreshed";
            return Err(Refused::saying(Reason::Forbidden, words));
        }
        let claims = self.gateway.jwts.verify(token).await.map_err(|error| Refused::from(error).at("token"))?;
        if claims.user != self.user() {
            let words = "the JWT is another user's: open another connection for that one";
            return Err(Refused::saying(Reason::Forbidden, words).at("token"));
        }
        let Claims { expires_ms, attributes, groups, grants, .. } = claims;
        let (seen_in, known_ms) = self.shows();
        if expires_ms.is_some_and(|expires_ms| expires_ms < known_ms) {
            let words = "the session has a later JWT already: refresh with one that expires later";
            return Err(Refused::saying(Reason::Forbidden, words).at("token"));
        }
        // Others are told of its attributes, which it may change by this.
        self.may_show(attributes.len().saturating_mul(1 + seen_in))?;
        let change = SessionChange {
            expires_ms: Some(expires_ms.unwrap_or_else(|| longest_ms(&self.gateway.config.session, clock::wall_ms()))),
            attributes: Some(attributes),
            grants: Some(grants),
            new_token: false,
            join: groups.into_iter().collect(),
            leave: Vec::new(),
        };
        let view = self.gateway.service.change(self.session(), change).await?;
        let expires_in_ms = expires_in_ms(&view.record).unwrap_or(0);
        self.knows(view.record.revision).await;
        self.tell(&Event::Refreshed { id, expires_in_ms });
        Ok(())
    }
}
