-- Ports at the gateways that lead to TCP apps. A port without an app rests until rest_until.

CREATE TABLE IF NOT EXISTS gateway_ports (
    port INTEGER NOT NULL,
    app TEXT NULL,
    rest_until INTEGER NOT NULL,
    PRIMARY KEY (port),
    CONSTRAINT gateway_ports_app UNIQUE (app),
    CONSTRAINT gateway_ports_app_fk FOREIGN KEY (app) REFERENCES apps (id)
) STRICT;
