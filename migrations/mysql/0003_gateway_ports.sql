-- Ports at the gateways that lead to TCP apps. A port without an app rests until rest_until.

CREATE TABLE IF NOT EXISTS gateway_ports (
    port INT NOT NULL,
    app VARCHAR(40) NULL,
    rest_until BIGINT NOT NULL,
    PRIMARY KEY (port),
    UNIQUE KEY gateway_ports_app (app),
    CONSTRAINT gateway_ports_app_fk FOREIGN KEY (app) REFERENCES apps (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
