//! Dumps and loads each database. What it leaves is part of what provision made.

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe::plain("copy_databases");
