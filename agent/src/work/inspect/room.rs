//! How much room the target has for each part of an account, and what of the account is there already.

use std::path::Path;

use ferry_databases::Spec;
use ferry_files::TreeStats;
use ferry_host::facts;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::Room;
use tokio_util::sync::CancellationToken;

use crate::agent::{blocking, engine};

/// Where the home is or would be. What is there is counted only if the account lived here.
///
/// # Errors
/// If the file system does not say.
pub async fn home(home: &Path, lived_here: bool) -> Result<Room, Fault> {
    let home = home.to_owned();
    blocking(move || {
        let present = match lived_here && home.exists() {
            true => ferry_files::scan(&home, &CancellationToken::new())?,
            false => TreeStats::default(),
        };
        let present_files = present.files + present.directories + present.others;
        Ok(Room { present_files, ..room(None, &home, present.bytes)? })
    })
    .await
}

/// Where a running server of `kind` keeps its data.
///
/// # Errors
/// If the file system does not say.
pub async fn databases(
    kind: EngineKind,
    data_dir: &str,
    spec: &Spec,
    lived_here: bool,
) -> Result<Room, Fault> {
    let mut present_bytes = 0;
    if lived_here {
        // Without some of its databases the copy is not whole, and none of it is counted on.
        let facts = engine(kind).inspect(spec).await.ok();
        present_bytes = facts.map_or(0, |f| f.databases.iter().map(|d| d.size_bytes).sum());
    }
    let path = data_dir.to_owned();
    blocking(move || room(Some(kind), Path::new(&path), present_bytes)).await
}

/// Nothing is opened into a file system with less room than this: what is opened writes at once.
const LEAST: u64 = 16 << 20;
/// Nor with fewer files that can still be made.
const LEAST_FILES: u64 = 64;

/// Looks whether what is opened can write where `path` is.
///
/// # Errors
/// Precondition if the file system is full or takes no writes.
pub fn writable(path: &Path) -> Result<(), Fault> {
    let space = facts::space(path)?;
    let short = space.free_bytes < LEAST || space.free_inodes.is_some_and(|n| n < LEAST_FILES);
    let why = match (space.read_only, short) {
        (true, _) => "takes no writes",
        (false, true) => "is full",
        (false, false) => return Ok(()),
    };
    Err(Fault::precondition(format!("the file system of {} {why}", path.display()))
        .remedy("make room on it, or mount it again"))
}

fn room(engine: Option<EngineKind>, path: &Path, present_bytes: u64) -> Result<Room, Fault> {
    let space = facts::space(path)?;
    Ok(Room {
        engine,
        path: path.display().to_string(),
        file_system: facts::file_system(path)?,
        free_bytes: space.free_bytes,
        present_bytes,
        free_files: space.free_inodes,
        present_files: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_there_counts_only_if_the_account_lived_here() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop");
        let before = home(&path, true).await.unwrap();
        assert_eq!(before.present_bytes, 0);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), [1; 5000]).unwrap();
        assert_eq!(home(&path, false).await.unwrap().present_bytes, 0);
        let room = home(&path, true).await.unwrap();
        assert_eq!((room.engine, room.present_bytes), (None, 5000));
        // The root and the file.
        assert_eq!(room.present_files, 2);
        assert_eq!(room.file_system, before.file_system);
        assert!(room.free_bytes > 0);
    }
}
