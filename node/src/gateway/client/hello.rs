//! From `hello` to an attached session: whose it is, and that it is this connection's from now on.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    allowances::Spender,
    attachments::{Held, Known, NotAttached},
    backed,
    jobs::Client,
    outbox::{Closing, Outbox},
};
use crate::{
    clock,
    config::SessionConfig,
    gateway::{
        Gateway,
        door::{origin::Credentials, reasons::Refused},
        jwt::{Claims, Jwts},
    },
    id::{ClientId, GroupName, Position, SessionId},
    logic::entry::SessionRecord,
    token::Signed,
    wire::{
        command::{Event, RequestId},
        reason::Reason,
    },
};

/// A client that is attached.
pub(super) struct Opened {
    pub(super) client: Arc<Client>,
    /// What the session becomes over HTTP.
    pub(super) changes: watch::Receiver<Known>,
    pub(super) welcome: Event,
    /// The groups to be restored, with where the client stopped.
    pub(super) restore: Vec<(GroupName, Option<Position>)>,
}

/// Why a client is not attached.
pub(super) enum NotOpened {
    /// It was refused.
    Refused(Box<Refused>),
    /// The attachment was over before it began. The outbox has what is to be said.
    Over,
}

impl From<Refused> for NotOpened {
    fn from(refused: Refused) -> Self {
        Self::Refused(Box::new(refused))
    }
}

/// Where a token came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Hello,
    Bearer,
    Cookie,
}

/// What a client says first.
pub(super) struct Hello {
    pub(super) token: Option<String>,
    /// As it names itself.
    pub(super) client: Option<ClientId>,
    pub(super) resume: BTreeMap<GroupName, Position>,
}

/// Whose a connection is.
pub(super) enum Identified {
    /// Of nobody in particular.
    Nobody,
    /// Of a session that is there, as far as its token says.
    Session(Signed),
    /// Of whom a backend's token names.
    Backed(Box<Claims>),
}

/// Finds the session that a client asks for, or makes one, and attaches it. Once the token is cancelled the client is gone,
/// and nothing is tried again.
pub(super) async fn open(
    gateway: &Arc<Gateway>,
    outbox: &Arc<Outbox>,
    (credentials, address): (&Credentials, Option<IpAddr>),
    id: RequestId,
    Hello { token, client, resume }: Hello,
    over: &CancellationToken,
) -> Result<Opened, NotOpened> {
    let (identified, source) = identify(gateway, credentials, token).await?;
    let name = client.unwrap_or_else(new_client_id);
    let config = &gateway.config.session;
    let create_anonymous = || create(gateway, anonymous_record(config, clock::wall_ms()), &name, outbox, over);
    let attached = match identified {
        Identified::Session(signed) => attach(gateway, (signed, &name), outbox, over).await.map(|held| (held, None)),
        Identified::Backed(claims) => {
            let record = backed::record_of(*claims, config, clock::wall_ms());
            create(gateway, record, &name, outbox, over).await
        }
        Identified::Nobody => create_anonymous().await,
    };
    let (Held { number, mut changes }, token) = match attached {
        // A page cannot drop a cookie that scripts cannot see, and would be locked out by one that is over.
        Err(NotOpened::Refused(refused)) if is_past(&refused) && source == Some(Source::Cookie) && config.anonymous => {
            create_anonymous().await?
        }
        attached => attached?,
    };
    let view = changes.borrow_and_update().view.clone();
    let record = &view.record;
    let allowance = gateway.allowances.of(Spender::of(record.id, &record.user, address));
    let client = Arc::new(Client::new(gateway.clone(), outbox.clone(), &view, (name.key(), number), allowance));
    let groups: Vec<GroupName> = client.private_groups().chain(view.groups().cloned()).collect();
    let welcome = Event::Welcome {
        id,
        session: client.session(),
        client: name,
        user: record.user.clone(),
        token,
        node: gateway.node.as_str().to_owned(),
        heartbeat_s: gateway.config.limits.heartbeat_s,
        groups: groups.clone(),
        expires_in_ms: backed::expires_in_ms(record),
    };
    let restore =
        groups.into_iter().map(|group| (resume.get(&group).copied(), group)).map(|(since, group)| (group, since));
    Ok(Opened { restore: restore.collect(), client, changes, welcome })
}

/// Whether the session is not there any more, or has another token by now.
pub(super) fn is_past(refused: &Refused) -> bool {
    refused.is_session_over() || matches!(refused.reason, Reason::Unauthorized | Reason::TokenExpired)
}

/// Whom the best of the tokens names, and where it came from.
pub(super) async fn identify(
    gateway: &Gateway,
    credentials: &Credentials,
    token: Option<String>,
) -> Result<(Identified, Option<Source>), Refused> {
    let anonymous = gateway.config.session.anonymous;
    let given = [
        (token.as_ref(), Source::Hello),
        (credentials.bearer.as_ref(), Source::Bearer),
        (credentials.cookie.as_ref(), Source::Cookie),
    ];
    let Some((token, source)) = given.into_iter().find_map(|(token, source)| Some((token?, source))) else {
        return if anonymous { Ok((Identified::Nobody, None)) } else { Err(Refused::new(Reason::Unauthorized)) };
    };
    if source == Source::Cookie && !credentials.origin_allowed {
        return Err(Refused::new(Reason::ForbiddenOrigin));
    }
    let identified = if Jwts::is_jwt(token) {
        Box::pin(gateway.jwts.verify(token))
            .await
            .map(|claims| Identified::Backed(Box::new(claims)))
            .map_err(Refused::from)
    } else {
        let verified = gateway.keyring.verify(token).map(Identified::Session);
        verified.map_err(|reason| Refused::saying(Reason::Unauthorized, reason.to_string()))
    };
    match identified {
        Err(refused) if source == Source::Cookie && anonymous && is_past(&refused) => Ok((Identified::Nobody, None)),
        Err(refused) => Err(if source == Source::Hello { refused.at("session") } else { refused }),
        Ok(identified) => Ok((identified, Some(source))),
    }
}

async fn attach(
    gateway: &Gateway,
    (signed, client): (Signed, &ClientId),
    outbox: &Arc<Outbox>,
    over: &CancellationToken,
) -> Result<Held, NotOpened> {
    gateway.attachments.attach((signed, client), outbox, over).await.map_err(|why| match why {
        NotAttached::Refused(error) => backed::refused(signed.session, error).into(),
        NotAttached::Over => NotOpened::Over,
    })
}

/// A new session, and its token.
async fn create(
    gateway: &Gateway,
    record: SessionRecord,
    client: &ClientId,
    outbox: &Arc<Outbox>,
    over: &CancellationToken,
) -> Result<(Held, Option<String>), NotOpened> {
    let signed = Signed { session: record.id, number: record.token };
    gateway.service.create(record, Some(over)).await?;
    let held = attach(gateway, (signed, client), outbox, over).await?;
    Ok((held, Some(gateway.keyring.sign(signed.session, signed.number))))
}

/// For a client that does not name itself: a random number, so that no other client of the session has it.
fn new_client_id() -> ClientId {
    ClientId::made(rand::random())
}

/// An ephemeral session of nobody in particular: neither a fleet that comes back at once nor visitors that never do are the
/// store's.
fn anonymous_record(config: &SessionConfig, now_ms: u64) -> SessionRecord {
    SessionRecord {
        id: SessionId::ephemeral(Uuid::new_v4()),
        user: String::new(),
        created_ms: now_ms,
        expires_ms: now_ms.saturating_add(config.ttl_s.saturating_mul(1_000)),
        idle_ttl_ms: config.idle_ttl_s.saturating_mul(1_000),
        last_used_ms: now_ms,
        attributes: Bytes::from_static(b"{}"),
        groups: [].into(),
        grants: Vec::new(),
        revision: 0,
        token: 0,
        clients_max: None,
    }
}

/// How the connection of a client ends that was refused.
pub(super) fn closing(refused: &Refused) -> Closing {
    let reason = match refused.reason {
        Reason::NoSession | Reason::SessionEnded => Reason::SessionEnded,
        Reason::Unauthorized | Reason::ForbiddenOrigin => Reason::Unauthorized,
        Reason::TokenExpired => Reason::TokenExpired,
        Reason::TooManyClients => Reason::TooManyClients,
        _ => Reason::Unavailable,
    };
    let closing = Closing::saying(reason, refused.words.clone());
    let after_ms = closing.after_ms.max(refused.retry_ms.filter(|_| reason.comes_back()).unwrap_or(0));
    closing.after(after_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anonymous_session_ends_as_configured() {
        let config = SessionConfig { ttl_s: 10, idle_ttl_s: 5, ..SessionConfig::default() };
        let record = anonymous_record(&config, 1_000);
        assert_eq!((record.created_ms, record.expires_ms, record.idle_ttl_ms), (1_000, 11_000, 5_000));
        assert!(record.id.is_ephemeral(), "{record:?}");
        assert_ne!(record.id, anonymous_record(&config, 1_000).id);
    }
}
