//! Ends a move: takes down what stands for it at the server that no longer serves the account.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("finalize");
