//! What crosses from the source to the target beside the content, and what a fence changed.
//! Callers keep and carry both without looking inside.

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

/// Everything needed to recreate an account's users, grants and databases at another server of the
/// same engine. Its debugging output hides password hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "lowercase")]
pub enum Record {
    /// Of a MariaDB server.
    Mariadb(crate::mariadb::MariadbRecord),
    /// Of a PostgreSQL server.
    Postgresql(crate::postgres::PostgresqlRecord),
}

impl Record {
    pub(crate) fn mariadb(&self) -> Result<&crate::mariadb::MariadbRecord, Fault> {
        match self {
            Self::Mariadb(record) => Ok(record),
            Self::Postgresql(_) => Err(wrong_engine()),
        }
    }

    pub(crate) fn postgresql(&self) -> Result<&crate::postgres::PostgresqlRecord, Fault> {
        match self {
            Self::Postgresql(record) => Ok(record),
            Self::Mariadb(_) => Err(wrong_engine()),
        }
    }
}

/// The state, before a fence, of everything that the fence changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "lowercase")]
pub enum FenceRecord {
    /// Of a MariaDB server.
    Mariadb(crate::mariadb::MariadbFence),
    /// Of a PostgreSQL server.
    Postgresql(crate::postgres::PostgresqlFence),
}

impl FenceRecord {
    pub(crate) fn mariadb(&self) -> Result<&crate::mariadb::MariadbFence, Fault> {
        match self {
            Self::Mariadb(fence) => Ok(fence),
            Self::Postgresql(_) => Err(wrong_engine()),
        }
    }

    pub(crate) fn postgresql(&self) -> Result<&crate::postgres::PostgresqlFence, Fault> {
        match self {
            Self::Postgresql(fence) => Ok(fence),
            Self::Mariadb(_) => Err(wrong_engine()),
        }
    }
}

fn wrong_engine() -> Fault {
    Fault::bug("a record of one database engine was given to the other")
}
