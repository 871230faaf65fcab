-- What each instance used when it was last measured. No foreign key: a row that is written after its instance has
-- gone is pruned with the history.
CREATE TABLE IF NOT EXISTS instance_figures (
    id VARCHAR(32) NOT NULL,
    cpu_milli BIGINT NOT NULL,
    memory_bytes BIGINT NOT NULL,
    memory_limit_bytes BIGINT NOT NULL,
    measured_at BIGINT NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
