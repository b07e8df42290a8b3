use std::fs;
use std::path::Path;

use ferry_host::Layout;
use ferry_proto::FaultClass;
use ferry_proto::ids::Epoch;
use tempfile::TempDir;

use super::*;
use crate::testing::authority::Authority;
use crate::testing::{a_move, account, agent};

/// An agent whose server has user `shop`.
struct Server {
    dir: TempDir,
    agent: Arc<Agent>,
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = agent(&Authority::new(), dir.path());
        let layout = Layout::below(dir.path());
        fs::create_dir_all(layout.path("/etc")).unwrap();
        fs::create_dir_all(dir.path().join("accounts.d")).unwrap();
        fs::write(layout.path("/etc/passwd"), "shop:x:1501:1501::/home/shop:/bin/sh\n").unwrap();
        fs::write(layout.path("/etc/group"), "shop:x:1501:\n").unwrap();
        Arc::get_mut(&mut agent).unwrap().layout = layout;
        Self { dir, agent }
    }

    /// Defines `shop`, and `more` of it.
    fn define(&self, more: &str) {
        let text = format!("name = \"shop\"\nuser = \"shop\"\nhome = \"/home/shop\"\n{more}");
        fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("accounts.d/shop.toml")
    }

    async fn knows(&self, account: &Account) {
        let name = account.definition.name.clone();
        self.agent.set_account(&name, Some(account.clone())).await.unwrap();
    }

    async fn here(&self) -> Result<Account, Fault> {
        here(&self.agent, &"shop".parse().unwrap()).await
    }
}

const DATABASE: &str = "[[databases]]\nengine = \"mariadb\"\nname = \"shop_new\"\n\
     [[database_users]]\nengine = \"mariadb\"\nname = \"shop_new\"\n";

#[tokio::test]
async fn what_was_added_since_the_account_came_back_moves_too() {
    let server = Server::new();
    server.define("");
    // Once away and back: the ledger remembers what it was then.
    server.knows(&account("shop", &Standing::Serving)).await;
    server.define(DATABASE);
    let here = server.here().await.unwrap();
    assert_eq!(here.definition.databases.len(), 1);
    assert_eq!(
        (here.epoch, here.uid),
        (Epoch(3), 1501),
        "its epoch is the ledger's, its user here's"
    );
}

#[tokio::test]
async fn a_definition_that_is_gone_or_bad_is_not_replaced_by_an_old_one() {
    let server = Server::new();
    server.knows(&account("shop", &Standing::Serving)).await;
    let fault = server.here().await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
    server.define("colour = 1\n");
    let fault = server.here().await.unwrap_err();
    assert!(fault.causes.iter().any(|c| c.contains("shop.toml:4")), "{fault:?}");
}

#[tokio::test]
async fn what_is_defined_is_told_from_what_is_not_and_from_what_cannot_be_read() {
    let server = Server::new();
    let name = "shop".parse().unwrap();
    assert!(super::defined(&server.agent, &name).await.unwrap().is_none());
    server.define(DATABASE);
    let defined = super::defined(&server.agent, &name).await.unwrap().unwrap();
    assert!(matches!(defined.standing, Standing::Serving));
    server.define("colour = 1\n");
    super::defined(&server.agent, &name).await.unwrap_err();
}

#[tokio::test]
async fn an_account_on_the_move_stays_what_it_was_when_it_was_armed() {
    let server = Server::new();
    server.knows(&account("shop", &Standing::Armed { of: a_move() })).await;
    server.define(DATABASE);
    assert_eq!(server.here().await.unwrap().definition.databases, []);
}

#[tokio::test]
async fn a_definition_beside_what_ferry_made_must_say_the_same() {
    let server = Server::new();
    let mut account = account("shop", &Standing::Serving);
    account.made = Some(crate::ledger::Made::default());
    server.knows(&account).await;
    server.here().await.unwrap();
    server.define("");
    server.here().await.unwrap();
    server.define(DATABASE);
    let fault = server.here().await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.message.contains("databases, database_users differ"), "{fault}");
}

#[test]
fn definitions_are_compared_but_for_each_servers_own_files() {
    let definition = |config: &str, domain: &str| -> Definition {
        serde_json::from_value(serde_json::json!({
            "name": "shop", "user": "shop", "home": "/home/shop",
            "sites": [{ "name": "main", "domains": [domain], "root": "www", "config": [config] }],
        }))
        .unwrap()
    };
    let one = definition("/etc/nginx/sites-enabled/a", "shop.example");
    let none: [&str; 0] = [];
    assert_eq!(differences(&one, &definition("/etc/nginx/conf.d/b", "shop.example")), none);
    let mut other = definition("/etc/nginx/sites-enabled/a", "other.example");
    other.crontab = false;
    assert_eq!(differences(&one, &other), ["sites", "crontab"]);
}
