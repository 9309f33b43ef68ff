//! Brings a request to the primary of its slot, here or elsewhere, and tries again while the map changes.

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    id::{Member, NodeId, SlotId, Term},
    logic::{
        asking::{Asking, Attempt, Input, Output, Outstanding},
        map::SharedMap,
        request::{self, Ask, SlotAnswer, SlotError, SlotRequest},
    },
    peer::{SendError, mesh::Mesh},
    seldom::Seldom,
    slots::Slots,
    wire::peer::{NodeAnswer, NodeRequest, PeerFrame},
};

type Answer = Result<SlotAnswer, SlotError>;

/// The answer of the kind that was asked for. One of another kind is a mistake of the node that sent it, and says nothing
/// about what was done.
pub fn typed<A: request::Answer>(answer: Result<SlotAnswer, SlotError>) -> Result<A, SlotError> {
    A::read(answer?).map_err(|other| {
        static COMPLAIN: Seldom = Seldom::new();
        if let Some(left_out) = COMPLAIN.now() {
            tracing::error!(answer = ?other, left_out, "a primary has answered something else than was asked");
        }
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
    /// What peers were asked. Bounded by who may ask: connections and HTTP requests are.
    outstanding: Mutex<Outstanding<Reply>>,
}

#[derive(Debug)]
enum Reply {
    Slot(oneshot::Sender<Answer>),
    Node(oneshot::Sender<NodeAnswer>),
}

/// Whom one attempt asks.
struct Asked {
    attempt: Attempt,
    to: Member,
    term: Term,
    wait_ms: u64,
}

impl Router {
    /// A router for this process.
    pub fn new(me: Member, maps: watch::Receiver<Option<SharedMap>>, mesh: Mesh, slots: Slots) -> Self {
        Self { shared: Arc::new(Shared { me, maps, mesh, slots, outstanding: Mutex::default() }) }
    }

    /// Asks the slot's primary and waits for the answer, at most until the deadline: drives one [`Asking`]. Once `over` is
    /// cancelled nothing is tried again; an attempt that is under way is waited for.
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
        request: SlotRequest,
        deadline: Duration,
        over: Option<&CancellationToken>,
    ) -> Answer {
        let mut maps = self.shared.maps.clone();
        let mut asking = Asking::new(clock::mono_ms(), deadline.as_millis() as u64, rand::random()).of(&request);
        // A part of this future: an attempt needs no memory of its own.
        let mut under_way = pin!(None);
        let (mut out, mut is_over) = (Vec::new(), over.is_some_and(CancellationToken::is_cancelled));
        if is_over {
            asking.handle(clock::mono_ms(), Input::Over, &mut out);
        }
        asking.handle(clock::mono_ms(), map_of(&mut maps, slot), &mut out);
        loop {
            for output in out.drain(..) {
                match output {
                    Output::Send { attempt, to, term, wait_ms, waited_ms } => {
                        let asked = Asked { attempt, to, term, wait_ms };
                        let request = request.clone().waited(waited_ms);
                        under_way.set(Some(self.attempt(slot, asked, request)));
                    }
                    Output::FetchMap { from, newer_than } => {
                        let _ = self.shared.mesh.send(&from.node, 0, &PeerFrame::FetchMap { newer_than });
                    }
                    Output::Done(answer) => return answer,
                }
            }
            let wake_ms = asking.wake_ms().unwrap_or(0);
            let wake = clock::deadline(Duration::from_millis(wake_ms.saturating_sub(clock::mono_ms())));
            let input = tokio::select! {
                biased;
                input = outcome(under_way.as_mut()) => input,
                () = cancelled(over), if !is_over => {
                    is_over = true;
                    Input::Over
                }
                () = newer(&mut maps) => map_of(&mut maps, slot),
                () = tokio::time::sleep_until(wake) => Input::Due,
            };
            asking.handle(clock::mono_ms(), input, &mut out);
        }
    }

    /// Nobody waits for the answer for longer than `wait_ms`, nor may the request be carried out later.
    async fn attempt(&self, slot: SlotId, asked: Asked, request: SlotRequest) -> Input {
        let Asked { attempt, to, term, wait_ms } = asked;
        let answered = |answer: Result<Answer, _>| match answer {
            Ok(result) => Input::Answered { attempt, result },
            Err(oneshot::error::RecvError { .. }) => Input::Lost { attempt },
        };
        if to == self.shared.me {
            return answered(self.shared.slots.request_here(slot, term, request).await.await);
        }
        let (reply, answer) = oneshot::channel();
        let ticket = self.enter(&to.node, Reply::Slot(reply));
        let (sent_ms, wait_ms) = (clock::mono_ms(), wait_ms as u32);
        let frame = PeerFrame::Request { id: ticket.id, slot, term, sent_ms, wait_ms, request };
        match self.shared.mesh.send(&to.node, slot, &frame) {
            Ok(()) => answered(answer.await),
            Err(SendError::TooLong) => Input::Answered { attempt, result: Err(SlotError::TooLong { done: false }) },
            Err(SendError::Down | SendError::Full | SendError::Busy) => Input::NotSent { attempt },
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
        if let Some(Reply::Slot(reply)) = self.outstanding().answered(from, id) {
            let _ = reply.send(result);
        }
    }

    /// A peer has answered.
    pub fn node_answered(&self, from: &NodeId, id: u64, answer: NodeAnswer) {
        if let Some(Reply::Node(reply)) = self.outstanding().answered(from, id) {
            let _ = reply.send(answer);
        }
    }

    /// Answers that this peer has sent may be lost: whoever waits for one asks again.
    pub fn peer_disrupted(&self, peer: &NodeId) {
        let lost = self.outstanding().disrupted(peer);
        drop(lost);
    }

    /// The map as this node knows it.
    pub fn map(&self) -> Option<SharedMap> {
        self.shared.maps.borrow().clone()
    }

    fn enter(&self, peer: &NodeId, reply: Reply) -> Ticket<'_> {
        Ticket { router: self, id: self.outstanding().ask(peer, reply) }
    }

    fn outstanding(&self) -> MutexGuard<'_, Outstanding<Reply>> {
        // No code panics while it holds this lock, and the map is whole at every step.
        self.shared.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Maps = watch::Receiver<Option<SharedMap>>;

/// What the newest map says of a slot.
fn map_of(maps: &mut Maps, slot: SlotId) -> Input {
    let map = maps.borrow_and_update();
    let assignment = map.as_ref().and_then(|map| map.slot(slot));
    let primary = assignment.map(|assignment| (assignment.primary.clone(), assignment.term));
    Input::Map { version: map.as_ref().map_or(0, |map| map.version), primary }
}

/// Waits for another map; for ever where there will be none. Cancel-safe.
async fn newer(maps: &mut Maps) {
    if maps.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for what becomes of the attempt that is under way; for ever where there is none. Cancel-safe.
async fn outcome<F: Future<Output = Input>>(mut under_way: Pin<&mut Option<F>>) -> Input {
    match under_way.as_mut().as_pin_mut() {
        Some(attempt) => {
            let input = attempt.await;
            under_way.set(None);
            input
        }
        None => std::future::pending().await,
    }
}

async fn cancelled(over: Option<&CancellationToken>) {
    match over {
        Some(over) => over.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Forgets the request when nobody waits for it any more.
struct Ticket<'a> {
    router: &'a Router,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.router.outstanding().forget(self.id);
    }
}
