//! The crowd of one generator: gathers its members and asks them how they are.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use roost::tasks::Tasks;
use tokio::sync::Semaphore;

use super::{
    generator::{Answer, Order, Tally},
    member::{Member, Place, Standing},
};
use crate::wait::wait_until;

/// Clients that attach at once, at first: gathering is no storm.
const AT_ONCE: usize = 64;
/// Source addresses, so that neither ports nor what a node takes from one address run out.
const ADDRESSES: usize = 8;
const GATHER_LIMIT: Duration = Duration::from_secs(180);
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct Crowd {
    members: Vec<(Arc<str>, Arc<Standing>)>,
    tasks: Tasks,
}

impl Crowd {
    pub(super) async fn carry_out(&mut self, order: Order) -> Result<Answer> {
        match order {
            Order::Gather { nodes, groups, clients, number } => {
                let (nodes, room): (Arc<[_]>, _) = (nodes.into(), Arc::new(Semaphore::new(AT_ONCE)));
                for client in 0..clients {
                    let group = &groups[client % groups.len()];
                    let source = Ipv4Addr::new(127, 0, 200 + number, 1 + (client % ADDRESSES) as u8);
                    let place = Place { nodes: nodes.clone(), source, group: group.clone() };
                    let standing = Arc::new(Standing::default());
                    self.members.push((group.clone(), standing.clone()));
                    let member = Member::new(place, standing, room.clone());
                    self.tasks.spawn_detached("member", member.live());
                }
                if let Err(error) = self.until(GATHER_LIMIT, |_, standing| standing.has_joined()).await {
                    bail!("not all could be gathered: {error}");
                }
                Ok(Answer::Gathered)
            }
            Order::CatchUp { heads } => {
                let _ = self.until(CATCH_UP_LIMIT, |_, standing| standing.caught_up_ms().is_some()).await;
                for (group, standing) in &self.members {
                    standing.must_have_reached(heads.get(&**group).copied().unwrap_or(0));
                }
                Ok(Answer::CaughtUp {
                    at_ms: self.members.iter().filter_map(|(_, standing)| standing.caught_up_ms()).collect(),
                })
            }
            Order::Settle { heads } => {
                let head = |group: &str| heads.get(group).copied().unwrap_or(0);
                let _ = self.until(CATCH_UP_LIMIT, |group, standing| standing.offset() >= head(group)).await;
                let mut all = Tally::default();
                for (group, standing) in &self.members {
                    standing.must_be_at(head(group));
                    standing.add_to(&mut all);
                }
                self.tasks.stop();
                Ok(Answer::Settled(all))
            }
        }
    }

    async fn until(&self, limit: Duration, is_so: impl Fn(&str, &Standing) -> bool) -> Result<Duration> {
        let mut left: Vec<_> = self.members.iter().collect();
        wait_until("every client", limit, async || {
            left.retain(|(group, standing)| !is_so(group, standing));
            left.is_empty()
        })
        .await
    }
}
