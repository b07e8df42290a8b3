//! What Ferry has made of mail is found in the services themselves, and is gone once it is removed; what
//! the provider's own configuration serves is not opened by that.

mod mail_support;

use ferry_proto::artefact::{Artefact, Kind};
use ferry_traffic::mail::MailRecord;
use mail_support::{Host, Imap, PASSWORD, Provider};

const ALICE: &str = "alice@shop.example";

async fn observed(host: &Host) -> Vec<Artefact> {
    let seen = host.mail.observe().await;
    assert_eq!(seen.unseen, Vec::new());
    seen.artefacts
}

fn kinds(found: &[Artefact]) -> Vec<Kind> {
    let mut kinds: Vec<_> = found.iter().map(|a| a.kind).collect();
    kinds.sort_unstable();
    kinds
}

#[tokio::test]
async fn what_was_prepared_and_given_up_is_found_and_removed() {
    let host = Host::start("observe", Provider::Virtual);
    assert_eq!(observed(&host).await, Vec::new());
    let spec = host.spec_of("other", "other.example", &["carol"]);
    host.mail.provision_closed(&spec, &MailRecord::default()).await.expect("provisioned");
    let found = observed(&host).await;
    assert_eq!(kinds(&found), [Kind::MailStanding, Kind::MailHook, Kind::MailHook]);
    assert!(found.iter().all(|a| a.by_hand.is_none()));

    // A table that somebody changed, and files of a writing that was cut off.
    let table = host.config.state_dir.join("held_recipients");
    std::fs::write(&table, "/@shop\\.example$/ 450 no\n").expect("written");
    let beside = host.config.dovecot_dir.join(".users.new");
    std::fs::write(&beside, "half").expect("written");
    std::fs::write(host.config.state_dir.join("accounts/.other.json.new"), "half")
        .expect("written");
    let found = observed(&host).await;
    assert!(
        found.iter().any(|a| a.kind == Kind::MailTable && a.place == table.display().to_string())
    );
    assert_eq!(found.iter().filter(|a| a.kind == Kind::Temporary).count(), 2);

    for _ in 0..2 {
        for artefact in &found {
            host.mail.remove(artefact).await.expect("removed");
        }
    }
    assert_eq!(observed(&host).await, Vec::new());
    assert!(!beside.exists() && !host.config.dovecot_snippet.exists());
    assert!(!host.postconf(&["-n"]).contains("ferry/"), "{}", host.postconf(&["-n"]));
    Imap::login(&host, ALICE, PASSWORD).expect("the provider's mailboxes are as before");
}

#[tokio::test]
async fn a_fence_of_the_providers_mailboxes_is_found_and_left_to_a_person() {
    let host = Host::start("observefence", Provider::Virtual);
    host.mail.fence(&host.spec()).await.expect("fenced");
    let found = observed(&host).await;
    let standing = found.iter().find(|a| a.kind == Kind::MailStanding).expect("found");
    assert!(standing.by_hand.as_ref().is_some_and(|h| h.contains("fenced")), "{standing:?}");
    let fault = host.mail.remove(standing).await.expect_err("it would open them");
    assert!(fault.message.contains("would be served here"), "{fault}");
    assert!(Imap::login(&host, ALICE, PASSWORD).is_err(), "still held");

    // Postfix names tables whose hook was forgotten.
    std::fs::remove_file(host.config.state_dir.join("postconf.saved")).expect("removed");
    let found = observed(&host).await;
    let hook =
        found.iter().find(|a| a.kind == Kind::MailHook && a.place == "Postfix").expect("found");
    assert!(hook.by_hand.as_ref().is_some_and(|h| h.contains("main.cf")), "{hook:?}");
}
