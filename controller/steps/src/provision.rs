//! Makes the account at the target, closed. Its undo removes what it made there, and only that.

use ferry_proto::command::Intent;

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe {
    undo: |of, _| Some((of.target.clone(), Intent::Deprovision { of: of.clone() })),
    ..Recipe::plain("provision")
};
