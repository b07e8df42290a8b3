//! The target's side of a pass and of a comparison: it puts the mirror, a visitor and the stream
//! together. It must not know what either visitor does.

use std::path::Path;
use std::sync::Arc;

use ferry_proto::Fault;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::confine::Tree;
use crate::exclusive::Claim;
use crate::metadata::Stat;
use crate::mirror::{self, Visitor};
use crate::neighbour::Neighbour;
use crate::options::TargetOptions;
use crate::protocol::Purpose;
use crate::report::{Comparison, FromPeer, PassReport, Progress};
use crate::session::{self, Streams, Work};
use crate::verify::Verifier;
use crate::wire;

/// Receives one pass: the target's side. Answers the same report as the source's side.
///
/// # Errors
/// What ended the pass, at either end. It may be run again as it is.
pub async fn receive_pass<S>(
    root: &Path,
    streams: Streams<S>,
    options: TargetOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<PassReport, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (root, limits) = (root.to_owned(), options.limits.clone());
    let start = move |work: Work| {
        let tree = Arc::new(work.halt.stopping(Tree::open_root(&root))?);
        let identity = Stat::of_fd(tree.root_fd())
            .map_err(|errno| Fault::io("the root of the tree cannot be examined", &errno.into()))?;
        let _claim = Claim::wait(identity.identity(), &work.halt)?;
        let (halt, counters) = (work.halt.clone(), work.counters.clone());
        let who = (options.workers, Neighbour::new(options.calm));
        let applier = Applier::new(Arc::clone(&tree), options, halt, counters);
        target(tree, who, applier, Purpose::Pass, work)
    };
    session::run(streams, limits, progress, cancel, start).await
}

/// Compares: the target's side. Answers the same comparison as the source's side.
///
/// # Errors
/// What ended the comparison, at either end.
pub async fn verify_target<S>(
    root: &Path,
    streams: Streams<S>,
    options: TargetOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<Comparison, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (root, limits) = (root.to_owned(), options.limits.clone());
    let start = move |work: Work| {
        let tree = Arc::new(work.halt.stopping(Tree::open_root(&root))?);
        let (halt, counters) = (work.halt.clone(), work.counters.clone());
        let who = (options.workers, Neighbour::new(options.calm));
        let verifier = Verifier::new(Arc::clone(&tree), options, halt, counters);
        target(tree, who, verifier, Purpose::Verify, work)
    };
    session::run(streams, limits, progress, cancel, start).await
}

fn target<V: Visitor, R: FromPeer>(
    tree: Arc<Tree>,
    who: (usize, Neighbour),
    visitor: V,
    purpose: Purpose,
    work: Work,
) -> Result<R, Fault> {
    let report = mirror::follow(tree, purpose, who, visitor, work)?;
    // Read back what was sent, so that both ends hold the very same.
    wire::from_json(&report)
}
