//! How keys and times are spelled.

use jiff::Timestamp as Moment;
use ltx::{FileName, Timestamp, Txid};

use crate::backend::{ListPage, Scope};
use crate::{FileInfo, Level, ObjectInfo};

/// The key of an LTX file below `base`, which is empty or ends in a slash.
pub(crate) fn key(base: &str, level: Level, name: FileName) -> String {
    format!("{base}{:04x}/{name}", level.get())
}

/// The prefix to list below the base, and the key after which to start (empty: at the front).
pub(crate) fn listing(scope: Scope, from: Txid) -> (String, String) {
    match scope {
        Scope::Level(level) => {
            let prefix = format!("{:04x}/", level.get());
            // A bare TXID sorts before every name that begins with it.
            let after = if from > Txid::FIRST { format!("{prefix}{from}") } else { String::new() };
            (prefix, after)
        }
        // A tilde sorts behind every name in a level.
        Scope::Above(level) => (String::new(), format!("{:04x}/~", level.get())),
        Scope::Generations => ("generations/".to_owned(), String::new()),
    }
}

/// Adds an object to the part of a page where it belongs. Odd names inside a level are skipped.
pub(crate) fn sort_into(page: &mut ListPage, base: &str, object: ObjectInfo) {
    let Some(relative) = object.key.strip_prefix(base) else { return };
    let level = relative.split_once('/').filter(|(folder, _)| folder.len() == 4).and_then(|(folder, name)| {
        let level = u8::from_str_radix(folder, 16).ok().and_then(Level::new)?;
        Some((level, name.parse::<FileName>()))
    });
    match level {
        Some((level, Ok(name))) => page.files.push(FileInfo { level, name, object }),
        Some((_, Err(_))) => {}
        None => page.others.push(object),
    }
}

/// A time as RFC 3339 in UTC, as a file's metadata carries it.
#[must_use]
pub fn format_time(time: Timestamp) -> String {
    Moment::from_millisecond(time.0).map_or_else(|_| Moment::UNIX_EPOCH.to_string(), |moment| moment.to_string())
}

/// Reads a file's time. Go leaves trailing zeros of the fraction away.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse::<Moment>().ok().map(|moment| Timestamp(moment.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_and_gos_spelling_is_read() {
        let time = Timestamp(1_700_000_000_120);
        assert_eq!(parse_time(&format_time(time)), Some(time));
        for (text, millis) in [
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14T22:13:20.12Z", 1_700_000_000_120),
            ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123),
            ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
        ] {
            assert_eq!(parse_time(text), Some(Timestamp(millis)), "{text}");
        }
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn only_ltx_names_directly_in_a_level_are_files() {
        let mut page = ListPage::default();
        for key in [
            "db/0001/0000000000000001-0000000000000002.ltx",
            "db/0001/sub/0000000000000001-0000000000000002.ltx",
            "db/0001/x.tmp",
            "db/000a/0000000000000001-0000000000000002.ltx",
            "db/lock.json",
            "elsewhere",
        ] {
            let object = ObjectInfo { key: key.into(), size: 1, etag: None, modified: Timestamp(0), time: None };
            sort_into(&mut page, "db/", object);
        }
        assert_eq!(page.files.len(), 1);
        let others: Vec<_> = page.others.iter().map(|object| &*object.key).collect();
        assert_eq!(others, ["db/000a/0000000000000001-0000000000000002.ltx", "db/lock.json"]);
    }
}
