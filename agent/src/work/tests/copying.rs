//! Files between two agents: what is proved before the fence, and what is left for it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use ferry_files::{PassReport, Rates, stamps_every_write};
use ferry_proto::FaultClass;
use ferry_proto::command::Receipt;
use nix::mount::{MsFlags, mount};

use super::host::{Server, World, alone};
use crate::handover;
use crate::work::copied::Copied;
use crate::work::forecast::Forecast;
use crate::work::{Job, fence, files, verify};

const HOUR: Duration = Duration::from_secs(3600);

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
    copied.last.as_mut().expect("a pass").later(HOUR);
    copied.proof.as_mut().expect("a proof").base.later(HOUR);
    copied.keep(job).await.unwrap();
}

/// What a comparison reads of `changed` where the file system tells what has not changed.
fn compared(server: &Server, changed: &[&str]) -> String {
    let all = ["content", "hello"];
    let read = if stamps_every_write(&server.home()) { changed } else { &all };
    read.iter().map(|content| content.len()).sum::<usize>().to_string()
}

#[test]
fn what_was_proved_before_the_fence_is_not_read_behind_it() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        job.agent.journals.switch_off();
        precopy(&job).await;
        assert_eq!(read(&target.home().join("page")), "content");
        grows_old(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let receipt = verify::verify(&job).await.unwrap();
        assert_eq!(figure(&receipt, "bytes"), compared(&source, &[]));
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

/// Paused, and resumed by another command: what has arrived is not sent again.
#[test]
fn a_precopy_that_was_cut_off_goes_on_where_it_was() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        let large = source.home().join("zlarge");
        let mut random = File::open("/dev/urandom").unwrap().take(8 << 20);
        std::io::copy(&mut random, &mut File::create(&large).unwrap()).unwrap();
        chown(&large, Some(world.uid), Some(world.uid)).unwrap();
        let arrived = target.home().join("page");
        // Minutes for the large file.
        job.agent.limits.set(Rates { bandwidth: Some(64 << 10), io: None });
        let (mut seen, cancel) = (job.progress.subscribe(), job.cancel.clone());
        let cutting = async {
            let _ = seen.wait_for(|_| arrived.exists()).await;
            cancel.cancel();
        };
        let (cut_off, ()) = tokio::join!(files::precopy(&job, 3, 1 << 20), cutting);
        assert_eq!(cut_off.unwrap_err().class, FaultClass::Cancelled);
        let there = fs::read(target.home().join("zlarge")).unwrap_or_default();
        assert!(there != fs::read(&large).unwrap(), "all of it had come");
        let inode = fs::metadata(&arrived).unwrap().ino();

        job.agent.limits.set(Rates::default());
        let again = world.job(&source, &job.of);
        precopy(&again).await;
        assert_eq!(fs::metadata(&arrived).unwrap().ino(), inode, "it was not sent again");
        fence::fence(&again, 600, 0).await.unwrap();
        files::final_pass(&again).await.unwrap();
        verify::verify(&again).await.unwrap();
    });
}

#[test]
fn a_copy_of_an_earlier_move_is_proved_not_believed() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
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
        assert_eq!(figure(&receipt, "bytes"), compared(&source, &["content"]));
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

/// A process that keeps others from opening a file.
struct Lease(Child);

impl Lease {
    fn on(path: &Path) -> Self {
        // F_SETLEASE, F_WRLCK. Whoever opens it asks for it back by a signal, and is not heard.
        let script = "$SIG{IO} = 'IGNORE'; open(my $f, '+<', $ARGV[0]) or die; \
                      fcntl($f, 1024, 1) or die; $| = 1; print \"held\\n\"; <STDIN>;";
        let mut child = Command::new("perl")
            .args(["-e", script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("perl");
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n");
        Self(child)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_could_not_be_compared_before_the_fence_is_compared_behind_it() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        // As an earlier move has left it: another content under the same size and time.
        put(&target, &world, "page", "OLDDATA");
        let lease = Lease::on(&source.home().join("page"));
        precopy(&job).await;
        drop(lease);
        grows_old(&job).await;
        assert_eq!(read(&target.home().join("page")), "OLDDATA", "nobody could read the source's");
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        verify::verify(&job).await.unwrap();
        assert_eq!(read(&target.home().join("page")), "content");
    });
}

#[test]
fn a_file_system_that_does_not_stamp_every_write_is_compared_in_full() {
    alone(async |world| {
        let (source, _target, job) = pair(&world).await;
        let none = None::<&str>;
        mount(none, &source.home(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        chown(source.home(), Some(world.uid), Some(world.uid)).unwrap();
        put(&source, &world, "page", "content");
        precopy(&job).await;
        put(&source, &world, "page", "CONTENT");
        // What a mapping writes there leaves the times as old as ever.
        grows_old(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.causes.iter().any(|c| c.contains("page")), "{fault}");
    });
}

/// The source's directory `dir`, copied; its file `page` is old.
async fn a_directory_is_copied(source: &Server, world: &World, job: &Job) -> Copied {
    let dir = source.home().join("dir");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(world.uid), Some(world.uid)).unwrap();
    put(source, world, "dir/page", "content");
    precopy(job).await;
    let mut copied = Copied::of(job).await;
    copied.last.as_mut().expect("a pass").later(HOUR);
    copied
}

/// Runs `work` while the source's directory has another name: its files' times do not tell.
async fn while_renamed<T>(source: &Server, work: impl Future<Output = T>) -> T {
    let (dir, away) = (source.home().join("dir"), source.home().join("away"));
    fs::rename(&dir, &away).unwrap();
    let done = work.await;
    fs::rename(&away, &dir).unwrap();
    done
}

#[test]
fn a_directory_that_was_away_when_all_was_compared_is_compared_behind_the_fence() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        let mut copied = a_directory_is_copied(&source, &world, &job).await;
        put(&target, &world, "dir/page", "OLDDATA");
        let account = job.account().unwrap();
        let comparing = files::compare_live(&job, &account, copied.last.clone());
        let compared = Box::pin(while_renamed(&source, comparing)).await.unwrap();
        files::live_pass(&job, &account, 9, &mut copied, &compared.doubt).await.unwrap();
        assert!(copied.prove(compared));
        copied.keep(&job).await.unwrap();
        grows_old(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.causes.iter().any(|c| c.contains("dir/page")), "{fault}");
    });
}

#[test]
fn what_the_final_pass_copies_anew_is_compared_behind_the_fence() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        job.agent.journals.switch_off();
        let mut copied = a_directory_is_copied(&source, &world, &job).await;
        let account = job.account().unwrap();
        let compared = files::compare_live(&job, &account, copied.last.clone()).await.unwrap();
        let doubt = compared.doubt.clone();
        let passing = files::live_pass(&job, &account, 9, &mut copied, &doubt);
        while_renamed(&source, passing).await.unwrap();
        assert!(copied.prove(compared));
        copied.keep(&job).await.unwrap();
        grows_old(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        let sent = files::final_pass(&job).await.unwrap();
        assert_eq!(figure(&sent, "files_sent"), "1");
        // As if it had been written wrongly.
        put(&target, &world, "dir/page", "OLDDATA");
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.causes.iter().any(|c| c.contains("dir/page")), "{fault}");
    });
}

#[test]
fn a_change_after_the_clock_was_set_back_reaches_the_target() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        precopy(&job).await;
        let mut copied = Copied::of(&job).await;
        copied.last.as_mut().expect("a pass").before_clock_was_set_back(HOUR);
        copied.proof.as_mut().expect("a proof").base.before_clock_was_set_back(HOUR);
        copied.keep(&job).await.unwrap();
        put(&source, &world, "page", "CONTENT");
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        verify::verify(&job).await.unwrap();
        assert_eq!(read(&target.home().join("page")), "CONTENT");
    });
}

#[test]
fn with_the_journal_only_what_changed_is_looked_at_behind_the_fence() {
    only_what_changed_is_looked_at(|_| {});
}

#[test]
fn agents_that_were_restarted_look_only_at_what_changed_behind_the_fence() {
    only_what_changed_is_looked_at(|server| handover::restart(&server.agent));
}

#[test]
fn what_is_written_by_a_name_outside_the_home_reaches_the_target() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        let outside = source.dir.join("outside");
        fs::hard_link(source.home().join("page"), &outside).unwrap();
        precopy(&job).await;
        handover::restart(&source.agent);
        fs::write(&outside, "CONTENT").unwrap();
        fence::fence(&job, 600, 0).await.unwrap();
        let sent = files::final_pass(&job).await.unwrap();
        assert_eq!(figure(&sent, "entries"), "1", "the journal has begun anew");
        verify::verify(&job).await.unwrap();
        assert_eq!(read(&target.home().join("page")), "CONTENT");
    });
}

#[test]
fn behind_the_fence_no_journal_begins() {
    alone(async |world| {
        let (_source, _target, job) = pair(&world).await;
        precopy(&job).await;
        let journal = || job.agent.journals.existing(&job.of.account, job.of.job);
        assert!(journal().is_some());
        // As after the agent was killed.
        job.agent.journals.forget(&job.of.account);
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        assert!(journal().is_none());
        verify::verify(&job).await.unwrap();
    });
}

/// `between`: what happens to each server before the fence.
fn only_what_changed_is_looked_at(between: fn(&Server)) {
    alone(async move |world| {
        let (source, target, job) = pair(&world).await;
        fs::create_dir(source.home().join("dir")).unwrap();
        chown(source.home().join("dir"), Some(world.uid), Some(world.uid)).unwrap();
        put(&source, &world, "dir/page", "content");
        precopy(&job).await;
        fs::rename(source.home().join("dir"), source.home().join("moved")).unwrap();
        [&source, &target].into_iter().for_each(between);
        put(&source, &world, "page", "CONTENT");
        fence::fence(&job, 600, 0).await.unwrap();
        let sent = files::final_pass(&job).await.unwrap();
        // The page and the directory; of the directory nothing is sent.
        assert_eq!(
            (figure(&sent, "entries"), figure(&sent, "files_sent")),
            ("2".into(), "1".into())
        );
        assert_eq!(read(&target.home().join("page")), "CONTENT");
        assert_eq!(read(&target.home().join("moved/page")), "content");
        // What was moved is compared with all that is in it, and the other page is not looked at.
        let receipt = verify::verify(&job).await.unwrap();
        assert_eq!(figure(&receipt, "entries"), "3");
        put(&target, &world, "moved/page", "OLDDATA");
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.causes.iter().any(|c| c.contains("moved/page")), "{fault}");
    });
}

#[test]
fn somebody_else_who_writes_at_the_target_has_everything_compared() {
    alone(async |world| {
        let (_source, target, job) = pair(&world).await;
        precopy(&job).await;
        grows_old(&job).await;
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let receipt = verify::verify(&job).await.unwrap();
        assert_eq!(figure(&receipt, "entries"), "0");
        let spoilt = target.home().join("index.html");
        let spoils = Command::new("chmod").arg("600").arg(&spoilt).status().unwrap();
        assert!(spoils.success());
        let fault = verify::verify(&job).await.unwrap_err();
        assert!(fault.causes.iter().any(|c| c.contains("index.html")), "{fault}");
    });
}

#[test]
fn a_journal_that_has_missed_something_is_not_believed() {
    alone(async |world| {
        let (_source, target, job) = pair(&world).await;
        precopy(&job).await;
        assert!(job.agent.journals.existing(&job.of.account, job.of.job).is_some());
        // Nobody at the source has changed this.
        put(&target, &world, "page", "OLDDATA");
        precopy(&job).await;
        assert!(job.agent.journals.existing(&job.of.account, job.of.job).is_none());
        assert_eq!(read(&target.home().join("page")), "content");
    });
}

#[test]
fn a_precopy_tells_how_long_the_final_pass_is_going_to_take() {
    alone(async |world| {
        let (_source, _target, job) = pair(&world).await;
        let receipt = files::precopy(&job, 3, 1 << 20).await.unwrap();
        let told = job.progress.borrow().final_pass.clone().expect("it was told in the progress");
        assert!(told.words.contains("nothing has changed since the last pass began"), "{told:?}");
        let Receipt::Done { summary, figures } = &receipt else { panic!("{receipt:?}") };
        assert!(summary.ends_with(&told.words), "{summary}");
        assert_eq!(figures["final_pass_seconds"], told.ms as f64 / 1000.0);
    });
}

#[test]
fn what_has_changed_since_the_last_pass_is_in_the_forecast() {
    alone(async |world| {
        let (source, target, job) = pair(&world).await;
        precopy(&job).await;
        let forecast = Forecast::of(&job);
        assert_eq!(forecast.tell().await, None, "no pass has told what it costs");
        forecast.passed(&PassReport::default(), Duration::from_millis(100)).await;
        put(&source, &world, "page", "CONTENT");
        put(&source, &world, "other", "other");
        let words = forecast.tell().await.expect("it can be told").words;
        assert!(words.contains("2 paths with 12 bytes have changed since"), "{words}");
        assert_eq!(job.progress.borrow().final_pass.as_ref().map(|told| &told.words), Some(&words));
        // Asking takes nothing from the pass.
        fence::fence(&job, 600, 0).await.unwrap();
        files::final_pass(&job).await.unwrap();
        let there = ["page", "other"].map(|name| read(&target.home().join(name)));
        assert_eq!(there, ["CONTENT", "other"]);
    });
}

#[test]
fn without_a_journal_the_forecast_is_a_look_at_everything() {
    alone(async |world| {
        let (_source, _target, job) = pair(&world).await;
        job.agent.journals.switch_off();
        let receipt = files::precopy(&job, 3, 1 << 20).await.unwrap();
        let words = receipt.in_words();
        assert!(
            words.contains("no change journal tells what has changed, so all 2 entries"),
            "{words}"
        );
    });
}
