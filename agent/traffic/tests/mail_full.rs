//! A full disk: a fence can be undone without a free block.

mod mail_support;

use std::io::Write;
use std::path::Path;

use ferry_traffic::mail::{MailRecord, MailState};
use mail_support::{Host, Imap, PASSWORD, Provider};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A small file system of its own, seen by this test only.
fn small_disk(at: &Path) {
    std::fs::create_dir_all(at).expect("a directory");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=128k")).expect("mounted");
}

fn fill(dir: &Path) {
    let mut file = std::fs::File::create(dir.join("ballast")).expect("a file");
    let block = [0_u8; 512];
    while file.write_all(&block).is_ok() {}
}

#[test]
fn a_fence_is_undone_on_a_full_disk() {
    unshare(CloneFlags::CLONE_NEWNS).expect("root may");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("root may");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(undo_on_a_full_disk());
}

async fn undo_on_a_full_disk() {
    let host = Host::start_on("source", Provider::Virtual, |config| {
        small_disk(&config.state_dir);
        small_disk(&config.dovecot_dir);
    });
    let provider = host.spec();
    let ferry = host.spec_of("guest", "guest.example", &["zoe"]);
    host.mail.open_here(&ferry, &MailRecord::default()).await.expect("opened");
    host.mail.fence(&provider).await.expect("fenced");
    host.mail.fence(&ferry).await.expect("fenced");
    fill(&host.config.state_dir);
    fill(&host.config.dovecot_dir);

    let third = host.spec_of("third", "third.example", &["max"]);
    let fault = host.mail.fence(&third).await.expect_err("a fence needs a little space");
    assert_eq!(fault.class, ferry_proto::FaultClass::Precondition, "{fault}");
    host.mail.unfence(&ferry).await.expect("unfenced");
    host.mail.unfence(&provider).await.expect("unfenced");
    let observed = host.mail.state(&ferry).await.expect("observed");
    assert_eq!((observed.state, observed.drift), (MailState::Open, vec![]));
    assert_eq!(host.mail.state(&provider).await.expect("observed").state, MailState::Local);
    assert!(host.send("alice@shop.example", "after").starts_with("250"));
    host.await_subject("shop.example", "alice", "after");
    Imap::login(&host, "alice@shop.example", PASSWORD).expect("logged in");
}
