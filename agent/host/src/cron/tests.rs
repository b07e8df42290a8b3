use std::os::unix::fs::PermissionsExt;

use super::*;

fn host() -> (tempfile::TempDir, Layout, UnixName) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::below(directory.path());
    for path in [SPOOL, AT_SPOOL, "/etc/cron.d"] {
        fs::create_dir_all(layout.path(path)).unwrap();
    }
    fs::write(layout.path("/etc/passwd"), "shop:x:1501:1501::/home/shop:/bin/sh\n").unwrap();
    fs::write(layout.path("/etc/group"), "crontab:x:117:\n").unwrap();
    (directory, layout, "shop".parse().unwrap())
}

fn spool_second(layout: &Layout) -> i64 {
    fs::metadata(layout.path(SPOOL)).unwrap().mtime()
}

#[test]
fn disabling_and_enabling_restores_the_same_file() {
    let (_keep, layout, user) = host();
    let file = crontab(&layout, &user);
    let hostile = b"* * * * * true\n\n\x00\xff$(reboot)\nno newline at the end";
    fs::write(&file, hostile).unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    for _ in 0..2 {
        disable(&layout, &user).unwrap();
        assert!(!file.exists());
        assert_eq!(describe(&layout, &user).unwrap().content.as_deref(), Some(&hostile[..]));
    }
    for _ in 0..2 {
        enable(&layout, &user).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    }
    assert_eq!(fs::read_dir(layout.path(SPOOL)).unwrap().count(), 1);
}

#[test]
fn every_change_shows_in_the_second_of_the_directory() {
    let (_keep, layout, user) = host();
    fs::write(crontab(&layout, &user), "x").unwrap();
    let mut last = spool_second(&layout);
    for _ in 0..3 {
        disable(&layout, &user).unwrap();
        assert!(spool_second(&layout) > last);
        last = spool_second(&layout);
        enable(&layout, &user).unwrap();
        assert!(spool_second(&layout) > last);
        last = spool_second(&layout);
    }
}

#[test]
fn no_crontab_is_fine() {
    let (_keep, layout, user) = host();
    disable(&layout, &user).unwrap();
    enable(&layout, &user).unwrap();
    remove(&layout, &user).unwrap();
    assert_eq!(describe(&layout, &user).unwrap().content, None);
}

#[test]
fn a_crontab_installed_while_the_former_was_aside_is_the_one_that_counts() {
    for again in [disable, enable] {
        let (_keep, layout, user) = host();
        fs::write(crontab(&layout, &user), "first").unwrap();
        disable(&layout, &user).unwrap();
        fs::write(crontab(&layout, &user), "second").unwrap();
        again(&layout, &user).unwrap();
        assert_eq!(describe(&layout, &user).unwrap().content.as_deref(), Some(&b"second"[..]));
        enable(&layout, &user).unwrap();
        assert_eq!(fs::read(crontab(&layout, &user)).unwrap(), b"second");
        assert_eq!(fs::read(layout.path(SPOOL).join(".ferry-found-shop")).unwrap(), b"first");
        assert_eq!(fs::read_dir(layout.path(SPOOL)).unwrap().count(), 2);
        remove(&layout, &user).unwrap();
        assert_eq!(fs::read_dir(layout.path(SPOOL)).unwrap().count(), 0);
    }
}

#[test]
fn the_same_crontab_installed_again_is_kept_once() {
    let (_keep, layout, user) = host();
    fs::write(crontab(&layout, &user), "same").unwrap();
    disable(&layout, &user).unwrap();
    fs::write(crontab(&layout, &user), "same").unwrap();
    enable(&layout, &user).unwrap();
    assert_eq!(fs::read(crontab(&layout, &user)).unwrap(), b"same");
    assert_eq!(fs::read_dir(layout.path(SPOOL)).unwrap().count(), 1);
}

#[test]
fn a_crontab_that_was_here_when_another_is_received_does_not_run_and_is_kept() {
    let (_keep, layout, user) = host();
    fs::write(crontab(&layout, &user), "left behind").unwrap();
    install_disabled(&layout, &user, 1777, b"received").unwrap();
    assert!(!crontab(&layout, &user).exists());
    enable(&layout, &user).unwrap();
    assert_eq!(fs::read(crontab(&layout, &user)).unwrap(), b"received");
    let found = layout.path(SPOOL).join(".ferry-found-shop");
    assert_eq!(fs::read(found).unwrap(), b"left behind");
}

#[test]
fn installing_gives_the_file_to_the_user_unseen() {
    let (_keep, layout, user) = host();
    let content = b"*/5 * * * * echo tick >> log\n";
    for _ in 0..2 {
        assert_eq!(install_disabled(&layout, &user, 1777, content).unwrap(), []);
    }
    assert!(!crontab(&layout, &user).exists());
    enable(&layout, &user).unwrap();
    let metadata = fs::metadata(crontab(&layout, &user)).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1777, 117));
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    remove(&layout, &user).unwrap();
    assert_eq!(fs::read_dir(layout.path(SPOOL)).unwrap().count(), 0);
}

#[test]
fn a_crontab_that_cron_refuses_is_a_finding() {
    assert!(
        std::path::Path::new("/usr/bin/crontab").exists(),
        "this test needs the Debian package cron"
    );
    let (_keep, layout, user) = host();
    let findings = install_disabled(&layout, &user, 1777, b"99 99 * * * true\n").unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
}

#[test]
fn too_large_a_crontab_is_refused() {
    let (_keep, layout, user) = host();
    let large = vec![b'#'; CAP as usize + 1];
    assert!(install_disabled(&layout, &user, 1777, &large).is_err());
    fs::write(crontab(&layout, &user), &large).unwrap();
    assert!(describe(&layout, &user).is_err());
}

#[test]
fn what_else_runs_by_the_clock_is_found() {
    let (_keep, layout, user) = host();
    assert_eq!(describe(&layout, &user).unwrap().findings, []);
    fs::write(layout.path(AT_SPOOL).join("a00001019c"), "#!/bin/sh").unwrap();
    std::os::unix::fs::chown(layout.path(AT_SPOOL).join("a00001019c"), Some(1501), None).unwrap();
    let lines = "# 1 2 3 4 5 shop no\nMAILTO=shop\n*/5 * * * * root shop\n";
    fs::write(layout.path("/etc/cron.d/none"), lines).unwrap();
    fs::write(layout.path("/etc/cron.d/some"), "@daily shop /bin/true\n").unwrap();
    fs::write(layout.path("/etc/crontab"), "17 *\t* * *\tshop\tcd /\n").unwrap();
    let findings = describe(&layout, &user).unwrap().findings;
    assert_eq!(findings.len(), 3, "{findings:?}");
}
