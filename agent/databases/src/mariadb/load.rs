//! Replaces the content of a database by a dump, with the account's rights only: rows through the
//! vendor's client as the account's Unix user and a temporary database user, stored objects one
//! statement at a time.

use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::ddl::DdlFilter;
use super::dump::{DumpFacts, character_set_collations};
use super::grants::Scope;
use super::objects::{Kind, StoredObject};
use super::record::{DatabaseRecord, MariadbRecord};
use super::session::{Session, ident, text};
use super::single::{Refusal, Single};
use super::temporary::{self, Purpose, Temporary};
use super::{MariadbConfig, files, provision, target};
use crate::child::{Program, RunAs, Running, first_existing};
use crate::engine::Progress;
use crate::frame::{FrameReader, Section};
use crate::model::{LoadReport, Spec};

/// Views wait in memory until all they need is there: together at most this much.
const MAX_VIEWS: usize = 64 * 1024 * 1024;
/// No such table, invalid view, no such routine, no such column: something it needs is not there
/// yet.
const NOT_YET: &[u16] = &[1146, 1356, 1305, 1054];

pub(super) async fn load(
    config: &MariadbConfig,
    spec: &Spec,
    record: &MariadbRecord,
    database: &str,
    input: &mut (dyn AsyncRead + Send + Unpin),
    progress: Progress<'_>,
) -> Result<LoadReport, Fault> {
    spec.check_unix_user()?;
    record.check(spec)?;
    let described = record.database(database)?;
    let mut session = Session::open(config).await?;
    temporary::drop_all(&mut session, spec).await?;
    let mut loading = Loading { config, spec, described, session };
    let loaded = loading.run(input, progress).await;
    // Whatever happened, nobody keeps rights that no plan names.
    let dropped = temporary::drop_all(&mut loading.session, spec).await;
    let report = loaded?;
    dropped?;
    for user in &record.users {
        let on_objects = |scope: &Scope| *scope != Scope::Database;
        provision::give(&mut loading.session, user, on_objects, Some(database)).await?;
    }
    files::sync(&mut loading.session, database).await?;
    Ok(report)
}

struct Loading<'a> {
    config: &'a MariadbConfig,
    spec: &'a Spec,
    described: &'a DatabaseRecord,
    session: Session,
}

impl Loading<'_> {
    async fn run(
        &mut self,
        input: &mut (dyn AsyncRead + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<LoadReport, Fault> {
        let mut reader = FrameReader::start(input, progress).await?;
        let facts = self.facts(&mut reader).await?;
        self.empty_database().await?;
        let loader = temporary::make(&mut self.session, self.spec, Purpose::Load).await?;
        let collations = match character_set_collations(&mut self.session).await? {
            Some(_) => format!(
                "SET SESSION character_set_collations = {}",
                text(&facts.character_set_collations)
            ),
            None => "DO 0".to_owned(),
        };
        let mut definer = None;
        let mut views: Vec<StoredObject> = Vec::new();
        let mut view_bytes = 0;
        while let Some(section) = reader.next().await? {
            match section {
                Section::Facts => {
                    return Err(Fault::permanent("a dump describes itself twice"));
                }
                Section::Sql => self.rows(&mut reader, &loader, &collations).await?,
                Section::Object => {
                    let object: StoredObject = reader.json().await?;
                    object.check(self.spec, &self.described.name)?;
                    if object.kind == Kind::View {
                        view_bytes += object.tail.len();
                        if view_bytes > MAX_VIEWS {
                            return Err(Fault::permanent("a dump has more views than Ferry takes"));
                        }
                        views.push(object);
                        continue;
                    }
                    let single = self.definer(&mut definer, &collations).await?;
                    if matches!(object.kind, Kind::Trigger | Kind::Event) {
                        define_views(single, &mut views, &self.described.name).await?;
                    }
                    self.define(&mut definer, &object).await?;
                }
            }
        }
        if !views.is_empty() {
            let single = self.definer(&mut definer, &collations).await?;
            define_views(single, &mut views, &self.described.name).await?;
        }
        Ok(LoadReport { bytes: reader.bytes(), notes: Vec::new() })
    }

    async fn facts(&self, reader: &mut FrameReader<'_>) -> Result<DumpFacts, Fault> {
        if reader.next().await? != Some(Section::Facts) {
            return Err(Fault::permanent("a dump does not say what it is"));
        }
        let facts: DumpFacts = reader.json().await?;
        if facts.engine != "mariadb" || facts.database != self.described.name {
            return Err(Fault::permanent(format!(
                "what arrived for database {} is a dump of another one",
                self.described.name
            )));
        }
        let words = facts.character_set_collations.bytes();
        if words.len() > 4096
            || !words.into_iter().all(|b| b.is_ascii_alphanumeric() || b"_=, ".contains(&b))
        {
            return Err(Fault::permanent("a dump's character sets are not words"));
        }
        Ok(facts)
    }

    /// Drops what is there and creates the database anew. Whether it bears the mark stays.
    async fn empty_database(&mut self) -> Result<(), Fault> {
        let name = &self.described.name;
        let comment = target::comment(&mut self.session, name).await?;
        let comment = comment.unwrap_or_else(|| self.spec.mark());
        files::drop_database(&mut self.session, name).await?;
        provision::create_database(&mut self.session, self.described, &comment).await
    }

    async fn rows(
        &mut self,
        reader: &mut FrameReader<'_>,
        loader: &Temporary,
        collations: &str,
    ) -> Result<(), Fault> {
        let mut running =
            start_client(self.config, self.spec, loader, &self.described.name).await?;
        let output = running.take_output();
        // What a client prints is of no interest, but it must not be kept from printing it.
        let drain = tokio::spawn(async move {
            let mut sink = [0; 4096];
            if let Some(mut output) = output {
                while output.read(&mut sink).await.is_ok_and(|n| n > 0) {}
            }
        });
        let mut filter = DdlFilter::new(self.session.number());
        let mut taking = running.write(format!("{collations};\n").as_bytes()).await?;
        // A client that has given up takes nothing more; its words are worth more than ours.
        while taking {
            let Some(chunk) = reader.chunk().await? else { break };
            taking = running.write(&filter.feed(&chunk)).await?;
        }
        if taking {
            running.write(&filter.finish()).await?;
        }
        let finished = running.finish().await;
        drain.abort();
        let context = format!("database {} cannot be loaded", self.described.name);
        finished.map_err(|fault| explain(fault.context(context)))?;
        if !taking {
            return Err(Fault::permanent("the MariaDB client stopped before the dump's end"));
        }
        Ok(())
    }

    async fn definer<'s>(
        &mut self,
        definer: &'s mut Option<Single>,
        collations: &str,
    ) -> Result<&'s mut Single, Fault> {
        if definer.is_none() {
            let user = temporary::make(&mut self.session, self.spec, Purpose::Define).await?;
            let socket: &Path = &self.config.socket;
            let mut single = Single::open(socket, &user, &self.described.name).await?;
            run_setting(&mut single, collations).await?;
            *definer = Some(single);
        }
        definer.as_mut().ok_or_else(|| Fault::bug("a connection just made is not there"))
    }

    /// Defines a routine, trigger or event under the collation that the database had then.
    async fn define(
        &mut self,
        definer: &mut Option<Single>,
        object: &StoredObject,
    ) -> Result<(), Fault> {
        let single = definer.as_mut().ok_or_else(|| Fault::bug("there is no connection"))?;
        let database = self.described;
        let other = !object.database_collation.is_empty()
            && object.database_collation != database.collation;
        if other {
            self.set_collation(&object.database_collation).await?;
        }
        let defined = define_one(single, object, &database.name).await;
        if other {
            self.set_collation(&database.collation).await?;
        }
        defined
    }

    async fn set_collation(&mut self, collation: &str) -> Result<(), Fault> {
        let name = &self.described.name;
        let sql = format!("ALTER DATABASE {} COLLATE {collation}", ident(name));
        let what = format!("the collation of database {name} cannot be set");
        files::set_options(&mut self.session, &what, name, &sql).await
    }
}

/// The vendor's client.
pub(super) async fn client(config: &MariadbConfig) -> Result<PathBuf, Fault> {
    let candidates = ["mariadb", "mysql"].map(|name| config.bin_dir.join(name));
    first_existing(&candidates).await.ok_or_else(|| {
        Fault::precondition(format!("{} is not there", candidates[0].display()))
            .remedy("install the package mariadb-client")
    })
}

async fn start_client(
    config: &MariadbConfig,
    spec: &Spec,
    loader: &Temporary,
    database: &str,
) -> Result<Running, Fault> {
    let tool = client(config).await?;
    let help = Program::new(&tool).args(["--no-defaults", "--help"]).output(1 << 20).await?;
    let knows_sandbox = String::from_utf8_lossy(&help).contains("--sandbox ");
    let run_as = RunAs { uid: spec.uid, gid: spec.gid };
    let mut program = Program::new(&tool)
        .run_as(run_as)
        .confined()
        // Only the account's user and root can read it there.
        .env("MYSQL_PWD", loader.password.clone())
        // Keeps the client from looking for a terminal and a history of commands.
        .env("MYSQL_HISTFILE", "/dev/null")
        .args(["--no-defaults", "--protocol=socket", "--batch", "--silent"])
        .arg(format!("--socket={}", config.socket.display()))
        .arg(format!("--user={}", loader.name))
        .args([
            "--local-infile=0",
            "--binary-mode",
            "--default-character-set=utf8mb4",
            "--max-allowed-packet=1G",
            "--skip-reconnect",
            "--abort-source-on-error",
        ]);
    if knows_sandbox {
        program = program.arg("--sandbox");
    }
    program.arg("--").arg(database).start()
}

fn explain(fault: Fault) -> Fault {
    if fault.causes.iter().any(|cause| cause.contains("ERROR 1153")) {
        return fault.remedy("a row is longer than the target takes: SET GLOBAL max_allowed_packet = 1073741824 at the target, then try again");
    }
    fault
}

async fn run_setting(single: &mut Single, setting: &str) -> Result<(), Fault> {
    single.run(setting.as_bytes()).await.map_err(|refusal| match refusal {
        Refusal::Lost(fault) => fault,
        Refusal::Server(code, said) => {
            let mut fault =
                Fault::permanent("the target's MariaDB does not know a setting of the source");
            fault.causes.push(format!("{code} {said}"));
            fault
        }
    })
}

/// Defines an object; an event that goes away once it has run is told so at last.
async fn try_define(
    single: &mut Single,
    object: &StoredObject,
) -> Result<Option<(u16, String)>, Fault> {
    run_setting(single, &object.setting()).await?;
    match single.run(&object.statement()?).await {
        Ok(()) => {}
        Err(Refusal::Server(code, said)) => return Ok(Some((code, said))),
        Err(Refusal::Lost(fault)) => return Err(fault),
    }
    let Some(more) = object.afterthought()? else { return Ok(None) };
    match single.run(&more).await {
        Ok(()) => Ok(None),
        Err(Refusal::Server(code, said)) => Ok(Some((code, said))),
        Err(Refusal::Lost(fault)) => Err(fault),
    }
}

async fn define_one(
    single: &mut Single,
    object: &StoredObject,
    database: &str,
) -> Result<(), Fault> {
    match try_define(single, object).await? {
        None => Ok(()),
        Some((code, said)) => Err(not_defined(object, database, code, &said)),
    }
}

fn not_defined(object: &StoredObject, database: &str, code: u16, said: &str) -> Fault {
    let mut fault = Fault::permanent(format!(
        "{} {database}.{} cannot be defined at the target",
        object.kind.sql().to_ascii_lowercase(),
        object.name
    ))
    .remedy(
        "does it use something outside the account, or newer than the target? change or drop it",
    );
    fault.causes.push(format!("{code} {said}"));
    fault
}

/// Defines views in whatever order they can be: one may use another.
async fn define_views(
    single: &mut Single,
    views: &mut Vec<StoredObject>,
    database: &str,
) -> Result<(), Fault> {
    while !views.is_empty() {
        let before = views.len();
        let mut waiting = Vec::new();
        let mut reason = None;
        for view in views.drain(..) {
            match try_define(single, &view).await? {
                None => {}
                Some((code, said)) if NOT_YET.contains(&code) => {
                    reason = Some(not_defined(&view, database, code, &said));
                    waiting.push(view);
                }
                Some((code, said)) => return Err(not_defined(&view, database, code, &said)),
            }
        }
        if waiting.len() == before {
            return Err(reason.unwrap_or_else(|| Fault::bug("views wait for nothing")));
        }
        *views = waiting;
    }
    Ok(())
}
