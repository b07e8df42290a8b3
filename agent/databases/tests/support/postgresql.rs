//! A private PostgreSQL server.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use ferry_databases::{Engine, PostgresqlConfig, Spec};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::{ACCOUNT, Server, directory, from_template, id, program, run, wait};

pub struct Postgres {
    // Ended before its directory goes.
    server: Server,
    pub dir: tempfile::TempDir,
    pub config: PostgresqlConfig,
}

/// Where the newest installed release's programs are.
fn bin_dir() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|v| v.path().join("bin")).collect();
    found.retain(|dir| dir.join("initdb").exists());
    found.sort();
    found.pop().expect("PostgreSQL is missing: install the package postgresql")
}

fn try_start(bin: &Path, dir: &Path, user: (u32, u32)) -> Option<(Server, u16)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let mut command = program(&bin.join("postgres"), user);
    command.arg("-D").arg(dir.join("data")).arg("-k").arg(dir).arg("-p").arg(port.to_string());
    let settings =
        ["fsync=off", "shared_buffers=16MB", "max_prepared_transactions=5", "autovacuum=off"];
    command.args(["-h", "127.0.0.1"]).args(settings.iter().flat_map(|s| ["-c", *s]));
    let log = dir.join("log");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let mut server = Server::start(command, &log);
    let socket = dir.join(format!(".s.PGSQL.{port}"));
    let mut taken = false;
    wait("PostgreSQL", || {
        taken = server.gone();
        assert!(!taken || said().contains("Address already in use"), "{}", said());
        taken || (socket.exists() && said().contains("ready to accept connections"))
    });
    (!taken).then_some((server, port))
}

impl Postgres {
    /// Leaves a database as a DROP DATABASE does that a full disk cuts off.
    pub fn half_drop(&self, database: &str) {
        let mark = format!("UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{database}'");
        self.run("postgres", &mark);
    }

    pub fn start() -> Self {
        let user = (id("-u", "postgres"), id("-g", "postgres"));
        let (bin, dir) = (bin_dir(), directory());
        chown(dir.path(), Some(user.0), Some(user.1)).expect("given away");
        let data = dir.path().join("data");
        from_template("postgresql", &data, user, |data| {
            let mut initdb = program(&bin.join("initdb"), user);
            initdb.arg("--pgdata").arg(data).args([
                "--username=postgres",
                "--auth-local=peer",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ]);
            run(initdb);
        });
        // A port found free can be taken a moment later by another test: then another one.
        let started = (0..5).find_map(|_| try_start(&bin, dir.path(), user));
        let (server, port) = started.expect("a port that stays free");
        let config = PostgresqlConfig {
            socket_dir: dir.path().to_owned(),
            port,
            ..PostgresqlConfig::default()
        };
        Self { server, dir, config }
    }

    pub fn engine(&self) -> Box<dyn Engine> {
        ferry_databases::postgresql(self.config.clone())
    }

    /// With a password, as sites do.
    pub async fn connect(
        &self,
        role: &str,
        password: &str,
        database: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut options = tokio_postgres::Config::new();
        options.host(&self.config.host).port(self.config.port);
        options.user(role).password(password).dbname(database);
        let (client, connection) = options.connect(NoTls).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }

    /// As the superuser, by psql, whose scripts may hold anything.
    pub fn run(&self, database: &str, script: &str) -> String {
        let user = (id("-u", "postgres"), id("-g", "postgres"));
        let file = self.dir.path().join("script.sql");
        std::fs::write(&file, script).expect("written");
        let mut command = program(&bin_dir().join("psql"), user);
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"]).arg(self.dir.path());
        command.arg("-p").arg(self.config.port.to_string()).args(["-d", database, "-f"]).arg(&file);
        let out = command.output().expect("psql runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

/// The first column of the first row.
pub async fn first(client: &Client, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let answer = client.simple_query(sql).await?;
    let row = answer.iter().find_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.and_then(|r| r.get(0)).map(str::to_owned))
}

pub fn spec(databases: &[&str], roles: &[&str]) -> Spec {
    Spec {
        account: "shop".parse().expect("a name"),
        uid: ACCOUNT.0,
        gid: ACCOUNT.1,
        databases: databases.iter().map(|d| d.parse().expect("a name")).collect(),
        users: roles
            .iter()
            .map(|name| {
                let json = serde_json::json!({"engine": "postgresql", "name": name});
                serde_json::from_value(json).expect("a user")
            })
            .collect(),
    }
}

pub fn nasty_spec() -> Spec {
    spec(&["shop", "Shop-latin"], &["shop", "Shop-reader", "shop_group", "shop_off"])
}

/// Roles and databases.
pub const NASTY_CLUSTER: &str = r#"
CREATE ROLE shop LOGIN PASSWORD 'old password' CONNECTION LIMIT 20 VALID UNTIL '2099-01-01';
SET password_encryption = 'md5';
CREATE ROLE "Shop-reader" LOGIN PASSWORD 'read' NOINHERIT;
RESET password_encryption;
CREATE ROLE shop_group NOLOGIN;
CREATE ROLE shop_off LOGIN;
CREATE ROLE bystander LOGIN PASSWORD 'b';
GRANT shop_group TO shop WITH ADMIN OPTION;
GRANT shop_group TO "Shop-reader";
COMMENT ON ROLE shop IS 'the shop''s';
ALTER ROLE shop SET work_mem = '5MB';
ALTER ROLE shop SET search_path = "$user", 'odd, schema', public;
CREATE DATABASE shop OWNER shop ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8' TEMPLATE template0 CONNECTION LIMIT 30;
CREATE DATABASE "Shop-latin" OWNER "Shop-reader" ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
CREATE DATABASE other OWNER bystander;
COMMENT ON DATABASE shop IS 'a shop; it''s';
REVOKE ALL ON DATABASE shop FROM PUBLIC;
GRANT CONNECT ON DATABASE shop TO "Shop-reader" WITH GRANT OPTION;
ALTER DATABASE shop SET search_path = 'odd, schema', public, pg_catalog;
ALTER DATABASE shop SET default_transaction_read_only = on;
ALTER DATABASE shop SET bytea_output = 'escape';
ALTER ROLE "Shop-reader" IN DATABASE shop SET app.tenant = 'a''b';
"#;

/// The content of the shop's database.
pub const NASTY: &str = r#"
SET default_transaction_read_only = off;
SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE;
SET standard_conforming_strings = on;
CREATE SCHEMA ext;
ALTER SCHEMA ext OWNER TO shop;
CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION "uuid-ossp";
SET ROLE shop;
SET search_path = public;
CREATE EXTENSION citext;
CREATE EXTENSION pgcrypto;
CREATE SCHEMA "odd, schema";
CREATE SCHEMA grouped AUTHORIZATION shop_group;
CREATE TYPE mood AS ENUM ('sad', 'it''s \ ok', 'ü');
CREATE DOMAIN positive AS numeric(10,2) CHECK (VALUE > 0) DEFAULT 1;
CREATE TYPE pair AS (a int, b text);
CREATE TABLE "a;\b" (id serial PRIMARY KEY, "col ""x" text DEFAULT E'a\\b', v positive, m mood, p pair, arr text[]);
COMMENT ON TABLE "a;\b" IS E'a comment \\! with \n orders; \\.';
INSERT INTO "a;\b" ("col ""x", v, m, p, arr) VALUES (E'\\.', 1.5, 'ü', ROW(1, 'x,"y'), ARRAY['a', NULL, '{"']),
  (E'line\nbreak\ttab\\\r', 2, 'sad', NULL, '{}'), (NULL, 3, NULL, ROW(NULL, ''), NULL);
CREATE TABLE numbers (f4 real, f8 double precision, n numeric, b bytea, t timestamptz, i interval, j jsonb, x xml, u uuid, mo money, r int4range, bits bit varying(9), net inet);
INSERT INTO numbers VALUES (8388609, 0.1, 'NaN', '\x00ff5c27', '0044-03-15 12:00:00+01 BC', '1 year -2 days', '{"b": 1, "a": [null, "\u00fc"]}', '<a>&lt;</a>', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 12.34, '[1,5)', B'101', '::1/128'),
  ('-Infinity', 5e-324, 1e-300, '', 'infinity', '0', 'null', NULL, NULL, NULL, 'empty', '', '10.0.0.1/8');
CREATE TABLE bag (t text);
INSERT INTO bag VALUES ('same'), ('same'), (''), (NULL);
CREATE TABLE z_parent (id int PRIMARY KEY, up int REFERENCES z_parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE a_child (id int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 7), parent int REFERENCES z_parent ON DELETE CASCADE, twice int GENERATED ALWAYS AS (parent * 2) STORED);
INSERT INTO z_parent VALUES (1, 2), (2, 1);
INSERT INTO a_child (parent) VALUES (1), (2);
CREATE SEQUENCE seq AS smallint START 5 CACHE 3 CYCLE;
SELECT nextval('seq'), setval('seq', 77, false);
CREATE UNLOGGED TABLE unlogged (a int);
INSERT INTO unlogged VALUES (1);
CREATE TABLE parts (y int, v text) PARTITION BY RANGE (y);
CREATE TABLE parts_old PARTITION OF parts FOR VALUES FROM (0) TO (2000);
CREATE TABLE parts_new PARTITION OF parts DEFAULT;
INSERT INTO parts VALUES (1999, 'old'), (2024, 'new');
CREATE TABLE kin (k int) INHERITS (bag);
INSERT INTO kin VALUES ('kin', 1);
CREATE TABLE dropped (a int, b int, c int);
ALTER TABLE dropped DROP COLUMN b;
INSERT INTO dropped VALUES (1, 3);
CREATE TABLE hashed (t text, h bytea GENERATED ALWAYS AS (digest(t, 'sha256')) STORED CHECK (length(h) = 32));
INSERT INTO hashed VALUES ('x'), (NULL);
CREATE INDEX ON numbers ((f8 + 1)) WHERE n > 0;
CREATE UNIQUE INDEX ON bag (lower(t), t) WHERE t <> 'same';
CREATE STATISTICS st ON y, v FROM parts_old;
CREATE FUNCTION twice(i int DEFAULT 2) RETURNS int LANGUAGE sql IMMUTABLE AS $_$ SELECT $1 * 2; -- \! ' " $a$ ;
$_$;
CREATE FUNCTION std(i int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN i > 1 THEN i END; SELECT i + 1; END;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS 'BEGIN NEW.t := NEW.t || '' stamped \\ ''; RETURN NEW; END';
CREATE PROCEDURE proc(INOUT a text) LANGUAGE plpgsql AS $$ BEGIN a := a || '!'; COMMIT; END $$;
CREATE AGGREGATE mul(int) (SFUNC = int4mul, STYPE = int, INITCOND = '1');
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE TRIGGER stamp BEFORE INSERT ON bag FOR EACH ROW WHEN (NEW.t IS NOT NULL) EXECUTE FUNCTION stamp();
CREATE VIEW z_view AS SELECT id, twice(id) AS t FROM z_parent;
CREATE VIEW a_view WITH (security_barrier) AS SELECT z.*, c.id AS child FROM z_view z JOIN a_child c ON c.parent = z.id WHERE z.id > 0;
CREATE MATERIALIZED VIEW mat AS SELECT count(*) AS n FROM bag;
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS a WITH NO DATA;
CREATE RULE quiet AS ON DELETE TO unlogged DO INSTEAD (SELECT 1; NOTIFY x);
ALTER TABLE z_parent ENABLE ROW LEVEL SECURITY;
ALTER TABLE z_parent FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON z_parent FOR SELECT TO shop, "Shop-reader" USING (id > 0);
CREATE COLLATION "c-like" (provider = libc, locale = 'C');
CREATE TABLE grouped.t (c ext.hstore, ci citext COLLATE "c-like", id uuid DEFAULT uuid_generate_v4());
INSERT INTO grouped.t (c, ci) VALUES ('"a"=>"b"', 'Mixed');
ALTER TABLE grouped.t OWNER TO shop_group;
GRANT SELECT (f4), UPDATE (n) ON numbers TO "Shop-reader";
GRANT SELECT ON z_parent, a_view, mat TO "Shop-reader" WITH GRANT OPTION;
GRANT USAGE ON SEQUENCE seq TO PUBLIC;
REVOKE EXECUTE ON FUNCTION twice FROM PUBLIC;
GRANT EXECUTE ON FUNCTION twice TO shop_group;
GRANT USAGE ON SCHEMA grouped TO "Shop-reader";
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO "Shop-reader";
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO shop_group WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO "Shop-reader";
ALTER DEFAULT PRIVILEGES FOR ROLE shop_group REVOKE ALL ON TYPES FROM PUBLIC;
SELECT lo_from_bytea(424242, '\x00010203ff');
GRANT SELECT ON LARGE OBJECT 424242 TO "Shop-reader";
CREATE PUBLICATION pub FOR TABLE bag;
CREATE TEXT SEARCH CONFIGURATION tsc (COPY = simple);
RESET ROLE;
GRANT CREATE ON SCHEMA public TO PUBLIC;
"#;
