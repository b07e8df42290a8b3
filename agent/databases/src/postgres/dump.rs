//! A database as a stream, by the vendor's tool of the server's own release.

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;

use super::session::Session;
use super::{PostgresqlConfig, tools};
use crate::child::Program;
use crate::engine::Progress;
use crate::frame::{FrameWriter, Section};
use crate::model::{DumpReport, Spec};

/// The first section of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DumpFacts {
    pub(super) engine: String,
    pub(super) version: String,
    pub(super) database: String,
}

pub(super) async fn dump(
    config: &PostgresqlConfig,
    spec: &Spec,
    database: &str,
    out: &mut (dyn AsyncWrite + Send + Unpin),
    progress: Progress<'_>,
) -> Result<DumpReport, Fault> {
    spec.check_owns(database)?;
    let session = Session::open(config, database).await?;
    let tool = tools::find(config, session.major(), "pg_dump").await?;
    let program = Program::new(tool)
        .run_as(tools::admin(config).await?)
        .env("PGHOST", config.socket_dir.display().to_string())
        .env("PGUSER", config.admin.clone())
        .args([
            "--format=plain",
            "--no-password",
            "--no-tablespaces",
            "--no-security-labels",
            "--no-subscriptions",
            "--lock-wait-timeout=60s",
        ])
        .arg(format!("--dbname={database}"));
    let mut writer = FrameWriter::start(out, progress).await?;
    let facts = DumpFacts {
        engine: "postgresql".to_owned(),
        version: session.version().to_owned(),
        database: database.to_owned(),
    };
    writer.json(Section::Facts, &facts).await?;
    writer.begin(Section::Sql).await?;
    let mut running = tools::prepared(program, config).start()?;
    running.close_input();
    while let Some(part) = running.read().await? {
        writer.chunk(&part).await?;
    }
    running
        .finish()
        .await
        .map_err(|f| f.context(format!("database {database} cannot be dumped")))?;
    writer.end_section().await?;
    Ok(DumpReport { bytes: writer.finish().await?, notes: Vec::new() })
}
