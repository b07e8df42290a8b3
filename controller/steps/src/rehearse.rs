//! Starts everything at the target, closed, and has a smoke request answered. The agent stops it
//! again before it answers.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("rehearse");
