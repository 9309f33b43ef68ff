//! `connect`: clients that connect, get a session and join a group, a bounded number at once.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{Ready, groups};
use crate::{
    crowd::{Spot, gather},
    member::Shared,
    report::Report,
};

pub(super) async fn run(ready: &Arc<Ready>, report: &mut Report) -> anyhow::Result<()> {
    let plan = report.plan;
    let shared = Arc::new(Shared::default());
    shared.tally.measuring.store(true, Relaxed);
    let begin = ready.look()?;
    let all = gather(ready, crowd(plan.clients, plan.groups, ready.addresses.len()), plan.at_once, &shared).await;
    let end = ready.look()?;
    for error in all.iter().filter_map(|member| member.as_ref().err()) {
        shared.tally.hole(&format!("{error:#}"));
    }
    report.clients = all.iter().filter(|member| member.is_ok()).count() as u64;
    report.spent(begin, end, report.clients);
    report.heard(&shared.tally);
    Ok(())
}

/// Clients, dealt out to the groups in turn, and those of each group to the nodes.
pub(super) fn crowd(clients: u32, count: u32, nodes: usize) -> Vec<Spot> {
    let names = groups(count);
    let spot = |client: usize| {
        let group = client % names.len();
        Spot { node: (client / names.len() + group) % nodes, group: names[group].clone(), back: None, timed: true }
    };
    (0..clients as usize).map(spot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_dealt_out_to_groups_and_nodes() {
        let all = crowd(12, 2, 3);
        for node in 0..3 {
            assert_eq!(all.iter().filter(|spot| spot.node == node).count(), 4);
        }
        assert_eq!(all.iter().filter(|spot| spot.group == all[0].group).count(), 6);
        assert!(all.iter().filter(|spot| spot.group == all[0].group).any(|spot| spot.node != all[0].node));
    }
}
