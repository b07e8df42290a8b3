//! The fence at the source: nothing is received, delivered or read, nothing accepted is lost, and
//! nobody else notices.

mod mail_support;

use std::time::Duration;

use ferry_proto::FaultClass;
use ferry_traffic::mail::MailState;
use mail_support::{Host, Imap, PASSWORD, Provider, Smtp, eventually};
use nix::sys::signal::Signal;

const ALICE: &str = "alice@shop.example";

#[tokio::test]
async fn a_fence_defers_mail_and_an_unfence_delivers_it() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    assert!(host.send(ALICE, "before").starts_with("250"));
    host.await_subject("shop.example", "alice", "before");

    host.mail.fence(&spec).await.expect("fenced");
    let observed = host.mail.state(&spec).await.expect("observed");
    assert_eq!((observed.state, observed.drift), (MailState::Fenced, vec![]));
    let answer = host.send(ALICE, "refused");
    assert!(answer.starts_with("450 4.2.1"), "{answer}");
    assert!(host.send("ALICE@Shop.Example", "refused").starts_with("450 4.2.1"));
    // Local programs cannot be told to come back: their mail is kept.
    host.submit(ALICE, "kept");
    eventually("the message is deferred", || host.queue().contains("\"deferred\""));
    assert_eq!(host.subjects("shop.example", "alice"), ["before"]);
    // Neighbours, and even a domain below the fenced one, do not notice.
    for (domain, name) in [("other.example", "carol"), ("sub.shop.example", "dave")] {
        let answer = host.send(&format!("{name}@{domain}"), "neighbour");
        assert!(answer.starts_with("250"), "{domain}: {answer}");
        host.await_subject(domain, name, "neighbour");
    }
    assert_eq!(host.mail.inspect(&spec).await.expect("inspected").queued, 1);

    host.mail.fence(&spec).await.expect("fenced again");
    host.mail.unfence(&spec).await.expect("unfenced");
    host.await_subject("shop.example", "alice", "kept");
    assert!(host.send(ALICE, "after").starts_with("250"));
    host.await_subject("shop.example", "alice", "after");
    host.mail.unfence(&spec).await.expect("unfenced again");
    let observed = host.mail.state(&spec).await.expect("observed");
    assert_eq!((observed.state, observed.drift), (MailState::Local, vec![]));
}

#[tokio::test]
async fn a_fence_ends_sessions_and_refuses_logins_for_the_time_being() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    let mut session = Imap::login(&host, ALICE, PASSWORD).expect("logged in");
    let mut neighbour = Imap::login(&host, "carol@other.example", PASSWORD).expect("logged in");

    host.mail.fence(&spec).await.expect("fenced");
    let ended = session.ask("NOOP").join("\n");
    assert!(!ended.contains("a OK"), "{ended}");
    let refused = Imap::login(&host, ALICE, PASSWORD).err().expect("refused");
    // Dovecot says so or just closes, but not AUTHENTICATIONFAILED, which makes mail programs ask
    // their owner for a password.
    assert!(refused.contains("UNAVAILABLE") || refused == "closed", "{refused}");
    assert!(Imap::login(&host, "Bob@SHOP.example", PASSWORD).is_err());
    assert!(neighbour.ask("NOOP").join("\n").contains("a OK"), "a neighbour's session lives on");
    Imap::login(&host, "carol@other.example", PASSWORD).expect("a neighbour logs in");

    host.mail.unfence(&spec).await.expect("unfenced");
    Imap::login(&host, ALICE, PASSWORD).expect("logged in again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_waits_for_the_delivery_that_runs() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    host.mail.install_hooks().await.expect("hooked");
    // The provider routes this one address to a program: such an entry is stronger than one for
    // the domain, and must not get past the fence either.
    assert!(host.send("slow@shop.example", "running").starts_with("250"));
    eventually("the delivery runs", || host.path("slow.begun").exists());
    let fence = {
        let (mail, spec) = (host.mail.clone(), spec.clone());
        tokio::spawn(async move { mail.fence(&spec).await })
    };
    eventually("the fence stands", || host.send("bob@shop.example", "x").starts_with("450"));
    assert!(!fence.is_finished(), "the delivery still runs");
    std::fs::write(host.path("slow.go"), "").expect("written");
    fence.await.expect("ends").expect("fenced");
    let done = std::fs::read_to_string(host.path("slow.done")).expect("the delivery has ended");
    host.submit("slow@shop.example", "kept");
    eventually("the message is deferred", || host.queue().contains("\"deferred\""));
    assert_eq!(std::fs::read_to_string(host.path("slow.done")).expect("there"), done);
}

#[tokio::test]
async fn a_fence_reports_the_delivery_that_does_not_end_and_stands() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    assert!(host.send("slow@shop.example", "running").starts_with("250"));
    eventually("the delivery runs", || host.path("slow.begun").exists());
    let fault = host.impatient(Duration::from_millis(300)).fence(&spec).await;
    let fault = fault.expect_err("the delivery takes longer");
    assert_eq!(fault.class, FaultClass::Transient);
    assert!(fault.message.contains("pipe"), "{fault}");
    assert_eq!(host.mail.state(&spec).await.expect("observed").state, MailState::Fenced);
    std::fs::write(host.path("slow.go"), "").expect("written");
    host.mail.fence(&spec).await.expect("repeated, it waits for the end");
    assert!(host.path("slow.done").exists());
}

/// The queue manager that decides by the old tables goes on until Postfix has heard of its reload.
#[tokio::test]
async fn a_fence_waits_for_the_delivery_that_begins_while_postfix_is_reloaded() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    host.mail.install_hooks().await.expect("hooked");
    // Whoever decides where mail goes has seen the tables from before the fence.
    assert!(host.send(ALICE, "before").starts_with("250"));
    host.await_subject("shop.example", "alice", "before");
    let impatient = host.with_a_delivery_before_its_reload(Duration::from_millis(300));
    let fault = impatient.fence(&spec).await.expect_err("the delivery runs");
    assert_eq!(fault.class, FaultClass::Transient);
    assert!(fault.message.contains("pipe"), "{fault}");
    std::fs::write(host.path("slow.go"), "").expect("written");
    host.mail.fence(&spec).await.expect("repeated, it waits for the end");
    assert!(host.path("slow.done").exists());
}

/// What Postfix's master has begun outlives it, if it is killed.
#[tokio::test]
async fn a_fence_waits_for_the_delivery_that_has_lost_its_master() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    host.mail.install_hooks().await.expect("hooked");
    assert!(host.send("slow@shop.example", "running").starts_with("250"));
    eventually("the delivery runs", || host.path("slow.begun").exists());
    host.signal(host.postfix_master(), Signal::SIGKILL);
    let fault = host.impatient(Duration::from_millis(300)).fence(&spec).await;
    let fault = fault.expect_err("the delivery runs");
    assert!(fault.message.contains("pipe"), "{fault}");
    std::fs::write(host.path("slow.go"), "").expect("written");
    host.mail.fence(&spec).await.expect("repeated, it waits for the end");
    assert!(host.path("slow.done").exists());
    host.start_postfix();
    assert!(host.send(ALICE, "refused").starts_with("450"));
}

/// It may have been asked to deliver, and not have got to opening the message.
#[tokio::test]
async fn a_fence_waits_for_a_deliverer_that_may_not_have_begun_yet() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    host.mail.install_hooks().await.expect("hooked");
    assert!(host.send(ALICE, "before").starts_with("250"));
    host.await_subject("shop.example", "alice", "before");
    let deliverers = host.deliverers("virtual");
    for pid in &deliverers {
        host.signal(*pid, Signal::SIGSTOP);
    }
    let fault = host.impatient(Duration::from_millis(300)).fence(&spec).await;
    for pid in &deliverers {
        host.signal(*pid, Signal::SIGCONT);
    }
    let fault = fault.expect_err("nobody knows what it is going to do");
    assert!(fault.message.contains("virtual"), "{fault}");
    host.mail.fence(&spec).await.expect("it has nothing to deliver");
}

#[tokio::test]
async fn a_fence_does_not_wait_for_a_neighbours_delivery() {
    let host = Host::start("source", Provider::Virtual);
    let other = host.spec_of("other", "other.example", &["carol"]);
    assert!(host.send("slow@shop.example", "running").starts_with("250"));
    eventually("the delivery runs", || host.path("slow.begun").exists());
    host.mail.fence(&other).await.expect("fenced");
    assert!(!host.path("slow.done").exists());
    std::fs::write(host.path("slow.go"), "").expect("written");
    eventually("the delivery has ended", || host.path("slow.done").exists());
}

/// A session that was open before the fence may still hand over a message: it is kept, not delivered.
#[tokio::test]
async fn an_old_smtp_session_delivers_nothing() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    let mut session = Smtp::connect(&host);
    assert!(session.send(ALICE, "before").starts_with("250"));
    host.await_subject("shop.example", "alice", "before");
    host.mail.fence(&spec).await.expect("fenced");
    let answer = session.send(ALICE, "late");
    assert!(answer.starts_with("250") || answer.starts_with('4'), "{answer}");
    if answer.starts_with("250") {
        eventually("the message is deferred", || host.queue().contains("\"deferred\""));
    }
    assert_eq!(host.subjects("shop.example", "alice"), ["before"]);
    host.mail.unfence(&spec).await.expect("unfenced");
    if answer.starts_with("250") {
        host.await_subject("shop.example", "alice", "late");
    }
}

#[tokio::test]
async fn a_fence_outlives_the_services_and_covers_lmtp() {
    let host = Host::start("source", Provider::Lmtp);
    let spec = host.spec();
    assert!(host.send(ALICE, "before").starts_with("250"));
    host.await_subject("shop.example", "alice", "before");
    host.mail.fence(&spec).await.expect("fenced");
    host.stop_postfix();
    host.stop_dovecot();
    host.start_dovecot();
    host.start_postfix();
    assert!(host.send(ALICE, "refused").starts_with("450"));
    assert!(Imap::login(&host, ALICE, PASSWORD).is_err());
    host.submit(ALICE, "kept");
    eventually("the message is deferred", || host.queue().contains("\"deferred\""));
    assert_eq!(host.subjects("shop.example", "alice"), ["before"]);
    // With both services down it can be undone as well.
    host.stop_postfix();
    host.stop_dovecot();
    host.mail.unfence(&spec).await.expect("unfenced");
    host.start_dovecot();
    host.start_postfix();
    assert!(host.send(ALICE, "after").starts_with("250"));
    host.await_subject("shop.example", "alice", "after");
}

/// A control panel that writes main.cf anew lets mail in. That it is put back does not make it unseen.
#[tokio::test]
async fn a_fence_that_was_opened_is_known_to_have_been_also_when_it_stands_again() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    let other = host.spec_of("other", "other.example", &["carol"]);
    assert_ne!(host.mail.gaps(&spec).await.expect("told"), [""; 0], "not fenced");
    let panel: &dyn Fn() = &|| {
        host.postconf(&["-X", "smtpd_recipient_restrictions"]);
    };
    let restored: &dyn Fn() = &|| {
        let table = host.config.state_dir.join("held_transport");
        std::fs::write(table, "").expect("written");
    };
    for opens in [panel, restored] {
        host.mail.fence(&spec).await.expect("fenced");
        assert_eq!(host.mail.gaps(&spec).await.expect("told"), [""; 0]);
        opens();
        assert_ne!(host.mail.gaps(&spec).await.expect("told"), [""; 0], "open");
        assert_ne!(host.mail.put_back().await.expect("put back"), [""; 0]);
        let observed = host.mail.state(&spec).await.expect("observed");
        assert_eq!((observed.state, observed.drift), (MailState::Fenced, vec![]));
        assert_ne!(host.mail.gaps(&spec).await.expect("told"), [""; 0], "closed again");
        host.mail.unfence(&spec).await.expect("unfenced");
    }
    // What is done for others leaves a fence alone, but puts back too what is missing of it.
    host.mail.fence(&spec).await.expect("fenced");
    host.mail.fence(&other).await.expect("fenced");
    assert_eq!(host.mail.gaps(&spec).await.expect("told"), [""; 0]);
    panel();
    host.mail.unfence(&other).await.expect("unfenced");
    host.mail.install_hooks().await.expect("hooked");
    assert_ne!(host.mail.gaps(&spec).await.expect("told"), [""; 0], "closed again");
}
