//! Points, with a lab that answers.

use std::io;
use std::path::Path;

use ferry_failpoints::{FakeLab, Promise, around, around_async, broken, clock_offset_ms, reach};

const ENOSPC: i32 = 28;

/// Answers one point with an error, the others with `go`.
fn lab(directory: &Path, fails: &'static str) -> FakeLab {
    FakeLab::listen(directory, move |point| {
        if point == fails { format!("errno {ENOSPC}") } else { "go".to_owned() }
    })
    .unwrap()
}

fn name() -> String {
    "thing.done".to_owned()
}

/// What `around` comes to when the lab fails `fails`, whether the work was done, and what was heard.
fn done_around(fails: &'static str) -> (Option<i32>, bool, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path(), fails);
    let mut did = false;
    let work = || {
        did = true;
        Ok::<_, io::Error>(())
    };
    let error = around(name, std::convert::identity, work).err();
    (error.and_then(|e| e.raw_os_error()), did, lab.heard())
}

#[test]
fn work_is_done_between_its_two_points_and_fails_at_either_as_the_lab_says() {
    let [before, after] = ["thing.done.before".to_owned(), "thing.done.after".to_owned()];
    assert_eq!(done_around("nothing"), (None, true, vec![before.clone(), after.clone()]));
    assert_eq!(done_around("thing.done.before"), (Some(ENOSPC), false, vec![before.clone()]));
    assert_eq!(done_around("thing.done.after"), (Some(ENOSPC), true, vec![before, after]));
}

#[test]
fn work_that_failed_by_itself_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path(), "thing.done.after");
    let work = || Err::<(), _>(io::Error::from_raw_os_error(5));
    let error = around(name, std::convert::identity, work).unwrap_err();
    assert_eq!((error.raw_os_error(), lab.heard().len()), (Some(5), 1));
}

#[test]
fn what_else_the_program_does_goes_on_while_the_lab_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (went_on, answer) = std::sync::mpsc::channel();
    let lab = FakeLab::listen(dir.path(), move |_| {
        // Answers only once the other task has run.
        answer.recv().unwrap();
        "go".to_owned()
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let work = async { Ok::<_, io::Error>(()) };
        let other = async {
            went_on.send(()).unwrap();
            went_on.send(()).unwrap();
        };
        let (done, ()) = tokio::join!(around_async(name, std::convert::identity, work), other);
        done.unwrap();
    });
    assert_eq!(lab.heard(), ["thing.done.before", "thing.done.after"]);
}

#[test]
fn a_name_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path(), "nothing");
    reach!("file./home/a b\nc.{}", "before").unwrap();
    assert_eq!(lab.heard(), ["file./home/a b?c.before"]);
}

#[test]
fn where_nobody_listens_the_program_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(lab(dir.path(), "thing.before"));
    reach!("thing.before").unwrap();
}

#[test]
fn a_promise_is_broken_while_a_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let _lab = lab(dir.path(), "nothing");
    assert!(!broken(Promise::Fence));
    std::fs::create_dir(dir.path().join("broken")).unwrap();
    std::fs::write(dir.path().join("broken/fence"), "").unwrap();
    assert!(broken(Promise::Fence) && !broken(Promise::Deadline));
}

#[test]
fn a_clock_is_off_by_as_much_as_a_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let _lab = lab(dir.path(), "nothing");
    assert_eq!(clock_offset_ms(), 0);
    std::fs::write(dir.path().join("clock_offset_ms"), "-150000\n").unwrap();
    assert_eq!(clock_offset_ms(), -150_000);
}
