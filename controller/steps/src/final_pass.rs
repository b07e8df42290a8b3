//! Copies what changed since the last pass. What it leaves is part of what provision made.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("final_pass");
