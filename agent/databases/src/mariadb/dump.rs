//! A database as a stream: tables and rows by the vendor's tool, stored objects as typed objects.

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;

use super::inspect::broken_views;
use super::session::{Session, text};
use super::{MariadbConfig, objects, rows};
use crate::child::{Program, first_existing};
use crate::engine::Progress;
use crate::frame::{FrameWriter, Section};
use crate::model::{DumpReport, Spec};

const WHAT: &str = "a database cannot be dumped";
/// The views and tables to be treated apart are arguments of the tool, and arguments are limited.
const MAX_ARGUMENTS: usize = 1 << 20;

/// The first section of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DumpFacts {
    pub(super) engine: String,
    pub(super) version: String,
    pub(super) database: String,
    /// Which collation a character set means where none is written; releases differ.
    pub(super) character_set_collations: String,
}

/// The collation that a character set means, as this server has it; empty in older releases,
/// where it cannot be set.
pub(super) async fn character_set_collations(
    session: &mut Session,
) -> Result<Option<String>, Fault> {
    let sql = "SHOW GLOBAL VARIABLES LIKE 'character\\_set\\_collations'";
    Ok(session.rows(WHAT, sql).await?.first().map(|r| r.text(1)))
}

pub(super) async fn dump(
    config: &MariadbConfig,
    spec: &Spec,
    database: &str,
    out: &mut (dyn AsyncWrite + Send + Unpin),
    progress: Progress<'_>,
) -> Result<DumpReport, Fault> {
    spec.check_owns(database)?;
    let mut session = Session::open(config).await?;
    let broken = broken_views(&mut session, database).await?;
    // First, so that a foreign definer is a fault before anything is sent.
    let stored = objects::read(&mut session, spec, database, &broken).await?;
    let mut writer = FrameWriter::start(out, progress).await?;
    let facts = DumpFacts {
        engine: "mariadb".to_owned(),
        version: session.version().to_owned(),
        database: database.to_owned(),
        character_set_collations: character_set_collations(&mut session).await?.unwrap_or_default(),
    };
    writer.json(Section::Facts, &facts).await?;
    let apart = rows::tables(&mut session, database).await?;
    writer.begin(Section::Sql).await?;
    run_tool(config, &mut session, database, &apart, &mut writer).await?;
    if !apart.is_empty() {
        writer.chunk(rows::PRELUDE.as_bytes()).await?;
    }
    for table in &apart {
        rows::write(&mut session, database, table, &mut writer).await?;
    }
    writer.end_section().await?;
    for object in &stored {
        writer.json(Section::Object, object).await?;
    }
    let notes = broken
        .iter()
        .map(|v| format!("view {database}.{v} does not work and was left out"))
        .collect();
    Ok(DumpReport { bytes: writer.finish().await?, notes })
}

async fn run_tool(
    config: &MariadbConfig,
    session: &mut Session,
    database: &str,
    apart: &[String],
    writer: &mut FrameWriter<'_>,
) -> Result<(), Fault> {
    let sql = format!(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_TYPE = 'VIEW'",
        text(database)
    );
    let views = session.rows(WHAT, &sql).await?;
    let mut arguments: Vec<String> =
        views.iter().map(|v| format!("--ignore-table={database}.{}", v.text(0))).collect();
    arguments.extend(apart.iter().map(|t| format!("--ignore-table-data={database}.{t}")));
    if arguments.iter().map(String::len).sum::<usize>() > MAX_ARGUMENTS {
        return Err(Fault::permanent(format!(
            "database {database} has too many views to be dumped"
        )));
    }
    let candidates = ["mariadb-dump", "mysqldump"].map(|name| config.bin_dir.join(name));
    let Some(tool) = first_existing(&candidates).await else {
        return Err(Fault::precondition(format!("{} is not there", candidates[0].display()))
            .remedy("install the package mariadb-client"));
    };
    let mut running = Program::new(tool)
        .args(["--no-defaults", "--protocol=socket"])
        .arg(format!("--socket={}", config.socket.display()))
        .arg(format!("--user={}", config.admin))
        .args([
            "--single-transaction",
            "--quick",
            "--hex-blob",
            "--default-character-set=utf8mb4",
            "--max-allowed-packet=1G",
            "--skip-triggers",
            "--skip-routines",
            "--skip-events",
            "--skip-dump-date",
            // A table whose default is the next value of a sequence could not be filled while
            // only the table is locked; and nobody else is there to be locked out.
            "--skip-add-locks",
            "--no-tablespaces",
        ])
        .args(arguments)
        .args(["--", database])
        .start()?;
    running.close_input();
    while let Some(part) = running.read().await? {
        writer.chunk(&part).await?;
    }
    running.finish().await.map_err(|f| f.context(format!("database {database} cannot be dumped")))
}
