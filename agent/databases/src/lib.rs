//! Ferry's database engine: one trait, implemented for MariaDB and PostgreSQL, that inspects,
//! records, fences, dumps, loads, compares and opens the databases and database users of one
//! account on this server.
//!
//! It knows the two database servers and their tools. It must not know about moves, epochs,
//! links between agents or the ledger: the agent calls it in the right order and carries the
//! stream of a dump to the other agent.
//!
//! The order of a move is: [`Engine::inspect`] and [`Engine::record`] at the source,
//! [`Engine::check_target`] and [`Engine::provision`] at the target, [`Engine::plan_fence`]
//! (journalled by the caller) and [`Engine::fence`] at the source, [`Engine::record`] again with
//! the fence's record, [`Engine::dump`] streamed into [`Engine::load`], [`Engine::manifest`] on
//! both ends and [`compare`], [`Engine::rehearse`], and after the commit [`Engine::open`]. The way
//! back before the commit is [`Engine::unfence`] and [`Engine::deprovision`]; a copy that has served
//! and is to be erased goes by [`Engine::drop_closed`].
//!
//! Whatever comes from the other server (records and dumps) is hostile: records are checked
//! against the [`Spec`] and rebuilt from typed fields, dumps are loaded with the account's own
//! rights by a client that runs as the account's user.

mod child;
mod engine;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod manifest;
mod mariadb;
mod model;
mod points;
mod postgres;
mod record;
mod secret;

pub use engine::{Engine, Progress, mariadb, postgresql};
pub use manifest::{DatabaseManifest, Difference, compare, not_compared};
pub use mariadb::MariadbConfig;
pub use model::{
    Availability, DatabaseFacts, DumpReport, Existing, Facts, Finding, Level, LoadReport,
    Provisioned, ServerFacts, Spec, Survey, SurveyedDatabase, SurveyedUser,
};
pub use postgres::PostgresqlConfig;
pub use record::{FenceRecord, Record};
