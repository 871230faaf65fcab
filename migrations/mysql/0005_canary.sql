-- A second release beside the present one, as JSON. MySQL knows no ADD COLUMN IF NOT EXISTS, and this may be run again.
SET @missing = (SELECT COUNT(*) = 0 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'apps' AND column_name = 'canary');
SET @change = IF(@missing, 'ALTER TABLE apps ADD COLUMN canary TEXT NULL', 'DO 0');
PREPARE change_apps FROM @change;
EXECUTE change_apps;
DEALLOCATE PREPARE change_apps;
