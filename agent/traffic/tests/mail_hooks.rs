//! The hooks: put in once, taken out without a trace, and harmless to what the provider has.

mod mail_support;

use std::process::Command;

use ferry_proto::FaultClass;
use ferry_traffic::mail::{MailRecord, MailState, Severity};
use mail_support::{Host, Imap, PASSWORD, Provider, run};

#[tokio::test]
async fn hooks_go_in_once_and_out_without_a_trace() {
    let host = Host::start("source", Provider::Virtual);
    let before = (host.postconf(&["-n"]), host.postconf(&["-M"]));
    host.mail.install_hooks().await.expect("hooked");
    let hooked = (host.postconf(&["-n"]), host.postconf(&["-M"]));
    assert_ne!(hooked, before);
    let front = |name: &str| host.postconf(&["-h", name]);
    assert!(front("transport_maps").starts_with("regexp:"));
    assert!(front("smtpd_recipient_restrictions").starts_with("check_recipient_access regexp:"));
    host.mail.install_hooks().await.expect("hooked again");
    assert_eq!((host.postconf(&["-n"]), host.postconf(&["-M"])), hooked);
    // Every program of Postfix still accepts its configuration.
    run(Command::new("postfix").arg("-c").arg(host.path("postfix")).arg("check"));

    host.mail.fence(&host.spec()).await.expect("fenced");
    let fault = host.mail.remove_hooks(false).await.expect_err("they are in use");
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.message.contains("shop"), "{fault}");
    host.mail.unfence(&host.spec()).await.expect("unfenced");
    // Unless what accounts' mail stands on is given up.
    host.mail.fence(&host.spec()).await.expect("fenced");
    host.mail.remove_hooks(true).await.expect("given up");
    assert_eq!((host.postconf(&["-n"]), host.postconf(&["-M"])), before);
    host.mail.install_hooks().await.expect("hooked");
    assert_eq!((host.postconf(&["-n"]), host.postconf(&["-M"])), hooked);

    // What the provider changes meanwhile stays.
    let maps = host.postconf(&["-h", "transport_maps"]);
    host.postconf(&["-e", &format!("transport_maps={}, texthash:/dev/null", maps.trim())]);
    // Nor does it need what was kept of accounts: somebody may have cleaned up.
    std::fs::remove_dir_all(host.config.state_dir.join("accounts")).expect("removed");
    host.mail.remove_hooks(false).await.expect("unhooked");
    host.mail.remove_hooks(false).await.expect("unhooked again");
    let after = host.postconf(&["-n"]).replace(", texthash:/dev/null", "");
    assert_eq!((after, host.postconf(&["-M"])), before);
    assert!(!host.config.dovecot_snippet.exists());
    assert!(!host.config.dovecot_dir.exists());
    let main = std::fs::read_to_string(host.path("postfix/main.cf")).expect("there");
    assert!(main.contains("# a comment that stays"));
    assert!(host.send("alice@shop.example", "after").starts_with("250"));
    host.await_subject("shop.example", "alice", "after");
    Imap::login(&host, "alice@shop.example", PASSWORD).expect("logged in");
}

/// A provider that lists no mailboxes accepts every recipient. Our own list must not end that.
#[tokio::test]
async fn a_provider_without_recipient_lists_keeps_all_recipients() {
    let host = Host::start("target", Provider::Lmtp);
    let spec = host.spec_of("guest", "guest.example", &["zoe"]);
    host.mail.open_here(&spec, &MailRecord::default()).await.expect("opened");
    assert!(host.send("carol@other.example", "hers").starts_with("250"));
    host.await_subject("other.example", "carol", "hers");
    // The account's own mail goes past the provider's way of delivery.
    std::fs::create_dir_all(host.home().join("mail/guest.example")).expect("a directory");
    run(Command::new("chown")
        .arg(format!("{0}:{0}", mail_support::OWNER))
        .arg(host.home().join("mail/guest.example")));
    assert!(host.send("zoe@guest.example", "ours").starts_with("250"));
    host.await_subject("guest.example", "zoe", "ours");
}

#[tokio::test]
async fn a_crash_between_the_decision_and_the_deed_is_made_good() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    host.mail.fence(&spec).await.expect("fenced");
    // As if the tables had not been written yet, or a package had replaced the configuration.
    std::fs::write(host.config.state_dir.join("held_recipients"), "").expect("written");
    std::fs::write(host.config.dovecot_dir.join("held"), "").expect("written");
    host.postconf(&["-X", "smtpd_recipient_restrictions"]);
    let observed = host.mail.state(&spec).await.expect("observed");
    assert_eq!(observed.state, MailState::Fenced);
    assert!(observed.drift.len() >= 3, "{:?}", observed.drift);
    host.mail.apply().await.expect("applied");
    let observed = host.mail.state(&spec).await.expect("observed");
    assert_eq!((observed.state, observed.drift), (MailState::Fenced, vec![]));
    assert!(host.send("alice@shop.example", "refused").starts_with("450"));
    assert!(Imap::login(&host, "alice@shop.example", PASSWORD).is_err());
    host.mail.unfence(&spec).await.expect("unfenced");
    assert!(host.send("alice@shop.example", "after").starts_with("250"));
}

#[tokio::test]
async fn two_accounts_stand_side_by_side() {
    let host = Host::start("source", Provider::Virtual);
    let shop = host.spec();
    let other = host.spec_of("other", "other.example", &["carol"]);
    let (a, b) = tokio::join!(host.mail.fence(&shop), host.mail.fence(&other));
    a.expect("fenced");
    b.expect("fenced");
    let thief = host.spec_of("thief", "shop.example", &["alice"]);
    let fault = host.mail.fence(&thief).await.expect_err("it is another account's");
    assert_eq!(fault.class, FaultClass::Precondition);
    host.mail.unfence(&shop).await.expect("unfenced");
    assert!(host.send("alice@shop.example", "x").starts_with("250"));
    assert!(host.send("carol@other.example", "x").starts_with("450"));
}

#[tokio::test]
async fn an_inspection_tells_what_gets_in_the_way() {
    let host = Host::start("source", Provider::Virtual);
    let spec = host.spec();
    let seen = host.mail.inspect(&spec).await.expect("inspected");
    assert_eq!(seen.findings, vec![]);
    assert!(seen.postfix.is_some_and(|s| s.running && s.version.starts_with('3')));
    assert!(seen.dovecot.is_some_and(|s| s.running && s.version.starts_with("2.")));

    std::fs::write(host.path("postfix/alias"), "bob@shop.example root@localhost\n").expect("w");
    let alias = format!("virtual_alias_maps=texthash:{}", host.path("postfix/alias").display());
    host.postconf(&["-e", &alias]);
    host.postconf(&["-MX", "retry/unix"]);
    let seen = host.mail.inspect(&spec).await.expect("inspected");
    let blocking: Vec<_> =
        seen.findings.iter().filter(|f| f.severity == Severity::Blocking).collect();
    assert_eq!(blocking.len(), 2, "{:?}", seen.findings);
    assert!(blocking.iter().any(|f| f.message.contains("retry")));
    assert!(blocking.iter().any(|f| f.message.contains("bob@shop.example goes to root@localhost")));

    let stranger = host.spec_of("shop", "shop.example", &["alice", "nobody"]);
    let (record, findings) = host.mail.record(&stranger).await.expect("recorded");
    assert_eq!(record.passwords.len(), 1);
    assert!(findings.len() == 1 && findings[0].message.contains("nobody@shop.example"));
}

#[tokio::test]
async fn a_server_without_mail_programs_is_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = ferry_traffic::mail::MailConfig {
        state_dir: dir.path().join("ferry"),
        dovecot_dir: dir.path().join("dovecot"),
        dovecot_snippet: dir.path().join("05-ferry.conf"),
        ..Default::default()
    };
    let absent = dir.path().join("absent");
    for program in [
        &mut config.programs.postfix,
        &mut config.programs.postconf,
        &mut config.programs.postqueue,
        &mut config.programs.dovecot,
        &mut config.programs.doveadm,
        &mut config.programs.doveconf,
    ] {
        program.clone_from(&absent);
    }
    let mail = ferry_traffic::mail::Mail::new(config);
    let account = "shop".parse().expect("a literal");
    let none = ferry_traffic::mail::MailSpec::new(account, "/home/shop".into(), 7, 7, vec![]);
    let none = none.expect("valid");
    mail.fence(&none).await.expect("an account without mail needs nothing");
    mail.pass_on(&none, "192.0.2.1".parse().expect("a literal")).await.expect("nor here");
    assert_eq!(mail.inspect(&none).await.expect("inspected"), Default::default());

    let domain = ferry_proto::account::MailDomain {
        domain: "shop.example".parse().expect("a literal"),
        root: "mail".to_owned().try_into().expect("a literal"),
        mailboxes: vec![],
    };
    let account = "shop".parse().expect("a literal");
    let spec = ferry_traffic::mail::MailSpec::new(account, "/home/shop".into(), 7, 7, vec![domain])
        .expect("valid");
    let fault = mail.fence(&spec).await.expect_err("it has mail");
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.remedy.contains("install"), "{fault}");
    assert_eq!(mail.inspect(&spec).await.expect("inspected").findings.len(), 2);
    mail.unfence(&spec).await.expect("an undo never needs the services");

    // A Dovecot that was purged leaves our files behind.
    let (snippet, tables) = (dir.path().join("05-ferry.conf"), dir.path().join("dovecot"));
    std::fs::write(&snippet, "passdb {\n}\n").expect("written");
    std::fs::create_dir(&tables).expect("a directory");
    std::fs::write(tables.join("held"), "").expect("written");
    mail.remove_hooks(false).await.expect("unhooked");
    assert!(!snippet.exists() && !tables.exists());
}

#[tokio::test]
async fn a_dovecot_without_users_is_asked_for_none() {
    let host = Host::start("nousers", Provider::Empty);
    host.take_users_away();
    let seen = host.mail.inspect(&host.spec()).await.expect("inspected");
    assert!(seen.dovecot.is_some_and(|dovecot| dovecot.running));
    host.mail.fence(&host.spec()).await.expect("fenced");
    host.mail.release(&host.spec()).await.expect("released");
    host.mail.remove_hooks(false).await.expect("the hooks are out again");
    assert!(!host.config.dovecot_snippet.exists());
}

#[tokio::test]
async fn a_hold_that_a_broken_postfix_goes_on_with_is_told_until_it_is_lifted() {
    let host = Host::start("broken", Provider::Virtual);
    host.mail.fence(&host.spec()).await.expect("fenced");
    let main_cf = host.path("postfix/main.cf");
    let good = std::fs::read_to_string(&main_cf).expect("read");
    std::fs::write(&main_cf, format!("{good}somebody began a line here\n")).expect("written");
    let fault = host.mail.release(&host.spec()).await.expect_err("its processes hold mail still");
    assert!(fault.message.contains("postconf"), "{fault}");
    std::fs::write(&main_cf, good).expect("written");
    host.mail.release(&host.spec()).await.expect("released");
    let answer = host.send("alice@shop.example", "after all");
    assert!(answer.starts_with("250"), "{answer}");
    host.await_subject("shop.example", "alice", "after all");
}
