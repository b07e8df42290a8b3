use super::*;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("accounts.d")).unwrap();
        fs::create_dir(directory.path().join("inventory.d")).unwrap();
        for name in ["", "accounts.d", "inventory.d"] {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(directory.path().join(name), mode).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load(&self) -> Inventory {
        load(&self.path("accounts.d"), &self.path("inventory.d"))
    }

    fn names(&self) -> Vec<String> {
        self.load().accounts.into_keys().map(String::from).collect()
    }
}

fn plain(name: &str) -> String {
    format!("name = \"{name}\"\nuser = \"{name}\"\nhome = \"/home/{name}\"\n")
}

#[test]
fn a_missing_directory_is_empty() {
    let found = load(Path::new("/nonexistent/a"), Path::new("/nonexistent/b"));
    assert_eq!(found, Inventory::default());
}

#[test]
fn a_bad_definition_names_its_line_and_disturbs_no_other() {
    let place = Place::new();
    place.put("accounts.d/good.toml", &plain("good"), 0o644);
    place.put("accounts.d/syntax.toml", "name = \"syntax\"\nuser = oops\n", 0o644);
    place.put(
        "accounts.d/typed.toml",
        "name = \"typed\"\nuser = \"A B\"\nhome = \"/home/x\"\n",
        0o644,
    );
    let text = format!(
        "{}\n[[sites]]\nname = \"main\"\ndomains = [\"a.example\"]\nroot = \"www\"\n[sites.php]\n\
         memory_limit_mb = 128\nmax_children = 9999\n",
        plain("rule")
    );
    place.put("accounts.d/rule.toml", &text, 0o644);
    place.put("accounts.d/unknown.toml", &format!("{}colour = 1\n", plain("unknown")), 0o644);
    place.put("accounts.d/other.toml", &plain("another"), 0o644);
    place.put("accounts.d/notes.txt", "not a definition", 0o644);
    let found = place.load();
    assert_eq!(found.accounts.len(), 1);
    let at = |name: &str| {
        let file = place.path("accounts.d").join(name);
        found.problems.iter().find(|p| p.file == file).unwrap()
    };
    assert_eq!(found.problems.len(), 5, "{:?}", found.problems);
    assert_eq!(at("syntax.toml").line, Some(2));
    assert_eq!(at("typed.toml").line, Some(2));
    assert!(at("typed.toml").message.contains("\"A B\""), "{}", at("typed.toml").message);
    assert_eq!(at("rule.toml").line, Some(11));
    assert!(at("rule.toml").message.contains("max_children"));
    assert_eq!(at("unknown.toml").line, Some(4));
    assert_eq!(at("other.toml").line, Some(1));
    assert!(found.problems.iter().all(|p| !p.remedy.is_empty()));
    // A remedy names what there is: the package installs this file.
    let remedy = &at("unknown.toml").remedy;
    assert!(remedy.contains("/usr/share/doc/ferry-agent/examples/account.toml"), "{remedy}");
    assert!(!found.incomplete);
}

#[test]
fn what_others_may_write_is_refused() {
    let place = Place::new();
    place.put("accounts.d/world.toml", &plain("world"), 0o646);
    place.put("accounts.d/owner.toml", &plain("owner"), 0o644);
    std::os::unix::fs::chown(place.path("accounts.d/owner.toml"), Some(1234), None).unwrap();
    std::os::unix::fs::symlink("owner.toml", place.path("accounts.d/link.toml")).unwrap();
    let touched = place.path("touched");
    let script = format!("#!/bin/sh\ntouch {}\necho '[]'\n", touched.display());
    place.put("inventory.d/panel", &script, 0o777);
    let found = place.load();
    assert!(found.accounts.is_empty());
    assert_eq!(found.problems.len(), 4, "{:?}", found.problems);
    assert!(found.incomplete);
    assert!(!touched.exists());
}

#[test]
fn executables_add_accounts() {
    let place = Place::new();
    place.put("accounts.d/one.toml", &plain("one"), 0o644);
    let two = r#"{"name":"two","user":"two","home":"/home/two"}"#;
    let bad = r#"{"name":"bad","user":"bad","home":"/home/bad","sites":[{"name":"x","domains":["UPPER"],"root":"www"}]}"#;
    let three = r#"{"name":"three","user":"three","home":"/"}"#;
    place.put("inventory.d/panel", &format!("#!/bin/sh\necho '[{two},{bad},{three}]'\n"), 0o755);
    let four = r#"{"name":"four","user":"four","home":"/home/four"}"#;
    let object = format!("#!/bin/sh\necho '{{\"accounts\":[{four}]}}'\n");
    place.put("inventory.d/second", &object, 0o755);
    assert_eq!(place.names(), ["four", "one", "two"]);
    let found = place.load();
    assert_eq!(found.problems.len(), 2);
    assert!(found.problems[0].message.contains("sites[0].domains[0]"), "{}", found.problems[0]);
    assert!(found.problems[1].message.contains("\"three\""), "{}", found.problems[1]);
    assert!(!found.incomplete);
}

#[test]
fn an_executable_that_fails_leaves_the_others() {
    let place = Place::new();
    place.put("accounts.d/one.toml", &plain("one"), 0o644);
    place.put("inventory.d/a", "#!/bin/sh\necho no panel >&2\nexit 4\n", 0o755);
    place.put("inventory.d/b", "#!/bin/sh\necho '{'\n", 0o755);
    place.put("inventory.d/c", "#!/bin/sh\necho '{\"more\":[]}'\n", 0o755);
    place.put("inventory.d/d", "not executable", 0o644);
    let found = place.load();
    assert_eq!(found.accounts.len(), 1);
    assert_eq!(found.problems.len(), 4);
    assert!(found.problems[0].message.contains("no panel"));
    assert!(found.incomplete);
}

#[test]
fn accounts_that_claim_the_same_are_both_left_out() {
    let place = Place::new();
    let with_home = |name: &str, home: &str| {
        format!("name = \"{name}\"\nuser = \"{name}\"\nhome = \"{home}\"\n")
    };
    place.put("accounts.d/outer.toml", &with_home("outer", "/srv/web"), 0o644);
    place.put("accounts.d/inner.toml", &with_home("inner", "/srv/web/inner/deep"), 0o644);
    place.put("accounts.d/beside.toml", &with_home("beside", "/srv/web-2"), 0o644);
    place.put("accounts.d/twice.toml", &plain("twice"), 0o644);
    let twice = r#"[{"name":"twice","user":"u2","home":"/home/u2"}]"#;
    place.put("inventory.d/panel", &format!("#!/bin/sh\necho '{twice}'\n"), 0o755);
    let site = "[[sites]]\nname = \"s\"\ndomains = [\"shop.example\"]\nroot = \"www\"\n";
    place.put("accounts.d/shop1.toml", &format!("{}{site}", plain("shop1")), 0o644);
    place.put("accounts.d/shop2.toml", &format!("{}{site}", plain("shop2")), 0o644);
    assert_eq!(place.names(), ["beside"]);
    let found = place.load();
    assert_eq!(found.problems.len(), 6, "{:#?}", found.problems);
    let shop = found.problems.iter().find(|p| p.message.contains("shop.example")).unwrap();
    for file in ["shop1.toml", "shop2.toml"] {
        assert!(shop.message.contains(file) && shop.remedy.contains(file), "{shop}");
    }
    assert!(shop.message.contains("neither"), "{shop}");
}
