//! The agent of Ferry: runs on every client and transit server.

fn main() {}
