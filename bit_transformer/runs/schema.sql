-- One row per training, and one row per recorded number.
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
    step  INTEGER NOT NULL,
    key   TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (run, step, key)
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
