//! Replaces the content of a database by a dump, with the account's rights only: by the vendor's
//! client, as the account's Unix user and a temporary role that is a member of the account's.

use ferry_proto::Fault;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::dump::DumpFacts;
use super::filter::Filter;
use super::provision::{create_database, drop_database, exact_grants, is_invalid, set_defaults};
use super::record::{DatabaseRecord, PostgresqlRecord};
use super::session::{Session, ident, text};
use super::{PostgresqlConfig, recording, target, temporary, tools};
use crate::child::{Program, RunAs, Running};
use crate::engine::Progress;
use crate::frame::{FrameReader, Section};
use crate::model::{LoadReport, Spec};
use crate::secret::random_password;

/// Yields a row if anything was created in a database since it was (objects of the server's own
/// have object ids below 16384), or if its schema `public` is not as it comes.
pub(super) const UNTOUCHED: &str = "SELECT 1 FROM pg_class WHERE oid >= 16384 UNION ALL \
     SELECT 1 FROM pg_namespace WHERE oid >= 16384 UNION ALL SELECT 1 FROM pg_proc WHERE oid >= 16384 UNION ALL \
     SELECT 1 FROM pg_type WHERE oid >= 16384 UNION ALL SELECT 1 FROM pg_extension WHERE oid >= 16384 UNION ALL \
     SELECT 1 FROM pg_operator WHERE oid >= 16384 UNION ALL SELECT 1 FROM pg_cast WHERE oid >= 16384 UNION ALL \
     SELECT 1 FROM pg_collation WHERE oid >= 16384 UNION ALL SELECT 1 FROM pg_conversion WHERE oid >= 16384 UNION ALL \
     SELECT 1 FROM pg_language WHERE oid >= 16384 UNION ALL SELECT 1 FROM pg_ts_config WHERE oid >= 16384 UNION ALL \
     SELECT 1 FROM pg_ts_dict WHERE oid >= 16384 UNION ALL SELECT 1 FROM pg_default_acl UNION ALL \
     SELECT 1 FROM pg_largeobject_metadata UNION ALL SELECT 1 FROM pg_publication UNION ALL \
     SELECT 1 FROM pg_event_trigger UNION ALL SELECT 1 FROM pg_foreign_server UNION ALL \
     SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner \
     WHERE n.nspname = 'public' AND (r.rolsuper OR r.rolname = 'pg_database_owner')) LIMIT 1";

pub(super) async fn load(
    config: &PostgresqlConfig,
    spec: &Spec,
    record: &PostgresqlRecord,
    database: &str,
    input: &mut (dyn AsyncRead + Send + Unpin),
    progress: Progress<'_>,
) -> Result<LoadReport, Fault> {
    spec.check_unix_user()?;
    record.check(spec)?;
    let session = Session::exclusive(config, spec).await?;
    temporary::drop_role(config, &session, spec).await?;
    let loading = Loading {
        config,
        spec,
        described: record.database(database)?,
        major: record.major,
        session,
    };
    let loaded = loading.run(input, progress).await;
    // Whatever happened, nobody keeps rights that no plan names.
    let dropped = temporary::drop_role(config, &loading.session, spec).await;
    let report = loaded?;
    dropped?;
    loading.finish().await?;
    Ok(report)
}

struct Loading<'a> {
    config: &'a PostgresqlConfig,
    spec: &'a Spec,
    described: &'a DatabaseRecord,
    /// The source's release.
    major: u32,
    session: Session,
}

impl Loading<'_> {
    async fn run(
        &self,
        input: &mut (dyn AsyncRead + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<LoadReport, Fault> {
        let mut reader = FrameReader::start(input, progress).await?;
        self.facts(&mut reader).await?;
        self.empty_database().await?;
        let password = temporary::make(&self.session, self.spec).await?;
        temporary::admit(&self.session, self.spec, &self.described.name, true).await?;
        if reader.next().await? != Some(Section::Sql) {
            return Err(Fault::permanent("a dump has no content"));
        }
        let notes = self.content(&mut reader, &password).await?;
        if reader.next().await?.is_some() {
            return Err(Fault::permanent("a dump goes on after its content"));
        }
        temporary::admit(&self.session, self.spec, &self.described.name, false).await?;
        Ok(LoadReport { bytes: reader.bytes(), notes })
    }

    async fn facts(&self, reader: &mut FrameReader<'_>) -> Result<(), Fault> {
        if reader.next().await? != Some(Section::Facts) {
            return Err(Fault::permanent("a dump does not say what it is"));
        }
        let facts: DumpFacts = reader.json().await?;
        if facts.engine != "postgresql" || facts.database != self.described.name {
            return Err(Fault::permanent(format!(
                "what arrived for database {} is a dump of another one",
                self.described.name
            )));
        }
        Ok(())
    }

    /// Drops what is there and creates the database anew, unless it is as it was created; then
    /// creates in it what only a superuser can. Whether it bears the mark stays.
    async fn empty_database(&self) -> Result<(), Fault> {
        let name = &self.described.name;
        let present = target::present(&self.session, self.spec).await?;
        let marked = present.databases.get(name).copied();
        if marked.is_none() || !self.is_untouched().await? {
            let mark = self.spec.mark();
            let comment = match marked {
                Some(false) => self.described.comment.as_deref(),
                Some(true) | None => Some(mark.as_str()),
            };
            drop_database(&self.session, &ident(name)).await?;
            create_database(self.config, &self.session, self.spec, self.described, comment).await?;
        }
        let inside = Session::open(self.config, name).await?;
        self.public_schema(&inside).await?;
        self.extensions(&inside).await
    }

    /// Whether the database that is there is empty and shaped as described: dropping and creating
    /// one takes longer than an outage should.
    async fn is_untouched(&self) -> Result<bool, Fault> {
        let what = "a database cannot be looked into";
        let name = &self.described.name;
        if is_invalid(&self.session, name).await? {
            return Ok(false);
        }
        let inside = Session::open(self.config, name).await?;
        let owner = self.described.owner.as_deref().unwrap_or(&self.config.admin);
        let sql = format!(
            "SELECT d.datname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba \
             WHERE d.datname = {} AND r.rolname = {} AND pg_encoding_to_char(d.encoding) = {}",
            text(name),
            text(owner),
            text(&self.described.encoding)
        );
        let shaped = !inside.rows(what, &sql).await?.is_empty()
            && recording::locale(&inside, name).await? == self.described.locale;
        Ok(shaped && inside.rows(what, UNTOUCHED).await?.is_empty())
    }

    /// While a dump is loaded, every role of the account may create in `public`: whoever owns a
    /// table there could once.
    async fn public_schema(&self, inside: &Session) -> Result<(), Fault> {
        let what =
            format!("the schema public of database {} cannot be prepared", self.described.name);
        let Some(public) = &self.described.public else {
            return inside.run(&what, "DROP SCHEMA IF EXISTS public").await;
        };
        let mut sql = String::from("BEGIN;");
        let database_owner = self.described.owner.as_deref().filter(|_| self.major >= 15);
        match &public.owner {
            Some(owner) => sql.push_str(&format!("ALTER SCHEMA public OWNER TO {};", ident(owner))),
            // There the owner of the database may do what the owner of the schema may.
            None if inside.major() < 14 => {
                if let Some(owner) = database_owner {
                    sql.push_str(&format!("ALTER SCHEMA public OWNER TO {};", ident(owner)));
                }
            }
            None => {}
        }
        for user in &self.spec.users {
            sql.push_str(&format!("GRANT ALL ON SCHEMA public TO {};", ident(user.name.as_str())));
        }
        sql.push_str("COMMIT");
        inside.run(&what, &sql).await
    }

    /// The database has no content of the account's yet, so that nothing of it can interfere.
    async fn extensions(&self, inside: &Session) -> Result<(), Fault> {
        for extension in &self.described.extensions {
            let what = format!("extension {} cannot be created", extension.name);
            let schema = ident(&extension.schema);
            let server_owned = ["pg_catalog", "public", "information_schema"];
            if !server_owned.contains(&extension.schema.as_str()) {
                let owner = self.described.owner.as_deref().unwrap_or(&self.config.admin);
                let sql =
                    format!("CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {}", ident(owner));
                inside.run(&what, &sql).await?;
            }
            let create = format!(
                "CREATE EXTENSION IF NOT EXISTS {} SCHEMA {schema} CASCADE",
                ident(&extension.name)
            );
            if let Some(owner) = &extension.owner {
                // An extension that the server trusts can belong to whoever created it.
                let own = format!("SET ROLE {}; {create}", ident(owner));
                let created = inside.try_run(&own).await;
                inside.run(&what, "RESET ROLE").await?;
                match created {
                    Ok(()) => continue,
                    Err(error) if error.as_db_error().is_some() => {}
                    Err(error) => return Err(super::session::refused(&what, &error)),
                }
            }
            inside.run(&what, &create).await?;
        }
        Ok(())
    }

    async fn content(
        &self,
        reader: &mut FrameReader<'_>,
        password: &str,
    ) -> Result<Vec<String>, Fault> {
        let mut running = self.start_client(password).await?;
        let output = running.take_output();
        // What a client prints is of no interest, but it must not be kept from printing it.
        let drain = tokio::spawn(async move {
            let mut sink = [0; 4096];
            if let Some(mut output) = output {
                while output.read(&mut sink).await.is_ok_and(|n| n > 0) {}
            }
        });
        let mut filter = Filter::new(self.session.major(), &self.described.encoding);
        let mut taking = true;
        // A client that has given up takes nothing more; its words are worth more than ours.
        while taking {
            let Some(chunk) = reader.chunk().await? else { break };
            taking = running.write(&filter.feed(&chunk)?).await?;
        }
        if taking {
            let rest = filter.finish()?;
            taking = running.write(&rest).await?;
        }
        let finished = running.finish().await;
        drain.abort();
        finished
            .map_err(|f| f.context(format!("database {} cannot be loaded", self.described.name)))?;
        if !taking {
            return Err(Fault::permanent("the PostgreSQL client stopped before the dump's end"));
        }
        Ok(filter.notes())
    }

    async fn start_client(&self, password: &str) -> Result<Running, Fault> {
        let tool = tools::find(self.config, self.session.major(), "psql").await?;
        let help = Program::new(&tool).arg("--help=commands").output(1 << 20).await?;
        let can_restrict = String::from_utf8_lossy(&help).contains("\\restrict");
        let program = Program::new(&tool)
            .run_as(RunAs { uid: self.spec.uid, gid: self.spec.gid })
            .confined()
            .env("PGHOST", self.config.host.clone())
            .env("PGUSER", temporary::name(self.spec))
            // Only the account's user and root can read it there.
            .env("PGPASSWORD", password)
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable")
            .env("PSQL_HISTORY", "/dev/null")
            .env("PGCLIENTENCODING", self.described.encoding.clone())
            .args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-"])
            .arg(format!("--dbname={}", self.described.name));
        let mut running = tools::prepared(program, self.config).start()?;
        if can_restrict {
            // From here on psql takes no other order: nobody else knows the key.
            running.write(format!("\\restrict {}\n", random_password()).as_bytes()).await?;
        }
        Ok(running)
    }

    /// What is set once the content is there.
    async fn finish(&self) -> Result<(), Fault> {
        let inside = Session::open(self.config, &self.described.name).await?;
        if let Some(public) = &self.described.public {
            let sql = format!(
                "BEGIN; {} COMMIT",
                exact_grants(self.spec, "SCHEMA public", &public.grants)
            );
            inside.run("the rights on the schema public cannot be set", &sql).await?;
        }
        set_defaults(&self.session, self.described).await
    }
}
