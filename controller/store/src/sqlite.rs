//! The store on SQLite: one writer connection, write-ahead log, every commit synced.

use std::path::Path;
use std::str::FromStr;

use async_trait::async_trait;
use ferry_failpoints::around_async;
use ferry_proto::command::AccountState;
use ferry_proto::ids::{AccountName, JobId, ServerName};
use ferry_proto::{Fault, FaultClass};
use sqlx::Row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};

use crate::{CertificateRow, JobRow, JournalRow, Role, ServerRow, ServerState, Store};

/// No more jobs are listed, unless they have not ended: of those recovery must take up every one.
const SHOWN_JOBS: i64 = 1000;

/// A store in one SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
}

impl SqliteStore {
    /// Opens or makes the file and brings its schema up to date.
    ///
    /// # Errors
    /// If the file cannot be opened, or was written by a newer Ferry.
    pub async fn open(path: &Path) -> Result<Self, Fault> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: a commit is on the disk when it returns; the journal is what recovery reads.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(std::time::Duration::from_secs(10));
        // One connection: SQLite has one writer, and reads here are small.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .map_err(|e| fault(&format!("cannot open the store {}", path.display()), &e))?;
        sqlx::migrate!("migrations/sqlite").run(&pool).await.map_err(|e| {
            Fault::permanent(format!("cannot bring the store {} up to date", path.display()))
                .caused_by(&e)
                .remedy("if it was written by a newer Ferry, install that version again")
        })?;
        sqlx::query(
            "INSERT INTO meta (name, value) VALUES ('generation', '1') ON CONFLICT DO NOTHING",
        )
        .execute(&pool)
        .await
        .map_err(|e| fault("cannot write to the store", &e))?;
        Ok(Self { pool })
    }
}

/// A fault of the store. Disk full and locks pass; the rest does not.
fn fault(message: &str, error: &sqlx::Error) -> Fault {
    let class = match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => FaultClass::Transient,
        // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_IOERR, SQLITE_FULL, by SQLite's result codes.
        sqlx::Error::Database(e)
            if e.code().is_some_and(|c| {
                c.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13))
            }) =>
        {
            FaultClass::Transient
        }
        _ => FaultClass::Bug,
    };
    Fault::new(class, message).caused_by(error)
}

trait OrFault<T> {
    fn or_fault(self, message: &str) -> Result<T, Fault>;
}

impl<T> OrFault<T> for Result<T, sqlx::Error> {
    fn or_fault(self, message: &str) -> Result<T, Fault> {
        self.map_err(|e| fault(message, &e))
    }
}

/// A column that holds a checked type. Only this module writes it, so a bad value is damage.
fn parsed<T: FromStr>(row: &SqliteRow, column: &str) -> Result<T, Fault>
where
    T::Err: std::error::Error + 'static,
{
    let text: String = row.try_get(column).or_fault("the store has a row of another shape")?;
    text.parse::<T>()
        .map_err(|e| Fault::bug(format!("the store's column {column} is damaged")).caused_by(&e))
}

fn column<'r, T>(row: &'r SqliteRow, name: &str) -> Result<T, Fault>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(name).or_fault("the store has a row of another shape")
}

fn server_row(row: &SqliteRow) -> Result<ServerRow, Fault> {
    let state: String = column(row, "state")?;
    Ok(ServerRow {
        name: parsed(row, "name")?,
        role: column::<String>(row, "role")?.parse::<Role>()?,
        state: match state.as_str() {
            "added" => ServerState::Added,
            "enrolled" => ServerState::Enrolled,
            _ => ServerState::Revoked,
        },
        token_hash: column(row, "token_hash")?,
        token_expires_ms: column(row, "token_expires_ms")?,
        not_after_ms: column(row, "not_after_ms")?,
        peer_address: column(row, "peer_address")?,
        version: column(row, "version")?,
        facts: column(row, "facts")?,
        last_seen_ms: column(row, "last_seen_ms")?,
    })
}

fn job_row(row: &SqliteRow) -> Result<JobRow, Fault> {
    Ok(JobRow {
        id: parsed(row, "id")?,
        account: parsed(row, "account")?,
        plan: column(row, "plan")?,
        planned_ms: column(row, "planned_ms")?,
        started_ms: column(row, "started_ms")?,
        ended_ms: column(row, "ended_ms")?,
        phase: column(row, "phase")?,
    })
}

/// Notes a certificate of a server that is enrolled; whether it is.
async fn insert_certificate(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    name: &ServerName,
    certificate: &CertificateRow,
) -> Result<bool, Fault> {
    let message = "cannot note the certificate";
    let done = sqlx::query(
        "INSERT INTO certificates (serial, server, not_after_ms)
         SELECT $1, name, $3 FROM servers WHERE name = $2 AND state = 'enrolled'",
    )
    .bind(&certificate.serial)
    .bind(name.as_str())
    .bind(certificate.not_after_ms)
    .execute(&mut **transaction)
    .await
    .or_fault(message)?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("UPDATE servers SET not_after_ms = $2 WHERE name = $1")
        .bind(name.as_str())
        .bind(certificate.not_after_ms)
        .execute(&mut **transaction)
        .await
        .or_fault(message)?;
    Ok(true)
}

/// Adds an event to a job's journal; its number.
async fn insert_event(
    executor: impl sqlx::Executor<'_, Database = sqlx::Sqlite>,
    job: JobId,
    event: &str,
    now_ms: i64,
) -> Result<u64, Fault> {
    // All rows, of which there is one: outside a transaction the commit comes after the last, and
    // `fetch_one`, which asks for no more than the first, hides a commit that failed.
    let rows = sqlx::query(
        "INSERT INTO journal (number, job, at_ms, event)
         VALUES ((SELECT COALESCE(MAX(number), 0) + 1 FROM journal), $1, $2, $3)
         RETURNING number",
    )
    .bind(job.to_string())
    .bind(now_ms)
    .bind(event)
    .fetch_all(executor)
    .await
    .or_fault("cannot write to the journal")?;
    let row = rows.first().ok_or_else(|| Fault::bug("an event was journalled without a number"))?;
    Ok(column::<i64>(row, "number")?.unsigned_abs())
}

/// A write beside the engine's own, which fault tests know by `name`.
async fn point<T>(name: &str, write: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let failed = |e| Fault::transient("the journal could not be written").caused_by(&e);
    around_async(|| format!("journal.{name}"), failed, write).await
}

/// The partial unique index: another job of this account has not ended.
fn other_job() -> Fault {
    Fault::precondition("another job of this account has not ended")
        .remedy("see `ferry status`; abort it, or wait for its end")
}

#[async_trait]
impl Store for SqliteStore {
    async fn generation(&self) -> Result<u64, Fault> {
        let row = sqlx::query("SELECT value FROM meta WHERE name = 'generation'")
            .fetch_one(&self.pool)
            .await
            .or_fault("cannot read the controller's generation")?;
        parsed(&row, "value")
    }

    async fn adopt(&self, generation: u64, overtaken: &[JobId], now_ms: i64) -> Result<(), Fault> {
        let message = "cannot raise the controller's generation";
        let mut transaction = self.pool.begin().await.or_fault(message)?;
        for job in overtaken {
            sqlx::query("UPDATE jobs SET ended_ms = $2, phase = $3 WHERE id = $1")
                .bind(job.to_string())
                .bind(now_ms)
                .bind(crate::OVERTAKEN)
                .execute(&mut *transaction)
                .await
                .or_fault(message)?;
        }
        sqlx::query("UPDATE meta SET value = $1 WHERE name = 'generation'")
            .bind(generation.to_string())
            .execute(&mut *transaction)
            .await
            .or_fault(message)?;
        transaction.commit().await.or_fault(message)
    }

    async fn add_server(&self, row: &ServerRow, now_ms: i64) -> Result<(), Fault> {
        let done = sqlx::query(
            "INSERT INTO servers (name, role, state, token_hash, token_expires_ms, added_ms)
             VALUES ($1, $2, 'added', $3, $4, $5)
             ON CONFLICT (name) DO UPDATE SET
                role = excluded.role, state = 'added', token_hash = excluded.token_hash,
                token_expires_ms = excluded.token_expires_ms, token_key = NULL
             WHERE servers.state <> 'enrolled'",
        )
        .bind(row.name.as_str())
        .bind(row.role.as_str())
        .bind(&row.token_hash)
        .bind(row.token_expires_ms)
        .bind(now_ms)
        .execute(&self.pool)
        .await
        .or_fault("cannot add the server")?;
        if done.rows_affected() == 0 {
            return Err(Fault::precondition(format!("server {} is enrolled already", row.name))
                .remedy(format!(
                    "choose another name, or cut it off first: ferry server revoke {}",
                    row.name
                )));
        }
        Ok(())
    }

    async fn servers(&self) -> Result<Vec<ServerRow>, Fault> {
        let rows = sqlx::query("SELECT * FROM servers ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .or_fault("cannot read the servers")?;
        rows.iter().map(server_row).collect()
    }

    async fn server(&self, name: &ServerName) -> Result<Option<ServerRow>, Fault> {
        let row = sqlx::query("SELECT * FROM servers WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await
            .or_fault("cannot read the server")?;
        row.as_ref().map(server_row).transpose()
    }

    async fn take_token(
        &self,
        name: &ServerName,
        hash: &str,
        key: &str,
        certificate: &CertificateRow,
        now_ms: i64,
    ) -> Result<bool, Fault> {
        let message = "cannot take the token";
        let mut transaction = self.pool.begin().await.or_fault(message)?;
        let done = sqlx::query(
            "UPDATE servers SET state = 'enrolled', token_key = $3
             WHERE name = $1 AND token_hash = $2 AND token_expires_ms > $4
               AND (state = 'added' OR (state = 'enrolled' AND token_key = $3))",
        )
        .bind(name.as_str())
        .bind(hash)
        .bind(key)
        .bind(now_ms)
        .execute(&mut *transaction)
        .await
        .or_fault(message)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        // Enrolled by the statement above.
        insert_certificate(&mut transaction, name, certificate).await?;
        transaction.commit().await.or_fault(message)?;
        Ok(true)
    }

    async fn add_certificate(
        &self,
        name: &ServerName,
        certificate: &CertificateRow,
    ) -> Result<(), Fault> {
        let message = "cannot note the certificate";
        let mut transaction = self.pool.begin().await.or_fault(message)?;
        if !insert_certificate(&mut transaction, name, certificate).await? {
            return Err(Fault::permanent(format!("server {name} is not enrolled (any more)"))
                .remedy(format!("to use it again: ferry server add {name}, then enrol it")));
        }
        transaction.commit().await.or_fault(message)
    }

    async fn set_seen(
        &self,
        name: &ServerName,
        peer_address: &str,
        version: &str,
        facts: &str,
        now_ms: i64,
    ) -> Result<(), Fault> {
        sqlx::query(
            "UPDATE servers SET peer_address = $2, version = $3, facts = $4, last_seen_ms = $5
             WHERE name = $1",
        )
        .bind(name.as_str())
        .bind(peer_address)
        .bind(version)
        .bind(facts)
        .bind(now_ms)
        .execute(&self.pool)
        .await
        .or_fault("cannot note what the agent said")?;
        Ok(())
    }

    async fn revoke_server(&self, name: &ServerName, now_ms: i64) -> Result<(), Fault> {
        let message = "cannot revoke the server";
        let mut transaction = self.pool.begin().await.or_fault(message)?;
        sqlx::query(
            "UPDATE certificates SET revoked_ms = $2 WHERE server = $1 AND revoked_ms IS NULL",
        )
        .bind(name.as_str())
        .bind(now_ms)
        .execute(&mut *transaction)
        .await
        .or_fault(message)?;
        let done = sqlx::query(
            "UPDATE servers SET state = 'revoked', token_hash = NULL, token_expires_ms = NULL,
                token_key = NULL
             WHERE name = $1",
        )
        .bind(name.as_str())
        .execute(&mut *transaction)
        .await
        .or_fault(message)?;
        transaction.commit().await.or_fault(message)?;
        if done.rows_affected() == 0 {
            return Err(Fault::precondition(format!("no server is called {name}"))
                .remedy("see `ferry server list`"));
        }
        Ok(())
    }

    async fn revocations(&self) -> Result<(Vec<String>, Vec<ServerName>), Fault> {
        let message = "cannot read the revocations";
        let serials = sqlx::query(
            "SELECT serial FROM certificates WHERE revoked_ms IS NOT NULL ORDER BY serial",
        )
        .fetch_all(&self.pool)
        .await
        .or_fault(message)?;
        let servers = sqlx::query("SELECT name FROM servers WHERE state = 'revoked' ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .or_fault(message)?;
        Ok((
            serials.iter().map(|r| column(r, "serial")).collect::<Result<_, _>>()?,
            servers.iter().map(|r| parsed(r, "name")).collect::<Result<_, _>>()?,
        ))
    }

    async fn set_accounts(
        &self,
        server: &ServerName,
        accounts: &[AccountState],
        problems: &[String],
    ) -> Result<(), Fault> {
        let message = "cannot note the accounts";
        let mut transaction = self.pool.begin().await.or_fault(message)?;
        for table in [
            "DELETE FROM accounts WHERE server = $1",
            "DELETE FROM inventory_problems WHERE server = $1",
        ] {
            sqlx::query(table)
                .bind(server.as_str())
                .execute(&mut *transaction)
                .await
                .or_fault(message)?;
        }
        for account in accounts {
            let state = serde_json::to_string(account)
                .map_err(|e| Fault::bug("an account state has no JSON").caused_by(&e))?;
            sqlx::query("INSERT INTO accounts (server, name, state) VALUES ($1, $2, $3)")
                .bind(server.as_str())
                .bind(account.name.as_str())
                .bind(state)
                .execute(&mut *transaction)
                .await
                .or_fault(message)?;
        }
        for problem in problems {
            sqlx::query("INSERT INTO inventory_problems (server, problem) VALUES ($1, $2)")
                .bind(server.as_str())
                .bind(problem)
                .execute(&mut *transaction)
                .await
                .or_fault(message)?;
        }
        transaction.commit().await.or_fault(message)
    }

    async fn accounts(&self) -> Result<Vec<(ServerName, AccountState)>, Fault> {
        let rows = sqlx::query("SELECT server, state FROM accounts ORDER BY name, server")
            .fetch_all(&self.pool)
            .await
            .or_fault("cannot read the accounts")?;
        rows.iter()
            .map(|row| {
                let state: String = column(row, "state")?;
                let state = serde_json::from_str(&state).map_err(|e| {
                    Fault::bug("the store's account state is damaged").caused_by(&e)
                })?;
                Ok((parsed(row, "server")?, state))
            })
            .collect()
    }

    async fn problems(&self) -> Result<Vec<(ServerName, String)>, Fault> {
        let rows = sqlx::query("SELECT server, problem FROM inventory_problems ORDER BY server")
            .fetch_all(&self.pool)
            .await
            .or_fault("cannot read the inventory problems")?;
        rows.iter().map(|row| Ok((parsed(row, "server")?, column(row, "problem")?))).collect()
    }

    async fn add_plan(&self, row: &JobRow) -> Result<(), Fault> {
        sqlx::query("INSERT INTO jobs (id, account, plan, planned_ms) VALUES ($1, $2, $3, $4)")
            .bind(row.id.to_string())
            .bind(row.account.as_str())
            .bind(&row.plan)
            .bind(row.planned_ms)
            .execute(&self.pool)
            .await
            .or_fault("cannot keep the plan")?;
        Ok(())
    }

    async fn start_job(&self, id: JobId, now_ms: i64) -> Result<(), Fault> {
        let write = async {
            let started =
                sqlx::query("UPDATE jobs SET started_ms = $2 WHERE id = $1 AND started_ms IS NULL")
                    .bind(id.to_string())
                    .bind(now_ms)
                    .execute(&self.pool)
                    .await;
            match started {
                Ok(done) if done.rows_affected() == 1 => Ok(()),
                Ok(_) => {
                    Err(Fault::precondition(format!("plan {id} was started before, or is unknown"))
                        .remedy("plan the move again"))
                }
                Err(sqlx::Error::Database(e)) if e.is_unique_violation() => Err(other_job()),
                Err(e) => Err(fault("cannot start the job", &e)),
            }
        };
        point("job_started", write).await
    }

    async fn resume_job(&self, id: JobId, event: &str, now_ms: i64) -> Result<(), Fault> {
        let write = async {
            let message = "cannot take the job up again";
            let mut transaction = self.pool.begin().await.or_fault(message)?;
            let reopened = sqlx::query(
            "UPDATE jobs SET ended_ms = NULL, phase = NULL WHERE id = $1 AND ended_ms IS NOT NULL",
        )
        .bind(id.to_string())
        .execute(&mut *transaction)
        .await;
            match reopened {
                Ok(done) if done.rows_affected() == 1 => {}
                Ok(_) => {
                    return Err(Fault::precondition(format!("job {id} has not ended"))
                        .remedy("see `ferry status`"));
                }
                Err(sqlx::Error::Database(e)) if e.is_unique_violation() => return Err(other_job()),
                Err(e) => return Err(fault(message, &e)),
            }
            insert_event(&mut *transaction, id, event, now_ms).await?;
            transaction.commit().await.or_fault(message)
        };
        point("job_resumed", write).await
    }

    async fn end_job(&self, id: JobId, phase: &str, now_ms: i64) -> Result<(), Fault> {
        let write = async {
            sqlx::query("UPDATE jobs SET ended_ms = $2, phase = $3 WHERE id = $1")
                .bind(id.to_string())
                .bind(now_ms)
                .bind(phase)
                .execute(&self.pool)
                .await
                .or_fault("cannot end the job")?;
            Ok(())
        };
        point("job_ended", write).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRow>, Fault> {
        let row = sqlx::query("SELECT * FROM jobs WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .or_fault("cannot read the job")?;
        row.as_ref().map(job_row).transpose()
    }

    async fn jobs(
        &self,
        account: Option<&AccountName>,
        running: bool,
    ) -> Result<Vec<JobRow>, Fault> {
        let limit = if running { i64::MAX } else { SHOWN_JOBS };
        let rows = sqlx::query(
            "SELECT * FROM jobs
             WHERE started_ms IS NOT NULL AND ($1 IS NULL OR account = $1)
               AND (NOT $2 OR ended_ms IS NULL)
             ORDER BY started_ms DESC, id DESC LIMIT $3",
        )
        .bind(account.map(AccountName::as_str))
        .bind(running)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .or_fault("cannot read the jobs")?;
        rows.iter().map(job_row).collect()
    }

    async fn append_event(&self, job: JobId, event: &str, now_ms: i64) -> Result<u64, Fault> {
        insert_event(&self.pool, job, event, now_ms).await
    }

    async fn events(
        &self,
        job: Option<JobId>,
        account: Option<&AccountName>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<JournalRow>, Fault> {
        let rows = sqlx::query(
            "SELECT journal.number, journal.job, journal.at_ms, journal.event, jobs.account
             FROM journal JOIN jobs ON jobs.id = journal.job
             WHERE journal.number > $1 AND ($2 IS NULL OR journal.job = $2)
               AND ($3 IS NULL OR jobs.account = $3)
             ORDER BY journal.number LIMIT $4",
        )
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(job.map(|j| j.to_string()))
        .bind(account.map(AccountName::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .or_fault("cannot read the journal")?;
        rows.iter()
            .map(|row| {
                Ok(JournalRow {
                    number: column::<i64>(row, "number")?.unsigned_abs(),
                    job: parsed(row, "job")?,
                    account: parsed(row, "account")?,
                    at_ms: column(row, "at_ms")?,
                    event: column(row, "event")?,
                })
            })
            .collect()
    }
}
