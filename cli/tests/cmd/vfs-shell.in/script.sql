-- run by .read
.headers on
SELECT count(*) AS rows
FROM t;
SELECT name, -- and
  FROM nowhere;
SELECT 'goes on';
