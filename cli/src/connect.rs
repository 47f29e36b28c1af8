//! Opening a replica through the VFS that is linked in, and saying why it cannot be opened.

use anyhow::{Context, anyhow, bail};
use litestream_storage::config::ReplicaConfig;
use rusqlite::{Connection, OpenFlags};

use crate::shell::address;
use crate::shell::values::Values;

/// Registers the VFS with the SQLite that is linked. It can be used from the second connection on, so the first one becomes a helper.
pub(crate) fn register() -> anyhow::Result<Values> {
    if !litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension) {
        bail!("SQLite does not take the VFS: it is out of memory");
    }
    Ok(Values::new(Connection::open_in_memory().context("cannot register the VFS")?))
}

/// Opens a replica. `name` is what the database is called.
pub(crate) fn open(
    replica: &ReplicaConfig,
    name: &str,
    parameters: &[(&str, String)],
    values: &Values,
) -> anyhow::Result<Connection> {
    // To create is for databases that are attached: these flags are theirs too.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(address::uri(replica, name, parameters), flags).map_err(|error| {
        // SQLite's own text would show the URI, and with it the credentials.
        let cause = values.last_error();
        anyhow!(if cause.is_empty() { without_message(&error) } else { cause })
    })
}

/// What a URL's path ends with. Never nothing: SQLite takes a database without a name for a temporary one.
pub(crate) fn last_part(url: &str) -> String {
    let place = url.split('?').next().unwrap_or_default();
    place.rsplit('/').find(|part| !part.is_empty()).unwrap_or("replica").to_owned()
}

fn without_message(error: &rusqlite::Error) -> String {
    error.sqlite_error().map_or_else(|| "the database cannot be opened".to_owned(), ToString::to_string)
}
