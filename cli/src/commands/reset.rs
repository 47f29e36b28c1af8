//! `litestream reset`: forgets what was captured, so that the daemon begins with a snapshot.

use std::fs;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use litestream_config::SocketConfig;
use serde::Serialize;

use super::local;
use crate::args::Common;
use crate::control::args::ResetArgs;
use crate::control::client::{Client, Unanswered, absolute};
use crate::control::wire::List;
use crate::{output, place};

/// How long to wait for a daemon.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Outcome<'a> {
    db_path: &'a str,
    meta_path: String,
    deleted: &'a [PathBuf],
    dry_run: bool,
}

pub(crate) async fn run(common: &Common, args: &ResetArgs) -> anyhow::Result<()> {
    let (_, config) = place::load_config(common)?;
    let name = absolute(&args.db)?;
    let path = Path::new(&name);
    let configured = config.as_ref().and_then(|config| config.find_db(path));
    let meta = configured.map_or_else(|| litestream_config::default_meta_path(path), |database| database.meta_path);
    if !path.exists() && !meta.exists() {
        bail!("{name}: there is neither such a database nor anything that was captured of it");
    }
    let files = local::captured(&meta).with_context(|| meta.display().to_string())?;
    if !args.dry_run && !files.is_empty() {
        let socket = args.socket.clone();
        let socket = socket.or_else(|| config.map(|config| config.socket.path));
        let socket = socket.unwrap_or_else(|| SocketConfig::default().path);
        refuse_while_replicated(&name, &socket, args).await?;
        if confirm(&files, args)? {
            // Whoever was asked may have taken long to answer.
            refuse_while_replicated(&name, &socket, args).await?;
        }
        delete(&files, &meta)?;
    }
    if args.json {
        let meta_path = meta.display().to_string();
        return output::json(&Outcome { db_path: &name, meta_path, deleted: &files, dry_run: args.dry_run });
    }
    if files.is_empty() {
        return output::line(&format!("{name}: nothing was captured: nothing to do"));
    }
    let verb = if args.dry_run { "would delete" } else { "deleted" };
    for file in &files {
        output::line(&format!("{verb} {}", file.display()))?;
    }
    match args.dry_run {
        true => output::line("nothing was changed (--dry-run)"),
        false => output::line(&format!("{name}: its replication begins with a snapshot")),
    }
}

/// A daemon must not lose what it works with.
async fn refuse_while_replicated(name: &str, socket: &Path, args: &ResetArgs) -> anyhow::Result<()> {
    match Client::at(socket, PATIENCE).get::<List>("/list").await {
        Ok(list) => {
            let found = list.databases.iter().find(|database| database.path == name);
            match found {
                Some(database) if database.status == "stopped" => return Ok(()),
                Some(_) => bail!("{name}: the daemon replicates it just now: `litestream stop {name}` first"),
                None => {}
            }
        }
        Err(Unanswered::NoDaemon(_)) if args.socket.is_none() => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(pid) = local::replicator(Path::new(name)) {
        bail!("{name}: PID {pid}, a litestream, has it open: end that process first");
    }
    match litestream_replicate::is_replicated(Path::new(name)) {
        Ok(false) => Ok(()),
        Ok(true) => bail!("{name}: another process replicates it just now: end that process first"),
        Err(error) => Err(error).with_context(|| format!("cannot see whether {name} is being replicated")),
    }
}

/// Asks who sits at a terminal, and tells whether it did. Scripts say what they mean.
fn confirm(files: &[PathBuf], args: &ResetArgs) -> anyhow::Result<bool> {
    if args.yes || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let names: Vec<String> = files.iter().map(|file| format!("  {}", file.display())).collect();
    output::note(&format!("this would be deleted:\n{}", names.join("\n")));
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "Type yes to delete it (--yes does not ask): ").and_then(|()| stderr.flush());
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim() == "yes" { Ok(true) } else { bail!("nothing was deleted") }
}

fn delete(files: &[PathBuf], meta: &Path) -> anyhow::Result<()> {
    // The state goes first: without it the next start makes a snapshot, whatever else is still there.
    let (state, captured): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.parent() == Some(meta));
    for file in state.into_iter().chain(captured) {
        match fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot delete {}", file.display()));
            }
            _ => {}
        }
    }
    let folder = fs::File::open(meta).with_context(|| meta.display().to_string())?;
    folder.sync_all().with_context(|| meta.display().to_string())
}
