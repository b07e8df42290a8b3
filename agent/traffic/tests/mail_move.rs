//! A whole move and its rollback between two servers: mail arrives where the account is served, what
//! waited comes along, passwords and message UIDs stay what they were.

mod mail_support;

use std::process::Command;

use ferry_traffic::mail::{MailRecord, MailState};
use mail_support::{Host, Imap, PASSWORD, Provider, eventually, run};

const ALICE: &str = "alice@shop.example";

/// What the files crate does in a real move.
fn copy_mail(from: &Host, to: &Host) {
    run(Command::new("rm").arg("-rf").arg(to.home()));
    run(Command::new("cp").arg("-a").arg(from.home()).arg(to.home()));
}

fn two_servers() -> (Host, Host) {
    std::thread::scope(|scope| {
        let source = scope.spawn(|| Host::start("source", Provider::Virtual));
        let target = scope.spawn(|| Host::start("target", Provider::Empty));
        (source.join().expect("a source"), target.join().expect("a target"))
    })
}

async fn record_of(host: &Host) -> MailRecord {
    let (record, findings) = host.mail.record(&host.spec()).await.expect("recorded");
    assert_eq!(findings, vec![]);
    assert_eq!(record.passwords.len(), 2);
    assert!(!format!("{record:?}").contains("ferrytest"), "hashes are not printed");
    record
}

#[tokio::test]
async fn an_account_moves() {
    let (source, target) = two_servers();
    let (at_source, at_target) = (source.spec(), target.spec());
    assert!(source.send(ALICE, "first").starts_with("250"));
    source.await_subject("shop.example", "alice", "first");
    let uids = Imap::login(&source, ALICE, PASSWORD).expect("logged in").uids();

    // Prepared at the target: known, closed, and not claimed.
    let record = record_of(&source).await;
    assert_eq!(target.mail.check_record(&record).await.expect("checked"), vec![]);
    target.mail.provision_closed(&at_target, &record).await.expect("provisioned");
    target.mail.provision_closed(&at_target, &record).await.expect("provisioned again");
    assert!(Imap::login(&target, ALICE, PASSWORD).is_err(), "closed");
    let answer = target.send(ALICE, "too early");
    assert!(answer.starts_with('5') || answer.starts_with('4'), "not claimed: {answer}");

    // The critical section.
    source.mail.install_hooks().await.expect("hooked");
    source.mail.fence(&at_source).await.expect("fenced");
    source.submit(ALICE, "queued");
    eventually("the message is deferred", || source.queue().contains("\"deferred\""));
    copy_mail(&source, &target);
    // Told too early, the old server keeps what the new one does not take yet.
    source.mail.pass_on(&at_source, target.address).await.expect("passed on");
    eventually("the message is refused", || source.queue().contains("Relay access denied"));
    target.mail.open_here(&at_target, &record).await.expect("opened");
    source.mail.pass_on(&at_source, target.address).await.expect("passed on");

    let observed = target.mail.state(&at_target).await.expect("observed");
    assert_eq!((observed.state, observed.drift), (MailState::Open, vec![]));
    let observed = source.mail.state(&at_source).await.expect("observed");
    let passed = MailState::PassedOn { next_hop: target.address };
    assert_eq!((observed.state, observed.drift), (passed, vec![]));
    let mut session = Imap::login(&target, ALICE, PASSWORD).expect("the old password");
    let moved = session.uids();
    assert_eq!(moved.0, uids.0, "UIDVALIDITY stays");
    assert!(moved.1.starts_with(&uids.1), "UIDs stay: {} then {}", uids.1, moved.1);
    assert!(Imap::login(&target, ALICE, "wrong").is_err());
    assert!(Imap::login(&target, ALICE, "").is_err());
    assert!(Imap::login(&source, ALICE, PASSWORD).is_err(), "not at the old server");
    target.await_subject("shop.example", "alice", "queued");
    assert!(source.send(ALICE, "by the old server").starts_with("250"));
    target.await_subject("shop.example", "alice", "by the old server");
    assert!(target.send("alice+tag@shop.example", "unknown").starts_with("550"));
    assert!(target.send("bob@shop.example", "directly").starts_with("250"));
    target.await_subject("shop.example", "bob", "directly");
    assert_eq!(source.subjects("shop.example", "alice"), ["first"], "one writer");
    let delivered = target.home().join("mail/shop.example/bob/new");
    let owner = std::fs::metadata(delivered).expect("a Maildir");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), mail_support::OWNER);
}

#[tokio::test]
async fn a_moved_account_rolls_back() {
    let (source, target) = two_servers();
    let (at_source, at_target) = (source.spec(), target.spec());
    let record = record_of(&source).await;
    target.mail.open_here(&at_target, &record).await.expect("opened");
    source.mail.pass_on(&at_source, target.address).await.expect("passed on");
    assert!(source.send(ALICE, "moved").starts_with("250"));
    target.await_subject("shop.example", "alice", "moved");
    let uids = Imap::login(&target, ALICE, PASSWORD).expect("logged in").uids();

    let back = target.mail.record(&at_target).await.expect("recorded").0;
    assert_eq!(back, record);
    source.mail.provision_closed(&at_source, &back).await.expect("it is prepared as it is");
    assert!(source.send(ALICE, "during").starts_with("250"), "it is still passed on");
    target.await_subject("shop.example", "alice", "during");
    target.mail.fence(&at_target).await.expect("fenced");
    assert!(target.send(ALICE, "refused").starts_with("450"));
    assert!(source.send(ALICE, "between").starts_with("250"));
    copy_mail(&target, &source);
    source.mail.open_here(&at_source, &back).await.expect("opened");
    target.mail.pass_on(&at_target, source.address).await.expect("passed on");
    assert!(target.send(ALICE, "by the transit server").starts_with("250"));
    source.await_subject("shop.example", "alice", "by the transit server");
    source.await_subject("shop.example", "alice", "between");
    let mut session = Imap::login(&source, ALICE, PASSWORD).expect("logged in at home");
    assert_eq!(session.uids().0, uids.0);
    assert_eq!(source.mail.state(&at_source).await.expect("observed").state, MailState::Open);
    source.mail.open_here(&at_source, &back).await.expect("opened again, in the same way");
    Imap::login(&source, ALICE, PASSWORD).expect("logged in at home");
    source.mail.release(&at_source).await.expect("released");
    assert_eq!(source.mail.state(&at_source).await.expect("observed").state, MailState::Local);
    target.mail.close_here(&at_target).await.expect("closed");
    target.mail.close_here(&at_target).await.expect("closed again");
    assert!(!target.send(ALICE, "gone").starts_with("250"));
    assert!(target.queue().is_empty() && source.queue().is_empty(), "nothing is left behind");
    source.mail.remove_hooks(false).await.expect("unhooked");
    target.mail.remove_hooks(false).await.expect("unhooked");
}

#[tokio::test]
async fn an_abort_before_the_commit_leaves_the_source_as_it_was() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    let record = record_of(&host).await;
    // Undoing what never happened.
    host.mail.unfence(&spec).await.expect("no fence");
    host.mail.release(&spec).await.expect("nothing to release");
    host.mail.close_here(&spec).await.expect("nothing open");
    host.mail.remove_hooks(false).await.expect("no hooks");
    assert!(!host.config.state_dir.exists(), "and it left nothing behind");

    host.mail.fence(&spec).await.expect("fenced");
    let fault = host.mail.open_here(&spec, &record).await.expect_err("it is fenced");
    assert_eq!(fault.class, ferry_proto::FaultClass::Precondition);
    host.mail.release(&spec).await.expect("released");
    assert!(host.send(ALICE, "after").starts_with("250"));
    host.await_subject("shop.example", "alice", "after");
    Imap::login(&host, ALICE, PASSWORD).expect("logged in");
}
