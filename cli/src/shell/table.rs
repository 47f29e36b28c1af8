//! Rows in aligned columns.
//!
//! Widths are taken from the first rows only, so that a huge result neither fills the memory nor keeps its reader waiting. A later value
//! that is wider is written in full, and pushes its own line to the right.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

/// How many rows are looked at before the first is written, and how many bytes of them at most.
const ROWS: usize = 1000;
const BYTES: usize = 4 << 20;
/// What a terminal makes of a tab.
const TAB: usize = 8;

/// How columns are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// `+---+` and `|`.
    Ascii,
    /// Lines drawn.
    Drawn,
    /// Markdown's.
    Markdown,
    /// Spaces, and a line under the names.
    None,
}

/// One value, ready to be shown.
#[derive(Debug)]
pub(crate) struct Cell {
    lines: Vec<String>,
    right: bool,
}

impl Cell {
    /// A value's text, at the right side of its column or at the left.
    pub(crate) fn new(text: &str, right: bool) -> Self {
        let text = text.strip_suffix('\n').unwrap_or(text);
        Self { lines: text.split('\n').map(expand).collect(), right }
    }

    fn width(&self) -> usize {
        self.lines.iter().map(|line| line.width()).max().unwrap_or(0)
    }

    fn bytes(&self) -> usize {
        self.lines.iter().map(String::len).sum()
    }
}

/// Spaces for tabs.
fn expand(line: &str) -> String {
    let mut parts = line.split('\t');
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let width = expanded.width();
        expanded.extend(std::iter::repeat_n(' ', TAB - width % TAB));
        expanded.push_str(part);
    }
    expanded
}

/// Writes a result as a table.
pub(crate) struct Table {
    frame: Frame,
    /// The columns' names, where they are to be shown.
    head: Option<Vec<Cell>>,
    widths: Vec<usize>,
    waiting: Vec<Vec<Cell>>,
    bytes: usize,
    started: bool,
}

impl Table {
    pub(crate) fn new(frame: Frame, names: &[Cell]) -> Self {
        let widths = names.iter().map(|_| 0).collect();
        Self { frame, head: None, widths, waiting: Vec::new(), bytes: 0, started: false }
    }

    /// Shows the columns' names.
    pub(crate) fn with_head(mut self, names: Vec<Cell>) -> Self {
        self.widths = names.iter().map(Cell::width).collect();
        self.head = Some(names);
        self
    }

    /// Takes a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>, out: &mut dyn Write) -> io::Result<()> {
        if self.started {
            return self.write_row(&cells, out);
        }
        self.bytes += cells.iter().map(Cell::bytes).sum::<usize>();
        self.waiting.push(cells);
        if self.waiting.len() >= ROWS || self.bytes >= BYTES { self.start(out) } else { Ok(()) }
    }

    /// There are no more rows.
    pub(crate) fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.start(out)?;
        match self.frame {
            Frame::Ascii => self.rule(["+", "+", "+"], "-", out),
            Frame::Drawn => self.rule(["└", "┴", "┘"], "─", out),
            Frame::Markdown | Frame::None => Ok(()),
        }
    }

    /// Writes what has been waiting, now that the widths are known.
    fn start(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        for row in &waiting {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        match self.frame {
            Frame::Ascii => self.rule(["+", "+", "+"], "-", out)?,
            Frame::Drawn => self.rule(["┌", "┬", "┐"], "─", out)?,
            Frame::Markdown | Frame::None => {}
        }
        if let Some(head) = self.head.take() {
            self.write_row(&head, out)?;
            match self.frame {
                Frame::Ascii => self.rule(["+", "+", "+"], "-", out)?,
                Frame::Drawn => self.rule(["├", "┼", "┤"], "─", out)?,
                Frame::Markdown => self.rule(["|", "|", "|"], "-", out)?,
                Frame::None => {
                    let under: Vec<String> = self.widths.iter().map(|width| "-".repeat(*width)).collect();
                    writeln!(out, "{}", under.join("  "))?;
                }
            }
        }
        waiting.iter().try_for_each(|row| self.write_row(row, out))
    }

    fn rule(&self, [left, middle, right]: [&str; 3], dash: &str, out: &mut dyn Write) -> io::Result<()> {
        let parts: Vec<String> = self.widths.iter().map(|width| dash.repeat(width + 2)).collect();
        writeln!(out, "{left}{}{right}", parts.join(middle))
    }

    fn write_row(&self, cells: &[Cell], out: &mut dyn Write) -> io::Result<()> {
        let (left, middle, right) = match self.frame {
            Frame::Ascii | Frame::Markdown => ("| ", " | ", " |"),
            Frame::Drawn => ("│ ", " │ ", " │"),
            Frame::None => ("", "  ", ""),
        };
        if self.frame == Frame::Markdown {
            let parts: Vec<String> = cells
                .iter()
                .zip(&self.widths)
                .map(|(cell, width)| pad(&cell.lines.join("<br>").replace('|', "\\|"), *width, cell.right))
                .collect();
            return writeln!(out, "{left}{}{right}", parts.join(middle));
        }
        let height = cells.iter().map(|cell| cell.lines.len()).max().unwrap_or(0);
        for number in 0..height {
            let parts: Vec<String> = cells
                .iter()
                .zip(&self.widths)
                .map(|(cell, width)| pad(cell.lines.get(number).map_or("", String::as_str), *width, cell.right))
                .collect();
            let line = format!("{left}{}{right}", parts.join(middle));
            writeln!(out, "{}", if self.frame == Frame::None { line.trim_end() } else { &line })?;
        }
        Ok(())
    }
}

fn pad(text: &str, width: usize, right: bool) -> String {
    let spaces = " ".repeat(width.saturating_sub(text.width()));
    if right { spaces + text } else { text.to_owned() + &spaces }
}
