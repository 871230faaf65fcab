-- Certificates of the gateways. names is a JSON list; chain is PEM; sealed_key can be opened by the scheduler and the
-- gateways only; mark is random and tells a row from any other that has borne the same name.
CREATE TABLE IF NOT EXISTS certificates (
    name VARCHAR(200) NOT NULL,
    source VARCHAR(16) NOT NULL,
    names MEDIUMTEXT NOT NULL,
    issuer VARCHAR(255) NOT NULL,
    not_before BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    chain MEDIUMTEXT NOT NULL,
    sealed_key MEDIUMTEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    mark BIGINT NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
