//! Three faults at once: which, where and when is drawn by a seed. Each begins while the others may be there, stays, and is
//! taken back; then all must heal, and the history must hold as it must with one.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, time::Duration};

use anyhow::Result;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use roost::clock;

use super::{machine::Siblings, scene::Scene};
use crate::{client::Client, datagrams::Road, load, relay::Mode, servers::Signal};

const NODES: usize = 3;
/// Each begins within this, in milliseconds.
const BEGIN_MS: std::ops::Range<u64> = 0..6_000;
/// Each stays for this, in milliseconds.
const STAY_MS: std::ops::Range<u64> = 3_000..12_000;
/// Of each hot publisher.
const HOT_PAUSE: Duration = Duration::from_millis(4);

/// A fault that others may be there beside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Killed,
    Drained,
    Stopped,
    CutOff,
    Deaf,
    Lossy,
    Late,
    Rebound,
    Narrow,
    Starved,
    StoreAway,
    StoreSlow,
    HotGroup,
}

use Trouble::{
    CutOff, Deaf, Drained, HotGroup, Killed, Late, Lossy, Narrow, Rebound, Starved, Stopped, StoreAway, StoreSlow,
};

const ALL: [Trouble; 13] =
    [Killed, Drained, Stopped, CutOff, Deaf, Lossy, Late, Rebound, Narrow, Starved, StoreAway, StoreSlow, HotGroup];

/// One of the three.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    trouble: Trouble,
    /// The node that it happens to, where it happens to one.
    node: usize,
    from_ms: u64,
    to_ms: u64,
}

/// What is there at the moment, as far as it has to be taken back together.
#[derive(Default)]
struct Now {
    road: Road,
    cut: BTreeSet<(usize, usize)>,
    starved: Option<Siblings>,
    leaving: Option<usize>,
    /// Who will publish to the hot group.
    hot: Vec<Client>,
}

/// Plays what the seed draws.
pub(super) async fn play(scene: &mut Scene<'_>) -> Result<()> {
    let parts = drawn(scene.ground.seed.unwrap_or(0));
    for part in &parts {
        scene.note(part.to_string());
    }
    // Only who forgets can take the last copy along, and only where another copy is not up to date.
    scene.may_reset = parts.iter().any(|part| [Killed, Drained].contains(&part.trouble));
    let mut steps: Vec<(u64, bool, Part)> =
        parts.iter().flat_map(|&part| [(part.from_ms, true, part), (part.to_ms, false, part)]).collect();
    steps.sort_by_key(|(at_ms, ..)| *at_ms);
    // Nobody new is let in while the store is away.
    let hot = match parts.iter().find(|part| part.trouble == HotGroup) {
        Some(part) => scene.publishers(&[part.node], &load::groups(1)[0]).await?,
        None => Vec::new(),
    };
    let (begun_ms, mut now) = (clock::mono_ms(), Now { hot, ..Now::default() });
    for (at_ms, begins, part) in steps {
        let passed_ms = clock::mono_ms() - begun_ms;
        tokio::time::sleep(Duration::from_millis(at_ms.saturating_sub(passed_ms))).await;
        if begins {
            scene.begin();
            now.begin(scene, part).await?;
        } else {
            now.end(scene, part).await?;
        }
    }
    scene.end();
    if let Some(node) = now.leaving {
        scene.cluster.ended(node).await?;
        scene.cluster.spawn(node)?;
    }
    Ok(())
}

/// Three different ones on three different nodes, of which one at most is about the store.
fn drawn(seed: u64) -> [Part; 3] {
    let mut random = StdRng::seed_from_u64(seed);
    let mut nodes: [usize; NODES] = [0, 1, 2];
    nodes.shuffle(&mut random);
    let mut troubles = ALL;
    loop {
        troubles.shuffle(&mut random);
        if !(troubles[..NODES].contains(&StoreAway) && troubles[..NODES].contains(&StoreSlow)) {
            break;
        }
    }
    std::array::from_fn(|number| {
        let from_ms = random.random_range(BEGIN_MS);
        let to_ms = from_ms + random.random_range(STAY_MS);
        Part { trouble: troubles[number], node: nodes[number], from_ms, to_ms }
    })
}

impl Now {
    async fn begin(&mut self, scene: &mut Scene<'_>, Part { trouble, node, .. }: Part) -> Result<()> {
        match trouble {
            Killed => scene.cluster.crash(node).await?,
            Drained => {
                scene.cluster.leave(node).await?;
                self.leaving = Some(node);
            }
            Stopped => scene.cluster.servers()?.signal(node, Signal::Stop).await?,
            CutOff | Deaf => {
                self.cut.extend(others(node).map(|other| (other, node)));
                if trouble == CutOff {
                    self.cut.extend(others(node).map(|other| (node, other)));
                }
                self.cut_links(scene)?;
            }
            Lossy => {
                self.road.lost_percent = 10;
                scene.relays()?.set(self.road);
            }
            Late => {
                (self.road.least, self.road.more) = (Duration::from_millis(50), Duration::from_millis(50));
                scene.relays()?.set(self.road);
            }
            Rebound => scene.relays()?.rebind(),
            Narrow => scene.network.narrow(node, 1_000)?,
            Starved => self.starved = Some(Siblings::of(scene, node, 2, "-20").await?),
            StoreAway => scene.cassandra.relays()?.set_all(Mode::Hold),
            StoreSlow => scene.cassandra.relays()?.set_all(Mode::Slow(Duration::from_millis(400))),
            HotGroup => scene.heat(std::mem::take(&mut self.hot), &load::groups(1)[0], HOT_PAUSE, 0),
        }
        Ok(())
    }

    async fn end(&mut self, scene: &mut Scene<'_>, Part { trouble, node, .. }: Part) -> Result<()> {
        match trouble {
            Killed => scene.cluster.spawn(node)?,
            // It is waited for when nothing holds it up any more.
            Drained => {}
            Stopped => scene.cluster.servers()?.signal(node, Signal::Cont).await?,
            CutOff | Deaf => {
                self.cut.retain(|(from, to)| *to != node && (*from != node || trouble == Deaf));
                self.cut_links(scene)?;
            }
            Lossy => {
                self.road.lost_percent = 0;
                scene.relays()?.set(self.road);
            }
            Late => {
                (self.road.least, self.road.more) = (Duration::ZERO, Duration::ZERO);
                scene.relays()?.set(self.road);
            }
            Rebound => scene.relays()?.rebind(),
            Narrow => scene.network.mend(node)?,
            Starved => {
                if let Some(siblings) = self.starved.take() {
                    siblings.end().await?;
                }
            }
            StoreAway | StoreSlow => scene.cassandra.relays()?.set_all(Mode::Pass),
            // Its answers may have to wait for the other faults.
            HotGroup => {}
        }
        Ok(())
    }

    fn cut_links(&self, scene: &Scene<'_>) -> Result<()> {
        let hosts = scene.network.hosts();
        let address = |node: usize| -> Ipv4Addr { hosts[node].address };
        scene.relays()?.cut(self.cut.iter().map(|(from, to)| (address(*from), address(*to))));
        Ok(())
    }
}

fn others(node: usize) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |other| *other != node)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trouble, node, from_ms, to_ms } = *self;
        let name = format!("n{}", node + 1);
        match trouble {
            Killed => write!(f, "{name} is killed and started again"),
            Drained => write!(f, "{name} is drained and started again"),
            Stopped => write!(f, "{name} is stopped"),
            CutOff => write!(f, "{name} and the others do not hear each other"),
            Deaf => write!(f, "{name} hears nothing of the others"),
            Lossy => f.write_str("10 % of all datagrams are lost"),
            Late => f.write_str("datagrams take 50 to 100 ms"),
            Rebound => f.write_str("the addresses of all peers change, twice"),
            Narrow => write!(f, "the link of {name} carries 1 Mb/s"),
            Starved => write!(f, "{name} gets almost nothing of a core"),
            StoreAway => f.write_str("the store is cut off"),
            StoreSlow => f.write_str("the store answers 800 ms late"),
            HotGroup => f.write_str("a group gets much more than others"),
        }?;
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        write!(f, " ({:.1} to {:.1} s)", seconds(from_ms), seconds(to_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_seeds_draw_everything() {
        let mut seen = Vec::new();
        for seed in 0..200 {
            let parts = drawn(seed);
            assert_eq!(parts, drawn(seed));
            let nodes: BTreeSet<usize> = parts.iter().map(|part| part.node).collect();
            assert_eq!(nodes.len(), NODES, "{parts:?}");
            assert!(parts.iter().all(|part| part.to_ms < BEGIN_MS.end + STAY_MS.end), "{parts:?}");
            seen.extend(parts.map(|part| part.trouble));
        }
        assert!(ALL.iter().all(|trouble| seen.contains(trouble)), "{seen:?}");
    }
}
