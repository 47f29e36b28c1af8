.load ./liblitestream_vfs
.open 'file:my.db?vfs=litestream'
SELECT count(*) > 0, sum(rating) FROM sandwich_ratings;
PRAGMA litestream_time = '3 seconds ago';
SELECT * FROM sandwich_ratings ORDER BY RANDOM() LIMIT 3;
SELECT litestream_set_time('latest');
PRAGMA litestream_txid;
PRAGMA litestream_stats;
PRAGMA integrity_check;
SELECT litestream_txid('no such schema');
PRAGMA litestream_time = 'no time at all';
ATTACH 'file:earlier.db?vfs=litestream&at=2%20seconds%20ago' AS earlier;
SELECT main.sandwich_ratings.id FROM main.sandwich_ratings JOIN earlier.sandwich_ratings USING (id) LIMIT 1;
DETACH earlier;
.load ./liblitestream_vfs
ATTACH 'file:never.db?vfs=litestream&at=1%20year%20ago' AS never;
SELECT litestream_error();
.open 'file:my.db?vfs=litestream'
SELECT sum(length(notes)) > 0 FROM tastings;
