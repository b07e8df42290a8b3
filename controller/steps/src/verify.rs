//! Compares both ends. Reads only.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("verify");
