//! Where an exploration begins: reached by the same steps.

use roost_logic::map::{ClusterMap, SlotAssignment};

use super::{
    Start,
    copies::{Input, NODES, PROCESSES},
    world::{Next, State, World},
};

/// The first state of the scope, or what is wrong already.
pub(super) fn start(world: &mut World) -> Next {
    let first = ClusterMap::first(&world.copies.members[0], 1).slots.remove(0);
    let mut state = world.started(&first);
    quiet(world, &mut state)?;
    let start = world.scope.start;
    for node in 1..NODES {
        let member = world.copies.members[node].clone();
        let is_wanted = match (start, node) {
            (Start::Alone, _) | (Start::Settled, 2) => false,
            (Start::Settled | Start::Learning | Start::Three, _) => true,
        };
        if !is_wanted {
            break;
        }
        change(world, &mut state, |map| map.learner.as_ref() == Some(&member) && map.in_sync.len() == node)?;
        if (start, node) == (Start::Learning, 2) {
            break;
        }
        quiet(world, &mut state)?;
        change(world, &mut state, |map| map.in_sync.len() == node + 1)?;
        quiet(world, &mut state)?;
    }
    world.first_version = world.copies.map(world.stored(&state)).changed_at;
    Ok(state)
}

/// All learn of the map, every frame arrives, and no old one comes again.
fn quiet(world: &mut World, state: &mut State) -> Result<(), String> {
    let mut inputs = Vec::new();
    loop {
        let before = state.clone();
        for process in 0..NODES {
            inputs.clear();
            if world.copies.copy(state.copies[process]).version() < world.copies.map(world.stored(state)).changed_at {
                inputs.push(Input::Map(world.stored(state)));
            }
            inputs.extend(world.lists.get(state.inboxes[process]).iter().map(|frame| Input::Frame(*frame)));
            for input in &inputs {
                if let Some(next) = world.stepped(state, process, *input) {
                    *state = next?;
                }
            }
        }
        if *state == before {
            state.inboxes = [0; PROCESSES];
            return Ok(());
        }
    }
}

/// The store takes the first proposal of this kind.
fn change(world: &mut World, state: &mut State, is_wanted: impl Fn(&SlotAssignment) -> bool) -> Result<(), String> {
    let proposed = world.proposed(state);
    let term = world.copies.map(world.stored(state)).term;
    let is_wanted = |map: &u32| is_wanted(world.copies.map(*map)) && world.copies.map(*map).term == term;
    let wanted = proposed.iter().map(|(map, _)| *map).find(is_wanted).expect("the planner proposes it");
    *state = world.changed(state, wanted)?;
    Ok(())
}
