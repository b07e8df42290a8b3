//! What a MariaDB database holds, in words that every release uses alike.

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;

use super::grants::NEW_PRIVILEGES;
use super::inspect::{broken_views, user_condition};
use super::session::{Row, Session, ident, text};
use super::{grants, users};
use crate::manifest::{DatabaseManifest, digest};
use crate::model::Spec;

const WHAT: &str = "a database cannot be read for comparison";
/// The releases seen to write checks and generated columns alike: 10.11 to 11.8. Defaults are written
/// alike by all, queries of views by none.
const ALIKE: std::ops::Range<u32> = 101_100..110_900;

pub(super) async fn manifest(
    session: &mut Session,
    spec: &Spec,
    database: &str,
) -> Result<DatabaseManifest, Fault> {
    spec.check_owns(database)?;
    session.be_patient();
    let number = session.number();
    let release = format!("{}.{}", number / 10_000, number / 100 % 100);
    let mut reading = Reading {
        manifest: DatabaseManifest::new(EngineKind::Mariadb, release, database.to_owned()),
        session,
        db: text(database),
        database,
    };
    reading.manifest.alike = ALIKE.contains(&number);
    reading.schema().await?;
    reading.tables().await?;
    reading.columns().await?;
    reading.indexes().await?;
    reading.foreign_keys().await?;
    reading.checks_and_partitions().await?;
    reading.sequences().await?;
    reading.views().await?;
    reading.routines().await?;
    reading.triggers().await?;
    reading.events().await?;
    reading.grants(spec).await?;
    Ok(reading.manifest)
}

/// Names that releases have for the same thing.
fn alike(value: &str) -> String {
    match value.strip_prefix("utf8_") {
        Some(rest) => format!("utf8mb3_{rest}"),
        None if value == "utf8" => "utf8mb3".to_owned(),
        None => value.to_owned(),
    }
}

struct Reading<'a> {
    manifest: DatabaseManifest,
    session: &'a mut Session,
    database: &'a str,
    /// The database's name as a value in SQL.
    db: String,
}

impl Reading<'_> {
    async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, Fault> {
        let what = format!("database {} cannot be read for comparison", self.database);
        self.session.rows(&what, sql).await
    }

    /// Rows whose first column names an object; the others are facts of these names. A name with
    /// a `#` is a text: long ones are kept as their digest.
    async fn facts(&mut self, kind: &str, names: &[&str], sql: &str) -> Result<(), Fault> {
        for row in self.rows(sql).await? {
            let object = self.manifest.object(kind, &row.text(0));
            for (i, name) in names.iter().enumerate() {
                let value = row.opt(i + 1).unwrap_or_else(|| "NULL".to_owned());
                object.insert((*name).to_owned(), digest(&alike(&value)));
            }
        }
        Ok(())
    }

    async fn schema(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT '', DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME \
             FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}",
            self.db
        );
        self.facts("database", &["charset", "collation"], &sql).await
    }

    async fn tables(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT TABLE_NAME, ENGINE, TABLE_COLLATION, TABLE_COMMENT, COALESCE(AUTO_INCREMENT, 1), \
             CREATE_OPTIONS FROM information_schema.TABLES \
             WHERE TABLE_SCHEMA = {} AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')",
            self.db
        );
        let names = ["engine", "collation", "comment", "next auto_increment", "~options"];
        self.facts("table", &names, &sql).await?;
        for facts in self.manifest.objects.values_mut() {
            if let Some(options) = facts.get_mut("~options") {
                // Aria shows it only where it was written, though it is always so.
                *options = options.replace("page_checksum=1", "").trim().to_owned();
            }
        }
        let sql = format!(
            "SELECT c.TABLE_NAME, c.COLUMN_NAME, LOWER(c.DATA_TYPE), c.CHARACTER_SET_NAME \
             FROM information_schema.COLUMNS c JOIN information_schema.TABLES t \
             ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME \
             WHERE c.TABLE_SCHEMA = {} AND c.IS_GENERATED = 'NEVER' \
             AND t.TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') \
             ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION",
            self.db
        );
        let mut tables: Vec<(String, Vec<String>)> = Vec::new();
        for row in self.rows(&sql).await? {
            let table = row.text(0);
            let read = canonical(&row.text(1), &row.text(2), row.opt(3).is_some());
            match tables.last_mut() {
                Some((name, reads)) if *name == table => reads.push(read),
                _ => tables.push((table, vec![read])),
            }
        }
        for (table, reads) in tables {
            self.checksum(&table, &reads).await?;
        }
        Ok(())
    }

    /// A sum of the rows' digests: it does not depend on their order, and notices a row that is
    /// there twice.
    async fn checksum(&mut self, table: &str, reads: &[String]) -> Result<(), Fault> {
        let sql = format!(
            "SELECT COUNT(*), COUNT(h), SUM(CAST(CONV(LEFT(h, 15), 16, 10) AS UNSIGNED)) \
             FROM (SELECT MD5(CONCAT_WS('#', {})) AS h FROM {}.{}) AS r",
            reads.join(", "),
            ident(self.database),
            ident(table)
        );
        let rows = self.rows(&sql).await?;
        let row = rows.first().ok_or_else(|| Fault::bug(WHAT))?;
        if row.number(0) != row.number(1) {
            return Err(Fault::permanent(format!(
                "a row of table {}.{table} is too long to be compared",
                self.database
            ))
            .remedy("raise max_allowed_packet on both servers"));
        }
        let object = self.manifest.object("table", table);
        object.insert("rows".to_owned(), row.text(0));
        object.insert("checksum".to_owned(), row.text(2));
        Ok(())
    }

    async fn columns(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT c.TABLE_NAME, t.TABLE_TYPE, c.ORDINAL_POSITION, c.COLUMN_NAME, c.COLUMN_TYPE, \
             c.IS_NULLABLE, c.COLUMN_DEFAULT, c.EXTRA, c.COLLATION_NAME, c.COLUMN_COMMENT, \
             c.GENERATION_EXPRESSION FROM information_schema.COLUMNS c \
             JOIN information_schema.TABLES t ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME \
             WHERE c.TABLE_SCHEMA = {} AND t.TABLE_TYPE <> 'SEQUENCE'",
            self.db
        );
        let broken = broken_views(self.session, self.database).await?;
        for row in self.rows(&sql).await? {
            let view = row.text(1) == "VIEW";
            if view && broken.contains(&row.text(0)) {
                continue;
            }
            let object = self.manifest.object(if view { "view" } else { "table" }, &row.text(0));
            let column = format!("column {:04} {}", row.number(2), row.text(3));
            let shape = format!(
                "{}, nullable {}, default {}, {}, comment {}",
                row.text(4),
                row.text(5),
                row.opt(6).unwrap_or_else(|| "none".to_owned()),
                row.text(7),
                row.text(9)
            );
            object.insert(column.clone(), digest(&shape));
            // What a view computes has the collation that the release means by a character set.
            let computed = if view { "~" } else { "" };
            object.insert(format!("{computed}{column}, collation"), alike(&row.text(8)));
            if let Some(expression) = row.opt(10) {
                object.insert(format!("^{column}, expression"), digest(&expression));
            }
        }
        Ok(())
    }

    async fn indexes(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT TABLE_NAME, INDEX_NAME, CONCAT_WS(' ', IF(NON_UNIQUE, 'plain', 'unique'), INDEX_TYPE, \
             GROUP_CONCAT(CONCAT(COLUMN_NAME, IFNULL(CONCAT('(', SUB_PART, ')'), ''), IFNULL(COLLATION, '')) \
             ORDER BY SEQ_IN_INDEX SEPARATOR ',')) FROM information_schema.STATISTICS \
             WHERE TABLE_SCHEMA = {} GROUP BY TABLE_NAME, INDEX_NAME, NON_UNIQUE, INDEX_TYPE",
            self.db
        );
        self.named_facts("index", &sql).await
    }

    async fn foreign_keys(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT k.TABLE_NAME, k.CONSTRAINT_NAME, CONCAT_WS(' ', r.UPDATE_RULE, r.DELETE_RULE, GROUP_CONCAT(\
             CONCAT(k.COLUMN_NAME, '->', k.REFERENCED_TABLE_SCHEMA, '.', k.REFERENCED_TABLE_NAME, '.', k.REFERENCED_COLUMN_NAME) \
             ORDER BY k.ORDINAL_POSITION SEPARATOR ',')) FROM information_schema.KEY_COLUMN_USAGE k \
             JOIN information_schema.REFERENTIAL_CONSTRAINTS r ON r.CONSTRAINT_SCHEMA = k.CONSTRAINT_SCHEMA \
             AND r.CONSTRAINT_NAME = k.CONSTRAINT_NAME AND r.TABLE_NAME = k.TABLE_NAME \
             WHERE k.TABLE_SCHEMA = {} AND k.REFERENCED_TABLE_NAME IS NOT NULL \
             GROUP BY k.TABLE_NAME, k.CONSTRAINT_NAME, r.UPDATE_RULE, r.DELETE_RULE",
            self.db
        );
        self.named_facts("foreign key", &sql).await
    }

    async fn checks_and_partitions(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT TABLE_NAME, CONSTRAINT_NAME, CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS \
             WHERE CONSTRAINT_SCHEMA = {}",
            self.db
        );
        self.named_facts("^check", &sql).await?;
        let sql = format!(
            "SELECT TABLE_NAME, CONCAT(LPAD(PARTITION_ORDINAL_POSITION, 5, '0'), ' ', \
             LPAD(COALESCE(SUBPARTITION_ORDINAL_POSITION, 0), 5, '0')), \
             CONCAT_WS(' ', PARTITION_NAME, SUBPARTITION_NAME, PARTITION_METHOD, PARTITION_DESCRIPTION) \
             FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = {} AND PARTITION_NAME IS NOT NULL",
            self.db
        );
        self.named_facts("partition", &sql).await
    }

    /// Rows of table, name and text.
    async fn named_facts(&mut self, fact: &str, sql: &str) -> Result<(), Fault> {
        for row in self.rows(sql).await? {
            let object = self.manifest.object("table", &row.text(0));
            object.insert(format!("{fact} {}", row.text(1)), digest(&row.text(2)));
        }
        Ok(())
    }

    async fn sequences(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_TYPE = 'SEQUENCE'",
            self.db
        );
        for row in self.rows(&sql).await? {
            let name = row.text(0);
            let names =
                ["next value", "minimum", "maximum", "start", "increment", "cache", "cycles"];
            let sql = format!(
                "SELECT {}, next_not_cached_value, minimum_value, maximum_value, start_value, increment, \
                 cache_size, cycle_option FROM {}.{}",
                text(&name),
                ident(self.database),
                ident(&name)
            );
            self.facts("sequence", &names, &sql).await?;
        }
        Ok(())
    }

    async fn views(&mut self) -> Result<(), Fault> {
        let broken = broken_views(self.session, self.database).await?;
        let sql = format!(
            "SELECT TABLE_NAME, DEFINER, SECURITY_TYPE, CHECK_OPTION, ALGORITHM, CHARACTER_SET_CLIENT, \
             COLLATION_CONNECTION, VIEW_DEFINITION FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {}",
            self.db
        );
        let names = [
            "definer",
            "security",
            "check option",
            "algorithm",
            "charset",
            "collation",
            "~definition",
        ];
        self.facts("view", &names, &sql).await?;
        for view in broken {
            self.manifest.objects.remove(&format!("view {view}"));
        }
        Ok(())
    }

    async fn routines(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT CONCAT(LOWER(ROUTINE_TYPE), ' ', ROUTINE_NAME), DEFINER, SECURITY_TYPE, SQL_DATA_ACCESS, \
             IS_DETERMINISTIC, SQL_MODE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, DATABASE_COLLATION, \
             DTD_IDENTIFIER, ROUTINE_COMMENT, ROUTINE_DEFINITION FROM information_schema.ROUTINES \
             WHERE ROUTINE_SCHEMA = {}",
            self.db
        );
        let names = [
            "definer",
            "security",
            "data access",
            "deterministic",
            "SQL mode",
            "charset",
            "collation",
            "database collation",
            "returns",
            "comment",
            "body",
        ];
        self.facts("routine", &names, &sql).await?;
        let sql = format!(
            "SELECT CONCAT(LOWER(ROUTINE_TYPE), ' ', SPECIFIC_NAME), ORDINAL_POSITION, CONCAT_WS(' ', \
             PARAMETER_MODE, PARAMETER_NAME, DTD_IDENTIFIER), COLLATION_NAME FROM information_schema.PARAMETERS \
             WHERE SPECIFIC_SCHEMA = {}",
            self.db
        );
        for row in self.rows(&sql).await? {
            let object = self.manifest.object("routine", &row.text(0));
            let value = format!("{} {}", row.text(2), alike(&row.text(3)));
            object.insert(format!("parameter {:04}", row.number(1)), digest(&value));
        }
        Ok(())
    }

    async fn triggers(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT TRIGGER_NAME, EVENT_OBJECT_TABLE, EVENT_MANIPULATION, ACTION_TIMING, ACTION_ORDER, DEFINER, \
             SQL_MODE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, DATABASE_COLLATION, ACTION_STATEMENT \
             FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {}",
            self.db
        );
        let names = [
            "table",
            "event",
            "timing",
            "order",
            "definer",
            "SQL mode",
            "charset",
            "collation",
            "database collation",
            "body",
        ];
        self.facts("trigger", &names, &sql).await
    }

    /// Whether an event is on is not compared: at both ends the fence has it off.
    async fn events(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT EVENT_NAME, DEFINER, TIME_ZONE, EVENT_TYPE, EXECUTE_AT, INTERVAL_VALUE, INTERVAL_FIELD, \
             STARTS, ENDS, ON_COMPLETION, EVENT_COMMENT, SQL_MODE, CHARACTER_SET_CLIENT, \
             COLLATION_CONNECTION, DATABASE_COLLATION, EVENT_DEFINITION \
             FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {}",
            self.db
        );
        let names = [
            "definer",
            "time zone",
            "type",
            "at",
            "every",
            "unit",
            "starts",
            "ends",
            "on completion",
            "comment",
            "SQL mode",
            "charset",
            "collation",
            "database collation",
            "body",
        ];
        self.facts("event", &names, &sql).await
    }

    async fn grants(&mut self, spec: &Spec) -> Result<(), Fault> {
        let logins = users::read(self.session, &user_condition(spec, "User", "Host")).await?;
        for login in logins {
            let (given, _) = grants::read(self.session, spec, &login.name, &login.host).await?;
            for grant in given.iter().filter(|g| g.database == self.database) {
                let privileges: Vec<&str> = grant
                    .privileges
                    .iter()
                    .map(String::as_str)
                    .filter(|p| !NEW_PRIVILEGES.contains(p))
                    .collect();
                let object =
                    self.manifest.object("user", &format!("{}@{}", login.name, login.host));
                let mut value = privileges.join(", ");
                if grant.grant_option {
                    value.push_str(" with grant option");
                }
                object.insert(format!("grant on {:?}", grant.scope), value);
            }
        }
        Ok(())
    }
}

/// A column as a text without the separator, the same in every release and character set of the
/// connection; NULL is a text that no value has.
fn canonical(name: &str, data_type: &str, is_text: bool) -> String {
    let column = ident(name);
    let value = match data_type {
        "float" => format!("CAST(CAST({column} AS DOUBLE) AS CHAR)"),
        "double" | "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year"
        | "date" | "time" | "datetime" | "timestamp" | "uuid" | "inet4" | "inet6"
            if !is_text =>
        {
            format!("CAST({column} AS CHAR)")
        }
        // The digest is of the value's own bytes.
        _ => format!("MD5({column})"),
    };
    format!("IFNULL({value}, 'N')")
}
