//! The store on a real file: what constraints promise, and what survives reopening.

use ferry_proto::ids::{AccountName, JobId};
use ferry_store::{CertificateRow, JobRow, Role, ServerRow, ServerState, SqliteStore, Store};

fn server(name: &str, token: &str) -> ServerRow {
    ServerRow {
        name: name.parse().unwrap(),
        role: Role::Client,
        state: ServerState::Added,
        token_hash: Some(token.to_owned()),
        token_expires_ms: Some(1000),
        not_after_ms: None,
        peer_address: String::new(),
        version: String::new(),
        facts: "{}".into(),
        last_seen_ms: None,
    }
}

fn plan(account: &str) -> JobRow {
    JobRow {
        id: JobId::new_now(),
        account: account.parse().unwrap(),
        plan: "{}".into(),
        planned_ms: 1,
        started_ms: None,
        ended_ms: None,
        phase: None,
    }
}

fn certificate(serial: &str) -> CertificateRow {
    CertificateRow { serial: serial.to_owned(), not_after_ms: 5000 }
}

#[tokio::test]
async fn a_token_is_taken_by_one_key_in_time_and_only_with_its_hash() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ferry.db")).await.unwrap();
    let row = server("client", "aa");
    store.add_server(&row, 0).await.unwrap();
    let take = async |hash: &str, key: &str, serial: &str, now: i64| {
        store.take_token(&row.name, hash, key, &certificate(serial), now).await.unwrap()
    };
    assert!(!take("bb", "k", "01", 10).await, "wrong");
    assert!(!take("aa", "k", "01", 1000).await, "expired");
    assert!(take("aa", "k", "01", 999).await);
    assert!(take("aa", "k", "02", 999).await, "the same key lost the answer and asks again");
    assert!(!take("aa", "other", "03", 999).await, "reused by another key");
    let fault = store.add_server(&row, 0).await.unwrap_err();
    assert!(fault.message.contains("enrolled already"), "{fault}");
}

#[tokio::test]
async fn revoking_covers_every_certificate_and_a_new_token_does_not_forgive_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ferry.db")).await.unwrap();
    let row = server("client", "aa");
    store.add_server(&row, 0).await.unwrap();
    assert!(store.take_token(&row.name, "aa", "k", &certificate("01"), 1).await.unwrap());
    store.add_certificate(&row.name, &certificate("02")).await.unwrap();
    store.revoke_server(&row.name, 2).await.unwrap();
    let both = vec!["01".to_owned(), "02".to_owned()];
    assert_eq!(store.revocations().await.unwrap(), (both.clone(), vec![row.name.clone()]));
    store.add_server(&row, 3).await.unwrap();
    assert_eq!(store.revocations().await.unwrap(), (both, vec![]));
    assert!(store.revoke_server(&"nobody".parse().unwrap(), 4).await.is_err());
}

#[tokio::test]
async fn one_job_of_an_account_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ferry.db")).await.unwrap();
    let (first, second, other) = (plan("demo"), plan("demo"), plan("other"));
    for row in [&first, &second, &other] {
        store.add_plan(row).await.unwrap();
    }
    store.start_job(first.id, 1).await.unwrap();
    let fault = store.start_job(second.id, 2).await.unwrap_err();
    assert!(fault.message.contains("has not ended"), "{fault}");
    store.start_job(other.id, 3).await.unwrap();
    let fault = store.start_job(first.id, 4).await.unwrap_err();
    assert!(fault.message.contains("started before"), "{fault}");
    store.end_job(first.id, "done", 5).await.unwrap();
    store.start_job(second.id, 6).await.unwrap();
    let demo: AccountName = "demo".parse().unwrap();
    assert_eq!(store.jobs(Some(&demo), true).await.unwrap().len(), 1);
    assert_eq!(store.jobs(Some(&demo), false).await.unwrap().len(), 2);
    assert_eq!(store.jobs(None, true).await.unwrap().len(), 2);
}

#[tokio::test]
async fn events_keep_their_order_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ferry.db");
    let (a, b) = (plan("a"), plan("b"));
    {
        let store = SqliteStore::open(&path).await.unwrap();
        for row in [&a, &b] {
            store.add_plan(row).await.unwrap();
        }
        assert_eq!(store.append_event(a.id, "1", 1).await.unwrap(), 1);
        assert_eq!(store.append_event(b.id, "2", 2).await.unwrap(), 2);
        assert_eq!(store.append_event(a.id, "3", 3).await.unwrap(), 3);
    }
    let store = SqliteStore::open(&path).await.unwrap();
    let texts = |rows: Vec<ferry_store::JournalRow>| {
        rows.into_iter().map(|r| r.event).collect::<Vec<_>>().join(",")
    };
    assert_eq!(texts(store.events(None, None, 0, 10).await.unwrap()), "1,2,3");
    assert_eq!(texts(store.events(Some(a.id), None, 1, 10).await.unwrap()), "3");
    assert_eq!(texts(store.events(None, Some(&b.account), 0, 10).await.unwrap()), "2");
    assert!(store.append_event(JobId::new_now(), "x", 4).await.is_err(), "unknown job");
}

#[tokio::test]
async fn a_server_that_was_cut_off_gets_no_further_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ferry.db")).await.unwrap();
    let row = server("client", "aa");
    store.add_server(&row, 0).await.unwrap();
    let fault = store.add_certificate(&row.name, &certificate("00")).await.unwrap_err();
    assert!(fault.message.contains("not enrolled"), "never enrolled: {fault}");
    assert!(store.take_token(&row.name, "aa", "k", &certificate("01"), 1).await.unwrap());
    store.revoke_server(&row.name, 2).await.unwrap();
    // A renewal that began before the revocation, and is noted after it.
    let fault = store.add_certificate(&row.name, &certificate("02")).await.unwrap_err();
    assert!(fault.message.contains("not enrolled") && !fault.remedy.is_empty(), "{fault}");
    store.add_server(&row, 3).await.unwrap();
    assert!(store.add_certificate(&row.name, &certificate("03")).await.is_err());
    assert_eq!(store.revocations().await.unwrap().0, ["01"]);
}

#[tokio::test]
async fn a_job_is_taken_up_again_with_its_event_and_only_if_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ferry.db")).await.unwrap();
    let (first, second) = (plan("demo"), plan("demo"));
    for row in [&first, &second] {
        store.add_plan(row).await.unwrap();
    }
    store.start_job(first.id, 1).await.unwrap();
    let fault = store.resume_job(first.id, "r", 2).await.unwrap_err();
    assert!(fault.message.contains("has not ended"), "{fault}");
    store.end_job(first.id, "stuck", 2).await.unwrap();
    store.resume_job(first.id, "r", 3).await.unwrap();
    let row = store.job(first.id).await.unwrap().unwrap();
    assert_eq!((row.ended_ms, row.phase), (None, None));
    let events = store.events(Some(first.id), None, 0, 10).await.unwrap();
    assert_eq!(events.iter().map(|e| e.event.as_str()).collect::<Vec<_>>(), ["r"]);

    store.end_job(first.id, "stuck", 4).await.unwrap();
    store.start_job(second.id, 5).await.unwrap();
    let fault = store.resume_job(first.id, "r", 6).await.unwrap_err();
    assert!(fault.message.contains("another job"), "{fault}");
    assert_eq!(store.events(Some(first.id), None, 0, 10).await.unwrap().len(), 1, "nothing half");
}

#[tokio::test]
async fn every_job_that_has_not_ended_is_found_however_many_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ferry.db")).await.unwrap();
    let rows: Vec<_> = (0..1001).map(|n| plan(&format!("a{n}"))).collect();
    for (row, started) in rows.iter().zip(1..) {
        store.add_plan(row).await.unwrap();
        store.start_job(row.id, started).await.unwrap();
    }
    let running = store.jobs(None, true).await.unwrap();
    assert_eq!(running.len(), rows.len());
    assert_eq!(running.last().unwrap().id, rows[0].id, "the oldest is in flight, too");
    assert_eq!(store.jobs(None, false).await.unwrap().len(), 1000, "a screen of the last ones");
}
