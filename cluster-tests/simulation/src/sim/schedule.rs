//! A run is a seed and what is left out of all that the seed has: so a failure can be cut down to what it needs. Each
//! fault has a number and a stream of chance of its own, so that leaving one out changes none of the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    faults::Fault,
    random::Random,
    settings::{Profile, SETTINGS},
    world::{Outcome, World},
};

/// Streams of a seed: its settings, all chance but that of faults (one for each `noise`), and those of the faults.
const NOISE: u64 = 1 << 32;
const FAULTS: u64 = 1 << 33;

/// One run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// Where all of it comes from.
    pub seed: u64,
    /// Only these faults, by their numbers; nothing for all.
    pub faults: Option<BTreeSet<usize>>,
    /// Settings that are not the seed's.
    pub set: BTreeMap<&'static str, u64>,
    /// Other delays, losses and choices of clients than those of the seed.
    pub noise: u64,
}

/// A fault of a seed.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) at_ms: u64,
    pub(super) fault: Fault,
    /// All chance of it.
    pub(super) random: Random,
}

impl Schedule {
    /// All that the seed has.
    pub fn of(seed: u64) -> Self {
        Self { seed, faults: None, set: BTreeMap::new(), noise: 0 }
    }

    /// Takes in an argument, as [`fmt::Display`] writes it. Whether it is one.
    pub fn read(&mut self, name: &str, value: &str) -> bool {
        self.try_read(name, value).is_some()
    }

    fn try_read(&mut self, name: &str, value: &str) -> Option<()> {
        let parts = value.split(',').filter(|part| !part.is_empty());
        match name {
            "--seed" => self.seed = value.parse().ok()?,
            "--noise" => self.noise = value.parse().ok()?,
            "--only" => self.faults = Some(parts.map(str::parse).collect::<Result<_, _>>().ok()?),
            "--set" => {
                for part in parts {
                    let (name, value) = part.split_once('=')?;
                    let setting = SETTINGS.iter().find(|setting| setting.name == name)?;
                    self.set.insert(setting.name, value.parse().ok()?);
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// How it goes. With `trace`, every event in words.
    pub fn run(&self, trace: bool) -> Outcome {
        World::new(self, trace).run()
    }

    /// How it goes for at most `events` events.
    pub(super) fn run_at_most(&self, events: u64) -> Outcome {
        let mut world = World::new(self, false);
        world.events_max = events;
        world.run()
    }

    /// The seed's settings, but for what is set.
    pub(super) fn profile(&self) -> Profile {
        let mut profile = Profile::of(&mut Random::new(self.seed));
        for setting in SETTINGS {
            if let Some(value) = self.set.get(setting.name) {
                (setting.set)(&mut profile, *value);
            }
        }
        profile
    }

    pub(super) fn random(&self) -> Random {
        Random::stream(self.seed, NOISE + self.noise)
    }

    /// The seed's faults in the order of time, each under its number: those that are to happen.
    pub(super) fn planned(&self) -> BTreeMap<usize, Planned> {
        let profile = Profile::of(&mut Random::new(self.seed));
        let mut planned = Vec::new();
        for (kind, fault) in (FAULTS..).zip(Fault::ALL) {
            let Some(mean) = profile.mean_ms(fault) else { continue };
            let mut random = Random::stream(self.seed, kind);
            let mut at_ms = random.waiting(mean);
            while at_ms < profile.fault_ms {
                planned.push(Planned { at_ms, fault, random: Random::new(random.number()) });
                at_ms += random.waiting(mean);
            }
        }
        planned.sort_by_key(|planned| planned.at_ms);
        let wanted = |number: &usize| self.faults.as_ref().is_none_or(|only| only.contains(number));
        planned.into_iter().enumerate().filter(|(number, _)| wanted(number)).collect()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--seed {}", self.seed)?;
        let join = |parts: Vec<String>| parts.join(",");
        if let Some(only) = &self.faults {
            // An empty list has to be seen as one.
            let only = join(only.iter().map(usize::to_string).collect());
            write!(f, " --only {}", if only.is_empty() { "," } else { &only })?;
        }
        if !self.set.is_empty() {
            write!(f, " --set {}", join(self.set.iter().map(|(name, value)| format!("{name}={value}")).collect()))?;
        }
        if self.noise != 0 {
            write!(f, " --noise {}", self.noise)?;
        }
        Ok(())
    }
}
