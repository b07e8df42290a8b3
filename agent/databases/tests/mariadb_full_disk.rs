//! A MariaDB server whose disk is full: it waits for room, a minute at a time, and must not be disturbed.

mod support;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use ferry_databases::Spec;
use ferry_proto::FaultClass;
use mysql_async::prelude::Queryable;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use support::directory;
use support::mariadb::{Maria, spec};

/// So many that a change of all of them needs more of Aria's log than a page of it has left.
const USERS: usize = 60;

fn name(number: usize) -> String {
    format!("shop_with_a_long_name_{number}")
}

fn shop() -> Spec {
    let names: Vec<String> = (0..USERS).map(name).collect();
    let users: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "localhost")).collect();
    spec(&["shop"], &users)
}

/// Runs with a server on a small disk, which the account uses.
fn on_a_small_disk(work: impl AsyncFnOnce(&Maria)) {
    let dir = directory();
    unshare(CloneFlags::CLONE_NEWNS).expect("these tests run as root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("made private");
    mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=100m,mode=755"))
        .expect("a small disk");
    let disk = dir.path().to_owned();
    let maria = Maria::start_in(dir, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        maria.run(["CREATE DATABASE shop"]).await;
        maria
            .run((0..USERS).map(|n| format!("CREATE USER {}@localhost IDENTIFIED BY 'p'", name(n))))
            .await;
        work(&maria).await;
    });
    umount2(&disk, MntFlags::MNT_DETACH).expect("taken away");
}

fn fill(disk: &Path) {
    let mut file = File::create(disk.join("fill")).expect("a file");
    while file.write_all(&[1; 4096]).is_ok() {}
}

fn make_room(disk: &Path) {
    std::fs::remove_file(disk.join("fill")).expect("removed");
}

async fn let_in(maria: &Maria, number: usize) -> bool {
    maria.connect(&name(number), Some("p")).await.is_ok()
}

#[test]
fn a_fence_on_a_full_disk_is_refused_before_it_changes_anything() {
    on_a_small_disk(async |maria| {
        let engine = maria.engine();
        let before = engine.plan_fence(&shop()).await.expect("planned");
        fill(maria.dir.path());
        let began = Instant::now();
        let fault = engine.fence(&shop(), &before, Duration::ZERO).await.expect_err("no room");
        assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
        assert!(began.elapsed() < Duration::from_secs(5), "it does not try");
        for number in [0, USERS - 1] {
            assert!(let_in(maria, number).await, "{number}");
        }
        make_room(maria.dir.path());
    });
}

/// The disk may fill up while the fence is closing. A statement that is ended while it waits for room leaves
/// the server unable to change its users until it is restarted.
#[test]
fn a_fence_that_waits_for_room_is_not_ended_and_its_undo_comes_behind_it() {
    on_a_small_disk(async |maria| {
        let engine = maria.engine();
        let before = engine.plan_fence(&shop()).await.expect("planned");
        let mut fencing = maria.root().await;
        fill(maria.dir.path());
        let all: Vec<String> = (0..USERS).map(|n| format!("{}@localhost", name(n))).collect();
        let sql = format!("ALTER USER {} ACCOUNT LOCK /* ferry: fence of shop */", all.join(","));
        let fencing = tokio::spawn(async move { fencing.query_drop(sql).await });
        // The other way to ask for it needs room itself.
        let waits = "Waiting for someone to free space";
        let until_it_waits = async {
            while !maria.text("SHOW FULL PROCESSLIST").await.contains(waits) {
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, until_it_waits).await.expect("it waits for room");
        // Given up as it is while visitors wait, and tried again later.
        let limit = Duration::from_secs(2);
        assert!(tokio::time::timeout(limit, engine.unfence(&shop(), &before)).await.is_err());
        fencing.abort();
        make_room(maria.dir.path());
        engine.unfence(&shop(), &before).await.expect("let in");
        for number in [0, USERS - 1] {
            assert!(let_in(maria, number).await, "{number}");
        }
        engine.fence(&shop(), &before, Duration::ZERO).await.expect("and can be fenced");
        assert!(!let_in(maria, 0).await);
    });
}
