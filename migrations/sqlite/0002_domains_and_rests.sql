-- The tables of mysql/0002_domains_and_rests.sql in SQLite's words; the whole file is one transaction.

CREATE TABLE domains (
    domain TEXT NOT NULL,
    app TEXT NOT NULL,
    PRIMARY KEY (domain),
    CONSTRAINT domains_app_fk FOREIGN KEY (app) REFERENCES apps (id)
) STRICT;
CREATE INDEX domains_app ON domains (app);

INSERT OR IGNORE INTO domains (domain, app)
    SELECT named.value, apps.id FROM apps, json_each(apps.config, '$.domains') AS named ORDER BY apps.created_at;

CREATE TABLE resting_ports (
    address TEXT NOT NULL,
    port INTEGER NOT NULL,
    rest_until INTEGER NOT NULL,
    PRIMARY KEY (address, port)
) STRICT;
