//! Writers of a block map that are killed at random instants, and writers that race for one replica.
//!
//! A writer is a process of its own, this program again ([`write()`]): it runs a client's transactions through the VFS and says of each when it
//! was committed, and now and then what is durable. Whoever killed it looks at what is left.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use litestream_fixtures::blockmap::{BlockMapOptions, Client, Model, build_block_map, check_block_map};
use litestream_fixtures::recorder::Recorder;
use litestream_fixtures::s3::{S3Options, S3Server};
use litestream_storage::format_time;
use ltx::Timestamp;
use rusqlite::{Connection, OpenFlags};

use super::Tally;
use crate::bench::subject;

const BUCKET: &str = "bkt";
/// Size of the block map.
const BYTES: u64 = 1 << 20;
/// How many transactions a writer runs between two syncs.
const SYNC_EVERY: u64 = 25;
/// How long a writer lives at most before it is killed, in milliseconds.
const LIFE: std::ops::Range<u64> = 20..700;

/// What a writer is told.
#[derive(Debug, Args)]
pub(crate) struct Writer {
    uri: String,
    seed: u64,
    /// For a race: after so many transactions it syncs and ends
    #[arg(long)]
    transactions: Option<u64>,
    /// Milliseconds between two transactions
    #[arg(long, default_value_t = 0)]
    pace: u64,
}

/// Writes until it is killed.
///
/// # Errors
/// Nothing but what a race may bring: that it was fenced, which it says.
pub(crate) fn write(arguments: &Writer) -> Result<()> {
    register()?;
    let client = Client::new(arguments.seed);
    let say = |what: &str| {
        println!("{what}");
        std::io::stdout().flush()
    };
    let connection = match open(&arguments.uri) {
        Ok(connection) => connection,
        Err(error) => return Ok(say(&format!("refused {error}"))?),
    };
    connection.busy_timeout(Duration::from_secs(5))?;
    for number in 1.. {
        match client.step(&connection) {
            Ok(step) => say(&format!("committed {}", step.number))?,
            Err(error) => {
                let why: String = connection.query_row("SELECT litestream_error()", [], |row| row.get(0))?;
                say(&format!("refused {error}: {why}"))?;
                break;
            }
        }
        let last = arguments.transactions == Some(number);
        if last || number % SYNC_EVERY == 0 {
            let held = litestream_fixtures::blockmap::transactions(&connection)?;
            match connection.query_row("PRAGMA litestream_sync", [], |row| row.get::<_, String>(0)) {
                Ok(_) => say(&format!("durable {held}"))?,
                Err(error) => {
                    say(&format!("refused {error}"))?;
                    break;
                }
            }
        }
        if last {
            break;
        }
        if arguments.pace > 0 {
            std::thread::park_timeout(Duration::from_millis(arguments.pace));
        }
    }
    Ok(())
}

pub(super) fn register() -> Result<()> {
    ensure!(litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension), "cannot register the VFS");
    drop(Connection::open_in_memory()?);
    Ok(())
}

pub(super) fn open(uri: &str) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

/// What a writer has said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) committed: u64,
    pub(super) durable: u64,
    pub(super) refused: Option<String>,
}

/// A replica in a store, and the truth about it.
pub(super) struct Stage {
    pub(super) server: S3Server,
    pub(super) folder: tempfile::TempDir,
    pub(super) seed: u64,
    pub(super) model: Model,
    others: Cell<u32>,
}

impl Stage {
    /// A block map of so many bytes in a replica.
    pub(super) fn new(seed: u64, bytes: u64) -> Result<Self> {
        let folder = subject::scratch()?;
        let server = S3Server::start(S3Options::default())?;
        server.create_bucket(BUCKET);
        let path = folder.path().join("meta.db");
        build_block_map(&path, &BlockMapOptions { bytes, seed })?;
        let time = jiff::Timestamp::now().as_millisecond();
        let file = Recorder::new().record(&path, time)?;
        let metadata = format_time(Timestamp(time));
        let key = format!("db/0000/{}", file.name);
        server.put_object(BUCKET, &key, file.bytes, &[("litestream-timestamp", metadata.as_str())]);
        let model = Model::new(&Connection::open(&path)?, Client::new(seed))?;
        Ok(Self { server, folder, seed, model, others: Cell::new(0) })
    }

    pub(super) fn uri(&self, buffer: &str, more: &str) -> String {
        let (server, path) = (&self.server, self.folder.path().join(buffer));
        let keys = format!("&accessKeyId={}&secretAccessKey={}", server.access_key(), server.secret_key());
        let url = format!("s3://{BUCKET}/db?endpoint={}&forcePathStyle=true{keys}", server.endpoint());
        let url = url.replace('&', "%26").replace('?', "%3F").replace('=', "%3D");
        format!("file:meta.db?vfs=litestream&replica_url={url}&buffer_path={}{more}", path.display())
    }

    pub(super) fn writer(&self, uri: &str, transactions: Option<u64>, pace: Option<Duration>) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("soak-writer").arg(uri).arg(self.seed.to_string());
        if let Some(transactions) = transactions {
            command.arg("--transactions").arg(transactions.to_string());
        }
        if let Some(pace) = pace {
            command.arg("--pace").arg(pace.as_millis().to_string());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start a writer")
    }

    /// A reader of its own: what another machine sees.
    pub(super) fn elsewhere(&self) -> Result<Connection> {
        // Another interval makes it another database than those that were opened before.
        let number = self.others.replace(self.others.get() + 1);
        Ok(open(&self.uri("none", &format!("&poll_interval={}ms", 500 + number)))?)
    }

    /// The names of the files in level 0, in order.
    pub(super) fn keys_of_level_0(&self) -> Vec<String> {
        self.server.keys(BUCKET).into_iter().filter(|key| key.starts_with("db/0000/")).collect()
    }
}

pub(super) fn listen(child: &mut Child) -> Result<Said> {
    let output = child.stdout.take().context("a writer without output")?;
    let mut said = Said::default();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("committed", number)) => said.committed = number.parse().unwrap_or(said.committed),
            Some(("durable", number)) => said.durable = number.parse().unwrap_or(said.durable),
            Some(("refused", why)) => said.refused = Some(why.to_owned()),
            _ => {}
        }
    }
    Ok(said)
}

/// Kills a writer so many times.
pub(super) fn kills(tries: u32, seed: u64, tally: &mut Tally) -> Result<()> {
    register()?;
    let mut stage = Stage::new(seed, BYTES)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut committed, mut durable, mut survivors) = (0, 0, 0);
    for number in 0..tries {
        let life = Duration::from_millis(random.u64(LIFE));
        let outcome = kill_once(&mut stage, number, life, &mut committed, &mut durable);
        survivors += u64::from(outcome.as_ref().is_ok_and(|more| *more));
        tally.add(&format!("kill {number} after {life:?}"), outcome.map(drop));
    }
    println!(
        "writers: {tries} killed, {committed} transactions committed, {durable} said to be durable; {survivors} times one more was there than was acknowledged"
    );
    ensure!(committed > u64::from(tries), "only {committed} transactions in {tries} lives");
    Ok(())
}

fn kill_once(stage: &mut Stage, number: u32, life: Duration, committed: &mut u64, durable: &mut u64) -> Result<bool> {
    let uri = stage.uri("buffer", "&write_enabled=1&sync_interval=50ms");
    let mut child = stage.writer(&uri, None, None)?;
    let id = child.id();
    let killer = std::thread::spawn(move || {
        std::thread::park_timeout(life);
        rustix::process::Pid::from_raw(id.cast_signed())
            .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL))
    });
    let said = listen(&mut child)?;
    child.wait()?;
    let _ = killer.join();
    ensure!(said.refused.is_none(), "the writer was refused: {said:?}");
    *committed = said.committed.max(*committed);
    *durable = said.durable.max(*durable);
    // Elsewhere: whole, and nothing durable missing.
    let other = stage.elsewhere()?;
    let there = stage.model.judge(&other, *durable).context("elsewhere")?;
    drop(other);
    // Here: all that was committed, and perhaps one whose word did not get out any more. Closing uploads it.
    let here = open(&stage.uri("buffer", "&write_enabled=1&sync_interval=1h"))?;
    let found = stage.model.judge(&here, *committed).context("here")?;
    ensure!(found <= *committed + 1 && there <= found, "{found} here and {there} elsewhere, of {committed} committed");
    check_block_map(&here)?;
    let more = found > *committed;
    *committed = found;
    if number.is_multiple_of(3) {
        here.query_row("PRAGMA litestream_sync", [], |_| Ok(()))?;
        *durable = found;
    }
    here.close().map_err(|(_, error)| error)?;
    *durable = found;
    Ok(more)
}

/// Lets two writers race so many times.
pub(super) fn races(tries: u32, seed: u64, tally: &mut Tally) -> Result<()> {
    register()?;
    let mut stage = Stage::new(seed, BYTES)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut durable, mut fenced, mut both) = (0, 0, 0);
    for number in 0..tries {
        let offset = Duration::from_millis(random.u64(..60));
        match race(&mut stage, number, offset, &mut durable) {
            Ok(1) => {
                fenced += 1;
                tally.add("", Ok(()));
            }
            Ok(_) => {
                both += 1;
                tally.add("", Ok(()));
            }
            Err(error) => tally.add(&format!("race {number}, {offset:?} apart"), Err(error)),
        }
    }
    println!("races: {tries}; in {fenced} one of two writers was fenced, in {both} they came one after the other");
    ensure!(fenced > tries / 10, "only {fenced} of {tries} races were any");
    Ok(())
}

/// Returns how many of the two went through.
fn race(stage: &mut Stage, number: u32, offset: Duration, durable: &mut u64) -> Result<u32> {
    let uri = |stage: &Stage, who: &str| {
        stage.uri(&format!("{who}-{number}"), "&write_enabled=1&sync_interval=1h&shutdown_sync_timeout=1s")
    };
    let mut first = stage.writer(&uri(stage, "one"), Some(5), None)?;
    std::thread::park_timeout(offset);
    let mut second = stage.writer(&uri(stage, "two"), Some(5), None)?;
    let said = [listen(&mut first)?, listen(&mut second)?];
    first.wait()?;
    second.wait()?;
    let through = said.iter().filter(|said| said.durable > 0).count() as u32;
    ensure!(through >= 1, "neither went through: {said:?}");
    for loser in said.iter().filter(|said| said.durable == 0) {
        let why = loser.refused.as_deref().unwrap_or_default();
        ensure!(why.contains("fenced"), "the loser was not told: {said:?}");
    }
    let acknowledged = said.iter().map(|said| said.durable).max().unwrap_or(0).max(*durable);
    let other = stage.elsewhere()?;
    let there = stage.model.judge(&other, acknowledged).context("after the race")?;
    ensure!(there == acknowledged, "{there} transactions, {acknowledged} were acknowledged as durable");
    *durable = there;
    for who in ["one", "two"] {
        remove(stage.folder.path(), &format!("{who}-{number}"))?;
    }
    Ok(through)
}

/// Removes a buffer's files.
fn remove(folder: &Path, name: &str) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.file_name();
        if found.to_str().is_some_and(|found| found == name || found.starts_with(&format!("{name}-"))) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
