//! Asks the server that no longer serves the account whether its copy may be erased. Reads only: a
//! refusal leaves the move as it was, where one of the erasing step itself would have no way back.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("prove_erasable");
