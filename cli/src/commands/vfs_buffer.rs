//! `litestream vfs-buffer`: what a writer left behind, and how it is saved.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use litestream_hydrate::{Check, Error, Output, Overwrite, Publishing, RestoreOptions, restore};
use litestream_pageindex::{Error as PlanError, OpenFile, Target, open_file};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Level, Replica, Scope, format_time};
use litestream_vfs::Error as VfsError;
use litestream_vfs::write::buffer::{Changes, Left, Report, State, Uploaded, holder, inspect};
use ltx::{PageSize, Txid};
use serde::Serialize;

use crate::args::{Common, VfsBufferArgs};
use crate::commands::restore::problems;
use crate::{connect, output, place};

/// How often a buffer is looked at anew that changes under the look.
const LOOKS: u32 = 5;

/// Shows, pushes or discards.
pub(crate) fn run(common: &Common, args: &VfsBufferArgs) -> anyhow::Result<()> {
    if args.push {
        return push(common, args, &only(&args.path)?);
    }
    if args.discard {
        return discard(args, &only(&args.path)?);
    }
    let found = find(&args.path)?;
    let shown = found.iter().map(|path| Shown::look(path)).collect::<anyhow::Result<Vec<_>>>()?;
    if args.json {
        return output::json(&shown);
    }
    let texts: Vec<String> = shown.iter().map(Shown::text).collect();
    output::line(&texts.join("\n\n"))
}

/// The buffers that are meant: this one, those in this folder, or that of this database.
fn find(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if is_buffer(path) {
        return Ok(vec![path.to_owned()]);
    }
    let found = if path.is_dir() { in_folder(path)? } else { Vec::new() };
    if !found.is_empty() {
        return Ok(found);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of_database = path.with_file_name(format!(".{name}-litestream")).join("buffer");
    if of_database.exists() {
        return Ok(vec![of_database]);
    }
    if path.is_dir() {
        bail!("{}: there is no write buffer in this folder", path.display());
    }
    match inspect(path) {
        Err(VfsError::Buffer { source, .. }) if source.kind() == ErrorKind::NotFound => {
            bail!("{}: there is no such write buffer, nor {}", path.display(), of_database.display())
        }
        Err(VfsError::BufferDamaged { .. }) => {
            bail!("{}: this is not the control file of a write buffer", path.display())
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(vec![path.to_owned()]),
    }
}

fn only(path: &Path) -> anyhow::Result<PathBuf> {
    let mut found = find(path)?;
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        _ => {
            let names: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
            bail!("{}: there are several write buffers: name one of {}", path.display(), names.join(", "))
        }
    }
}

/// The buffers in a folder: those with a control file, and those of which only segments are left.
fn in_folder(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        match segment_of(&path) {
            Some(control) => found.push(control),
            None if is_buffer(&path) => found.push(path),
            None => {}
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether a file begins, in one of its halves, as a control file does.
fn is_buffer(path: &Path) -> bool {
    let begins = |at: u64| {
        let mut bytes = [0; 8];
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, at));
        read.is_ok() && bytes == *b"LSBUFCTL"
    };
    path.is_file() && (begins(0) || begins(4096))
}

/// The control file whose segment this is.
fn segment_of(path: &Path) -> Option<PathBuf> {
    let (control, number) = path.to_str()?.rsplit_once('-')?;
    let is_number = number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut bytes = [0; 8];
    File::open(path).ok().filter(|_| is_number)?.read_exact_at(&mut bytes, 0).ok()?;
    (bytes == *b"LSBUFSEG").then(|| control.into())
}

/// What there is to know of a buffer.
#[derive(Serialize)]
struct Shown {
    buffer: String,
    in_use: bool,
    /// Whose it is, where that can be seen.
    pid: Option<i32>,
    replica: String,
    writer: String,
    base_txid: String,
    base_timestamp: Option<String>,
    upload_txid: Option<String>,
    upload_transactions: usize,
    pending_transactions: usize,
    first_timestamp: Option<String>,
    last_timestamp: Option<String>,
    pages_written: usize,
    page_size: Option<u32>,
    pages: Option<u32>,
    bytes: u64,
}

impl Shown {
    fn look(path: &Path) -> anyhow::Result<Self> {
        let pid = holder(path)?;
        Ok(Self::new(path, pid, &report(path)?))
    }

    fn new(path: &Path, pid: Option<i32>, report: &Report) -> Self {
        let Report { state, pending, .. } = report;
        let intended = pending.iter().filter(|pending| pending.intended).count();
        let upload = state.intent.filter(|_| intended > 0);
        Self {
            buffer: path.display().to_string(),
            in_use: pid.is_some(),
            pid: pid.filter(|pid| *pid > 0),
            replica: state.url.clone(),
            writer: format!("{:016x}", state.writer),
            base_txid: state.base.txid.to_string(),
            base_timestamp: (state.base.txid > Txid::ZERO).then(|| format_time(state.base.time)),
            upload_txid: upload.map(|upload| upload.txid.to_string()),
            upload_transactions: intended,
            pending_transactions: pending.len(),
            first_timestamp: pending.first().map(|first| format_time(first.time)),
            last_timestamp: pending.last().map(|last| format_time(last.time)),
            pages_written: pending.iter().map(|pending| pending.pages).sum(),
            page_size: report.page_size.map(PageSize::get),
            pages: pending.last().map(|last| last.size),
            bytes: report.bytes,
        }
    }

    fn text(&self) -> String {
        let used = match (self.in_use, self.pid) {
            (false, _) => String::new(),
            (true, Some(pid)) => format!(" (in use by process {pid})"),
            (true, None) => " (in use by another process)".to_owned(),
        };
        let base = match &self.base_timestamp {
            Some(time) => format!("{} ({time})", self.base_txid),
            None => "nothing: the database begins here".to_owned(),
        };
        let upload = match &self.upload_txid {
            Some(txid) => {
                let count = transactions(self.upload_transactions);
                format!("{txid}, with the first {count}: the replica may hold it, or not")
            }
            None => "none under way".to_owned(),
        };
        let pending = match (&self.first_timestamp, &self.last_timestamp) {
            (Some(first), Some(last)) => {
                let (count, pages) = (transactions(self.pending_transactions), self.pages_written);
                format!("{count}, {first} to {last}, {pages} pages written")
            }
            _ => "none: the replica holds everything".to_owned(),
        };
        let mut lines = vec![
            ("buffer", format!("{}{used}", self.buffer)),
            ("replica", self.replica.clone()),
            ("writer", self.writer.clone()),
            ("rests on", base),
            ("upload", upload),
            ("pending", pending),
        ];
        if let (Some(pages), Some(page_size)) = (self.pages, self.page_size) {
            let size = output::size(u64::from(pages) * u64::from(page_size));
            lines.push(("database", format!("{pages} pages of {page_size} B, {size}")));
        }
        lines.push(("on disk", output::size(self.bytes)));
        let lines: Vec<String> = lines.iter().map(|(name, value)| format!("{name:>8}: {value}")).collect();
        lines.join("\n")
    }
}

fn transactions(count: usize) -> String {
    if count == 1 { "1 transaction".to_owned() } else { format!("{count} transactions") }
}

/// Looks into a buffer, which somebody may be writing to.
fn report(path: &Path) -> anyhow::Result<Report> {
    let mut looks = 1;
    loop {
        match inspect(path) {
            // A segment goes as soon as it is uploaded.
            Err(VfsError::Buffer { source, .. }) if source.kind() == ErrorKind::NotFound && looks < LOOKS => looks += 1,
            // A frame may be half written.
            Err(VfsError::BufferDamaged { .. }) if looks < LOOKS && holder(path)?.is_some() => looks += 1,
            report => return Ok(report?),
        }
    }
}

/// Says that nothing can be done to a buffer as long as somebody has it.
fn free(path: &Path, what: &str) -> anyhow::Result<()> {
    let Some(pid) = holder(path)? else { return Ok(()) };
    let who = if pid > 0 { format!("process {pid}") } else { "another process".to_owned() };
    bail!("{}: {who} is writing with it: end that first, then {what}", path.display())
}

/// The replica: as named, or as the buffer says.
fn replica(common: &Common, args: &VfsBufferArgs, path: &Path, state: &State) -> anyhow::Result<ReplicaConfig> {
    let Some(source) = &args.replica else {
        return place::at_address(common, &state.url).with_context(|| format!("the replica of {}", path.display()));
    };
    let named = place::resolve(common, source)?;
    let same = named.replicas.iter().find(|replica| replica.url() == state.url).or(named.replicas.first());
    same.cloned().ok_or_else(|| anyhow!("{source}: no replica is configured"))
}

#[derive(Serialize)]
struct Pushed {
    buffer: String,
    replica: String,
    txid: String,
}

fn push(common: &Common, args: &VfsBufferArgs, path: &Path) -> anyhow::Result<()> {
    free(path, "push")?;
    let state = report(path)?.state;
    let replica = replica(common, args, path, &state)?;
    let values = connect::register()?;
    let parameters = [
        ("write_enabled", true.to_string()),
        ("buffer_path", place::text(path)?),
        ("hydration_enabled", false.to_string()),
        // All the waiting is done before the close.
        ("shutdown_sync_timeout", "0s".to_owned()),
    ];
    let connection = connect::open(&replica, &connect::last_part(&state.url), &parameters, &values)?;
    let started = Instant::now();
    let ask = |pragma: &str| -> rusqlite::Result<String> {
        connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
    };
    let txid = loop {
        let Err(error) = ask("litestream_sync") else { break ask("litestream_txid")? };
        let is_refused = ask("litestream_stats")?.lines().any(|line| line == "write_refused 1");
        if is_refused || started.elapsed() > common.retry_timeout {
            let why = match error {
                rusqlite::Error::SqliteFailure(_, Some(why)) => why,
                error => error.to_string(),
            };
            bail!("{why}{}", if is_refused { "; save it with --export" } else { "" });
        }
    };
    let pushed = Pushed { buffer: path.display().to_string(), replica: state.url, txid };
    if args.json { output::json(&pushed) } else { output::line(&pushed.txid) }
}

#[derive(Serialize)]
struct Discarded {
    buffer: String,
    discarded: bool,
}

fn discard(args: &VfsBufferArgs, path: &Path) -> anyhow::Result<()> {
    free(path, "discard")?;
    if !args.yes {
        let what = match inspect(path) {
            Ok(report) => Shown::new(path, None, &report).text(),
            Err(error) => error.to_string(),
        };
        confirm(&what, path)?;
    }
    Left::open(path)?.discard()?;
    let buffer = path.display().to_string();
    if args.json {
        return output::json(&Discarded { buffer, discarded: true });
    }
    output::line(&format!("discarded {buffer}"))
}

fn confirm(what: &str, path: &Path) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{}: what it holds would be lost: say so with --yes", path.display());
    }
    output::note(&format!("this would be deleted:\n{what}"));
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "Type yes to delete it: ").and_then(|()| stderr.flush());
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim() != "yes" {
        bail!("nothing was deleted");
    }
    Ok(())
}

#[derive(Serialize)]
struct Exported {
    db: String,
    buffer: String,
    replica: String,
    /// What the buffer's transactions were put on top of.
    base_txid: String,
    transactions: usize,
    page_size: u32,
    pages: u32,
}

/// Builds a database of the replica and the buffer.
pub(crate) async fn export(common: &Common, args: &VfsBufferArgs, publishing: &Publishing) -> anyhow::Result<()> {
    let Some(out) = &args.export else { bail!("--export wants a path") };
    let path = only(&args.path)?;
    free(&path, "export")?;
    let overwrite = if args.force { Overwrite::Replace } else { Overwrite::Never };
    match Output::check(out, overwrite) {
        Err(Error::OutputTaken { path, why }) => {
            bail!("{}: {why}; give another path, or --force to replace it", path.display())
        }
        checked => checked?,
    }
    // Locked to the end, so that nobody uploads or deletes what is being read.
    let left = Left::open(&path)?;
    let state = left.state();
    let Some(changes) = left.changes(state.base.up_to)? else {
        bail!(
            "{}: it holds nothing that the replica does not: `litestream restore -o {} {}` gives the same",
            path.display(),
            out.display(),
            state.url
        );
    };
    let (base, changes) = if state.base.txid == Txid::ZERO {
        let output = Output::create(out, overwrite)?;
        apply(&changes, output.temporary()).map_err(Error::Check)?;
        publishing.begin();
        output.publish(overwrite)?;
        (state.base, Arc::new(changes))
    } else {
        let config = replica(common, args, &path, state)?;
        let replica = litestream_storage::open(&config, place::policy(common)).await?;
        on_replica(&replica, &left, changes, out, overwrite, publishing).await?
    };
    let exported = Exported {
        db: out.display().to_string(),
        buffer: path.display().to_string(),
        replica: state.url.clone(),
        base_txid: base.txid.to_string(),
        transactions: changes.transactions,
        page_size: changes.page_size.get(),
        pages: changes.size,
    };
    if args.json {
        return output::json(&exported);
    }
    let size = output::size(u64::from(exported.pages) * u64::from(exported.page_size));
    let Exported { db, replica, base_txid, .. } = exported;
    let count = transactions(exported.transactions);
    let base = if base.txid == Txid::ZERO { String::new() } else { format!("{replica} at {base_txid} and ") };
    output::line(&format!("exported {db}: {base}{count} of the buffer, {size}"))
}

/// Restores what the buffer rests on, and puts the buffer's transactions on it before anybody sees it. Says what that was, and what was put there.
async fn on_replica(
    replica: &Replica,
    left: &Left,
    changes: Changes,
    out: &Path,
    overwrite: Overwrite,
    publishing: &Publishing,
) -> anyhow::Result<(Uploaded, Arc<Changes>)> {
    let State { base, intent, .. } = *left.state();
    if base.checksum != 0 && file(replica, base.txid).await?.is_some_and(|file| checksum(&file) != base.checksum) {
        bail!(
            "{}: transaction {} is another one than the buffer rests on: the replica was begun anew, or is another one",
            replica.url(),
            base.txid
        );
    }
    let missing = match build(replica, base, changes, out, overwrite, publishing).await {
        Err(Error::Plan(error @ PlanError::TransactionNotAvailable { .. })) => error,
        built => return Ok((base, built?)),
    };
    // Where an upload succeeded and was not noted any more, compaction may have left its transaction and merged the one before.
    if let Some(intent) = intent
        && let Some(changes) = left.changes(intent.up_to)?
        && file(replica, intent.txid).await?.is_some_and(|file| checksum(&file) == intent.checksum)
    {
        return Ok((intent, build(replica, intent, changes, out, overwrite, publishing).await?));
    }
    Err(anyhow!(missing).context("what the buffer rests on has been merged into later transactions; the buffer stays"))
}

/// The file of level 0 that holds one transaction alone.
async fn file(replica: &Replica, txid: Txid) -> anyhow::Result<Option<OpenFile>> {
    let page = replica.list_page(Scope::Level(Level::ZERO), txid, None).await?;
    match page.files.iter().find(|file| file.name.min == txid && file.name.max == txid) {
        Some(file) => Ok(Some(open_file(replica, file).await?)),
        None => Ok(None),
    }
}

fn checksum(file: &OpenFile) -> u64 {
    file.trailer.file_checksum.0
}

async fn build(
    replica: &Replica,
    base: Uploaded,
    changes: Changes,
    out: &Path,
    overwrite: Overwrite,
    publishing: &Publishing,
) -> Result<Arc<Changes>, Error> {
    let changes = Arc::new(changes);
    let applied = changes.clone();
    let check: Arc<Check> = Arc::new(move |path: &Path| apply(&applied, path));
    let bar = output::progress("exporting");
    let shown = bar.clone();
    let options = RestoreOptions {
        target: Target::Txid(base.txid),
        overwrite,
        check: Some(check),
        publishing: publishing.clone(),
        progress: Arc::new(move |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.done);
        }),
        ..RestoreOptions::default()
    };
    let restored = restore(replica, out, &options).await;
    bar.finish_and_clear();
    restored?;
    Ok(changes)
}

/// Makes of a database what transactions made of it, durably, and has SQLite look at the result.
fn apply(changes: &Changes, path: &Path) -> Result<(), String> {
    let io = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let size = changes.page_size;
    if len > 0 {
        let mut header = [0; 100];
        file.read_exact_at(&mut header, 0).map_err(io)?;
        // 1 stands for 65536 (<https://www.sqlite.org/fileformat2.html#page_size>).
        let there = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65_536,
            there => u32::from(there),
        };
        if there != size.get() {
            return Err(format!(
                "the replica's pages have {there} bytes, and the buffer's {size}: they do not belong together"
            ));
        }
    }
    // What is cut off and grown over again is zero.
    file.set_len(len.min(u64::from(changes.kept) * u64::from(size.get()))).map_err(io)?;
    file.set_len(u64::from(changes.size) * u64::from(size.get())).map_err(io)?;
    for page in changes.pages() {
        let (pgno, image) = page.map_err(|error| error.to_string())?;
        file.write_all_at(&image, pgno.offset(size)).map_err(io)?;
    }
    file.sync_all().map_err(io)?;
    match problems(path, "integrity_check") {
        Ok(found) if found == ["ok"] => Ok(()),
        Ok(found) => Err(format!(
            "the database that would be exported fails PRAGMA integrity_check: {}; the buffer stays",
            found.join("; ")
        )),
        Err(error) => Err(format!("cannot check the database that would be exported: {error}")),
    }
}
