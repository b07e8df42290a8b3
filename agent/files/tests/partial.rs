//! Passes that look only at what the change journal tells make the target as equal as passes over everything.

mod support;

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ferry_files::journal::{Backend, Plan, Watch, Watched};
use ferry_files::{PassReport, SourceOptions};
use ferry_proto::FaultClass;
use proptest::prelude::*;
use support::{Trees, UID, mkdir, run, source_options, target_options, whose, write};

const BACKENDS: [Backend; 3] = [Backend::Renames, Backend::Names, Backend::Inotify];

/// Trees whose target is equal to the source, and the journal since then.
struct Journaled {
    trees: Trees,
    watch: Watched,
}

impl Journaled {
    async fn new(backend: Backend, prepare: &str) -> Self {
        let trees = Trees::quick();
        // The account itself works in it.
        std::fs::set_permissions(trees.dir.path(), std::fs::Permissions::from_mode(0o755))
            .expect("chmod");
        does(&trees.source, prepare);
        let root: OwnedFd = std::fs::File::open(&trees.source).expect("open").into();
        let watch = Watch::start(root, backend, whose(backend)).expect("watched");
        assert_eq!(watch.backend(), backend, "another backend than the one that is tested");
        let watch = Arc::new(watch).tree(&trees.source).expect("watched");
        let all = Self { trees, watch };
        all.pass_over_all().await;
        all
    }

    /// A pass that looks at everything.
    async fn pass_over_all(&self) {
        self.watch.take();
        self.pass(None).await;
        self.trees.assert_equal();
    }

    fn plan(&self) -> Option<Plan> {
        Plan::of(&self.watch.take(), &self.trees.source, []).expect("the root is there")
    }

    /// What a pass does after `script`; it looks only at what the journal tells. inotify may say that it does not know.
    async fn after(&self, script: &str) -> PassReport {
        does(&self.trees.source, script);
        let plan = self.plan();
        assert!(plan.is_some() || !self.watch.backend().is_complete(), "all that changed is known");
        self.follows(plan).await
    }

    /// The same, where the journal may as well say that it has missed something.
    async fn after_or_all(&self, script: &str) -> PassReport {
        does(&self.trees.source, script);
        self.follows(self.plan()).await
    }

    async fn follows(&self, plan: Option<Plan>) -> PassReport {
        let received = self.pass(plan).await;
        self.trees.assert_equal();
        let compared = self.trees.compare().await;
        assert!(compared.is_equal(), "{compared:?}");
        received
    }

    async fn pass(&self, plan: Option<Plan>) -> PassReport {
        let (plan, elsewhere) = (plan.map(Arc::new), Arc::default());
        let noted = Some(Arc::clone(&elsewhere));
        let options = SourceOptions { plan, elsewhere: noted, ..source_options() };
        let (sent, received) = self.trees.pass_with(options, target_options()).await;
        self.watch.put_back(std::mem::take(&mut *elsewhere.lock().expect("no panic")));
        let received = received.expect("the target's end");
        assert_eq!(sent.expect("the source's end"), received);
        received
    }
}

/// What the account does, in a program of its own.
fn does(root: &Path, script: &str) {
    let (uid, gid) = (UID.to_string(), UID.to_string());
    run(Command::new("setpriv")
        .args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "sh", "-euc", script])
        .current_dir(root));
}

/// Some files, two of them one inode, at several depths.
const TREE: &str = "
    mkdir -p a/b/c d/e big
    for n in 1 2 3 4 5 6 7 8 9; do echo $n > big/$n; echo $n > a/b/c/$n; done
    echo x > a/one; ln a/one d/e/two; echo y > d/file; ln -s ../a/one d/link; mkfifo a/fifo";

#[tokio::test]
async fn what_changed_is_copied_and_nothing_else_is_looked_at() {
    for backend in BACKENDS {
        let all = Journaled::new(backend, TREE).await;
        let nothing = all.after(":").await;
        assert_eq!((nothing.entries, nothing.files_sent), (0, 0));
        let one = all.after("echo more >> a/b/c/5").await;
        // a, b, c and the file.
        assert_eq!((one.entries, one.files_sent), (4, 1), "{one:?}");
        let more = all
            .after(
                "rm a/b/c/1; mkdir -p new/deep; echo n > new/deep/file; chmod 600 d/file; touch d",
            )
            .await;
        assert_eq!((more.files_sent, more.deleted), (1, 1), "{more:?}");
        assert!(more.entries < 12, "{more:?}");
        all.after("rm -r a/b; echo now > a/b; rm d/link; mkdir d/link; echo z > d/link/z").await;
        all.after("mkdir -m 700 quiet; touch -d 2001-02-03 d; chmod 711 .; rm a/fifo").await;
    }
}

#[tokio::test]
async fn a_directory_that_was_renamed_is_renamed() {
    let all = Journaled::new(Backend::Renames, TREE).await;
    let renamed = all.after("mv big a/large; echo 10 > a/large/10; rm a/large/3").await;
    assert_eq!((renamed.moved, renamed.files_sent, renamed.deleted), (1, 1, 1), "{renamed:?}");
    assert!(renamed.entries < 8, "{renamed:?}");
    // They change places, go one into another, and back.
    for (script, moved) in [
        ("mv a x; mv d a; mv x d", 2),
        ("mv d/b up; mv up/c c; mv up c/up", 2),
        ("mv c/up c2; mv c c2/c; mv c2/c c", 1),
        ("mv c c3; mv c3 c; echo t > c/there-and-back", 0),
        ("mkdir made; mv made final; mv c final/c; rm -r d/large/4", 1),
        ("mv final f2; rm -r f2/c; mv d final", 2),
        ("mv final/large gone; rm -r gone; rm -r f2; mkdir f2; echo f > f2/f", 0),
    ] {
        let report = all.after(script).await;
        assert_eq!((report.moved, report.files_sent <= 1), (moved, true), "{script}: {report:?}");
    }
}

#[tokio::test]
async fn all_names_of_an_inode_follow() {
    for backend in BACKENDS {
        let all = Journaled::new(backend, TREE).await;
        // Through one of two names.
        let changed = all.after("echo more >> a/one").await;
        assert_eq!((changed.files_sent, changed.created), (1, 1), "{changed:?}");
        // A name for what had one, in a directory where nothing else happens.
        all.after("ln d/file a/b/other; ln big/1 big/one").await;
        // Broken: replaced by its like, with the time that it had.
        all.after("cp -p a/one a/new; mv a/new a/one").await;
        all.after("rm d/e/two; cp -al big copy; echo x >> copy/2").await;
        all.after("rm -r copy").await;
        // Written to under a name that it has lost.
        all.after("echo 1 > x; ln x y; exec 3>> x; rm x; echo 2 >&3; exec 3>&-").await;
        all.after("ln y z; exec 3>> y; echo n > new; mv new y; echo 3 >&3; exec 3>&-").await;
    }
}

/// What root does beside the tree.
fn does_outside(all: &Journaled, script: &str) {
    let dir = all.trees.dir.path();
    run(Command::new("sh").args(["-euc", script]).current_dir(dir));
}

#[tokio::test]
async fn what_is_written_by_a_name_outside_the_tree_follows() {
    for backend in BACKENDS {
        let all = Journaled::new(backend, TREE).await;
        does_outside(&all, "mkdir outside; ln source/d/file source/a/one outside");
        // A pass that looks at everything meets fewer names than there are.
        all.pass_over_all().await;
        for number in 0..3 {
            does_outside(&all, &format!("echo {number} >> outside/file; echo x >> outside/one"));
            let report = all.after(":").await;
            assert!(report.files_sent == 2 && report.entries < 9, "{backend:?}: {report:?}");
        }
        // Where it is now.
        does_outside(&all, "echo more >> outside/one");
        all.after_or_all("mv a/one d/e/three; mv d/file file; mkdir f; mv file f").await;
        does_outside(&all, "echo more >> outside/one; echo more >> outside/file");
        all.after_or_all("mv f g").await;
        // One that is gone is not known to be.
        does(&all.trees.source, "rm g/file");
        assert!(all.plan().is_none());
    }
}

#[tokio::test]
async fn a_name_that_is_given_outside_the_tree_later_is_told() {
    for backend in [Backend::Renames, Backend::Names] {
        let all = Journaled::new(backend, TREE).await;
        does_outside(&all, "mkdir outside; ln source/d/file source/a/one outside");
        all.after(":").await;
        does_outside(&all, "echo more >> outside/file; echo more >> outside/one");
        let report = all.after(":").await;
        assert_eq!(report.files_sent, 2, "{backend:?}: {report:?}");
    }
}

#[tokio::test]
async fn a_file_that_leaves_the_tree_with_one_of_its_names_is_looked_at_from_then_on() {
    for backend in BACKENDS {
        for leaves in ["a/one", "d/e"] {
            let all = Journaled::new(backend, TREE).await;
            // There are files with several names: a pass that looks at little does not forget it.
            all.after("echo more >> big/1").await;
            does_outside(&all, &format!("mv source/{leaves} left"));
            all.after_or_all(":").await;
            does_outside(&all, "if [ -d left ]; then cd left; mv two ..; else mv left two; fi");
            does_outside(&all, "echo more >> two");
            let report = all.after(":").await;
            assert_eq!(report.files_sent, 1, "{backend:?}, {leaves}: {report:?}");
        }
    }
}

#[tokio::test]
async fn what_came_from_elsewhere_or_went_there_is_told_apart() {
    for backend in BACKENDS {
        let all = Journaled::new(backend, TREE).await;
        let outside = all.trees.dir.path().join("outside");
        mkdir(&outside);
        mkdir(&outside.join("coming"));
        write(&outside.join("coming/old"), "old");
        let report =
            all.after_or_all("mv ../outside/coming in; mv in inside; mv a ../outside/a").await;
        assert_eq!((report.moved, report.files_sent), (0, 1), "{report:?}");
        let report = all.after_or_all("mv ../outside/a b; echo 2 > b/b/c/2").await;
        assert!(report.files_sent > 0, "{report:?}");
    }
}

#[tokio::test]
async fn a_target_that_is_not_as_it_was_left_is_told() {
    let all = Journaled::new(Backend::Renames, TREE).await;
    does(&all.trees.source, "mv big large; echo 1 > a/b/c/1");
    let plan = Arc::new(all.plan().expect("known"));
    for missing in ["big", "a/b"] {
        std::fs::remove_dir_all(all.trees.target.join(missing)).expect("remove");
        let options = SourceOptions { plan: Some(Arc::clone(&plan)), ..source_options() };
        let (_, received) = all.trees.pass_with(options, target_options()).await;
        let fault = received.expect_err("nobody knows what is there");
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
        assert!(fault.message.contains("the pass before left"), "{fault}");
        all.trees.pass().await;
        all.trees.assert_equal();
        if missing == "big" {
            does(&all.trees.source, "mv large big");
            all.trees.pass().await;
        }
    }
}

/// Something that the account does, among few names, so that they meet.
fn deed() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "c", "a/b", "a/c", "b/a", "c/c", "a/b/c"]);
    let pair = || (name(), name());
    prop_oneof![
        3 => name().prop_map(|n| format!("mkdir -p {n}")),
        4 => (name(), 0..1000_u32).prop_map(|(n, x)| format!("echo {x} > {n}/f{}", x % 3)),
        2 => (name(), 0..1000_u32).prop_map(|(n, x)| format!("echo {x} >> {n}")),
        4 => pair().prop_map(|(n, m)| format!("mv -T {n} {m}")),
        2 => pair().prop_map(|(n, m)| format!("mv {n} {m}")),
        2 => pair().prop_map(|(n, m)| format!("mv -T {n} t; mv -T {m} {n}; mv -T t {m}")),
        2 => name().prop_map(|n| format!("rm -rf {n}")),
        2 => (pair(), 0..3, 0..3).prop_map(|((n, m), x, y)| format!("ln {n}/f{x} {m}/f{y}")),
        1 => pair().prop_map(|(n, m)| format!("cp -al {n} {m}")),
        1 => (name(), 0..3_usize).prop_map(|(n, x)| format!("chmod {} {n}", ["700", "755", "711"][x])),
        1 => pair().prop_map(|(n, m)| format!("ln -s {n} {m}")),
        1 => name().prop_map(|n| format!("touch -d '2001-02-03 04:05:06.7' {n}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_account_does_the_target_follows(
        passes in prop::collection::vec(prop::collection::vec(deed(), 1..12), 1..5),
        backend in prop::sample::select(BACKENDS.to_vec()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let all = Journaled::new(backend, TREE).await;
            for deeds in passes {
                // Most of them fail now and then.
                let deeds = deeds.iter();
                let script: String = deeds.map(|d| format!("({d}) 2>/dev/null || :\n")).collect();
                if backend == Backend::Renames {
                    all.after(&script).await;
                } else {
                    all.after_or_all(&script).await;
                }
            }
        });
    }
}
