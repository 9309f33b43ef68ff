//! A cluster at work while its store fails, and the proof that nobody but who needs the store notices.
//!
//! [`Stage`] has publishers, subscribers, restless clients and a stream of new sessions over three processes. A fault comes,
//! stays and goes ([`Stage::fault`]); [`Stage::end`] compares what was before, during and after each, proves the history,
//! kills all nodes, and looks for every session that was acknowledged.

use std::{env, ops::Range, time::Duration};

use anyhow::{Context, Result, ensure};
use roost::clock;

use crate::{
    cassandra::Cassandra,
    churn::Churn,
    client::Client,
    cluster::Cluster,
    gauges::{Gauges, Most},
    latency::{self, Latencies, Spread},
    ledger::{Creating, Ledger, Tally},
    load::{self, Load, client_on},
    servers::ServerSettings,
    wait::wait_until,
};

const NODES: usize = 3;
const GROUPS: usize = 12;
/// Of each of the three publishers, after each message.
const PUBLISH_PAUSE: Duration = Duration::from_millis(12);
/// Of each node's stream of new sessions.
const CREATE_PAUSE: Duration = Duration::from_millis(250);
/// Of each restless client.
const CHURN_PAUSE: Duration = Duration::from_millis(400);
/// What a fault is compared with.
const BEFORE: Duration = Duration::from_secs(5);
/// A look at what is after it.
const AFTER: Duration = Duration::from_secs(3);
/// How long a fault lasts, unless `ROOST_FAULT_SECONDS` says otherwise.
const FAULT: Duration = Duration::from_secs(15);
/// The promise: every node names a store that is gone or slow within this.
const NAMED_WITHIN: Duration = Duration::from_secs(3);
/// What a machine that others use too may add to that.
const MARGIN: Duration = Duration::from_secs(3);
/// What twice the latency may be exceeded by: the machine is shared, and a Cassandra starts or stops on it meanwhile.
const NOISE: Duration = Duration::from_millis(20);
/// Until everything is as before.
const HEAL_LIMIT: Duration = Duration::from_secs(60);
/// The most memory that a node may take in addition during a fault.
const GROWTH_MB: u64 = 64;
/// `store.max_in_flight` and `store.max_queue`, as they are configured here.
const IN_FLIGHT_MAX: u64 = 256;
const WAITING_MAX: u64 = 4_096;
const SUBSCRIBER: &str = "subscriber";

/// What a fault means to Roost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing needs the store can be done: every node must say so.
    Away,
    /// It answers late: every node must say so.
    Slow,
    /// The store can do without what is missing: sessions are created as before.
    None,
}

/// A cluster at work.
pub struct Stage {
    cluster: Cluster,
    subscribers: Vec<Client>,
    load: Load,
    churn: Churn,
    creating: Creating,
    gauges: Gauges,
    told: Vec<Told>,
}

/// What was seen of a fault while it was there.
struct Told {
    name: &'static str,
    effect: Effect,
    before: Range<u64>,
    during: Range<u64>,
    after: Range<u64>,
    /// Until each node said that the store is not as it should be.
    named: Option<Vec<Duration>>,
    healed: Duration,
}

/// How long a fault is to last.
pub fn fault_length() -> Result<Duration> {
    match env::var("ROOST_FAULT_SECONDS") {
        Ok(seconds) => Ok(Duration::from_secs(seconds.parse().context("ROOST_FAULT_SECONDS is a number of seconds")?)),
        Err(_) => Ok(FAULT),
    }
}

impl Stage {
    /// Starts three processes over this Cassandra, and everything that goes on there.
    pub async fn set(cassandra: &Cassandra, keyspace: &str) -> Result<Self> {
        let settings = ServerSettings::over(cassandra, keyspace)
            .with("store.max_in_flight", IN_FLIGHT_MAX)
            .with("store.max_queue", WAITING_MAX);
        let cluster = Cluster::serve(settings, NODES).await?;
        let groups = load::groups(GROUPS);
        let (mut subscribers, mut publishers, mut restless) = (Vec::new(), Vec::new(), Vec::new());
        for node in 0..NODES {
            subscribers.push(client_on(&cluster, node, &format!("{SUBSCRIBER}-{node}"), &groups).await?);
            publishers.push(client_on(&cluster, node, &format!("publisher-{node}"), &groups).await?);
            for number in 0..2 {
                let name = format!("restless-{node}-{number}");
                restless.push(client_on(&cluster, node, &name, &groups[..2]).await?);
            }
        }
        let load = Load::start(publishers, &groups, PUBLISH_PAUSE);
        load::goes_on(&subscribers, &load::received(&subscribers), HEAL_LIMIT).await?;
        let (creating, gauges) = (Creating::start(&cluster, 1, CREATE_PAUSE), Gauges::start(&cluster)?);
        let churn = Churn::start(restless, CHURN_PAUSE);
        Ok(Self { cluster, subscribers, load, churn, creating, gauges, told: Vec::new() })
    }

    /// Lets the fault come, stay and go, and waits until all is well again.
    pub async fn fault(
        &mut self,
        name: &'static str,
        effect: Effect,
        begin: impl AsyncFnOnce() -> Result<()>,
        end: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        let length = fault_length()?;
        eprintln!("-- {name}, for {length:?}");
        let before_us = clock::mono_us();
        tokio::time::sleep(BEFORE).await;
        let begin_us = clock::mono_us();
        begin().await.with_context(|| format!("{name}: its begin"))?;
        let begun_us = clock::mono_us();
        tokio::time::sleep(length).await;
        let end_us = clock::mono_us();
        let first = self.gauges.first(begin_us, |database| ["slow", "down"].contains(&database));
        // Counted from when the fault was there for certain; to bring it about takes a command or two.
        let since_begun = |at_us: &u64| Duration::from_micros(at_us.saturating_sub(begun_us));
        let named = first.map(|first| first.iter().map(since_begun).collect());
        end().await.with_context(|| format!("{name}: its end"))?;
        let healed = self.heals().await.with_context(|| format!("{name}: healing"))?;
        let healed_us = clock::mono_us();
        tokio::time::sleep(AFTER).await;
        let (before, during, after) = (before_us..begin_us, begin_us..end_us, healed_us..clock::mono_us());
        eprintln!("   brought about in {} ms", (begun_us - begin_us) / 1_000);
        let told = Told { name, effect, before, during, after, named, healed };
        told.print_at_once();
        self.told.push(told);
        Ok(())
    }

    /// How long it takes until each node creates sessions, finds its store up, and reports green.
    async fn heals(&self) -> Result<Duration> {
        let since_us = clock::mono_us();
        let up = async || {
            let creates = self.creating.acknowledged_since(since_us).is_some();
            creates && self.gauges.last_is("up")
        };
        wait_until("sessions to be created through every node, and the store to be up for each", HEAL_LIMIT, up)
            .await?;
        self.cluster.green(HEAL_LIMIT).await?;
        Ok(Duration::from_micros(clock::mono_us() - since_us))
    }

    /// Ends everything, and proves what was promised: the history, the figures of each fault, and that every session which
    /// was acknowledged is there after all nodes were killed.
    pub async fn end(self) -> Result<()> {
        let Self { mut cluster, mut subscribers, load, churn, creating, gauges, told } = self;
        let (publishers, heads) = load.stop().await?;
        let ledger = creating.stop().await?;
        subscribers.extend(publishers);
        let mut restless = crate::history::History::default();
        churn.stop(&mut restless).await?;
        let mut history = load::settle(subscribers, &heads).await?;
        history.absorb(restless);

        let sum = history.check()?;
        eprintln!("{sum:?}");
        let mut wrong = Vec::new();
        let mut must = |is_so: bool, what: String| {
            if !is_so {
                wrong.push(what);
            }
        };
        must(sum.refused == 0 && sum.unknown == 0, "not every publish was acknowledged in the end".to_owned());
        must(sum.resets == 0 && sum.gaps == 0 && sum.not_recovered == 0, "a client missed something".to_owned());
        let quiet: Vec<_> = told.iter().flat_map(|told| [&told.before, &told.after]).collect();
        let quiet = latency::latencies(&history, &quiet, SUBSCRIBER);
        eprintln!("without any fault: publishes {}; deliveries {}", quiet.publish, quiet.delivery);
        for told in &told {
            let latencies = |window| latency::latencies(&history, &[window], SUBSCRIBER);
            let windows = [&told.before, &told.during, &told.after];
            if let Err(error) = told.judge(windows.map(latencies), &quiet, &ledger, &gauges, &mut must) {
                must(false, format!("{}: {error:#}", told.name));
            }
        }
        cluster.servers()?.without_panic()?;
        cluster.crash_all().await?;
        let start_ms = clock::mono_ms();
        cluster.restart_all().await?;
        eprintln!("all nodes killed and started again: green after {} ms", clock::mono_ms() - start_ms);
        if let Err(error) = ledger.read_back(&cluster).await {
            must(false, format!("{error:#}"));
        }
        ensure!(wrong.is_empty(), "not as promised:\n{}", wrong.join("\n"));
        cluster.shut_down().await
    }
}

impl Told {
    fn print_at_once(&self) {
        let named = self.named.as_ref().map(|named| named.iter().map(Duration::as_millis).collect::<Vec<_>>());
        let healed_ms = self.healed.as_millis();
        eprintln!("   named by each node after (ms): {named:?}; healed {healed_ms} ms after its end");
    }

    /// From what is before it to what is after it.
    fn whole(&self) -> Range<u64> {
        self.before.start..self.after.end
    }

    fn judge(
        &self,
        [before, during, after]: [Latencies; 3],
        quiet: &Latencies,
        ledger: &Ledger,
        gauges: &Gauges,
        must: &mut impl FnMut(bool, String),
    ) -> Result<()> {
        let name = self.name;
        let mut must = |is_so: bool, what: String| must(is_so, format!("{name}: {what}"));
        let windows = [&self.before, &self.during, &self.after];
        eprintln!("== {name}");
        for (when, one) in [("before", &before), ("during", &during), ("after ", &after)] {
            eprintln!("   {when}: publishes {}; deliveries {}", one.publish, one.delivery);
        }
        for (what, before, during, quiet) in [
            ("publishes", before.publish, during.publish, quiet.publish),
            ("deliveries", before.delivery, during.delivery, quiet.delivery),
        ] {
            // Others may have used the machine just now, or just before.
            let worse = during.is_worse_than(&before, NOISE) && during.is_worse_than(&quiet, NOISE);
            must(!worse, format!("{what} took more than twice as long: {during}; before: {before}"));
            let (rate_before, rate_during) = (per_s(before, windows[0]), per_s(during, windows[1]));
            must(2.0 * rate_during > rate_before, format!("{rate_during:.0} {what}/s, before {rate_before:.0}"));
        }
        eprintln!("   {} resumes and {} joins during it", during.resumes, during.joins);
        must(during.resumes > 0 && during.joins > 0, "nobody came back or joined".to_owned());

        let tally = ledger.tally(&self.whole());
        let Tally { created, refused, longest_ms, .. } = tally;
        if let Err(error) = tally.as_promised() {
            must(false, format!("{error:#}"));
        }
        eprintln!(
            "   new sessions from before to after it: {created} created, {refused} refused with 503 and Retry-After, the longest answer took {longest_ms} ms"
        );
        must(created + refused > 0, "no create was answered".to_owned());
        match self.effect {
            Effect::Away => must(refused > 0, "no create was refused: was there a fault at all?".to_owned()),
            Effect::Slow => {}
            Effect::None => must(created > refused, "creates failed although the store can do without".to_owned()),
        }
        let named = self.named.as_ref().and_then(|named| named.iter().max());
        match (self.effect, named) {
            (Effect::None, _) => {}
            (_, None) => must(false, "a node never said that the store is away or slow".to_owned()),
            (_, Some(longest)) => {
                must(*longest < NAMED_WITHIN + MARGIN, format!("a node said only after {longest:?} how the store is"));
            }
        }
        let not_served = gauges.not_served(&self.during);
        must(not_served == 0, format!("{not_served} looks at /health found a node that wants no clients"));

        let [before, during, after] = windows.map(|window| gauges.most(window));
        let (before, during, after) = (before?, during?, after?);
        eprintln!("   at most, before, during and after it: {}; {}; {}", words(before), words(during), words(after));
        must(during.resident_mb <= before.resident_mb + GROWTH_MB, "a node grew during it".to_owned());
        must(during.in_flight <= IN_FLIGHT_MAX && during.waiting <= WAITING_MAX, "its queue has no bound".to_owned());
        must(after.waiting == 0, format!("{} requests still wait after it", after.waiting));
        Ok(())
    }
}

fn per_s(spread: Spread, window: &Range<u64>) -> f64 {
    spread.count as f64 / ((window.end - window.start) as f64 / 1e6)
}

fn words(most: Most) -> String {
    format!("{} MB, {} in flight, {} waiting", most.resident_mb, most.in_flight, most.waiting)
}
