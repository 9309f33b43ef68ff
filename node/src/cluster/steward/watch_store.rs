//! Asks the store how it is, whether another process has been started under this node's name since, and, in case a message
//! got lost, for the map.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    cluster::{maps::MapCell, view::StoreView},
    id::Member,
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
/// Nothing for so much longer means that it is down.
const DOWN: Duration = Duration::from_millis(1_000);

/// Ends only where this node must not go on; `fault` says why.
pub(super) async fn run(
    me: Member,
    store: Arc<dyn Store>,
    map: MapCell,
    view: watch::Sender<StoreView>,
    fault: watch::Sender<Option<String>>,
) {
    for round in 0_u32.. {
        let ping = store.ping();
        tokio::pin!(ping);
        let state = match tokio::time::timeout(SLOW, &mut ping).await {
            Ok(answer) => {
                if answer.is_ok() {
                    StoreView::Up
                } else {
                    StoreView::Down
                }
            }
            Err(_) => {
                set(&view, StoreView::Slow);
                match tokio::time::timeout(DOWN, ping).await {
                    Ok(Ok(())) => StoreView::Slow,
                    _ => StoreView::Down,
                }
            }
        };
        set(&view, state);
        if state != StoreView::Down && round % GENERATION_EACH == 0 {
            match store.generation(&me.node).await {
                Ok(Some(latest)) if latest > me.generation => {
                    let reason = format!(
                        "another process was started as node {} (generation {latest}, this one is {}): this one stops. If \
                         that was not meant, give it a node.id of its own",
                        me.node, me.generation
                    );
                    tracing::error!("{reason}");
                    fault.send_replace(Some(reason));
                    return;
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "this node's generation could not be read"),
            }
        }
        if state != StoreView::Down && round % MAP_EACH == 0 {
            match store.read_map().await {
                Ok(Some(found)) => {
                    map.offer(Arc::new(found));
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the cluster map could not be read"),
            }
        }
        tokio::time::sleep(EVERY).await;
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
