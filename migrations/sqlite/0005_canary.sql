-- A second release beside the present one, as JSON.
ALTER TABLE apps ADD COLUMN canary TEXT NULL;
