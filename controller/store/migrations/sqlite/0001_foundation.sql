-- Only types and constructs that PostgreSQL has as well: TEXT, BIGINT (SQLite stores it as
-- INTEGER), and no triggers. Times are Unix milliseconds. Documents are JSON text.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE servers (
    name             TEXT PRIMARY KEY,
    role             TEXT NOT NULL CHECK (role IN ('client', 'transit', 'shared-transit')),
    state            TEXT NOT NULL CHECK (state IN ('added', 'enrolled', 'revoked')),
    -- Kept after its use: the same key asking again with the same token lost the answer.
    token_hash       TEXT,
    token_expires_ms BIGINT,
    token_key        TEXT,
    not_after_ms     BIGINT,
    peer_address     TEXT NOT NULL DEFAULT '',
    version          TEXT NOT NULL DEFAULT '',
    facts            TEXT NOT NULL DEFAULT '{}',
    last_seen_ms     BIGINT,
    added_ms         BIGINT NOT NULL
);

-- Every certificate issued: a server that is cut off may still hold older ones.
CREATE TABLE certificates (
    serial       TEXT PRIMARY KEY,
    server       TEXT NOT NULL REFERENCES servers (name),
    not_after_ms BIGINT NOT NULL,
    revoked_ms   BIGINT
);
CREATE INDEX certificates_server ON certificates (server);

-- What each agent last reported.
CREATE TABLE accounts (
    server TEXT NOT NULL,
    name   TEXT NOT NULL,
    state  TEXT NOT NULL,
    PRIMARY KEY (server, name)
);

CREATE TABLE inventory_problems (
    server  TEXT NOT NULL,
    problem TEXT NOT NULL
);

-- A plan that was shown; a job if it was started.
CREATE TABLE jobs (
    id         TEXT PRIMARY KEY,
    account    TEXT NOT NULL,
    plan       TEXT NOT NULL,
    planned_ms BIGINT NOT NULL,
    started_ms BIGINT,
    ended_ms   BIGINT,
    phase      TEXT
);
CREATE INDEX jobs_account ON jobs (account, started_ms);

-- At most one job of an account at a time. (A partial unique index: PostgreSQL has it too.)
CREATE UNIQUE INDEX jobs_one_running ON jobs (account)
    WHERE started_ms IS NOT NULL AND ended_ms IS NULL;

CREATE TABLE journal (
    number BIGINT NOT NULL,
    job    TEXT NOT NULL REFERENCES jobs (id),
    at_ms  BIGINT NOT NULL,
    event  TEXT NOT NULL,
    PRIMARY KEY (number)
);
CREATE INDEX journal_job ON journal (job, number);
