//! Takes presences of clients that are gone out of groups wherever these live: the session's slot knows the groups only by
//! name.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc};

use crate::{
    id::Seat,
    logic::request::Leave,
    router::Router,
    slots::{Departure, Slots},
    tasks::Tasks,
};

/// Clients whose presences are taken out at once; past it the others wait.
const AT_ONCE: usize = 256;
/// For one group.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Departures {
    pub(super) router: Router,
    pub(super) slots: Slots,
    /// How many slots the cluster has.
    pub(super) count: u16,
    pub(super) tasks: Tasks,
}

impl Departures {
    pub(super) async fn run(self, mut inbox: mpsc::Receiver<Departure>) {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(departure) = inbox.recv().await {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let this = self.clone();
            self.tasks.spawn_detached("departure", async move {
                this.carry_out(departure).await;
                drop(permit);
            });
        }
    }

    async fn carry_out(&self, Departure { slot, session, client, groups }: Departure) {
        let mut done = BTreeMap::new();
        for (group, attachment) in groups {
            let seat = Seat { session, client, attachment };
            let request = (group.clone(), Leave { seat });
            if self.router.call(group.slot(self.count), request, LIMIT, None).await.is_ok() {
                done.insert(group, attachment);
            }
        }
        self.slots.departed(slot, (session, client), done).await;
    }
}
