-- Certificates that are had by ACME (RFC 8555): one row per domain says how far its order is and when the next try is. sealed_key
-- and challenge can be opened by the schedulers and the gateways only; mark tells the challenge from any other of the domain,
-- presented is the mark of the one that every gateway answers.
CREATE TABLE IF NOT EXISTS certificate_orders (
    domain VARCHAR(200) NOT NULL,
    app VARCHAR(40) NOT NULL,
    failures BIGINT NOT NULL,
    next_try BIGINT NOT NULL,
    error TEXT NULL,
    holder VARCHAR(200) NOT NULL,
    held_until BIGINT NOT NULL,
    url TEXT NULL,
    sealed_key TEXT NULL,
    challenge TEXT NULL,
    mark BIGINT NOT NULL,
    presented BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    PRIMARY KEY (domain)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The platform's account at each authority, by the URL of its directory; sealed.
CREATE TABLE IF NOT EXISTS acme_accounts (
    directory VARCHAR(500) NOT NULL,
    account TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (directory)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
