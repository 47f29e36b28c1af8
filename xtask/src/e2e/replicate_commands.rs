//! `litestream replicate` with what it can do beside replicating, and how it ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use litestream_fixtures::db::content_sha256;
use litestream_fixtures::s3::{Down, S3Options, S3Server};
use rusqlite::Connection;
use rustix::process::Signal;

use super::ours::{Ours, config};
use super::world::{Backend, World};
use super::{Checked, DEADLINE};
use crate::bench::subject;
use crate::litestream::{Target, file_url};
use crate::process::{Process, converse, wait_until};

/// How long a daemon that ends tries to reach its store.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the module.
pub(super) fn replicate_commands(world: &mut World) -> Checked {
    let url = world.new_replica(Backend::S3, "replicate-exec");
    let folder = world.folder("replicate-commands")?;
    exec(world, &folder, &url).context("--exec")?;
    let url = world.new_replica(Backend::S3, "replicate-once");
    once(world, &folder, &url).context("--once")?;
    watch(world, &folder).context("dir and watch")?;
    let took = store_down(world, &folder).context("SIGTERM while the store is down")?;
    super::replicate_control::control(world, &folder).context("the control socket")?;
    let two = super::replicate_control::two_daemons(world, &folder).context("two daemons")?;
    Ok(format!(
        "exec and its code, once, force-snapshot, restore-if-db-not-exists, dir and watch, the control socket; the store down: exit 1 after {:.1} s; {two}",
        took.as_secs_f64()
    ))
}

/// A database with one row.
pub(super) fn make(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(DEADLINE)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(x); INSERT INTO t VALUES ('first')")?;
    Ok(connection)
}

pub(super) fn rows(connection: &Connection) -> Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT x FROM t ORDER BY rowid")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Both restores must hold what the database holds.
pub(super) fn same(world: &World, url: &str, database: &Connection) -> Result<()> {
    let restored = world.restore_both(url, &Target::Latest)?;
    ensure!(restored.database.content == content_sha256(database)?, "{url} holds something else than the database");
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is no text")
}

/// A program that inserts a row, and ends as it is told.
fn program(folder: &Path) -> Result<PathBuf> {
    let script = folder.join("program.py");
    let source = "import os, signal, sqlite3, sys
database, row, end = sys.argv[1:]
connection = sqlite3.connect(database)
connection.execute('INSERT INTO t VALUES (?)', (row,))
connection.commit()
print(connection.execute('SELECT count(*) FROM t').fetchone()[0], 'rows')
sys.stdout.flush()
if end == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(end))
";
    std::fs::write(&script, source)?;
    Ok(script)
}

fn exec(world: &World, folder: &Path, url: &str) -> Result<()> {
    let (database, script) = (folder.join("exec.db"), program(folder)?);
    drop(make(&database)?);
    let run = |row: &str, end: &str| {
        let line = format!("python3 {} {} {row} {end}", text(&script)?, text(&database)?);
        let mut command = world.our();
        command.args(["replicate", "--restore-if-db-not-exists", "-exec", &line]).arg(&database).arg(url);
        converse("replicate -exec", &mut command, "", DEADLINE)
    };
    for (row, end, code) in [("well", "0", 0), ("bad", "7", 7), ("dead", "killed", 137)] {
        let said = run(row, end)?;
        ensure!(said.status.code() == Some(code), "{row}: {} instead of {code}:\n{}", said.status, said.stderr);
        // Whatever its end, what it has committed is up.
        same(world, url, &Connection::open(&database)?).context(row)?;
    }
    // On a new machine.
    let before = rows(&Connection::open(&database)?)?;
    for name in ["exec.db", "exec.db-wal", "exec.db-shm"] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    std::fs::remove_dir_all(folder.join(".exec.db-litestream"))?;
    let said = run("restored", "0")?;
    ensure!(said.status.success(), "{}:\n{}", said.status, said.stderr);
    ensure!(said.stdout.contains("5 rows"), "the program saw {}", said.stdout);
    let after = Connection::open(&database)?;
    ensure!(rows(&after)?[..before.len()] == before, "{:?} became {:?}", before, rows(&after)?);
    same(world, url, &after)
}

fn once(world: &World, folder: &Path, url: &str) -> Result<()> {
    let database = folder.join("once.db");
    let connection = make(&database)?;
    let run = |flags: &[&str]| {
        let mut command = world.our();
        command.args(["replicate", "-once"]).args(flags).arg(&database).arg(url);
        crate::process::run("replicate -once", &mut command)
    };
    run(&[])?;
    same(world, url, &connection)?;
    let first = world.list(url)?;
    run(&[])?;
    ensure!(world.list(url)? == first, "nothing was committed, but files came");
    connection.execute("INSERT INTO t VALUES ('second')", [])?;
    run(&[])?;
    same(world, url, &connection)?;
    let second = world.list(url)?;
    ensure!(second.len() == first.len() + 1, "{} files, and after one transaction {}", first.len(), second.len());
    let snapshots = || -> Result<usize> { Ok(world.list(url)?.iter().filter(|file| file.level == 9).count()) };
    let before = snapshots()?;
    run(&["-force-snapshot"])?;
    ensure!(snapshots()? == before + 1, "{before} snapshots, and after -force-snapshot {}", snapshots()?);
    same(world, url, &connection)?;
    // What does not exist is a failure.
    let mut missing = world.our();
    missing.args(["replicate", "-once"]).arg(folder.join("missing.db")).arg(url);
    let said = converse("replicate -once", &mut missing, "", DEADLINE)?;
    ensure!(said.status.code() == Some(1) && said.stderr.contains("missing.db"), "{}: {}", said.status, said.stderr);
    Ok(())
}

/// Databases that come and go below a watched folder.
fn watch(world: &World, folder: &Path) -> Result<()> {
    let many = folder.join("many");
    std::fs::create_dir_all(many.join("below"))?;
    let early = make(&many.join("early.db"))?;
    let backup = file_url(&folder.join("backup"));
    let global = format!(
        "dbs: [{{dir: {}, pattern: '*.db', recursive: true, watch: true, replica: {{url: '{backup}'}}}}]",
        many.display()
    );
    let daemon = Ours::start(world, &config(folder, &global, &[])?)?;
    daemon.sync(&many.join("early.db"))?;
    same(world, &format!("{backup}/early.db"), &early)?;
    let path = many.join("below/late.db");
    let late = make(&path)?;
    let known = |daemon: &Ours<'_>| -> Result<bool> { Ok(!daemon.listed(&path)?.is_null()) };
    wait_until("the new database to be found", DEADLINE, || Ok(known(&daemon)?.then_some(())))?;
    daemon.sync(&path)?;
    same(world, &format!("{backup}/below/late.db"), &late)?;
    late.close().map_err(|(_, error)| error)?;
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(many.join(format!("below/late.db{suffix}")));
    }
    wait_until("the database that is gone to be let go of", DEADLINE, || Ok((!known(&daemon)?).then_some(())))?;
    // Another one of its name.
    let again = make(&path)?;
    again.execute("INSERT INTO t VALUES ('another')", [])?;
    wait_until("it to be found again", DEADLINE, || Ok(known(&daemon)?.then_some(())))?;
    daemon.sync(&path)?;
    same(world, &format!("{backup}/below/late.db"), &again)?;
    let (status, log) = daemon.terminate()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{log}");
    Ok(())
}

/// Ends with exit code 1 in the time that it has, and says what is not up; a second signal ends it at once.
fn store_down(world: &World, folder: &Path) -> Result<Duration> {
    let server = S3Server::start(S3Options::default())?;
    server.create_bucket(subject::BUCKET);
    let (url, database) = (subject::s3_url(&server), folder.join("down.db"));
    let connection = make(&database)?;
    let start = |patience: u64| -> Result<Process> {
        server.set_down(None)?;
        let global = format!("shutdown-sync-timeout: {patience}s");
        let config = config(folder, &global, &[(&database, &url)])?;
        let mut command = Command::new(world.our().get_program());
        subject::authorize(&mut command, &server);
        let mut process =
            Process::spawn("our litestream replicate", command.arg("replicate").arg("--config").arg(&config))?;
        let (mut sync, socket) = (world.our(), config.with_extension("sock"));
        sync.args(["sync", "--wait", "--socket"]).arg(&socket).arg(&database);
        process.wait_until("the first sync", DEADLINE, || Ok(crate::process::run("sync", &mut sync).ok()))?;
        connection.execute("INSERT INTO t VALUES ('late')", [])?;
        Ok(process)
    };
    let mut took = Duration::ZERO;
    for down in [Down::Refuse, Down::Silent] {
        let mut process = start(PATIENCE.as_secs())?;
        server.set_down(Some(down))?;
        connection.execute("INSERT INTO t VALUES ('later')", [])?;
        let began = Instant::now();
        process.signal(Signal::TERM)?;
        let status = process.wait(DEADLINE)?;
        let (time, log) = (began.elapsed(), process.kill());
        ensure!(status.code() == Some(1), "{down:?}: it ended with {status}:\n{log}");
        ensure!(time < PATIENCE + Duration::from_secs(3), "{down:?}: it took {:.1} s:\n{log}", time.as_secs_f64());
        let last = crate::process::tail(&log, 2);
        ensure!(
            last.contains("down.db") && last.contains("not up to date"),
            "{down:?}: it does not say what is missing:\n{log}"
        );
        took = took.max(time);
    }
    let mut process = start(600)?;
    server.set_down(Some(Down::Refuse))?;
    connection.execute("INSERT INTO t VALUES ('latest')", [])?;
    process.signal(Signal::TERM)?;
    process.wait_until_said("ending", DEADLINE)?;
    ensure!(process.ended()?.is_none(), "it has ended without a second signal:\n{}", process.log());
    process.signal(Signal::TERM)?;
    let began = Instant::now();
    let status = process.wait(DEADLINE)?;
    ensure!(status.code() == Some(143), "after a second signal it ended with {status}");
    ensure!(began.elapsed() < Duration::from_secs(3), "after a second signal it took {:?}", began.elapsed());
    // Nothing is lost.
    drop(start(PATIENCE.as_secs())?);
    let output = folder.join("down-restored.db");
    let mut restore = subject::our_restore(Path::new(world.our().get_program()));
    subject::authorize(&mut restore, &server);
    crate::process::run("our restore", restore.arg("-o").arg(&output).arg(&url))?;
    let (restored, all) = (rows(&Connection::open(&output)?)?, rows(&connection)?);
    ensure!(all.starts_with(&restored) && restored.len() + 1 >= all.len(), "{restored:?} of {all:?}");
    Ok(took)
}
