-- What the instances of a release speak: http, h2c or tcp. NULL: the app's protocol, as of releases that older versions of the
-- platform make. MySQL knows no ADD COLUMN IF NOT EXISTS, and this may be run again.
SET @missing = (SELECT COUNT(*) = 0 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'releases' AND column_name = 'protocol');
SET @change = IF(@missing, 'ALTER TABLE releases ADD COLUMN protocol VARCHAR(8) NULL', 'DO 0');
PREPARE change_releases FROM @change;
EXECUTE change_releases;
DEALLOCATE PREPARE change_releases;
-- Up to here all releases of an app were spoken to in what the app spoke.
UPDATE releases JOIN apps ON apps.id = releases.app
    SET releases.protocol = COALESCE(JSON_UNQUOTE(JSON_EXTRACT(apps.config, '$.protocol')), 'http')
    WHERE releases.protocol IS NULL;
