//! What a database is by itself: its character set, its collation, and the comment that marks what was
//! created and not opened. MariaDB keeps them in a file that it does not sync: after a power cut the
//! database would be there, with the server's own defaults. So it is synced here.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;

use super::session::Session;

/// Creates or alters a database by this statement. It is on the disk when this returns.
pub(super) async fn set(
    session: &mut Session,
    what: &str,
    name: &str,
    sql: &str,
) -> Result<(), Fault> {
    session.run(what, sql).await?;
    let data = PathBuf::from(session.value(what, "SELECT @@datadir").await?);
    let directory = data.join(encoded(name));
    let synced = tokio::task::spawn_blocking(move || sync(&data, &directory)).await;
    synced
        .map_err(|e| Fault::bug("syncing a database's options panicked").caused_by(&e))?
        .map_err(|e| Fault::io(what, &e))
}

/// The options, the directory that has them, and that which has the directory.
fn sync(data: &Path, directory: &Path) -> io::Result<()> {
    for path in [directory.join("db.opt").as_path(), directory, data] {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// As MariaDB names the directory of a database: what is no letter, digit or underscore is `@` and its
/// number.
fn encoded(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let encode = |c: char| if plain(c) { c.to_string() } else { format!("@{:04x}", u32::from(c)) };
    name.chars().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_named_as_the_server_names_it() {
        assert_eq!(encoded("shop_7"), "shop_7");
        assert_eq!(encoded("my-shop.old"), "my@002dshop@002eold");
    }

    #[test]
    fn options_that_are_not_there_are_not_taken_for_synced() {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().join("shop");
        std::fs::create_dir(&directory).unwrap();
        let missing = sync(data.path(), &directory).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        std::fs::write(directory.join("db.opt"), "default-collation=utf8mb4_bin\n").unwrap();
        sync(data.path(), &directory).unwrap();
    }
}
