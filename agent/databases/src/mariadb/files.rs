//! What MariaDB keeps in files beside its tables and does not sync: a database's character set, collation and
//! the comment that marks what was created and not opened; triggers; the whole of a table whose engine is no
//! transactional one. After a power cut a copy would be there without them. So they are synced here. And what a
//! cut leaves of files that the server was about to rename keeps it from dropping the database: that is
//! taken away here.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_proto::Fault;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, open, syncfs};

use super::session::{Session, ident, text};
use super::target;

/// So long a server may keep its log in memory: it writes it once a second, unless told otherwise.
const LOG_WAITS: Duration = Duration::from_secs(5);
/// How often it is asked whether it has.
const LOG_LOOK: Duration = Duration::from_millis(50);
/// `ER_DB_DROP_RMDIR`: all that the server knows of is gone, and the directory is not empty.
const NOT_EMPTY: u16 = 1010;
/// How the names of files end that define something, and of those that are to replace one: without its tables
/// they say nothing.
const DEFINITIONS: [&[u8]; 3] = [b"~", b".TRG", b".TRN"];
/// So many files that are in the way are named.
const NAMED: usize = 5;

/// Creates or alters a database by this statement. It is on the disk when this returns.
pub(super) async fn set_options(
    session: &mut Session,
    what: &str,
    name: &str,
    sql: &str,
) -> Result<(), Fault> {
    session.run(what, sql).await?;
    let data = data_directory(session, what).await?;
    let directory = data.join(encoded(name));
    on_disk(what, move || sync_options(&data, &directory)).await
}

/// What was loaded into a database is on the disk when this returns.
pub(super) async fn sync(session: &mut Session, name: &str) -> Result<(), Fault> {
    let what = format!("database {name} cannot be synced");
    write_log(session, &what).await?;
    let data = data_directory(session, &what).await?;
    let log = data.join(session.value(&what, "SELECT @@innodb_log_group_home_dir").await?);
    // Which may be a link to another file system.
    let directory = data.join(encoded(name));
    on_disk(&what, move || {
        for path in [directory, log, data] {
            syncfs(File::open(path)?)?;
        }
        Ok(())
    })
    .await
}

/// InnoDB's log is in its files when this returns. A server may be told to write it now and then alone
/// (`innodb_flush_log_at_trx_commit` 0), and then does not write it when asked to either.
async fn write_log(session: &mut Session, what: &str) -> Result<(), Fault> {
    let all = log_position(session, what, "CURRENT").await?;
    session.run(what, "FLUSH LOCAL ENGINE LOGS").await?;
    let waits = "SELECT @@innodb_flush_log_at_trx_commit";
    if session.value(what, waits).await? != "0" {
        return Ok(());
    }
    let started = Instant::now();
    while log_position(session, what, "FLUSHED").await? < all {
        if started.elapsed() > LOG_WAITS {
            let fault = format!(
                "{what}: MariaDB does not write its log (innodb_flush_log_at_trx_commit is 0)"
            );
            return Err(Fault::precondition(fault)
                .remedy("SET GLOBAL innodb_flush_log_at_timeout = 1, and try again"));
        }
        tokio::time::sleep(LOG_LOOK).await;
    }
    Ok(())
}

/// How much was written to the log, or how much of it is in its files.
async fn log_position(session: &mut Session, what: &str, which: &str) -> Result<u64, Fault> {
    let sql = format!(
        "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS \
         WHERE VARIABLE_NAME = 'INNODB_LSN_{which}'"
    );
    let shown = session.value(what, &sql).await?;
    shown.parse().map_err(|e| {
        Fault::permanent(format!("{what}: MariaDB does not tell INNODB_LSN_{which}")).caused_by(&e)
    })
}

/// Drops a database, if it is there. One that cannot be dropped wholly keeps its comment, by which it is known.
pub(super) async fn drop_database(session: &mut Session, name: &str) -> Result<(), Fault> {
    let what = format!("database {name} cannot be dropped");
    let comment = target::comment(session, name).await?.unwrap_or_default();
    let sql = format!("DROP DATABASE IF EXISTS {}", ident(name));
    if session.run_unless(&what, &sql, NOT_EMPTY).await? {
        return Ok(());
    }
    let directory = data_directory(session, &what).await?.join(encoded(name));
    let shown = directory.display().to_string();
    let left = on_disk(&what, move || remove_definitions(&directory)).await?;
    if left.is_empty() {
        return session.run(&what, &sql).await;
    }
    let again = format!("ALTER DATABASE {} COMMENT {}", ident(name), text(&comment));
    set_options(session, &what, name, &again).await?;
    let mut fault =
        Fault::precondition(format!("{what}: MariaDB does not know what is in {shown}"))
            .remedy("find out what these files are, take them away, and try again");
    fault.causes = left;
    Err(fault)
}

async fn data_directory(session: &mut Session, what: &str) -> Result<PathBuf, Fault> {
    Ok(PathBuf::from(session.value(what, "SELECT @@datadir").await?))
}

async fn on_disk<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Fault::bug("work on MariaDB's files panicked").caused_by(&e))?
        .map_err(|e| Fault::io(what, &e))
}

/// The options, the directory that has them, and that which has the directory.
fn sync_options(data: &Path, directory: &Path) -> io::Result<()> {
    for path in [directory.join("db.opt").as_path(), directory, data] {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// Removes what defined something in a database that has nothing any more. Tells some of the files that are
/// something else.
fn remove_definitions(directory: &Path) -> io::Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(directory, flags, Mode::empty())?;
    let mut left = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if DEFINITIONS.iter().any(|end| name.ends_with(end)) {
            rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
        } else if ![b".".as_slice(), b".."].contains(&name) && left.len() < NAMED {
            left.push(std::ffi::OsStr::from_bytes(name).display().to_string());
        }
    }
    Ok(left)
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
        let missing = sync_options(data.path(), &directory).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        std::fs::write(directory.join("db.opt"), "default-collation=utf8mb4_bin\n").unwrap();
        sync_options(data.path(), &directory).unwrap();
    }
}
