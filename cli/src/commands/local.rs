//! What lies beside a database: `.NAME-litestream`, the log. Only looked at, and neither the database nor its `-shm` is ever opened.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use litestream_config::DbConfig;
use ltx::{FileName, Txid};
use serde::Deserialize;

/// What is known of a database without a daemon.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Local {
    /// Whether the database file is there.
    pub(crate) exists: bool,
    /// The last TXID that was captured.
    pub(crate) txid: Option<Txid>,
    /// The log's length.
    pub(crate) wal_size: Option<u64>,
    /// Captured files that are still here, and their bytes.
    pub(crate) staged: u64,
    pub(crate) staged_bytes: u64,
}

/// As much of the state as is needed here.
#[derive(Deserialize)]
struct State {
    txid: String,
}

/// Looks at a database.
///
/// # Errors
/// Something is there and cannot be read.
pub(crate) fn look(database: &DbConfig) -> io::Result<Local> {
    let mut local = Local { exists: length(&database.path)?.is_some(), ..Local::default() };
    let mut log = database.path.clone().into_os_string();
    log.push("-wal");
    local.wal_size = length(Path::new(&log))?;
    local.txid = match fs::read(state_file(&database.meta_path)) {
        Ok(bytes) => serde_json::from_slice::<State>(&bytes).ok().and_then(|state| state.txid.parse().ok()),
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(error),
    };
    for (path, len) in files(&database.meta_path.join("ltx").join("0"))? {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<FileName>().ok());
        if let Some(name) = name {
            local.staged += 1;
            local.staged_bytes += len;
            // Litestream has no other state than these files.
            local.txid = local.txid.max(Some(name.max));
        }
    }
    Ok(local)
}

/// All that `reset` deletes: the state, and captured files. A write buffer that lies there, too, is another's.
pub(crate) fn captured(meta: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let state = state_file(meta);
    for path in [state.with_extension("tmp"), state] {
        if length(&path)?.is_some() {
            found.push(path);
        }
    }
    let waiting = files(&meta.join("ltx").join("0"))?;
    found.extend(waiting.into_iter().map(|(path, _)| path).filter(|path| is_captured(path)));
    found.sort();
    Ok(found)
}

fn is_captured(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["ltx", "tmp", "had"].iter().any(|own| extension == *own))
}

fn state_file(meta: &Path) -> PathBuf {
    meta.join("state")
}

/// The files of a folder and their lengths; none where there is no folder.
fn files(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // The daemon may have deleted it meanwhile.
        if let Some(len) = length(&path)? {
            found.push((path, len));
        }
    }
    Ok(found)
}

/// A file's length; none where there is no such file.
fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// A process of ours, or of Litestream's, that has the database open: it replicates it, whether or not it has a control socket. Processes of
/// other users cannot be looked at.
pub(crate) fn replicator(database: &Path) -> Option<u32> {
    let wanted = fs::metadata(database).ok()?;
    let is_it = |descriptor: &fs::DirEntry| {
        fs::metadata(descriptor.path()).is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("litestream")
            && *pid != std::process::id()
            && fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|found| found.flatten().any(|fd| is_it(&fd)))
    })
}

#[cfg(test)]
mod tests {
    use litestream_config::DbSettings;

    use super::*;

    #[test]
    fn what_lies_there_is_found_and_a_write_buffer_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my.db");
        let meta_path = litestream_config::default_meta_path(&path);
        let database =
            DbConfig { path, meta_path: meta_path.clone(), settings: DbSettings::default(), replicas: Vec::new() };
        assert_eq!(look(&database).unwrap(), Local::default());
        assert!(captured(&meta_path).unwrap().is_empty());

        fs::write(&database.path, "").unwrap();
        fs::write(folder.path().join("my.db-wal"), [0; 77]).unwrap();
        let stage = meta_path.join("ltx/0");
        fs::create_dir_all(&stage).unwrap();
        let names = ["0000000000000009-0000000000000009.ltx", "000000000000000a-000000000000000a.tmp"];
        names.iter().for_each(|name| fs::write(stage.join(name), [0; 100]).unwrap());
        fs::write(meta_path.join("state"), r#"{"version":1,"txid":"0000000000000008"}"#).unwrap();
        fs::write(meta_path.join("buffer"), "precious").unwrap();
        let expected = Local { exists: true, txid: Some(Txid(9)), wal_size: Some(77), staged: 1, staged_bytes: 100 };
        assert_eq!(look(&database).unwrap(), expected);
        let mut all: Vec<PathBuf> = names.iter().map(|name| stage.join(name)).collect();
        all.push(meta_path.join("state"));
        assert_eq!(captured(&meta_path).unwrap(), all);
        assert_eq!(replicator(&database.path), None);
    }
}
