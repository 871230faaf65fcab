-- What an app is given back when the release that it is at fails, as JSON; NULL: that release was fully routed. MySQL knows no
-- ADD COLUMN IF NOT EXISTS, and this may be run again.
SET @missing = (SELECT COUNT(*) = 0 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'apps' AND column_name = 'way_back');
SET @change = IF(@missing, 'ALTER TABLE apps ADD COLUMN way_back MEDIUMTEXT NULL', 'DO 0');
PREPARE change_apps FROM @change;
EXECUTE change_apps;
DEALLOCATE PREPARE change_apps;
-- Up to here the previous release of an app was the present one once that was fully routed.
UPDATE apps SET way_back = '{}' WHERE previous_release <> release_no AND way_back IS NULL;
