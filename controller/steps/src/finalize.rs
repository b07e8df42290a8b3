//! Ends a move: takes down what stands for it at the server that no longer serves the account. There
//! is no undo: its job goes forward only.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("finalize");
