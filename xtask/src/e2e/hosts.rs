//! Our SQLite extension in the programs that load it – sqlite3, Python, apsw, Node, Go, and Rust programs linked with it –
//! on a replica that real Litestream keeps writing, each answer against the truth.
//!
//! What the programs are is in `vfs/examples` and `vfs/tests/hosts`; what is true is in `sandwiches.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

use super::sandwiches::{Answer, DELETES, KEEPS_ALL, Kitchen, client};
use super::world::World;
use super::{Checked, DEADLINE};
use crate::process::{Said, converse};

/// How old a replica must be, so that one can look back by [`BACK`].
const AGE: Duration = Duration::from_secs(6);
const BACK: &str = "3 seconds ago";
/// The first run compiles SQLite.
/// Memcheck slows a program down by some tens of times.
const MEMCHECK: Duration = Duration::from_secs(300);
/// A hundred opens and closes, and what waits for idle connections.
const PROCESS_TESTS: Duration = Duration::from_secs(300);

/// What the README shows, word for word, in the system's sqlite3: where the replica is comes from the environment, then
/// from the configuration.
pub(super) fn vfs_sqlite3(world: &mut World) -> Checked {
    let sqlite3 = world.tools.sqlite3()?;
    let kitchen = Kitchen::open(world, "vfs-sqlite3", KEEPS_ALL, AGE)?;
    let folder = session_folder(world, "vfs-sqlite3-session")?;
    let from_environment = || {
        let mut command = client(world, &sqlite3);
        command.env("LITESTREAM_REPLICA_URL", &kitchen.url).current_dir(&folder);
        command
    };
    let config = folder.join("litestream.yml");
    let database = folder.join("my.db");
    fs::write(&config, format!("dbs:\n  - path: {}\n    replica:\n      url: {}\n", database.display(), kitchen.url))?;
    let from_config = || {
        let mut command = client(world, &sqlite3);
        command.env("LITESTREAM_CONFIG", &config).current_dir(&folder);
        command
    };

    let mut judged = 0;
    for (name, mut command) in [("the environment", from_environment()), ("the configuration", from_config())] {
        let said = converse("sqlite3", &mut command, &session(BACK), DEADLINE)?;
        judge_session(world, &kitchen, &said).with_context(|| format!("the session with {name}"))?;
        judged += 1;
    }
    let refused = converse("sqlite3", &mut from_environment(), &session("5 minutes ago"), DEADLINE)?;
    judge_refusal(&refused, "the oldest moment that can be restored")?;
    let rows = refused.stdout.lines().count();
    ensure!(rows == 3, "after a refused PRAGMA the table has {rows} rows of 3:\n{}", refused.stdout);

    // What cannot be: the reason must reach the one who asks, though SQLite says no more than that it cannot open.
    let nowhere = ".load ./liblitestream_vfs\n.open 'file:my.db?vfs=litestream'\nSELECT litestream_error();\n";
    let mut command = client(world, &sqlite3);
    command.env("LITESTREAM_CONFIG", folder.join("none.yml")).current_dir(&folder);
    let said = converse("sqlite3", &mut command, nowhere, DEADLINE)?;
    ensure!(said.stdout.contains("none.yml"), "no reason for a failed open:\n{}\n{}", said.stdout, said.stderr);

    let files: Vec<_> =
        fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    ensure!(!database.exists() && files.len() == 2, "sqlite3 left files behind: {files:?}");
    let written = kitchen.close()?;
    Ok(format!("{judged} sessions of the README and 2 refusals, while {written} transactions were written"))
}

/// The session, as people type it.
fn session(time: &str) -> String {
    format!(
        ".load ./liblitestream_vfs\n\
         .open 'file:my.db?vfs=litestream'\n\
         PRAGMA litestream_time = '{time}';\n\
         SELECT * FROM sandwich_ratings ORDER BY RANDOM() LIMIT 3;\n"
    )
}

/// Three different rows of the table as it was at the moment that the PRAGMA answered.
fn judge_session(world: &World, kitchen: &Kitchen, said: &Said) -> Result<()> {
    let Said { status, stdout, stderr } = said;
    ensure!(status.success() && stderr.is_empty(), "{status}: {stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    let (moment, rows) = lines.split_first().context("sqlite3 printed nothing")?;
    let moment: Timestamp = moment.parse().with_context(|| format!("the PRAGMA answered {moment}"))?;
    let age = Timestamp::now().as_second() - moment.as_second();
    ensure!((2..60).contains(&age), "{BACK} led to {moment}, {age} s ago");
    let truth = kitchen.restored_at(world, moment)?;
    let mut distinct: Vec<&str> = rows.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(rows.len() == 3 && distinct.len() == 3, "not three rows: {rows:?}");
    let wrong = rows.iter().find(|row| !truth.iter().any(|true_row| true_row == *row));
    ensure!(wrong.is_none(), "at {moment} litestream restored {truth:?}, without {wrong:?}");
    Ok(())
}

fn judge_refusal(said: &Said, reason: &str) -> Result<()> {
    let Said { status, stdout, stderr } = said;
    ensure!(stderr.contains(reason), "{status}, and nowhere `{reason}`:\n{stdout}\n{stderr}");
    Ok(())
}

/// A folder with nothing in it but the extension, by the name that people load.
fn session_folder(world: &World, name: &str) -> Result<PathBuf> {
    let folder = world.folder(name)?;
    let extension = extension()?;
    let name = extension.file_name().context("the extension has no name")?;
    std::os::unix::fs::symlink(&extension, folder.join(name))?;
    Ok(folder)
}

/// Every example, against the table after some transaction and against real Litestream's restores of the TXIDs it names.
pub(super) fn vfs_hosts(world: &mut World) -> Checked {
    let hosts = hosts(world)?;
    let kitchen = Kitchen::open(world, "vfs-hosts", KEEPS_ALL, AGE)?;
    let mut answers = 0;
    for host in &hosts {
        answers += judge_host(world, &kitchen, host).with_context(|| host.name.to_owned())?;
    }
    let written = kitchen.close()?;
    let names: Vec<&str> = hosts.iter().map(|host| host.name).collect();
    Ok(format!("{answers} answers of {}, while {written} transactions were written", names.join(", ")))
}

/// How an example is called: the replica's URL and the time come behind.
struct Host {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<PathBuf>,
    /// What stands before a time, if it is no plain argument.
    time_flag: Option<&'static str>,
}

fn hosts(world: &World) -> Result<Vec<Host>> {
    let (tools, examples, extension) = (&world.tools, root().join("vfs").join("examples"), extension()?);
    let script = |name, program, file: &str| Host {
        name,
        program,
        arguments: vec![examples.join(file), extension.clone()],
        time_flag: None,
    };
    // The shell script looks for it on PATH, and must find this one.
    let sqlite3 = tools.sqlite3()?;
    ensure!(sqlite3.file_name().is_some_and(|name| name == "sqlite3"), "{} is no sqlite3", sqlite3.display());
    let rust = built("examples/rusqlite");
    Ok(vec![
        script("sqlite3", PathBuf::from("sh"), "sqlite3.sh"),
        script("python", tools.system_python()?, "python.py"),
        script("apsw", tools.python_with_apsw()?, "apsw_example.py"),
        script("node", tools.node()?, "node.mjs"),
        Host { name: "rusqlite", program: rust, arguments: Vec::new(), time_flag: None },
        Host { name: "go", program: build_go(world)?, arguments: vec![extension], time_flag: Some("-at") },
    ])
}

fn judge_host(world: &World, kitchen: &Kitchen, host: &Host) -> Result<usize> {
    let durable = kitchen.durable(world)?;
    let said = ask(world, kitchen, host, BACK)?;
    ensure!(said.status.success(), "{}:\n{}", said.status, said.stderr);
    let answers = Answer::parse_all(&said.stdout)?;
    let (latest, earlier) = answers.split_first().context("nothing was printed")?;
    ensure!(latest.moment.is_none() && !earlier.is_empty(), "not one latest answer and earlier ones: {}", said.stdout);
    let newest = kitchen.judge(world, latest)?;
    ensure!(newest >= durable, "transaction {durable} was uploaded before, but {newest} was seen");
    for answer in earlier {
        ensure!(answer.moment.is_some(), "an earlier answer without a moment: {}", said.stdout);
        let number = kitchen.judge(world, answer)?;
        ensure!(number < newest && answer.txid < latest.txid, "transaction {number} of {newest} is not earlier");
    }
    // An impossible time is refused, with the reason, by every host.
    let said = ask(world, kitchen, host, "1 year ago")?;
    ensure!(!said.status.success(), "a year ago there was something:\n{}", said.stdout);
    judge_refusal(&said, "the oldest moment that can be restored")?;
    Ok(answers.len())
}

fn ask(world: &World, kitchen: &Kitchen, host: &Host, time: &str) -> Result<Said> {
    let mut command = client(world, &host.program);
    if let Some(flag) = host.time_flag {
        command.args([flag, time]);
    }
    command.args(&host.arguments).arg(&kitchen.url);
    if host.time_flag.is_none() {
        command.arg(time);
    }
    command.env("SQLITE3", world.tools.sqlite3()?).current_dir(world.work());
    converse(host.name, &mut command, "", DEADLINE)
}

/// Go's goroutines on a pool, with and without a shared cache, while files are compacted away under them.
pub(super) fn vfs_go(world: &mut World) -> Checked {
    let program = build_go(world)?;
    let kitchen = Kitchen::open(world, "vfs-go", DELETES, AGE)?;
    let mut reports = Vec::new();
    for cache in ["shared", "private"] {
        let mut command = client(world, &program);
        let seconds = world.reading.as_secs();
        command.args(["-for", &format!("{seconds}s"), "-readers", "16", "-cache", cache]);
        command.arg(extension()?).arg(&kitchen.url).current_dir(world.work());
        let said = converse("go", &mut command, "", world.reading + DEADLINE)?;
        ensure!(said.status.success(), "with a {cache} cache: {}:\n{}", said.status, said.stderr);
        let report = said.stdout.trim().strip_prefix("soak ").context("the Go example reported nothing")?.to_owned();
        ensure!(!report.contains(", 0 moves"), "the replica did not move under the readers: {report}");
        reports.push(report);
    }
    let written = kitchen.close()?;
    Ok(format!("{}; {written} transactions were written", reports.join("; ")))
}

/// The Go example, built where the other tools are.
fn build_go(world: &World) -> Result<PathBuf> {
    build_go_program(world, &root().join("vfs").join("examples").join("go"), "sandwiches-go")
}

/// A Go program with SQLite in it, built once where the other tools are.
pub(super) fn build_go_program(world: &World, source: &Path, name: &str) -> Result<PathBuf> {
    let program = world.work().join(name);
    if !program.is_file() {
        world.tools.build_go(source, &program)?;
    }
    Ok(program)
}

/// What the extension does to the process it is loaded into: threads, files, forks, several SQLites, memory.
pub(super) fn vfs_process(world: &mut World) -> Checked {
    let (python, sqlite3, valgrind) =
        (world.tools.python_with_apsw()?, world.tools.sqlite3()?, world.tools.valgrind()?);
    let kitchen = Kitchen::open(world, "vfs-process", KEEPS_ALL, AGE)?;
    let tests = root().join("vfs").join("tests").join("hosts");

    let mut command = client(world, &python);
    command.arg(tests.join("process.py")).arg(extension()?).arg(&kitchen.url).current_dir(world.work());
    let said = converse("process.py", &mut command, "", PROCESS_TESTS)?;
    ensure!(said.status.success(), "{}:\n{}\n{}", said.status, said.stdout, said.stderr);
    let passed = said.stdout.lines().filter(|line| line.starts_with("ok ")).count();

    let folder = session_folder(world, "vfs-process-session")?;
    let mut command = client(world, &valgrind);
    command.args(["--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]);
    command.arg("--error-exitcode=99").arg(&sqlite3).env("LITESTREAM_REPLICA_URL", &kitchen.url).current_dir(&folder);
    let input = fs::read_to_string(tests.join("memcheck.sql"))?;
    let said = converse("valgrind sqlite3", &mut command, &input, MEMCHECK)?;
    ensure!(said.status.code() != Some(99), "memcheck found:\n{}", said.stderr);
    ensure!(
        said.stdout.lines().count() >= 8,
        "the session under memcheck went wrong:\n{}\n{}",
        said.stdout,
        said.stderr
    );
    kitchen.close()?;
    Ok(format!("{passed} behaviours of a process; memcheck has nothing to say about the sqlite3 session"))
}

/// The extension, as it was built for this run.
pub(super) fn extension() -> Result<PathBuf> {
    let name = format!("{}litestream_vfs{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let path = built(&name);
    ensure!(path.is_file(), "no extension at {}", path.display());
    Ok(path)
}

fn built(name: &str) -> PathBuf {
    root().join("target").join("debug").join(name)
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
