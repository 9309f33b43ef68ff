//! The shell around the core, with a script in place of the slots. What the core decides is tested with it.

use async_trait::async_trait;
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

use super::*;
use crate::{
    config::Config,
    gateway::{
        ask::{Answer, Primaries},
        hub::tests::{Bench, group, outbox, wait_until},
    },
    logic::{
        entry::{EndReason, SessionRecord},
        request::{Ask as _, Push, Renewed, SessionRequest, SlotAnswer, SlotRequest},
    },
    permit::Permit,
};

const SESSION: SessionId = SessionId(Uuid::from_u128(5));

fn view(last_used_ms: u64) -> ClientView {
    let record = SessionRecord {
        id: SESSION,
        user: "u".to_owned(),
        created_ms: 0,
        expires_ms: 0,
        idle_ttl_ms: 0,
        last_used_ms,
        attributes: "{}".into(),
        groups: Default::default(),
        grants: Vec::new(),
        revision: last_used_ms,
        token: 0,
        clients_max: None,
    };
    ClientView { record, joined: Default::default() }
}

fn given(number: AttachmentNumber) -> Answer {
    Ok(SlotAnswer::Attached(Attached { view: view(10), attachment: number }))
}

/// The slot of the session: attaches are answered when the test says so, all else at once.
#[derive(Clone, Default)]
struct Script {
    state: Arc<Mutex<ScriptState>>,
}

#[derive(Default)]
struct ScriptState {
    asked: Vec<SlotRequest>,
    attaches: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// So many of the next requests are not heard.
    deaf: usize,
}

#[async_trait]
impl Primaries for Script {
    async fn call(
        &self,
        slot: SlotId,
        request: SlotRequest,
        _deadline: Duration,
        _over: Option<&CancellationToken>,
    ) -> Answer {
        assert_eq!(slot, SESSION.slot(8));
        let answer = {
            let mut state = self.state.lock().unwrap();
            state.asked.push(request.clone());
            match request {
                SlotRequest::Session(_, SessionRequest::Attach(Attach { connection, .. })) => {
                    let (sender, answer) = oneshot::channel();
                    state.attaches.insert(connection, sender);
                    answer
                }
                _ if state.deaf > 0 => {
                    state.deaf -= 1;
                    return Err(SlotError::Unavailable);
                }
                SlotRequest::Renew { attachments } => {
                    let sessions =
                        attachments.into_iter().map(|renewal| (renewal.session, renewal.client.key())).collect();
                    return Ok(SlotAnswer::Renewed(Renewed { confirmed: sessions, wanted: Vec::new() }));
                }
                _ => return Ok(SlotAnswer::Done(Done)),
            }
        };
        answer.await.unwrap()
    }
}

/// A hub, and the attachments that use it.
struct Desk {
    bench: Bench,
    script: Script,
    attachments: Attachments,
}

type Attaching = JoinHandle<Result<Held, NotAttached>>;

impl Desk {
    async fn new() -> Self {
        let (mut bench, script) = (Bench::new().await, Script::default());
        let ask = Ask::new(Arc::new(script.clone()), bench.maps.subscribe(), &Config::default(), bench.metrics.clone());
        let news = bench.sessions.take().unwrap();
        let attachments =
            Attachments::start(ask, bench.hub.clone(), (news, Permit::default().episodes()), &bench.tasks);
        Self { bench, script, attachments }
    }

    /// A connection asks for the session.
    #[expect(clippy::disallowed_methods, reason = "in place of the connection's own task")]
    async fn open(&self, outbox: &Arc<Outbox>) -> (Attaching, CancellationToken) {
        let (attachments, outbox, over) = (self.attachments.clone(), outbox.clone(), CancellationToken::new());
        let (connection, token) = (outbox.connection, over.clone());
        let task = tokio::spawn(async move {
            attachments.attach((Signed { session: SESSION, number: 0 }, &client()), &outbox, &over).await
        });
        wait_until("it is asked for", || self.script.state.lock().unwrap().attaches.contains_key(&connection)).await;
        (task, token)
    }

    /// The slot answers to the connection.
    fn answer(&self, connection: u64, answer: Answer) {
        let asked = self.script.state.lock().unwrap().attaches.remove(&connection).unwrap();
        asked.send(answer).unwrap();
    }

    async fn attach(&self, outbox: &Arc<Outbox>, number: AttachmentNumber) -> Result<Held, NotAttached> {
        let (attaching, _) = self.open(outbox).await;
        self.answer(outbox.connection, given(number));
        attaching.await.unwrap()
    }

    fn news(&self, push: SessionPush) {
        self.attachments.handle(input_of(SessionNews { slot: SESSION.slot(8), session: SESSION, push }));
    }

    fn asked(&self, request: &SlotRequest) -> usize {
        self.script.state.lock().unwrap().asked.iter().filter(|asked| *asked == request).count()
    }

    async fn said(&self, request: impl Into<SessionRequest>) {
        let request = SlotRequest::Session(SESSION, request.into());
        wait_until(&format!("{request:?} is said"), || self.asked(&request) > 0).await;
    }

    async fn end(self) {
        let registry = std::mem::take(&mut self.attachments.lock().connections);
        assert!(registry.is_empty(), "{registry:?} is kept");
        self.bench.end().await;
    }
}

fn client() -> ClientId {
    ClientId::made(1)
}

fn displace(number: AttachmentNumber) -> SessionPush {
    SessionPush::Displace { client: client().key(), why: Displaced::Elsewhere, attachment: number }
}

/// What the client gets last, and with which code it is closed.
fn goodbye(outbox: &Outbox) -> (Vec<String>, Option<Reason>) {
    let batch = outbox.take();
    (batch.frames.iter().map(|frame| frame.as_str().to_owned()).collect(), batch.closing.map(|closing| closing.reason))
}

fn said_displaced() -> (Vec<String>, Option<Reason>) {
    (vec![r#"{"type":"displaced"}"#.to_owned()], Some(Reason::Displaced))
}

#[tokio::test]
async fn a_displaced_connection_is_cut_and_unsubscribed_before_it_is_confirmed() {
    let desk = Desk::new().await;
    let outbox = outbox(1);
    assert_eq!(desk.attach(&outbox, 4).await.unwrap().number, 4);
    desk.bench.joined(&outbox, &group("chat"), None).await;
    desk.news(displace(3));
    desk.said(ConfirmDisplaced { client: client().key(), attachment: 3 }).await;
    assert!(!outbox.is_closing(), "an earlier one was meant");
    // All the way that a primary's news comes.
    desk.bench.deliveries.deliver(SESSION.slot(8), 1, Push::Session(SESSION, displace(4))).await;
    desk.said(ConfirmDisplaced { client: client().key(), attachment: 4 }).await;
    assert_eq!(goodbye(&outbox), said_displaced(), "what was queued is dropped");
    assert!(desk.bench.hub.membership().is_empty() && desk.attachments.is_empty());
    desk.attachments.gone(1);
    desk.end().await;
}

#[tokio::test]
async fn a_later_attachment_here_displaces_the_earlier_in_whatever_order_they_come() {
    let desk = Desk::new().await;
    let (one, two, three) = (outbox(1), outbox(2), outbox(3));
    desk.attach(&one, 4).await.unwrap();
    desk.attach(&two, 5).await.unwrap();
    assert_eq!(goodbye(&one), said_displaced());
    assert_eq!(desk.attach(&three, 3).await.unwrap_err(), NotAttached::Over);
    assert_eq!(goodbye(&three), said_displaced());
    desk.attachments.gone(1);
    assert_eq!((desk.attachments.len(), two.is_closing()), (1, false));
    desk.attachments.gone(2);
    assert!(desk.attachments.is_empty());
    desk.said(Detach { client: client().key(), attachment: 5 }).await;
    desk.end().await;
}

#[tokio::test]
async fn news_that_overtakes_the_attachment_is_not_forgotten() {
    let desk = Desk::new().await;
    let one = outbox(1);
    let (attaching, _) = desk.open(&one).await;
    desk.news(displace(4));
    desk.answer(1, given(4));
    assert_eq!(attaching.await.unwrap().unwrap_err(), NotAttached::Over);
    assert_eq!(goodbye(&one), said_displaced());
    for (connection, used_ms, expected) in [(2, 9, 10), (3, 11, 11)] {
        let (attaching, _) = desk.open(&outbox(connection)).await;
        desk.news(SessionPush::Changed { client: client().key(), view: view(used_ms) });
        desk.answer(connection, given(5));
        let held = attaching.await.unwrap().unwrap();
        assert_eq!(held.changes.borrow().view.record.last_used_ms, expected, "the later of the two records stands");
        desk.attachments.gone(connection);
    }
    let four = outbox(4);
    let (attaching, _) = desk.open(&four).await;
    desk.news(SessionPush::Ended { reason: EndReason::Expired });
    desk.answer(4, given(6));
    assert_eq!(attaching.await.unwrap().unwrap_err(), NotAttached::Over);
    assert_eq!(goodbye(&four), (vec![], Some(Reason::SessionEnded)));
    desk.end().await;
}

#[tokio::test]
async fn a_session_that_ends_or_changes_is_told_to_its_connection() {
    let desk = Desk::new().await;
    let outbox = outbox(1);
    let mut held = desk.attach(&outbox, 4).await.unwrap();
    held.changes.mark_unchanged();
    desk.news(SessionPush::Changed { client: client().key(), view: view(15) });
    assert!(held.changes.has_changed().unwrap());
    assert_eq!(held.changes.borrow().view.record.last_used_ms, 15);
    desk.news(SessionPush::Ended { reason: EndReason::Ended });
    assert_eq!(goodbye(&outbox), (vec![], Some(Reason::SessionEnded)));
    assert!(desk.attachments.is_empty());
    desk.attachments.gone(1);
    desk.end().await;
}

#[tokio::test]
async fn what_came_of_an_attach_whose_client_is_gone_is_undone() {
    let desk = Desk::new().await;
    // A client that goes is not asked for again.
    let (attaching, over) = desk.open(&outbox(1)).await;
    assert!(!over.is_cancelled());
    desk.attachments.gone(1);
    assert!(over.is_cancelled());
    // The slot has given the session all the same.
    desk.answer(1, given(4));
    assert_eq!(attaching.await.unwrap().unwrap_err(), NotAttached::Over);
    desk.said(Detach { client: client().key(), attachment: 4 }).await;
    // Nobody knows what came of it; the client is there and is told so.
    let (attaching, _) = desk.open(&outbox(2)).await;
    desk.answer(2, Err(SlotError::Unknown));
    assert_eq!(attaching.await.unwrap().unwrap_err(), NotAttached::Refused(SlotError::Unknown));
    desk.said(Withdraw { client: client().key(), connection: 2 }).await;
    // The connection's task ends in the middle.
    let (attaching, _) = desk.open(&outbox(3)).await;
    attaching.abort();
    desk.said(Withdraw { client: client().key(), connection: 3 }).await;
    desk.end().await;
}

#[tokio::test]
async fn a_goodbye_is_said_until_it_is_heard() {
    let desk = Desk::new().await;
    let held = desk.attach(&outbox(1), 4).await.unwrap();
    desk.script.state.lock().unwrap().deaf = 2;
    desk.attachments.gone(1);
    drop(held);
    let detach = (SESSION, Detach { client: client().key(), attachment: 4 }).into_request();
    wait_until("it is heard", || desk.asked(&detach) == 3).await;
    desk.end().await;
}

#[tokio::test]
async fn attachments_are_renewed() {
    let desk = Desk::new().await;
    let _held = desk.attach(&outbox(1), 4).await.unwrap();
    let renewal = Renew(vec![Renewal {
        session: SESSION,
        client: client(),
        attachment: 4,
        connection: 1,
        revision: 10,
        joined: None,
    }])
    .into_request();
    wait_until("it is renewed", || desk.asked(&renewal) > 0).await;
    desk.attachments.gone(1);
    desk.end().await;
}
