#!/usr/bin/env python3
"""Sandwiches straight from a replica, with apsw (pip install apsw), which brings an SQLite of its own.

    apsw_example.py EXTENSION REPLICA_URL [TIME]
"""

import sys
from urllib.parse import quote

import apsw


def main(extension, replica, time="5 seconds ago"):
    # Loading it once, into any connection, makes the VFS known to every later connection of the process.
    with_extension = apsw.Connection(":memory:")
    with_extension.enable_load_extension(True)
    with_extension.load_extension(extension)
    with_extension.close()

    uri = f"file:my.db?replica_url={quote(replica, safe='')}"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        # As good as `vfs=litestream` in the URI.
        db = apsw.Connection(uri, flags=flags, vfs="litestream")
    except apsw.CantOpenError as error:
        # SQLite says no more than "unable to open database file"; any connection of the process knows why.
        reason = apsw.Connection(":memory:").execute("SELECT litestream_error()").get
        sys.exit(f"{error}: {reason}")

    ratings = "SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id"
    with db:
        rows = db.execute(ratings).fetchall()
        txid = db.pragma("litestream_txid")
    show(f"latest {txid}", rows)

    # The answer is the moment that was found. An impossible one is an error that says which are possible.
    moment = db.pragma("litestream_time", time)
    show(f"at {moment} {db.pragma('litestream_txid')}", db.execute(ratings))

    db.pragma("litestream_time", "latest")
    db.close()


def show(title, rows):
    print(title)
    for row in rows:
        print("|".join(map(str, row)))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} EXTENSION REPLICA_URL [TIME]")
    main(*sys.argv[1:4])
