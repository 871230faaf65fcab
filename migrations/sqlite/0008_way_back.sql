-- What an app is given back when the release that it is at fails; see mysql/0008_way_back.sql.
ALTER TABLE apps ADD COLUMN way_back TEXT NULL;
UPDATE apps SET way_back = '{}' WHERE previous_release <> release_no;
