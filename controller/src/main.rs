//! The controller of Ferry.

fn main() {}
