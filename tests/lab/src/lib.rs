//! The lab: real Debian hosts on one machine, booted with systemd, on a network of their own.
//!
//! [`lab::Lab`] is the way in: it brings hosts up and takes them down without a trace;
//! [`host::Host`] is one of them. The modules below those two each own one subject and know
//! nothing of Ferry; what is tested on the hosts is above them.

pub mod build;
pub mod cache;
pub mod cgroup;
pub mod disk;
pub mod exec;
pub mod host;
pub mod image;
pub mod interrupt;
pub mod lab;
pub mod mirror;
pub mod mounts;
pub mod network;
pub mod packages;
pub mod progress;
pub mod run;
pub mod selfcheck;
pub mod spec;
pub mod state;
pub mod wait;

// Ferry on the hosts, and what is done with it.
pub mod answered;
pub mod bench;
pub mod checker;
pub mod checks;
pub mod demo;
pub mod edges;
pub mod faults;
pub mod fleet;
pub mod journey;
pub mod sample;
pub mod scenarios;
pub mod stage;
pub mod stranger;
pub mod testrun;
pub mod visitors;
