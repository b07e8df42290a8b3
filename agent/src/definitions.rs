//! Notices when the definitions of accounts change, so that a new one is known at once. Nothing
//! relies on it: what it misses, the next look finds.

use std::path::PathBuf;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;

use crate::config::Config;

/// How long nothing must have changed: an editor writes a file in several steps.
const SETTLED: Duration = Duration::from_millis(300);
/// No longer than this, however busy the directory is.
const AT_MOST: Duration = Duration::from_secs(3);

/// The directories of the definitions, watched.
pub struct Definitions {
    directories: [PathBuf; 2],
    watcher: Option<RecommendedWatcher>,
    rung: watch::Receiver<()>,
    /// Kept so that `rung` does not end where nothing can be watched.
    _ring: watch::Sender<()>,
}

impl Definitions {
    /// Watches the directories that `config` names.
    pub fn watch(config: &Config) -> Self {
        let (ring, rung) = watch::channel(());
        let bell = ring.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading them, as we do ourselves, is no change.
            if event.is_ok_and(|e| !e.kind.is_access()) {
                bell.send_replace(());
            }
        })
        .inspect_err(|error| tracing::warn!(%error, "changed definitions are noticed late"))
        .ok();
        let directories = [config.accounts_directory.clone(), config.inventory_directory.clone()];
        let mut this = Self { directories, watcher, rung, _ring: ring };
        this.watch_again();
        this
    }

    /// Watches what was not there before, or was made anew.
    pub fn watch_again(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for directory in &self.directories {
            if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                tracing::debug!(%error, directory = %directory.display(), "not watched");
            }
        }
    }

    /// Waits until something changed. May be dropped and called again without missing it.
    pub async fn changed(&mut self) {
        // Never an error: we hold a sender.
        let _ = self.rung.changed().await;
    }

    /// Waits until no more changes.
    pub async fn settle(&mut self) {
        let quiet =
            async { while tokio::time::timeout(SETTLED, self.rung.changed()).await.is_ok() {} };
        let _ = tokio::time::timeout(AT_MOST, quiet).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn soon(definitions: &mut Definitions) {
        tokio::time::timeout(Duration::from_secs(10), definitions.changed()).await.unwrap();
        definitions.settle().await;
    }

    #[tokio::test]
    async fn definitions_that_come_change_and_go_are_noticed_and_reading_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            accounts_directory: dir.path().join("accounts.d"),
            inventory_directory: dir.path().join("inventory.d"),
            ..Config::default()
        };
        std::fs::create_dir(&config.accounts_directory).unwrap();
        let mut definitions = Definitions::watch(&config);
        let file = config.accounts_directory.join("shop.toml");
        std::fs::write(&file, "name = \"shop\"").unwrap();
        soon(&mut definitions).await;
        std::fs::write(&file, "name = \"shop\" # changed").unwrap();
        soon(&mut definitions).await;
        std::fs::rename(&file, config.accounts_directory.join("other.toml")).unwrap();
        soon(&mut definitions).await;
        // A directory that was missing at first.
        std::fs::create_dir(&config.inventory_directory).unwrap();
        definitions.watch_again();
        std::fs::write(config.inventory_directory.join("panel"), "#!/bin/sh").unwrap();
        soon(&mut definitions).await;
        std::fs::read_dir(&config.accounts_directory).unwrap().count();
        std::fs::read(config.accounts_directory.join("other.toml")).unwrap();
        assert!(
            tokio::time::timeout(SETTLED, definitions.changed()).await.is_err(),
            "reading rings"
        );
    }
}
