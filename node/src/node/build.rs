//! Builds a node on its ground, each part when all that it needs is there. What it is made of is heard from then on; it acts
//! and serves clients when it is told to.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    belonging,
    control::Control,
    departures::Departures,
    dispatch::Dispatch,
    ground::Ground,
    hints::{Hints, HintsInputs, IdleHints},
    lateness::Lateness,
    pressure::Pressed,
    probe::Probes,
    report::Report,
    spread::{Spread, tell_peers},
};
use crate::{
    cluster::{
        gossip::Gossip,
        maps::MapCell,
        steward::{self, IdleSteward, Steward, StewardInputs},
    },
    config::Config,
    deliveries::{self, Arrivals},
    gateway::{
        self, Gateway,
        ask::Ask,
        client::{allowances::Allowances, attachments::Attachments, connections::Connections, replays::Replays},
        door::{admission::Admission, listener::Door},
        http::api::Api,
        hub::Hub,
        service::Service,
    },
    id::Member,
    lease,
    logic::{map::MapRequest, primary::SlotSettings, session::Room},
    memory::Ledger,
    peer::mesh::Mesh,
    permit::Permit,
    router::Router,
    slots::{Slots, SlotsInputs},
    tasks::Tasks,
};

/// An empty group is not forgotten sooner than this, whatever the sessions' memory is set to: a client whose node died is to
/// find it again.
const GROUP_IDLE_MIN_MS: u64 = 60_000;
/// Nor is an ephemeral session over sooner that waits for its client.
const UNCLAIMED_MIN_MS: u64 = 60_000;
/// Batches of what slots ask of the steward; past it they are dropped, and asked again.
const MAP_REQUESTS: usize = 4_096;

/// Gateways that slots want fenced; past it they are dropped, and asked again.
const FENCES: usize = 1_024;

/// Sessions whose presences are to be taken out of groups; past it they are dropped, and asked again.
const DEPARTURES: usize = 4_096;

/// What a node needs while it runs.
pub(super) struct Running {
    pub(super) me: Member,
    pub(super) http: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) tasks: Tasks,
    pub(super) mesh: Mesh,
    pub(super) gossip: Gossip,
    pub(super) maps: MapCell,
    pub(super) steward: Steward,
    pub(super) gateway: Arc<Gateway>,
    pub(super) door: Door,
    pub(super) drain: CancellationToken,
}

/// A node that hears the others and does nothing by itself yet.
pub(super) struct Built {
    pub(super) running: Running,
    config: Arc<Config>,
    idle_steward: IdleSteward,
    idle_hints: IdleHints,
    map_requests: mpsc::Receiver<Vec<MapRequest>>,
    spread: Spread,
    pressed: Pressed,
    report: Report,
    waiting: watch::Sender<String>,
    api: Api,
}

impl Built {
    /// All parts, in the order of what needs what; then the mesh's entrance opens.
    pub(super) fn on(ground: Ground) -> Self {
        let (ask_steward, map_requests) = mpsc::channel(MAP_REQUESTS);
        let (steward, idle_steward) = Steward::new(steward_inputs(&ground));
        let Ground { config, keyring, store, me, mesh, gossip, maps, tasks, metrics, .. } = &ground;
        let (deliveries, Arrivals { shards, sessions }) =
            deliveries::queues(Hub::shards(), metrics.hub.ephemeral.clone());
        let ledger = Ledger::of(&config.limits);
        let (departures, departing) = mpsc::channel(DEPARTURES);
        let (fences, fenced) = mpsc::channel(FENCES);
        let permit = Permit::none();
        let slots = Slots::start(SlotsInputs {
            me: me.clone(),
            settings: slot_settings(config),
            slots: config.cluster.slots,
            mesh: mesh.clone(),
            store: store.clone(),
            deliveries: deliveries.clone(),
            steward: ask_steward,
            departures,
            fences,
            permit: permit.clone(),
            ledger: ledger.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
        });
        let router = Router::new(me.clone(), maps.subscribe(), mesh.clone(), slots.clone());
        let departures = Departures {
            router: router.clone(),
            slots: slots.clone(),
            count: config.cluster.slots,
            tasks: tasks.clone(),
        };
        tasks.spawn("departures", departures.run(departing));
        let ask = Ask::new(Arc::new(router.clone()), maps.subscribe(), config, metrics.clone());
        let service = Service::new(ask.clone(), config.clone(), store.clone(), ledger.clone(), metrics.clone());
        let hub = Hub::start(
            ask.clone(),
            shards,
            maps.subscribe(),
            gossip.view(),
            config.clone(),
            metrics.hub.clone(),
            tasks.clone(),
        );
        let lease =
            lease::start(me.clone(), mesh.clone(), maps.subscribe(), (slots.clone(), fenced), permit.clone(), tasks);
        let attachments = Attachments::start(ask, hub.clone(), (sessions, permit.episodes()), tasks);
        let gateway = gateway_of(&ground, service.clone(), hub, attachments.clone(), permit.clone());
        let (probes, drain) = (Arc::new(Probes::new(me.clone())), CancellationToken::new());
        let control = Arc::new(control_of(&ground, (&router, &slots), &steward, attachments, (&probes, &drain)));
        let api = Api {
            service,
            config: config.clone(),
            keyring: keyring.clone(),
            maps: maps.subscribe(),
            view: gossip.view(),
            metrics: metrics.clone(),
            control: control.clone(),
        };
        let (hints, idle_hints) = Hints::new(hints_inputs(&ground, &steward, permit.clone()));
        let dispatch = Dispatch {
            mesh: mesh.clone(),
            maps: maps.clone(),
            steward: steward.clone(),
            hints,
            slots: slots.clone(),
            router,
            deliveries,
            probes,
            control: control.clone(),
            lateness: Lateness::default(),
            lease,
            permit: permit.clone(),
        };
        let spread = Spread {
            me: me.clone(),
            mesh: mesh.clone(),
            gossip: gossip.clone(),
            maps: maps.clone(),
            steward: steward.clone(),
            slots: slots.clone(),
            metrics: metrics.clone(),
        };
        let pressed = pressed_of(&ground, ledger.clone());
        let report = Report {
            ledger,
            gossip: gossip.clone(),
            steward: steward.clone(),
            slots,
            gateway: gateway.clone(),
            control,
            metrics: metrics.clone(),
        };
        let Ground { config, me, door, waiting, http, advertise, mesh, gossip, maps, entrance, tasks, .. } = ground;
        entrance.open(Arc::new(dispatch));
        let running = Running { me, http, peer: advertise, tasks, mesh, gossip, maps, steward, gateway, door, drain };
        Self { running, config, idle_steward, idle_hints, map_requests, spread, pressed, report, waiting, api }
    }

    /// Why this node may not join those that it hears, if so.
    pub(super) async fn look_around(&self) -> Result<(), String> {
        self.waiting.send_replace("looking for the other nodes (cluster.seeds)".to_owned());
        belonging::look_around(&self.config, &self.running.gossip, self.running.mesh.misfit()).await
    }

    /// The node takes part in the cluster, and serves clients.
    pub(super) fn serve(self) -> Running {
        let Self { running, idle_steward, idle_hints, map_requests, spread, pressed, report, api, .. } = self;
        let (tasks, gateway) = (&running.tasks, &running.gateway);
        idle_steward.start();
        idle_hints.start(tasks);
        running.door.serve(gateway::routes(gateway.clone(), api));
        tasks.spawn("silent connections", gateway.clone().look_after_silent());
        spread.start(map_requests, tasks);
        tasks.spawn("memory", pressed.run());
        report.start(tasks);
        running
    }
}

fn control_of(
    ground: &Ground,
    (router, slots): (&Router, &Slots),
    steward: &Steward,
    attachments: Attachments,
    (probes, drain): (&Arc<Probes>, &CancellationToken),
) -> Control {
    Control {
        me: ground.me.clone(),
        copies: ground.config.cluster.copies,
        http_certificate: ground.certificate.clone(),
        certificate_expires_ms: ground.mesh.certificate_expires_ms(),
        mesh: ground.mesh.clone(),
        router: router.clone(),
        slots: slots.clone(),
        steward: steward.clone(),
        attachments,
        view: ground.gossip.view(),
        pictures: ground.gossip.pictures(),
        probes: probes.clone(),
        clocks: ground.clocks.clone(),
        deaf: AtomicBool::new(false),
        drain: drain.clone(),
        tasks: ground.tasks.clone(),
    }
}

fn hints_inputs(ground: &Ground, steward: &Steward, permit: Arc<Permit>) -> HintsInputs {
    HintsInputs {
        mesh: ground.mesh.clone(),
        maps: ground.maps.clone(),
        store: ground.store.clone(),
        store_view: steward.store_view(),
        pictures: ground.gossip.pictures(),
        permit,
    }
}

fn steward_inputs(ground: &Ground) -> StewardInputs {
    StewardInputs {
        me: ground.me.clone(),
        store: ground.store.clone(),
        pictures: ground.gossip.pictures(),
        map: ground.maps.clone(),
        settings: steward::settings_of(&ground.config),
        on_change: tell_peers(&ground.mesh, &ground.gossip),
        clocks: ground.clocks.clone(),
        tasks: ground.tasks.clone(),
    }
}

fn pressed_of(ground: &Ground, ledger: Arc<Ledger>) -> Pressed {
    Pressed { ledger, mesh: ground.mesh.clone(), view: ground.gossip.view(), metrics: ground.metrics.clone() }
}

fn gateway_of(
    ground: &Ground,
    service: Service,
    hub: Hub,
    attachments: Attachments,
    permit: Arc<Permit>,
) -> Arc<Gateway> {
    Arc::new(Gateway {
        node: ground.me.node.clone(),
        config: ground.config.clone(),
        ledger: service.ledger().clone(),
        service,
        hub,
        attachments,
        keyring: ground.keyring.clone(),
        jwts: ground.jwts.clone(),
        metrics: ground.metrics.clone(),
        tasks: ground.tasks.clone(),
        admission: Admission::new(&ground.config.limits, ground.files.clone()),
        allowances: Allowances::new(&ground.config.limits, ground.metrics.clone()),
        replays: Replays::new(&ground.config.limits, ground.metrics.clone()),
        connections: Connections::under(permit),
    })
}

fn slot_settings(config: &Config) -> SlotSettings {
    SlotSettings {
        replica_timeout_ms: config.timing.replica_timeout_ms,
        resume_grace_ms: config.session.resume_grace_s * 1_000,
        memory_ttl_ms: config.session.memory_ttl_s * 1_000,
        unclaimed_ms: (config.session.memory_ttl_s * 1_000).max(UNCLAIMED_MIN_MS),
        group_idle_ms: (config.session.memory_ttl_s * 1_000).max(GROUP_IDLE_MIN_MS),
        group_idle_tight_ms: GROUP_IDLE_MIN_MS,
        queue: config.limits.slot_queue,
        groups_per_session: config.limits.groups_per_session,
        room: Room { clients_max: config.session.clients_max, when_full: config.session.when_full },
    }
}
