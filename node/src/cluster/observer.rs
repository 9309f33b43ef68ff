//! Between chitchat and the rest of the node: publishes what this node says of itself, shows the judge of liveness
//! ([`Liveness`]) what there is of each node, and makes the view out of what chitchat has heard and the judge says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use chitchat::{ChitchatHandle, ChitchatId, NodeState as Heard};
use tokio::sync::watch;

use super::{
    claims::{self, OwnState},
    gossip::Stored,
    gossip_settings::GossipSettings,
    seeds,
    spoken::Spoken,
    view::{ClusterView, NodeState, NodeView, SharedView},
};
use crate::{
    clock,
    id::{Generation, Member, NodeId},
    logic::liveness::{Liveness, LivenessInput, LivenessOutput, SharedPicture, Sign},
    metrics::{Limit, Metrics},
    peer::mesh::Mesh,
};

/// What changes all the time is published this often.
const GATHER_MS: u64 = 1_500;

/// A node keeps its link for this time after it was last alive: it may come back. One that has never served is shown for as long:
/// whoever is named by hearsay alone may not be there at all.
const LINK_KEPT_MS: u64 = 30_000;

/// A seed is spoken to once in this time although others are known, so that halves of a cluster find each other again.
const SEED_MS: u64 = 5_000;

pub(super) struct Observer {
    me: Member,
    mesh: Mesh,
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
    liveness: Liveness,
    pictures: watch::Sender<SharedPicture>,
    alive: watch::Sender<Arc<BTreeSet<Member>>>,
    stored: Stored,
    spoken: Arc<Spoken>,
}

/// The start of a node that is shown: the one that counts, where that is heard of.
struct Known {
    id: ChitchatId,
    version: u64,
    view: NodeView,
    alive_ms: u64,
    is_shown: bool,
}

/// What an observer tells the rest of the node, and what it is told.
pub(super) struct Ends {
    pub(super) view: watch::Sender<SharedView>,
    pub(super) pictures: watch::Sender<SharedPicture>,
    pub(super) alive: watch::Sender<Arc<BTreeSet<Member>>>,
    pub(super) seeds: watch::Receiver<Vec<SocketAddr>>,
    pub(super) stored: Stored,
    pub(super) spoken: Arc<Spoken>,
}

impl Observer {
    pub(super) fn new(
        me: Member,
        settings: &GossipSettings,
        mesh: Mesh,
        own: Arc<Mutex<OwnState>>,
        mut ends: Ends,
        metrics: Arc<Metrics>,
    ) -> Self {
        ends.stored.maps.mark_changed();
        ends.stored.generations.mark_changed();
        Self {
            liveness: Liveness::new(me.clone(), settings.liveness, clock::now()),
            me,
            mesh,
            groups_max_bytes: settings.groups_max_bytes,
            own,
            view: ends.view,
            seeds: ends.seeds,
            metrics,
            known: BTreeMap::new(),
            published: BTreeMap::new(),
            peers: BTreeMap::new(),
            gathered_ms: 0,
            seeded_ms: 0,
            pictures: ends.pictures,
            alive: ends.alive,
            stored: ends.stored,
            spoken: ends.spoken,
        }
    }

    /// Everything once.
    pub(super) async fn begin(&mut self, chitchat: &ChitchatHandle) {
        self.publish(chitchat, true).await;
        self.show(chitchat, LivenessInput::Glance).await;
    }

    /// Every interval of gossip: publishes what is due.
    pub(super) async fn tick(&mut self, chitchat: &ChitchatHandle) {
        let now_ms = clock::mono_ms();
        if now_ms.saturating_sub(self.gathered_ms) >= GATHER_MS {
            self.gathered_ms = now_ms;
            self.publish(chitchat, true).await;
        }
        self.show(chitchat, LivenessInput::Glance).await;
        self.speak_to_seeds(chitchat, now_ms);
    }

    /// Every interval of looks: who is there?
    pub(super) async fn look(&mut self, chitchat: &ChitchatHandle) {
        self.show(chitchat, LivenessInput::Look).await;
    }

    /// What this node says of itself has changed.
    pub(super) async fn own_changed(&mut self, chitchat: &ChitchatHandle) {
        self.publish(chitchat, false).await;
        self.show(chitchat, LivenessInput::Glance).await;
    }

    /// chitchat has heard something.
    pub(super) async fn heard(&mut self, chitchat: &ChitchatHandle) {
        self.show(chitchat, LivenessInput::Glance).await;
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

    /// Reads chitchat's state, has it judged, and shows and uses what has changed.
    async fn show(&mut self, chitchat: &ChitchatHandle, input: impl FnOnce(Vec<Sign>) -> LivenessInput) {
        let mut changed = false;
        // What counts is known before it is looked at what there is of it.
        if self.stored.maps.has_changed().unwrap_or(false) {
            let map = self.stored.maps.borrow_and_update().clone();
            map.into_iter().for_each(|map| self.judge(LivenessInput::Map(map)));
        }
        if self.stored.generations.has_changed().unwrap_or(false) {
            let generations = self.stored.generations.borrow_and_update().clone();
            self.judge(LivenessInput::Generations(generations));
        }
        let signs = self.read(chitchat, &mut changed).await;
        self.judge(input(signs));
        let now_ms = clock::mono_ms();
        let picture = self.liveness.shown();
        for known in self.known.values_mut() {
            let alive = picture.is_alive(&known.view.member);
            changed |= std::mem::replace(&mut known.view.alive, alive) != alive;
            if alive {
                known.alive_ms = now_ms;
            }
            let is_shown = known.is_to_show(now_ms);
            changed |= std::mem::replace(&mut known.is_shown, is_shown) != is_shown;
        }
        if changed {
            self.tell();
        }
        self.link_up(now_ms);
    }

    /// What there is of each node; whether they say something new.
    async fn read(&mut self, chitchat: &ChitchatHandle, changed: &mut bool) -> Vec<Sign> {
        let (links, answers) = (self.mesh.links(), self.mesh.answers());
        let now_ms = clock::mono_ms();
        let shared = chitchat.chitchat();
        let state = shared.lock().await;
        let live: BTreeSet<&ChitchatId> = state.live_nodes().collect();
        let starts = starts(&self.me, state.node_states().values(), (&live, &self.spoken));
        *changed |= self.known.len() != starts.len();
        self.known.retain(|node, _| starts.contains_key(node));
        let mut signs = Vec::new();
        for (node, starts) in starts {
            let counts = self.liveness.proven(&node).filter(|counts| starts.contains_key(counts));
            let Some(shown) = counts.or_else(|| starts.keys().next_back().copied()) else { continue };
            let link = links.get(&node).copied().unwrap_or_default();
            for (generation, heard) in starts {
                let member = Member { node: node.clone(), generation };
                let said = self.spoken.of(&member);
                let heartbeat = u64::from(heard.heartbeat());
                let sign = |says| Sign {
                    says,
                    // It moves where either does.
                    heartbeat: heartbeat.wrapping_add(said.map_or(0, |said| said.heartbeat)),
                    live: live.contains(heard.chitchat_id()) || said.is_some_and(|said| said.speaks(now_ms)),
                    linked: link.sends || link.hears,
                    answers: answers.get(&node).copied(),
                    member: member.clone(),
                };
                if generation != shown {
                    signs.push(sign(read(&member, heard, false).says()));
                    continue;
                }
                let known = match self.known.entry(node.clone()) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        *changed = true;
                        entry.insert(Known::new(&member, heard, now_ms))
                    }
                };
                *changed |= known.hear(&member, heard, now_ms);
                signs.push(sign(known.view.says()));
            }
        }
        signs
    }

    fn judge(&mut self, input: LivenessInput) {
        let mut out = Vec::new();
        self.liveness.handle(clock::now(), input, &mut out);
        for output in out {
            match output {
                LivenessOutput::Picture(picture) => {
                    self.pictures.send_replace(picture);
                }
                LivenessOutput::StoodStill(still_ms) => {
                    tracing::warn!(still_ms, "this node stood still: what it sees is not trusted for a while");
                }
                LivenessOutput::Alive(alive) => {
                    self.alive.send_replace(alive);
                }
            }
        }
    }

    fn tell(&self) {
        let shown = self.known.iter().filter(|(_, known)| known.is_shown);
        let nodes = shown.map(|(node, known)| (node.clone(), known.view.clone())).collect();
        let view = ClusterView { me: self.me.clone(), nodes };
        self.view.send_if_modified(|shown| {
            let differs = **shown != view;
            if differs {
                *shown = Arc::new(view);
            }
            differs
        });
    }

    /// The mesh has links to whoever is alive, or was lately.
    fn link_up(&mut self, now_ms: u64) {
        let wanted = self
            .known
            .values()
            .filter(|known| known.view.member.node != self.me.node && known.was_alive_lately(now_ms));
        let peer = |known: &Known| (known.view.member.node.clone(), (known.view.member.generation, known.view.addr));
        let peers: BTreeMap<_, _> = wanted.map(peer).collect();
        if peers != self.peers {
            self.peers.clone_from(&peers);
            self.mesh.set_peers(peers);
        }
    }
}

/// The starts of each node that gossip tells of; of this node only this very process. One generation at two addresses: the
/// one that the node itself has named, then one that lives.
fn starts<'a>(
    me: &Member,
    heard: impl Iterator<Item = &'a Heard>,
    (live, spoken): (&BTreeSet<&ChitchatId>, &Spoken),
) -> BTreeMap<NodeId, BTreeMap<Generation, &'a Heard>> {
    let mut starts: BTreeMap<NodeId, BTreeMap<Generation, &Heard>> = BTreeMap::new();
    for heard in heard {
        let id = heard.chitchat_id();
        let Ok(node) = NodeId::parse(&id.node_id) else { continue };
        let member = Member { node, generation: id.generation_id };
        if member.node == me.node && member != *me {
            continue;
        }
        let said = spoken.of(&member);
        let rank = |heard: &Heard| {
            let id = heard.chitchat_id();
            (said.is_some_and(|said| said.addr == id.gossip_advertise_addr), live.contains(id))
        };
        let of_node = starts.entry(member.node).or_default();
        if of_node.get(&member.generation).is_none_or(|other| rank(other) < rank(heard)) {
            of_node.insert(member.generation, heard);
        }
    }
    starts
}

impl Known {
    fn new(member: &Member, heard: &Heard, now_ms: u64) -> Self {
        Self {
            id: heard.chitchat_id().clone(),
            version: heard.max_version(),
            view: read(member, heard, false),
            alive_ms: now_ms,
            is_shown: true,
        }
    }

    fn was_alive_lately(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.alive_ms) < LINK_KEPT_MS
    }

    fn is_to_show(&self, now_ms: u64) -> bool {
        self.view.state != NodeState::Starting || self.was_alive_lately(now_ms)
    }

    /// Takes in what the node says; whether that differs from before.
    fn hear(&mut self, member: &Member, heard: &Heard, now_ms: u64) -> bool {
        if self.id != *heard.chitchat_id() {
            // Another start of the node: nothing of the last one counts.
            *self = Self::new(member, heard, now_ms);
            return true;
        }
        if heard.max_version() == self.version {
            return false;
        }
        self.version = heard.max_version();
        self.view = read(member, heard, self.view.alive);
        true
    }
}

fn read(member: &Member, heard: &Heard, alive: bool) -> NodeView {
    claims::read(member.clone(), heard.chitchat_id().gossip_advertise_addr, alive, heard.key_values())
}
