//! One member of a group: takes what comes, and publishes what is due where it is the publisher.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::{
    backend::Backend,
    clock,
    dialect::Heard,
    flight::Flight,
    order::Order,
    socket::{Client, Entered},
    tally::Tally,
};

/// How often a client without anything to say says so.
pub const HEARTBEAT: Duration = Duration::from_secs(20);
/// Publishes of one publisher that wait for their answers; more wait here, which counts as their latency.
const UNDER_WAY: usize = 128;

/// What all members of a run share.
#[derive(Debug, Default)]
pub struct Shared {
    /// What they saw.
    pub tally: Tally,
    /// What is under way, in a closed loop.
    pub flight: Option<Flight>,
}

/// A message that is to be published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// Its number in its group.
    pub number: u64,
    /// Its place among those under way.
    pub place: u32,
    /// When it is due.
    pub due_us: u64,
}

/// The data of a message; what pads it is left alone.
#[derive(Deserialize)]
struct Stamp {
    n: u64,
    s: u32,
    due_us: u64,
}

/// A client that has joined.
#[derive(Debug)]
pub struct Member {
    /// Its connection.
    pub client: Client,
    /// What it has of its group.
    pub order: Order,
    /// Which lane of the histograms it records in.
    pub lane: usize,
    /// Whether its times count: not on the publisher's own node, where there are others.
    pub timed: bool,
    /// What it got when it joined.
    pub entered: Entered,
    /// What all share.
    pub shared: Arc<Shared>,
}

/// What makes a member the publisher of its group.
#[derive(Debug)]
pub struct Publishing {
    /// The group.
    pub group: String,
    /// Bytes of data in each message.
    pub bytes: usize,
    /// What is due.
    pub due: mpsc::Receiver<Due>,
    /// Who publishes in its place, and through the node of which number.
    pub instead: Option<(Arc<dyn Backend>, usize)>,
}

/// A message that a backend publishes, and what came of it.
type Errand = BoxFuture<'static, (Due, Result<(), String>)>;

impl Publishing {
    /// How many messages may be under way.
    fn most(&self) -> usize {
        if self.instead.is_some() { 1 } else { UNDER_WAY }
    }

    /// Has the backend publish, where there is one.
    fn errand(&self, due: Due) -> Option<Errand> {
        let (backend, node) = self.instead.clone()?;
        let (group, data) = (self.group.clone(), data(due, self.bytes));
        Some(Box::pin(async move { (due, backend.publish(node, &group, data).await) }))
    }
}

/// JSON of this length with the stamp in it.
pub fn data(due: Due, bytes: usize) -> String {
    let Due { number, place, due_us } = due;
    let bare = format!(r#"{{"n":{number},"s":{place},"due_us":{due_us},"pad":""}}"#);
    let pad = "x".repeat(bytes.saturating_sub(bare.len()));
    format!("{}{pad}\"}}", &bare[..bare.len() - 2])
}

/// Takes one message of a group.
pub fn take(shared: &Shared, order: &mut Order, (lane, timed): (usize, bool), data: &str, bytes: usize) {
    let now_us = clock::now_us();
    match serde_json::from_str::<Stamp>(data) {
        Ok(stamp) => {
            let place = order.take(stamp.n);
            let latency_us = timed.then(|| now_us.saturating_sub(stamp.due_us));
            shared.tally.delivery(lane, place, latency_us, bytes);
            if let Some(flight) = shared.flight.as_ref().filter(|_| place != crate::order::Place::Repeat) {
                flight.tell(stamp.s);
            }
        }
        Err(_) => shared.tally.hole("a message came that the bench did not publish"),
    }
}

impl Member {
    /// Follows its group until the connection ends, which counts as a hole, or it is dropped.
    pub async fn follow(mut self, publishing: Option<Publishing>) {
        if let Err(error) = self.talk(publishing).await {
            self.shared.tally.hole(&format!("{error:#}"));
        }
    }

    async fn talk(&mut self, mut publishing: Option<Publishing>) -> anyhow::Result<()> {
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.tick().await;
        let mut under_way: BTreeMap<u64, Due> = BTreeMap::new();
        let mut errands = FuturesUnordered::<Errand>::new();
        let mut next_id = 1;
        let most = publishing.as_ref().map_or(0, Publishing::most);
        loop {
            tokio::select! {
                biased;
                text = self.client.text() => self.hear(&text?, &mut under_way).await?,
                Some((due, answer)) = errands.next() => self.answered(due, answer),
                Some((due, publishing)) = next(&mut publishing), if under_way.len() + errands.len() < most => {
                    match publishing.errand(due) {
                        Some(errand) => errands.push(errand),
                        None => {
                            let data = data(due, publishing.bytes);
                            let frame = self.client.dialect().publish(next_id, &publishing.group, &data);
                            under_way.insert(next_id, due);
                            next_id += 1;
                            self.client.say(frame).await?;
                        }
                    }
                }
                _ = beat.tick() => if let Some(beat) = self.client.dialect().heartbeat() {
                    self.client.say(beat).await?;
                },
            }
        }
    }

    /// What came of a message that was published in this member's place.
    fn answered(&self, due: Due, answer: Result<(), String>) {
        match answer {
            Ok(()) => taken(&self.shared, due),
            Err(why) => {
                self.shared.tally.refusal(&why);
                if let Some(flight) = &self.shared.flight {
                    flight.abandon(due.place);
                }
            }
        }
    }

    async fn hear(&mut self, text: &str, under_way: &mut BTreeMap<u64, Due>) -> anyhow::Result<()> {
        let Self { client, order, lane, timed, shared, .. } = self;
        let mut left_bytes = text.len();
        let says = client.read(text, &mut |said| match said {
            Heard::Message { data, .. } => {
                take(shared, order, (*lane, *timed), data, std::mem::take(&mut left_bytes));
            }
            Heard::Answered(id) => {
                if let Some(due) = under_way.remove(&id) {
                    taken(shared, due);
                }
            }
            Heard::Refused { id, why } => {
                shared.tally.refusal(&why);
                if let (Some(due), Some(flight)) = (id.and_then(|id| under_way.remove(&id)), &shared.flight) {
                    flight.abandon(due.place);
                }
            }
            Heard::Hole(why) => shared.tally.hole(&why),
            Heard::Say(_) | Heard::Welcome { .. } | Heard::Joined { .. } => {}
        })?;
        for say in says {
            client.say(say).await?;
        }
        Ok(())
    }
}

/// A publish was taken.
fn taken(shared: &Shared, due: Due) {
    shared.tally.answer(clock::now_us().saturating_sub(due.due_us));
    if let Some(flight) = &shared.flight {
        flight.tell(due.place);
    }
}

/// The next message that is due, and how to publish it; nothing of who does not publish.
async fn next(publishing: &mut Option<Publishing>) -> Option<(Due, &Publishing)> {
    let publishing = publishing.as_mut()?;
    let due = publishing.due.recv().await?;
    Some((due, publishing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_has_the_size_and_the_stamp() {
        let due = Due { number: 7, place: u32::MAX, due_us: 123_456_789 };
        for bytes in [64, 128, 1_000] {
            let text = data(due, bytes);
            assert_eq!(text.len(), bytes);
            let stamp: Stamp = serde_json::from_str(&text).unwrap();
            assert_eq!((stamp.n, stamp.s, stamp.due_us), (7, u32::MAX, 123_456_789));
        }
    }

    #[test]
    fn a_repeat_frees_no_place() {
        let (flight, mut free) = Flight::new(1);
        let place = free.try_recv().unwrap();
        flight.leave(place, 2);
        let shared = Shared { flight: Some(flight), ..Shared::default() };
        let text = data(Due { number: 0, place, due_us: 0 }, 64);
        let mut order = Order::default();
        take(&shared, &mut order, (0, true), &text, 64);
        take(&shared, &mut order, (0, true), &text, 64);
        assert!(free.try_recv().is_err());
        take(&shared, &mut Order::default(), (0, true), &text, 64);
        assert_eq!(free.try_recv().ok(), Some(place));
    }
}
