//! What came out of a scenario: for people, and as JSON.

use std::{fmt, sync::atomic::Ordering::Relaxed};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    plan::{Plan, Scenario},
    scenario::{Look, Ready, Target},
    tally::Tally,
};

/// One scenario's figures. What was not measured is not there.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the server is called.
    pub server: &'static str,
    /// Nodes that clients connected to.
    pub nodes: usize,
    /// Processes whose use was measured.
    pub pids: Vec<u32>,
    /// Whether a server published, and not members of the groups.
    pub backend: bool,
    /// What was to be done.
    pub plan: Plan,
    /// How long it was measured.
    pub seconds: f64,
    /// Publishes answered in that time.
    pub answered: u64,
    /// Messages that arrived in that time.
    pub deliveries: u64,
    /// Bytes of text of the frame that a message came in.
    pub frame_bytes: f64,
    /// Clients that got in, or back.
    pub clients: u64,
    /// Processor time of the server for each delivery, or for each client that got in or back, in microseconds: the same
    /// number is CPU-seconds per million.
    pub cpu_us_each: Option<f64>,
    /// Processors that the server kept busy.
    pub cores: Option<f64>,
    /// The same before the clients came, of the scenario `idle`.
    pub cores_empty: Option<f64>,
    /// Processors that the clients kept busy, all of this process. Near the machine's, and the clients were the limit.
    pub cores_clients: f64,
    /// Memory of the server for each connection, in bytes, of the scenario `idle`.
    pub memory_each: Option<f64>,
    /// From when a message is due to its delivery; of clients, until they are in or have what they missed.
    pub latency: Times,
    /// From when a message is due to its answer.
    pub answer: Times,
    /// What went wrong.
    pub faults: Faults,
}

/// What went wrong, of the whole run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Faults {
    /// Deliveries that are not there.
    pub missing: u64,
    /// Deliveries that came again.
    pub repeats: u64,
    /// Deliveries that came after a later one.
    pub disorder: u64,
    /// Losses that the server announced, and clients that lost their connection or did not get in.
    pub holes: u64,
    /// Publishes that were refused.
    pub refused: u64,
    /// Publishes that were neither taken nor refused.
    pub unanswered: u64,
    /// How long after the end something still came.
    pub late_s: f64,
    /// The first of these as text.
    pub words: Vec<String>,
}

/// Times in microseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Times {
    /// How many were taken.
    pub count: u64,
    /// Half are at most this.
    pub p50_us: u64,
    /// 99 of 100 are at most this.
    pub p99_us: u64,
    /// 999 of 1,000 are at most this.
    pub p999_us: u64,
    /// All are at most this.
    pub max_us: u64,
    /// For a plot: shares of all, and what these are at most.
    pub curve: Vec<(f64, u64)>,
}

impl Times {
    fn of(histogram: &Histogram<u64>) -> Self {
        const SHARES: [f64; 12] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |share: f64| histogram.value_at_quantile(share);
        Self {
            count: histogram.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max(),
            curve: SHARES.map(|share| (share, at(share))).to_vec(),
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1_000.0;
        let Self { p50_us, p99_us, p999_us, max_us, .. } = self;
        write!(
            f,
            "p50 {:.2} ms  p99 {:.2} ms  p99.9 {:.2} ms  max {:.2} ms",
            ms(*p50_us),
            ms(*p99_us),
            ms(*p999_us),
            ms(*max_us)
        )
    }
}

impl Report {
    pub(crate) fn new(ready: &Ready, target: &Target, plan: Plan) -> Self {
        Self {
            server: target.dialect.name(),
            nodes: target.urls.len(),
            pids: ready.processes.pids().to_vec(),
            backend: ready.backend.is_some(),
            plan,
            seconds: 0.0,
            answered: 0,
            deliveries: 0,
            frame_bytes: 0.0,
            clients: 0,
            cpu_us_each: None,
            cores: None,
            cores_empty: None,
            cores_clients: 0.0,
            memory_each: None,
            latency: Times::default(),
            answer: Times::default(),
            faults: Faults::default(),
        }
    }

    /// What was used between two looks, for this number of deliveries or clients.
    pub(crate) fn spent(&mut self, begin: Look, end: Look, count: u64) {
        self.seconds = (end.at_us - begin.at_us) as f64 / 1e6;
        self.cores = end.cores_since(begin);
        self.cpu_us_each = end.cpu_us_since(begin).filter(|_| count > 0).map(|us| us as f64 / count as f64);
        self.cores_clients = (end.own.cpu_us - begin.own.cpu_us) as f64 / (self.seconds * 1e6).max(1.0);
    }

    /// What the clients counted.
    pub(crate) fn heard(&mut self, tally: &Tally) {
        let (latency, answer) = tally.histograms();
        (self.latency, self.answer) = (Times::of(&latency), Times::of(&answer));
        self.faults.repeats = tally.repeats.load(Relaxed);
        self.faults.disorder = tally.disorder.load(Relaxed);
        self.faults.holes = tally.holes.load(Relaxed);
        self.faults.refused = tally.refused.load(Relaxed);
        self.faults.words = tally.words();
    }

    /// Whether each message that was taken arrived everywhere, once and in order, and every client got in.
    pub fn is_whole(&self) -> bool {
        let Faults { missing, repeats, disorder, holes, refused, unanswered, .. } = &self.faults;
        [missing, repeats, disorder, holes, refused, unanswered].iter().all(|count| **count == 0)
    }

    /// As a line of JSON.
    ///
    /// # Panics
    /// Never: all of it is numbers and text.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and text become JSON")
    }

    fn sizes(&self) -> String {
        let Plan { groups, members, clients, window, rate, bytes, missed, at_once, .. } = self.plan;
        let by = if self.backend { ", published by a server" } else { "" };
        let groups = if groups == 1 { "1 group".to_owned() } else { format!("{groups} groups") };
        let load = format!("{groups} of {members}, {bytes} bytes{by}");
        match self.plan.scenario {
            Scenario::Fanout | Scenario::Groups | Scenario::Cluster => format!("{load}, {window} under way"),
            Scenario::Latency => format!("{load}, {rate} a second"),
            Scenario::Connect => format!("{clients} clients in {groups}, {at_once} at once"),
            Scenario::Idle => format!("{clients} clients in {groups}"),
            Scenario::Resume => {
                format!("{clients} clients in {groups} missed {missed} messages each{by}, {at_once} at once")
            }
        }
    }

    /// What `cpu_us_each` is of.
    fn each(&self) -> &'static str {
        match self.plan.scenario {
            Scenario::Connect => "connect",
            Scenario::Resume => "client that came back",
            _ => "delivery",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = if self.nodes == 1 { "1 node".to_owned() } else { format!("{} nodes", self.nodes) };
        writeln!(f, "{}: {}, on {nodes}", self.plan.scenario, self.sizes())?;
        let per_s = |count: u64| count as f64 / self.seconds.max(1e-9);
        if self.answered > 0 {
            let (published, delivered) = (per_s(self.answered), per_s(self.deliveries));
            writeln!(f, "  throughput  {published:.0} publishes/s, {delivered:.0} deliveries/s")?;
            writeln!(f, "  answer      {}", self.answer)?;
        } else if self.clients > 0 && self.latency.count > 0 {
            writeln!(f, "  time        {:.2} s, {:.0} clients/s", self.seconds, per_s(self.clients))?;
        }
        if self.latency.count > 0 {
            writeln!(f, "  latency     {}", self.latency)?;
        }
        match (self.cores, self.cpu_us_each) {
            (Some(cores), Some(each)) => {
                writeln!(f, "  server      {each:.1} µs of CPU a {} ({cores:.2} cores)", self.each())?;
            }
            (Some(cores), None) => {
                let empty = self.cores_empty.unwrap_or_default();
                writeln!(f, "  server      {cores:.3} cores, {empty:.3} before the clients came")?;
            }
            _ => writeln!(f, "  server      its processes are not on this machine, or not seen: name them with --pid")?,
        }
        if let Some(bytes) = self.memory_each {
            writeln!(f, "  memory      {bytes:.0} bytes a connection, of a server that had no clients before")?;
        }
        writeln!(f, "  clients     {:.2} cores", self.cores_clients)?;
        let Faults { missing, repeats, disorder, holes, refused, unanswered, words, .. } = &self.faults;
        write!(
            f,
            "  faults      {missing} missing, {repeats} repeated, {disorder} out of order, {holes} lost connections or \
             announced losses, {refused} refused, {unanswered} unanswered"
        )?;
        for word in words {
            write!(f, "\n              {word}")?;
        }
        Ok(())
    }
}
