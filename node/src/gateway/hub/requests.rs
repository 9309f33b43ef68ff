//! Carries a shard's requests to the slots' primaries, each in a task of its own, and the answers into its inbox. The core
//! bounds how many are under way.

use tokio::sync::mpsc;

use super::Input;
use crate::{
    gateway::ask::Ask,
    logic::following::{self, Answer},
    tasks::Tasks,
};

/// The way to the primaries.
pub(super) struct Requests {
    pub(super) ask: Ask,
    pub(super) inbox: mpsc::Sender<Input>,
    pub(super) tasks: Tasks,
}

impl Requests {
    pub(super) fn spawn(&self, asked: following::Ask) {
        let (ask, inbox) = (self.ask.clone(), self.inbox.clone());
        self.tasks.spawn_detached("hub_request", async move {
            let answer = carry(&ask, asked).await;
            // It fails only while the node stops.
            let _ = inbox.send(Input::Answered(answer)).await;
        });
    }
}

async fn carry(ask: &Ask, asked: following::Ask) -> Answer {
    match asked {
        following::Ask::Register { slot, asked, request } => {
            let result = Box::pin(ask.upkeep(slot, request)).await;
            Answer::Registered { slot, asked, result }
        }
        following::Ask::Unregister { slot, asked, request } => {
            // Whatever came of it: a renewal that does not come any more ends the interest too.
            let _ = Box::pin(ask.upkeep(slot, request)).await;
            Answer::Unregistered { slot, asked }
        }
        following::Ask::Join { asked, subscriber, request } => {
            let result = Box::pin(ask.of_slot(asked.slot, (asked.group.clone(), request), None)).await;
            Answer::Joined { asked, subscriber, result }
        }
        following::Ask::Leave { asked, subscriber, request, tries } => {
            let result = Box::pin(ask.upkeep(asked.slot, (asked.group.clone(), request))).await;
            Answer::Left { asked, subscriber, request, tries, result }
        }
    }
}
