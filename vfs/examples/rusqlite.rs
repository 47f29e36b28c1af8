//! Sandwiches straight from a replica, in a Rust program that is linked with an SQLite (rusqlite's): no extension is
//! loaded.
//!
//! ```text
//! cargo run -p litestream-vfs --example rusqlite -- REPLICA_URL [TIME]
//! ```

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

use rusqlite::{Connection, OpenFlags};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(replica) = arguments.next() else {
        eprintln!("usage: rusqlite REPLICA_URL [TIME]");
        return ExitCode::from(2);
    };
    let time = arguments.next().unwrap_or_else(|| "5 seconds ago".to_owned());
    match run(&replica, &time) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(replica: &str, time: &str) -> Result<(), Box<dyn Error>> {
    // SQLite calls us for each connection that it opens; the first one brings the VFS.
    if !litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension) {
        return Err("this SQLite takes no extensions".into());
    }
    drop(Connection::open_in_memory()?);

    let mut db = open(replica)?;
    let view = db.transaction()?;
    let rows = ratings(&view)?;
    show(&format!("latest {}", text(&view, "PRAGMA litestream_txid")?), &rows);
    view.commit()?;

    // The answer is the moment that was found. An impossible one is an error that says which are possible.
    let moment: String = db.pragma_update_and_check(None, "litestream_time", time, |row| row.get(0))?;
    show(&format!("at {moment} {}", text(&db, "PRAGMA litestream_txid")?), &ratings(&db)?);
    Ok(())
}

fn open(replica: &str) -> Result<Connection, Box<dyn Error>> {
    let uri = format!("file:my.db?vfs=litestream&replica_url={}", percent_encode(replica));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags).map_err(|error| {
        // SQLite says no more than "unable to open database file"; any connection of the process knows why.
        let why = Connection::open_in_memory().and_then(|any| text(&any, "SELECT litestream_error()"));
        why.map_or_else(|_| error.to_string(), |why| format!("{error}: {why}")).into()
    })
}

fn ratings(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare("SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let (id, sandwich, rating, tasted): (i64, String, i64, i64) = row.try_into()?;
        Ok(format!("{id}|{sandwich}|{rating}|{tasted}"))
    })?;
    rows.collect()
}

fn text(db: &Connection, sql: &str) -> rusqlite::Result<String> {
    db.query_row(sql, [], |row| row.get(0))
}

fn show(title: &str, rows: &[String]) {
    println!("{title}");
    for row in rows {
        println!("{row}");
    }
}

/// What stands behind a `=` in a URI.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
