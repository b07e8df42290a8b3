//! A private MariaDB server.

use std::os::unix::fs::chown;
use std::path::Path;

use ferry_databases::{Engine, MariadbConfig, Spec};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};

use super::{ACCOUNT, Server, directory, from_template, id, program, wait};

pub struct Maria {
    // Ended before its directory goes.
    server: Server,
    pub dir: tempfile::TempDir,
    pub config: MariadbConfig,
}

impl Maria {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(options: &[&str]) -> Self {
        Self::start_in(directory(), options)
    }

    pub fn start_in(dir: tempfile::TempDir, options: &[&str]) -> Self {
        let user = (id("-u", "nobody"), id("-g", "nobody"));
        chown(dir.path(), Some(user.0), Some(user.1)).expect("given away");
        let data = dir.path().join("data");
        from_template("mariadb", &data, user, |data| {
            let mut install = program(Path::new("/usr/bin/mariadb-install-db"), user);
            // As for the server below.
            install.env("TMPDIR", data.parent().expect("a directory"));
            install.arg("--no-defaults").arg(format!("--datadir={}", data.display())).args([
                "--auth-root-authentication-method=socket",
                "--auth-root-socket-user=root",
                "--skip-test-db",
                "--innodb-log-file-size=4M",
            ]);
            super::run(install);
        });
        let config = MariadbConfig { socket: dir.path().join("s"), ..MariadbConfig::default() };
        let server = serve(dir.path(), &data, &config, options);
        Self { server, dir, config }
    }

    /// Dies at once, as by `kill -9`, and is started again.
    pub fn crash(&mut self, options: &[&str]) {
        self.server.kill();
        self.server = serve(self.dir.path(), &self.data(), &self.config, options);
    }

    /// Where the server keeps everything.
    pub fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Leaves a file in the directory of a database.
    pub fn plant(&self, database: &str, name: &str) {
        std::fs::write(self.data().join(database).join(name), "TYPE=").expect("planted");
    }

    pub fn engine(&self) -> Box<dyn Engine> {
        ferry_databases::mariadb(self.config.clone())
    }

    pub async fn connect(
        &self,
        user: &str,
        password: Option<&str>,
    ) -> Result<Conn, mysql_async::Error> {
        let options = OptsBuilder::default()
            .socket(Some(self.config.socket.to_string_lossy().into_owned()))
            .user(Some(user))
            .pass(password);
        Conn::new(options).await
    }

    pub async fn root(&self) -> Conn {
        self.connect("root", None).await.expect("root is let in")
    }

    pub async fn run<S: AsRef<str>>(&self, statements: impl IntoIterator<Item = S>) {
        let mut conn = self.root().await;
        for sql in statements {
            let sql = sql.as_ref();
            conn.query_drop(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
        conn.disconnect().await.expect("disconnects");
    }

    pub async fn text(&self, sql: &str) -> String {
        let rows: Vec<mysql_async::Row> =
            self.root().await.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let line = |row: mysql_async::Row| {
            let values = row.unwrap().into_iter().map(|v| match v {
                mysql_async::Value::NULL => "NULL".to_owned(),
                mysql_async::Value::Bytes(b) => String::from_utf8_lossy(&b).into_owned(),
                other => format!("{other:?}"),
            });
            values.collect::<Vec<_>>().join("|")
        };
        rows.into_iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn serve(dir: &Path, data: &Path, config: &MariadbConfig, options: &[&str]) -> Server {
    let mut command =
        program(Path::new("/usr/sbin/mariadbd"), (id("-u", "nobody"), id("-g", "nobody")));
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--socket={}", config.socket.display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()))
        // A server that starts removes what looks like a temporary table of its predecessor.
        .arg(format!("--tmpdir={}", dir.display()))
        .args([
            "--skip-networking",
            "--innodb-buffer-pool-size=16M",
            "--innodb-log-file-size=4M",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-doublewrite=0",
            "--skip-log-bin",
            "--event-scheduler=ON",
            "--plugin-load-add=auth_ed25519",
        ])
        .args(options);
    let log = dir.join("log");
    let mut server = Server::start(command, &log);
    wait("MariaDB", || {
        assert!(!server.gone(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
        std::os::unix::net::UnixStream::connect(&config.socket).is_ok()
    });
    server
}

pub fn spec(databases: &[&str], users: &[(&str, &str)]) -> Spec {
    Spec {
        account: "shop".parse().expect("a name"),
        uid: ACCOUNT.0,
        gid: ACCOUNT.1,
        databases: databases.iter().map(|d| d.parse().expect("a name")).collect(),
        users: users
            .iter()
            .map(|(name, host)| {
                let json = serde_json::json!({"engine": "mariadb", "name": name, "host": host});
                serde_json::from_value(json).expect("a user")
            })
            .collect(),
    }
}

/// A shop with everything that is hard to move.
pub const NASTY: &[&str] = &[
    "CREATE DATABASE shop_main CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci COMMENT 'the shop''s'",
    "CREATE DATABASE `shop-old` CHARACTER SET latin1 COLLATE latin1_german2_ci",
    "CREATE DATABASE other",
    "CREATE TABLE other.secret (a int)",
    "INSERT INTO other.secret VALUES (1)",
    "CREATE USER shop@localhost IDENTIFIED BY 'old password'",
    "CREATE USER shop@'127.0.0.1' IDENTIFIED VIA ed25519 USING 'ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY'",
    "CREATE USER reader@'%' IDENTIFIED BY 'read' REQUIRE NONE WITH MAX_QUERIES_PER_HOUR 500 MAX_STATEMENT_TIME 2.5 PASSWORD EXPIRE INTERVAL 90 DAY",
    "CREATE USER gone@localhost IDENTIFIED BY 'x' ACCOUNT LOCK",
    "CREATE USER bystander@localhost IDENTIFIED BY 'b'",
    "GRANT ALL ON other.* TO bystander@localhost",
    "GRANT ALL PRIVILEGES ON `shop\\_main`.* TO shop@localhost WITH GRANT OPTION",
    "GRANT ALL PRIVILEGES ON `shop-old`.* TO shop@localhost, shop@'127.0.0.1'",
    "USE shop_main",
    "SET sql_mode = ''",
    // Referenced before it exists in the order of names, and referring to itself.
    "CREATE TABLE z_parent (id int AUTO_INCREMENT PRIMARY KEY, up int, name varchar(40), KEY (up), CONSTRAINT self FOREIGN KEY (up) REFERENCES z_parent (id))",
    "CREATE TABLE a_child (id bigint unsigned AUTO_INCREMENT PRIMARY KEY, parent int, CONSTRAINT fk FOREIGN KEY (parent) REFERENCES z_parent (id) ON DELETE CASCADE) AUTO_INCREMENT = 1000",
    "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO', foreign_key_checks = 0",
    "INSERT INTO z_parent VALUES (0, NULL, 'zero'), (1, 2, 'one'), (2, 1, 'two \\\\ \\' \" \\n \\0 ; -- \\\\! touch')",
    "INSERT INTO a_child VALUES (18446744073709551614, 1), (5, NULL)",
    "SET SESSION sql_mode = ''",
    "CREATE TABLE dates (d date DEFAULT '0000-00-00', t datetime(6), ts timestamp(3) NOT NULL DEFAULT current_timestamp(3) ON UPDATE current_timestamp(3), y year, tm time(2))",
    "SET time_zone = '+05:30'",
    "INSERT INTO dates VALUES ('0000-00-00', '0000-00-00', '1980-02-01 03:04:05.678', 0, '-838:59:59.99'), ('2024-02-30', '9999-12-31 23:59:59.999999', 0, 2155, NULL)",
    "SET time_zone = DEFAULT",
    "CREATE TABLE numbers (f float, f2 float(10,4) unsigned zerofill, d double, n decimal(65,30), b bit(13), u bigint unsigned, t tinyint(1))",
    "INSERT INTO numbers VALUES (8388609, 1.2345, 0.1, -1.5, b'1010101010101', 18446744073709551615, -1), (1e-38/3, 0, 1.7976931348623157e308, 0, 0, 0, 0), (16777216, NULL, 5e-324, NULL, NULL, NULL, NULL), (-0.0, 3.14159, -0.0, 9, 1, 1, 1)",
    "CREATE TABLE bytes (id int PRIMARY KEY, b longblob, vb varbinary(300), bi binary(4), g geometry, u uuid, i inet6, j json, e enum('', 'a,b', 'ä'), s set('x', 'y'))",
    "INSERT INTO bytes VALUES (1, REPEAT(X'00FF0A0D1A5C275C2200', 60000), X'00', X'01', ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))', 4326), '123e4567-e89b-12d3-a456-426655440000', '2001:db8::1', '{\"a\": \"ü\\\\n\"}', 'ä', 'x,y'), (2, '', '', '', NULL, NULL, NULL, NULL, '', ''), (3, NULL, NULL, NULL, POINT(1.1, -0.0), NULL, NULL, '[]', NULL, NULL)",
    "CREATE TABLE made (a int, b int AS (a * 2) VIRTUAL, c varchar(20) AS (CONCAT('x', a)) STORED, hidden int INVISIBLE DEFAULT 7, CHECK (a < 1000), KEY (b), UNIQUE (c))",
    "INSERT INTO made (a) VALUES (1), (2)",
    "UPDATE made SET hidden = 9 WHERE a = 2",
    // No key, equal rows, an engine without transactions.
    "CREATE TABLE bag (t text, KEY k (t(10))) ENGINE = MyISAM CHARACTER SET utf8mb3 COMMENT = 'a ''bag'''",
    "INSERT INTO bag VALUES ('same'), ('same'), ('same'), (NULL), ('')",
    "CREATE TABLE words (w text, FULLTEXT (w)) ENGINE = MyISAM ROW_FORMAT = DYNAMIC",
    "INSERT INTO words VALUES ('much ado about nothing'), ('')",
    "CREATE TABLE parts (id int, y int) PARTITION BY RANGE (y) (PARTITION p0 VALUES LESS THAN (2000), PARTITION p1 VALUES LESS THAN MAXVALUE)",
    "INSERT INTO parts VALUES (1, 1999), (2, 2024)",
    "CREATE TABLE `tä``b %s.x` (`col``umn ü` int, `select` int)",
    "INSERT INTO `tä``b %s.x` VALUES (1, 2)",
    "CREATE TABLE `empty` (a int) ENGINE = Aria",
    "CREATE SEQUENCE seq START WITH 100 INCREMENT BY 7 CACHE 3",
    "SELECT NEXTVAL(seq)",
    "CREATE TABLE numbered (id int DEFAULT NEXTVAL(seq))",
    "INSERT INTO numbered VALUES (), ()",
    // Bytes that are UTF-8 where latin1 is meant, and every other byte.
    "CREATE TABLE `shop-old`.legacy (id int, t varchar(300), bin text CHARACTER SET latin1 COLLATE latin1_bin)",
    "INSERT INTO `shop-old`.legacy VALUES (1, X'C3A4C3B6', X'808182838485868788898A8B8C8D8E8F909192939495969798999A9B9C9D9E9FA0FF'), (2, 'é', '')",
    // One view uses another that comes later in the alphabet, and a function.
    "CREATE DEFINER = shop@localhost FUNCTION twice (x int) RETURNS int DETERMINISTIC COMMENT 'it''s' RETURN x * 2",
    "CREATE DEFINER = shop@localhost SQL SECURITY DEFINER VIEW z_view AS SELECT id, name, twice(id) AS t FROM z_parent WHERE id > 0 WITH CASCADED CHECK OPTION",
    "CREATE ALGORITHM = TEMPTABLE DEFINER = reader@'%' SQL SECURITY INVOKER VIEW a_view AS SELECT name, COUNT(*) AS `n ü` FROM z_view GROUP BY name",
    // Its text has the collation that a release means by a character set.
    "CREATE DEFINER = shop@localhost VIEW computed AS SELECT CAST(id AS CHAR) AS c FROM z_parent",
    "CREATE TABLE doomed (a int)",
    "CREATE DEFINER = shop@localhost VIEW broken AS SELECT a FROM doomed",
    "DROP TABLE doomed",
    "SET NAMES latin1",
    "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'",
    "CREATE DEFINER = shop@localhost PROCEDURE \"odd `name\" (IN p varchar(10) CHARACTER SET latin1, OUT o text) MODIFIES SQL DATA SQL SECURITY INVOKER BEGIN -- a comment \\!\n SET o = p || ' DELIMITER ; \\' || \"p\"; IF 1 THEN SELECT 1; END IF; END",
    "SET sql_mode = ''",
    "SET NAMES utf8mb4",
    "CREATE DEFINER = shop@localhost TRIGGER t_second BEFORE INSERT ON z_parent FOR EACH ROW SET NEW.name = CONCAT(NEW.name, ' ü2')",
    "CREATE DEFINER = shop@localhost TRIGGER a_first BEFORE INSERT ON z_parent FOR EACH ROW PRECEDES t_second SET NEW.name = CONCAT(NEW.name, ' 1')",
    "SET time_zone = '+03:00'",
    "CREATE DEFINER = shop@localhost EVENT every ON SCHEDULE EVERY 1 SECOND COMMENT 'c\\'\\\\' DO INSERT INTO bag VALUES ('event')",
    "ALTER EVENT every DISABLE",
    "CREATE DEFINER = shop@localhost EVENT `odd ``ü` ON SCHEDULE EVERY '1:30' HOUR_MINUTE STARTS '2030-01-01 00:00:00' ENDS '2031-01-01 00:00:00' DO BEGIN END",
    "CREATE DEFINER = shop@localhost EVENT past ON SCHEDULE AT '2020-01-01 00:00:00' ON COMPLETION PRESERVE DISABLE DO DO 1",
    "ALTER DEFINER = shop@localhost EVENT past ON COMPLETION NOT PRESERVE DISABLE",
    "CREATE DEFINER = shop@localhost EVENT off ON SCHEDULE EVERY 1 DAY DISABLE DO DO 1",
    "SET time_zone = DEFAULT",
    "ALTER DEFINER = shop@localhost EVENT every ENABLE",
    "GRANT SELECT ON shop_main.z_parent TO reader@'%'",
    "GRANT SELECT (f, d), UPDATE (f) ON shop_main.numbers TO reader@'%'",
    "GRANT EXECUTE ON FUNCTION shop_main.twice TO reader@'%' WITH GRANT OPTION",
    "GRANT EXECUTE ON PROCEDURE shop_main.`odd ``name` TO reader@'%'",
    "GRANT CREATE VIEW, SHOW VIEW, EVENT ON shop_main.* TO reader@'%'",
];

pub fn nasty_spec() -> Spec {
    spec(
        &["shop_main", "shop-old"],
        &[("shop", "localhost"), ("shop", "127.0.0.1"), ("reader", "%"), ("gone", "localhost")],
    )
}
