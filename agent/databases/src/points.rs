//! Failpoints of the engines: around each change as a whole, and around each statement of one. What only looks
//! is passed on.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use ferry_failpoints::{ENABLED, around_async};
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::artefact::Artefact;
use ferry_proto::ids::{AccountName, DatabaseName};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::engine::{Engine, Progress};
use crate::manifest::DatabaseManifest;
use crate::model::{
    Availability, DumpReport, Existing, Facts, Finding, LoadReport, Provisioned, Spec, Survey,
};
use crate::record::{FenceRecord, Record};

/// The engine itself.
pub(crate) struct Points<E>(pub(crate) E);

impl<E: Engine> Points<E> {
    /// Does what fault tests know by `name`.
    async fn around<T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        around(self.0.kind(), name, work).await
    }
}

/// Does what fault tests know by `name`, between two failpoints.
async fn around<T>(
    kind: EngineKind,
    name: &str,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let failed = |e: io::Error| Fault::io(format!("{kind} could not be asked"), &e);
    let engine = kind.to_string().to_lowercase();
    around_async(|| format!("{engine}.{name}"), failed, work).await
}

/// Does what runs `sql`, between two failpoints if that changes something.
pub(crate) async fn statement<T>(
    kind: EngineKind,
    sql: &[u8],
    run: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    if ENABLED && let Some(what) = changed(sql) {
        return around(kind, &what, run).await;
    }
    run.await
}

/// What a statement changes, as fault tests name it: its first two words, without names in it, which may
/// differ from run to run. None: it changes nothing that outlives its session.
fn changed(sql: &[u8]) -> Option<String> {
    let unquoted = sql.split(|byte| b"\"'`".contains(byte)).next()?.to_ascii_lowercase();
    let unquoted = String::from_utf8_lossy(&unquoted);
    let words = unquoted.split(|c: char| !c.is_ascii_alphabetic());
    // What a transaction does first names it.
    let words: Vec<&str> = words.filter(|word| !["", "begin"].contains(word)).take(2).collect();
    let changes = ["alter", "comment", "create", "drop", "grant", "revoke"];
    changes.contains(words.first()?).then(|| words.join("_"))
}

#[async_trait]
impl<E: Engine> Engine for Points<E> {
    fn kind(&self) -> EngineKind {
        self.0.kind()
    }

    async fn available(&self) -> Availability {
        self.0.available().await
    }

    async fn survey(&self) -> Result<Survey, Fault> {
        self.0.survey().await
    }

    async fn inspect(&self, spec: &Spec) -> Result<Facts, Fault> {
        self.0.inspect(spec).await
    }

    async fn record(&self, spec: &Spec, fence: Option<&FenceRecord>) -> Result<Record, Fault> {
        self.0.record(spec, fence).await
    }

    async fn check_target(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Vec<Finding>, Fault> {
        self.0.check_target(spec, record, existing).await
    }

    async fn provision(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Provisioned, Fault> {
        self.around("provision", self.0.provision(spec, record, existing)).await
    }

    async fn deprovision(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault> {
        self.around("deprovision", self.0.deprovision(spec, created)).await
    }

    async fn drop_closed(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault> {
        self.around("drop_closed", self.0.drop_closed(spec, created)).await
    }

    async fn plan_fence(&self, spec: &Spec) -> Result<FenceRecord, Fault> {
        self.0.plan_fence(spec).await
    }

    async fn fence(&self, spec: &Spec, record: &FenceRecord, grace: Duration) -> Result<(), Fault> {
        self.around("fence", self.0.fence(spec, record, grace)).await
    }

    async fn unfence(&self, spec: &Spec, record: &FenceRecord) -> Result<(), Fault> {
        self.around("unfence", self.0.unfence(spec, record)).await
    }

    async fn is_fenced(&self, spec: &Spec) -> Result<bool, Fault> {
        self.0.is_fenced(spec).await
    }

    async fn dump_sizes(&self, spec: &Spec) -> Result<Vec<u64>, Fault> {
        self.0.dump_sizes(spec).await
    }

    async fn dump(
        &self,
        spec: &Spec,
        database: &DatabaseName,
        out: &mut (dyn AsyncWrite + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<DumpReport, Fault> {
        self.around("dump", self.0.dump(spec, database, out, progress)).await
    }

    async fn load(
        &self,
        spec: &Spec,
        record: &Record,
        database: &DatabaseName,
        input: &mut (dyn AsyncRead + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<LoadReport, Fault> {
        self.around("load", self.0.load(spec, record, database, input, progress)).await
    }

    async fn manifest(
        &self,
        spec: &Spec,
        database: &DatabaseName,
    ) -> Result<DatabaseManifest, Fault> {
        self.0.manifest(spec, database).await
    }

    async fn rehearse(&self, spec: &Spec, record: &Record) -> Result<(), Fault> {
        self.around("rehearse", self.0.rehearse(spec, record)).await
    }

    async fn open(&self, spec: &Spec, record: &Record) -> Result<(), Fault> {
        self.around("open", self.0.open(spec, record)).await
    }

    async fn observe(&self, accounts: &[AccountName]) -> Result<Vec<Artefact>, Fault> {
        self.0.observe(accounts).await
    }

    async fn left_closed(&self, spec: &Spec) -> Result<Vec<Artefact>, Fault> {
        self.0.left_closed(spec).await
    }

    async fn remove(&self, artefact: &Artefact) -> Result<(), Fault> {
        self.around("remove", self.0.remove(artefact)).await
    }
}

#[cfg(test)]
mod tests {
    use ferry_failpoints::FakeLab;
    use ferry_proto::FaultClass;

    use super::*;
    use crate::{MariadbConfig, PostgresqlConfig, mariadb, postgresql};

    #[tokio::test]
    async fn a_change_comes_to_a_point_and_a_look_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let lab = FakeLab::listen(dir.path(), |point| {
            if point == "postgresql.deprovision.before" { "errno 5" } else { "go" }.to_owned()
        })
        .unwrap();
        // No server is there: what comes to its point fails then.
        let nowhere = dir.path().join("nowhere");
        let engines = [
            mariadb(MariadbConfig { socket: nowhere.clone(), ..MariadbConfig::default() }),
            postgresql(PostgresqlConfig { socket_dir: nowhere, ..PostgresqlConfig::default() }),
        ];
        let account = "shop".parse().unwrap();
        let spec = Spec { account, uid: 0, gid: 0, databases: vec![], users: vec![] };
        for engine in engines {
            engine.inspect(&spec).await.unwrap_err();
            engine.deprovision(&spec, &Provisioned::default()).await.unwrap_err();
        }
        assert_eq!(lab.heard(), ["mariadb.deprovision.before", "postgresql.deprovision.before"]);
    }

    #[test]
    fn statements_are_known_by_what_they_change_and_never_by_names() {
        let is = |sql: &str, what: Option<&str>| {
            assert_eq!(changed(sql.as_bytes()).as_deref(), what, "{sql}");
        };
        is("ALTER USER `shop`@`localhost` ACCOUNT LOCK", Some("alter_user"));
        is("BEGIN;ALTER ROLE \"shop\" NOLOGIN;COMMIT", Some("alter_role"));
        is("GRANT \"shop_7f3a\" TO postgres", Some("grant"));
        is("CREATE DEFINER=`shop`@`%` EVENT `hourly` ON SCHEDULE", Some("create_definer"));
        is("SET NAMES utf8mb4", None);
        is("BEGIN; SELECT 1", None);
        is("KILL CONNECTION 7", None);
        is("", None);
    }

    #[tokio::test]
    async fn a_statement_that_changes_something_runs_between_its_points_or_fails_before() {
        let dir = tempfile::tempdir().unwrap();
        let lab = FakeLab::listen(dir.path(), |point| {
            if point == "mariadb.drop_user.before" { "errno 28" } else { "go" }.to_owned()
        })
        .unwrap();
        let ran = async |sql: &[u8]| {
            statement(EngineKind::Mariadb, sql, async { Ok::<_, Fault>(()) }).await
        };
        ran(b"SELECT 1").await.unwrap();
        ran(b"CREATE USER a").await.unwrap();
        let fault = ran(b"DROP USER a").await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
        let heard =
            ["mariadb.create_user.before", "mariadb.create_user.after", "mariadb.drop_user.before"];
        assert_eq!(lab.heard(), heard);
    }
}
