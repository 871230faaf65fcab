-- Certificates of the gateways; see mysql/0006_certificates.sql.
CREATE TABLE IF NOT EXISTS certificates (
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    names TEXT NOT NULL,
    issuer TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    chain TEXT NOT NULL,
    sealed_key TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    mark INTEGER NOT NULL,
    PRIMARY KEY (name)
) STRICT;
