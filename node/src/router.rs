//! Brings a request to the primary of its slot, here or elsewhere, and tries again while the map changes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    id::{Member, NodeId, SlotId},
    logic::{
        map::SharedMap,
        request::{self, Ask, Attach, SessionRequest, SlotAnswer, SlotError, SlotRequest},
    },
    peer::mesh::Mesh,
    slots::Slots,
    wire::peer::{NodeAnswer, NodeRequest, PeerFrame},
};

/// One attempt at a primary that is believed to be there takes no longer; then the map is looked at again.
const ATTEMPT: Duration = Duration::from_millis(1_500);
/// Between attempts while nothing is known to have changed.
const AGAIN: Duration = Duration::from_millis(25);

type Answer = Result<SlotAnswer, SlotError>;

/// The answer of the kind that was asked for. One of another kind is a mistake of the node that sent it, and says nothing
/// about what was done.
pub fn typed<A: request::Answer>(answer: Result<SlotAnswer, SlotError>) -> Result<A, SlotError> {
    A::read(answer?).map_err(|other| {
        tracing::error!(answer = ?other, "a primary has answered something else than was asked");
        SlotError::Unknown
    })
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Router {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    me: Member,
    maps: watch::Receiver<Option<SharedMap>>,
    mesh: Mesh,
    slots: Slots,
    next_id: AtomicU64,
    /// Requests at peers, by id. Bounded by who may ask: connections and HTTP requests are.
    waiting: Mutex<BTreeMap<u64, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    peer: NodeId,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    Slot(oneshot::Sender<Answer>),
    Node(oneshot::Sender<NodeAnswer>),
}

/// What one attempt came to.
enum Attempt {
    Answered(Answer),
    /// Nobody was asked.
    NotSent,
    /// It was asked, and the answer did not come.
    Lost,
}

impl Router {
    /// A router for this process.
    pub fn new(me: Member, maps: watch::Receiver<Option<SharedMap>>, mesh: Mesh, slots: Slots) -> Self {
        let (next_id, waiting) = (AtomicU64::new(1), Mutex::default());
        Self { shared: Arc::new(Shared { me, maps, mesh, slots, next_id, waiting }) }
    }

    /// Asks the slot's primary and waits for the answer, at most until the deadline. `NotPrimary` and lost answers are
    /// tried again inside; past the deadline the answer is `Unknown` for something that may have been done.
    /// Nothing is tried again once `over` is cancelled: an attempt that is under way is waited for.
    pub async fn call<R: Ask>(
        &self,
        slot: SlotId,
        ask: R,
        deadline: Duration,
        over: Option<&CancellationToken>,
    ) -> Result<R::Answer, SlotError> {
        typed(self.carry(slot, ask.into_request(), deadline, over).await)
    }

    /// As [`Router::call`], for any request.
    pub async fn carry(
        &self,
        slot: SlotId,
        mut request: SlotRequest,
        deadline: Duration,
        over: Option<&CancellationToken>,
    ) -> Answer {
        let (asked_ms, until) = (clock::mono_ms(), clock::deadline(deadline));
        let mut maps = self.shared.maps.clone();
        let mut may_be_done = false;
        loop {
            let map = maps.borrow_and_update().clone();
            let assignment = map.as_ref().and_then(|map| map.slot(slot)).cloned();
            let attempt = match assignment {
                Some(assignment) => {
                    if let SlotRequest::Session(_, SessionRequest::Attach(Attach { waited_ms, .. })) = &mut request {
                        *waited_ms = clock::mono_ms().saturating_sub(asked_ms) as u32;
                    }
                    let left = until.saturating_duration_since(clock::deadline(Duration::ZERO)).min(ATTEMPT);
                    let attempt = self.attempt(slot, assignment.term, &assignment.primary, left, request.clone());
                    // A primary that has been replaced will not answer: look at every new map.
                    let replaced = async {
                        while maps.changed().await.is_ok() {
                            let now = maps.borrow().as_ref().and_then(|map| map.slot(slot)).map(|slot| slot.term);
                            if now != Some(assignment.term) {
                                return;
                            }
                        }
                        std::future::pending::<()>().await;
                    };
                    tokio::select! {
                        attempt = attempt => attempt,
                        () = replaced => Attempt::Lost,
                        () = tokio::time::sleep_until(until) => Attempt::Lost,
                    }
                }
                None => Attempt::NotSent,
            };
            match attempt {
                Attempt::Answered(Err(SlotError::NotPrimary { map_version })) => {
                    if map.is_none_or(|map| map.version < map_version) {
                        self.fetch_map(slot);
                    }
                }
                Attempt::Answered(answer) => return answer,
                Attempt::NotSent => {}
                Attempt::Lost => may_be_done = true,
            }
            let changed = tokio::time::timeout(AGAIN, maps.changed());
            let is_over = async {
                match over {
                    Some(over) => over.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = is_over => break,
                () = tokio::time::sleep_until(until) => break,
                _ = changed => {}
            }
        }
        Err(if may_be_done { SlotError::Unknown } else { SlotError::Unavailable })
    }

    /// Nobody waits for the answer for longer than `wait`, nor may the request be carried out later.
    async fn attempt(
        &self,
        slot: SlotId,
        term: u64,
        primary: &Member,
        wait: Duration,
        request: SlotRequest,
    ) -> Attempt {
        if *primary == self.shared.me {
            let answer = self.shared.slots.request_here(slot, term, request).await;
            return answer.await.map_or(Attempt::Lost, Attempt::Answered);
        }
        let (reply, answer) = oneshot::channel();
        let ticket = self.enter(&primary.node, Reply::Slot(reply));
        let (sent_ms, wait_ms) = (clock::mono_ms(), wait.as_millis() as u32);
        let frame = PeerFrame::Request { id: ticket.id, slot, term, sent_ms, wait_ms, request };
        if self.shared.mesh.send(&primary.node, slot, &frame).is_err() {
            return Attempt::NotSent;
        }
        match tokio::time::timeout(wait, answer).await {
            Ok(Ok(answer)) => Attempt::Answered(answer),
            _ => Attempt::Lost,
        }
    }

    /// Asks one node; nothing where it does not answer in time.
    pub async fn ask_node(&self, node: &NodeId, request: NodeRequest, deadline: Duration) -> Option<NodeAnswer> {
        let (reply, answer) = oneshot::channel();
        let ticket = self.enter(node, Reply::Node(reply));
        self.shared.mesh.send(node, 0, &PeerFrame::NodeRequest { id: ticket.id, request }).ok()?;
        tokio::time::timeout(deadline, answer).await.ok()?.ok()
    }

    /// A peer has answered.
    pub fn answered(&self, from: &NodeId, id: u64, result: Answer) {
        if let Some(Waiting { reply: Reply::Slot(reply), .. }) = self.take(from, id) {
            let _ = reply.send(result);
        }
    }

    /// A peer has answered.
    pub fn node_answered(&self, from: &NodeId, id: u64, answer: NodeAnswer) {
        if let Some(Waiting { reply: Reply::Node(reply), .. }) = self.take(from, id) {
            let _ = reply.send(answer);
        }
    }

    /// Answers that this peer has sent may be lost: whoever waits for one asks again.
    pub fn peer_disrupted(&self, peer: &NodeId) {
        self.waiting().retain(|_, waiting| waiting.peer != *peer);
    }

    /// The map as this node knows it.
    pub fn map(&self) -> Option<SharedMap> {
        self.shared.maps.borrow().clone()
    }

    fn fetch_map(&self, slot: SlotId) {
        let Some(map) = self.map() else { return };
        if let Some(assignment) = map.slot(slot) {
            let _ =
                self.shared.mesh.send(&assignment.primary.node, 0, &PeerFrame::FetchMap { newer_than: map.version });
        }
    }

    fn enter(&self, peer: &NodeId, reply: Reply) -> Ticket<'_> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(id, Waiting { peer: peer.clone(), reply });
        Ticket { router: self, id }
    }

    fn take(&self, from: &NodeId, id: u64) -> Option<Waiting> {
        let mut waiting = self.waiting();
        // An answer from another than the one asked is nobody's.
        if waiting.get(&id).is_some_and(|waiting| waiting.peer == *from) { waiting.remove(&id) } else { None }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Waiting>> {
        // No code panics while it holds this lock, and the map is whole at every step.
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the request when nobody waits for it any more.
struct Ticket<'a> {
    router: &'a Router,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.router.waiting().remove(&self.id);
    }
}
