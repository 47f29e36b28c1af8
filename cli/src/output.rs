//! What the user sees: data on stdout, everything else on stderr.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tabled::settings::Style;
use tabled::{Table, Tabled};

/// One clear line; only a configuration's problems have a line each.
pub(crate) fn print_error(error: &anyhow::Error) {
    let text = format!("{error:#}");
    let _ = writeln!(std::io::stderr(), "litestream: {text}");
}

/// Something worth knowing that is not the result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "litestream: {text}");
}

/// A line of the result.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// JSON with two spaces of indent.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// JSON on a line of its own, for what goes on and on.
pub(crate) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// A table; only its head where there is nothing.
pub(crate) fn table<T: Tabled>(rows: &[T]) -> anyhow::Result<()> {
    let mut table = Table::new(rows);
    table.with(Style::blank());
    let text = table.to_string();
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    line(&text.join("\n"))
}

/// A bar for long work: on a terminal, else nothing.
pub(crate) fn progress(what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let bar = bar(what);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar that somebody else draws.
pub(crate) fn bar(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_prefix(what.to_owned());
    let template = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A size as people read it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
