//! What is to be done: a scenario and its sizes.

use std::{fmt, str::FromStr};

use anyhow::ensure;
use serde::Serialize;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// One large group, as fast as `window` allows.
    Fanout,
    /// Many small groups, as fast as `window` allows.
    Groups,
    /// One large group whose publisher is on one node, and its other members on the other nodes.
    Cluster,
    /// Messages at a fixed rate, whatever becomes of those before: how long each takes from when it is due.
    Latency,
    /// Clients that connect, get a session and join.
    Connect,
    /// Clients that do nothing: memory, and processor time.
    Idle,
    /// Clients that are cut off, miss messages, and come back all at once.
    Resume,
}

impl Scenario {
    /// All of them, in the order in which they are run: memory is looked at before others have used it.
    pub const ALL: [Self; 7] =
        [Self::Idle, Self::Fanout, Self::Groups, Self::Cluster, Self::Latency, Self::Connect, Self::Resume];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Groups => "groups",
            Self::Cluster => "cluster",
            Self::Latency => "latency",
            Self::Connect => "connect",
            Self::Idle => "idle",
            Self::Resume => "resume",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|scenario| scenario.name() == text);
        found.ok_or_else(|| {
            anyhow::anyhow!("{text:?} is no scenario: there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// A scenario with its sizes. What a scenario has no use for is 0.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Plan {
    /// What is measured.
    pub scenario: Scenario,
    /// Groups, each with a publisher.
    pub groups: u32,
    /// Members of each group, its publisher among them; where clients are counted, these are dealt out to the groups.
    pub members: u32,
    /// Clients, where these are what counts.
    pub clients: u32,
    /// Messages under way in all; each until all members of its group have it and it is answered.
    pub window: u32,
    /// Messages a second in all.
    pub rate: u32,
    /// Bytes of JSON in each message.
    pub bytes: u32,
    /// Messages of each group that a client misses while it is cut off.
    pub missed: u32,
    /// Clients that connect at once.
    pub at_once: u32,
    /// How long it is measured.
    pub seconds: f64,
    /// How long it runs before that.
    pub warm_up_s: f64,
}

impl Plan {
    /// Sizes for a first look, a few seconds each.
    pub fn of(scenario: Scenario) -> Self {
        let load = Self {
            scenario,
            groups: 1,
            members: 100,
            clients: 0,
            window: 1,
            rate: 0,
            bytes: 128,
            missed: 0,
            at_once: 64,
            seconds: 5.0,
            warm_up_s: 1.0,
        };
        let crowd = Self { groups: 100, members: 0, clients: 1_000, window: 0, warm_up_s: 0.0, ..load };
        match scenario {
            Scenario::Fanout | Scenario::Cluster => Self { members: 1_000, ..load },
            Scenario::Groups => Self { groups: 100, members: 10, window: 64, ..load },
            Scenario::Latency => Self { groups: 10, members: 10, window: 0, rate: 200, ..load },
            Scenario::Connect => Self { seconds: 0.0, ..crowd },
            Scenario::Idle => crowd,
            Scenario::Resume => Self { seconds: 0.0, missed: 100, at_once: crowd.clients, ..crowd },
        }
    }

    /// Says what is wrong with it.
    ///
    /// # Errors
    /// Where it cannot be carried out.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.groups > 0, "there must be a group");
        ensure!((64..=1_000_000).contains(&self.bytes), "a message has 64 to 1000000 bytes");
        ensure!((0.0..=3_600.0).contains(&self.seconds), "it is measured for at most 3600 s");
        ensure!(self.at_once > 0, "at least one client connects at once");
        ensure!(self.window <= 100_000, "at most 100000 messages are under way");
        match self.scenario {
            Scenario::Fanout | Scenario::Groups | Scenario::Cluster => {
                ensure!(self.members > 1, "a group has at least two members: one publishes");
                ensure!(self.window > 0, "at least one message is under way");
                ensure!(self.seconds > 0.0, "it is to be measured for some time");
            }
            Scenario::Latency => {
                ensure!(self.members > 1, "a group has at least two members: one publishes");
                ensure!(self.rate > 0, "an open loop needs a rate");
                ensure!(self.seconds > 0.0, "it is to be measured for some time");
            }
            Scenario::Connect => ensure!(self.clients > 0, "there must be clients"),
            Scenario::Idle => ensure!(self.clients > 0 && self.seconds > 0.0, "there must be clients, and some time"),
            Scenario::Resume => {
                ensure!(self.clients >= self.groups, "each group needs a client");
                ensure!(self.missed > 0, "there must be something to miss");
            }
        }
        Ok(())
    }

    /// How many connections it has at its height.
    pub fn connections(&self) -> u64 {
        match self.scenario {
            Scenario::Fanout | Scenario::Groups | Scenario::Cluster | Scenario::Latency => {
                u64::from(self.groups) * u64::from(self.members)
            }
            Scenario::Connect | Scenario::Idle => u64::from(self.clients),
            Scenario::Resume => u64::from(self.clients) + u64::from(self.groups),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_and_sizes_that_can_be_carried_out() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.name().parse::<Scenario>().unwrap(), scenario);
            Plan::of(scenario).check().unwrap();
        }
        assert!("fan".parse::<Scenario>().unwrap_err().to_string().contains("fanout, groups"));
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let check = |plan: Plan| assert!(plan.check().is_err(), "{plan:?}");
        let fanout = Plan::of(Scenario::Fanout);
        check(Plan { groups: 0, ..fanout });
        check(Plan { members: 1, ..fanout });
        check(Plan { window: 0, ..fanout });
        check(Plan { bytes: 10, ..fanout });
        check(Plan { seconds: f64::NAN, ..fanout });
        check(Plan { rate: 0, ..Plan::of(Scenario::Latency) });
        check(Plan { clients: 3, ..Plan::of(Scenario::Resume) });
    }
}
