-- Every statement may be run again: MySQL commits each table by itself, so an interrupted run starts over.

-- Which app a custom domain belongs to. The app's configuration has them as well; the key here lets only one app have each.
CREATE TABLE IF NOT EXISTS domains (
    domain VARCHAR(253) NOT NULL,
    app VARCHAR(40) NOT NULL,
    PRIMARY KEY (domain),
    KEY domains_app (app),
    CONSTRAINT domains_app_fk FOREIGN KEY (app) REFERENCES apps (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO domains (domain, app)
    SELECT named.domain, apps.id
    FROM apps, JSON_TABLE(apps.config, '$.domains[*]' COLUMNS (domain VARCHAR(253) PATH '$')) AS named
    WHERE named.domain IS NOT NULL ORDER BY apps.created_at;

-- Ports that had not rested long enough when their host was removed; a host that joins at the address goes on with them.
CREATE TABLE IF NOT EXISTS resting_ports (
    address VARCHAR(45) NOT NULL,
    port INT NOT NULL,
    rest_until BIGINT NOT NULL,
    PRIMARY KEY (address, port)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
