//! `roost bench`: the time from a publish on one node to its delivery on another, and whether everything arrived.
//!
//! All clients are in this process, so that one clock stamps both ends. A message is stamped when it is due, not when the
//! publisher gets to it: a cluster that stalls the publisher is not flattered by it.

mod clients;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::clients::{Published, Publisher, Received, Subscriber};
use super::{api::ApiArgs, print, url::NodeUrl};
use crate::{clock, tasks::Tasks};

/// How long nothing may arrive before the rest is counted as missing.
const PATIENCE_MS: u64 = 5_000;
const SETUP_LIMIT: Duration = Duration::from_secs(60);

/// Arguments of `roost bench`.
#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    /// The nodes, separated by commas; a group's publisher is on one, its subscribers are on the others
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8000,http://127.0.0.1:8001,http://127.0.0.1:8002"
    )]
    urls: Vec<String>,
    /// Groups, each with a publisher
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    groups: u32,
    /// Subscribers of each group
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// Messages in all
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    messages: u64,
    /// Messages per second in all; 0 for as many as are answered
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// Bytes of data in each message
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(64..=1_000_000))]
    bytes: u32,
    /// How to publish
    #[arg(long, value_enum, default_value_t = Via::Ws)]
    via: Via,
    /// A line of JSON instead of a table
    #[arg(long)]
    json: bool,
    /// The key for the HTTP API, for --via http
    #[arg(long, env = "ROOST_API_KEY", hide_env_values = true, default_value = "dev-key")]
    api_key: String,
}

/// How the publisher publishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Via {
    /// As a client, over its WebSocket
    Ws,
    /// As a server, over HTTP
    Http,
}

/// What all clients touch.
#[derive(Debug, Default)]
struct Progress {
    delivered: AtomicU64,
    answered: AtomicU64,
}

pub(super) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    ensure!(!args.urls.is_empty(), "name the nodes with --urls");
    for url in &args.urls {
        NodeUrl::parse(url, "http")?;
    }
    if args.urls.len() == 1 {
        print::note(format_args!("only one node is named: this measures deliveries within it, not between nodes"));
    }
    let tasks = Tasks::new();
    let outcome = Box::pin(measure(&args, &tasks)).await;
    tasks.shut_down(Duration::from_secs(5)).await;
    let outcome = outcome?;
    print::line(if args.json { outcome.json(&args) } else { outcome.table(&args) })?;
    let (missing, disorder) = (outcome.missing(), outcome.received.disorder);
    ensure!(missing == 0 && disorder == 0, "{missing} deliveries are missing, {disorder} came out of order");
    Ok(())
}

async fn measure(args: &BenchArgs, tasks: &Tasks) -> anyhow::Result<Outcome> {
    let progress = Arc::new(Progress::default());
    let run: u32 = rand::random();
    let nodes = args.urls.len();
    let clients = (args.groups * args.subscribers) as usize;
    let (received_in, mut received_out) = mpsc::channel(clients);
    let (published_in, mut published_out) = mpsc::channel(args.groups as usize);
    let enough = CancellationToken::new();
    let mut due = Vec::new();
    let bar = bar(u64::from(args.groups) * u64::from(args.subscribers + 1), "connecting");
    for group in 0..args.groups {
        let name = format!("bench-{run:08x}-{group}");
        let home = group as usize % nodes;
        for number in 0..args.subscribers as usize {
            // Never the publisher's own node, where there is another.
            let node = if nodes == 1 { 0 } else { (home + 1 + number % (nodes - 1)) % nodes };
            let expected = share(args.messages, args.groups, group);
            let subscriber =
                tokio::time::timeout(SETUP_LIMIT, Box::pin(Subscriber::join(&args.urls[node], &name, expected)))
                    .await
                    .context("a subscriber did not get to join in time")??;
            let (progress, done) = (progress.clone(), received_in.clone());
            tasks.spawn_detached("bench subscriber", Box::pin(subscriber.run(progress, enough.clone(), done)));
            bar.inc(1);
        }
        let api = ApiArgs { url: args.urls[home].clone(), api_key: args.api_key.clone() };
        let publisher =
            tokio::time::timeout(SETUP_LIMIT, Box::pin(Publisher::join(api, name, args.via, args.bytes as usize)))
                .await
                .context("a publisher did not get to join in time")??;
        let (queue, queued) = mpsc::channel(1_024);
        due.push(queue);
        tasks.spawn_detached(
            "bench publisher",
            Box::pin(publisher.run(queued, progress.clone(), enough.clone(), published_in.clone())),
        );
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop((received_in, published_in));

    let start_us = clock::mono_us();
    let watch = watch(args, &progress);
    let pace = async {
        pace(args, &due).await;
        drop(due);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = watch => {}
        () = pace => {}
    }
    let took_us = clock::mono_us() - start_us;
    // What has not arrived by now is missing: the subscribers report what they have.
    enough.cancel();
    let (mut received, mut published) = (Received::default(), Published::default());
    while let Some(one) = received_out.recv().await {
        received.add(one);
    }
    while let Some(one) = published_out.recv().await {
        published.add(one);
    }
    received.latency_us.sort_unstable();
    published.answer_us.sort_unstable();
    Ok(Outcome { expected: args.messages * u64::from(args.subscribers), took_us, received, published })
}

/// How many of the messages are this group's: dealt out in turn.
fn share(messages: u64, groups: u32, group: u32) -> u64 {
    messages / u64::from(groups) + u64::from(u64::from(group) < messages % u64::from(groups))
}

/// Hands each message to its publisher when it is due. Waits where a publisher is behind by its whole queue.
async fn pace(args: &BenchArgs, due: &[mpsc::Sender<u64>]) {
    let start_us = clock::mono_us();
    for number in 0..args.messages {
        if let Some(at_us) = number.saturating_mul(1_000_000).checked_div(args.rate) {
            let now_us = clock::mono_us() - start_us;
            if at_us > now_us {
                tokio::time::sleep(Duration::from_micros(at_us - now_us)).await;
            }
        }
        let publisher = &due[(number % due.len() as u64) as usize];
        if publisher.send(clock::mono_us()).await.is_err() {
            return;
        }
    }
}

/// Shows the deliveries, until all are there or none has come for a while.
async fn watch(args: &BenchArgs, progress: &Progress) {
    let expected = args.messages * u64::from(args.subscribers);
    let bar = bar(expected, "deliveries");
    let (mut last, mut since_ms) = ((0, 0), clock::mono_ms());
    loop {
        let now = (progress.delivered.load(Ordering::Relaxed), progress.answered.load(Ordering::Relaxed));
        bar.set_position(now.0);
        if now != last {
            (last, since_ms) = (now, clock::mono_ms());
        }
        let slowest_ms = 1_000 / args.rate.max(1) + PATIENCE_MS;
        let all = now.0 >= expected && now.1 >= args.messages;
        if all || clock::mono_ms() - since_ms > slowest_ms {
            bar.finish_and_clear();
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// To standard error; hidden where that is no terminal.
fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {per_sec} {eta}").expect("the template is right");
    ProgressBar::new(length).with_style(style).with_message(what)
}

struct Outcome {
    expected: u64,
    took_us: u64,
    received: Received,
    published: Published,
}

impl Outcome {
    fn missing(&self) -> u64 {
        self.expected.saturating_sub(self.received.latency_us.len() as u64)
    }

    fn per_second(&self, count: usize) -> f64 {
        count as f64 * 1e6 / self.took_us.max(1) as f64
    }

    fn table(&self, args: &BenchArgs) -> String {
        let Self { expected, received, published, .. } = self;
        let (delivery, answer) = (Percentiles::of(&received.latency_us), Percentiles::of(&published.answer_us));
        format!(
            "{} groups of {} subscribers, {} messages of {} bytes, on {} nodes\n\
             delivered   {} of {expected}, {} missing, {} out of order\n\
             latency     {delivery}   from publish to delivery\n\
             answered    {} of {}, {} refused\n\
             answer      {answer}   from publish to answer\n\
             throughput  {:.0} publishes/s, {:.0} deliveries/s",
            args.groups,
            args.subscribers,
            args.messages,
            args.bytes,
            args.urls.len(),
            received.latency_us.len(),
            self.missing(),
            received.disorder,
            published.answer_us.len(),
            args.messages,
            published.refused,
            self.per_second(published.answer_us.len()),
            self.per_second(received.latency_us.len()),
        )
    }

    fn json(&self, args: &BenchArgs) -> String {
        let Self { expected, received, published, .. } = self;
        serde_json::json!({
            "nodes": args.urls.len(), "groups": args.groups, "subscribers": args.subscribers, "messages": args.messages,
            "expected": expected, "delivered": received.latency_us.len(), "missing": self.missing(),
            "out_of_order": received.disorder, "refused": published.refused,
            "delivery_us": Percentiles::of(&received.latency_us).json(),
            "answer_us": Percentiles::of(&published.answer_us).json(),
            "publishes_per_s": self.per_second(published.answer_us.len()),
            "deliveries_per_s": self.per_second(received.latency_us.len()),
        })
        .to_string()
    }
}

/// Of sorted microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Percentiles {
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

impl Percentiles {
    fn of(sorted: &[u64]) -> Self {
        // The smallest value that at least this share of all does not exceed.
        let at =
            |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }

    fn json(self) -> serde_json::Value {
        serde_json::json!({ "p50": self.p50, "p90": self.p90, "p99": self.p99, "max": self.max })
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |us: u64| us as f64 / 1_000.0;
        let Self { p50, p90, p99, max } = *self;
        write!(f, "p50 {:.2} ms  p90 {:.2} ms  p99 {:.2} ms  max {:.2} ms", ms(p50), ms(p90), ms(p99), ms(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let check = |sorted: &[u64], expected: [u64; 4]| {
            let Percentiles { p50, p90, p99, max } = Percentiles::of(sorted);
            assert_eq!([p50, p90, p99, max], expected, "of {sorted:?}");
        };
        check(&[], [0; 4]);
        check(&[7], [7; 4]);
        check(&[1, 2], [1, 2, 2, 2]);
        check(&(1..=100).collect::<Vec<_>>(), [50, 90, 99, 100]);
        check(&(1..=1_000).collect::<Vec<_>>(), [500, 900, 990, 1_000]);
    }

    #[test]
    fn every_message_has_a_group() {
        for (messages, groups) in [(10, 3), (2, 5), (7, 7), (1, 1)] {
            assert_eq!((0..groups).map(|group| share(messages, groups, group)).sum::<u64>(), messages);
            for group in 0..groups {
                let dealt = (0..messages).filter(|number| number % u64::from(groups) == u64::from(group)).count();
                assert_eq!(share(messages, groups, group), dealt as u64);
            }
        }
    }
}
