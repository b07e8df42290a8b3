//! Copies files while the account is live. What it leaves is part of what provision made.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("precopy");
