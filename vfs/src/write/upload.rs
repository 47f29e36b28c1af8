//! From the buffer to the replica: one LTX file at a time, each the next TXID, each under the condition that nobody was faster.
//!
//! What is about to be put is noted in the buffer first, so that after a crash "is that one mine?" has an answer. A file counts as ours where its
//! checksum is the one that was noted. How another writer is noticed, [`fence`] says.
//!
//! The first upload waits for nothing but its own put, as a rule:
//!
//! - No conditional put is *sent* before the store is known to honour conditions: one that ignores them would overwrite another's file, and no
//!   answer could undo that. But the question needs nothing except the replica's address, so it is asked while the database is opened.
//! - The first proof is the listing that the database was opened from. When level 0 was listed, at a time that this very answer tells
//!   ([`Listing::at`]), there was nothing beyond the transaction that we go on from: level 0 keeps its newest file, so the listing would have
//!   shown it, or one beyond. Who writes the next one after that moment is met by the put as long as that file is there, and for `fence_window`
//!   it is. The time is the answer's own, not the latest that any answer told: a machine may have been asleep between two answers to the same open.
//!
//! [`Listing::at`]: litestream_pageindex::Listing::at

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use litestream_pageindex::fence::{self, Next, Put};
use litestream_pageindex::upkeep::{Kept, Schedule, Upkeep};
use litestream_pageindex::{OpenFile, open_file};
use litestream_storage::{Body, Level, Replica};
use ltx::{Checksum, Commit, Encoder, FileName, Header, Pgno, Timestamp, Txid};

use super::buffer::{Buffer, Position, State, Uploaded, random};
use super::lease::{self, Lease};
use super::probe::Probe;
use super::writer::{Sealed, Writer};
use crate::database::Database;
use crate::settings::WriteSettings;
use crate::{Error, Result, process};

/// Longer files are made on disk.
const IN_MEMORY: usize = 32 << 20;
/// After so many uploads, at least, it is looked whether older files have been merged.
const MANY_FILES: usize = 300;
/// How long nothing must have been committed before it is noted that all is uploaded: a write and a sync that no commit shall wait for.
const IDLE: Duration = Duration::from_secs(1);
/// The longest pause after a failed upload.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Opens the buffer of a database that is to be written, decides what of it is in the replica already, shows the rest, and starts uploading.
///
/// # Errors
/// What is wrong with the buffer, or that the replica cannot be asked. Where another writer has gone on, that is no error here: reading goes
/// on, and writing is refused.
pub(crate) fn open(database: &Arc<Database>, settings: WriteSettings) -> Result<Arc<Writer>> {
    let (this, wanted, owner) = (database.clone(), settings.lease, settings.identity.clone());
    let lease = database.wait_for(&|| false, async move {
        if wanted { Lease::take(&this.replica, &owner).await.map(Some) } else { Ok(None) }
    })?;
    let opened = open_buffer(database, settings);
    match (&opened, lease) {
        (Ok(writer), Some(lease)) => {
            let (writer, replica) = (writer.clone(), database.replica.clone());
            database.process.spawn(async move { hold(writer, lease, replica).await });
        }
        (Err(_), Some(lease)) => {
            let replica = database.replica.clone();
            database.process.spawn(async move { lease.release(&replica).await });
        }
        (_, None) => {}
    }
    opened
}

fn open_buffer(database: &Arc<Database>, settings: WriteSettings) -> Result<Arc<Writer>> {
    let (buffer, left) = Buffer::open(&settings.buffer_path, database.replica.url(), &database.process.buffers)?;
    let (state, end) = (buffer.state.clone(), buffer.end);
    let places: Vec<Position> = left
        .after(Position::default())
        .map(|(segment, commit)| Position { segment: segment.number, offset: commit.end })
        .collect();
    let (this, path) = (database.clone(), buffer.path().to_owned());
    let verdict = database.wait_for(&|| false, async move { verdict(&this, &state, &places, end, path).await })?;
    let Verdict { base, refused } = verdict;
    let mut buffer = buffer;
    if refused.is_none() && base != buffer.state.base {
        let intent = buffer.state.intent.filter(|intent| intent.up_to > base.up_to);
        buffer.intend(base, intent)?;
        buffer.forget(base.up_to, false);
    }
    if let Some(error) = &refused {
        process::note_error(&format!("{}: opened, but not for writing: {error}", database.replica.url()));
    }
    let adopts = refused.is_none();
    let writer = Arc::new(Writer::new(settings, buffer, base, refused));
    if adopts {
        writer.adopt(database, &left)?;
    }
    let (task, watched) = (writer.clone(), Arc::downgrade(database));
    database.process.spawn(async move { run(task, watched).await });
    if let Some(schedule) = writer.settings.upkeep.clone() {
        let (task, watched) = (writer.clone(), Arc::downgrade(database));
        database.process.spawn(async move { keep(task, watched, schedule).await });
    }
    Ok(writer)
}

/// Renews a lease until the writer ends.
async fn hold(writer: Arc<Writer>, mut lease: Lease, replica: Replica) {
    let mut ended = writer.ended.subscribe();
    loop {
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => break,
            () = tokio::time::sleep(lease::RENEW) => {}
        }
        match lease.renew(&replica).await {
            Ok(()) => {}
            Err(error @ Error::Leased { .. }) => {
                process::note_error(&format!("the lease was taken: {error}"));
                writer.failed(&error, true);
                return;
            }
            Err(error) => tracing::warn!(%error, "cannot renew the lease; trying again"),
        }
    }
    lease.release(&replica).await;
}

/// Keeps the replica small until the writer ends.
async fn keep(writer: Arc<Writer>, database: Weak<Database>, schedule: Schedule) {
    let mut ended = writer.ended.subscribe();
    let now = |database: &Database| {
        database.replica.clock().unwrap_or_else(|| Timestamp(jiff::Timestamp::now().as_millisecond()))
    };
    let Some(mut upkeep) = database.upgrade().map(|database| Upkeep::new(schedule, now(&database))) else { return };
    // By our own clock it is only decided when to look at the store's, which stands still as long as nothing is asked.
    let pause = upkeep.shortest().clamp(Duration::from_millis(100), Duration::from_secs(60));
    loop {
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            () = tokio::time::sleep(pause) => {}
        }
        let Some(database) = database.upgrade() else { return };
        if writer.inner().refused.is_some() {
            return;
        }
        let Ok(newest) = database.latest().map(|shown| shown.view.txid()) else { return };
        let scratch = writer.settings.buffer_path.parent().map_or_else(std::env::temp_dir, std::path::Path::to_owned);
        match Box::pin(upkeep.step(&database.replica, newest, &|| now(&database), &scratch)).await {
            Ok(kept) if kept == Kept::default() => {}
            Ok(kept) => tracing::debug!(made = kept.made, deleted = kept.deleted, "compacted"),
            Err(error) => tracing::warn!(url = %database.replica.url(), %error, "cannot compact; trying again later"),
        }
    }
}

#[derive(Clone)]
struct Verdict {
    base: Uploaded,
    refused: Option<Error>,
}

/// What of a buffer is in the replica. `places` are the ends of its transactions.
async fn verdict(
    database: &Database,
    state: &State,
    places: &[Position],
    end: Position,
    path: PathBuf,
) -> Result<Verdict> {
    let shown = database.latest()?;
    let reached = shown.view.txid();
    let last = shown.view.files().last();
    let checksum = last.filter(|file| file.info.level == Level::ZERO).map_or(0, |file| file.trailer.file_checksum.0);
    let pending = |after: Position| places.iter().any(|place| *place > after);
    let here = Uploaded { txid: reached, checksum, up_to: end, time: shown.view.time() };
    if !pending(state.base.up_to) {
        return Ok(Verdict { base: here, refused: None });
    }
    let refused = |base, error| Ok(Verdict { base, refused: Some(error) });
    let base = state.base;
    if reached < base.txid {
        let (url, have, found) = (database.replica.url().clone(), base.txid, reached);
        return refused(base, Error::Rewound { url, have, found });
    }
    if reached == base.txid {
        if base.checksum != 0 && checksum != 0 && base.checksum != checksum {
            let by = last.map_or_else(String::new, |file| fence::node(file.header.node_id));
            return refused(base, Error::Fenced { txid: reached, by, buffer: path });
        }
        return Ok(Verdict { base, refused: None });
    }
    let next = base.txid.next();
    let file =
        fence::level_0(&database.replica, next).await?.into_iter().find(|file| file.name == FileName::new(next, next));
    let Some(file) = file else {
        let by = "somebody whose file has been merged into others since, so that it can no longer be told".to_owned();
        return refused(base, Error::Fenced { txid: next, by, buffer: path });
    };
    let file = open_file(&database.replica, &file).await?;
    match state.intent.filter(|intent| intent.txid == next && intent.checksum == file.trailer.file_checksum.0) {
        Some(intent) if reached == next || !pending(intent.up_to) => {
            let base = if pending(intent.up_to) { intent } else { here };
            Ok(Verdict { base, refused: None })
        }
        Some(intent) => {
            let txid = intent.txid.next();
            refused(intent, Error::Fenced { txid, by: fence::who_wrote(&database.replica, txid).await, buffer: path })
        }
        None => {
            refused(base, Error::Fenced { txid: next, by: fence::who(&database.replica, &file).await, buffer: path })
        }
    }
}

/// Uploads until the database is closed.
async fn run(writer: Arc<Writer>, database: Weak<Database>) {
    let Some(opened) = database.upgrade() else { return };
    let Ok(shown) = opened.latest() else { return };
    let (probe, replica, mut checked) = (opened.probe.clone(), opened.replica.clone(), writer.settings.unfenced);
    let mut proof = opened.ended(shown.view.txid());
    drop(opened);
    let mut ended = writer.ended.subscribe();
    let (mut started, mut failures, mut noted) = (Some(Instant::now()), 0_u32, true);
    let mut renewed = shown.view.files().len();
    drop(shown);
    loop {
        let (pending, urgent) = {
            let inner = writer.inner();
            if inner.closed || inner.ending && inner.refused.is_some() {
                return;
            }
            (inner.uploaded < inner.commits && inner.refused.is_none(), inner.urgent || inner.ending)
        };
        if checked && !pending {
            tokio::select! {
                () = writer.wake.notified() => {}
                () = tokio::time::sleep(IDLE), if !noted => {
                    let writer = writer.clone();
                    if let Err(error) = blocking(move || writer.note()).await {
                        tracing::warn!(%error, "cannot note in the write buffer that all is uploaded");
                    }
                    noted = true;
                }
            }
            continue;
        }
        let pause = match failures {
            0 if urgent || !checked => Duration::ZERO,
            0 => writer.settings.sync_interval,
            // Somewhat apart from others who fail with the same store.
            _ => (Duration::from_secs(1) * 2_u32.pow(failures.min(6) - 1))
                .min(LONGEST_PAUSE)
                .mul_f64(0.75 + (random() % 512) as f64 / 1024.0),
        };
        let due = started.map(|started| started + pause).filter(|due| *due > Instant::now());
        if let Some(due) = due {
            // Somebody who begins to wait is not kept waiting, but a store that is in trouble is not pressed either.
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = writer.wake.notified(), if failures == 0 => continue,
            }
        }
        started = Some(Instant::now());
        let outcome = if checked {
            let Some(database) = database.upgrade() else { return };
            Box::pin(upload(&writer, &database, &mut proof)).await
        } else {
            tokio::select! {
                outcome = fences(&probe, &replica) => outcome,
                _ = ended.wait_for(|ended| *ended) => return,
            }
        };
        let Some(database) = database.upgrade() else { return };
        match outcome {
            Ok(()) => {
                if failures > 0 {
                    tracing::warn!(url = %database.replica.url(), "uploading again");
                }
                failures = 0;
                if !std::mem::replace(&mut checked, true) {
                    // What was committed meanwhile goes up when it is due.
                    continue;
                }
                noted = false;
                let files = database.latest().map_or(0, |shown| shown.view.files().len());
                if is_worth_a_look(files, renewed) {
                    // Others will have been merged: a shorter list is as good.
                    if let Err(error) = Box::pin(database.renew()).await {
                        tracing::warn!(%error, "cannot look for merged files");
                    }
                    renewed = database.latest().map_or(files, |shown| shown.view.files().len());
                }
            }
            Err(Trouble { error, for_good }) => {
                if failures == 0 || for_good {
                    process::note_error(&format!("{}: cannot upload: {error}", database.replica.url()));
                    if !for_good {
                        tracing::warn!("committed transactions are kept in the write buffer; trying again");
                    }
                }
                failures += 1;
                writer.failed(&error, for_good);
            }
        }
    }
}

/// Whether to look for merged files, with so many and with so many left after the last look. Where nobody merges any, a look brings nothing and
/// lists all of them: then each has to wait for half as many more, so that all looks together cost no more than a few listings of the whole.
const fn is_worth_a_look(files: usize, left: usize) -> bool {
    let more = if left / 2 > MANY_FILES { left / 2 } else { MANY_FILES };
    files >= left + more
}

/// Why an upload failed, and whether it makes sense to try again.
struct Trouble {
    error: Error,
    for_good: bool,
}

impl<E: Into<Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self { error: error.into(), for_good: false }
    }
}

fn for_good(error: Error) -> Trouble {
    Trouble { error, for_good: true }
}

/// Makes sure that the store keeps two writers apart. As a rule that was asked when the database was opened, and is known by now.
async fn fences(probe: &Probe, replica: &Replica) -> Result<(), Trouble> {
    if probe.honoured(replica).await? {
        return Ok(());
    }
    Err(for_good(Error::Setting {
        name: "replica_url".to_owned(),
        why: format!(
            "{}: the store ignores If-None-Match, so nothing keeps two writers from overwriting one another: use a store that honours it, or set unfenced=true where there is certainly only one",
            replica.url()
        ),
    }))
}

/// Uploads what was committed so far.
async fn upload(writer: &Arc<Writer>, database: &Arc<Database>, proof: &mut Option<Timestamp>) -> Result<(), Trouble> {
    let Some(sealed) = writer.seal(database)? else { return Ok(()) };
    let sealed = Arc::new(sealed);
    let txid = sealed.base.view.txid().next();
    let path = writer.settings.buffer_path.clone();
    let (encoder, this) = (sealed.clone(), writer.clone());
    let Encoded { body, intent, _file } = blocking(move || {
        let encoded = encode(&encoder, txid, &path)?;
        if encoder.again != Some(encoded.intent) {
            if encoder.again.is_some() {
                tracing::warn!(%txid, "what was tried before comes out different now");
            }
            this.intend(&encoder, encoded.intent)?;
        }
        Ok(encoded)
    })
    .await?;
    let bytes = match &body {
        Body::Bytes(bytes) => Some(bytes.clone()),
        Body::File { .. } => None,
    };
    let next = Next {
        txid,
        body,
        time: intent.time,
        checksum: Checksum(intent.checksum),
        writer: sealed.writer,
        identity: &writer.settings.identity,
    };
    let info = match fence::put(&database.replica, next, proof, writer.settings.fence_window).await? {
        Put::Durable(info) => info,
        Put::Fenced { txid, by } => {
            return Err(for_good(Error::Fenced { txid, by, buffer: writer.settings.buffer_path.clone() }));
        }
    };
    let file = match bytes {
        Some(bytes) => OpenFile::parse(info, bytes.clone(), &bytes)?,
        None => open_file(&database.replica, &info).await?,
    };
    // Of the same transaction as when the layers were sealed: nobody but this task moves on while the database is written.
    let before = database.latest()?.view.clone();
    let view = before.derive(&[Arc::new(file)], &database.process.spill).await?;
    Ok(writer.proven(database, &sealed, Arc::new(view), intent)?)
}

/// An LTX file that is to be put.
struct Encoded {
    body: Body,
    intent: Uploaded,
    /// Goes with this.
    _file: Option<Scratch>,
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot delete a file that was uploaded");
        }
    }
}

fn encode(sealed: &Sealed, txid: Txid, buffer: &std::path::Path) -> Result<Encoded> {
    let last = sealed.last().ok_or_else(|| Error::Worker("nothing to upload".to_owned()))?;
    let view = &sealed.base.view;
    let time = sealed
        .again
        .map_or_else(|| Timestamp(jiff::Timestamp::now().as_millisecond().max(view.time().0 + 1)), |again| again.time);
    let header =
        Header { node_id: sealed.writer, ..Header::new(sealed.page_size, Commit(last.size), txid, txid, time) };
    let pages = sealed.pages();
    let wrong = |error: ltx::Error| Error::Worker(format!("cannot encode transaction {txid}: {error}"));
    let intent = |checksum: ltx::Checksum| Uploaded { txid, checksum: checksum.0, up_to: last.end, time };
    if pages.len() * sealed.page_size.bytes() <= IN_MEMORY {
        let (bytes, trailer) = write_pages(Encoder::new(Vec::new(), header).map_err(wrong)?, &pages, sealed, wrong)?;
        let body = Body::Bytes(Bytes::from(bytes));
        return Ok(Encoded { body, intent: intent(trailer.file_checksum), _file: None });
    }
    let mut path = buffer.as_os_str().to_owned();
    path.push("-upload");
    let path = PathBuf::from(path);
    let io = |error| Error::buffer("write", &path, error);
    let file = File::create(&path).map_err(io)?;
    let scratch = Scratch(path.clone());
    let encoder = Encoder::new(BufWriter::with_capacity(1 << 20, file), header).map_err(wrong)?;
    let (mut writer, trailer) = write_pages(encoder, &pages, sealed, wrong)?;
    writer.flush().map_err(io)?;
    let len = writer.get_ref().metadata().map_err(io)?.len();
    Ok(Encoded { body: Body::File { path, len }, intent: intent(trailer.file_checksum), _file: Some(scratch) })
}

fn write_pages<W: Write>(
    mut encoder: Encoder<W>,
    pages: &[(Pgno, Option<(usize, u64)>)],
    sealed: &Sealed,
    wrong: impl Fn(ltx::Error) -> Error,
) -> Result<(W, ltx::Trailer)> {
    let mut page = vec![0; sealed.page_size.bytes()];
    for (pgno, place) in pages {
        match place {
            Some((layer, offset)) => sealed.layers[*layer].segment.read(*offset, &mut page)?,
            None => page.fill(0),
        }
        encoder.page(*pgno, &page).map_err(&wrong)?;
    }
    encoder.finish().map_err(wrong)
}

impl Sealed {
    /// All pages of the file, ascending, and where their images lie: in which layer, at what offset. Those without one are zero.
    fn pages(&self) -> Vec<(Pgno, Option<(usize, u64)>)> {
        let mut found = std::collections::BTreeMap::new();
        let mut low = self.base.view.commit().0;
        for (number, layer) in self.layers.iter().enumerate() {
            found.split_off(&layer.low.saturating_add(1));
            layer.pages.each(&mut |page, offset| {
                found.insert(page, Some((number, offset)));
            });
            low = low.min(layer.low);
        }
        let size = self.last().map_or(0, |last| last.size);
        // What growth added must be there, written or not.
        for page in low.saturating_add(1)..=size {
            found.entry(page).or_insert(None);
        }
        let lock_page = self.page_size.lock_page();
        let pages = found.into_iter().filter(|(page, _)| *page <= size);
        pages
            .filter_map(|(page, place)| Some((Pgno::new(page)?, place)))
            .filter(|(pgno, _)| *pgno != lock_page)
            .collect()
    }
}

/// Runs what blocks on a thread where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::Worker(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_for_merged_files_grow_rare_where_there_are_none() {
        let (mut left, mut looks, mut listed) = (0, 0, 0);
        let uploads = 1_000_000;
        for files in 1..=uploads {
            if is_worth_a_look(files, left) {
                (left, looks, listed) = (files, looks + 1, listed + files);
            }
        }
        assert!(looks < 30 && listed < 4 * uploads, "{looks} looks at {listed} files");
        // Where there are, what is left is short, and the next look comes as soon as after the first.
        assert!(!is_worth_a_look(10 + MANY_FILES - 1, 10) && is_worth_a_look(10 + MANY_FILES, 10));
    }
}
