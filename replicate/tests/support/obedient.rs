//! An application in a process of its own, which does what it is told and nothing else.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rusqlite::Connection;
use rusqlite::types::Value;

const DATABASE: &str = "LITESTREAM_REPLICATE_TEST_OBEDIENT";

pub(crate) struct Application {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Application {
    pub(crate) fn open(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "obedient::what_it_does", "--nocapture"]).env(DATABASE, path);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut application = Self { process, orders, answers: BufReader::new(answers) };
        application.run("PRAGMA user_version");
        application
    }

    /// Runs a statement; its answer is the first row's first column.
    pub(crate) fn run(&mut self, sql: &str) -> String {
        self.ask(sql).unwrap()
    }

    pub(crate) fn ask(&mut self, sql: &str) -> Result<String, String> {
        writeln!(self.orders, "{sql}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it is still there");
            if let Some((_, answer)) = line.trim_end_matches('\n').split_once("> ok ") {
                return Ok(answer.to_owned());
            }
            if let Some((_, error)) = line.trim_end_matches('\n').split_once("> error ") {
                return Err(error.to_owned());
            }
        }
    }

    pub(crate) fn insert(&mut self, rows: u32) {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ROWS)
            INSERT INTO t (body) SELECT randomblob(2000) FROM n";
        self.run(&sql.replace("ROWS", &rows.to_string()).replace('\n', " "));
    }

    /// Whether a checkpoint was done.
    pub(crate) fn checkpoint(&mut self, kind: &str) -> bool {
        self.run(&format!("PRAGMA wal_checkpoint({kind})")) == "0"
    }

    /// Closes its connection as a program does that has ended.
    pub(crate) fn close(mut self) {
        self.run("close");
    }

    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Not a test by itself: what such an application does.
#[test]
fn what_it_does() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    let mut database = Some(Connection::open(path).unwrap());
    // It ends with whoever tells it something.
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        if line == "close" {
            database = None;
            println!("> ok ");
            continue;
        }
        let database = database.as_ref().unwrap();
        let answer = database.prepare(&line).and_then(|mut statement| {
            let mut rows = statement.query([])?;
            let row = rows.next()?.map(|row| row.get::<_, Value>(0)).transpose()?;
            // Whatever the statement writes is written by the last step.
            while rows.next()?.is_some() {}
            Ok(row)
        });
        match answer {
            Ok(Some(Value::Integer(value))) => println!("> ok {value}"),
            Ok(_) => println!("> ok "),
            Err(error) => println!("> error {error}"),
        }
    }
}
