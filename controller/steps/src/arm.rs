//! Puts the redirector in front of the account at the source.

use ferry_proto::command::Intent;

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe {
    undo: |of, _| Some((of.source.clone(), Intent::Disarm { of: of.clone() })),
    ..Recipe::plain("arm")
};
