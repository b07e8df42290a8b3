//! An engine whose changes are each made between two failpoints. What only looks is passed on.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use ferry_failpoints::around_async;
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
        let kind = self.0.kind();
        let failed = |e: io::Error| Fault::io(format!("{kind} could not be asked"), &e);
        let engine = kind.to_string().to_lowercase();
        around_async(|| format!("{engine}.{name}"), failed, work).await
    }
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
}
