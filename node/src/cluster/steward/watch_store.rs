//! Asks the store how it is, whether another process has been started under this node's name since, and, in case a message
//! got lost, for the map.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    clock,
    cluster::{clocks::ClockWatch, maps::MapCell, view::StoreView},
    id::Member,
    logic::clocks::Voice,
    store::{Store, StoreError},
};

/// Between pings.
const EVERY: Duration = Duration::from_secs(1);
/// The map is read with each so-manieth ping.
const MAP_EACH: u32 = 5;
/// This node's generation is read with each so-manieth ping.
const GENERATION_EACH: u32 = 2;
/// An answer that takes longer means a slow store.
const SLOW: Duration = Duration::from_millis(500);
/// Nothing for this much longer means that it is down.
const DOWN: Duration = Duration::from_millis(1_000);

/// Ends only where this node must not go on; `fault` says why.
pub(super) async fn run(
    me: Member,
    store: Arc<dyn Store>,
    map: MapCell,
    clocks: ClockWatch,
    view: watch::Sender<StoreView>,
    fault: watch::Sender<Option<String>>,
) {
    for round in 0_u32.. {
        let asked_ms = clock::mono_ms();
        let pinged = ask(&view, store.ping()).await;
        if let Some(Some(theirs_ms)) = pinged {
            clocks.heard(Voice::Store, theirs_ms, asked_ms);
        }
        let up = pinged.is_some();
        if up && round % GENERATION_EACH == 0 {
            let latest = ask(&view, store.generation(&me.node)).await.flatten();
            if let Some(latest) = latest.filter(|latest| *latest > me.generation) {
                let reason = format!(
                    "another process was started as node {} (generation {latest}, this one is {}): this one stops. If that \
                     was not meant, give it a node.id of its own",
                    me.node, me.generation
                );
                tracing::error!("{reason}");
                fault.send_replace(Some(reason));
                return;
            }
        }
        if up
            && round % MAP_EACH == 0
            && let Some(found) = ask(&view, store.read_map()).await.flatten()
        {
            map.offer(Arc::new(found));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What the store answers, if it does in time; in any case how it is, is noted as soon as that is known.
async fn ask<T>(view: &watch::Sender<StoreView>, request: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
    tokio::pin!(request);
    let (answer, state) = match tokio::time::timeout(SLOW, &mut request).await {
        Ok(answer) => (Some(answer), StoreView::Up),
        Err(_) => {
            set(view, StoreView::Slow);
            (tokio::time::timeout(DOWN, request).await.ok(), StoreView::Slow)
        }
    };
    match answer {
        Some(Ok(answer)) => {
            set(view, state);
            Some(answer)
        }
        failed => {
            set(view, StoreView::Down);
            if let Some(Err(error)) = failed {
                tracing::debug!(%error, "the store does not answer");
            }
            None
        }
    }
}

/// Runs a request to the store and notes that it was slow or failed; the next ping says when that is over.
pub(super) async fn timed<T>(
    view: &watch::Sender<StoreView>,
    request: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::pin!(request);
    let result = match tokio::time::timeout(SLOW, &mut request).await {
        Ok(result) => result,
        Err(_) => {
            set(view, StoreView::Slow);
            request.await
        }
    };
    if result.is_err() {
        set(view, StoreView::Down);
    }
    result
}

fn set(view: &watch::Sender<StoreView>, state: StoreView) {
    view.send_if_modified(|known| {
        let before = std::mem::replace(known, state);
        if before != state {
            tracing::info!(?before, now = ?state, "the store, as this node sees it");
        }
        before != state
    });
}
