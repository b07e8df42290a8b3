//! Fences the account at the source. Its undo takes the account back.

use ferry_proto::command::Intent;

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe {
    undo: |of, _| Some((of.source.clone(), Intent::Unfence { of: of.clone() })),
    ..Recipe::plain("fence")
};
