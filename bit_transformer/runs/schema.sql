-- One row per training, and one row per recorded number. `database.py` brings older files to this version.
CREATE TABLE IF NOT EXISTS runs (
    id       TEXT PRIMARY KEY,
    folder   TEXT NOT NULL,
    created  TEXT NOT NULL,              -- UTC, ISO 8601
    status   TEXT NOT NULL CHECK (status IN ('running', 'finished', 'stopped', 'failed')),
    note     TEXT NOT NULL DEFAULT '',   -- why it ended
    config   TEXT NOT NULL,              -- JSON: model, train, data, provenance
    result   TEXT NOT NULL DEFAULT '{}'  -- JSON: result of the last evaluation
);
CREATE TABLE IF NOT EXISTS metrics (
    run   TEXT NOT NULL REFERENCES runs (id),
    key   TEXT NOT NULL,
    step  INTEGER NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (run, key, step)
) WITHOUT ROWID;
-- Of 8, 64, 512 ... steps: for curves of long runs.
CREATE TABLE IF NOT EXISTS rollups (
    run    TEXT NOT NULL REFERENCES runs (id),
    key    TEXT NOT NULL,
    level  INTEGER NOT NULL,             -- a bucket has 8^level steps
    bucket INTEGER NOT NULL,             -- step / 8^level
    count  INTEGER NOT NULL,
    total  REAL NOT NULL,
    low    REAL NOT NULL,
    high   REAL NOT NULL,
    PRIMARY KEY (run, key, level, bucket)
) WITHOUT ROWID;
-- One row per drift of a metric.
CREATE TABLE IF NOT EXISTS alerts (
    run      TEXT NOT NULL REFERENCES runs (id),
    step     INTEGER NOT NULL,
    metric   TEXT NOT NULL,
    detector TEXT NOT NULL,
    size     REAL NOT NULL,              -- new level - old level
    PRIMARY KEY (run, step, metric, detector)
) WITHOUT ROWID;
-- Where a training stands; one row per run, replaced every second or so.
CREATE TABLE IF NOT EXISTS live (
    run         TEXT PRIMARY KEY REFERENCES runs (id),
    step        INTEGER NOT NULL,
    share       REAL NOT NULL,           -- of the budget
    eta         REAL,                    -- seconds
    bytes_per_s REAL,
    paused      INTEGER NOT NULL DEFAULT 0
);
-- All that happens, in order. Readers go on from the last id they have seen.
CREATE TABLE IF NOT EXISTS feed (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    run    TEXT,
    job    INTEGER,
    step   INTEGER,
    kind   TEXT NOT NULL,
    at     TEXT NOT NULL,                -- UTC, ISO 8601; only for display: clocks can go back
    detail TEXT NOT NULL DEFAULT '{}'    -- JSON
);
CREATE INDEX IF NOT EXISTS feed_by_run ON feed (run, id);
-- What a training is told while it runs.
CREATE TABLE IF NOT EXISTS commands (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    run    TEXT NOT NULL REFERENCES runs (id),
    kind   TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '{}',   -- JSON
    due    INTEGER,                      -- the step after which it is carried out; NULL: at once
    taken  INTEGER                       -- the step after which it was
);
CREATE INDEX IF NOT EXISTS commands_by_run ON commands (run, taken);
CREATE TABLE IF NOT EXISTS triggers (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    run      TEXT NOT NULL REFERENCES runs (id),
    metric   TEXT NOT NULL,
    above    REAL,
    below    REAL,
    action   TEXT NOT NULL,
    fired_at INTEGER                     -- the step
);
-- Operations that run in processes of their own.
CREATE TABLE IF NOT EXISTS jobs (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    operation     TEXT NOT NULL,
    request       TEXT NOT NULL,         -- JSON
    run           TEXT,                  -- the run it trains, or works on
    state         TEXT NOT NULL CHECK (state IN ('queued', 'running', 'finished', 'stopped', 'failed', 'killed')),
    created       TEXT NOT NULL,
    started       TEXT,
    ended         TEXT,
    begun         INTEGER NOT NULL DEFAULT 0,  -- whether its process has reported
    stopping      INTEGER NOT NULL DEFAULT 0,  -- 1: it was asked to stop; 2: its process knows
    restarts      INTEGER NOT NULL DEFAULT 0,
    restarts_left INTEGER NOT NULL DEFAULT 0,
    progress      TEXT,                  -- JSON
    error         TEXT,                  -- JSON
    result        TEXT,                  -- JSON
    allowance     REAL,                  -- seconds that it may run, over all its processes; NULL: no limit
    spent         REAL NOT NULL DEFAULT 0  -- seconds that its earlier processes ran
);
-- Requests that write, through a server.
CREATE TABLE IF NOT EXISTS audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     TEXT NOT NULL,
    client TEXT NOT NULL,
    method TEXT NOT NULL,
    path   TEXT NOT NULL,
    status INTEGER NOT NULL
);
