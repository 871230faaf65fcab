-- What each instance used when it was last measured; see mysql/0004_instance_figures.sql.
CREATE TABLE IF NOT EXISTS instance_figures (
    id TEXT NOT NULL,
    cpu_milli INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    memory_limit_bytes INTEGER NOT NULL,
    measured_at INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT;
