//! What a shard asks of the slots' primaries: gathered, sent by tasks of a bounded number, answered through its inbox.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Semaphore, mpsc};

use super::{Answer, Input};
use crate::{
    gateway::ask::Ask,
    id::{AttachmentNumber, GroupName, Position, SessionId, SlotId},
    logic::{
        entry::Presence,
        feed::Attempt,
        request::{Interest, Join, Leave, Register, SlotError, Unregister},
    },
    tasks::Tasks,
};

/// Requests of one shard that are under way at once.
const IN_FLIGHT: usize = 1_024;

/// Joins and leaves that may wait for their turn; past it they are refused as `busy`.
const WAITING: usize = 65_536;

/// Groups in one request.
const GROUPS_AT_ONCE: usize = 500;

/// A presence that cannot be taken back stays visible until its session is gone: worth some patience.
const LEAVE_TRIES: u32 = 3;
const LEAVE_PAUSE: Duration = Duration::from_millis(500);

/// A shard's requests.
pub(super) struct Requests {
    ask: Ask,
    inbox: mpsc::Sender<Input>,
    tasks: Tasks,
    permits: Arc<Semaphore>,
    registers: BTreeMap<SlotId, Vec<(GroupName, Attempt, Position)>>,
    unregisters: BTreeMap<SlotId, Vec<(GroupName, Attempt)>>,
    singles: VecDeque<Single>,
}

/// A request about one connection.
pub(super) struct Single {
    pub(super) slot: SlotId,
    pub(super) group: GroupName,
    pub(super) attempt: Attempt,
    pub(super) subscriber: u64,
    pub(super) what: What,
}

pub(super) enum What {
    Join { member: Option<Presence>, since: Option<Position> },
    Leave { session: SessionId, attachment: AttachmentNumber },
}

impl Requests {
    pub(super) fn new(ask: Ask, inbox: mpsc::Sender<Input>, tasks: Tasks) -> Self {
        let permits = Arc::new(Semaphore::new(IN_FLIGHT));
        Self {
            ask,
            inbox,
            tasks,
            permits,
            registers: BTreeMap::new(),
            unregisters: BTreeMap::new(),
            singles: VecDeque::new(),
        }
    }

    pub(super) fn register(&mut self, slot: SlotId, group: GroupName, attempt: Attempt, since: Position) {
        self.registers.entry(slot).or_default().push((group, attempt, since));
    }

    pub(super) fn unregister(&mut self, slot: SlotId, group: GroupName, attempt: Attempt) {
        self.unregisters.entry(slot).or_default().push((group, attempt));
    }

    /// Queues a join or a leave, or gives the answer where there are too many.
    pub(super) fn single(&mut self, single: Single) -> Option<Answer> {
        if self.singles.len() < WAITING {
            self.singles.push_back(single);
            return None;
        }
        let Single { slot, group, attempt, subscriber, what } = single;
        Some(match what {
            What::Join { .. } => Answer::Joined { slot, group, attempt, subscriber, result: Err(SlotError::Busy) },
            What::Leave { .. } => Answer::Left { slot, group, attempt, subscriber },
        })
    }

    /// Sends what is queued, as far as may be under way at once. Every answer leads to the next call.
    pub(super) fn flush(&mut self) {
        while !(self.registers.is_empty() && self.unregisters.is_empty() && self.singles.is_empty()) {
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                return;
            };
            let (ask, inbox) = (self.ask.clone(), self.inbox.clone());
            let task = self.next();
            self.tasks.spawn_detached("hub_request", async move {
                let answer = match task {
                    Task::Register { slot, interests } => register(&ask, slot, interests).await,
                    Task::Unregister { slot, asked } => {
                        let groups = asked.iter().map(|(group, _)| group.clone()).collect();
                        let _ = ask.upkeep(slot, Unregister(groups)).await;
                        Answer::Unregistered { slot, asked }
                    }
                    Task::Single(single) => single_request(&ask, single).await,
                    Task::Nothing => return,
                };
                drop(permit);
                let _ = inbox.send(Input::Answer(answer)).await;
            });
        }
    }

    fn next(&mut self) -> Task {
        if let Some((slot, interests)) = take_some(&mut self.registers) {
            return Task::Register { slot, interests };
        }
        if let Some((slot, asked)) = take_some(&mut self.unregisters) {
            return Task::Unregister { slot, asked };
        }
        self.singles.pop_front().map_or(Task::Nothing, Task::Single)
    }
}

enum Task {
    Register { slot: SlotId, interests: Vec<(GroupName, Attempt, Position)> },
    Unregister { slot: SlotId, asked: Vec<(GroupName, Attempt)> },
    Single(Single),
    Nothing,
}

fn take_some<T>(queued: &mut BTreeMap<SlotId, Vec<T>>) -> Option<(SlotId, Vec<T>)> {
    let mut entry = queued.first_entry()?;
    let slot = *entry.key();
    if entry.get().len() > GROUPS_AT_ONCE {
        return Some((slot, entry.get_mut().drain(..GROUPS_AT_ONCE).collect()));
    }
    Some((slot, entry.remove()))
}

async fn register(ask: &Ask, slot: SlotId, interests: Vec<(GroupName, Attempt, Position)>) -> Answer {
    let asked = interests.iter().map(|(group, attempt, _)| (group.clone(), *attempt)).collect();
    let interests = interests.into_iter().map(|(group, _, since)| Interest { group, since: Some(since) }).collect();
    let result = ask.upkeep(slot, Register(interests)).await;
    Answer::Registered { slot, asked, result }
}

async fn single_request(ask: &Ask, single: Single) -> Answer {
    let Single { slot, group, attempt, subscriber, what } = single;
    match what {
        What::Join { member, since } => {
            let request = (group.clone(), Join { member, since });
            let result = ask.of_slot(slot, request, None).await;
            Answer::Joined { slot, group, attempt, subscriber, result }
        }
        What::Leave { session, attachment } => {
            for tries in 1..=LEAVE_TRIES {
                let request = (group.clone(), Leave { session, attachment });
                match ask.upkeep(slot, request).await {
                    Ok(_) => break,
                    Err(error) if tries == LEAVE_TRIES => {
                        tracing::warn!(%group, %session, ?error, "a session could not be taken out of a group's presence");
                    }
                    Err(_) => tokio::time::sleep(LEAVE_PAUSE).await,
                }
            }
            Answer::Left { slot, group, attempt, subscriber }
        }
    }
}
