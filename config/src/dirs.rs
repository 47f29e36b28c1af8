//! Databases below a directory: `dir:` entries with their patterns.

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use super::{DbConfig, DirConfig, MetaBase, default_meta_path};

/// The directory of an entry cannot be searched.
#[derive(Debug, thiserror::Error)]
#[error("cannot search `{}` for databases: {source}", path.display())]
pub struct ScanError {
    /// The directory, or one below it.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What a directory holds now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scan {
    /// The databases, in order of their paths.
    pub databases: Vec<DbConfig>,
    /// The directories that were searched.
    pub dirs: Vec<PathBuf>,
    /// What was passed over because we may not read it, in sentences. The directory itself is not among them.
    pub unreadable: Vec<String>,
}

impl DirConfig {
    /// All databases that are there now, in order of their paths. A database is a file whose name fits the pattern and
    /// that begins like one; links to directories are not followed, links to files are.
    ///
    /// # Errors
    /// A directory that is missing or cannot be read.
    pub fn scan(&self) -> Result<Vec<DbConfig>, ScanError> {
        Ok(self.scan_with(&is_database)?.databases)
    }

    /// The same for whoever has files open that must not be opened twice: of each file whose name fits, `is_database`
    /// says whether it is one.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn scan_with(&self, is_database: &dyn Fn(&Path) -> bool) -> Result<Scan, ScanError> {
        let mut scan = Scan::default();
        self.scan_into(&self.dir, is_database, &mut scan)?;
        Ok(scan)
    }

    /// The configuration of the database at this absolute path, if the entry covers it. The file need not exist, so that
    /// it can be restored.
    pub fn database(&self, path: &Path) -> Option<DbConfig> {
        let relative = path.strip_prefix(&self.dir).ok()?;
        let parts: Vec<&str> = relative
            .components()
            .map(|part| if let Component::Normal(part) = part { part.to_str() } else { None })
            .collect::<Option<_>>()?;
        let (name, above) = parts.split_last()?;
        if (!self.recursive && !above.is_empty()) || !matches(&self.pattern, name) || is_beside(name) {
            return None;
        }
        let meta_path = match &self.meta {
            MetaBase::Beside => default_meta_path(path),
            MetaBase::Path(base) => default_meta_path(&base.join(relative)),
            MetaBase::Dir(base) => base.join(format!("{}-litestream", parts.join("/"))),
        };
        let mut replicas = self.replicas.clone();
        for replica in &mut replicas {
            replica.config = replica.config.join(&parts.join("/"));
        }
        Some(DbConfig { path: path.into(), meta_path, settings: self.settings.clone(), replicas })
    }

    fn scan_into(&self, dir: &Path, is_database: &dyn Fn(&Path) -> bool, scan: &mut Scan) -> Result<(), ScanError> {
        let failed = |source| ScanError { path: dir.into(), source };
        let mut entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        scan.dirs.push(dir.into());
        for entry in entries {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // Our own local state holds no databases, but many files.
                let name = entry.file_name();
                let own = name.to_str().is_some_and(|name| name.ends_with("-litestream"));
                if self.recursive && !own {
                    match self.scan_into(&path, is_database, scan) {
                        // Removed since it was listed.
                        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                        // Such as `lost+found`: whatever is in there is none of ours.
                        Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                            scan.unreadable.push(error.to_string());
                        }
                        other => other?,
                    }
                }
            } else if let Some(database) = self.database(&path)
                && is_database(&path)
            {
                scan.databases.push(database);
            }
        }
        Ok(())
    }
}

/// Whether the file begins like an SQLite database (SQLite file format, 1.3.1). Opens and closes it.
pub fn is_database(path: &Path) -> bool {
    // A pipe would block the reader.
    if !path.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return false;
    }
    let mut start = [0; 16];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"SQLite format 3\0"
}

/// Whether a file belongs to a database as SQLite names it. It must not even be opened to look: whoever closes a `-shm` again takes SQLite's locks
/// away from all that his process has open.
fn is_beside(name: &str) -> bool {
    ["-wal", "-shm", "-journal"].iter().any(|suffix| name.ends_with(suffix))
}

/// What is wrong with a pattern, if anything is.
pub(crate) fn check(pattern: &str) -> Result<(), &'static str> {
    if pattern.contains('/') {
        return Err("patterns match names, not paths: use `dir` and `recursive` for directories");
    }
    let mut rest = pattern;
    while let Some((_, after)) = item(rest).ok_or("its `[` is never closed, or it ends with a backslash")? {
        rest = after;
    }
    Ok(())
}

/// Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before a character that means itself.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // Where to go on when the rest does not fit: after the last star, one character later.
    let mut star: Option<(&str, &str)> = None;
    loop {
        let next = name.chars().next();
        let step = match (item(pattern), next) {
            (None, _) => return false,
            (Some(None), None) => return true,
            (Some(Some((Item::Star, after))), _) => {
                star = Some((after, name));
                pattern = after;
                continue;
            }
            (Some(Some((what, after))), Some(c)) if what.fits(c) => Some((after, c)),
            _ => None,
        };
        match (step, star) {
            (Some((after, c)), _) => (pattern, name) = (after, &name[c.len_utf8()..]),
            (None, Some((after, from))) => {
                let Some(c) = from.chars().next() else { return false };
                let from = &from[c.len_utf8()..];
                star = Some((after, from));
                (pattern, name) = (after, from);
            }
            (None, None) => return false,
        }
    }
}

enum Item<'a> {
    Star,
    Any,
    One(char),
    Class { not: bool, ranges: &'a str },
}

impl Item<'_> {
    fn fits(&self, c: char) -> bool {
        match self {
            Self::Star | Self::Any => true,
            Self::One(one) => *one == c,
            Self::Class { not, ranges } => {
                let mut rest = ranges.chars();
                let mut inside = false;
                while let Some(low) = literal(&mut rest) {
                    let mut ahead = rest.clone();
                    let high = if ahead.next() == Some('-') {
                        rest = ahead;
                        literal(&mut rest).unwrap_or(low)
                    } else {
                        low
                    };
                    inside |= (low..=high).contains(&c);
                }
                inside != *not
            }
        }
    }
}

fn literal(chars: &mut std::str::Chars<'_>) -> Option<char> {
    match chars.next()? {
        '\\' => chars.next(),
        c => Some(c),
    }
}

/// The first item of a pattern and the rest; `Some(None)` at the end, `None` where it is broken.
#[allow(clippy::option_option)]
fn item(pattern: &str) -> Option<Option<(Item<'_>, &str)>> {
    let mut chars = pattern.chars();
    let Some(first) = chars.next() else { return Some(None) };
    let item = match first {
        '*' => Item::Star,
        '?' => Item::Any,
        '\\' => Item::One(chars.next()?),
        '[' => {
            let inside = chars.as_str();
            let (not, inside) = inside.strip_prefix('^').map_or((false, inside), |inside| (true, inside));
            let mut end = inside.chars();
            let mut length = 0;
            loop {
                match end.next()? {
                    ']' if length > 0 => break,
                    '\\' => {
                        end.next()?;
                    }
                    _ => {}
                }
                length = inside.len() - end.as_str().len();
            }
            return Some(Some((Item::Class { not, ranges: &inside[..length] }, end.as_str())));
        }
        c => Item::One(c),
    };
    Some(Some((item, chars.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*.db", "a.db", true),
            ("*.db", ".db", true),
            ("*.db", "a.db-wal", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbY", false),
            ("**a", "ba", true),
            ("?.db", "ä.db", true),
            ("?.db", "ab.db", false),
            ("[a-c]*", "b1", true),
            ("[a-c]*", "d1", false),
            ("[^a-c]*", "d1", true),
            ("[^a-c]*", "a1", false),
            ("[abx-z]", "y", true),
            ("[\\]]", "]", true),
            ("[\\-a]", "-", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[", "[", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
        for broken in ["[", "[a", "[^", "a\\", "[\\", "x/*.db"] {
            assert!(check(broken).is_err(), "{broken}");
        }
        for fine in ["", "*", "[a]", "[]a]", "\\["] {
            assert!(check(fine).is_ok(), "{fine}");
        }
    }
}
