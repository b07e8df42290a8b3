//! Files between two agents: what is proved before the fence, and what is left for it.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use ferry_proto::command::Receipt;

use super::host::{Server, World, alone};
use crate::work::copied::Copied;
use crate::work::{Job, fence, files, verify};

/// Source and target of a move; the target answers.
async fn pair(world: &World) -> (Server, Server, Job) {
    let (source, target, listener, job) = world.armed_pair().await;
    target.listen(listener);
    put(&source, world, "page", "content");
    (source, target, job)
}

/// A file whose times tell nothing.
fn put(server: &Server, world: &World, name: &str, content: &str) {
    let path = server.home().join(name);
    fs::write(&path, content).unwrap();
    chown(&path, Some(world.uid), Some(world.uid)).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

async fn precopy(job: &Job) {
    files::precopy(job, 3, 1 << 20).await.unwrap();
}

fn figure(receipt: &Receipt, name: &str) -> String {
    match receipt {
        Receipt::Done { figures, .. } => figures[name].to_string(),
        other => panic!("{other:?}"),
    }
}

/// What is there now has been there long before the precopy.
async fn grows_old(job: &Job) {
    let mut copied = Copied::of(job).await;
    copied.last.as_mut().expect("a pass").later(Duration::from_secs(3600));
    copied.proof.as_mut().expect("a proof").base.later(Duration::from_secs(3600));
    copied.keep(job).await.unwrap();
}

#[test]
fn what_was_proved_before_the_fence_is_not_read_behind_it() {
    alone(async |world| {
        let (_source, target, job) = pair(&world).await;
        precopy(&job).await;
        assert_eq!(read(&target.home().join("page")), "content");
        grows_old(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let receipt = verify::verify(&job).await.unwrap();
        assert_eq!(figure(&receipt, "bytes"), "0");
        assert_eq!(figure(&receipt, "entries"), "2");
        // What times and sizes do not tell was proved, and is not looked at again; the rest is.
        fs::remove_file(target.home().join("index.html")).unwrap();
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.causes.iter().any(|c| c.contains("index.html")), "{fault}");
    });
}

#[test]
fn a_change_that_hides_behind_its_time_reaches_the_target() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        precopy(&job).await;
        put(&source, &world, "page", "CONTENT");
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        verify::verify(&job).await.unwrap();
        assert_eq!(read(&target.home().join("page")), "CONTENT");
    });
}

#[test]
fn a_copy_of_an_earlier_move_is_proved_not_believed() {
    alone(async |world| {
        let (_source, target, job) = pair(&world).await;
        precopy(&job).await;
        // As old at both ends as the times say, and not the same.
        grows_old(&job).await;
        put(&target, &world, "page", "OLDDATA");
        files::precopy(&job, 1, 0).await.unwrap();
        assert_eq!(read(&target.home().join("page")), "content");
        grows_old(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        // What differed when it was compared is compared again.
        let receipt = verify::verify(&job).await.unwrap();
        assert_eq!(figure(&receipt, "bytes"), "content".len().to_string());
    });
}

#[test]
fn without_what_is_known_of_the_copy_all_is_compared() {
    alone(async |world| {
        let (_source, target, job) = pair(&world).await;
        precopy(&job).await;
        grows_old(&job).await;
        Copied::forget(&job.agent, &job.of.account).await;
        put(&target, &world, "page", "OLDDATA");
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.causes.iter().any(|c| c.contains("page")), "{fault}");
    });
}

#[test]
fn a_home_that_its_owner_has_emptied_is_emptied_at_the_target() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        precopy(&job).await;
        for name in ["page", "index.html"] {
            fs::remove_file(source.home().join(name)).unwrap();
        }
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        verify::verify(&job).await.unwrap();
        assert_eq!(fs::read_dir(target.home()).unwrap().count(), 0);
    });
}

#[test]
fn a_home_that_is_not_mounted_does_not_empty_the_target() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        precopy(&job).await;
        // Another directory stands in its place, as when its file system is gone.
        fs::rename(source.home(), source.dir.join("away")).unwrap();
        fs::create_dir(source.home()).unwrap();
        chown(source.home(), Some(world.uid), Some(world.uid)).unwrap();
        fence::fence(&job, 600, 0).await.unwrap();
        let fault = files::final_pass(&job).await.unwrap_err();
        assert!(fault.message.contains("another directory"), "{fault}");
        assert_eq!(read(&target.home().join("page")), "content");
    });
}

#[test]
fn a_process_that_came_back_is_found_when_verifying() {
    alone(async |world| {
        let (_source, _target, job) = pair(&world).await;
        precopy(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let back = super::fencing::Running::of_account(&world);
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.message.contains("come back"), "{fault}");
        drop(back);
        verify::verify(&job).await.unwrap();
    });
}
