//! The shell of [`core::Hints`]: brings it what peers say of maps, and asks the store.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::{
    clock,
    cluster::{maps::MapCell, view::StoreView},
    logic::{
        hints::{self as core, HintInput, HintOutput},
        liveness::SharedPicture,
    },
    peer::mesh::Mesh,
    permit::Permit,
    store::Store,
    tasks::Tasks,
    wire::peer::PeerFrame,
};

/// What peers said and was not looked at yet. Past it more is dropped: it is said again.
const WAITING: usize = 64;

/// What hints are looked at with.
pub(super) struct HintsInputs {
    pub(super) mesh: Mesh,
    pub(super) maps: MapCell,
    pub(super) store: Arc<dyn Store>,
    pub(super) store_view: watch::Receiver<StoreView>,
    pub(super) pictures: watch::Receiver<SharedPicture>,
    pub(super) permit: Arc<Permit>,
}

/// Takes in what peers say of maps. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Hints(mpsc::Sender<HintInput>);

/// Nothing is looked at yet.
pub(super) struct IdleHints {
    inputs: HintsInputs,
    said: mpsc::Receiver<HintInput>,
}

impl Hints {
    /// What is said waits until it is started.
    pub(super) fn new(inputs: HintsInputs) -> (Self, IdleHints) {
        let (sender, said) = mpsc::channel(WAITING);
        (Self(sender), IdleHints { inputs, said })
    }

    /// A peer has said something.
    pub(super) fn hear(&self, input: HintInput) {
        if self.0.try_send(input).is_err() {
            tracing::debug!("what a peer said of the cluster map was dropped: too much waits");
        }
    }
}

impl IdleHints {
    pub(super) fn start(self, tasks: &Tasks) {
        tasks.spawn("map hints", self.run());
    }

    async fn run(self) {
        let Self { inputs, mut said } = self;
        let mut core = core::Hints::new();
        let (mut maps, mut pictures, mut store_view) =
            (inputs.maps.subscribe(), inputs.pictures.clone(), inputs.store_view.clone());
        maps.mark_changed();
        pictures.mark_changed();
        store_view.mark_changed();
        let mut reading: Option<BoxFuture<'static, HintInput>> = None;
        loop {
            let wake_at_ms = core.wake_at_ms();
            let woken = async {
                match wake_at_ms {
                    Some(at_ms) => {
                        tokio::time::sleep(Duration::from_millis(at_ms.saturating_sub(clock::mono_ms()))).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let read = async {
                match &mut reading {
                    Some(reading) => reading.await,
                    None => std::future::pending().await,
                }
            };
            let given = tokio::select! {
                Some(input) = said.recv() => vec![input],
                Ok(()) = maps.changed() => maps.borrow_and_update().clone().map(HintInput::Map).into_iter().collect(),
                Ok(()) = store_view.changed() => {
                    vec![HintInput::StoreIsUp(*store_view.borrow_and_update() != StoreView::Down)]
                }
                Ok(()) = pictures.changed() => {
                    let picture = pictures.borrow_and_update().clone();
                    of_picture(&picture, inputs.maps.version())
                }
                input = read => {
                    reading = None;
                    vec![input]
                }
                () = woken => vec![HintInput::Wake],
                else => return,
            };
            let mut out = Vec::new();
            given.into_iter().for_each(|input| core.handle(clock::mono_ms(), input, &mut out));
            for output in out {
                inputs.perform(output, &mut reading);
            }
        }
    }
}

/// Who is there, and what they say by gossip.
fn of_picture(picture: &SharedPicture, known: u64) -> Vec<HintInput> {
    let peers: BTreeSet<_> = picture.linked_peers().cloned().collect();
    let told = picture.know_more(known).map(|(member, version)| HintInput::Told { by: member.node, version });
    std::iter::once(HintInput::Peers(peers)).chain(told).collect()
}

impl HintsInputs {
    fn perform(&self, output: HintOutput, reading: &mut Option<BoxFuture<'static, HintInput>>) {
        match output {
            HintOutput::ReadMap => {
                let store = self.store.clone();
                let read = async move { HintInput::Read(store.read_map().await.ok().flatten().map(Arc::new)) };
                *reading = Some(Box::pin(read));
            }
            HintOutput::FetchMap { from, newer_than } => {
                let _ = self.mesh.send(&from, 0, &PeerFrame::FetchMap { newer_than });
            }
            HintOutput::Take(map) => {
                self.maps.offer(map);
            }
            HintOutput::Lied { by, version, stored, until_ms } => {
                self.permit.lied(&by, until_ms);
                tracing::warn!(
                    peer = %by, version, stored,
                    "a peer tells of a cluster map that the store does not have: it is not taken, and the peer is not listened to for a while"
                );
            }
        }
    }
}
