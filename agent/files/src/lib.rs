//! Ferry's file engine: one streaming, incremental pass from a source tree to a target tree over one
//! byte stream, and a comparison of both afterwards.
//!
//! It knows trees, metadata and the stream between two ends. It must not know accounts, grants, TLS,
//! or who asked for the pass.

mod options;
mod report;

use std::path::Path;

use ferry_proto::Fault;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use options::{IdMap, SourceOptions, TargetOptions};
pub use report::{
    Bounded, Comparison, Difference, LIST_LIMIT, Note, NoteKind, PassReport, Progress, Refusal,
};

/// Statistics of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TreeStats {
    /// Regular files; one with several names counts once.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Everything else: symlinks, FIFOs, sockets, devices.
    pub others: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
    /// Bytes on disk.
    pub allocated: u64,
    /// The biggest files, biggest first.
    pub biggest: Vec<(String, u64)>,
    /// Directories that could not be read, and mounts, which are not entered.
    pub skipped: u64,
}

/// Sends one pass: the source's side.
///
/// # Errors
/// What ended the pass, at either end.
pub async fn send_pass<S>(
    root: &Path,
    stream: S,
    options: SourceOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<PassReport, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let _ = (root, stream, options, progress, cancel);
    Err(Fault::bug("not built yet"))
}

/// Receives one pass: the target's side.
///
/// # Errors
/// What ended the pass, at either end.
pub async fn receive_pass<S>(
    root: &Path,
    stream: S,
    options: TargetOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<PassReport, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let _ = (root, stream, options, progress, cancel);
    Err(Fault::bug("not built yet"))
}

/// Compares, the source's side.
///
/// # Errors
/// What ended the comparison, at either end.
pub async fn verify_source<S>(
    root: &Path,
    stream: S,
    options: SourceOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<Comparison, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let _ = (root, stream, options, progress, cancel);
    Err(Fault::bug("not built yet"))
}

/// Compares, the target's side.
///
/// # Errors
/// What ended the comparison, at either end.
pub async fn verify_target<S>(
    root: &Path,
    stream: S,
    options: TargetOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<Comparison, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let _ = (root, stream, options, progress, cancel);
    Err(Fault::bug("not built yet"))
}

/// Counts what a tree holds. It blocks: call it where blocking is allowed.
///
/// # Errors
/// The root cannot be opened, or `cancel` was cancelled.
pub fn scan(root: &Path, cancel: &CancellationToken) -> Result<TreeStats, Fault> {
    let _ = (root, cancel);
    Err(Fault::bug("not built yet"))
}
