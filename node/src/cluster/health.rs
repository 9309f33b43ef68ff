//! The cluster's health, from what this node holds already: the map and the gossip view. Pure, so that the answer comes
//! at once, with half of the nodes gone too; whether what it says is fresh is the gossip's business.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use utoipa::ToSchema;

use super::view::{ClusterView, LinkView, Load, NodeState, NodeView, StoreView};
use crate::{
    id::{Member, NodeId},
    logic::{map::ClusterMap, memory::Level},
};

/// A certificate with fewer days than this left makes the cluster yellow.
pub const CERTIFICATE_WARNING_DAYS: i64 = 14;

/// A node that lives and that no map names for longer makes the cluster yellow: a start and a take-over take less.
pub const OUTSIDE_WARNING_MS: u64 = 10_000;

/// The whole cluster in one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every slot has all its copies, every node is there.
    Green,
    /// Everything is served, with less in reserve than there should be.
    Yellow,
    /// Something is not served.
    Red,
}

/// What only this node knows of itself, and the settings that the judgement needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalFacts {
    /// How many nodes are to hold each slot.
    pub copies: u8,
    /// Until this node's certificate ends; negative when it has ended, nothing when not known.
    pub certificate_days_left: Option<i64>,
    /// What is wrong with the end of the certificate that clients are shown, if something is.
    pub http_certificate: Option<String>,
    /// An event loop as late as this makes the node not ready.
    pub lag_limit_ms: u64,
    /// None of the probes that the node sent itself through its peers came back of late.
    pub deaf: bool,
    /// How its clock compares with others.
    pub clock: ClockView,
    /// Whom it has refused lately.
    pub refused: Vec<RefusedNode>,
    /// The peers whose keyrings have other keys than its own.
    pub other_keys: BTreeSet<NodeId>,
    /// The living nodes that no map has named for [`OUTSIDE_WARNING_MS`], itself perhaps.
    pub outside: Vec<OutsideNode>,
}

/// A node that lives, and that the cluster map does not name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutsideNode {
    /// The start of it that lives.
    pub member: Member,
    /// For this number of seconds.
    pub for_s: u64,
    /// It was read in the store that this start was allotted.
    pub is_allotted: bool,
}

/// A node that wants to join and may not, as it does not belong to this cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct RefusedNode {
    /// As its certificate names it. It may be the name of a node that is there: then it is a second process of that name.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// For this number of seconds; who has not tried for half a minute is not named any more.
    pub for_s: u64,
    /// In words, as it was told itself.
    pub why: String,
}

/// How this node's wall clock compares with those that it hears.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClockView {
    /// It differs from most of them: nothing ends by it.
    pub distrusted: bool,
    /// What is added to the machine's clock, by the store's.
    pub correction_ms: i64,
    /// Those that differ by more than `timing.clock_skew_max_ms`, and by how many milliseconds this node's is ahead.
    pub differing: Vec<(String, i64)>,
}

/// The report.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct Health {
    /// The worst of the reasons.
    pub status: Status,
    /// Why it is not green, the worst first. Empty when green.
    pub reasons: Vec<String>,
    /// The node that reports.
    #[schema(value_type = String)]
    pub reported_by: NodeId,
    /// Every node of the map and every one heard of lately, by name.
    pub nodes: Vec<NodeHealth>,
    /// Who tried to join lately, and was refused by the node that reports.
    pub refused: Vec<RefusedNode>,
    /// The slots, counted.
    pub slots: SlotCounts,
    /// The version of the map that this was made from; 0 without one.
    pub map_version: u64,
}

/// One node in the report. What a dead node said last stands as it was.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct NodeHealth {
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Which start of it.
    pub generation: u64,
    /// Gossip hears of it.
    pub alive: bool,
    /// The map counts on this very start of it.
    pub member: bool,
    /// What it says of itself; nothing when it was never heard.
    pub state: Option<NodeState>,
    /// The version of its program.
    pub version: String,
    /// Its zone, where it names one.
    pub zone: String,
    /// Where its HTTP listens.
    pub http: String,
    /// The map that it knows.
    pub map_version: u64,
    /// How busy it is; `lag_ms` among it.
    pub load: Load,
    /// Its view of the store; nothing when it was never heard.
    pub store: Option<StoreView>,
    /// Its view of its links.
    pub links: Vec<LinkHealth>,
    /// The slots that it holds.
    pub slots: HeldSlots,
}

/// A link, as the node sees it that it is listed under.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct LinkHealth {
    /// To whom.
    #[schema(value_type = String)]
    pub peer: NodeId,
    /// It can send to the peer.
    pub sends: bool,
    /// It hears the peer.
    pub hears: bool,
    /// Round trip in microseconds; 0 where not known.
    pub rtt_us: u64,
}

/// How many slots a node holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, ToSchema)]
pub struct HeldSlots {
    /// As primary.
    pub primary: u32,
    /// As replica.
    pub replica: u32,
    /// As learner.
    pub learning: u32,
}

/// The slots of the cluster, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, ToSchema)]
pub struct SlotCounts {
    /// All.
    pub total: u32,
    /// Those with a live primary.
    pub primary: u32,
    /// Live replicas, over all slots.
    pub replica: u32,
    /// Those with a learner that is alive and catching up.
    pub learning: u32,
    /// Those with fewer live copies than configured.
    pub short: u32,
    /// Those without a live primary.
    pub unavailable: u32,
}

/// Judges the cluster.
pub fn report(map: Option<&ClusterMap>, view: &ClusterView, facts: &LocalFacts) -> Health {
    let mut findings = Findings::default();
    let census = map.map(|map| Census::of(map, view, facts.copies)).unwrap_or_default();
    match map {
        None => {
            findings.red("this node has no cluster map yet: it has not reached the store or another node".to_owned());
        }
        Some(map) => {
            judge_slots(&census, facts.copies, &mut findings);
            judge_members(map, view, &mut findings);
        }
    }
    judge_gone(map, view, &mut findings);
    judge_links(view, &mut findings);
    judge_store(view, &mut findings);
    judge_memory(view, &mut findings);
    judge_certificate(facts.certificate_days_left, &mut findings);
    facts.http_certificate.iter().for_each(|words| findings.yellow(words.clone()));
    judge_clock(&facts.clock, &mut findings);
    judge_strangers(facts, view, &mut findings);
    judge_outside(&facts.outside, &view.me, &mut findings);

    let status = findings.0.iter().map(|(status, _)| *status).max().unwrap_or(Status::Green);
    // Stable: within one colour the order of the judges stays.
    findings.0.sort_by_key(|(status, _)| std::cmp::Reverse(*status));
    Health {
        status,
        reasons: findings.0.into_iter().map(|(_, reason)| reason).collect(),
        reported_by: view.me.node.clone(),
        nodes: nodes(map, view, &census),
        refused: facts.refused.clone(),
        slots: census.counts,
        map_version: map.map_or(0, |map| map.version),
    }
}

/// Whether clients and balancers should be sent to this node, or why not.
pub fn ready(map: Option<&ClusterMap>, view: &ClusterView, facts: &LocalFacts) -> Result<(), String> {
    let me = view.nodes.get(&view.me.node);
    match me.map(|me| me.state) {
        None | Some(NodeState::Starting) => return Err("starting: this node has no slots to serve from yet".to_owned()),
        Some(NodeState::Draining) => return Err("draining: this node hands its slots and clients over".to_owned()),
        Some(NodeState::Serving) => {}
    }
    let Some(map) = map else {
        return Err("starting: this node has no cluster map yet".to_owned());
    };
    let others: Vec<&NodeId> = map.members.keys().filter(|node| **node != view.me.node).collect();
    let heard = |node: &&NodeId| {
        let alive = view.nodes.get(*node).is_some_and(|other| other.alive);
        // A link that is not listed yet is one that nothing is known against.
        alive && me.and_then(|me| me.links.get(*node)).is_none_or(|link| link.hears)
    };
    if !others.is_empty() && !others.iter().any(heard) {
        return Err(format!("isolated: none of {} is heard", names(others)));
    }
    if facts.deaf {
        return Err("isolated: none of the probes that this node sends itself through its peers comes back".to_owned());
    }
    let lag_ms = me.map_or(0, |me| me.load.lag_ms);
    if lag_ms >= facts.lag_limit_ms {
        return Err(format!("lagging: the event loop was {lag_ms} ms late, the limit is {} ms", facts.lag_limit_ms));
    }
    Ok(())
}

#[derive(Default)]
struct Findings(Vec<(Status, String)>);

impl Findings {
    fn yellow(&mut self, reason: String) {
        self.0.push((Status::Yellow, reason));
    }

    fn red(&mut self, reason: String) {
        self.0.push((Status::Red, reason));
    }
}

/// What one pass over the map's slots gives.
#[derive(Default)]
struct Census {
    counts: SlotCounts,
    held: BTreeMap<Member, HeldSlots>,
    /// How many slots lack their primary because this node is gone.
    lost_primaries: BTreeMap<NodeId, u32>,
    /// How many slots lack a copy because this node is gone.
    lost_copies: BTreeMap<NodeId, u32>,
}

impl Census {
    fn of(map: &ClusterMap, view: &ClusterView, copies: u8) -> Self {
        let mut census = Self::default();
        for slot in &map.slots {
            let counts = &mut census.counts;
            counts.total += 1;
            let live = slot.in_sync.iter().filter(|member| view.is_alive(member)).count() as u32;
            let primary_lives = view.is_alive(&slot.primary);
            if primary_lives {
                counts.primary += 1;
            } else {
                counts.unavailable += 1;
                *census.lost_primaries.entry(slot.primary.node.clone()).or_default() += 1;
            }
            counts.replica += live - u32::from(primary_lives && slot.is_in_sync(&slot.primary));
            if slot.learner.as_ref().is_some_and(|learner| view.is_alive(learner)) {
                counts.learning += 1;
            }
            if live < u32::from(copies) {
                counts.short += 1;
                for member in slot.in_sync.iter().filter(|member| !view.is_alive(member)) {
                    *census.lost_copies.entry(member.node.clone()).or_default() += 1;
                }
            }
            census.held.entry(slot.primary.clone()).or_default().primary += 1;
            for member in slot.in_sync.iter().filter(|member| **member != slot.primary) {
                census.held.entry(member.clone()).or_default().replica += 1;
            }
            if let Some(learner) = &slot.learner {
                census.held.entry(learner.clone()).or_default().learning += 1;
            }
        }
        census
    }
}

fn judge_slots(census: &Census, copies: u8, findings: &mut Findings) {
    let SlotCounts { total, short, unavailable, .. } = census.counts;
    if unavailable > 0 {
        findings.red(format!(
            "{unavailable} of {total} slots have no live primary ({}): publishes to their groups wait",
            tally(&census.lost_primaries, "with"),
        ));
    }
    if short > 0 {
        let cause = if census.lost_copies.is_empty() {
            "no more nodes hold them yet".to_owned()
        } else {
            tally(&census.lost_copies, "lost the one on")
        };
        findings.yellow(format!("{short} of {total} slots have fewer than {copies} live copies ({cause})"));
    }
}

fn judge_members(map: &ClusterMap, view: &ClusterView, findings: &mut Findings) {
    let mut alive = 0;
    for (node, generation) in &map.members {
        match view.nodes.get(node) {
            Some(seen) if seen.alive && seen.member.generation == *generation => alive += 1,
            Some(seen) if seen.alive => {
                // It is there, so this is no partition; its earlier start is what is missing.
                alive += 1;
                findings.yellow(format!(
                    "node {node} has restarted (generation {}), the map still counts on generation {generation}",
                    seen.member.generation
                ));
            }
            _ => findings.yellow(format!("node {node} is in the cluster map but is not heard")),
        }
    }
    let members = map.members.len();
    if alive * 2 < members {
        findings.red(format!(
            "this node hears only {alive} of the {members} nodes of the cluster map, itself included: the others are down, or it is cut off from them"
        ));
    }
}

/// Nodes that are not in the map and are silent, without having said that they leave: not there yet, or not any more.
fn judge_gone(map: Option<&ClusterMap>, view: &ClusterView, findings: &mut Findings) {
    for (node, seen) in &view.nodes {
        let in_map = map.is_some_and(|map| map.members.contains_key(node));
        if !in_map && !seen.alive && seen.state != NodeState::Draining {
            findings.yellow(match seen.state {
                NodeState::Starting => format!("node {node} is starting and is not heard yet"),
                _ => format!("node {node} was there lately and is not heard any more"),
            });
        }
    }
}

fn judge_links(view: &ClusterView, findings: &mut Findings) {
    // A node that is starting has no links yet.
    let up = |node: &NodeView| node.alive && node.state != NodeState::Starting;
    for (node, seen) in view.nodes.iter().filter(|(_, seen)| up(seen)) {
        let links: Vec<(&NodeId, &LinkView)> =
            seen.links.iter().filter(|(peer, _)| *peer != node && view.nodes.get(*peer).is_some_and(up)).collect();
        if !links.is_empty() && links.iter().all(|(_, link)| !link.hears) {
            findings.red(format!(
                "node {node} hears none of the other nodes ({})",
                names(links.into_iter().map(|(peer, _)| peer))
            ));
            continue;
        }
        for (peer, link) in links {
            if !link.hears {
                findings.yellow(format!("node {node} cannot hear node {peer}"));
            }
            if !link.sends {
                findings.yellow(format!("node {node} cannot send to node {peer}"));
            }
        }
    }
}

fn judge_store(view: &ClusterView, findings: &mut Findings) {
    // A node that is starting has not asked the store yet; it counts only where there is no other.
    let alive = || view.nodes.iter().filter(|(_, seen)| seen.alive);
    let settled: Vec<_> = alive().filter(|(_, seen)| seen.state != NodeState::Starting).collect();
    let asked = if settled.is_empty() { alive().collect() } else { settled };
    let with = |store: StoreView| asked.iter().filter(move |(_, seen)| seen.store == store).map(|(node, _)| *node);
    let down = with(StoreView::Down).count();
    if down > 0 && down == asked.len() {
        findings.red(
            "the store answers no node: no new sessions and no changes of the cluster map; everything else goes on"
                .to_owned(),
        );
    } else if down > 0 {
        findings.yellow(format!("the store does not answer {}", names(with(StoreView::Down))));
    }
    if with(StoreView::Slow).next().is_some() {
        findings.yellow(format!("the store is slow for {}", names(with(StoreView::Slow))));
    }
}

fn judge_memory(view: &ClusterView, findings: &mut Findings) {
    for (node, seen) in view.nodes.iter().filter(|(_, seen)| seen.alive) {
        let (held, budget) = (seen.load.memory_bytes, seen.load.memory_budget_bytes);
        let what = match Level::of(held, budget) {
            // A node that has not said yet what it may hold.
            _ if budget == 0 => continue,
            Level::Calm => continue,
            Level::Tight => "the oldest messages go in the slots that it holds",
            Level::Full => "new messages, groups and sessions are refused in the slots that it holds",
        };
        let (held_mb, budget_mb) = (held >> 20, budget >> 20);
        findings.yellow(format!(
            "node {node} holds {held_mb} of {budget_mb} MiB for clients (limits.memory_bytes): {what}"
        ));
    }
}

fn judge_certificate(days_left: Option<i64>, findings: &mut Findings) {
    match days_left {
        Some(days) if days < 0 => {
            findings.red("this node's certificate has ended: no new link to or from it is accepted; make a new one with `roost certs node`".to_owned());
        }
        Some(days) if days <= CERTIFICATE_WARNING_DAYS => {
            findings
                .yellow(format!("this node's certificate ends in {days} days: make a new one with `roost certs node`"));
        }
        _ => {}
    }
}

fn judge_clock(clock: &ClockView, findings: &mut Findings) {
    if clock.correction_ms != 0 {
        findings.yellow(format!(
            "this node's machine has a clock that is {} the store's, which is used instead: set it right",
            apart(clock.correction_ms.saturating_neg())
        ));
    }
    for (other, ahead_ms) in &clock.differing {
        findings.yellow(format!("this node's clock is {} that of {other}", apart(*ahead_ms)));
    }
    if clock.distrusted {
        findings.yellow(
            "this node's clock differs from most that it hears: no session and no message ends by it until that is mended"
                .to_owned(),
        );
    }
}

/// Nodes that may not join, and those that have and do not know all tokens.
fn judge_strangers(facts: &LocalFacts, view: &ClusterView, findings: &mut Findings) {
    for RefusedNode { node, for_s, why } in &facts.refused {
        findings.yellow(format!("node {node} wants to join and is refused, for {for_s} s now: {why}"));
    }
    let there = |node: &&NodeId| view.nodes.get(*node).is_some_and(|seen| seen.alive);
    let other: Vec<&NodeId> = facts.other_keys.iter().filter(there).collect();
    if !other.is_empty() {
        findings.yellow(format!(
            "the keyring of this node has other keys than that of {}: tokens of the one may be refused by the other. While keys \
             are changed that is so until every node has both; otherwise give all nodes the same file (auth.keyring)",
            names(other)
        ));
    }
}

/// Nodes that could hold slots, and are given none.
fn judge_outside(outside: &[OutsideNode], me: &Member, findings: &mut Findings) {
    for OutsideNode { member, for_s, is_allotted } in outside {
        let Member { node, generation } = member;
        let named =
            format!("no cluster map has named it for {for_s} s (generation {generation}), so it holds no slots");
        findings.yellow(if member == me {
            format!("this node is up, and {named}: unless the store is away or the others do not hear it, start it again")
        } else if *is_allotted {
            format!("node {node} is up, and {named}: unless the store is away or links are down, start it again")
        } else {
            format!(
                "node {node} is up, and {named}: this node has not read in the store that it was allotted that generation. Unless the \
                 store is away, start it again"
            )
        });
    }
}

/// `17 s ahead of`.
fn apart(ahead_ms: i64) -> String {
    let seconds = ahead_ms.unsigned_abs() / 1_000;
    format!("{seconds} s {}", if ahead_ms < 0 { "behind" } else { "ahead of" })
}

fn nodes(map: Option<&ClusterMap>, view: &ClusterView, census: &Census) -> Vec<NodeHealth> {
    let in_map = map.map(|map| &map.members);
    let all: BTreeSet<&NodeId> = view.nodes.keys().chain(in_map.into_iter().flat_map(BTreeMap::keys)).collect();
    all.into_iter()
        .map(|node| {
            let seen = view.nodes.get(node);
            let counted_on = in_map.and_then(|members| members.get(node)).copied();
            let generation = seen.map(|seen| seen.member.generation).or(counted_on).unwrap_or(0);
            let member = Member { node: node.clone(), generation };
            NodeHealth {
                node: node.clone(),
                generation,
                alive: seen.is_some_and(|seen| seen.alive),
                member: counted_on == Some(generation),
                state: seen.map(|seen| seen.state),
                version: seen.map(|seen| seen.version.clone()).unwrap_or_default(),
                zone: seen.map(|seen| seen.zone.clone()).unwrap_or_default(),
                http: seen.map(|seen| seen.http.clone()).unwrap_or_default(),
                map_version: seen.map_or(0, |seen| seen.map_version),
                load: seen.map(|seen| seen.load.clone()).unwrap_or_default(),
                store: seen.map(|seen| seen.store),
                links: seen.map(links).unwrap_or_default(),
                slots: census.held.get(&member).copied().unwrap_or_default(),
            }
        })
        .collect()
}

fn links(node: &NodeView) -> Vec<LinkHealth> {
    node.links
        .iter()
        .map(|(peer, link)| LinkHealth {
            peer: peer.clone(),
            sends: link.sends,
            hears: link.hears,
            rtt_us: link.rtt_us,
        })
        .collect()
}

fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    nodes.into_iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

/// `341 with n2, 12 with n3`.
fn tally(counts: &BTreeMap<NodeId, u32>, verb: &str) -> String {
    counts.iter().map(|(node, count)| format!("{count} {verb} {node}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
