use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::{Layout, Services};

/// A user id that nothing else on the machine has.
fn own_uid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    1_000_000 + std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A process that is ended whatever happens to the test.
struct Running(Child);

impl Running {
    /// Runs a shell script, as `uid` if given, and waits until it says that it is ready.
    fn script(uid: Option<u32>, script: &str) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).current_dir("/");
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        Self::ready(command)
    }

    fn ready(mut command: Command) -> Self {
        let mut running = Self(command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.ends_with("ready"));
        assert!(ready, "the process ended before it was ready");
        running
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn no_systemd() -> (tempfile::TempDir, Layout) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::below(directory.path());
    (directory, layout)
}

#[test]
fn the_willing_end_and_the_others_are_killed() {
    let (_keep, layout) = no_systemd();
    let (uid, other) = (own_uid(), own_uid());
    let mut willing = Running::script(Some(uid), "echo ready; exec sleep 1000");
    let mut stubborn =
        Running::script(Some(uid), "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let mut stopped = Running::script(Some(uid), "echo ready; kill -STOP $$; sleep 1000");
    let mut stranger = Running::script(Some(other), "echo ready; exec sleep 1000");
    let report = stop_all(&layout, &[uid], &[], Duration::from_millis(300)).unwrap();
    assert!(of_users(&[uid], &[]).unwrap().is_empty());
    assert!(willing.has_ended() && stubborn.has_ended() && stopped.has_ended());
    assert!(!stranger.has_ended());
    assert!(report.ended.iter().any(|p| p.pid == willing.pid()), "{report:?}");
    assert!(report.killed.iter().any(|p| p.pid == stubborn.pid()), "{report:?}");
    let again = stop_all(&layout, &[uid], &[], Duration::from_secs(5)).unwrap();
    assert_eq!(again, StopReport::default());
}

#[test]
fn nothing_to_stop_takes_no_time() {
    let (_keep, layout) = no_systemd();
    let begin = Instant::now();
    stop_all(&layout, &[own_uid()], &[], Duration::from_secs(30)).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn forking_away_does_not_help() {
    let (_keep, layout) = no_systemd();
    let uid = own_uid();
    // Each process starts the next one and ends: the one that was seen is never there any more.
    let script = "trap '' TERM; f() { (f) & exit; }; echo ready; f & wait; sleep 1000";
    let _first = Running::script(Some(uid), script);
    let _second = Running::script(Some(uid), script);
    assert!(!of_users(&[uid], &[]).unwrap().is_empty());
    let report = stop_all(&layout, &[uid], &[], Duration::from_millis(50)).unwrap();
    assert!(!report.killed.is_empty());
    assert!(of_users(&[uid], &[]).unwrap().is_empty());
}

#[test]
fn the_excluded_stay_and_system_users_are_refused() {
    let (_keep, layout) = no_systemd();
    let uid = own_uid();
    let mut kept = Running::script(Some(uid), "echo ready; exec sleep 1000");
    let mut other = Running::script(Some(uid), "trap '' TERM; echo ready; while :; do :; done");
    let grace = Duration::from_millis(100);
    stop_all(&layout, &[uid], &[kept.pid()], grace).unwrap();
    assert!(!kept.has_ended() && other.has_ended());
    assert!(stop_all(&layout, &[0], &[], grace).is_err());
    assert!(stop_all(&layout, &[uid, 33], &[], grace).is_err());
    assert!(!kept.has_ended());
}

fn real(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().canonicalize().unwrap()
}

#[test]
fn an_open_file_counts_only_if_it_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let root = real(&directory);
    std::fs::create_dir(root.join("home")).unwrap();
    std::fs::create_dir(root.join("home2")).unwrap();
    let roots = [root.join("home")];
    std::fs::write(root.join("home/read"), "x").unwrap();
    let run = |script: &str| Running::script(None, &format!("cd {}; {script}", root.display()));
    let _reader = run("exec 3<home/read; echo ready; exec sleep 1000");
    let _beside = run("exec 3>home2/file; echo ready; exec sleep 1000");
    assert_eq!(writers_below(&roots, &[], &|| false).unwrap(), []);
    wait_no_writers(&roots, &[], Duration::ZERO, &|| false).unwrap();
    let writer =
        run("exec 3>>'home/with space'; rm 'home/with space'; echo ready; exec sleep 1000");
    let found = writers_below(&roots, &[], &|| false).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].pid, found[0].how), (writer.pid(), How::Descriptor));
    assert_eq!(writers_below(&roots, &[writer.pid()], &|| false).unwrap(), []);
    let fault = wait_no_writers(&roots, &[], Duration::from_millis(50), &|| false).unwrap_err();
    assert!(fault.message.contains("sleep"), "{fault}");
    drop(writer);
    wait_no_writers(&roots, &[], Duration::from_secs(5), &|| false).unwrap();
}

/// A process whose first thread ends while another one goes on, with what it was given as arguments: a
/// file that it holds by a descriptor, or only by a shared mapping.
const HIDDEN: &str = r#"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void *work(void *first) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    for (;;) {
        FILE *stat = fopen(path, "r");
        if (stat && fgets(line, sizeof line, stat) && strstr(line, ") Z ")) break;
        if (stat) fclose(stat);
        nanosleep(&(struct timespec){0, 1000000}, 0);
    }
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}

int main(int count, char **arguments) {
    pthread_t other;
    int file = open(arguments[1], O_RDWR | O_CREAT, 0600);
    if (count > 2) {
        if (ftruncate(file, 4096)) return 1;
        if (mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) == MAP_FAILED) return 1;
        close(file);
    }
    if (pthread_create(&other, 0, work, 0)) return 1;
    syscall(SYS_exit, 0);
}
"#;

#[test]
fn a_process_whose_first_thread_has_ended_is_seen_and_ended() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let directory = tempfile::tempdir().unwrap();
    let root = real(&directory);
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(root.join("hidden.c"), HIDDEN).unwrap();
    let compiled = Command::new("cc")
        .args(["-pthread", "-o", "hidden", "hidden.c"])
        .current_dir(&root)
        .status()
        .expect("this test needs a C compiler, as cargo does");
    assert!(compiled.success());
    for (arguments, how) in
        [(&["home/file"][..], How::Descriptor), (&["home/file", "map"], How::Mapping)]
    {
        let uid = own_uid();
        std::fs::create_dir_all(root.join("home")).unwrap();
        chown(root.join("home"), Some(uid), Some(uid)).unwrap();
        let mut command = Command::new(root.join("hidden"));
        command.args(arguments).current_dir(&root).uid(uid).gid(uid);
        let mut hidden = Running::ready(command);
        let found = writers_below(&[root.join("home")], &[], &|| false).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].pid, found[0].how), (hidden.pid(), how));
        let seen = of_users(&[uid], &[]).unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].command.contains("home/file"), "{seen:?}");
        let (_keep, layout) = no_systemd();
        stop_all(&layout, &[uid], &[], Duration::from_millis(100)).unwrap();
        assert!(hidden.has_ended());
        wait_no_writers(&[root.join("home")], &[], Duration::ZERO, &|| false).unwrap();
        std::fs::remove_dir_all(root.join("home")).unwrap();
    }
}

#[test]
fn a_file_reached_by_another_mount_counts() {
    let directory = tempfile::tempdir().unwrap();
    let root = real(&directory);
    for name in ["home", "jail"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    let script = format!(
        "mount --bind {0}/home {0}/jail && exec 3>>{0}/jail/file && echo ready && exec sleep 1000",
        root.display()
    );
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--mount", "/bin/sh", "-c", &script]);
    let writer = Running::ready(command);
    let found = writers_below(&[root.join("home")], &[], &|| false).unwrap();
    assert!(found.iter().any(|w| w.pid == writer.pid()), "{found:?}");
    // From here that place is an empty directory that nobody writes.
    assert_eq!(writers_below(&[root.join("jail")], &[], &|| false).unwrap(), []);
}

/// Not a test by itself: the process that the next test looks at.
fn map(path: &Path, how: &str) {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let file =
        std::fs::OpenOptions::new().read(true).write(how != "never written").open(path).unwrap();
    let flags = if how == "written" { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    #[allow(unsafe_code)]
    // SAFETY: a new mapping at an address of the kernel's choice, never read or written.
    unsafe {
        mmap(std::ptr::null_mut(), 4096, flags, MapFlags::SHARED, &file, 0).unwrap();
    }
    drop(file);
    println!("ready");
    std::thread::sleep(Duration::from_secs(100));
}

#[test]
fn a_shared_mapping_counts_when_its_descriptor_is_closed() {
    if let Some(path) = std::env::var_os("FERRY_TEST_MAP") {
        return map(Path::new(&path), &std::env::var("FERRY_TEST_MAP_HOW").unwrap());
    }
    for how in ["written", "may be written", "never written"] {
        let directory = tempfile::tempdir().unwrap();
        let root = real(&directory);
        let test = "processes::tests::a_shared_mapping_counts_when_its_descriptor_is_closed";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]);
        std::fs::write(root.join("mapped"), [0; 4096]).unwrap();
        command.env("FERRY_TEST_MAP", root.join("mapped")).env("FERRY_TEST_MAP_HOW", how);
        let writer = Running::ready(command);
        let found = writers_below(std::slice::from_ref(&root), &[], &|| false).unwrap();
        let found: Vec<(u32, How)> = found.iter().map(|w| (w.pid, w.how)).collect();
        let expected =
            if how == "never written" { vec![] } else { vec![(writer.pid(), How::Mapping)] };
        assert_eq!(found, expected, "{how}");
    }
}

/// A tree that says that systemd has booted, with a `systemctl` that writes down what it is asked. It knows the
/// unit worker.service; tick.service is installed, but not loaded.
fn with_systemctl() -> (tempfile::TempDir, Layout) {
    use std::os::unix::fs::PermissionsExt;
    let (directory, mut layout) = no_systemd();
    let units = layout.path("/usr/lib/systemd/system");
    for directory in [units.clone(), layout.path("/run/systemd/system")] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::write(units.join("tick.service"), "[Service]\nUser = 1501\n").unwrap();
    std::fs::write(units.join("none.service"), "[Service]\nUser=other\n#User=shop\n").unwrap();
    let script = format!(
        "#!/bin/sh\nshift 2\ncd {}\necho \"$@\" >> log\ncase $* in\n\
         *DropInPaths*) for u in worker.service user@1501.service; do echo Id=$u;\n\
         if [ -e read ]; then echo DropInPaths=/x $PWD/etc/systemd/system/$u.d/zzz-ferry-fence.conf;\n\
         else echo DropInPaths=/x; fi; echo; done;;\n\
         *daemon-reload) touch read;;\n\
         *'*.service') printf 'Id=worker.service\\nUser=shop\\nActiveState=active\\n\\n\
         Id=other.service\\nUser=other\\nActiveState=active\\n\\nId=root.service\\nUser=\\n';;\n\
         *tick.service) printf 'Id=tick.service\\nUser=1501\\nActiveState=inactive\\n';;\nesac\n",
        layout.root().display()
    );
    let program = layout.path("/systemctl");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    layout.programs.systemctl = program;
    (directory, layout)
}

/// What systemctl has been asked since the last time, questions left out.
fn asked(layout: &Layout) -> String {
    let log = std::fs::read_to_string(layout.path("/log")).unwrap_or_default();
    let _ = std::fs::remove_file(layout.path("/log"));
    log.lines().filter(|l| !l.starts_with("show")).collect::<Vec<_>>().join("; ")
}

#[test]
fn units_are_kept_stopped_and_restored() {
    let (_keep, layout) = with_systemctl();
    let linger = layout.path("/var/lib/systemd/linger/shop");
    std::fs::create_dir_all(linger.parent().unwrap()).unwrap();
    std::fs::write(&linger, "").unwrap();
    let plan = plan_keep_stopped(&layout, &"shop".parse().unwrap(), 1501).unwrap();
    let units: Vec<(&str, bool)> = plan.units.iter().map(|u| (u.name.as_str(), u.active)).collect();
    assert_eq!(units, [("tick.service", false), ("worker.service", true)]);
    assert!(plan.linger);
    assert_eq!(asked(&layout), "");
    let flag = layout.path("/etc/ferry/fenced/shop");

    prepare_keep_stopped(&layout, &plan).unwrap();
    assert_eq!(asked(&layout), "daemon-reload");
    assert!(!flag.exists() && linger.exists());
    for unit in ["tick.service", "worker.service", "user@1501.service"] {
        let file = format!("/etc/systemd/system/{unit}.d/zzz-ferry-fence.conf");
        let text = std::fs::read_to_string(layout.path(file)).unwrap();
        assert!(text.contains(&format!("ConditionPathExists=!{}\n", flag.display())));
    }
    for _ in 0..2 {
        keep_stopped(&layout, &plan).unwrap();
        let stops = "stop --no-block -- tick.service; stop --no-block -- worker.service";
        assert_eq!(asked(&layout), stops);
        assert!(flag.exists() && !linger.exists());
    }
    let starts = "start --no-block -- user@1501.service; start --no-block -- worker.service";
    for reload in ["; daemon-reload", ""] {
        assert_eq!(allow(&layout, &plan).unwrap(), []);
        assert_eq!(asked(&layout), format!("{starts}{reload}"));
        assert!(linger.exists() && !flag.exists());
        assert_eq!(std::fs::read_dir(layout.path("/etc/systemd/system")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(linger.parent().unwrap()).unwrap().count(), 1);
    }
}

#[test]
fn lingering_becomes_what_it_is_at_the_source() {
    let (_keep, layout) = with_systemctl();
    let directory = layout.path("/var/lib/systemd/linger");
    let user = "shop".parse().unwrap();
    assert!(!lingers(&layout, &user).unwrap());
    let mut plan = plan_keep_stopped(&layout, &user, 1501).unwrap();
    plan.units.clear();
    // It lingers at the source: here too from now on, and its user units start.
    plan.linger = true;
    allow(&layout, &plan).unwrap();
    assert!(directory.join("shop").exists());
    assert!(asked(&layout).contains("start --no-block -- user@1501.service"));
    keep_stopped(&layout, &plan).unwrap();
    assert!(!directory.join("shop").exists());
    assert!(lingers(&layout, &user).unwrap(), "while it is fenced too");
    // It has ended at the other server.
    plan.linger = false;
    asked(&layout);
    allow(&layout, &plan).unwrap();
    assert!(!lingers(&layout, &user).unwrap());
    assert!(!asked(&layout).contains("start"));
}

#[test]
fn what_kept_units_stopped_is_forgotten_without_starting_any() {
    let (_keep, layout) = with_systemctl();
    let linger = layout.path("/var/lib/systemd/linger/shop");
    std::fs::create_dir_all(linger.parent().unwrap()).unwrap();
    std::fs::write(&linger, "").unwrap();
    let plan = plan_keep_stopped(&layout, &"shop".parse().unwrap(), 1501).unwrap();
    keep_stopped(&layout, &plan).unwrap();
    asked(&layout);
    for reload in ["daemon-reload", ""] {
        forget(&layout, &plan).unwrap();
        assert_eq!(asked(&layout), reload);
        assert_eq!(std::fs::read_dir(linger.parent().unwrap()).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(layout.path("/etc/systemd/system")).unwrap().count(), 0);
        assert!(!layout.path("/etc/ferry/fenced/shop").exists());
    }
}

#[test]
fn units_that_may_start_again_behind_a_fences_back_are_kept_stopped() {
    let (_keep, layout) = with_systemctl();
    let linger = layout.path("/var/lib/systemd/linger/shop");
    std::fs::create_dir_all(linger.parent().unwrap()).unwrap();
    let plan = plan_keep_stopped(&layout, &"shop".parse().unwrap(), 1501).unwrap();
    keep_stopped(&layout, &plan).unwrap();
    asked(&layout);
    assert_eq!(keep_stopped_again(&layout, &plan, Services::Booting).unwrap(), [""; 0]);
    assert_eq!(asked(&layout), "", "nothing was open");

    let flag = layout.path("/etc/ferry/fenced/shop");
    std::fs::remove_file(&flag).unwrap();
    std::fs::write(&linger, "").unwrap();
    // A unit that the fence did not know.
    let new = layout.path("/etc/systemd/system/queue.service");
    std::fs::write(&new, "[Service]\nUser=shop\nExecStart=/bin/true\n").unwrap();
    assert_eq!(kept_stopped(&layout).unwrap(), []);
    let found = keep_stopped_again(&layout, &plan, Services::Booting).unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(!asked(&layout).contains("stop"), "nothing runs yet");
    assert!(flag.exists() && !linger.exists());
    assert_eq!(kept_stopped(&layout).unwrap(), ["shop".parse().unwrap()]);
    let condition = layout.path("/etc/systemd/system/queue.service.d/zzz-ferry-fence.conf");
    assert!(condition.exists());

    std::fs::remove_file(&flag).unwrap();
    assert_eq!(keep_stopped_again(&layout, &plan, Services::Running).unwrap().len(), 1);
    assert!(asked(&layout).contains("stop --no-block -- queue.service"));
    // With the fence goes the condition of the unit that came meanwhile.
    allow(&layout, &plan).unwrap();
    assert!(new.exists() && !condition.parent().unwrap().exists());
}

#[test]
fn the_systems_units_of_an_account_are_named() {
    let (_keep, layout) = with_systemctl();
    let found = unit_findings(&layout, &"shop".parse().unwrap(), 1501).unwrap();
    let messages: Vec<&str> = found.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[0].contains("tick.service") && messages[1].contains("worker.service"));
    assert_eq!(unit_findings(&layout, &"nobody".parse().unwrap(), 1502).unwrap(), []);
}

#[test]
fn ending_processes_is_between_two_points_and_a_fault_at_the_first_ends_none() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::below(dir.path());
    let uid = own_uid();
    let mut running = Running::script(Some(uid), "echo ready; exec sleep 1000");
    {
        let lab = ferry_failpoints::FakeLab::listen(dir.path(), |_| "errno 5".to_owned()).unwrap();
        stop_all(&layout, &[uid], &[], Duration::ZERO).unwrap_err();
        assert_eq!(lab.heard(), ["processes.stop.before"]);
    }
    assert!(running.0.try_wait().unwrap().is_none(), "it was ended all the same");
    std::fs::remove_file(dir.path().join("lab.sock")).unwrap();
    let lab = ferry_failpoints::FakeLab::listen(dir.path(), |_| "go".to_owned()).unwrap();
    stop_all(&layout, &[uid], &[], Duration::ZERO).unwrap();
    let heard = lab.heard();
    assert_eq!(heard.first().map(String::as_str), Some("processes.stop.before"));
    assert_eq!(heard.last().map(String::as_str), Some("processes.stop.after"));
}
