//! What a server has is told with who may use it, whosever it is.

mod support;

use std::collections::BTreeSet;

use ferry_databases::{Survey, SurveyedUser};
use support::mariadb::Maria;
use support::postgresql::Postgres;

fn user(survey: &Survey, name: &str) -> SurveyedUser {
    survey.users.iter().find(|u| u.name == name).unwrap_or_else(|| panic!("{survey:?}")).clone()
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_rights_by_pattern_table_and_server_are_seen() {
    let server = Maria::start();
    server
        .run([
            "CREATE DATABASE shop_a",
            "CREATE DATABASE shopxa",
            "CREATE DATABASE `odd ``name`",
            "CREATE TABLE shopxa.t (a int)",
            "CREATE USER exact@localhost",
            "GRANT ALL ON `shop\\_a`.* TO exact@localhost",
            "CREATE USER wide@'10.0.0.%'",
            "GRANT SELECT ON `shop_a`.* TO wide@'10.0.0.%'",
            "CREATE USER tabular@localhost",
            "GRANT SELECT ON shopxa.t TO tabular@localhost",
            "CREATE USER mighty@localhost",
            "GRANT RELOAD ON *.* TO mighty@localhost",
            "CREATE ROLE staff",
        ])
        .await;
    let survey = server.engine().survey().await.expect("surveyed");
    let found: Vec<&str> = survey.databases.iter().map(|d| d.name.as_str()).collect();
    for name in ["shop_a", "shopxa", "odd `name"] {
        assert!(found.contains(&name), "{found:?}");
    }
    assert_eq!(user(&survey, "exact").databases, names(&["shop_a"]));
    let wide = user(&survey, "wide");
    assert_eq!(
        (wide.host.as_deref(), &wide.databases),
        (Some("10.0.0.%"), &names(&["shop_a", "shopxa"]))
    );
    assert_eq!(user(&survey, "tabular").databases, names(&["shopxa"]));
    assert!(user(&survey, "mighty").administrates && !user(&survey, "exact").administrates);
    assert!(survey.users.iter().all(|u| u.name != "staff"), "{survey:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_owners_and_given_rights_are_seen() {
    let server = Postgres::start();
    server.run(
        "postgres",
        "CREATE ROLE shop LOGIN; CREATE ROLE guest LOGIN; CREATE ROLE boss CREATEDB;",
    );
    server.run("postgres", "CREATE DATABASE \"Odd name\" OWNER shop");
    server.run("postgres", "GRANT CONNECT ON DATABASE \"Odd name\" TO guest");
    let survey = server.engine().survey().await.expect("surveyed");
    let odd = survey.databases.iter().find(|d| d.name == "Odd name").expect("listed");
    assert_eq!(odd.owner.as_deref(), Some("shop"));
    assert!(survey.databases.iter().all(|d| d.name != "template1"), "{survey:?}");
    assert_eq!(user(&survey, "guest").databases, names(&["Odd name"]));
    assert_eq!(user(&survey, "shop").databases, names(&[]));
    assert!(user(&survey, "boss").administrates && !user(&survey, "guest").administrates);
}
