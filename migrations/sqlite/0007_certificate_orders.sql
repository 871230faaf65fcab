-- Certificates that are had by ACME, and accounts; see mysql/0007_certificate_orders.sql.
CREATE TABLE IF NOT EXISTS certificate_orders (
    domain TEXT NOT NULL,
    app TEXT NOT NULL,
    failures INTEGER NOT NULL,
    next_try INTEGER NOT NULL,
    error TEXT NULL,
    holder TEXT NOT NULL,
    held_until INTEGER NOT NULL,
    url TEXT NULL,
    sealed_key TEXT NULL,
    challenge TEXT NULL,
    mark INTEGER NOT NULL,
    presented INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (domain)
) STRICT;

CREATE TABLE IF NOT EXISTS acme_accounts (
    directory TEXT NOT NULL,
    account TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (directory)
) STRICT;
