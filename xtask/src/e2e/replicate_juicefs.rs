//! JuiceFS's block map under our daemon while JuiceFS writes, with a reader of our VFS that follows; then everything is killed at once, and JuiceFS
//! opens what both restores make of it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use rusqlite::{Connection, OpenFlags};

use super::ours::{Ours, config};
use super::readers::register;
use super::volume::{Volume, regular_files};
use super::world::{Backend, World};
use super::{Checked, DEADLINE};
use crate::litestream::Target;
use crate::process::{Process, run};

/// Level 1 and snapshots come up while mdtest runs.
const LEVELS: &str = "
levels: [{interval: 1s}]
snapshot: {interval: 2s, retention: 24h}
l0-retention: 24h";
/// So many names more must the reader see before all is killed.
const SEEN: i64 = 60;

/// See the module.
pub(super) fn replicate_juicefs(world: &mut World) -> Checked {
    register()?;
    let url = world.new_replica(Backend::S3, "replicate-juicefs");
    let folder = world.folder("replicate-juicefs")?;
    let bucket = folder.join("bucket");
    std::fs::create_dir(&bucket)?;
    let original = Volume::of(world, &folder.join("meta.db"))?;
    original.format(&bucket)?;
    let config = config(&folder, LEVELS, &[(&original.database, &url)])?;
    let mut daemon = Ours::start(world, &config)?;
    daemon.sync(&original.database)?;

    let uri = format!("{}&poll_interval=100ms", world.vfs_uri(&url));
    let (names, states, done) = (AtomicI64::new(0), AtomicI64::new(0), AtomicBool::new(false));
    let mut mdtest = Process::spawn("juicefs mdtest", &mut original.mdtest("/whole"))?;
    let seen = std::thread::scope(|scope| -> Result<i64> {
        let reader = scope.spawn(|| follow(&uri, &names, &states, &done));
        let watched = (|| {
            let status = mdtest.wait(DEADLINE)?;
            ensure!(status.success(), "juicefs mdtest failed ({status}):\n{}", mdtest.log());
            daemon.sync(&original.database)?;
            let whole = edges(&Connection::open(&original.database)?)?;
            daemon.process.wait_until("the reader to see all of it", DEADLINE, || {
                ensure!(!reader.is_finished(), "the reader has ended");
                Ok((names.load(Ordering::SeqCst) == whole).then_some(()))
            })?;
            let mdtest = Process::spawn("juicefs mdtest", &mut original.mdtest("/killed"))?;
            daemon.process.wait_until("the reader to see some more", DEADLINE, || {
                ensure!(!reader.is_finished(), "the reader has ended");
                Ok((names.load(Ordering::SeqCst) >= whole + SEEN).then_some(()))
            })?;
            drop(mdtest);
            Ok(())
        })();
        done.store(true, Ordering::SeqCst);
        reader.join().map_err(|_| anyhow!("the reader panicked"))??;
        watched.map(|()| names.load(Ordering::SeqCst))
    })?;
    drop(daemon);

    // What was up when all was killed: whole, and not less than the reader has seen.
    let left = Volume::of(world, &folder.join("left.db"))?;
    world.restore_both(&url, &Target::Latest)?;
    world.restore_ours_to(&url, &Target::Latest, &left.database)?;
    let up = edges(&Connection::open(&left.database)?)?;
    let all = edges(&Connection::open(&original.database)?)?;
    ensure!((seen..=all).contains(&up), "the reader has seen {seen} names, {up} are restored, {all} were written");
    left.dump(&folder.join("left.json"))?;

    // What was not goes up with the next start.
    let daemon = Ours::start(world, &config)?;
    daemon.sync(&original.database)?;
    let (status, _) = daemon.terminate()?;
    ensure!(status.success(), "the daemon ended with {status}");
    let dump = original.dump(&folder.join("original.json"))?;
    world.restore_both(&url, &Target::Latest)?;
    for (name, real) in [("ours", false), ("real", true)] {
        let restored = Volume::of(world, &folder.join(format!("{name}.db")))?;
        if real {
            world.restore_real_to(&url, &Target::Latest, &restored.database)?;
        } else {
            world.restore_ours_to(&url, &Target::Latest, &restored.database)?;
        }
        let found = restored.dump(&folder.join(format!("{name}.json")))?;
        ensure!(found["FSTree"] == dump["FSTree"], "what was restored by {name} dumps as another tree");
        run("juicefs status", restored.command("status").arg(restored.url()))?;
        run("juicefs mdtest on what was restored", &mut restored.mdtest(&format!("/further-{name}")))?;
    }
    Ok(format!(
        "{} files; the reader saw {} states; killed with {all} names, {up} of them up; then all; dump and a further mdtest by both",
        regular_files(&dump),
        states.load(Ordering::SeqCst)
    ))
}

fn edges(connection: &Connection) -> Result<i64> {
    Ok(connection.query_row("SELECT count(*) FROM jfs_edge", [], |row| row.get(0))?)
}

/// Reads until it is told to stop. mdtest only adds names.
fn follow(uri: &str, names: &AtomicI64, states: &AtomicI64, done: &AtomicBool) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    let mut last = -1;
    while !done.load(Ordering::SeqCst) {
        let now = look(&connection).or_else(|error| {
            let why: String = connection.query_row("SELECT litestream_error()", [], |row| row.get(0))?;
            Err(error).context(why)
        })?;
        ensure!(now >= last, "from {last} names back to {now}");
        states.fetch_add(i64::from(now > last), Ordering::SeqCst);
        names.store(now, Ordering::SeqCst);
        last = now;
    }
    Ok(())
}

fn look(connection: &Connection) -> Result<i64> {
    let view = connection.unchecked_transaction()?;
    let now = edges(&view)?;
    let integrity: String = view.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(integrity == "ok", "with {now} names: {integrity}");
    ensure!(edges(&view)? == now, "two looks in one transaction saw different things");
    view.finish()?;
    Ok(now)
}
