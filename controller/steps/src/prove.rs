//! Asks the server that serves the account to prove it, before a step that cannot be undone. Reads
//! only.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("prove");
