#!/usr/bin/env python3
"""What the extension does to the process that it is loaded into.

    process.py EXTENSION REPLICA_URL [TEST…]

Each test runs in a fresh process, since what it looks at – threads, files, forks, SQLites – belongs to the process.
`cargo xtask e2e --only vfs-process` runs them all, beside a writer. Needs apsw, and a sqlite3 module that loads
extensions.
"""

import faulthandler
import gc
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import parse_qs, quote, urlsplit

# How long anything may take that has to come by itself.
DEADLINE = 20
TESTS = {}


def test(function):
    TESTS[function.__name__] = function
    return function


# --- the hosts


def load(extension):
    """Loads the extension, and leaves no connection behind."""
    connection = sqlite3.connect(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(extension)
    connection.close()


def connect(url, more="", name="my.db"):
    uri = f"file:{name}?vfs=litestream&replica_url={quote(url, safe='')}{more}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def look(connection):
    """The number of the newest transaction, once it is clear that the view is one of the writer's states."""
    connection.execute("BEGIN")
    total, newest = connection.execute("SELECT sum(rating), max(tasted) FROM sandwich_ratings").fetchone()
    (last,) = connection.execute("SELECT max(n) FROM tastings").fetchone()
    connection.execute("COMMIT")
    assert total == 400, f"the ratings add up to {total}"
    assert last == newest, f"ratings of transaction {newest}, tastings of {last}"
    return newest


# --- the process


def threads():
    return len(os.listdir("/proc/self/task"))


def files():
    """What every file descriptor leads to, but for the one that lists them."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass
    return found


def eventually(what, condition, state=lambda: ""):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < DEADLINE, f"waited {DEADLINE} s in vain for {what}: {state()}"
        time.sleep(0.02)


def in_child(work):
    """Forks, has the child do some work, and returns what it says. A child that hangs is an error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Only the child's own words, then out: not back into the parent's code.
        code = 1
        try:
            os.close(reader)
            said = str(work())
            code = 0
        except BaseException as error:  # noqa: BLE001: whatever it was, the parent wants to know
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(code)
    os.close(writer)
    deadline = time.monotonic() + DEADLINE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            raise AssertionError(f"the child hung for {DEADLINE} s")
        time.sleep(0.01)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.WIFEXITED(status), f"the child died of signal {os.WTERMSIG(status)}: {said}"
    return os.WEXITSTATUS(status), said


# --- the tests


@test
def ordinary_databases_are_not_disturbed_and_no_thread_is_started(extension, url):
    before = threads(), files()
    load(extension)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ordinary.db")
        for mode in ["wal", "delete", "memory"]:
            connection = sqlite3.connect(path, isolation_level=None)
            assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
            connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
            connection.execute("INSERT INTO t VALUES (?)", (mode,))
            connection.execute("ATTACH ':memory:' AS other")
            connection.execute("CREATE TABLE other.copy AS SELECT * FROM t")
            # An unknown PRAGMA is none: ours answer in databases of ours only.
            assert connection.execute("PRAGMA litestream_txid").fetchall() == []
            try:
                connection.execute("SELECT litestream_txid()")
                raise AssertionError("an ordinary database has a TXID")
            except sqlite3.OperationalError as error:
                assert "no litestream database" in str(error), error
            connection.close()
        connection = sqlite3.connect(path)
        assert [row[0] for row in connection.execute("SELECT x FROM t")] == ["wal", "delete", "memory"]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        vfs = connection.execute("PRAGMA database_list").fetchall()
        connection.close()
        assert vfs[0][2] == path, vfs
    assert (threads(), files()) == before, f"{before} became {(threads(), files())}"


@test
def rule_06_a_failed_open_leaves_nothing_behind_and_says_why(extension, url):
    load(extension)
    first = connect(url)
    look(first)
    first.close()
    # No such bucket; the process keeps its threads, which were started for the connection before.
    for _ in range(3):
        try:
            connect(url.replace("s3://", "s3://no-such-bucket-"))
            raise AssertionError("a bucket that does not exist was opened")
        except sqlite3.OperationalError as error:
            assert "unable to open" in str(error), error
    (reason,) = sqlite3.connect(":memory:").execute("SELECT litestream_error()").fetchone()
    assert "no-such-bucket-" in reason, reason
    second = connect(url)
    look(second)
    second.close()


@test
def rule_06_failed_opens_leave_threads_and_files_as_they_were(extension, url):
    load(extension)
    before = threads(), files()

    def refused(there, more="", name="my.db"):
        try:
            connect(there, more, name)
        except sqlite3.OperationalError as error:
            assert "unable to open" in str(error), error
            return
        raise AssertionError(f"{there}{more} was opened")

    # What is wrong with the settings is known before anything is started.
    refused("s3://")
    refused(url, "&poll_interval=soon")
    assert (threads(), files()) == before, f"{before} became {(threads(), files())}"
    connection = connect(url)
    look(connection)
    connection.close()
    seen = []

    def calm():
        seen.append((threads(), len(files())))
        return len(seen) > 100 and len(set(seen[-100:])) == 1

    eventually("the process to be calm", calm, lambda: seen[-1])
    first = seen[-1]
    with tempfile.TemporaryDirectory() as folder:
        foreign = os.path.join(folder, "foreign.db")
        with open(foreign, "w") as file:
            file.write("somebody's database")
        for _ in range(10):
            refused(url.replace("s3://", "s3://no-such-bucket-"))
            refused(url, "&at=ffffffffffffffff")
            refused(url, f"&hydration_path={quote(foreign)}")
            refused(url, "&write_enabled=1&buffer_path=/proc/nowhere/buffer")
        assert os.listdir(folder) == ["foreign.db"], os.listdir(folder)
    gc.collect()
    as_before = lambda: threads() <= first[0] and len(files()) <= first[1]
    eventually(f"the process to be as before ({first})", as_before, lambda: (threads(), files()))
    connection = connect(url)
    look(connection)
    connection.close()


@test
def an_extension_can_be_loaded_into_a_connection_of_ours(extension, url):
    load(extension)
    connection = connect(url)
    connection.enable_load_extension(True)
    connection.load_extension(extension)
    try:
        connection.load_extension("/nowhere/at/all")
        raise AssertionError("what is not there was loaded")
    except sqlite3.OperationalError as error:
        assert "nowhere" in str(error), error
    look(connection)
    connection.close()


@test
def rule_08_a_child_forked_before_use_reads(extension, url):
    load(extension)
    for _ in range(3):
        code, said = in_child(lambda: look(connect(url)))
        assert code == 0, said
    assert int(said) <= look(connect(url))


@test
def rule_08_a_child_forked_after_use_reads_on_connections_of_its_own_only(extension, url):
    load(extension)
    connection = connect(url)
    before = look(connection)

    code, said = in_child(lambda: look(connect(url)))
    assert code == 0 and int(said) >= before, said

    def inherited():
        # SQLite's text is fixed; ours is in litestream_error(). And closing does not hang either.
        try:
            look(connection)
        except sqlite3.OperationalError as error:
            (reason,) = sqlite3.connect(":memory:").execute("SELECT litestream_error()").fetchone()
            connection.close()
            return f"{error}: {reason}"
        raise AssertionError("an inherited connection was read")

    code, said = in_child(inherited)
    assert code == 0 and "opened by the parent" in said, said

    def travels():
        try:
            connection.execute("PRAGMA litestream_time = '1 second ago'").fetchone()
        except sqlite3.OperationalError as error:
            return error
        raise AssertionError("an inherited connection travelled")

    code, said = in_child(travels)
    assert code == 0 and "opened by the parent" in said, said

    def grandchild():
        own = connect(url)
        look(own)
        return in_child(lambda: look(connect(url)))

    code, said = in_child(grandchild)
    assert code == 0 and said.startswith("(0,"), said

    def follows():
        return look(connection) > before

    eventually("the parent to follow the replica", follows)
    connection.close()


@test
def rule_08_a_child_forked_inside_a_transaction_gets_an_error_and_the_parent_keeps_its_view(extension, url):
    load(extension)
    connection = connect(url)
    connection.execute("BEGIN")
    view = connection.execute("SELECT max(tasted) FROM sandwich_ratings").fetchone()

    def inherited():
        # What is in memory may be read on; what is not must be an error. A new transaction is one in any case.
        try:
            connection.execute("SELECT sum(length(notes)) FROM tastings").fetchone()
            connection.execute("COMMIT")
            connection.execute("SELECT max(tasted) FROM sandwich_ratings").fetchone()
        except sqlite3.OperationalError:
            return "refused"
        raise AssertionError("an inherited connection began a transaction")

    assert in_child(inherited) == (0, "refused")
    assert connection.execute("SELECT max(tasted) FROM sandwich_ratings").fetchone() == view
    connection.execute("SELECT sum(length(notes)) FROM tastings").fetchone()
    connection.execute("COMMIT")
    look(connection)


@test
def rule_08_forks_while_our_threads_are_busy_neither_hang_nor_crash(extension, url):
    # The host itself runs nothing beside: an SQLite in which another thread works cannot be forked, since a lock of its
    # allocator may be taken for ever in the child.
    load(extension)
    kept = connect(url)
    look(kept)
    for number in range(40):
        # A database of its own, which polls all the time, and whose pages are just being prefetched.
        busy = connect(url, f"&poll_interval={10 + number}ms")
        busy.execute("SELECT n FROM tastings LIMIT 20").fetchall()

        def work():
            newest = look(connect(url))
            busy.close()
            kept.close()
            return newest

        code, said = in_child(work)
        assert code == 0, said
        look(busy)
        busy.close()
        look(kept)
    kept.close()


@test
def rule_21_threads_open_and_close_in_any_order(extension, url):
    load(extension)
    failures, connections = [], []
    made = threading.Lock()

    def guarded(work):
        def run():
            try:
                work()
            except Exception as error:  # noqa: BLE001: the main thread reports it
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def make():
        connection = connect(url, "" if len(connections) % 2 else "&poll_interval=50ms")
        look(connection)
        with made:
            connections.append(connection)

    def unmake():
        # Not the one that this thread opened, and in another order.
        with made:
            connection = connections.pop(len(connections) // 3)
        look(connection)
        connection.close()

    for _ in range(5):
        for thread in [guarded(make) for _ in range(8)]:
            thread.join(DEADLINE)
        for thread in [guarded(unmake) for _ in range(8)] + [guarded(make) for _ in range(4)]:
            thread.join(DEADLINE)
    assert not failures, failures[0]
    while connections:
        connections.pop().close()


@test
def rule_21_connections_close_in_any_order_with_statements_open(extension, url):
    load(extension)
    import apsw

    apsw_load(extension)
    uri = f"file:my.db?vfs=litestream&replica_url={quote(url, safe='')}"
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    first, second = apsw.Connection(uri, flags=flags), apsw.Connection(uri, flags=flags)
    # A cursor in the middle of its rows holds a transaction; the other connections do not mind.
    half = first.execute("SELECT n, notes FROM tastings ORDER BY n")
    next(half)
    third = apsw.Connection(uri, flags=flags)
    first.execute("ATTACH ? AS earlier", (uri + "&at=" + quote("3 seconds ago"),))
    then = first.execute("SELECT max(tasted) FROM earlier.sandwich_ratings").get
    now = first.execute("SELECT max(tasted) FROM main.sandwich_ratings").get
    assert then < now, (then, now)
    second.close()
    rows = 1 + sum(1 for _ in half)
    assert rows > 0
    first.execute("SELECT n FROM earlier.tastings").get
    first.close(True)
    assert third.execute("SELECT sum(rating) FROM sandwich_ratings").get == 400
    third.close()


def apsw_load(extension):
    import apsw

    connection = apsw.Connection(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(extension)
    connection.close()


@test
def rule_09_two_sqlites_in_one_process_both_read(extension, url):
    import apsw

    assert sqlite3.sqlite_version != apsw.sqlite_lib_version(), "this process has only one SQLite"
    load(extension)
    apsw_load(extension)
    # Again, as programs do that load it for each connection.
    load(extension)
    apsw_load(extension)
    uri = f"file:my.db?vfs=litestream&replica_url={quote(url, safe='')}"
    other = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    ours = connect(url)
    newest = 0
    for _ in range(20):
        with other:
            total, number = other.execute("SELECT sum(rating), max(tasted) FROM sandwich_ratings").fetchone()
            txid = other.execute("SELECT litestream_txid()").get
        assert total == 400 and number >= newest and len(txid) == 16
        # Both show one process's view: never an older one than the other has shown.
        newest = look(ours)
        assert newest >= number, (newest, number)
    # A moment is one connection's alone.
    ours.execute("PRAGMA litestream_time = '3 seconds ago'").fetchone()
    assert look(ours) < other.execute("SELECT max(tasted) FROM sandwich_ratings").get
    assert ours.execute("SELECT litestream_time()").fetchone() != ("latest",)
    assert other.execute("SELECT litestream_time()").get == "latest"
    other.close()
    look(ours)
    ours.close()


class Store:
    """What lies between this process and the store: it can fall silent."""

    def __init__(self, url):
        self.talking = threading.Event()
        self.talking.set()
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        there = urlsplit(query["endpoint"][0])
        self.there = there.hostname, there.port
        self.listener = socket.create_server(("127.0.0.1", 0))
        here = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = url.replace(query["endpoint"][0], here).replace(quote(query["endpoint"][0], safe=""), here)
        assert self.url != url, url
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(self.there)
            for source, sink in [(client, server), (server, client)]:
                threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    def copy(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                self.talking.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@test
def rule_08_interrupts_end_every_wait_whatever_sqlite_is_doing(extension, url):
    # Before 3.41 SQLite forgets an interrupt where no statement is active: while one is prepared, which reads the schema, and in a PRAGMA.
    load(extension)
    store = Store(url)

    def interrupted(connection, sql):
        store.talking.clear()
        result = []

        def run():
            try:
                result.append(connection.execute(sql).fetchall())
            except sqlite3.OperationalError as error:
                result.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.4)
        assert thread.is_alive(), f"{sql} did not wait for the store: {result}"
        start = time.monotonic()
        connection.interrupt()
        thread.join(DEADLINE)
        took = time.monotonic() - start
        store.talking.set()
        assert result == ["interrupted"], f"{sql}: {result}"
        # An interrupt is noticed within 100 ms; without one, these would wait for 10 s and longer. This machine may be busy.
        assert took < 3, f"{sql}: {took:.3f} s"
        (one,) = connection.execute("SELECT 1").fetchone()
        assert one == 1

    query = "SELECT sum(rating) FROM sandwich_ratings"
    connection = connect(store.url, "&poll_interval=100ms")
    # It takes so long until nobody looks for new transactions any more: then the next transaction waits until that is done.
    time.sleep(4)
    interrupted(connection, query)
    assert look(connection)
    interrupted(connection, "PRAGMA litestream_time = '1 second ago'")
    time.sleep(4)
    # The schema is known by now, so this one waits in its first step.
    interrupted(connection, query)
    assert look(connection)
    connection.close()


@test
def rule_21_a_hundred_opens_and_closes_leak_nothing(extension, url):
    load(extension)

    def cycle(number):
        # Every one another database of the process, since an equal one might be kept by a reader.
        connection = connect(url, f"&poll_interval={100 + number}ms")
        look(connection)
        if number % 10 == 0:
            connection.execute("PRAGMA litestream_time = '2 seconds ago'").fetchone()
            look(connection)
        connection.close()

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = os.environ["SQLITE_TMPDIR"] = folder
        cycle(0)
        # As it is after the first one, once that is all over.
        state = lambda: (threads(), len(files()), os.listdir(folder))
        seen = [state()]

        def calm():
            seen.append(state())
            return len(seen) > 100 and len({(count, open_, len(left)) for count, open_, left in seen[-100:]}) == 1

        eventually("the process to be calm after the first", calm, state)
        first = seen[-1]
        for number in range(1, 101):
            cycle(number)
        gc.collect()

        def as_before():
            count, open_files, left = state()
            return count <= first[0] and open_files <= first[1] and len(left) <= len(first[2])

        eventually(f"the process to be as after the first ({first})", as_before, lambda: (state(), files()))


@test
def rule_21_a_process_ends_at_once_with_connections_open(extension, url):
    program = (
        "import sys; sys.path.insert(0, sys.argv[3]); import process\n"
        "process.load(sys.argv[1]); c = process.connect(sys.argv[2]); process.look(c)\n"
        "c.execute('BEGIN'); c.execute('SELECT * FROM tastings').fetchone()\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", program, extension, url, here]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 0 and ended.stdout == "", ended


# --- running them


def main(extension, url, names):
    failed = 0
    for name in names or TESTS:
        start = time.monotonic()
        ended = subprocess.run([sys.executable, __file__, extension, url, f"={name}"], capture_output=True, text=True)
        seconds = time.monotonic() - start
        if ended.returncode == 0:
            print(f"ok {name} ({seconds:.1f} s)", flush=True)
        else:
            failed += 1
            print(f"FAILED {name} ({ended.returncode}):\n{ended.stdout}{ended.stderr}", flush=True)
    return failed


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} EXTENSION REPLICA_URL [TEST…]")
    extension, url, *names = sys.argv[1:]
    if len(names) == 1 and names[0].startswith("="):
        # A test that hangs says where.
        faulthandler.dump_traceback_later(150, exit=True)
        TESTS[names[0][1:]](os.path.abspath(extension), url)
        faulthandler.cancel_dump_traceback_later()
    else:
        sys.exit(1 if main(extension, url, names) else 0)
