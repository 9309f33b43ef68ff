//! From `hello` to an attached session: whose it is, and that it is this connection's from now on.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    attachments::Attachment,
    jobs::Client,
    outbox::{Closing, Outbox},
};
use crate::{
    clock,
    config::SessionConfig,
    gateway::{
        Gateway,
        door::{
            origin::Credentials,
            reasons::{error, field_error, slot_error},
        },
    },
    id::{GroupName, Position, SessionId},
    logic::{
        entry::SessionRecord,
        request::{Attach, Attached as Has, CreateSession, SlotError},
    },
    wire::command::{ByeCode, ClientError, Event, RequestId},
};

/// A client that is attached.
pub(super) struct Opened {
    pub(super) client: Arc<Client>,
    /// What the record becomes over HTTP.
    pub(super) changes: watch::Receiver<Arc<SessionRecord>>,
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

/// What a refused client is told.
pub(super) struct Refused {
    pub(super) error: ClientError,
    pub(super) closing: Closing,
}

/// Where a token came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Hello,
    Bearer,
    Cookie,
}

/// Finds the session that a client asks for, or makes one, and attaches it. Once the token is cancelled the client is gone,
/// and nothing is tried again.
pub(super) async fn open(
    gateway: &Arc<Gateway>,
    outbox: &Arc<Outbox>,
    credentials: &Credentials,
    id: RequestId,
    token: Option<String>,
    resume: BTreeMap<GroupName, Position>,
    over: &CancellationToken,
) -> Result<Opened, NotOpened> {
    let (session, source) = identify(gateway, credentials, &id, token)?;
    let (record, attachment, token) = match session {
        Some(session) => match attach(gateway, outbox, session, over).await {
            Ok((record, attachment)) => (record, attachment, None),
            // A page cannot drop a cookie that scripts cannot see, and would be locked out by one that is over.
            Err(SlotError::NoSession | SlotError::SessionEnded(_))
                if source == Some(Source::Cookie) && gateway.config.session.anonymous =>
            {
                create(gateway, outbox, &id, over).await?
            }
            Err(reason) => return Err(unattached(id, &reason)),
        },
        None => create(gateway, outbox, &id, over).await?,
    };
    let (sender, mut changes) = watch::channel(Arc::new(record));
    let session = changes.borrow().id;
    let inserted = Attachment { session, number: attachment, outbox: outbox.clone(), record: sender };
    gateway.hub.attachments().insert(inserted).map_err(|_| NotOpened::Over)?;
    let record = changes.borrow_and_update().clone();
    let client = Arc::new(Client::new(gateway.clone(), outbox.clone(), &record, attachment));
    let groups: Vec<GroupName> = client.private_groups().chain(record.groups.iter().cloned()).collect();
    let welcome = Event::Welcome {
        id,
        session: client.session(),
        user: record.user.clone(),
        token,
        node: gateway.node.as_str().to_owned(),
        heartbeat_s: gateway.config.limits.heartbeat_s,
        groups: groups.clone(),
    };
    let restore =
        groups.into_iter().map(|group| (resume.get(&group).copied(), group)).map(|(since, group)| (group, since));
    Ok(Opened { restore: restore.collect(), client, changes, welcome })
}

/// The session that the best of the tokens names; nothing where the client is to get a new one.
fn identify(
    gateway: &Gateway,
    credentials: &Credentials,
    id: &RequestId,
    token: Option<String>,
) -> Result<(Option<SessionId>, Option<Source>), NotOpened> {
    let anonymous = gateway.config.session.anonymous;
    let given = [
        (token.as_ref(), Source::Hello),
        (credentials.bearer.as_ref(), Source::Bearer),
        (credentials.cookie.as_ref(), Source::Cookie),
    ];
    let Some((token, source)) = given.into_iter().find_map(|(token, source)| Some((token?, source))) else {
        let reason = "a session is needed: a token in `hello`, as `Authorization: Bearer …`, or the session cookie \
                      (or set session.anonymous, then clients without one get one)";
        return if anonymous { Ok((None, None)) } else { Err(unauthorized(error(id.clone(), "unauthorized", reason))) };
    };
    if source == Source::Cookie && !credentials.origin_allowed {
        let reason = "pages of this origin may not use the session cookie: add the origin to session.allowed_origins, \
                      or send a token in `hello`";
        return Err(unauthorized(error(id.clone(), "forbidden_origin", reason)));
    }
    match gateway.keyring.verify(token) {
        Ok(session) => Ok((Some(session), Some(source))),
        Err(_) if source == Source::Cookie && anonymous => Ok((None, None)),
        Err(reason) if source == Source::Hello => {
            Err(unauthorized(field_error(id.clone(), "unauthorized", "session", reason.to_string())))
        }
        Err(reason) => Err(unauthorized(error(id.clone(), "unauthorized", reason.to_string()))),
    }
}

/// The record, the attachment's number and, the session being new, its token.
type Attached = (SessionRecord, u64, Option<String>);

async fn create(
    gateway: &Gateway,
    outbox: &Outbox,
    id: &RequestId,
    over: &CancellationToken,
) -> Result<Attached, NotOpened> {
    let record = anonymous_record(&gateway.config.session, clock::wall_ms());
    let session = record.id;
    let created = gateway.ask_session_while(session, CreateSession { record }, over).await;
    created.map_err(|reason| unattached(id.clone(), &reason))?;
    let (record, attachment) =
        attach(gateway, outbox, session, over).await.map_err(|reason| unattached(id.clone(), &reason))?;
    Ok((record, attachment, Some(gateway.keyring.sign(session))))
}

async fn attach(
    gateway: &Gateway,
    outbox: &Outbox,
    session: SessionId,
    over: &CancellationToken,
) -> Result<(SessionRecord, u64), SlotError> {
    let request = Attach { connection: outbox.connection, waited_ms: 0 };
    let Has { record, attachment } = gateway.ask_session_while(session, request, over).await?;
    Ok((record, attachment))
}

/// A session of nobody in particular.
fn anonymous_record(config: &SessionConfig, now_ms: u64) -> SessionRecord {
    SessionRecord {
        id: SessionId(Uuid::new_v4()),
        user: String::new(),
        created_ms: now_ms,
        expires_ms: now_ms.saturating_add(config.ttl_s.saturating_mul(1_000)),
        idle_ttl_ms: config.idle_ttl_s.saturating_mul(1_000),
        last_used_ms: now_ms,
        attributes: Bytes::from_static(b"{}"),
        groups: [].into(),
        grants: Vec::new(),
    }
}

fn unauthorized(error: ClientError) -> NotOpened {
    let closing = Closing { code: ByeCode::Unauthorized, reason: error.message.clone(), reconnect: false, after_ms: 0 };
    NotOpened::Refused(Box::new(Refused { error, closing }))
}

fn unattached(id: RequestId, reason: &SlotError) -> NotOpened {
    let error = slot_error(id, reason);
    let (code, reconnect) = match reason {
        SlotError::NoSession | SlotError::SessionEnded(_) => (ByeCode::SessionEnded, false),
        _ => (ByeCode::Unavailable, true),
    };
    let after_ms = if reconnect { error.retry_after_ms.unwrap_or(0).max(1_000) } else { 0 };
    let closing = Closing { code, reason: error.message.clone(), reconnect, after_ms };
    NotOpened::Refused(Box::new(Refused { error, closing }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anonymous_session_ends_as_configured() {
        let config = SessionConfig { ttl_s: 10, idle_ttl_s: 5, ..SessionConfig::default() };
        let record = anonymous_record(&config, 1_000);
        assert_eq!((record.created_ms, record.expires_ms, record.idle_ttl_ms), (1_000, 11_000, 5_000));
        assert_eq!(record.id.0.get_version_num(), 4);
        assert_ne!(record.id, anonymous_record(&config, 1_000).id);
    }
}
