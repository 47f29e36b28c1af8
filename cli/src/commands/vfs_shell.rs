//! `litestream vfs-shell`.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use jiff::Zoned;
use litestream_storage::config::ReplicaConfig;
use rusqlite::Connection;

use crate::args::{Common, VfsShellArgs};
use crate::place::{self, Named};
use crate::shell::interrupts::Interrupts;
use crate::shell::session::{Flow, Place, Session};
use crate::shell::values::Values;
use crate::shell::{editor, script};
use crate::{connect, output};

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
    let values = connect::register()?;
    let (mut connection, replica) = open(&named, args, at, &values)?;
    interrupts.guard(&mut connection)?;
    let place = Place { url: replica.url(), at: at.map(str::to_owned) };
    let mut session = Session::new(connection, values, place, interrupts);
    session.greet_writer();
    let session = if !args.sql.is_empty() {
        let mut session = session.bail();
        let _ = args.sql.iter().map(|sql| script::run_text(&mut session, sql)).find(|flow| *flow == Flow::Quit);
        session
    } else if std::io::stdin().is_terminal() {
        let mut session = session.interactive();
        session.greet();
        editor::run(&mut session)?;
        // What a person has seen fail is no failure of the shell.
        return Ok(if session.leave() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    } else {
        script::run_lines(&mut session, std::io::stdin().lock(), "stdin");
        session
    };
    let has_failed = session.has_failed();
    Ok(if session.leave() && !has_failed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// What the VFS is told beside the replica's address.
fn parameters(args: &VfsShellArgs, at: Option<&str>) -> anyhow::Result<Vec<(&'static str, String)>> {
    // Said in any case: a shell that nobody asked to write shall not, whatever the environment says about other programs.
    let mut parameters = vec![("write_enabled", args.write.to_string())];
    parameters.extend(at.map(|at| ("at", at.to_owned())));
    if let Some(path) = &args.buffer {
        parameters.push(("buffer_path", place::text(path)?));
    }
    if let Some(interval) = args.sync_interval {
        parameters.push(("sync_interval", format!("{}ms", interval.as_millis())));
    }
    if let Some(path) = &args.hydrate {
        parameters.push(("hydration_enabled", true.to_string()));
        if let Some(path) = path {
            parameters.push(("hydration_path", place::text(path)?));
        }
    }
    Ok(parameters)
}

/// Opens the first replica that can be opened; the others are passed over, but not silently. To write, there must be no choice.
fn open<'a>(
    named: &'a Named,
    args: &VfsShellArgs,
    at: Option<&str>,
    values: &Values,
) -> anyhow::Result<(Connection, &'a ReplicaConfig)> {
    let parameters = parameters(args, at)?;
    if args.write && named.replicas.len() > 1 {
        let urls: Vec<String> = named.replicas.iter().map(ReplicaConfig::url).collect();
        bail!("there are several replicas, of which one must be chosen to be written: name {}", urls.join(" or "));
    }
    let mut replicas = named.replicas.iter().peekable();
    while let Some(replica) = replicas.next() {
        let name = match &named.database {
            Some(database) => database.path.display().to_string(),
            None => connect::last_part(&replica.url()),
        };
        match connect::open(replica, &name, &parameters, values) {
            Ok(connection) => return Ok((connection, replica)),
            Err(error) if replicas.peek().is_none() => return Err(error),
            Err(error) => output::note(&format!("passing over a replica: {error}")),
        }
    }
    bail!("no replica is configured")
}
