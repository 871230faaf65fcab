-- Every statement may be run again: MySQL commits each table by itself, so an interrupted run starts over.

CREATE TABLE IF NOT EXISTS settings (
    name VARCHAR(64) NOT NULL,
    value VARCHAR(255) NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS apps (
    id VARCHAR(40) NOT NULL,
    tenant VARCHAR(40) NOT NULL,
    status VARCHAR(16) NOT NULL,
    instances INT NOT NULL,
    release_no INT NOT NULL,
    previous_release INT NOT NULL,
    last_release INT NOT NULL,
    restart_before BIGINT NULL,
    config MEDIUMTEXT NOT NULL,
    operation VARCHAR(40) NULL,
    placements BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS app_claims (
    app VARCHAR(40) NOT NULL,
    holder VARCHAR(200) NOT NULL,
    until_at BIGINT NOT NULL,
    PRIMARY KEY (app)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS releases (
    app VARCHAR(40) NOT NULL,
    number INT NOT NULL,
    version VARCHAR(64) NOT NULL,
    digest VARCHAR(128) NOT NULL,
    spec MEDIUMTEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (app, number),
    CONSTRAINT releases_app FOREIGN KEY (app) REFERENCES apps (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS hosts (
    name VARCHAR(63) NOT NULL,
    address VARCHAR(45) NOT NULL,
    engine VARCHAR(255) NOT NULL,
    labels MEDIUMTEXT NOT NULL,
    region VARCHAR(255) NOT NULL,
    memory_mb BIGINT NOT NULL,
    cpu_millis BIGINT NOT NULL,
    port_first INT NOT NULL,
    port_last INT NOT NULL,
    schedulability VARCHAR(16) NOT NULL,
    down_since BIGINT NULL,
    reserved_memory_mb BIGINT NOT NULL,
    reserved_cpu_weight BIGINT NOT NULL,
    instances BIGINT NOT NULL,
    used_cpu_millis BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- A leased port names its instance; a released or quarantined one rests without one until rest_until.
CREATE TABLE IF NOT EXISTS host_ports (
    host VARCHAR(63) NOT NULL,
    port INT NOT NULL,
    instance VARCHAR(32) NULL,
    rest_until BIGINT NOT NULL,
    PRIMARY KEY (host, port),
    KEY host_ports_resting (host, instance, rest_until),
    CONSTRAINT host_ports_host FOREIGN KEY (host) REFERENCES hosts (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- host has no foreign key: released instances stay as history after their host has gone.
CREATE TABLE IF NOT EXISTS instances (
    id VARCHAR(32) NOT NULL,
    app VARCHAR(40) NOT NULL,
    release_no INT NOT NULL,
    version VARCHAR(64) NOT NULL,
    host VARCHAR(63) NOT NULL,
    port INT NOT NULL,
    container VARCHAR(128) NULL,
    state VARCHAR(16) NOT NULL,
    routed_at BIGINT NULL,
    assumed_healthy INT NOT NULL,
    failure MEDIUMTEXT NULL,
    restarts INT NOT NULL,
    memory_mb BIGINT NOT NULL,
    cpu_weight BIGINT NOT NULL,
    placed_at BIGINT NOT NULL,
    started_at BIGINT NULL,
    heartbeat_at BIGINT NULL,
    changed_at BIGINT NOT NULL,
    released_at BIGINT NULL,
    generation BIGINT NOT NULL,
    token_hash VARCHAR(128) NOT NULL,
    PRIMARY KEY (id),
    KEY instances_app (app, released_at),
    KEY instances_host (host, released_at),
    KEY instances_released (released_at),
    CONSTRAINT instances_app_fk FOREIGN KEY (app) REFERENCES apps (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- app and host have no foreign keys: an operation outlives the app or host that it removed.
CREATE TABLE IF NOT EXISTS operations (
    id VARCHAR(40) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    app VARCHAR(40) NULL,
    host VARCHAR(63) NULL,
    release_no INT NULL,
    state VARCHAR(16) NOT NULL,
    message TEXT NOT NULL,
    failure MEDIUMTEXT NULL,
    steps MEDIUMTEXT NOT NULL,
    reasons MEDIUMTEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    PRIMARY KEY (id),
    KEY operations_app (app, created_at),
    KEY operations_created (created_at),
    KEY operations_state (state)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- mark is the random number of the transaction that wrote the row; recorded_at is the database's own clock.
CREATE TABLE IF NOT EXISTS events (
    seq BIGINT NOT NULL AUTO_INCREMENT,
    at BIGINT NOT NULL,
    kind VARCHAR(16) NOT NULL,
    app VARCHAR(40) NULL,
    instance VARCHAR(32) NULL,
    host VARCHAR(63) NULL,
    operation VARCHAR(40) NULL,
    actor VARCHAR(200) NOT NULL,
    message TEXT NOT NULL,
    mark BIGINT NOT NULL,
    recorded_at TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
    PRIMARY KEY (seq),
    KEY events_app (app, seq)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS idempotency (
    id VARCHAR(200) NOT NULL,
    request_hash VARCHAR(128) NOT NULL,
    operation VARCHAR(40) NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    KEY idempotency_created (created_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS tokens (
    id VARCHAR(64) NOT NULL,
    name VARCHAR(200) NOT NULL,
    secret_hash VARCHAR(128) NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS credentials (
    registry VARCHAR(255) NOT NULL,
    username VARCHAR(255) NOT NULL,
    password TEXT NOT NULL,
    PRIMARY KEY (registry)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
