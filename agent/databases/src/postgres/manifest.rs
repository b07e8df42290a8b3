//! What a PostgreSQL database holds, in words that every release uses alike.
//!
//! It is read by the superuser, so it runs nothing of the account's: catalogues, and the output
//! functions of types, which only a superuser can make.

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;

use super::PostgresqlConfig;
use super::catalogue::{self, Query};
use super::inspect::role_list;
use super::record::may_carry;
use super::recording;
use super::session::{Session, ident, text};
use crate::manifest::{DatabaseManifest, digest};
use crate::model::Spec;

/// The releases seen to write expressions alike. Queries are not: since 16 a view of one table names
/// its columns without the table.
const ALIKE: std::ops::RangeInclusive<u32> = 15..=17;

pub(super) async fn manifest(
    config: &PostgresqlConfig,
    spec: &Spec,
    database: &str,
) -> Result<DatabaseManifest, Fault> {
    spec.check_owns(database)?;
    let mut session = Session::open(config, database).await?;
    session.be_patient();
    let release = session.major().to_string();
    let mut reading = Reading {
        manifest: DatabaseManifest::new(EngineKind::Postgresql, release, database.to_owned()),
        what: format!("database {database} cannot be read for comparison"),
        session,
    };
    reading.manifest.alike = ALIKE.contains(&reading.session.major());
    for query in catalogue::QUERIES {
        reading.facts(query).await?;
    }
    reading.tables().await?;
    reading.sequences().await?;
    reading.large_objects().await?;
    reading.database(spec, database).await?;
    reading.roles(spec).await?;
    Ok(reading.manifest)
}

struct Reading {
    manifest: DatabaseManifest,
    session: Session,
    what: String,
}

/// A 60-bit number of a text's digest.
fn number(value: &str) -> String {
    format!("('x' || substr(md5({value}), 1, 15))::bit(60)::bigint::numeric")
}

impl Reading {
    /// Rows of object, fact and value.
    async fn facts(&mut self, query: &Query) -> Result<(), Fault> {
        if self.session.major() < query.since {
            return Ok(());
        }
        for row in self.session.rows(&self.what, query.sql).await? {
            let object = self.manifest.object(query.kind, &row.text(0));
            let value = row.opt(2).unwrap_or("NULL");
            object.insert(row.text(1), digest(value));
        }
        Ok(())
    }

    /// A sum of the rows' digests: it does not depend on their order, and notices a row that is
    /// there twice.
    async fn tables(&mut self) -> Result<(), Fault> {
        for row in self.session.rows(&self.what, catalogue::TABLES).await? {
            let (schema, table) = (row.text(0), row.text(1));
            let columns = row.text(2);
            let sql = format!(
                "SELECT count(*), coalesce(sum({}), 0) FROM ONLY {}.{} t",
                number(&format!("ROW({columns})::text")),
                ident(&schema),
                ident(&table)
            );
            let sums = self.session.rows(&self.what, &sql).await?;
            let sums = sums.first().ok_or_else(|| Fault::bug(self.what.clone()))?;
            let object = self.manifest.object("relation", &format!("{schema}.{table}"));
            object.insert("rows".to_owned(), sums.text(0));
            object.insert("checksum".to_owned(), sums.text(1));
        }
        Ok(())
    }

    async fn sequences(&mut self) -> Result<(), Fault> {
        for row in self.session.rows(&self.what, catalogue::SEQUENCES).await? {
            let (schema, name) = (row.text(0), row.text(1));
            let sql =
                format!("SELECT last_value, is_called FROM {}.{}", ident(&schema), ident(&name));
            let values = self.session.rows(&self.what, &sql).await?;
            let object = self.manifest.object("relation", &format!("{schema}.{name}"));
            if let Some(value) = values.first() {
                object.insert("last value".to_owned(), value.text(0));
                object.insert("is called".to_owned(), value.text(1));
            }
            object.insert("sequence".to_owned(), row.text(2));
        }
        Ok(())
    }

    async fn large_objects(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT count(*), coalesce(sum({}), 0) FROM pg_largeobject_metadata m JOIN pg_roles r ON r.oid = m.lomowner",
            number(
                "m.oid::text || ' ' || r.rolname || ' ' || coalesce(m.lomacl::text, '') || md5(lo_get(m.oid))"
            )
        );
        let rows = self.session.rows(&self.what, &sql).await?;
        if let Some(row) = rows.first() {
            let object = self.manifest.object("large", "objects");
            object.insert("count".to_owned(), row.text(0));
            object.insert("checksum".to_owned(), row.text(1));
        }
        Ok(())
    }

    /// Encoding, locale, owner and settings. Rights on the database are given when it is opened.
    async fn database(&mut self, spec: &Spec, name: &str) -> Result<(), Fault> {
        let sql = format!(
            "SELECT pg_encoding_to_char(d.encoding), CASE WHEN r.rolsuper THEN '(server)' ELSE r.rolname END \
             FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = {}",
            text(name)
        );
        let rows = self.session.rows(&self.what, &sql).await?;
        let locale = recording::locale(&self.session, name).await?;
        let sql = format!(
            "SELECT coalesce(r.rolname, ''), c FROM pg_db_role_setting x CROSS JOIN unnest(x.setconfig) c \
             LEFT JOIN pg_roles r ON r.oid = x.setrole LEFT JOIN pg_settings s ON s.name = split_part(c, '=', 1) \
             WHERE x.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND (x.setrole = 0 OR r.rolname IN {}) AND coalesce(s.context, 'user') = 'user' ORDER BY 1, 2",
            role_list(spec)
        );
        let settings = self.session.rows(&self.what, &sql).await?;
        let settings: Vec<String> = settings
            .iter()
            .filter(|r| may_carry(r.text(1).split('=').next().unwrap_or_default()))
            .map(|r| format!("{} {}", r.text(0), r.text(1)))
            .collect();
        let object = self.manifest.object("database", "");
        if let Some(row) = rows.first() {
            object.insert("encoding".to_owned(), row.text(0));
            object.insert("owner".to_owned(), row.text(1));
        }
        object.insert("locale".to_owned(), format!("{locale:?}"));
        object.insert("settings".to_owned(), digest(&settings.join("; ")));
        Ok(())
    }

    /// Attributes and memberships. Whether a role may log in is not compared: at both ends the
    /// fence keeps it out.
    async fn roles(&mut self, spec: &Spec) -> Result<(), Fault> {
        let sql = format!(
            "SELECT rolname, rolinherit, rolconnlimit, nullif(rolvaliduntil::text, 'infinity'), \
             md5(coalesce(rolpassword, '')) FROM pg_authid WHERE rolname IN {}",
            role_list(spec)
        );
        for row in self.session.rows(&self.what, &sql).await? {
            let memberships = recording::memberships(&self.session, spec, &row.text(0)).await?;
            let memberships: Vec<String> = memberships
                .iter()
                .map(|m| format!("{}{}", m.role, if m.admin { " with admin option" } else { "" }))
                .collect();
            let object = self.manifest.object("role", &row.text(0));
            object.insert("inherits".to_owned(), row.text(1));
            object.insert("connection limit".to_owned(), row.text(2));
            object.insert("valid until".to_owned(), row.text(3));
            // Of the verifier, so that the manifest shows none.
            object.insert("password digest".to_owned(), row.text(4));
            object.insert("member of".to_owned(), memberships.join(", "));
        }
        Ok(())
    }
}
