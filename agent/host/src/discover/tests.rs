use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::PathBuf;

use super::*;

/// A host that was set up by hand.
struct Place {
    directory: tempfile::TempDir,
    layout: Layout,
    seen: DatabasesSeen,
}

const SITE: &str = "server { listen 80; server_name shop.example www.shop.example;\n\
    root /home/shop/www; location ~ \\.php$ { include snippets/php.conf; } }\n";
const POOL: &str = "[shop]\nuser = shop\nlisten = /run/php/shop.sock\npm.max_children = 5\n";

impl Place {
    /// Two users, and nothing of theirs but homes.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::below(directory.path());
        layout.programs.php_fpm = directory.path().join("usr/sbin/php-fpm");
        let place = Self { directory, layout, seen: DatabasesSeen::default() };
        place.put("/usr/sbin/php-fpm8.2", "");
        place.put(
            "/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n",
        );
        place.put("/etc/group", "root:x:0:\nwww-data:x:33:\n");
        place.put("/etc/shadow", "");
        place.put("/etc/nginx/nginx.conf", "http { include /etc/nginx/sites-enabled/*; }\n");
        place.put("/etc/nginx/snippets/php.conf", "fastcgi_pass unix:/run/php/shop.sock;\n");
        for directory in ["/etc/nginx/sites-enabled", "/var/spool/cron/crontabs", "/etc/cron.d"] {
            fs::create_dir_all(place.layout.path(directory)).unwrap();
        }
        place.user("shop", 1001);
        place.user("blog", 1002);
        place
    }

    fn append(&self, path: &str, text: &str) {
        let path = self.layout.path(path);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(path, before + text).unwrap();
    }

    fn user(&self, name: &str, uid: u32) {
        self.append("/etc/passwd", &format!("{name}:x:{uid}:{uid}::/home/{name}:/bin/bash\n"));
        self.append("/etc/group", &format!("{name}:x:{uid}:\n"));
        let home = self.layout.path(format!("/home/{name}"));
        fs::create_dir_all(&home).unwrap();
        lchown(home, Some(uid), Some(uid)).unwrap();
    }

    fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.layout.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn directory(&self, path: &str) {
        fs::create_dir_all(self.layout.path(path)).unwrap();
    }

    /// A whole site of shop's.
    fn shop(&self) {
        self.directory("/home/shop/www");
        self.put("/etc/nginx/sites-available/shop", SITE);
        symlink("../sites-available/shop", self.layout.path("/etc/nginx/sites-enabled/shop"))
            .unwrap();
        self.put("/etc/php/8.2/fpm/pool.d/shop.conf", POOL);
    }

    fn database(&mut self, engine: EngineKind, name: &str, owner: Option<&str>) {
        let owner = owner.map(str::to_owned);
        self.seen.databases.push(DatabaseSeen { engine, name: name.to_owned(), owner });
    }

    fn maria_user(&mut self, name: &str, databases: &[&str]) {
        self.seen.users.push(DatabaseUserSeen {
            engine: EngineKind::Mariadb,
            name: name.to_owned(),
            host: Some("localhost".to_owned()),
            databases: databases.iter().map(|d| (*d).to_owned()).collect(),
            administrates: false,
        });
    }

    fn look(&self) -> Discovery {
        discover(&self.layout, &self.seen, &[], &[]).unwrap()
    }

    fn of(&self, user: &str) -> Proposal {
        self.look().proposals.into_iter().find(|p| p.user == user).unwrap()
    }
}

#[track_caller]
fn doubts(proposal: &Proposal, part: &str) {
    let found = proposal.review.iter().any(|doubt| doubt.contains(part));
    assert!(found && !proposal.complete, "{part}: {:#?}\n{}", proposal.review, proposal.text);
    assert!(proposal.text.contains("# REVIEW: "), "{}", proposal.text);
}

#[track_caller]
fn definition(proposal: &Proposal) -> &Definition {
    proposal.definition.as_ref().unwrap_or_else(|| panic!("{}", proposal.text))
}

#[test]
fn a_plain_account_is_complete_and_its_text_is_accepted_as_it_is() {
    let mut place = Place::new();
    place.shop();
    place.put(
        "/home/shop/www/wp-config.php",
        "<?php\ndefine('DB_NAME', 'shop_wp');\ndefine('DB_USER', 'shop_wp');\n",
    );
    place.put("/var/spool/cron/crontabs/shop", "* * * * * true\n");
    place.put("/home/shop/ssl/c.pem", "x");
    place.put("/home/shop/ssl/c.key", "x");
    place.append(
        "/etc/nginx/sites-available/shop",
        "server { listen 443 ssl; server_name shop.example; root /home/shop/www;\n\
         ssl_certificate /home/shop/ssl/c.pem; ssl_certificate_key /home/shop/ssl/c.key; }\n",
    );
    place.database(EngineKind::Mariadb, "shop_wp", None);
    place.maria_user("shop_wp", &["shop_wp"]);
    place.database(EngineKind::Postgresql, "stock", Some("shop"));
    place.seen.users.push(DatabaseUserSeen {
        engine: EngineKind::Postgresql,
        name: "shop".to_owned(),
        host: None,
        databases: BTreeSet::new(),
        administrates: false,
    });
    place.directory("/home/shop/mail/info/new");
    place.put(
        "/etc/postfix/main.cf",
        "virtual_mailbox_domains = shop.example\nvirtual_mailbox_base=/home\n\
        virtual_mailbox_maps = hash:/etc/postfix/boxes\n",
    );
    place.put("/etc/postfix/boxes", "info@shop.example shop/mail/info/\n");

    let proposal = place.of("shop");
    assert!(proposal.complete, "{:#?}\n{}", proposal.review, proposal.text);
    let found = definition(&proposal);
    let site = &found.sites[0];
    assert_eq!(site.domains.len(), 2);
    assert_eq!(site.root.as_str(), "www");
    let config = ["/etc/nginx/sites-enabled/shop", "/etc/php/8.2/fpm/pool.d/shop.conf"];
    assert_eq!(site.config, config.map(PathBuf::from));
    assert_eq!(site.php.as_ref().unwrap().max_children, 5);
    assert_eq!(site.tls.as_ref().unwrap().key.as_str(), "ssl/c.key");
    let names: Vec<&str> = found.databases.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["shop_wp", "stock"]);
    assert_eq!(found.database_users.len(), 2);
    assert_eq!(found.mail[0].root.as_str(), "mail");
    assert_eq!(found.mail[0].mailboxes[0].as_str(), "info");
    for evidence in ["root /home/shop/www below /home/shop", "runs as shop", "shop has a crontab"] {
        let evidence = evidence.replace("shop has", "the user has");
        assert!(proposal.text.contains(&evidence), "{evidence}: {}", proposal.text);
    }
    // As `ferry-agent accounts` reads it.
    let accounts = place.directory.path().join("accounts.d");
    fs::create_dir(&accounts).unwrap();
    fs::set_permissions(&accounts, fs::Permissions::from_mode(0o755)).unwrap();
    let file = accounts.join("shop.toml");
    fs::write(&file, &proposal.text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let inventory = crate::accounts::load(&accounts, std::path::Path::new("/nonexistent"));
    assert_eq!(inventory.problems, []);
    assert_eq!(inventory.accounts.values().next(), Some(found));
}

#[test]
fn only_wanted_users_are_proposed_and_defined_ones_only_then() {
    let place = Place::new();
    let users = |defined: &[Definition], wanted: &[&str]| -> Vec<String> {
        let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        let found = discover(&place.layout, &place.seen, defined, &wanted).unwrap();
        found.proposals.into_iter().map(|p| p.user).collect()
    };
    assert_eq!(users(&[], &[]), ["shop", "blog"]);
    assert_eq!(users(&[], &["blog"]), ["blog"]);
    let shop = definition(&place.of("shop")).clone();
    assert_eq!(users(std::slice::from_ref(&shop), &[]), ["blog"]);
    assert_eq!(users(&[shop], &["shop"]), ["shop"]);
    let fault = discover(&place.layout, &place.seen, &[], &["root".to_owned()]).unwrap_err();
    assert!(fault.to_string().contains("root"), "{fault}");
}

#[test]
fn a_site_of_two_users_is_proposed_to_neither() {
    let place = Place::new();
    place.shop();
    place.directory("/home/blog/www");
    place.put(
        "/etc/nginx/sites-enabled/blog",
        "server { server_name shop.example blog.example; root /home/blog/www; }",
    );
    for user in ["shop", "blog"] {
        let proposal = place.of(user);
        doubts(&proposal, "shop.example is claimed twice");
        assert_eq!(definition(&proposal).sites, []);
        assert!(proposal.text.contains("#[[sites]]"), "{}", proposal.text);
    }
}

#[test]
fn a_site_whose_php_runs_as_another_account_or_as_the_web_server_is_doubted() {
    let place = Place::new();
    place.shop();
    place.put("/etc/php/8.2/fpm/pool.d/shop.conf", POOL.replace("user = shop", "user = blog"));
    doubts(&place.of("shop"), "its PHP runs as blog");
    place.put("/etc/php/8.2/fpm/pool.d/shop.conf", POOL.replace("user = shop", "user = www-data"));
    let proposal = place.of("shop");
    doubts(&proposal, "its PHP runs as www-data");
    assert!(definition(&proposal).sites[0].php.is_some());
}

#[test]
fn roots_outside_are_told_with_what_to_do_and_those_of_nobody_are_unassigned() {
    let place = Place::new();
    for (name, uid) in [("site2", 1002), ("alien", 4242)] {
        place.directory(&format!("/var/www/{name}"));
        lchown(place.layout.path(format!("/var/www/{name}")), Some(uid), None).unwrap();
        let text = format!("server {{ server_name {name}.example; root /var/www/{name}; }}");
        place.put(&format!("/etc/nginx/sites-enabled/{name}"), text);
    }
    place.directory("/home/shop/site");
    symlink("../../home/shop/site", place.layout.path("/var/www/linked")).unwrap();
    place.put(
        "/etc/nginx/sites-enabled/linked",
        "server { server_name linked.example; root /var/www/linked; }",
    );
    let blog = place.of("blog");
    doubts(&blog, "/var/www/site2 belongs to blog, but is outside the home /home/blog");
    assert_eq!(definition(&blog).sites, []);
    let shop = place.of("shop");
    assert!(shop.complete, "{:?}", shop.review);
    assert_eq!(definition(&shop).sites[0].root.as_str(), "site");
    let unassigned = place.look().unassigned;
    assert!(unassigned.iter().any(|u| u.contains("alien.example")), "{unassigned:?}");
}

#[test]
fn no_symlink_leads_out_of_a_home() {
    let place = Place::new();
    place.put("/home/blog/secret/.env", "DB_NAME=blog_db\n");
    place.put("/home/blog/secret/c.pem", "x");
    place.directory("/home/blog/www");
    symlink("../blog/secret", place.layout.path("/home/shop/app")).unwrap();
    symlink("../blog/secret/.env", place.layout.path("/home/shop/.env")).unwrap();
    symlink("../blog/www", place.layout.path("/home/shop/www")).unwrap();
    symlink("../blog/secret/c.pem", place.layout.path("/home/shop/c.pem")).unwrap();
    place.put("/etc/nginx/sites-enabled/shop", "server { listen 443 ssl; server_name shop.example; \
        root /home/shop/www; ssl_certificate /home/shop/c.pem; ssl_certificate_key /home/shop/c.pem; }");
    let proposal = place.of("shop");
    doubts(&proposal, "a symlink leads out of the home");
    doubts(&proposal, "are not files below /home/shop");
    assert!(!proposal.text.contains("blog_db"), "{}", proposal.text);
    assert!(place.of("blog").text.contains("blog_db"));
}

#[test]
fn what_a_home_says_alone_makes_no_database_its_own() {
    let mut place = Place::new();
    place.database(EngineKind::Mariadb, "blog_db", None);
    place.maria_user("blog_db", &["blog_db"]);
    place.database(EngineKind::Mariadb, "wiki", None);
    place.maria_user("wiki", &["wiki"]);
    place.database(EngineKind::Mariadb, "lost", None);
    place.put("/home/shop/.env", "DB_DATABASE=blog_db\nDB_USERNAME=blog_db\n");
    place.put("/home/shop/wiki/.env", "DB_DATABASE=wiki\n");
    let shop = place.of("shop");
    doubts(&shop, "more than one account seems to have MariaDB database blog_db (shop, blog)");
    doubts(&shop, "only a file that shop can write says that it is shop's");
    let names: Vec<&str> = definition(&shop).databases.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["wiki"]);
    assert_eq!(definition(&place.of("blog")).databases, []);
    let unassigned = place.look().unassigned;
    assert!(unassigned.iter().any(|u| u.contains("database lost")), "{unassigned:?}");
}

#[test]
fn users_of_several_accounts_databases_and_names_alone_are_doubted() {
    let mut place = Place::new();
    place.database(EngineKind::Mariadb, "shop_a", None);
    place.database(EngineKind::Mariadb, "blog_a", None);
    place.maria_user("shared", &["shop_a", "blog_a"]);
    place.maria_user("shop_a", &["shop_a"]);
    let shop = place.of("shop");
    doubts(&shop, "MariaDB user shared@localhost can use databases of several accounts");
    doubts(&shop, "only its name says");
    assert_eq!(definition(&shop).database_users.len(), 1);
    // Nobody but the shared user could load this one.
    let blog = place.of("blog");
    doubts(&blog, "no MariaDB user is the account's alone");
    assert_eq!(definition(&blog).databases, []);
}

#[test]
fn apache_and_what_nginx_does_beside_are_told() {
    let place = Place::new();
    place.shop();
    place.put("/etc/apache2/apache2.conf", "IncludeOptional sites-enabled/*.conf\n");
    place.put(
        "/etc/apache2/sites-enabled/old.conf",
        "<VirtualHost *:8080>\n  ServerName old.example\n  \
        ServerAlias www.old.example\n  DocumentRoot \"/home/shop/www\"\n</VirtualHost>\n",
    );
    place.put("/etc/nginx/sites-available/shop", SITE.replace("root", "auth_basic x; root"));
    let proposal = place.of("shop");
    doubts(&proposal, "Apache serves it, which Ferry cannot move yet");
    doubts(&proposal, "without: auth_basic");
    assert!(proposal.text.contains("old.example\", \"www.old.example"), "{}", proposal.text);
    assert_eq!(definition(&proposal).sites.len(), 1);
}

#[test]
fn jobs_units_and_mail_that_do_not_move_are_told() {
    let place = Place::new();
    place.put("/etc/cron.d/shop", "5 4 * * * shop /home/shop/run\n");
    place.put(
        "/etc/systemd/system/shop-worker.service",
        "[Service]\nUser=shop\nExecStart=/bin/true\n",
    );
    place.put("/home/shop/.config/systemd/user/queue.service", "[Service]\n");
    place.directory("/home/shop/Maildir/new");
    place.put("/etc/dovecot/dovecot.conf", "!include conf.d/*.conf\n");
    place.put(
        "/etc/dovecot/conf.d/auth.conf",
        "userdb {\n driver = passwd-file\n args = /etc/dovecot/users\n}\n",
    );
    place.put(
        "/etc/dovecot/users",
        "a@shop.example:{X}hash-of-a:1:1::/home/shop::userdb_mail=maildir:/home/shop/mail/other\n\
        b@far.example:{X}hash-of-b:1:1::/var/vmail::userdb_mail=maildir:/var/vmail/b\n",
    );
    let discovery = place.look();
    let proposal = &discovery.proposals[0];
    for part in
        ["cron.d/shop", "shop-worker.service", "but must be called a", "Maildir is the mail"]
    {
        doubts(proposal, part);
    }
    assert!(proposal.text.contains("queue.service"), "{}", proposal.text);
    assert!(discovery.unassigned.iter().any(|u| u.contains("far.example")), "{discovery:?}");
    assert!(!format!("{discovery:?}").contains("hash-of"), "hashes are not read out");
}

#[test]
fn hostile_names_and_broken_files_stay_in_their_comments() {
    let mut place = Place::new();
    place.shop();
    place.append(
        "/etc/passwd",
        "Bad.User:x:1003:1003::/home/Bad.User:/bin/sh\nbroken:line\n\
        dots:x:1004:1004::/home/shop/..:/bin/sh\n",
    );
    place.directory("/home/Bad.User");
    place.put("/etc/nginx/sites-enabled/a", b"server { server_name ';rm -rf /' \"a\nuser = 1\" \xff\xfe.example ~^x$;\n root '/home/shop/www\nname = 1'; }".as_slice());
    place.put(
        "/etc/nginx/sites-enabled/b",
        "server { server_name half.example; root /home/shop/www",
    );
    place.put("/etc/nginx/sites-enabled/loop", "include /etc/nginx/sites-enabled/loop;");
    let latin = OsStr::from_bytes(b"/home/shop/caf\xe9");
    fs::create_dir_all(place.layout.path(latin)).unwrap();
    place.database(EngineKind::Mariadb, "shop_`; DROP", None);
    place.maria_user("shop", &["shop_`; DROP"]);
    place.put("/home/shop/.env", b"DB_NAME=\xff\x1b[2J\nDB_HOST=far\n".as_slice());
    let discovery = place.look();
    let of = |user: &str| discovery.proposals.iter().find(|p| p.user == user).unwrap();
    let bad = of("Bad.User");
    assert_eq!(bad.account.as_str(), "bad-user");
    doubts(bad, "Bad.User is no name for an account");
    assert!(bad.definition.is_none());
    assert!(bad.text.lines().all(|l| l.is_empty() || l.starts_with('#')), "{}", bad.text);
    assert!(discovery.proposals.iter().all(|p| p.user != "dots"));
    let shop = of("shop");
    doubts(shop, "cannot be moved: not a domain name");
    doubts(shop, "cannot be moved: rename the database");
    assert_eq!(definition(shop).name.as_str(), "shop");
    for proposal in &discovery.proposals {
        assert!(proposal.text.chars().all(|c| c == '\n' || !c.is_control()), "{}", proposal.text);
    }
    for note in &discovery.unassigned {
        assert!(!note.chars().any(char::is_control), "{note}");
    }
}

#[test]
fn a_server_block_in_the_main_file_cannot_be_set_aside() {
    let place = Place::new();
    place.directory("/home/shop/www");
    place.put(
        "/etc/nginx/nginx.conf",
        "http { server { server_name shop.example; root /home/shop/www; } }",
    );
    let proposal = place.of("shop");
    doubts(&proposal, "/etc/nginx/nginx.conf cannot be set aside");
    assert_eq!(definition(&proposal).sites, []);
}

#[test]
fn a_proposal_that_clashes_with_a_definition_that_is_there_says_so() {
    let place = Place::new();
    place.shop();
    let mut other = definition(&place.of("shop")).clone();
    other.name = "old".parse().unwrap();
    other.user = "old".parse().unwrap();
    other.home = "/home/old".into();
    let found = discover(&place.layout, &place.seen, &[other], &[]).unwrap();
    doubts(&found.proposals[0], "account old");
}
