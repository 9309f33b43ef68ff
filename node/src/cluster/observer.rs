//! Between chitchat and the rest of the node: publishes what this node says of itself, and makes the view out of what
//! chitchat has heard. Death is shown only after two ticks of evidence in a row, life at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chitchat::{ChitchatHandle, ChitchatId, NodeState as Heard};
use tokio::sync::watch;

use super::{
    claims::{self, OwnState},
    gossip_settings::GossipSettings,
    seeds,
    view::{ClusterView, LinkView, NodeView, SharedView},
};
use crate::{
    clock,
    id::{Generation, Member, NodeId},
    metrics::{Limit, Metrics},
    peer::mesh::Mesh,
};

/// What changes all the time is published this often.
const GATHER_MS: u64 = 1_500;

/// A node counts as dead when for so long neither direction of the links to it is up and its heartbeat has not moved.
const LINK_DEAD_MS: u64 = 1_000;

/// Ticks of evidence in a row before a node is shown as dead.
const DEATH_TICKS: u32 = 2;

/// Ticks without judgement after a tick that came late: the fault may be this node's own.
const DOUBT_TICKS: u32 = 2;

/// A node has its link for so long after it was last alive: it may come back.
const LINK_KEPT_MS: u64 = 30_000;

/// A seed is spoken to so often although others are known, so that halves of a cluster find each other again.
const SEED_MS: u64 = 5_000;

pub(super) struct Observer {
    me: Member,
    mesh: Mesh,
    interval: Duration,
    groups_max_bytes: usize,
    own: Arc<Mutex<OwnState>>,
    view: watch::Sender<SharedView>,
    seeds: watch::Receiver<Vec<SocketAddr>>,
    metrics: Arc<Metrics>,
    known: BTreeMap<NodeId, Known>,
    published: BTreeMap<String, String>,
    peers: BTreeMap<NodeId, (Generation, SocketAddr)>,
    gathered_ms: u64,
    seeded_ms: u64,
    ticked_ms: u64,
    doubt: u32,
}

/// The newest start of a node.
struct Known {
    id: ChitchatId,
    version: u64,
    view: NodeView,
    heartbeat: u64,
    heartbeat_ms: u64,
    /// Since when neither direction is up.
    unlinked_ms: Option<u64>,
    death_ticks: u32,
    alive_ms: u64,
}

impl Observer {
    pub(super) fn new(
        me: Member,
        settings: &GossipSettings,
        mesh: Mesh,
        own: Arc<Mutex<OwnState>>,
        view: watch::Sender<SharedView>,
        seeds: watch::Receiver<Vec<SocketAddr>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            me,
            mesh,
            interval: settings.interval,
            groups_max_bytes: settings.groups_max_bytes,
            own,
            view,
            seeds,
            metrics,
            known: BTreeMap::new(),
            published: BTreeMap::new(),
            peers: BTreeMap::new(),
            gathered_ms: 0,
            seeded_ms: 0,
            ticked_ms: clock::mono_ms(),
            doubt: 0,
        }
    }

    /// Everything once.
    pub(super) async fn begin(&mut self, chitchat: &ChitchatHandle) {
        self.publish(chitchat, true).await;
        self.look(chitchat, false).await;
    }

    /// Every interval: publish what is due, judge who is alive.
    pub(super) async fn tick(&mut self, chitchat: &ChitchatHandle) {
        let now_ms = clock::mono_ms();
        let late_ms = self.interval.as_millis() as u64 * 3;
        if now_ms.saturating_sub(std::mem::replace(&mut self.ticked_ms, now_ms)) > late_ms {
            self.doubt = DOUBT_TICKS;
        }
        if now_ms.saturating_sub(self.gathered_ms) >= GATHER_MS {
            self.gathered_ms = now_ms;
            self.publish(chitchat, true).await;
        }
        self.look(chitchat, true).await;
        self.doubt = self.doubt.saturating_sub(1);
        self.speak_to_seeds(chitchat, now_ms);
    }

    /// What this node says of itself has changed.
    pub(super) async fn own_changed(&mut self, chitchat: &ChitchatHandle) {
        self.publish(chitchat, false).await;
        self.look(chitchat, false).await;
    }

    /// chitchat has heard something.
    pub(super) async fn heard(&mut self, chitchat: &ChitchatHandle) {
        self.look(chitchat, false).await;
    }

    async fn publish(&mut self, chitchat: &ChitchatHandle, gathered: bool) {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut values = claims::prompt(&own);
        if gathered {
            let links = self.mesh.links();
            values.extend(claims::gathered(&own, &links, self.groups_max_bytes, self.published.keys()));
        }
        let oversize = claims::drop_oversize(&mut values);
        if !oversize.is_empty() {
            tracing::error!(?oversize, "values that are too large are not gossiped");
        }
        values.retain(|key, value| self.published.get(key) != Some(value));
        if values.is_empty() {
            return;
        }
        if claims::has_cut_groups(&values) {
            self.metrics.limit_hit(Limit::GossipGroupsBytes);
        }
        let shared = chitchat.chitchat();
        let mut chitchat_state = shared.lock().await;
        for (key, value) in &values {
            chitchat_state.self_node_state().set(key, value);
        }
        drop(chitchat_state);
        let is_urgent = values.contains_key("state") || values.contains_key("map");
        self.published.extend(values);
        if is_urgent {
            // Not to wait for the next round.
            for known in self.known.values().filter(|known| known.view.alive && known.view.member != self.me) {
                let _ = chitchat.gossip(known.view.addr);
            }
        }
    }

    fn speak_to_seeds(&mut self, chitchat: &ChitchatHandle, now_ms: u64) {
        let seeds = self.seeds.borrow();
        if seeds.is_empty() {
            return;
        }
        if seeds::is_alone(&self.view.borrow()) {
            for seed in &*seeds {
                let _ = chitchat.gossip(*seed);
            }
        } else if now_ms.saturating_sub(self.seeded_ms) >= SEED_MS {
            self.seeded_ms = now_ms;
            let _ = chitchat.gossip(seeds[rand::random_range(0..seeds.len())]);
        }
    }

    /// Reads chitchat's state, judges, and shows and uses what has changed.
    async fn look(&mut self, chitchat: &ChitchatHandle, is_tick: bool) {
        let now_ms = clock::mono_ms();
        let links = self.mesh.links();
        let shared = chitchat.chitchat();
        let state = shared.lock().await;
        let live: BTreeSet<&ChitchatId> = state.live_nodes().collect();
        let newest = newest_starts(&self.me, state.node_states().values(), &live);
        let mut changed = self.known.len() != newest.len();
        self.known.retain(|node, _| newest.contains_key(node));
        for (member, heard) in newest.into_values() {
            let known = match self.known.entry(member.node.clone()) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    changed = true;
                    entry.insert(Known::new(&member, heard, now_ms))
                }
            };
            changed |= known.hear(&member, heard, now_ms);
            let is_live = member == self.me || live.contains(heard.chitchat_id());
            let link = links.get(&member.node).copied().unwrap_or_default();
            let judged = (is_tick && self.doubt == 0, member == self.me);
            changed |= known.judge(is_live, link, now_ms, judged);
        }
        drop(state);
        if changed {
            let nodes = self.known.iter().map(|(node, known)| (node.clone(), known.view.clone())).collect();
            let view = ClusterView { me: self.me.clone(), nodes };
            self.view.send_if_modified(|shown| {
                let differs = **shown != view;
                if differs {
                    *shown = Arc::new(view);
                }
                differs
            });
        }
        self.link_up(now_ms);
    }

    /// The mesh has links to whoever is alive, or was lately.
    fn link_up(&mut self, now_ms: u64) {
        let wanted = self.known.values().filter(|known| {
            known.view.member.node != self.me.node && now_ms.saturating_sub(known.alive_ms) < LINK_KEPT_MS
        });
        let peer = |known: &Known| (known.view.member.node.clone(), (known.view.member.generation, known.view.addr));
        let peers: BTreeMap<_, _> = wanted.map(peer).collect();
        if peers != self.peers {
            self.peers.clone_from(&peers);
            self.mesh.set_peers(peers);
        }
    }
}

/// Of each node the start with the highest generation; of this node only this very process.
fn newest_starts<'a>(
    me: &Member,
    heard: impl Iterator<Item = &'a Heard>,
    live: &BTreeSet<&ChitchatId>,
) -> BTreeMap<NodeId, (Member, &'a Heard)> {
    let mut newest: BTreeMap<NodeId, (Member, &Heard)> = BTreeMap::new();
    for heard in heard {
        let id = heard.chitchat_id();
        let Ok(node) = NodeId::parse(&id.node_id) else { continue };
        let member = Member { node, generation: id.generation_id };
        if member.node == me.node && member != *me {
            continue;
        }
        // One generation at two addresses can only be a mistake: then the one that lives.
        let rank = |heard: &Heard| (heard.chitchat_id().generation_id, live.contains(heard.chitchat_id()));
        let is_newer = newest.get(&member.node).is_none_or(|(_, other)| rank(other) < rank(heard));
        if is_newer {
            newest.insert(member.node.clone(), (member, heard));
        }
    }
    newest
}

impl Known {
    fn new(member: &Member, heard: &Heard, now_ms: u64) -> Self {
        Self {
            id: heard.chitchat_id().clone(),
            version: heard.max_version(),
            view: read(member, heard, false),
            heartbeat: heard.heartbeat().into(),
            heartbeat_ms: now_ms,
            unlinked_ms: None,
            death_ticks: 0,
            alive_ms: now_ms,
        }
    }

    /// Takes in what the node says; whether that differs from before.
    fn hear(&mut self, member: &Member, heard: &Heard, now_ms: u64) -> bool {
        if self.id != *heard.chitchat_id() {
            // Another start of the node: nothing of the last one counts.
            *self = Self::new(member, heard, now_ms);
            return true;
        }
        let heartbeat: u64 = heard.heartbeat().into();
        if heartbeat != self.heartbeat {
            self.heartbeat = heartbeat;
            self.heartbeat_ms = now_ms;
        }
        if heard.max_version() == self.version {
            return false;
        }
        self.version = heard.max_version();
        self.view = read(member, heard, self.view.alive);
        true
    }

    /// Decides whether the node is alive; whether that differs from before.
    fn judge(&mut self, is_live: bool, link: LinkView, now_ms: u64, (may_die, is_me): (bool, bool)) -> bool {
        self.unlinked_ms = if link.sends || link.hears { None } else { Some(self.unlinked_ms.unwrap_or(now_ms)) };
        let is_cut_off = self.unlinked_ms.is_some_and(|since_ms| now_ms - since_ms > LINK_DEAD_MS)
            && now_ms - self.heartbeat_ms > LINK_DEAD_MS;
        let was_alive = self.view.alive;
        if is_me || (is_live && !is_cut_off) {
            self.death_ticks = 0;
            self.view.alive = true;
            self.alive_ms = now_ms;
        } else if may_die {
            self.death_ticks += 1;
            if self.death_ticks >= DEATH_TICKS {
                self.view.alive = false;
            }
        }
        was_alive != self.view.alive
    }
}

fn read(member: &Member, heard: &Heard, alive: bool) -> NodeView {
    claims::read(member.clone(), heard.chitchat_id().gossip_advertise_addr, alive, heard.key_values())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: LinkView = LinkView { sends: true, hears: true, rtt_us: 0 };
    const HALF: LinkView = LinkView { sends: false, hears: true, rtt_us: 0 };
    const DOWN: LinkView = LinkView { sends: false, hears: false, rtt_us: 0 };

    /// Looks 200 ms apart: what chitchat says, the link, whether it may be judged dead; and what is shown then. The
    /// heartbeat never moves.
    fn check(looks: &[(bool, LinkView, bool, bool)]) {
        let heard = Heard::for_test();
        let member = Member { node: NodeId::parse("test-node").unwrap(), generation: 0 };
        let mut known = Known::new(&member, &heard, 0);
        for (number, (is_live, link, may_die, shown)) in looks.iter().enumerate() {
            let now_ms = number as u64 * 200;
            let was_alive = known.view.alive;
            assert!(!known.hear(&member, &heard, now_ms));
            let changed = known.judge(*is_live, *link, now_ms, (*may_die, false));
            assert_eq!(known.view.alive, *shown, "look {number}");
            assert_eq!(changed, was_alive != *shown, "look {number}");
        }
    }

    #[test]
    fn death_takes_two_ticks_of_evidence_and_life_one() {
        let (live, dead) = (true, false);
        check(&[(dead, UP, true, false), (live, DOWN, false, true), (dead, UP, true, true), (dead, UP, true, false)]);
        check(&[(live, UP, true, true), (dead, UP, true, true), (live, UP, true, true), (dead, UP, true, true)]);
        check(&[(live, UP, true, true), (dead, UP, false, true), (dead, UP, false, true), (dead, UP, true, true)]);
    }

    #[test]
    fn no_link_and_no_heartbeat_for_a_second_is_evidence() {
        let mut looks = vec![(true, DOWN, true, true); 7];
        looks.push((true, DOWN, true, false));
        looks.push((true, HALF, true, true));
        check(&looks);
        check(&[(true, HALF, true, true); 20]);
    }
}
