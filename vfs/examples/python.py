#!/usr/bin/env python3
"""Sandwiches straight from a replica, with Python's own sqlite3 module.

    python.py EXTENSION REPLICA_URL [TIME]

Some Pythons are built without extension loading (pyenv's, macOS's): Debian's /usr/bin/python3 has it, and so has apsw
(see apsw_example.py).
"""

import sqlite3
import sys
from urllib.parse import quote


def main(extension, replica, time="5 seconds ago"):
    # Loading it once, into any connection, makes the VFS known to every later connection of the process.
    with_extension = sqlite3.connect(":memory:")
    with_extension.enable_load_extension(True)
    with_extension.load_extension(extension)
    with_extension.close()

    uri = f"file:my.db?vfs=litestream&replica_url={quote(replica, safe='')}"
    # No implicit transactions: we say where they begin and end.
    db = connect(uri)

    db.execute("BEGIN")
    rows = db.execute("SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id").fetchall()
    (txid,) = db.execute("SELECT litestream_txid()").fetchone()
    db.execute("COMMIT")
    show(f"latest {txid}", rows)

    # The answer is the moment that was found. An impossible one is an error that says which are possible.
    (moment,) = db.execute(f"PRAGMA litestream_time = '{time}'").fetchone()
    (txid,) = db.execute("SELECT litestream_txid()").fetchone()
    rows = db.execute("SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id").fetchall()
    show(f"at {moment} {txid}", rows)

    db.execute("PRAGMA litestream_time = 'latest'").fetchone()
    db.close()


def connect(uri):
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None)
    except sqlite3.OperationalError as error:
        # SQLite says no more than "unable to open database file"; any connection of the process knows why.
        (reason,) = sqlite3.connect(":memory:").execute("SELECT litestream_error()").fetchone()
        raise SystemExit(f"{error}: {reason}") from None


def show(title, rows):
    print(title)
    for row in rows:
        print("|".join(map(str, row)))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} EXTENSION REPLICA_URL [TIME]")
    main(*sys.argv[1:4])
