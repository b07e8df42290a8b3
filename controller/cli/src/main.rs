//! The command line of Ferry.

fn main() {}
