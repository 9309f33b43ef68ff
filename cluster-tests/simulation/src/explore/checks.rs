//! What must hold in every state.

use super::{
    copies::{Copy, PROCESSES},
    world::{Next, State, World},
};

/// The state, if all holds in it.
pub(super) fn check(world: &World, state: State) -> Next {
    let stored = world.copies.map(world.stored(&state)).clone();
    for process in (0..PROCESSES).filter(|process| state.is_alive(*process)) {
        let (member, copy) = (&world.copies.members[process], world.copies.copy(state.copies[process]));
        let mut committed = world.committed(&state, copy.lineage);
        if !copy.applied.iter().all(|message| committed.next().is_some_and(|(_, there)| there == *message)) {
            let committed = in_words(world, &state, copy.lineage);
            return Err(format!("S1: {member} has applied {:?}, and committed is {committed}", copy.applied));
        }
        if stored.is_in_sync(member) {
            let mut committed = world.committed(&state, stored.lineage).enumerate();
            let is_right = |held: &[u8], at: usize, message| held.get(at) == Some(&message);
            let is_held = |(at, (_, message))| copy.lineage == stored.lineage && is_right(&copy.holds, at, message);
            if !committed.all(is_held) {
                let committed = in_words(world, &state, stored.lineage);
                let what = format!("committed is {committed}, and {member}, which is in-sync");
                return Err(format!("S3: {what}, holds {:?} of lineage {}", copy.holds, copy.lineage));
            }
        }
        if let Some(term) = copy.serving {
            serves(world, &state, process, term, copy)?;
        }
    }
    Ok(state)
}

/// A primary that serves is the only one of its term, and has applied all that was committed up to it.
fn serves(world: &World, state: &State, process: usize, term: u64, copy: &Copy) -> Result<(), String> {
    let member = &world.copies.members[process];
    if !copy.known.as_ref().is_some_and(|known| known.primary == *member && known.term == term) {
        return Err(format!("rule 6: {member} serves in term {term}, of which it is not the primary"));
    }
    let others = (process + 1..PROCESSES).filter(|other| state.is_alive(*other));
    for other in others {
        let there = world.copies.copy(state.copies[other]);
        if there.serving == Some(term) && there.lineage == copy.lineage {
            return Err(format!("rule 4: {member} and {} serve in term {term}", world.copies.members[other]));
        }
    }
    let of_before = world.committed(state, copy.lineage).filter(|(of, _)| *of <= term).count();
    if copy.applied.len() < of_before {
        let committed = in_words(world, state, copy.lineage);
        return Err(format!(
            "S3: {member} serves in term {term} with {:?}, and committed is {committed}",
            copy.applied
        ));
    }
    Ok(())
}

fn in_words(world: &World, state: &State, lineage: u64) -> String {
    let committed: Vec<String> =
        world.committed(state, lineage).map(|(term, message)| format!("{message} (term {term})")).collect();
    if committed.is_empty() { "nothing".to_owned() } else { committed.join(", ") }
}
