use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::Instant;

use super::*;

struct Home {
    directory: tempfile::TempDir,
    layout: Layout,
    definition: Definition,
}

const UID: u32 = 51_733;

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let layout = Layout::below(directory.path());
        fs::create_dir(layout.path("/etc")).unwrap();
        let home = layout.path("/home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(UID), Some(UID)).unwrap();
        let value = serde_json::json!({"name": "shop", "user": "shop", "home": home});
        let definition = serde_json::from_value(value).unwrap();
        let line = format!("shop:x:{UID}:{UID}::/home:/bin/sh\n");
        fs::write(layout.path("/etc/passwd"), line).unwrap();
        fs::write(layout.path("/etc/group"), format!("shop:x:{UID}:\ncrew:x:51799:shop\n"))
            .unwrap();
        Self { directory, layout, definition }
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.definition.home.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&path, Some(UID), Some(UID)).unwrap();
    }

    fn run(&self, name: &str, timeout: Duration) -> Result<HookReport, Fault> {
        let hook = HomePath::try_from(name.to_owned()).unwrap();
        run(&self.layout, &self.definition, &hook, timeout)
    }
}

#[test]
fn a_hook_is_the_account_and_nothing_more() {
    let home = Home::new();
    home.put(
        "hook",
        "#!/bin/sh\nid -u; id -g; id -G; pwd; env | sort | cut -d= -f1; echo err >&2\n",
    );
    let report = home.run("hook", DEFAULT_TIMEOUT).unwrap();
    let pwd = home.definition.home.display();
    let mut words: Vec<String> = report.stdout.split_whitespace().map(str::to_owned).collect();
    let environment = words.split_off(5);
    assert_eq!(&words[..2], [UID.to_string(), UID.to_string()]);
    assert_eq!(words[4], pwd.to_string(), "{words:?}");
    let mut groups = vec![words[2].clone(), words[3].clone()];
    groups.sort();
    assert_eq!(groups, [UID.to_string(), "51799".to_owned()]);
    assert_eq!(
        environment,
        ["FERRY_ACCOUNT", "HOME", "LANG", "LOGNAME", "PATH", "PWD", "SHELL", "USER"]
    );
    assert_eq!((report.code, report.stderr.as_str()), (Some(0), "err"));
}

#[test]
fn a_hook_that_fails_or_hangs_is_a_fault() {
    let home = Home::new();
    home.put("fails", "#!/bin/sh\nprintf 'no \\033[31mluck\\n' >&2\nexit 7\n");
    let fault = home.run("fails", DEFAULT_TIMEOUT).unwrap_err();
    assert_eq!(fault.class, FaultClass::Permanent);
    assert!(fault.causes.iter().any(|c| c.contains("no  [31mluck")), "{fault:?}");
    home.put("hangs", "#!/bin/sh\nsleep 1000 & sleep 1000\n");
    let begin = Instant::now();
    let fault = home.run("hangs", Duration::from_millis(200)).unwrap_err();
    assert_eq!(fault.class, FaultClass::Transient);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn output_is_bounded() {
    let home = Home::new();
    home.put("talks", "#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' x\n");
    let report = home.run("talks", DEFAULT_TIMEOUT).unwrap();
    assert_eq!(report.stdout.len(), OUTPUT_CAP);
}

#[test]
fn what_is_not_the_accounts_own_executable_is_refused() {
    let home = Home::new();
    let refused = |name: &str| {
        let fault = home.run(name, DEFAULT_TIMEOUT).unwrap_err();
        assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
        fault.message
    };
    symlink("/bin/true", home.definition.home.join("outside")).unwrap();
    assert!(refused("outside").contains("below the home"));
    symlink(home.directory.path(), home.definition.home.join("up")).unwrap();
    assert!(refused("up/home/x").contains("below the home"));
    assert!(refused("missing").contains("below the home"));
    home.put("foreign", "#!/bin/sh\n");
    chown(home.definition.home.join("foreign"), Some(0), None).unwrap();
    assert!(refused("foreign").contains("belong"));
    home.put("plain", "#!/bin/sh\n");
    let mode = fs::Permissions::from_mode(0o644);
    fs::set_permissions(home.definition.home.join("plain"), mode).unwrap();
    assert!(refused("plain").contains("executable"));
    fs::create_dir(home.definition.home.join("directory")).unwrap();
    assert!(refused("directory").contains("regular"));
}
