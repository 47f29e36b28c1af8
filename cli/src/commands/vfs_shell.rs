//! `litestream vfs-shell`.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use jiff::Zoned;
use litestream_storage::config::ReplicaConfig;
use rusqlite::{Connection, OpenFlags};

use crate::args::{Common, VfsShellArgs};
use crate::output;
use crate::place::{self, Named};
use crate::shell::interrupts::Interrupts;
use crate::shell::session::{Flow, Place, Session};
use crate::shell::values::Values;
use crate::shell::{address, editor, script};

/// Runs the shell. What failed has been told already where only the code says so.
pub(crate) fn run(common: &Common, args: &VfsShellArgs) -> anyhow::Result<ExitCode> {
    let at = args.at.as_deref().map(str::trim).filter(|at| !at.eq_ignore_ascii_case("latest"));
    if let Some(at) = at {
        check_moment(at)?;
    }
    let named = match &args.source {
        Some(source) => place::resolve(common, source)?,
        None => place::only(common)?,
    };
    let interrupts = Interrupts::listen()?;
    let values = register()?;
    let (mut connection, replica) = open(&named, at, &values)?;
    interrupts.guard(&mut connection)?;
    let place = Place { url: replica.url(), at: at.map(str::to_owned) };
    let session = Session::new(connection, values, place, interrupts);
    let session = if !args.sql.is_empty() {
        let mut session = session.bail();
        let _ = args.sql.iter().map(|sql| script::run_text(&mut session, sql)).find(|flow| *flow == Flow::Quit);
        session
    } else if std::io::stdin().is_terminal() {
        let mut session = session.interactive();
        session.greet();
        editor::run(&mut session)?;
        return Ok(ExitCode::SUCCESS);
    } else {
        let mut session = session;
        script::run_lines(&mut session, std::io::stdin().lock(), "stdin");
        session
    };
    Ok(if session.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Says early, and in the option's name, what the VFS would say of a moment.
fn check_moment(at: &str) -> anyhow::Result<()> {
    if at.parse::<ltx::Txid>().is_ok() {
        return Ok(());
    }
    match litestream_config::when::parse(at, &Zoned::now()) {
        Ok(_) => Ok(()),
        Err(error) => Err(anyhow!("--at {at:?}: {error}; or a TXID of 16 hexadecimal digits")),
    }
}

/// Registers the VFS with the SQLite that is linked. It can be used from the second connection on, so the first one becomes a helper.
fn register() -> anyhow::Result<Values> {
    if !litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension) {
        bail!("SQLite does not take the VFS: it is out of memory");
    }
    Ok(Values::new(Connection::open_in_memory().context("cannot register the VFS")?))
}

/// Opens the first replica that can be opened; the others are passed over, but not silently.
fn open<'a>(named: &'a Named, at: Option<&str>, values: &Values) -> anyhow::Result<(Connection, &'a ReplicaConfig)> {
    let mut replicas = named.replicas.iter().peekable();
    while let Some(replica) = replicas.next() {
        let name = match &named.database {
            Some(database) => database.path.display().to_string(),
            None => last_part(&replica.url()),
        };
        // To create is for databases that are attached: these flags are theirs too.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match Connection::open_with_flags(address::uri(replica, &name, at), flags) {
            Ok(connection) => return Ok((connection, replica)),
            Err(error) => {
                // SQLite's own text would show the URI, and with it the credentials.
                let cause = values.last_error();
                let why = if cause.is_empty() { without_message(&error) } else { cause };
                if replicas.peek().is_none() {
                    bail!("{why}");
                }
                output::note(&format!("passing over a replica: {why}"));
            }
        }
    }
    bail!("no replica is configured")
}

/// What a URL's path ends with. Never nothing: SQLite takes a database without a name for a temporary one.
fn last_part(url: &str) -> String {
    let place = url.split('?').next().unwrap_or_default();
    place.rsplit('/').find(|part| !part.is_empty()).unwrap_or("replica").to_owned()
}

fn without_message(error: &rusqlite::Error) -> String {
    error.sqlite_error().map_or_else(|| "the database cannot be opened".to_owned(), ToString::to_string)
}
