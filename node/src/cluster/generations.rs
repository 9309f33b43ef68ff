//! Asks the store which start of a node it has allotted last, where that matters: gossip tells of one that neither the map nor
//! the store does, or the node is not there. Only what the store answers counts ([`crate::logic::liveness`]).
//!
//! One question at a time, and each node is asked about at a bounded rate: who makes starts up makes the store no work.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    clock,
    id::{Generation, NodeId},
    logic::liveness::{Picture, SharedPicture},
    store::Store,
};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two questions about one node: this, then twice as long each time, for as long as the answer is the same and
/// gossip tells of the same start.
const AGAIN_MS: u64 = 250;
const AGAIN_MAX_MS: u64 = 10_000;
/// Nodes of which it is remembered when they were asked about.
const REMEMBERED_MAX: usize = 1_024;

/// When a node was asked about.
#[derive(Debug, Default)]
struct Asked {
    /// What gossip told of then.
    heard: Option<Generation>,
    answer: Option<Generation>,
    not_before_ms: u64,
    pause_ms: u64,
}

/// Runs for as long as there are pictures and somebody wants to know.
pub async fn run(
    store: Arc<dyn Store>,
    mut pictures: watch::Receiver<SharedPicture>,
    known: watch::Sender<BTreeMap<NodeId, Generation>>,
) {
    let mut asked = BTreeMap::new();
    loop {
        let picture = pictures.borrow_and_update().clone();
        let Some(node) = due(&picture, &asked, clock::mono_ms()) else {
            // A picture comes with each look.
            if pictures.changed().await.is_err() || known.is_closed() {
                return;
            }
            continue;
        };
        let answer = store.generation(&node).await;
        note(&mut asked, &picture, &node, answer.as_ref().ok().copied().flatten(), clock::mono_ms());
        match answer {
            // Also where it is what was answered before: whoever asks anew may have forgotten it, since nobody told of the node.
            Ok(Some(generation)) => known.send_modify(|known| _ = known.insert(node, generation)),
            Ok(None) => {}
            Err(error) => tracing::debug!(%node, %error, "which start of a node the store has is not known"),
        }
        known.send_if_modified(|known| {
            // Of nodes that nobody tells of any more nothing has to be known.
            known.retain(|node, _| picture.nodes.contains_key(node));
            false
        });
        tokio::time::sleep(PAUSE).await;
    }
}

/// The most pressing node that may be asked about.
fn due(picture: &Picture, asked: &BTreeMap<NodeId, Asked>, now_ms: u64) -> Option<NodeId> {
    let may_be_asked = |node: &&NodeId| {
        asked.get(*node).map_or(asked.len() < REMEMBERED_MAX, |asked| {
            let is_news = asked.heard != picture.unproven.get(*node).copied();
            let soonest_ms = asked.not_before_ms.saturating_sub(asked.pause_ms) + AGAIN_MS;
            asked.not_before_ms <= now_ms || (is_news && soonest_ms <= now_ms)
        })
    };
    picture.to_ask().find(may_be_asked).cloned()
}

fn note(
    asked: &mut BTreeMap<NodeId, Asked>,
    picture: &Picture,
    node: &NodeId,
    answer: Option<Generation>,
    now_ms: u64,
) {
    if asked.len() >= REMEMBERED_MAX {
        asked.retain(|_, asked| now_ms < asked.not_before_ms);
    }
    let heard = picture.unproven.get(node).copied();
    let before = asked.entry(node.clone()).or_default();
    let is_same = before.heard == heard && before.answer == answer;
    before.pause_ms = if is_same { (before.pause_ms * 2).clamp(AGAIN_MS, AGAIN_MAX_MS) } else { AGAIN_MS };
    (before.heard, before.answer, before.not_before_ms) = (heard, answer, now_ms + before.pause_ms);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::Member,
        logic::{
            Now,
            liveness::{Liveness, LivenessInput, LivenessSettings, Says, Sign},
            plan::Life,
        },
        store::embedded::EmbeddedStore,
    };

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    /// As `n1` sees it where gossip tells of these.
    fn picture(told: &[(&str, Generation)]) -> SharedPicture {
        let settings = LivenessSettings { look_ms: 200, quiet_ms: 600 };
        let now = Now { mono_ms: 0, wall_ms: 0 };
        let mut liveness = Liveness::new(Member { node: node("n1"), generation: 1 }, settings, now);
        let sign = |(name, generation): &(&str, Generation)| Sign {
            member: Member { node: node(name), generation: *generation },
            says: Says { life: Life::Serving, zone: String::new(), store_up: true, map_version: 0 },
            heartbeat: 1,
            live: true,
            linked: false,
            answers: None,
        };
        liveness.handle(now, LivenessInput::Look(told.iter().map(sign).collect()), &mut Vec::new());
        liveness.shown().clone()
    }

    #[test]
    fn starts_that_are_made_up_make_the_store_no_work() {
        let mut asked = BTreeMap::new();
        let mut questions = 0;
        for now_ms in 0..60_000 {
            // A start that nobody has heard of each millisecond.
            let picture = picture(&[("n2", 1_000 + now_ms)]);
            if let Some(node) = due(&picture, &asked, now_ms) {
                questions += 1;
                note(&mut asked, &picture, &node, Some(5), now_ms);
            }
        }
        assert_eq!(questions, 60_000 / AGAIN_MS);
        // And the same one again and again next to none.
        let (mut asked, picture) = (BTreeMap::new(), picture(&[("n2", 1 << 40)]));
        let mut times = Vec::new();
        for now_ms in 0..60_000 {
            if let Some(node) = due(&picture, &asked, now_ms) {
                times.push(now_ms);
                note(&mut asked, &picture, &node, Some(5), now_ms);
            }
        }
        assert_eq!(times[..4], [0, 250, 750, 1_750]);
        assert!(times.len() < 12, "{times:?}");
    }

    #[test]
    fn names_that_are_made_up_leave_room_for_one_that_is_news() {
        let mut asked = BTreeMap::new();
        for number in 0..2 * REMEMBERED_MAX {
            let name = format!("x{number}");
            let picture = picture(&[(&name, 1)]);
            if let Some(node) = due(&picture, &asked, 0) {
                note(&mut asked, &picture, &node, None, 0);
            }
        }
        assert_eq!(asked.len(), REMEMBERED_MAX);
        let picture = picture(&[("n2", 2)]);
        assert_eq!(due(&picture, &asked, 0), None);
        note(&mut asked, &picture, &node("x1"), None, AGAIN_MS);
        assert_eq!(due(&picture, &asked, AGAIN_MS), Some(node("n2")));
    }

    #[tokio::test]
    async fn who_asks_anew_is_answered_anew() {
        let folder = tempfile::TempDir::new().unwrap();
        let store: Arc<dyn Store> = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
        let generation = store.next_generation(&node("n2")).await.unwrap();
        let (pictures, shown) = watch::channel(picture(&[("n2", generation)]));
        let (known, mut answers) = watch::channel(BTreeMap::new());
        let mut asking = tokio::task::JoinSet::new();
        asking.spawn(run(store, shown, known));
        let limit = Duration::from_secs(30);
        // It goes away and comes back, and whoever judges has forgotten what it was told.
        for _ in 0..2 {
            let showing = async {
                loop {
                    pictures.send_replace(picture(&[("n2", generation)]));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                answered = tokio::time::timeout(limit, answers.changed()) => {
                    answered.expect("an answer").unwrap();
                }
                () = showing => unreachable!("it has no end"),
            }
            assert_eq!(answers.borrow_and_update().get(&node("n2")), Some(&generation));
            pictures.send_replace(picture(&[]));
        }
    }
}
