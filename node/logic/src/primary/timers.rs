//! What a primary does because time has passed. Each step is an entry, so that a new primary goes on where this one was. Where
//! nothing can be due no tick is asked for.

use std::sync::Arc;

use super::{
    SlotOutput,
    groups::GroupPending,
    reign::{GroupsReign, Reign, Reigning, SessionsReign},
};
use crate::{
    Now,
    entry::{EndReason, GroupEntry, SessionEntry},
    id::{ClientKey, GroupName, Member, SessionId},
    memory::Level,
    session::{Client, Session, Stage},
    slot::{Group, SlotState},
};

/// Sessions, and who follows what, are looked at once in this time, groups less often.
const SESSIONS_MS: u64 = 500;
const GROUPS_MS: u64 = 5_000;
/// Messages are dropped for want of memory at most once in this time.
const SHED_MS: u64 = 200;
/// At most this number of each at a time; the rest has its turn later.
const AT_ONCE: usize = 256;
/// Presences that could not be taken out are tried again after this time.
const DEPART_AGAIN_MS: u64 = 5_000;

/// An attachment or an interest that its gateway does not renew for this time, though alive, is not there: the detach was
/// lost, or the attach was carried out after the client had gone. Several times the gateways' interval.
const UNRENEWED_MS: u64 = 20_000;

/// What a session needs done now.
enum Due {
    Entry(SessionEntry),
    Save,
    Depart(ClientKey),
    /// What it was confirmed is to count for nothing before that is forgotten.
    Fence(Member),
}

/// When it looks again.
#[derive(Debug)]
pub(super) struct Timers {
    sessions_ms: u64,
    groups_ms: u64,
    shed_ms: u64,
}

impl Timers {
    pub(super) fn new(now: Now) -> Self {
        Self { sessions_ms: now.mono_ms + SESSIONS_MS, groups_ms: now.mono_ms + GROUPS_MS, shed_ms: now.mono_ms }
    }
}

/// Whether it is time, and if so the next time.
fn is_due(at_ms: &mut u64, now: Now, every_ms: u64) -> bool {
    let due = *at_ms <= now.mono_ms;
    if due {
        *at_ms = now.mono_ms + every_ms;
    }
    due
}

impl Reign {
    /// When [`Reigning::timers`] has something to look at, as long as nothing else happens: at every tick (0), or at this
    /// time. What waits for an entry or for the store is moved on by these.
    pub(super) fn due_ms(&self, state: &SlotState, is_calm: bool) -> Option<u64> {
        let Self { timers, groups: GroupsReign { held, interests, idle, .. }, sessions, .. } = self;
        let SessionsReign { displacing, confirmed, gone, heard, latest, .. } = sessions;
        if !(is_calm && held.is_empty() && displacing.is_empty()) {
            return Some(0);
        }
        let looks_at_sessions = !(interests.is_empty() && state.sessions().is_empty());
        let looks_at_groups = !(state.groups().is_empty() && idle.is_empty());
        let remembers = !(confirmed.is_empty() && gone.is_empty() && heard.is_empty() && latest.is_empty());
        let sessions_ms = looks_at_sessions.then_some(timers.sessions_ms);
        let groups_ms = (looks_at_groups || remembers).then_some(timers.groups_ms);
        sessions_ms.into_iter().chain(groups_ms).min()
    }
}

impl Reigning<'_> {
    pub(super) fn timers(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        if self.replica.serving() != Some(self.term) {
            return;
        }
        self.displacing_timers(now, out);
        self.answer_held(now, out);
        if self.memory != Level::Calm && is_due(&mut self.timers.shed_ms, now, SHED_MS) {
            self.shed();
        }
        if is_due(&mut self.timers.sessions_ms, now, SESSIONS_MS) {
            self.drop_interests(now);
            self.session_timers(now, out);
        }
        if is_due(&mut self.timers.groups_ms, now, GROUPS_MS) {
            self.group_timers(now);
            self.forget_gateways();
            let state = self.replica.state();
            self.sessions.heard.retain(|(id, client), _| {
                let client = state.and_then(|state| state.session(*id)?.client(*client));
                client.is_some_and(|client| client.stage == Stage::Attached)
            });
            let latest = std::mem::take(&mut self.sessions.latest);
            self.sessions.latest = latest.into_iter().filter(|(whose, latest)| self.is_there(*whose, latest)).collect();
        }
    }

    /// A gateway that is wrongly believed dead notices nothing of it, and one that is alive may have left while it waited for its
    /// registration: what counts is what it renews, unless its node has started anew.
    fn drop_interests(&mut self, now: Now) {
        let alive = self.alive;
        let is_over = |gateway: &Member, renewed_ms: u64| {
            let restarted = !alive.contains(gateway) && gateway.has_restarted(alive.iter());
            restarted || renewed_ms + UNRENEWED_MS <= now.mono_ms
        };
        self.groups.interests.retain(|_, gateways| {
            gateways.retain(|(gateway, renewed_ms)| !is_over(gateway, *renewed_ms));
            !gateways.is_empty()
        });
    }

    fn session_timers(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        let Some(state) = self.replica.state() else {
            return;
        };
        let due: Vec<(SessionId, Due)> = state
            .sessions()
            .iter()
            .filter(|(id, _)| !self.sessions.timers.contains(id))
            .filter_map(|(id, session)| self.due(now, *id, session).map(|due| (*id, due)))
            .take(AT_ONCE)
            .collect();
        for (session, due) in due {
            match due {
                Due::Entry(entry) => self.order_once(session, entry),
                Due::Fence(gateway) => {
                    let since_ms = self.confirmed_ms(&gateway);
                    out.push(SlotOutput::Fence { gateway, since_ms });
                }
                Due::Save => self.save(self.replica.applied(), session, None, out),
                Due::Depart(client) => {
                    self.sessions.departing.insert((session, client), now.mono_ms + DEPART_AGAIN_MS);
                    let known = self.state().and_then(|state| state.session(session)?.client(client));
                    let groups = known.map(|client| client.departing.clone().into_iter().collect()).unwrap_or_default();
                    out.push(SlotOutput::Depart { session, client, groups });
                }
            }
        }
    }

    fn due(&self, now: Now, id: SessionId, session: &Session) -> Option<Due> {
        let at_ms = now.wall_ms;
        if let Some(reason) = session.expired(at_ms).filter(|_| self.clock_trusted) {
            return Some(Due::Entry(SessionEntry::End { reason, at_ms }));
        }
        let of_clients = session.clients.iter().find_map(|(key, client)| self.client_due(now, (id, *key), client));
        if of_clients.is_some() {
            return of_clients;
        }
        if session.is_attached() && session.should_note(at_ms) {
            return Some(Due::Entry(SessionEntry::Used { at_ms }));
        }
        if session.is_unsaved() && !self.sessions.writes.contains(&id) && self.sessions.save_again_ms <= now.mono_ms {
            return Some(Due::Save);
        }
        // A session that is over has told its gateways: nobody delivers for it.
        let known = || session.clients.iter().filter(|_| session.ended.is_none());
        if let Some(due) = known().find_map(|(key, client)| self.forget_due(now, *key, client)) {
            return Some(due);
        }
        if !session.is_at_rest() {
            return None;
        }
        let unused_ms = at_ms.saturating_sub(session.record.last_used_ms);
        if id.is_ephemeral() {
            // No client has attached to it yet.
            let lapses = unused_ms >= self.settings.unclaimed_ms && self.clock_trusted;
            return lapses.then_some(Due::Entry(SessionEntry::End { reason: EndReason::Lapsed, at_ms }));
        }
        if unused_ms < self.settings.memory_ttl_ms {
            return None;
        }
        let delivering = known().find_map(|(_, client)| self.delivering(client));
        Some(delivering.map_or(Due::Entry(SessionEntry::Forget), |gateway| Due::Fence(gateway.clone())))
    }

    fn client_due(&self, now: Now, whose: (SessionId, ClientKey), client: &Client) -> Option<Due> {
        let (at_ms, key) = (now.wall_ms, whose.1);
        let heard_ms = self.sessions.heard.get(&whose).copied().unwrap_or(self.since_ms);
        let is_dead = |gateway| !self.alive.is_empty() && !self.alive.contains(gateway);
        let (gateway, attachment) = (&client.last.gateway, client.last.number);
        match client.stage {
            Stage::Attached if is_dead(gateway) || heard_ms + UNRENEWED_MS <= now.mono_ms => {
                let (grace_until_ms, gateway) = (at_ms + self.settings.resume_grace_ms, gateway.clone());
                let (client, closed) = (key, false);
                let entry = SessionEntry::Detach { client, gateway, attachment, at_ms, grace_until_ms, closed };
                return Some(Due::Entry(entry));
            }
            // That of the last client of an ephemeral one ends it, so not by a clock that is not trusted.
            Stage::Grace { until_ms } if until_ms <= at_ms && (self.clock_trusted || !whose.0.is_ephemeral()) => {
                return Some(Due::Entry(SessionEntry::GraceOver { client: key, attachment }));
            }
            Stage::Attached | Stage::Grace { .. } | Stage::Gone { .. } => {}
        }
        let departs = self.sessions.departing.get(&whose).is_none_or(|again_ms| *again_ms <= now.mono_ms);
        (!client.departing.is_empty() && departs).then_some(Due::Depart(key))
    }

    /// What is to be done to forget a client that is gone.
    fn forget_due(&self, now: Now, client: ClientKey, known: &Client) -> Option<Due> {
        let Stage::Gone { since_ms } = known.stage else { return None };
        if !known.has_departed() || now.wall_ms < since_ms.saturating_add(self.settings.memory_ttl_ms) {
            return None;
        }
        let attachment = known.last.number;
        match self.delivering(known) {
            None => Some(Due::Entry(SessionEntry::ForgetClient { client, attachment })),
            // One that is alive says by itself that it is closed, or the session is forgotten with it.
            Some(gateway) => (!self.alive.contains(gateway)).then(|| Due::Fence(gateway.clone())),
        }
    }

    fn group_timers(&mut self, now: Now) {
        let Some(state) = self.replica.state() else {
            return;
        };
        let at_ms = now.wall_ms;
        let overdue = state.groups().iter().filter(|(_, group)| self.clock_trusted && group.log.is_overdue(at_ms));
        let overdue: Vec<_> = overdue.map(|(name, _)| name.clone()).take(AT_ONCE).collect();
        let is_idle =
            |(name, group): &(&GroupName, &Arc<Group>)| group.is_empty() && !self.groups.interests.contains_key(*name);
        let since_ms = |name| self.groups.idle.get(name).copied().unwrap_or(now.mono_ms);
        let idle = state.groups().iter().filter(is_idle).map(|(name, _)| (name.clone(), since_ms(name)));
        self.groups.idle = idle.collect();
        if self.replica.applied() < self.groups.tidied {
            return;
        }
        let idle_ms = match self.memory {
            Level::Calm => self.settings.group_idle_ms,
            Level::Tight | Level::Full => self.settings.group_idle_tight_ms,
        };
        let over = |(name, since_ms): &(&GroupName, &u64)| {
            **since_ms + idle_ms <= now.mono_ms && !self.groups.forgetting.contains(*name)
        };
        let over: Vec<_> = self.groups.idle.iter().filter(over).map(|(name, _)| name.clone()).take(AT_ONCE).collect();
        for group in overdue {
            self.order_group(group, GroupEntry::Trim { at_ms, remove: false }, None);
        }
        for group in over {
            self.groups.forgetting.insert(group.clone());
            self.order_group(group, GroupEntry::Trim { at_ms, remove: true }, Some(GroupPending::Forget));
        }
        self.groups.tidied = self.replica.applied() + self.replica.uncommitted() as u64;
    }
}
