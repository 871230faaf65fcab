-- What the instances of a release speak; see mysql/0009_release_protocol.sql.
ALTER TABLE releases ADD COLUMN protocol TEXT NULL;
UPDATE releases SET protocol =
    (SELECT COALESCE(json_extract(apps.config, '$.protocol'), 'http') FROM apps WHERE apps.id = releases.app);
