//! The store on a disk that is full. A binary of its own: the limit that stands for the disk is the
//! whole process's.

use ferry_proto::ids::JobId;
use ferry_store::{JobRow, SqliteStore, Store};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::test]
async fn an_event_that_the_disk_did_not_take_is_not_called_journalled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ferry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let row = JobRow {
        id: JobId::new_now(),
        account: "demo".parse().unwrap(),
        plan: "{}".into(),
        planned_ms: 1,
        started_ms: None,
        ended_ms: None,
        phase: None,
    };
    store.add_plan(&row).await.unwrap();

    // With a handler for the signal, a write beyond the limit fails as one to a full disk does.
    let _beyond = signal(SignalKind::from_raw(Signal::SIGXFSZ as i32)).unwrap();
    let (before, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let log = std::fs::metadata(dir.path().join("ferry.db-wal")).unwrap().len();
    setrlimit(Resource::RLIMIT_FSIZE, log, hard).unwrap();
    let appended = store.append_event(row.id, "lost", 2).await;
    setrlimit(Resource::RLIMIT_FSIZE, before, hard).unwrap();

    let fault = appended.expect_err("it cannot have been written");
    assert_eq!(fault.class, ferry_proto::FaultClass::Transient, "{fault}");
    assert_eq!(store.append_event(row.id, "kept", 3).await.unwrap(), 1);
    let events = store.events(Some(row.id), None, 0, 10).await.unwrap();
    assert_eq!(events.iter().map(|e| e.event.as_str()).collect::<Vec<_>>(), ["kept"]);
}
