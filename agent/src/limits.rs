//! `systemctl reload ferry-agent`: limits of copies that are changed while they run. Of the configuration only
//! `[copy]` is read again.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, blocking};
use crate::config::Config;

/// Reads the configuration at `path` again whenever the service manager hangs up.
pub async fn keep(agent: Arc<Agent>, path: PathBuf, mut hangup: Signal, stop: CancellationToken) {
    while let Some(Some(())) = stop.run_until_cancelled(hangup.recv()).await {
        reload(&agent, path.clone()).await;
    }
    stop.cancelled().await;
}

/// Sets the limits that the configuration has now. One that is broken changes nothing.
async fn reload(agent: &Agent, path: PathBuf) {
    let config = match blocking(move || Config::load(&path)).await {
        Ok(config) => config,
        Err(fault) => {
            tracing::error!("the limits of copies stay as they are: {fault}");
            return;
        }
    };
    let (before, now) = (agent.limits.get(), config.copy.rates());
    agent.limits.set(now);
    for (what, before, now) in
        [("sent", before.bandwidth, now.bandwidth), ("read and written", before.io, now.io)]
    {
        if before != now {
            tracing::info!(
                "files of moves are {what} at {} from now on; before: {}",
                shown(now),
                shown(before)
            );
        }
    }
    if before == now {
        tracing::info!("the limits of copies are what they were");
    }
    if (Config { copy: agent.config.copy, ..config }) != agent.config {
        tracing::warn!(
            "the configuration has changed beyond [copy], which counts from the next start: \
             systemctl restart ferry-agent"
        );
    }
}

fn shown(rate: Option<u64>) -> String {
    rate.map_or_else(|| "any rate".to_owned(), |rate| format!("{rate} bytes a second at most"))
}

#[cfg(test)]
mod tests {
    use ferry_files::Rates;

    use super::*;
    use crate::testing::agent;
    use crate::testing::authority::Authority;

    #[tokio::test]
    async fn what_is_read_again_counts_at_once_and_what_is_broken_never() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        // What a pass has taken of them before.
        let limits = agent.limits.clone();
        assert_eq!(limits.get(), Rates::default());
        let path = dir.path().join("agent.toml");
        let set = Rates { bandwidth: Some(5_000_000), io: None };
        for (text, expected) in [
            ("[copy]\nbandwidth = 5000000\n", set),
            ("[copy]\nbandwidth = 0\n", set),
            ("[copy]\nbandwidth = many\n", set),
            ("log = \"debug\"\n", Rates::default()),
        ] {
            std::fs::write(&path, text).unwrap();
            reload(&agent, path.clone()).await;
            assert_eq!(limits.get(), expected, "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        reload(&agent, path).await;
        assert_eq!(limits.get(), Rates::default());
    }
}
