#!/bin/sh
# Sandwiches straight from a replica, with the `sqlite3` program (3.31 or later).
#
#     sqlite3.sh EXTENSION REPLICA_URL [TIME]
#
# EXTENSION is liblitestream_vfs.so. Keys come from LITESTREAM_ACCESS_KEY_ID and LITESTREAM_SECRET_ACCESS_KEY, or from
# whatever the AWS tools use. $SQLITE3 names another sqlite3 program.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: $0 EXTENSION REPLICA_URL [TIME]" >&2
    exit 2
fi
extension=${1%.so}
export LITESTREAM_REPLICA_URL="$2"
time=${3:-5 seconds ago}

# The name of the database means nothing here: the replica is what LITESTREAM_REPLICA_URL says.
exec "${SQLITE3:-sqlite3}" -batch -bail <<SQL
.load '$extension'
.open 'file:my.db?vfs=litestream'
.mode list
BEGIN;
SELECT 'latest ' || litestream_txid() FROM (SELECT 1 FROM sandwich_ratings LIMIT 1);
SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id;
COMMIT;

-- The answer of this PRAGMA is the moment that it found.
.output /dev/null
PRAGMA litestream_time = '$time';
.output stdout
SELECT 'at ' || litestream_time() || ' ' || litestream_txid();
SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id;
SQL
