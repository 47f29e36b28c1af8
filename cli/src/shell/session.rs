//! One connection, and what the user has set: runs statements and says what went wrong.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litestream_vfs::write::buffer::inspect;
use rusqlite::{Connection, ErrorCode};

use super::dot;
use super::interrupts::Interrupts;
use super::print::{Format, Printer};
use super::sink::Sink;
use super::splitter::{Splitter, Statement};
use super::values::{Values, quote, visible};
use crate::output;

/// What SQLite says where only the VFS knows more.
const FIXED_TEXTS: [&str; 3] = ["disk I/O error", "unable to open database file", "out of memory"];

/// How long a close may take before the user is told why.
const WAIT: Duration = Duration::from_secs(1);

/// What is opened, as the user knows it.
pub(crate) struct Place {
    /// The replica's URL, without credentials.
    pub(crate) url: String,
    /// The moment or TXID that it was opened at for good.
    pub(crate) at: Option<String>,
}

/// See the module.
pub(crate) struct Session {
    pub(super) connection: Connection,
    pub(super) values: Values,
    pub(super) sink: Sink,
    pub(super) format: Format,
    pub(super) timer: bool,
    pub(super) echo: bool,
    pub(super) place: Place,
    /// How many scripts are being read, each from within the other.
    pub(super) depth: usize,
    pub(crate) interrupts: Arc<Interrupts>,
    /// Whether the first error ends everything.
    bail: bool,
    /// Whether a person gives the commands.
    interactive: bool,
    failed: bool,
    /// Whether SQLite has read the schema, so that asking for names costs next to nothing.
    schema_read: bool,
    /// Whether the names have been given out.
    pub(super) names_known: bool,
    /// The VFS's error that has been told already.
    told: String,
}

/// How things go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// With the next command.
    On,
    /// Not at all.
    Quit,
}

/// Why a command ended early.
pub(crate) enum Failure {
    /// What the user is to be told.
    Text(String),
    /// SQLite's error.
    Sql(rusqlite::Error),
    /// Whoever read the output has gone.
    Gone,
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Gone,
            _ => Self::Text(format!("cannot write the output: {error}")),
        }
    }
}

/// Where commands come from, for messages.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The user, who sees where.
    User,
    /// Lines of something with a name.
    Lines(&'a str),
}

impl Source<'_> {
    fn at(self, line: usize) -> String {
        match self {
            Source::User => String::new(),
            Source::Lines(name) => format!("{name}, line {line}: "),
        }
    }
}

impl Session {
    pub(crate) fn new(connection: Connection, values: Values, place: Place, interrupts: Arc<Interrupts>) -> Self {
        Self {
            connection,
            values,
            sink: Sink::new(),
            format: Format::DEFAULT,
            timer: false,
            echo: false,
            place,
            depth: 0,
            interrupts,
            bail: false,
            interactive: false,
            failed: false,
            schema_read: false,
            names_known: false,
            told: String::new(),
        }
    }

    /// The first error ends everything.
    pub(crate) fn bail(mut self) -> Self {
        self.bail = true;
        self
    }

    /// A person gives the commands: an interrupt ends what runs, but not the session.
    pub(crate) fn interactive(mut self) -> Self {
        self.interactive = true;
        self
    }

    /// Says what is open, and how to go on.
    pub(crate) fn greet(&mut self) {
        let url = &self.place.url;
        let (version, sqlite) = (env!("CARGO_PKG_VERSION"), rusqlite::version());
        let moment = match (self.pragma("litestream_txid", None), self.pragma("litestream_time", None)) {
            (Ok(txid), Ok(time)) => format!(" at {txid} ({time})"),
            _ => String::new(),
        };
        output::note(&format!("version {version}, SQLite {sqlite}; {url}{moment}"));
        output::note("SQL ends with a semicolon; .help lists commands; Ctrl-D leaves");
    }

    /// Says what a writer must know before the first command: what an earlier one has left, and that it may not write.
    pub(crate) fn greet_writer(&mut self) {
        let Some(buffer) = self.buffer() else { return };
        if self.stat("write_refused") > 0 {
            self.told = self.values.last_error();
            output::note(&self.told);
        }
        match self.stat("transactions_pending") {
            0 => {}
            1 => output::note(&format!("one transaction was left in the write buffer {buffer}: uploading it")),
            left => {
                output::note(&format!("{left} transactions were left in the write buffer {buffer}: uploading them"));
            }
        }
    }

    /// Closes the database, which waits for the last upload. Says whether all that was committed is in the replica.
    pub(crate) fn leave(self) -> bool {
        let Some(buffer) = self.buffer() else { return true };
        let Self { connection, values, interrupts, interactive, .. } = self;
        let kept =
            format!("what is not uploaded yet is kept in {buffer}, and goes up when the database is next written");
        interrupts.leave(kept.clone());
        let waiting = interactive.then(|| explain_wait(format!("uploading; Ctrl-C ends this: {kept}")).ok()).flatten();
        let before = values.last_error();
        drop(connection);
        if let Some((end, thread)) = waiting {
            drop(end);
            let _ = thread.join();
        }
        // Only now: to look into a buffer that this process has gives its lock away.
        let left = match inspect(Path::new(&buffer)) {
            Ok(report) => report.pending.len(),
            Err(error) => {
                output::note(&error.to_string());
                return false;
            }
        };
        if left > 0 {
            let after = values.last_error();
            let text =
                if after == before || after.is_empty() { format!("not all was uploaded: {kept}") } else { after };
            output::note(&text);
        }
        left == 0
    }

    /// Whether a command has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Takes a line: runs the statements that it completes, or the dot-command that it is.
    pub(crate) fn feed(&mut self, splitter: &mut Splitter, line: &str, number: usize, source: Source<'_>) -> Flow {
        if splitter.is_blank() && line.trim_start().starts_with('.') {
            splitter.skip();
            let line = line.trim();
            self.echo(line);
            let done = dot::run(self, line);
            return self.finish(done, || source.at(number));
        }
        splitter.push(line);
        while let Some(statement) = splitter.next() {
            if self.run(&statement, source) == Flow::Quit {
                return Flow::Quit;
            }
            if self.interrupts.asked() {
                // What else the line holds is not wanted either.
                *splitter = Splitter::default();
            }
        }
        Flow::On
    }

    /// Runs what is left at the end, which needs no semicolon.
    pub(crate) fn feed_end(&mut self, splitter: &mut Splitter, source: Source<'_>) -> Flow {
        splitter.rest().map_or(Flow::On, |statement| self.run(&statement, source))
    }

    fn run(&mut self, statement: &Statement, source: Source<'_>) -> Flow {
        self.echo(&statement.text);
        let done = self.statement(&statement.text).map(|()| Flow::On);
        self.schema_read |= done.is_ok();
        let line = match &done {
            Err(Failure::Sql(rusqlite::Error::SqlInputError { offset, .. })) => {
                let before = usize::try_from(*offset).ok().and_then(|offset| statement.text.get(..offset));
                statement.line + before.map_or(0, |before| before.matches('\n').count())
            }
            _ => statement.line,
        };
        self.finish(done, || source.at(line))
    }

    /// Writes everything out, tells of a failure, and says how to go on.
    fn finish(&mut self, done: Result<Flow, Failure>, place: impl Fn() -> String) -> Flow {
        let failure = match (done, self.sink.finish().map_err(Failure::from)) {
            // One that came between two commands must not be lost on a script.
            (Ok(Flow::On), Ok(())) if self.interrupts.asked() && !self.interactive => {
                Failure::Text("interrupted".to_owned())
            }
            (Ok(flow), Ok(())) => return flow,
            (Err(failure), _) | (Ok(_), Err(failure)) => failure,
        };
        if matches!(failure, Failure::Gone) {
            return Flow::Quit;
        }
        self.failed = true;
        let text = self.explain(&failure);
        if self.interactive && self.interrupts.asked() {
            // The terminal has written ^C.
            let _ = writeln!(io::stderr());
        }
        output::note(&format!("{}{}", place(), visible(&text)));
        if self.bail || self.interrupts.asked() && !self.interactive { Flow::Quit } else { Flow::On }
    }

    /// Tells of something that ends no command.
    pub(crate) fn complain(&mut self, text: &str) {
        self.failed = true;
        output::note(text);
    }

    fn echo(&mut self, text: &str) {
        if self.echo {
            // What cannot be written is noticed by the command itself.
            let _ = writeln!(self.sink, "{text}");
        }
    }

    /// Runs one statement and writes its rows.
    fn statement(&mut self, sql: &str) -> Result<(), Failure> {
        let timed = self.timer.then(|| (Instant::now(), self.traffic()));
        let done = self.rows(sql);
        if let Some((started, before)) = timed {
            let real = started.elapsed().as_secs_f64();
            let after = self.traffic();
            let (requests, bytes) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
            let size = output::size(bytes);
            self.sink.flush()?;
            output::note(&format!("{real:.3} s, {requests} requests, {size} read"));
        }
        done
    }

    fn rows(&mut self, sql: &str) -> Result<(), Failure> {
        let terminal = self.sink.is_terminal();
        let mut statement = self.connection.prepare(sql)?;
        let mut names = names(&statement);
        let mut rows = statement.raw_query();
        let mut printer = None;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    if let Some(mut printer) = printer {
                        Printer::abandon(&mut printer, &mut self.sink)?;
                    }
                    return Err(error.into());
                }
            };
            let statement = row.as_ref();
            let printer = printer.get_or_insert_with(|| {
                // SQLite has prepared it anew where the schema is another one, as behind a journey in time.
                names = self::names(statement);
                self.format.printer(names.clone(), terminal, &self.values)
            });
            let cells = (0..names.len()).map(|column| row.get_ref(column)).collect::<rusqlite::Result<Vec<_>>>()?;
            printer.row(&cells, &mut self.sink)?;
            if terminal {
                self.sink.flush()?;
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let mut printer = printer.unwrap_or_else(|| self.format.printer(names, terminal, &self.values));
        Ok(printer.end(&mut self.sink)?)
    }

    /// A PRAGMA's one answer.
    pub(super) fn pragma(&self, name: &str, value: Option<&str>) -> rusqlite::Result<String> {
        let value = value.map(|value| format!(" = {}", quote(value))).unwrap_or_default();
        self.connection.query_row(&format!("PRAGMA main.{name}{value}"), [], |row| {
            Ok(String::from_utf8_lossy(&self.values.bytes(row.get_ref(0)?).unwrap_or_default()).into_owned())
        })
    }

    /// The names of all tables and columns, where they may be others than those given before.
    pub(super) fn new_names(&mut self) -> Option<Vec<String>> {
        if !self.schema_read || std::mem::replace(&mut self.names_known, true) {
            return None;
        }
        let sql = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') UNION \
                   SELECT c.name FROM sqlite_schema AS s, pragma_table_info(s.name) AS c WHERE s.type IN ('table', 'view')";
        let mut statement = self.connection.prepare(sql).ok()?;
        statement.query_map([], |row| row.get(0)).ok()?.collect::<rusqlite::Result<_>>().ok()
    }

    /// How many requests the replica has answered, and with how many bytes.
    fn traffic(&self) -> (u64, u64) {
        let stats = self.pragma("litestream_stats", None).unwrap_or_default();
        let of = |name| counter(&stats, name);
        (of("lists") + of("gets") + of("heads"), of("bytes_read"))
    }

    /// One of the VFS's counters; 0 where it has none of that name.
    pub(super) fn stat(&self, name: &str) -> u64 {
        counter(&self.pragma("litestream_stats", None).unwrap_or_default(), name)
    }

    /// Where the write buffer is, where the database is written.
    pub(super) fn buffer(&self) -> Option<String> {
        self.pragma("litestream_buffer_path", None).ok().filter(|path| !path.is_empty())
    }

    /// Writes a line.
    pub(super) fn say(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.sink.line(text)?)
    }

    /// What to tell of a failure: where SQLite has only a fixed text, the VFS knows the cause.
    fn explain(&mut self, failure: &Failure) -> String {
        let (text, code) = match failure {
            Failure::Text(text) => return text.clone(),
            Failure::Gone => return String::new(),
            Failure::Sql(rusqlite::Error::SqlInputError { msg, error, .. }) => (msg.clone(), Some(error.code)),
            Failure::Sql(rusqlite::Error::SqliteFailure(error, message)) => {
                (message.clone().unwrap_or_else(|| error.to_string()), Some(error.code))
            }
            Failure::Sql(error) => (error.to_string(), None),
        };
        let cause = self.values.last_error();
        let is_new = cause != self.told;
        self.told.clone_from(&cause);
        let may_be_ours = match code {
            Some(ErrorCode::OperationInterrupted) => is_new && !self.interrupts.asked(),
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly) => {
                // The same cause may come again; another program's database may also be what cannot be opened.
                is_new || FIXED_TEXTS.contains(&text.as_str()) || text.contains("vfs=litestream")
            }
            _ => false,
        };
        if may_be_ours && !cause.is_empty() && !text.contains(&cause) { format!("{text}: {cause}") } else { text }
    }
}

fn counter(stats: &str, wanted: &str) -> u64 {
    let found = stats.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == wanted);
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Says what goes on, where that takes long. Ends when what is returned is dropped and the thread joined.
fn explain_wait(text: String) -> io::Result<(Sender<()>, JoinHandle<()>)> {
    let (end, ended) = channel();
    let tell = move || {
        if ended.recv_timeout(WAIT) == Err(RecvTimeoutError::Timeout) {
            output::note(&text);
        }
    };
    Ok((end, std::thread::Builder::new().name("wait".to_owned()).spawn(tell)?))
}

fn names(statement: &rusqlite::Statement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}
