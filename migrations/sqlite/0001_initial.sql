-- The tables of mysql/0001_initial.sql in SQLite's words; the whole file is one transaction.

CREATE TABLE IF NOT EXISTS settings (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
) STRICT;

CREATE TABLE IF NOT EXISTS apps (
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    status TEXT NOT NULL,
    instances INTEGER NOT NULL,
    release_no INTEGER NOT NULL,
    previous_release INTEGER NOT NULL,
    last_release INTEGER NOT NULL,
    restart_before INTEGER NULL,
    config TEXT NOT NULL,
    operation TEXT NULL,
    placements INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT;

CREATE TABLE IF NOT EXISTS app_claims (
    app TEXT NOT NULL,
    holder TEXT NOT NULL,
    until_at INTEGER NOT NULL,
    PRIMARY KEY (app)
) STRICT;

CREATE TABLE IF NOT EXISTS releases (
    app TEXT NOT NULL,
    number INTEGER NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL,
    spec TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (app, number),
    CONSTRAINT releases_app FOREIGN KEY (app) REFERENCES apps (id)
) STRICT;

CREATE TABLE IF NOT EXISTS hosts (
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    engine TEXT NOT NULL,
    labels TEXT NOT NULL,
    region TEXT NOT NULL,
    memory_mb INTEGER NOT NULL,
    cpu_millis INTEGER NOT NULL,
    port_first INTEGER NOT NULL,
    port_last INTEGER NOT NULL,
    schedulability TEXT NOT NULL,
    down_since INTEGER NULL,
    reserved_memory_mb INTEGER NOT NULL,
    reserved_cpu_weight INTEGER NOT NULL,
    instances INTEGER NOT NULL,
    used_cpu_millis INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (name)
) STRICT;

-- A leased port names its instance; a released or quarantined one rests without one until rest_until.
CREATE TABLE IF NOT EXISTS host_ports (
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    instance TEXT NULL,
    rest_until INTEGER NOT NULL,
    PRIMARY KEY (host, port),
    CONSTRAINT host_ports_host FOREIGN KEY (host) REFERENCES hosts (name)
) STRICT;
CREATE INDEX IF NOT EXISTS host_ports_resting ON host_ports (host, instance, rest_until);

-- host has no foreign key: released instances stay as history after their host has gone.
CREATE TABLE IF NOT EXISTS instances (
    id TEXT NOT NULL,
    app TEXT NOT NULL,
    release_no INTEGER NOT NULL,
    version TEXT NOT NULL,
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    container TEXT NULL,
    state TEXT NOT NULL,
    routed_at INTEGER NULL,
    assumed_healthy INTEGER NOT NULL,
    failure TEXT NULL,
    restarts INTEGER NOT NULL,
    memory_mb INTEGER NOT NULL,
    cpu_weight INTEGER NOT NULL,
    placed_at INTEGER NOT NULL,
    started_at INTEGER NULL,
    heartbeat_at INTEGER NULL,
    changed_at INTEGER NOT NULL,
    released_at INTEGER NULL,
    generation INTEGER NOT NULL,
    token_hash TEXT NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT instances_app_fk FOREIGN KEY (app) REFERENCES apps (id)
) STRICT;
CREATE INDEX IF NOT EXISTS instances_app ON instances (app, released_at);
CREATE INDEX IF NOT EXISTS instances_host ON instances (host, released_at);
CREATE INDEX IF NOT EXISTS instances_released ON instances (released_at);

-- app and host have no foreign keys: an operation outlives the app or host that it removed.
CREATE TABLE IF NOT EXISTS operations (
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    app TEXT NULL,
    host TEXT NULL,
    release_no INTEGER NULL,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    failure TEXT NULL,
    steps TEXT NOT NULL,
    reasons TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT;
CREATE INDEX IF NOT EXISTS operations_app ON operations (app, created_at);
CREATE INDEX IF NOT EXISTS operations_created ON operations (created_at);
CREATE INDEX IF NOT EXISTS operations_state ON operations (state);

-- mark is the random number of the transaction that wrote the row; recorded_at is the database's own clock.
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    app TEXT NULL,
    instance TEXT NULL,
    host TEXT NULL,
    operation TEXT NULL,
    actor TEXT NOT NULL,
    message TEXT NOT NULL,
    mark INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
) STRICT;
CREATE INDEX IF NOT EXISTS events_app ON events (app, seq);

CREATE TABLE IF NOT EXISTS idempotency (
    id TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    operation TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT;
CREATE INDEX IF NOT EXISTS idempotency_created ON idempotency (created_at);

CREATE TABLE IF NOT EXISTS tokens (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (id)
) STRICT;

CREATE TABLE IF NOT EXISTS credentials (
    registry TEXT NOT NULL,
    username TEXT NOT NULL,
    password TEXT NOT NULL,
    PRIMARY KEY (registry)
) STRICT;
