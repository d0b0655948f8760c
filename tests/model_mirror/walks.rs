//! Random walks: what happens only after more steps than all of them can be looked at.

use std::time::Instant;

use stateright::{Expectation, Model};

use crate::{
    dice::Rng,
    model::MirrorModel,
    world::{Action, State},
};

/// How often something happens against other things. With equal chances the views would be over
/// before anything was copied.
fn weight(model: &MirrorModel, state: &State, action: &Action) -> u64 {
    match *action {
        Action::Submit | Action::Prepare(_) | Action::Land(_) | Action::Complete(_) => 60,
        Action::OwnerInstalls(view) if view == state.owner_view + 1 => 8,
        Action::Installs(n, view) | Action::Returns { node: n, view, .. } => {
            let is_next = view == state.nodes[usize::from(n)].view + 1;
            let goes_ahead = view > state.owner_view;
            if is_next && !goes_ahead && model.history.view(view).owner { 20 } else { 2 }
        }
        Action::Break(_) | Action::Tear(_) => 8,
        _ => 2,
    }
}

/// Walks from the begin until nothing can happen any more. Ends at the first violation, with its
/// name and the walk.
pub(crate) fn walk(
    model: &MirrorModel,
    seed: u64,
    walks: usize,
    steps_max: usize,
) -> Option<(&'static str, Vec<Action>)> {
    let (begun, mut dice) = (Instant::now(), Rng(seed));
    let (mut steps, mut acknowledged, mut recovered) = (0, 0, 0);
    let always = |p: &&stateright::Property<MirrorModel>| p.expectation == Expectation::Always;
    let properties = model.properties();
    for _ in 0..walks {
        let mut state = model.initial();
        let mut path = Vec::new();
        while path.len() < steps_max {
            let mut actions = Vec::new();
            model.actions(&state, &mut actions);
            if actions.is_empty() {
                break;
            }
            let all: u64 = actions.iter().map(|a| weight(model, &state, a)).sum();
            let mut at = dice.below(all);
            let chosen = actions.iter().find(|action| {
                let weight = weight(model, &state, action);
                let is = at < weight;
                at = at.saturating_sub(weight);
                is
            });
            let action = *chosen.expect("below the sum of all");
            let Some(next) = model.next_state(&state, action) else { continue };
            state = next;
            path.push(action);
            let broken = |p: &&stateright::Property<MirrorModel>| !(p.condition)(model, &state);
            if let Some(property) = properties.iter().filter(always).find(broken) {
                return Some((property.name, path));
            }
        }
        steps += path.len();
        acknowledged += u64::from(state.acked);
        recovered += u64::from(state.recovered != crate::world::NONE && state.recovered > 0);
    }
    println!(
        "K={} {:24} {walks} walks, {steps} steps, {acknowledged} versions acknowledged, \
         {recovered} recoveries, {:.0?}",
        model.copies,
        model.views,
        begun.elapsed()
    );
    assert!(acknowledged > 0 && recovered > 0, "the walks lead nowhere");
    None
}
