use std::fs;
use std::path::PathBuf;

use ferry_proto::FaultClass;

use super::*;
use crate::clock::Deadline;
use crate::testing::{a_move, account, before_the_reboot, fenced, moved, opening, receiving};

/// A host that is booting, with the account `shop` open in all ways, and nothing of mail.
struct Booting {
    directory: tempfile::TempDir,
    layout: Layout,
    mail: Mail,
}

impl Booting {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::below(directory.path());
        for path in ["/etc", "/var/spool/cron/crontabs", "/var/lib/systemd/linger"] {
            fs::create_dir_all(layout.path(path)).unwrap();
        }
        let mail = Mail::new(MailConfig {
            state_dir: layout.path("/etc/ferry/mail"),
            dovecot_dir: layout.path("/etc/dovecot/ferry"),
            dovecot_snippet: layout.path("/etc/dovecot/conf.d/05-ferry.conf"),
            ..MailConfig::default()
        });
        let host = Self { directory, layout, mail };
        for (path, text) in [
            ("/etc/passwd", "root:x:0:0::/root:/bin/sh\nshop:x:4711:4711::/home/shop:/bin/sh\n"),
            ("/etc/group", "root:x:0:\nshop:x:4711:\n"),
            ("/etc/shadow", "root:*:19000:0:99999:7:::\nshop:!:19000:0:99999:7:::\n"),
            ("/etc/gshadow", "root:*::\nshop:!::\n"),
            ("/var/spool/cron/crontabs/shop", "@reboot true\n"),
            ("/var/lib/systemd/linger/shop", ""),
        ] {
            fs::write(host.layout.path(path), text).unwrap();
        }
        host
    }

    fn ledger(&self) -> PathBuf {
        self.directory.path().join("ledger")
    }

    fn stands(&self, standing: &Standing) {
        let mut ledger = Ledger::open(&self.ledger()).unwrap();
        ledger.set_account(&"shop".parse().unwrap(), Some(account("shop", standing))).unwrap();
    }

    fn flag(&self) {
        fs::create_dir_all(self.layout.path("/etc/ferry/fenced")).unwrap();
        fs::write(self.layout.path("/etc/ferry/fenced/shop"), "").unwrap();
    }

    async fn boot(&self) -> Vec<Fault> {
        at_boot(&self.layout, &self.mail, &self.ledger()).await
    }

    /// Whether cron, logins and the user's units may start something.
    fn is_open(&self) -> [bool; 3] {
        let user = "shop".parse().unwrap();
        [
            self.layout.path("/var/spool/cron/crontabs/shop").exists(),
            ferry_host::users::may_log_in(&self.layout, &user).unwrap(),
            processes::lingers_now(&self.layout, &user).unwrap(),
        ]
    }
}

#[tokio::test]
async fn what_the_ledger_calls_closed_is_closed_before_anything_starts() {
    let of = a_move();
    let running = Deadline::after(std::time::Duration::from_secs(600)).unwrap();
    let finalized = Standing::Finalized {
        to: "transit1".parse().unwrap(),
        since_unix_ms: None,
        erasing: false,
    };
    for standing in [
        receiving(&of),
        opening(&of),
        fenced(&of, &running),
        // The agent ends it; until then it is closed.
        fenced(&of, &before_the_reboot()),
        moved(&of),
        finalized,
    ] {
        let host = Booting::new();
        host.stands(&standing);
        let before = fs::read(host.ledger()).unwrap();
        assert_eq!(host.is_open(), [true; 3]);
        assert_eq!(host.boot().await, []);
        assert_eq!(host.is_open(), [false; 3], "{standing:?}");
        assert_eq!(fs::read(host.ledger()).unwrap(), before, "the guard only reads the ledger");
    }
}

#[tokio::test]
async fn what_is_served_here_is_let_be() {
    for standing in [Standing::Serving, Standing::Armed { of: a_move() }] {
        let host = Booting::new();
        host.stands(&standing);
        assert_eq!(host.boot().await, []);
        assert_eq!(host.is_open(), [true; 3], "{standing:?}");
    }
}

#[tokio::test]
async fn a_ledger_that_cannot_be_read_is_an_alarm_and_marks_close_what_they_can() {
    for marked in [true, false] {
        let host = Booting::new();
        host.stands(&moved(&a_move()));
        // Before its end: what is torn at the end was never recorded.
        host.stands(&moved(&a_move()));
        let mut bytes = fs::read(host.ledger()).unwrap();
        bytes[100] ^= 0x55;
        fs::write(host.ledger(), bytes).unwrap();
        if marked {
            host.flag();
        }
        let faults = host.boot().await;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].class, FaultClass::Permanent);
        assert!(!faults[0].remedy.is_empty());
        assert_eq!(host.is_open(), [!marked; 3], "nobody's account is closed on a guess");
    }
}

#[tokio::test]
async fn a_ledger_that_is_gone_is_an_alarm_where_something_is_closed() {
    let host = Booting::new();
    assert_eq!(host.boot().await, [], "a server that has just been enrolled");
    assert_eq!(host.is_open(), [true; 3]);
    host.flag();
    assert_eq!(host.boot().await.len(), 1);
    assert_eq!(host.is_open(), [false; 3]);
}

#[test]
fn mail_of_an_account_that_is_received_is_never_fenced_for_it_is_opened_next() {
    let of = a_move();
    let finalized = Standing::Finalized {
        to: "transit1".parse().unwrap(),
        since_unix_ms: None,
        erasing: false,
    };
    let mut again = account("shop", &receiving(&of));
    let Standing::Receiving { before, .. } = &mut again.standing else { unreachable!() };
    *before = Some(Box::new(finalized));
    assert!(matches!(shut(&again), Some(Shut::PassedOn(to)) if to == of.source_peer.ip()));
    again.made = Some(crate::ledger::Made::default());
    assert!(matches!(shut(&again), Some(Shut::Unknown)));
    assert!(matches!(shut(&account("shop", &receiving(&of))), Some(Shut::Prepared(_))));
}
