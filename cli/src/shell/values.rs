//! How a value is written as text. Numbers are SQLite's own business, so SQLite writes them.

use std::borrow::Cow;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

/// Writes values. Has a connection of its own, in memory, which also knows why the VFS failed.
pub(crate) struct Values {
    helper: Connection,
}

impl Values {
    pub(crate) fn new(helper: Connection) -> Self {
        Self { helper }
    }

    /// The text of the VFS's last error in this process, empty where there was none.
    pub(crate) fn last_error(&self) -> String {
        let found = self.helper.query_row("SELECT litestream_error()", [], |row| row.get(0));
        found.unwrap_or_default()
    }

    /// A real as SQLite prints it.
    pub(crate) fn real(&self, number: f64) -> String {
        self.ask("SELECT CAST(?1 AS TEXT)", number)
    }

    /// The bytes of a value as `sqlite3_column_text()` would give them; `None` for NULL.
    pub(crate) fn bytes<'a>(&self, value: ValueRef<'a>) -> Option<Cow<'a, [u8]>> {
        Some(match value {
            ValueRef::Null => return None,
            ValueRef::Integer(number) => Cow::Owned(number.to_string().into_bytes()),
            ValueRef::Real(number) => Cow::Owned(self.real(number).into_bytes()),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Cow::Borrowed(bytes),
        })
    }

    /// A value for people: without control characters, BLOBs as literals; `None` for NULL.
    pub(crate) fn shown(&self, value: ValueRef<'_>) -> Option<String> {
        Some(match value {
            ValueRef::Null => return None,
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => self.real(number),
            ValueRef::Text(bytes) => visible(&String::from_utf8_lossy(bytes)).into_owned(),
            ValueRef::Blob(bytes) => blob(bytes),
        })
    }

    /// A value as SQL. Read back, it is the same value.
    pub(crate) fn literal(&self, value: ValueRef<'_>) -> String {
        match value {
            ValueRef::Null => "NULL".to_owned(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => self.ask("SELECT quote(?1)", number),
            ValueRef::Blob(bytes) => blob(bytes),
            ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if !text.contains('\0') => quote(text),
                // SQL text ends at a NUL, and a tool in between may not take other encodings.
                _ => format!("CAST({} AS TEXT)", blob(bytes)),
            },
        }
    }

    fn ask(&self, sql: &str, number: f64) -> String {
        let asked =
            self.helper.prepare_cached(sql).and_then(|mut statement| statement.query_row([number], |row| row.get(0)));
        asked.unwrap_or_else(|_| number.to_string())
    }
}

/// A text as an SQL literal.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name as an SQL identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A BLOB as an SQL literal.
pub(crate) fn blob(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2 + 3);
    text.push_str("X'");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0').to_ascii_uppercase());
        }
    }
    text.push('\'');
    text
}

/// Without characters that a terminal would obey; line feeds and tabs stay.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if !obeyed(c) => shown.push(c),
            '\0'..='\x1f' => shown.extend(['^', char::from(c as u8 + b'@')]),
            '\x7f' => shown.push_str("^?"),
            c => shown.push_str(&format!("<U+{:04X}>", u32::from(c))),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values::new(Connection::open_in_memory().unwrap())
    }

    #[test]
    fn reals_are_written_as_sqlite_does() {
        let values = values();
        for (number, text) in [(1.0, "1.0"), (0.1, "0.1"), (-1e300, "-1.0e+300"), (f64::INFINITY, "Inf")] {
            assert_eq!(values.real(number), text);
        }
    }

    #[test]
    fn literals_read_back_as_the_same_value() {
        let values = values();
        let given = [
            ValueRef::Null,
            ValueRef::Integer(i64::MIN),
            ValueRef::Real(0.1 + 0.2),
            ValueRef::Real(f64::MIN_POSITIVE),
            ValueRef::Real(f64::NEG_INFINITY),
            ValueRef::Text(b"it's\ntwo"),
            ValueRef::Text(b"a\0b"),
            ValueRef::Text(b"\xff"),
            ValueRef::Blob(b"\x00\xab"),
            ValueRef::Blob(b""),
        ];
        for value in given {
            let sql = format!("SELECT {}", values.literal(value));
            let read = |row: &rusqlite::Row<'_>| Ok(row.get_ref(0)? == value);
            assert!(values.helper.query_row(&sql, [], read).unwrap(), "{sql}");
        }
    }

    #[test]
    fn a_terminal_is_told_nothing() {
        assert_eq!(visible("a\x1b[31m\u{9b}\x7f\r\n\t"), "a^[[31m<U+009B>^?^M\n\t");
        assert_eq!(values().shown(ValueRef::Blob(b"\x01\xfe")).unwrap(), "X'01FE'");
        assert_eq!(identifier("a\"b") + &quote("a'b"), "\"a\"\"b\"'a''b'");
    }
}
