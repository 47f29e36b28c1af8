//! What is going on, on a terminal: a table below the log's lines that is drawn anew as things change.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use litestream_replicate::daemon::{Phase, Status};
use ltx::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::Running;
use crate::logging::Screen;
use crate::output;

/// How often it is looked, and how often where there are more databases than a screen shows.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_AT_MANY: Duration = Duration::from_secs(1);
const MANY: usize = 200;
/// Up to so many databases are shown whether they do anything or not.
const FEW: usize = 8;
/// A terminal, where it does not say how large it is: columns and lines.
const SIZE: (usize, usize) = (80, 24);

/// The table, until it is dropped.
pub(super) struct Table {
    drawing: JoinHandle<()>,
    bar: ProgressBar,
}

impl Table {
    pub(super) fn show(running: &Arc<Running>, screen: &Screen) -> Self {
        let bar = screen.drawn().add(ProgressBar::no_length());
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        let drawing = tokio::spawn(draw(running.clone(), bar.clone()));
        Self { drawing, bar }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.drawing.abort();
        self.bar.finish_and_clear();
    }
}

async fn draw(running: Arc<Running>, bar: ProgressBar) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = String::new();
    loop {
        looks.tick().await;
        let statuses = running.daemon.status();
        if statuses.len() > MANY && looks.period() == LOOK {
            looks = interval(LOOK_AT_MANY);
            looks.tick().await;
        }
        let now = Timestamp(jiff::Timestamp::now().as_millisecond());
        let text = text(&statuses, now, terminal());
        if text != shown {
            bar.set_message(text.clone());
            bar.tick();
            shown = text;
        }
    }
}

/// Columns and lines.
fn terminal() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => SIZE,
    }
}

/// All databases where they are few; else those that are in trouble or active, as far as half the terminal goes.
fn text(statuses: &[Status], now: Timestamp, (columns, lines): (usize, usize)) -> String {
    let room = (lines / 2).saturating_sub(3).max(1);
    let mut shown: Vec<&Status> =
        statuses.iter().filter(|status| statuses.len() <= FEW || rank(status) < IDLE).collect();
    shown.sort_by_key(|status| rank(status));
    shown.truncate(room);
    let mut rows = vec![["DATABASE", "STATE", "TXID", "LAG", "LAST SYNC", "SIZE"].map(str::to_owned)];
    rows.extend(shown.iter().map(|status| row(status, now)));
    let mut text = String::new();
    if !shown.is_empty() {
        let widths: [usize; 6] = std::array::from_fn(|at| rows.iter().map(|row| row[at].width()).max().unwrap_or(0));
        let rest: usize = widths[1..].iter().sum::<usize>() + 2 * (widths.len() - 1);
        let first = widths[0].min(columns.saturating_sub(rest).max(8));
        for (at, [name, cells @ ..]) in rows.iter().enumerate() {
            let name = tail(name, first);
            let mut line = format!("{name}{}", " ".repeat(first.saturating_sub(name.width())));
            for (cell, width) in cells.iter().zip(&widths[1..]) {
                let _ = write!(line, "  {cell}{}", " ".repeat(width - cell.width()));
            }
            text.push_str(head(line.trim_end(), columns));
            text.push('\n');
            let about = at.checked_sub(1).map(|at| shown[at]);
            if let Some(why) = about.and_then(|status| trouble(status).or_else(|| status.concern.clone())) {
                text.push_str(head(&format!("  {}", why.replace('\n', " ")), columns));
                text.push('\n');
            }
        }
    }
    text.push_str(head(&totals(statuses), columns));
    text
}

/// What is not shown where there are many.
const IDLE: u8 = 2;

fn rank(status: &Status) -> u8 {
    match status.phase {
        _ if trouble(status).is_some() => 0,
        Phase::Live | Phase::Starting => 1,
        _ if status.lag() > Duration::ZERO => 1,
        _ => IDLE,
    }
}

fn trouble(status: &Status) -> Option<String> {
    let replica = status.replicas.iter().find_map(|replica| Some((replica, replica.error.as_ref()?)));
    match (&status.error, replica) {
        (Some(error), _) => Some(error.clone()),
        (None, Some((replica, error))) => Some(format!("{}: {error}", replica.url)),
        (None, None) => status.disk_full.then(|| "the disk is full".to_owned()),
    }
}

fn row(status: &Status, now: Timestamp) -> [String; 6] {
    let last = status.replicas.iter().map(|replica| replica.last_sync).min().flatten();
    let last = last.map(|last| Duration::from_millis(u64::try_from(now.0 - last.0).unwrap_or(0)));
    [
        status.path.display().to_string(),
        status.phase.as_str().to_owned(),
        status.txid.to_string(),
        if status.lag().is_zero() { "-".to_owned() } else { short(status.lag()) },
        last.map_or_else(|| "never".to_owned(), |last| format!("{} ago", short(last))),
        output::size(status.size),
    ]
}

fn totals(statuses: &[Status]) -> String {
    let count = |phase| statuses.iter().filter(|status| status.phase == phase).count();
    let mut text = format!("{} database{}", statuses.len(), if statuses.len() == 1 { "" } else { "s" });
    let mut between = ": ";
    for phase in [Phase::Live, Phase::Idle, Phase::Starting, Phase::Waiting, Phase::Stopped] {
        if count(phase) > 0 {
            let _ = write!(text, "{between}{} {}", count(phase), phase.as_str());
            between = ", ";
        }
    }
    let troubled = statuses.iter().filter(|status| trouble(status).is_some()).count();
    if troubled > 0 {
        let _ = write!(text, "; {troubled} in trouble");
    }
    if let Some(lag) = statuses.iter().map(Status::lag).max().filter(|lag| !lag.is_zero()) {
        let _ = write!(text, "; lag {} at most", short(lag));
    }
    let size = output::size(statuses.iter().map(|status| status.size).sum());
    let _ = write!(text, "; {size}");
    text
}

/// A time in its largest unit.
fn short(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// As much of the beginning as fits.
fn head(text: &str, columns: usize) -> &str {
    let mut width = 0;
    let end = text.char_indices().find(|(_, c)| {
        width += c.width().unwrap_or(0);
        width > columns
    });
    end.map_or(text, |(end, _)| &text[..end])
}

/// As much of the end as fits: that is where paths differ.
fn tail(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut width = 1;
    let rest = text.char_indices().rev().take_while(|(_, c)| {
        width += c.width().unwrap_or(0);
        width <= columns
    });
    rest.last().map_or_else(String::new, |(start, _)| format!("…{}", &text[start..]))
}

#[cfg(test)]
mod tests {
    use litestream_replicate::daemon::{Counters, ReplicaCounters, ReplicaStatus};
    use ltx::Txid;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn status(path: &str, phase: Phase, lag: u64, error: Option<&str>) -> Status {
        let replica = ReplicaStatus {
            url: "file:///backup".into(),
            kind: "file",
            txid: None,
            lag: Duration::from_millis(lag),
            last_sync: Some(Timestamp(NOW.0 - 3_000)),
            waiting: 0,
            error: error.map(str::to_owned),
            fenced: false,
            needs_snapshot: false,
            counters: ReplicaCounters::default(),
        };
        Status {
            path: path.into(),
            phase,
            txid: Txid(42),
            size: 3 << 20,
            wal_size: 0,
            error: None,
            concern: None,
            disk_full: false,
            replicas: vec![replica],
            counters: Counters::default(),
        }
    }

    #[test]
    fn a_few_databases_are_all_shown() {
        let statuses = [
            status("/data/a.db", Phase::Idle, 0, None),
            status("/data/with/a/long/path/b.db", Phase::Live, 1_500, Some("gone")),
        ];
        assert_eq!(
            text(&statuses, NOW, (72, 24)),
            "\
DATABASE                STATE  TXID              LAG  LAST SYNC  SIZE
…with/a/long/path/b.db  live   000000000000002a  1 s  3 s ago    3.0 MiB
  file:///backup: gone
/data/a.db              idle   000000000000002a  -    3 s ago    3.0 MiB
2 databases: 1 live, 1 idle; 1 in trouble; lag 1 s at most; 6.0 MiB"
        );
    }

    #[test]
    fn of_many_only_those_are_shown_that_matter() {
        let mut statuses: Vec<Status> =
            (0..5_000).map(|at| status(&format!("/data/{at}.db"), Phase::Idle, 0, None)).collect();
        statuses[7] = status("/data/7.db", Phase::Live, 0, None);
        statuses[4_000] = status("/data/4000.db", Phase::Idle, 0, Some("gone"));
        let text = text(&statuses, NOW, (100, 24));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[1].starts_with("/data/4000.db") && lines[3].starts_with("/data/7.db"), "{text}");
        assert_eq!(lines[4], "5000 databases: 1 live, 4999 idle; 1 in trouble; 14.6 GiB");
        statuses.iter_mut().for_each(|status| status.phase = Phase::Live);
        assert!(super::text(&statuses, NOW, (100, 24)).lines().count() <= 12);
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        let statuses =
            [status("/data/ä/ö/ü/文字文字文字文字文字文字.db", Phase::Waiting, 0, Some("a long tale of woe"))];
        for columns in 1..90 {
            for line in text(&statuses, NOW, (columns, 24)).lines() {
                assert!(line.width() <= columns, "{columns}: {line}");
            }
        }
    }
}
