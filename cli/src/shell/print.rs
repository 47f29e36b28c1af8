//! The ways to write a result: `.mode`.

use std::io::{self, Write};

use rusqlite::types::ValueRef;

use super::table::{Cell, Frame, Table};
use super::values::{Values, blob, visible};

/// A way to write a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    List,
    Table,
    Box,
    Csv,
    Json,
    Line,
    Column,
    Tabs,
    Markdown,
}

impl Mode {
    pub(crate) const ALL: [Self; 9] = [
        Self::List,
        Self::Table,
        Self::Box,
        Self::Csv,
        Self::Json,
        Self::Line,
        Self::Column,
        Self::Tabs,
        Self::Markdown,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Table => "table",
            Self::Box => "box",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Line => "line",
            Self::Column => "column",
            Self::Tabs => "tabs",
            Self::Markdown => "markdown",
        }
    }

    /// Whether columns' names are shown where the user has not said.
    fn has_head(self) -> bool {
        matches!(self, Self::Table | Self::Box | Self::Column | Self::Markdown)
    }

    /// What NULL looks like where the user has not said.
    fn null(self) -> &'static str {
        match self {
            Self::List | Self::Csv | Self::Tabs => "",
            _ => "NULL",
        }
    }
}

/// How to write results.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    /// The way; by default a table for people and a list for programs.
    pub(crate) mode: Option<Mode>,
    /// Whether columns' names are shown; by default as the mode has it.
    pub(crate) headers: Option<bool>,
    /// What NULL looks like; by default as the mode has it.
    pub(crate) null: Option<String>,
    /// What stands between the columns of a list or CSV; by default as the mode has it.
    pub(crate) separator: Option<String>,
}

impl Format {
    pub(crate) const DEFAULT: Self = Self { mode: None, headers: None, null: None, separator: None };

    /// The way that applies, for a person or for a program.
    pub(crate) fn mode(&self, terminal: bool) -> Mode {
        self.mode.unwrap_or(if terminal { Mode::Table } else { Mode::List })
    }

    pub(crate) fn headers(&self, terminal: bool) -> bool {
        self.headers.unwrap_or(self.mode(terminal).has_head())
    }

    pub(crate) fn null(&self, terminal: bool) -> &str {
        self.null.as_deref().unwrap_or(self.mode(terminal).null())
    }

    pub(crate) fn separator(&self, terminal: bool) -> &str {
        self.separator.as_deref().unwrap_or(match self.mode(terminal) {
            Mode::Csv => ",",
            Mode::Tabs => "\t",
            _ => "|",
        })
    }

    /// Begins a result.
    pub(crate) fn printer<'a>(&'a self, names: Vec<String>, terminal: bool, values: &'a Values) -> Printer<'a> {
        let shown = |names: &[String]| -> Vec<Cell> {
            names.iter().map(|name| Cell::new(&visible(name).replace(['\n', '\t'], " "), false)).collect()
        };
        let framed = |frame| {
            let table = Table::new(frame, &shown(&names));
            Style::Table(if self.headers(terminal) { table.with_head(shown(&names)) } else { table })
        };
        let separated = |row_end, quoted| Style::Separated {
            separator: self.separator(terminal),
            row_end,
            quoted,
            // Programs want the bytes, people a terminal that goes on working.
            tamed: terminal,
        };
        let style = match self.mode(terminal) {
            Mode::List | Mode::Tabs => separated("\n", false),
            Mode::Csv => separated("\r\n", true),
            Mode::Json => Style::Json,
            Mode::Line => Style::Line,
            Mode::Table => framed(Frame::Ascii),
            Mode::Box => framed(Frame::Drawn),
            Mode::Markdown => framed(Frame::Markdown),
            Mode::Column => framed(Frame::None),
        };
        let head = self.headers(terminal) && matches!(style, Style::Separated { .. });
        Printer { style, names, null: self.null(terminal), values, rows: 0, head }
    }
}

/// Writes one result, row by row.
pub(crate) struct Printer<'a> {
    style: Style<'a>,
    names: Vec<String>,
    null: &'a str,
    values: &'a Values,
    rows: u64,
    /// Whether the names are still to be written.
    head: bool,
}

enum Style<'a> {
    Separated { separator: &'a str, row_end: &'static str, quoted: bool, tamed: bool },
    Json,
    Line,
    Table(Table),
}

impl Printer<'_> {
    /// Writes a row.
    pub(crate) fn row(&mut self, row: &[ValueRef<'_>], out: &mut dyn Write) -> io::Result<()> {
        self.head(out)?;
        let first = self.rows == 0;
        self.rows += 1;
        match &mut self.style {
            Style::Separated { separator, row_end, quoted, tamed } => {
                for (at, value) in row.iter().enumerate() {
                    if at > 0 {
                        out.write_all(separator.as_bytes())?;
                    }
                    match self.values.bytes(*value) {
                        None => out.write_all(self.null.as_bytes())?,
                        Some(bytes) if *quoted => out.write_all(&csv(&bytes, separator))?,
                        Some(bytes) if *tamed => write!(out, "{}", visible(&String::from_utf8_lossy(&bytes)))?,
                        Some(bytes) => out.write_all(&bytes)?,
                    }
                }
                out.write_all(row_end.as_bytes())
            }
            Style::Json => {
                out.write_all(if first { b"[{" } else { b",\n{" })?;
                for (at, (name, value)) in self.names.iter().zip(row).enumerate() {
                    if at > 0 {
                        out.write_all(b",")?;
                    }
                    write!(out, "{}:{}", json_text(name), json(self.values, *value))?;
                }
                out.write_all(b"}")
            }
            Style::Line => {
                use unicode_width::UnicodeWidthStr;
                if !first {
                    writeln!(out)?;
                }
                let width = self.names.iter().map(|name| visible(name).width()).max().unwrap_or(0);
                for (name, value) in self.names.iter().zip(row) {
                    let name = visible(name);
                    let spaces = " ".repeat(width - name.width());
                    let text = self.values.shown(*value);
                    writeln!(out, "{spaces}{name} = {}", text.as_deref().unwrap_or(self.null))?;
                }
                Ok(())
            }
            Style::Table(table) => {
                let cell = |value: &ValueRef<'_>| {
                    let text = self.values.shown(*value);
                    let right = matches!(value, ValueRef::Integer(_) | ValueRef::Real(_));
                    Cell::new(text.as_deref().unwrap_or(self.null), right)
                };
                table.row(row.iter().map(cell).collect(), out)
            }
        }
    }

    /// There are no more rows.
    pub(crate) fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.head(out)?;
        match &mut self.style {
            Style::Json => out.write_all(if self.rows == 0 { b"[]\n" } else { b"]\n" }),
            Style::Table(table) => table.end(out),
            Style::Separated { .. } | Style::Line => Ok(()),
        }
    }

    /// There are no more rows because something failed: what was written ends with its line, and JSON stays visibly incomplete.
    pub(crate) fn abandon(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match &mut self.style {
            Style::Json if self.rows > 0 => writeln!(out),
            Style::Table(table) if self.rows > 0 => table.end(out),
            _ => Ok(()),
        }
    }

    fn head(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if !std::mem::take(&mut self.head) {
            return Ok(());
        }
        let Style::Separated { separator, row_end, quoted, tamed } = &self.style else { return Ok(()) };
        for (at, name) in self.names.iter().enumerate() {
            if at > 0 {
                out.write_all(separator.as_bytes())?;
            }
            if *quoted {
                out.write_all(&csv(name.as_bytes(), separator))?;
            } else if *tamed {
                out.write_all(visible(name).as_bytes())?;
            } else {
                out.write_all(name.as_bytes())?;
            }
        }
        out.write_all(row_end.as_bytes())
    }
}

/// A CSV field (RFC 4180). An empty text is quoted, so that it is not taken for NULL.
fn csv(bytes: &[u8], separator: &str) -> Vec<u8> {
    let separator = separator.as_bytes();
    let special = bytes.is_empty()
        || bytes.iter().any(|byte| matches!(byte, b'"' | b'\n' | b'\r'))
        || !separator.is_empty() && bytes.windows(separator.len()).any(|window| window == separator);
    if !special {
        return bytes.to_vec();
    }
    let mut quoted = vec![b'"'];
    for byte in bytes {
        if *byte == b'"' {
            quoted.push(b'"');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    quoted
}

/// A value in JSON. A BLOB becomes a text with its SQL literal.
fn json(values: &Values, value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        // JSON has no infinity; this is what overflows to it, and what sqlite3 writes.
        ValueRef::Real(number) if number.is_infinite() => if number > 0.0 { "1e999" } else { "-1e999" }.to_owned(),
        ValueRef::Real(number) => values.real(number),
        ValueRef::Text(bytes) => json_text(&String::from_utf8_lossy(bytes)),
        ValueRef::Blob(bytes) => json_text(&blob(bytes)),
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [[ValueRef<'static>; 3]; 3] = [
        [ValueRef::Integer(1), ValueRef::Text("naïve 日本|\"q\"".as_bytes()), ValueRef::Null],
        [ValueRef::Real(-20.5), ValueRef::Text(b"two\nlines\x1b"), ValueRef::Blob(b"\x00\xff")],
        [ValueRef::Null, ValueRef::Text(b""), ValueRef::Real(f64::INFINITY)],
    ];

    fn written(format: &Format, terminal: bool, rows: &[[ValueRef<'_>; 3]]) -> String {
        let values = Values::new(rusqlite::Connection::open_in_memory().unwrap());
        let names = ["id", "a,b", "größe"].map(str::to_owned).to_vec();
        let mut printer = format.printer(names, terminal, &values);
        let mut out = Vec::new();
        for row in rows {
            printer.row(row, &mut out).unwrap();
        }
        printer.end(&mut out).unwrap();
        String::from_utf8_lossy(&out).into_owned()
    }

    fn in_mode(mode: Mode) -> String {
        written(&Format { mode: Some(mode), ..Format::DEFAULT }, false, &ROWS)
    }

    #[test]
    fn lists_are_for_programs_and_keep_every_byte() {
        let list = "1|naïve 日本|\"q\"|\n-20.5|two\nlines\x1b|\0\u{fffd}\n||Inf\n";
        assert_eq!(written(&Format::DEFAULT, false, &ROWS), list);
        let tabs = "1\tnaïve 日本|\"q\"\t\n-20.5\ttwo\nlines\x1b\t\0\u{fffd}\n\t\tInf\n";
        assert_eq!(in_mode(Mode::Tabs), tabs);
        let told =
            Format { headers: Some(true), null: Some("∅".into()), separator: Some(", ".into()), ..Format::DEFAULT };
        assert_eq!(written(&told, false, &ROWS[2..]), "id, a,b, größe\n∅, , Inf\n");
        assert!(written(&Format { mode: Some(Mode::List), ..Format::DEFAULT }, true, &ROWS).contains("lines^["));
    }

    #[test]
    fn csv_is_quoted_where_it_must() {
        let csv = "1,\"naïve 日本|\"\"q\"\"\",\r\n-20.5,\"two\nlines\x1b\",\0\u{fffd}\r\n,\"\",Inf\r\n";
        assert_eq!(in_mode(Mode::Csv), csv);
        let told = Format { mode: Some(Mode::Csv), headers: Some(true), ..Format::DEFAULT };
        assert_eq!(written(&told, false, &[]), "id,\"a,b\",größe\r\n");
    }

    #[test]
    fn json_is_json() {
        let json = in_mode(Mode::Json);
        assert!(json.ends_with("{\"id\":null,\"a,b\":\"\",\"größe\":1e999}]\n"), "{json}");
        let without = written(&Format { mode: Some(Mode::Json), ..Format::DEFAULT }, false, &ROWS[..2]);
        let parsed: serde_json::Value = serde_json::from_str(&without).unwrap();
        let expected = serde_json::json!([
            {"id": 1, "a,b": "naïve 日本|\"q\"", "größe": null},
            {"id": -20.5, "a,b": "two\nlines\x1b", "größe": "X'00FF'"},
        ]);
        assert_eq!(parsed, expected);
        assert_eq!(written(&Format { mode: Some(Mode::Json), ..Format::DEFAULT }, false, &[]), "[]\n");
    }

    #[test]
    fn tables_are_aligned_as_a_terminal_shows_them() {
        let expected = "\
+-------+----------------+---------+
| id    | a,b            | größe   |
+-------+----------------+---------+
|     1 | naïve 日本|\"q\" | NULL    |
| -20.5 | two            | X'00FF' |
|       | lines^[        |         |
| NULL  |                |     Inf |
+-------+----------------+---------+
";
        assert_eq!(in_mode(Mode::Table), expected);
        assert_eq!(written(&Format::DEFAULT, true, &ROWS), expected);
        assert_eq!(in_mode(Mode::Box).lines().next().unwrap(), "┌───────┬────────────────┬─────────┐");
        let column = "\
id     a,b             größe
-----  --------------  -------
    1  naïve 日本|\"q\"  NULL
-20.5  two             X'00FF'
       lines^[
NULL                       Inf
";
        assert_eq!(in_mode(Mode::Column), column);
        let markdown = in_mode(Mode::Markdown);
        assert!(markdown.contains("|-------|----------------|---------|\n"), "{markdown}");
        assert!(markdown.contains("| naïve 日本\\|\"q\" |") && markdown.contains("two<br>lines^["), "{markdown}");
        let bare = Format { mode: Some(Mode::Table), headers: Some(false), ..Format::DEFAULT };
        assert_eq!(written(&bare, false, &ROWS[..1]).lines().count(), 3);
    }

    #[test]
    fn lines_are_one_value_each() {
        assert!(
            in_mode(Mode::Line).starts_with("   id = 1\n  a,b = naïve 日本|\"q\"\ngröße = NULL\n\n   id = -20.5\n")
        );
    }

    #[test]
    fn a_huge_table_is_written_as_it_comes() {
        let values = Values::new(rusqlite::Connection::open_in_memory().unwrap());
        let format = Format { mode: Some(Mode::Table), ..Format::DEFAULT };
        let mut printer = format.printer(vec!["n".to_owned()], true, &values);
        let mut out = Vec::new();
        for number in 0..2000 {
            printer.row(&[ValueRef::Integer(number)], &mut out).unwrap();
        }
        assert!(String::from_utf8_lossy(&out).contains("\n| 1999 |\n"));
        let before = out.len();
        printer.row(&[ValueRef::Integer(123_456)], &mut out).unwrap();
        assert_eq!(&out[before..], b"| 123456 |\n");
    }
}
