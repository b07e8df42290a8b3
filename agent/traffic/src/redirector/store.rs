//! The routes on disk: one file, replaced as a whole. It owns the file; it must not know what the
//! routes mean.

use std::convert::identity;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ferry_failpoints::around;
use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::routes::Routes;

/// The only format so far.
const VERSION: u32 = 1;

/// 10,000 accounts with some domains each stay below this.
const MAX_FILE: u64 = 256 * 1024 * 1024;

#[derive(Deserialize, Serialize)]
struct Saved<R> {
    version: u32,
    routes: R,
}

/// The file of the routes.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in a directory.
    pub fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("routes.json")
    }

    /// Reads the routes; none were ever saved: an empty table.
    ///
    /// # Errors
    /// The file cannot be read or understood. Then the redirector must not start with an empty
    /// table, which would send held accounts to the own web server.
    pub fn load(&self) -> Result<Routes, Fault> {
        let path = self.path();
        let named = path.display();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Routes::default()),
            Err(e) => return Err(Fault::io(format!("{named} cannot be read"), &e)),
        };
        let remedy = "let the agent set all routes again: move the file away and restart ferry-agent.service";
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE), &mut text)
            .map_err(|e| Fault::io(format!("{named} cannot be read"), &e))?;
        let saved: Saved<Routes> = serde_json::from_slice(&text).map_err(|e| {
            Fault::permanent(format!("{named} is damaged")).caused_by(&e).remedy(remedy)
        })?;
        if saved.version != VERSION {
            return Err(Fault::permanent(format!(
                "{named} has version {}, this program knows {VERSION}",
                saved.version
            ))
            .remedy(remedy));
        }
        Ok(saved.routes)
    }

    /// Replaces the file, durably.
    ///
    /// # Errors
    /// The disk is full or failed; the old file stands.
    pub fn save(&self, routes: &Routes) -> Result<(), Fault> {
        around(|| "routes.save".to_owned(), identity, || self.replace(routes)).map_err(|e| {
            Fault::io(
                format!("the redirector's routes cannot be saved in {}", self.directory.display()),
                &e,
            )
            .remedy("make room on that file system, then repeat")
        })
    }

    fn replace(&self, routes: &Routes) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        {
            let mut writer = io::BufWriter::new(&mut file);
            serde_json::to_writer(&mut writer, &Saved { version: VERSION, routes })?;
            writer.flush()?;
        }
        file.as_file().sync_all()?;
        file.persist(self.path()).map_err(|e| e.error)?;
        File::open(&self.directory)?.sync_all()
    }

    /// Removes what an interrupted [`Store::save`] left.
    pub fn sweep(&self) {
        // What cannot be removed now is tried at the next start.
        let _ = self.remove_unfinished();
    }

    /// What an interrupted [`Store::save`] left.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let unfinished = entries.filter(|e| e.file_name().to_string_lossy().starts_with(".tmp"));
        unfinished.map(|entry| entry.path()).collect()
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// The first that cannot be removed; the others are gone.
    pub fn remove_unfinished(&self) -> Result<(), Fault> {
        let mut first = Ok(());
        for path in self.unfinished() {
            let removed = match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    Err(Fault::io(format!("{} cannot be removed", path.display()), &e))
                }
                _ => Ok(()),
            };
            first = first.and(removed);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_directory(dir.path());
        assert_eq!(store.load().unwrap(), Routes::default());
        let mut routes = Routes::default();
        routes.set_peers(["192.0.2.1".parse().unwrap()].into()).unwrap();
        store.save(&routes).unwrap();
        assert_eq!(store.load().unwrap(), routes);
        std::fs::write(dir.path().join(".tmpleft"), "half").unwrap();
        store.sweep();
        assert!(!dir.path().join(".tmpleft").exists());
        std::fs::write(store.path(), b"{\"version\":1,").unwrap();
        assert!(store.load().unwrap_err().message.contains("damaged"));
        std::fs::write(store.path(), b"{\"version\":9,\"routes\":{\"peers\":[],\"accounts\":{}}}")
            .unwrap();
        assert!(store.load().unwrap_err().message.contains("version 9"));
    }
}
