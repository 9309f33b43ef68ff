//! A member that lies: it has a certificate of the cluster's CA, speaks to all nodes, and says what is not so. The library's
//! tests (`node/src/node/tests.rs`) take its lies one by one; here they come beside each other, to real nodes under load.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use chitchat::{ChitchatId, Serializable};
use roost::{
    config::Config,
    id::{ClientKey, GroupName, Member, NodeId, SessionId, SlotId},
    logic::{
        lease::LeaseMessage,
        map::{ClusterMap, MapRequest, SlotAssignment},
        replication::ReplicationMessage,
        request::{Displaced, GroupRequest, Push, ReadGroup, SessionPush, SlotError, SlotRequest},
        slot::SlotSnapshot,
    },
    metrics::Metrics,
    peer::{
        Inbox,
        belongs::Belongs,
        mesh::{Mesh, MeshInputs},
        tls::ClusterCa,
    },
    tasks::Tasks,
    wire::peer::PeerFrame,
};
use uuid::Uuid;

use super::{
    rows::Rows,
    scene::{STAY, Scene},
    strangers::members,
};
use crate::{api, cluster::Cluster, network::HOME, ports::free_block, process::LIMIT, wait::wait_until};

/// The liar's name.
const NAME: &str = "n9";
/// One that never was.
const NOBODY: &str = "n0";
const NODES: usize = 3;
const FAR: u64 = 1 << 40;
/// Between two rounds of lies.
const BETWEEN: Duration = Duration::from_millis(200);
/// The slots that it lies about in one round.
const SLOTS_AT_ONCE: u16 = 16;
/// A version that the map does not reach by itself in this time.
const VERSIONS: u64 = 10_000;
/// chitchat's mark, version and the kind of a greeting.
const HEAD: [u8; 4] = [0x53, 0xb0, 0, 0];

/// Nobody is lost, no map is taken and nothing is carried out because a member says so.
pub(super) async fn lies(scene: &mut Scene<'_>) -> Result<()> {
    let before = known_members(scene).await?;
    let mut liar = Liar::join(scene).await?;
    let map = Rows::of(scene)?.cluster_map(scene).await?;
    scene.begin();
    let mut rounds = 0;
    let until_ms = roost::clock::mono_ms() + STAY.as_millis() as u64;
    while roost::clock::mono_ms() < until_ms {
        liar.gossips(&starts_and_heartbeats(&liar.victims, &map, rounds));
        liar.spreads_maps(&map, rounds);
        let slots = map.slots.len() as u16;
        for number in 0..SLOTS_AT_ONCE {
            // Some of these slots there are not.
            let slot = (rounds as u16 * SLOTS_AT_ONCE + number) % (slots + 2);
            liar.speaks_of(slot, map.slot(slot).unwrap_or(&map.slots[0]));
        }
        rounds += 1;
        tokio::time::sleep(BETWEEN).await;
    }
    scene.end();
    let after = known_members(scene).await?;
    ensure!(before == after, "the members were {before:?}, and are {after:?}");
    let version = scene.cluster.api(0).health().await?["map_version"].as_u64().context("a map has a version")?;
    ensure!(version < map.version + VERSIONS, "the map's version is {version}");
    let sent = liar.sent;
    ensure!(sent > 1_000, "only {sent} frames of the liar were sent");
    let answers = liar.ears.0.load(Ordering::Relaxed);
    scene.note(format!(
        "{rounds} rounds of gossip, {sent} frames, {answers} answers; the members stayed the same, the map went from version {} \
         to {version}",
        map.version
    ));
    liar.mesh.shut_down().await;
    // Then those whom only the liar has named are forgotten, and so is the liar.
    let api = scene.cluster.api(0);
    let is_missed = async || {
        let health = api.health().await;
        health.is_ok_and(|health| [NOBODY, NAME].iter().all(|name| api::reason(&health, name).is_some()))
    };
    wait_until("the liar and whom it has named to be missed", LIMIT, is_missed).await?;
    Ok(())
}

async fn known_members(scene: &Scene<'_>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for node in 0..NODES {
        all.push(members(&scene.cluster.api(node)).await?);
    }
    Ok(all)
}

/// Counts what it is sent.
#[derive(Default)]
struct Ears(AtomicU64);

#[async_trait]
impl Inbox for Ears {
    async fn receive(&self, _: &Member, _: PeerFrame) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    async fn peer_connected(&self, _: &Member) {}
    async fn peer_lost(&self, _: &Member) {}
}

struct Liar {
    member: Member,
    mesh: Mesh,
    ears: Arc<Ears>,
    /// All nodes, and where they listen.
    victims: Vec<(NodeId, SocketAddr)>,
    heartbeat: u64,
    sent: u64,
    cluster: String,
    _tasks: Tasks,
}

/// What a digest says of a node: its name, start, address and heartbeat.
type Said = (String, u64, SocketAddr, u64);

impl Liar {
    async fn join(scene: &Scene<'_>) -> Result<Self> {
        let servers = scene.cluster.servers()?;
        let rows = Rows::of(scene)?;
        let member = Member { node: name(NAME)?, generation: rows.first_start(scene, NAME).await? };
        let certs = servers.folder().join("certs");
        let pem = |name: &str| fs::read_to_string(certs.join(name));
        let identity = ClusterCa::from_pem(&pem("ca.pem")?, &pem("ca.key")?)?.identity(&member.node)?;
        let mut config = Config::default();
        (config.cluster.name, config.session.anonymous) = (servers.cluster().to_owned(), true);
        let (tasks, ears) = (Tasks::new(), Arc::new(Ears::default()));
        let (mesh, _, entrance) = Mesh::bind(MeshInputs {
            me: member.clone(),
            belongs: Belongs {
                cluster: servers.cluster().to_owned(),
                store_id: rows.store_id(scene).await?.to_string(),
                settings: config.shared_digest().json,
                keyring: String::new(),
            },
            identity: &identity,
            listen: (HOME, free_block(1)?).into(),
            settings: (&config).into(),
            metrics: Metrics::new(),
            tasks: tasks.clone(),
        })?;
        entrance.open(ears.clone());
        let map = rows.cluster_map(scene).await?;
        let victims: Vec<(NodeId, SocketAddr)> = (0..NODES)
            .map(|node| Ok((name(&Cluster::name(node))?, servers.peer_addresses(node).1)))
            .collect::<Result<_>>()?;
        let at = |(node, address): &(NodeId, SocketAddr)| (node.clone(), (map.members[node], *address));
        mesh.set_peers(victims.iter().map(at).collect());
        let cluster = servers.cluster().to_owned();
        let mut liar = Self { member, mesh, ears, victims, heartbeat: 1, sent: 0, cluster, _tasks: tasks };
        let linked = async || {
            liar.gossips(&[]);
            liar.mesh.links().values().filter(|link| link.sends && link.hears).count() == NODES
        };
        wait_until("links between the liar and all nodes", LIMIT, linked)
            .await
            .with_context(|| format!("what it was told: {:?}", liar.mesh.misfit().borrow().clone()))?;
        Ok(liar)
    }

    /// A digest of itself and of these, to everyone.
    fn gossips(&mut self, others: &[Said]) {
        self.heartbeat += 10;
        let at = self.mesh.local_addr();
        let own = (self.member.node.to_string(), self.member.generation, at, self.heartbeat);
        let mut bytes = at.serialize_to_vec();
        bytes.extend_from_slice(&HEAD);
        (others.len() as u16 + 1).serialize(&mut bytes);
        for (name, generation, address, heartbeat) in std::iter::once(&own).chain(others) {
            ChitchatId::new(name.clone(), *generation, *address).serialize(&mut bytes);
            for counter in [*heartbeat, 0, 1] {
                counter.serialize(&mut bytes);
            }
        }
        self.cluster.serialize(&mut bytes);
        for (_, address) in &self.victims {
            self.mesh.gossip_to(*address, bytes.clone().into());
        }
    }

    fn says(&mut self, slot: SlotId, frame: &PeerFrame) {
        for (node, _) in &self.victims {
            self.sent += u64::from(self.mesh.send(node, slot, frame).is_ok());
        }
    }

    /// Maps of its own, in which it has all slots.
    fn spreads_maps(&mut self, map: &ClusterMap, round: u64) {
        let versions = [map.version + 1 + round, 1 << 50, u64::MAX];
        for (version, slots) in
            versions.map(|version| (version, map.slots.len())).into_iter().chain([(1 << 50, 7), (1 << 50, 0)])
        {
            let mut mine = map.clone();
            mine.version = version;
            mine.slots.truncate(slots);
            for slot in &mut mine.slots {
                (slot.term, slot.primary, slot.in_sync) = (FAR, self.member.clone(), vec![self.member.clone()]);
            }
            self.says(0, &PeerFrame::Map(Arc::new(mine)));
        }
    }

    /// Appends, snapshots, acknowledgements, pushes, requests and leases, as if it led the slot or had a copy of it.
    fn speaks_of(&mut self, slot: SlotId, SlotAssignment { term, changed_at, in_sync, .. }: &SlotAssignment) {
        let sync = *changed_at;
        for term in [*term, *term + 1, FAR, u64::MAX] {
            let (commit, entries, part) = (u64::MAX, Vec::new(), SlotSnapshot::default());
            let (lineage, index, number, is_last) = (1, 1_000_000, 0, true);
            for message in [
                ReplicationMessage::Append { term, sync, reconcile: None, first: 1, commit, entries },
                ReplicationMessage::Piece { term, sync, lineage, index, number, is_last, part },
                ReplicationMessage::PieceAck { term, sync, index, count: u64::MAX },
                ReplicationMessage::Ack { term, sync, index: u64::MAX, gap: true },
            ] {
                self.says(slot, &PeerFrame::Replication { slot, message });
            }
            let session = SessionId(Uuid::from_u128(7));
            let push = Push::Session(
                session,
                SessionPush::Displace { client: ClientKey(7), why: Displaced::Elsewhere, attachment: u64::MAX },
            );
            self.says(slot, &PeerFrame::Push { slot, term, voters: FAR, push });
        }
        self.says(slot, &PeerFrame::Response { id: 1, voters: FAR, result: Err(SlotError::Busy) });
        for member in in_sync {
            let (gateway, round) = (member.clone(), FAR);
            for message in [
                LeaseMessage::Ack { sent_ms: FAR, number: FAR, map_version: FAR },
                LeaseMessage::Lapsed { gateway: gateway.clone(), round },
                LeaseMessage::Fence { gateway, round, map_version: 0 },
            ] {
                self.says(slot, &PeerFrame::Lease(message));
            }
            self.says(
                slot,
                &PeerFrame::MapRequests(vec![
                    MapRequest::Drop { slot, changed_at: *changed_at, member: member.clone() },
                    MapRequest::Promote { slot, changed_at: *changed_at, learner: member.clone() },
                ]),
            );
        }
        let Ok(group) = GroupName::parse("g") else { return };
        let request = SlotRequest::Group(group, GroupRequest::ReadGroup(ReadGroup));
        let id = self.sent;
        self.says(slot, &PeerFrame::Request { id, slot, term: FAR, sent_ms: 0, wait_ms: 10_000, request });
    }
}

/// Later starts of the others, starts at other addresses, nodes that never were, and heartbeats that will not be reached for
/// an hour.
fn starts_and_heartbeats(victims: &[(NodeId, SocketAddr)], map: &ClusterMap, round: u64) -> Vec<Said> {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut all = vec![(NOBODY.to_owned(), 7, nowhere, 1_000 + round)];
    for (node, address) in victims {
        let (name, start) = (node.to_string(), map.members[node]);
        all.push((name.clone(), FAR, *address, 1_000 + round));
        all.push((name.clone(), start, nowhere, 1_000 + round));
        all.push((name, start, *address, 15_000));
    }
    all
}

fn name(text: &str) -> Result<NodeId> {
    NodeId::parse(text).map_err(anyhow::Error::msg)
}
