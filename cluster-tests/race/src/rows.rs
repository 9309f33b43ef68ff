//! What is raced: each row is a scenario with its sizes, who takes part, and what is to be reached.

use roost_bench::{Plan, Report, Scenario};

use crate::peers::Peer::{self, Bare, Centrifuge, Naive, Roost, SocketIo};

/// One line of the race.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub name: &'static str,
    pub title: &'static str,
    pub plan: Plan,
    pub nodes: u16,
    pub peers: Vec<Peer>,
    pub figures: Vec<Figure>,
}

/// One number of a report, smaller is better, and what it is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub what: What,
    /// At most this ratio to the turn of Centrifuge in the same round.
    pub of_centrifuge: Option<f64>,
    /// At most this ratio to the naive server's.
    pub of_naive: Option<f64>,
    /// At most this, in the figure's unit.
    pub most: Option<f64>,
}

/// Which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Of the server, for each delivery or client.
    Cpu,
    /// Of the server, for each publish, with all that it sets off.
    Publish,
    P50,
    P99,
    Memory,
    /// While clients are there that do nothing.
    Cores,
    /// Before they came.
    Empty,
    Seconds,
}

impl What {
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "µs of CPU each",
            Self::Publish => "µs of CPU a publish",
            Self::P50 => "ms, p50",
            Self::P99 => "ms, p99",
            Self::Memory => "KB a connection",
            Self::Cores => "cores",
            Self::Empty => "cores without clients",
            Self::Seconds => "s until all are back",
        }
    }

    /// Of a report; nothing where it was not measured.
    pub(crate) fn of(self, report: &Report) -> Option<f64> {
        match self {
            Self::Cpu => report.cpu_us_each,
            Self::Publish => {
                let each = report.seconds * 1e6 / report.answered as f64;
                report.cores.map(|cores| cores * each).filter(|_| report.answered > 0)
            }
            Self::P50 => Some(report.latency.p50_us as f64 / 1_000.0),
            Self::P99 => Some(report.latency.p99_us as f64 / 1_000.0),
            Self::Memory => report.memory_each.map(|bytes| bytes / 1_024.0),
            Self::Cores => report.cores,
            Self::Empty => report.cores_empty,
            Self::Seconds => Some(report.seconds),
        }
    }
}

const fn figure(what: What) -> Figure {
    Figure { what, of_centrifuge: None, of_naive: None, most: None }
}

impl Figure {
    const fn of_centrifuge(self, ratio: f64) -> Self {
        Self { of_centrifuge: Some(ratio), ..self }
    }

    const fn of_naive(self, ratio: f64) -> Self {
        Self { of_naive: Some(ratio), ..self }
    }

    const fn most(self, most: f64) -> Self {
        Self { most: Some(most), ..self }
    }
}

impl Row {
    pub(crate) fn all(seconds: f64) -> Vec<Self> {
        let plan = |scenario| {
            let plan = Plan::of(scenario);
            Plan { seconds: if plan.seconds > 0.0 { seconds } else { 0.0 }, ..plan }
        };
        let row = |name, title, plan, figures: &[Figure]| Self {
            name,
            title,
            plan,
            nodes: 1,
            peers: vec![Roost, Centrifuge, Naive, SocketIo],
            figures: figures.to_vec(),
        };
        let with_bare = |row: Self| Self { peers: vec![Roost, Centrifuge, Naive, SocketIo, Bare], ..row };
        let three = |row: Self| Self { nodes: 3, peers: vec![Roost, Centrifuge], ..row };
        let cpu = figure(What::Cpu);
        let (fanout, groups, cluster) = (plan(Scenario::Fanout), plan(Scenario::Groups), plan(Scenario::Cluster));
        let (latency, resume) = (plan(Scenario::Latency), plan(Scenario::Resume));
        let resume = Plan { clients: 2_000, at_once: 2_000, ..resume };
        let alone = |row: Self| Self { peers: vec![Roost], ..row };
        let flat = |name, title, members| alone(row(name, title, Plan { members, ..fanout }, &[cpu]));
        let publish = |name, title, nodes, most| {
            let plan = if nodes == 1 { fanout } else { cluster };
            let figure = figure(What::Publish).most(most);
            alone(Self { nodes, ..row(name, title, Plan { members: 2, ..plan }, &[figure]) })
        };
        let idle = plan(Scenario::Idle);
        vec![
            with_bare(row(
                "fanout-1",
                "1,000 members, one message under way",
                fanout,
                &[cpu.of_centrifuge(0.5).of_naive(0.8)],
            )),
            with_bare(row(
                "fanout-16",
                "the same, sixteen under way",
                Plan { window: 16, ..fanout },
                &[cpu.of_centrifuge(0.5)],
            )),
            with_bare(row("groups", "100 groups of 10, 64 under way", groups, &[cpu.of_centrifuge(0.5)])),
            row("connect", "connect, get a session, join a group", plan(Scenario::Connect), &[cpu.most(180.0)]),
            row(
                "idle",
                "4,000 clients that do nothing",
                Plan { clients: 4_000, ..idle },
                &[figure(What::Memory).most(6.0), figure(What::Cores).most(0.005), figure(What::Empty).most(0.003)],
            ),
            Self {
                peers: vec![Roost, Centrifuge],
                ..row(
                    "resume",
                    "2,000 cut clients come back, 100 messages missed each",
                    resume,
                    &[figure(What::Seconds).most(0.4), cpu.most(250.0)],
                )
            },
            three(row("cluster-1", "three nodes, 1,000 members, one under way", cluster, &[cpu.of_centrifuge(0.5)])),
            three(row(
                "cluster-16",
                "three nodes, sixteen under way",
                Plan { window: 16, ..cluster },
                &[cpu.of_centrifuge(0.3)],
            )),
            three(row(
                "latency-100",
                "three nodes, 10 groups of 10, 200 publishes a second",
                latency,
                &[figure(What::P50).most(0.6), figure(What::P99).most(2.0)],
            )),
            three(row(
                "latency-1000",
                "three nodes, 100 groups of 10, 1,000 publishes a second",
                Plan { groups: 100, rate: 1_000, ..latency },
                &[figure(What::P50).most(0.5), figure(What::P99).most(3.0)],
            )),
            three(row(
                "resume-3",
                "three nodes, 2,000 cut clients come back",
                resume,
                &[figure(What::Seconds).most(0.5), cpu.most(300.0)],
            )),
            flat("fanout-100", "100 members, one message under way", 100),
            flat("fanout-10000", "10,000 members, one message under way", 10_000),
            publish("publish-1", "one node, a group of two, one message under way", 1, 100.0),
            publish("publish-3", "three nodes, the same", 3, 250.0),
            publish("publish-5", "five nodes, the same", 5, 250.0),
            publish("publish-7", "seven nodes, the same", 7, 250.0),
            alone(Self {
                nodes: 7,
                ..row(
                    "idle-7",
                    "seven nodes in one process, 70 clients that do nothing",
                    Plan { clients: 70, groups: 7, ..idle },
                    &[figure(What::Empty).most(0.021)],
                )
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_can_be_run() {
        let mut names = Vec::new();
        for row in Row::all(1.0) {
            row.plan.check().unwrap();
            assert!(row.peers[0] == Roost && !row.figures.is_empty(), "{}", row.name);
            assert!(row.nodes == 1 || row.peers.len() <= 2, "{}: the others have no cluster", row.name);
            names.push(row.name);
        }
        names.dedup();
        assert_eq!(names.len(), Row::all(1.0).len());
    }
}
