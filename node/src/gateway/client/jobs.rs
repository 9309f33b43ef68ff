//! A client that has said hello: its session, what it may do, and how each of its requests is carried out.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    allowances::Allowance,
    outbox::{Closing, Outbox},
    replays::{Page, page_bytes},
};
use crate::{
    gateway::{
        Gateway,
        door::{
            access::{self, Denied},
            reasons::Refused,
        },
        hub::{Entered, JoinOutcome},
        service::{
            By, Caller, NewMessage, Publication,
            pages::{newest, oldest},
        },
    },
    id::{AttachmentNumber, ClientKey, GroupName, Position, Seat, SessionId},
    logic::{
        entry::{Grant, Presence},
        few::Few,
        request::{ClientView, History, MemberPage, Published, SlotError},
    },
    metrics::Limit,
    wire::{
        command::{Event, LeftBy, ReadFrom, RequestId},
        reason::Reason,
    },
};

/// Between attempts to restore a group whose primary does not serve now.
const RESTORE_AGAIN: Duration = Duration::from_millis(500);

/// Looks whether a change has come to the connection, and the pause after each.
const KNOWS_LOOKS: usize = 100;
const KNOWS_EVERY: Duration = Duration::from_millis(10);

/// Pages of replays that one connection has asked for at once, so that a client that stops reading, or many groups of one
/// client, do not keep the others from theirs.
const PAGES_AT_ONCE: usize = 4;

/// What a frame adds to a message's data, about.
const MESSAGE_OVERHEAD_BYTES: usize = 200;

/// An attached session on its connection, or a reader, which has none. When the last handle is gone, and with it every request
/// under way, the session is detached.
pub(super) struct Client {
    pub(super) gateway: Arc<Gateway>,
    pub(super) outbox: Arc<Outbox>,
    session: SessionId,
    user: Arc<str>,
    /// As whom it takes part in groups. A reader has none, and nobody sees it in a group.
    seat: Option<Seat>,
    rights: Mutex<Rights>,
    paging: Semaphore,
    allowance: Arc<Allowance>,
}

/// The right to be replayed something, and one of the connection's few turns at that.
struct Paid<'a> {
    page: Page,
    turn: SemaphorePermit<'a>,
}

/// What changes while the connection lasts.
struct Rights {
    grants: Arc<[Grant]>,
    info: Bytes,
    /// Of the record that these are of.
    revision: u64,
    /// When the session ends.
    expires_ms: u64,
    /// Those it is in, or on its way into; without the private ones.
    groups: BTreeSet<GroupName>,
}

/// A message that the client publishes.
#[derive(Debug)]
pub(super) struct ToPublish {
    pub(super) id: RequestId,
    pub(super) data: Bytes,
    pub(super) key: Option<String>,
}

/// Something to do for a group; done one after the other for each group.
#[derive(Debug)]
pub(super) enum Job {
    /// The session was in the group before: join it again.
    Restore { since: Option<Position> },
    /// The connection is behind the group: bring it the next page.
    Replay,
    /// The session was put into the group, or out of it, over HTTP.
    Reconcile,
    /// The session has other attributes, which those in the group see; or the client may have been taken out of the presence,
    /// and `enters` again.
    Update { enters: bool },
    /// As asked by the client.
    Join { id: RequestId, since: Option<Position> },
    /// As asked by the client.
    Leave { id: RequestId },
    /// As asked by the client; all of them are ephemeral, or none is.
    Publish { publishes: Few<ToPublish>, ephemeral: bool },
    /// As asked by the client.
    History { id: RequestId, from: ReadFrom, limit: u32 },
    /// As asked by the client.
    Members { id: RequestId, after: Option<SessionId>, limit: u32 },
    /// As asked by the client; of no group.
    Refresh { id: RequestId, token: String },
}

impl Job {
    /// How many requests of the client it is, which are counted against its bounds.
    pub(super) fn requests(&self) -> usize {
        match self {
            Self::Restore { .. } | Self::Replay | Self::Reconcile | Self::Update { .. } => 0,
            Self::Publish { publishes, .. } => publishes.len(),
            Self::Join { .. }
            | Self::Leave { .. }
            | Self::History { .. }
            | Self::Members { .. }
            | Self::Refresh { .. } => 1,
        }
    }

    /// What it holds of the client's data.
    pub(super) fn data_bytes(&self) -> usize {
        match self {
            Self::Publish { publishes, .. } => publishes.iter().map(|publish| publish.data.len()).sum(),
            Self::Refresh { token, .. } => token.len(),
            _ => 0,
        }
    }

    /// The client's mark; of several publishes the first one's.
    pub(super) fn id(&self) -> &RequestId {
        match self {
            Self::Restore { .. } | Self::Replay | Self::Reconcile | Self::Update { .. } => &None,
            Self::Publish { publishes, .. } => publishes.first().map_or(&None, |publish| &publish.id),
            Self::Join { id, .. }
            | Self::Leave { id }
            | Self::History { id, .. }
            | Self::Members { id, .. }
            | Self::Refresh { id, .. } => id,
        }
    }
}

impl Client {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        outbox: Arc<Outbox>,
        view: &ClientView,
        (client, attachment): (ClientKey, AttachmentNumber),
        allowance: Arc<Allowance>,
    ) -> Self {
        let record = &view.record;
        let rights = Rights {
            grants: record.grants.as_slice().into(),
            info: record.attributes.clone(),
            revision: record.revision,
            expires_ms: record.expires_ms,
            groups: view.groups().cloned().collect(),
        };
        let (rights, paging) = (Mutex::new(rights), Semaphore::new(PAGES_AT_ONCE));
        let seat = Some(Seat { session: record.id, client, attachment });
        Self { gateway, outbox, session: record.id, user: record.user.as_str().into(), seat, rights, paging, allowance }
    }

    /// A reader of these groups, which it may read. `session`: on whose behalf, or a name for nobody's.
    pub(super) fn reading(
        gateway: Arc<Gateway>,
        outbox: Arc<Outbox>,
        session: SessionId,
        groups: BTreeSet<GroupName>,
        allowance: Arc<Allowance>,
    ) -> Self {
        let rights = Mutex::new(Rights {
            grants: Arc::default(),
            info: Bytes::new(),
            revision: 0,
            expires_ms: u64::MAX,
            groups,
        });
        let (paging, seat) = (Semaphore::new(PAGES_AT_ONCE), None);
        Self { gateway, outbox, session, user: "".into(), seat, rights, paging, allowance }
    }

    pub(super) fn session(&self) -> SessionId {
        self.session
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// The groups that the session is in without having joined.
    pub(super) fn private_groups(&self) -> impl Iterator<Item = GroupName> {
        let user = (!self.user.is_empty()).then(|| GroupName::of_user(&self.user));
        [GroupName::of_session(self.session())].into_iter().chain(user)
    }

    /// Takes over what is said of the session now. Groups that it is not in, and that its grants do not allow, are left before
    /// this returns: the client cannot have joined them since. Gives what is to be done in other groups.
    /// `restored`: its slot had lost sight of it.
    pub(super) async fn session_changed(&self, view: &ClientView, restored: bool) -> Vec<(GroupName, Job)> {
        let (forbidden, jobs) = self.take_over(view, restored);
        for group in forbidden {
            self.depart(None, group, LeftBy::Grants).await;
        }
        jobs
    }

    fn take_over(&self, view: &ClientView, restored: bool) -> (Vec<GroupName>, Vec<(GroupName, Job)>) {
        let record = &view.record;
        let groups: BTreeSet<GroupName> = view.groups().cloned().collect();
        let is_forbidden = |group: &GroupName| {
            let options = self.gateway.service.options(group);
            !groups.contains(group) && access::may_join(&options, &record.grants, false, group).is_err()
        };
        let mut rights = self.rights();
        rights.grants = record.grants.as_slice().into();
        let is_seen_anew = rights.info != record.attributes;
        (rights.info, rights.revision) = (record.attributes.clone(), record.revision);
        rights.expires_ms = record.expires_ms;
        let differing = rights.groups.symmetric_difference(&groups).cloned();
        let (forbidden, differing): (Vec<_>, Vec<_>) = differing.partition(is_forbidden);
        rights.groups.retain(|group| !forbidden.contains(group));
        let shows = |group: &&GroupName| (is_seen_anew || restored) && self.seat_in(group).is_some();
        let updates = rights.groups.intersection(&groups).filter(shows);
        let updates = updates.map(|group| (group.clone(), Job::Update { enters: restored }));
        let jobs = differing.into_iter().map(|group| (group, Job::Reconcile)).chain(updates).collect();
        (forbidden, jobs)
    }

    /// In how many groups it is, and when its session ends.
    pub(super) fn shows(&self) -> (usize, u64) {
        let rights = self.rights();
        (rights.groups.len(), rights.expires_ms)
    }

    /// Whether it may have others told so many bytes now, which count as what it publishes.
    pub(super) fn may_show(&self, bytes: usize) -> Result<(), Refused> {
        self.allowance.publish(bytes)
    }

    /// Waits until this connection has the session as of this revision; for a while only, as what tells it may be lost.
    pub(super) async fn knows(&self, revision: u64) {
        for _ in 0..KNOWS_LOOKS {
            if self.rights().revision >= revision {
                return;
            }
            tokio::time::sleep(KNOWS_EVERY).await;
        }
    }

    /// How much the answer may add to the outbox at once, about.
    pub(super) fn answer_bytes(&self, job: &Job) -> usize {
        match job {
            Job::Restore { since: Some(_) } | Job::Join { since: Some(_), .. } | Job::Replay => {
                page_bytes(&self.gateway.config.limits)
            }
            Job::History { .. } => self.history_bytes(),
            Job::Members { limit, .. } => *limit as usize * MESSAGE_OVERHEAD_BYTES,
            Job::Publish { publishes, .. } => publishes.len() * MESSAGE_OVERHEAD_BYTES,
            _ => MESSAGE_OVERHEAD_BYTES,
        }
    }

    /// Queues an event for the client. Only the connection's task does that, and writes before it waits again.
    pub(super) fn tell(&self, event: &Event) {
        // Where the connection is ending there is nobody to tell.
        let _ = self.outbox.append(self.outbox.counted(self.outbox.codec().encode(event)));
    }

    /// Queues an event that the client is told also while nothing may be delivered to it.
    pub(super) fn tell_aside(&self, event: &Event) {
        self.outbox.push_aside(self.outbox.codec().encode(event));
    }

    /// Carries a job out and tells the client what came of it.
    pub(super) async fn perform(self: Arc<Self>, group: GroupName, job: Job) {
        let refused_id = match &job {
            Job::Publish { .. } => None,
            other => other.id().clone(),
        };
        // What is rare is apart: it takes more room, and each publish would take it.
        let done = match job {
            Job::Publish { publishes, ephemeral: false } => return self.publish(group, publishes).await,
            Job::Publish { publishes, ephemeral: true } => return self.publish_ephemeral(group, publishes).await,
            Job::Restore { since } => Box::pin(self.restore(group, since)).await,
            Job::Replay => Box::pin(self.replay(group)).await,
            Job::Reconcile => Box::pin(self.reconcile(group)).await,
            Job::Update { enters } => Box::pin(self.update(group, enters)).await,
            Job::Join { id, since } => Box::pin(self.join(id, group, since)).await,
            Job::Leave { id } => Box::pin(self.leave(id, group)).await,
            Job::History { id, from, limit } => Box::pin(self.history(id, group, from, limit)).await,
            Job::Members { id, after, limit } => Box::pin(self.members(id, group, after, limit)).await,
            Job::Refresh { id, token } => Box::pin(self.refresh(id, &token)).await,
        };
        if let Err(refused) = done {
            self.tell(&Event::Error(refused.frame(refused_id)));
        }
    }

    /// Goes on until the group is there again: nobody asked for it, so nobody would ask again. The client is told of each
    /// failure by the hub.
    async fn restore(&self, group: GroupName, since: Option<Position>) -> Result<(), Refused> {
        while self.is_member(&group) {
            let entered = match self.paid_since(since).await {
                Ok(paid) => self.enter(None, group.clone(), since, paid).await,
                Err(busy) => Err(busy),
            };
            match entered {
                Err(error) if is_temporary(&error) => {}
                Ok(entered) => {
                    if entered == Entered::NewGroup && self.seat.is_none() {
                        self.allowance.began_group();
                    }
                    return Ok(());
                }
                Err(error) => {
                    if self.seat.is_none() {
                        // It would wait for ever; it comes back by itself.
                        let words = Refused::from(error).words;
                        self.outbox.close(Closing::saying(Reason::Unavailable, words));
                    }
                    return Ok(());
                }
            }
            tokio::time::sleep(RESTORE_AGAIN).await;
        }
        Ok(())
    }

    /// Goes on until the next page of what the connection is behind with has come. Where there is more after it, the
    /// outbox says so.
    async fn replay(&self, group: GroupName) -> Result<(), Refused> {
        while self.is_member(&group) {
            if let Ok(Paid { page, turn }) = self.paid().await {
                let told = self.gateway.hub.replay(&self.outbox, group.clone(), page).await;
                // Overtaken by a leave or another join, nothing is left to do either.
                if !matches!(told.await, Ok(Err(_))) {
                    break;
                }
                drop(turn);
            }
            tokio::time::sleep(RESTORE_AGAIN).await;
        }
        Ok(())
    }

    /// Waits for the right to have what was missed since a position.
    async fn paid_since(&self, since: Option<Position>) -> Result<Option<Paid<'_>>, SlotError> {
        match since {
            Some(_) => self.paid().await.map(Some),
            None => Ok(None),
        }
    }

    async fn paid(&self) -> Result<Paid<'_>, SlotError> {
        let turn = self.paging.acquire().await.map_err(|_| SlotError::Busy)?;
        Ok(Paid { page: self.gateway.replays.page().await?, turn })
    }

    /// Does what the session's slot says by now: the push that made this necessary may have been overtaken by the client's own
    /// joins and leaves, which are done with since they are in the same lane.
    async fn reconcile(&self, group: GroupName) -> Result<(), Refused> {
        let client = self.gateway.service.session(self.session).await?.of_client(self.seat()?.client);
        match (self.is_member(&group), client.is_in(&group)) {
            (false, true) => {
                self.rights().groups.insert(group.clone());
                if let Some(needs_grant) = client.joined.get(&group) {
                    self.gateway.attachments.joins(self.outbox.connection, &group, *needs_grant);
                }
                self.restore(group, None).await?;
            }
            (true, false) => self.depart(None, group, LeftBy::Server).await,
            // What it shows may have changed while it was on its way in.
            (true, true) => self.update(group, false).await?,
            (false, false) => {}
        }
        Ok(())
    }

    async fn join(&self, id: RequestId, group: GroupName, since: Option<Position>) -> Result<(), Refused> {
        let member = self.is_member(&group);
        {
            let mut rights = self.rights();
            access::may_join(&self.gateway.service.options(&group), &rights.grants, member, &group)?;
            if !member {
                self.allowance.may_begin_group()?;
            }
            if !member && rights.groups.len() >= self.gateway.config.limits.groups_per_session {
                self.gateway.metrics.limit_hit(Limit::GroupsPerSession);
                return Err(Refused::new(Reason::TooManyGroups));
            }
            // From here on it counts, so that joins of other groups at the same time don't exceed the bound.
            rights.groups.insert(group.clone());
        }
        if !member {
            // First of all the session's slot has to know: what it knows is undone when the client goes, whatever happens to
            // this node on the way. And should the slot forget, it is told by what is noted here.
            let needs_grant = access::needs_grant(&self.gateway.service.options(&group));
            self.gateway.attachments.joins(self.outbox.connection, &group, needs_grant);
            if let Err(refused) = self.gateway.service.enter(self.seat()?, group.clone(), needs_grant).await {
                self.is_out(&group);
                return Err(refused);
            }
            if !self.is_member(&group) {
                return Err(Denied::NotGranted.into());
            }
        }
        let entered = match self.paid_since(since).await {
            Ok(paid) => self.enter(id, group.clone(), since, paid).await,
            Err(busy) => {
                self.tell(&Event::Error(Refused::from(busy.clone()).frame(id)));
                Err(busy)
            }
        };
        if entered == Ok(Entered::NewGroup) && !member {
            self.allowance.began_group();
        }
        if entered.is_err() && !member {
            // The client was told that it is not in the group; its slot should not bring it back later.
            self.is_out(&group);
            let _ = self.gateway.service.leave(self.seat()?, group).await;
        }
        Ok(())
    }

    /// As whom it joins and leaves: a reader does neither.
    fn seat(&self) -> Result<Seat, Refused> {
        self.seat.ok_or_else(|| Refused::new(Reason::Internal))
    }

    /// Has the hub deliver the group. The hub tells the client what came of it. Overtaken by a leave or another join of
    /// the same group, it counts as done.
    async fn enter(
        &self,
        id: RequestId,
        group: GroupName,
        since: Option<Position>,
        paid: Option<Paid<'_>>,
    ) -> JoinOutcome {
        let (page, _turn) = paid.map(|Paid { page, turn }| (page, turn)).unzip();
        let member = self.presence(&group);
        let hub = &self.gateway.hub;
        let outcome = hub.join_reported(self.outbox.clone(), id, group.clone(), member, since, page).await;
        let outcome = outcome.await.unwrap_or(Ok(Entered::KnownGroup));
        if !self.is_member(&group) {
            // The right to it was taken away meanwhile, and it was left before it was joined.
            self.depart(None, group, LeftBy::Grants).await;
        }
        outcome
    }

    /// Its seat in the group, where that knows who is there.
    fn seat_in(&self, group: &GroupName) -> Option<Seat> {
        self.seat.filter(|_| !group.is_private() && self.gateway.service.options(group).presence.is_known())
    }

    /// As the group sees it, where it does.
    fn presence(&self, group: &GroupName) -> Option<Presence> {
        let Seat { session, client, attachment } = self.seat_in(group)?;
        let rights = self.rights();
        let (user, info, revision) = (self.user.clone(), rights.info.clone(), rights.revision);
        Some(Presence { session, client, user, info, revision, attachment })
    }

    /// Goes on until the group knows what the session shows by now.
    async fn update(&self, group: GroupName, enters: bool) -> Result<(), Refused> {
        while self.is_member(&group)
            && let Some(member) = self.presence(&group)
        {
            match self.gateway.service.update_member(&group, member, enters).await {
                Err(error) if is_temporary(&error) => tokio::time::sleep(RESTORE_AGAIN).await,
                // What else there is it would answer the next time too.
                Ok(()) | Err(_) => break,
            }
        }
        if enters && !self.is_member(&group) {
            // It has left meanwhile, by a way that this may have overtaken.
            let seat = self.seat_in(&group);
            while let Some(seat) = seat
                && let Err(error) = self.gateway.service.leave_presence(&group, seat).await
                && is_temporary(&error)
            {
                tokio::time::sleep(RESTORE_AGAIN).await;
            }
        }
        Ok(())
    }

    async fn leave(&self, id: RequestId, group: GroupName) -> Result<(), Refused> {
        if group.is_private() {
            return Err(Denied::Private.into());
        }
        self.gateway.service.leave(self.seat()?, group.clone()).await?;
        self.depart(id, group, LeftBy::Client).await;
        Ok(())
    }

    /// Has the hub deliver the group no more, tell the client so, and take the session out of the group's presence.
    pub(super) async fn depart(&self, id: RequestId, group: GroupName, by: LeftBy) {
        self.is_out(&group);
        let presence = self.seat_in(&group);
        self.gateway.hub.leave(self.outbox.clone(), (id, by), group, presence).await;
    }

    /// The client is not in the group.
    fn is_out(&self, group: &GroupName) {
        self.rights().groups.remove(group);
        self.gateway.attachments.leaves(self.outbox.connection, group);
    }

    /// How many of the publishes that wait for a group leave together, by the bytes of each; one at least.
    pub(super) fn fitting(&self, group: &GroupName, waiting: impl IntoIterator<Item = usize>) -> usize {
        self.gateway.service.fitting(group, waiting)
    }

    /// Publishes, and tells what came of each in their order.
    async fn publish(&self, group: GroupName, publishes: Few<ToPublish>) {
        // Who is in the group was counted when it came.
        let could_begin = !self.is_member(&group);
        let (mut ids, mut messages) = (Few::default(), Few::default());
        for ToPublish { id, data, key } in publishes {
            let allowed = self.allowance.publish(data.len());
            match allowed.and_then(|()| if could_begin { self.allowance.may_begin_group() } else { Ok(()) }) {
                Ok(()) => messages.push(NewMessage { data, key }),
                Err(refused) => {
                    self.tell(&Event::Error(refused.frame(id)));
                    continue;
                }
            }
            ids.push(id);
        }
        let by = self.by(&group);
        let publication = Publication { messages, min_copies: 1 };
        let published = self.gateway.service.publish(&by, &group, publication).await;
        for (id, published) in ids.into_iter().zip(published) {
            match published {
                Ok(Published { position, copies }) => {
                    if could_begin && position.offset == 1 {
                        self.allowance.began_group();
                    }
                    self.tell(&Event::Published { id, group: group.clone(), position, copies });
                }
                Err(refused) => self.tell(&Event::Error(refused.frame(id))),
            }
        }
    }

    /// Has messages passed on that are kept nowhere, and tells what came of each. They begin no group.
    async fn publish_ephemeral(&self, group: GroupName, publishes: Few<ToPublish>) {
        let (mut ids, mut data) = (Few::default(), Few::default());
        for ToPublish { id, data: one, .. } in publishes {
            match self.allowance.publish(one.len()) {
                Ok(()) => {
                    ids.push(id);
                    data.push(one);
                }
                Err(refused) => self.tell(&Event::Error(refused.frame(id))),
            }
        }
        if data.is_empty() {
            return;
        }
        let passed_on = self.gateway.service.publish_ephemeral(&self.by(&group), &group, data).await;
        for id in ids {
            self.tell(&match &passed_on {
                Ok(()) => Event::PassedOn { id, group: group.clone() },
                Err(refused) => Event::Error(refused.clone().frame(id)),
            });
        }
    }

    async fn history(&self, id: RequestId, group: GroupName, from: ReadFrom, limit: u32) -> Result<(), Refused> {
        let by = self.by(&group);
        let page = self.gateway.service.history(&by, &group, from, limit).await?;
        let History { position, mut complete, mut messages } = page;
        match from {
            ReadFrom::Last => complete &= !newest(&mut messages, limit as usize, self.history_bytes()),
            ReadFrom::Oldest | ReadFrom::After(_) => oldest(&mut messages, self.history_bytes()),
        }
        self.tell(&Event::History { id, group, position, complete, messages });
        Ok(())
    }

    async fn members(
        &self,
        id: RequestId,
        group: GroupName,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<(), Refused> {
        let by = self.by(&group);
        let MemberPage { members, more } = self.gateway.service.members(&by, &group, after, limit).await?;
        self.tell(&Event::Members { id, group, members, more });
        Ok(())
    }

    /// This client, asking about a group.
    fn by(&self, group: &GroupName) -> By<'_> {
        let grants = self.rights().grants.clone();
        By::Client(Caller { session: self.session(), user: &self.user, grants, member: self.is_member(group) })
    }

    fn is_member(&self, group: &GroupName) -> bool {
        self.rights().groups.contains(group)
            || (group.is_private() && self.private_groups().any(|private| private == *group))
    }

    /// The largest answer to `history`; what does not fit is to be asked for again.
    fn history_bytes(&self) -> usize {
        self.gateway.config.limits.outbox_bytes / 4
    }

    fn rights(&self) -> MutexGuard<'_, Rights> {
        // No code panics while it holds this lock.
        self.rights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.seat.is_some() {
            self.gateway.attachments.gone(self.outbox.connection);
        }
    }
}

/// The slot's primary is being replaced, or has much to do: it may be asked again.
fn is_temporary(error: &SlotError) -> bool {
    matches!(
        error,
        SlotError::Unavailable | SlotError::Unknown | SlotError::NotPrimary { .. } | SlotError::Busy | SlotError::Full
    )
}
