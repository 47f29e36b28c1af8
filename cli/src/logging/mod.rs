//! The log: what is said, in which form, and how it passes by what is being drawn on a terminal.

mod lines;

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use litestream_config::{LogFormat, LoggingConfig};
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use lines::Lines;

/// How often a terminal is drawn to, at most, in a second.
const DRAWN: u8 = 4;

/// Sends the log to stderr, as suits a command that somebody waits for.
pub(crate) fn set_up_plain(level: Level) {
    let terminal = io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(terminal).with_target(false);
    tracing_subscriber::registry().with(filter(level)).with(layer).init();
}

/// Sends the log to stderr in the form that the configuration wants: a line an event, above what is drawn on `screen`.
pub(crate) fn set_up_daemon(level: Level, config: &LoggingConfig, screen: &Screen) {
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .event_format(Lines::json(config.source))
            .with_writer(screen.clone())
            .boxed(),
        // People read it as it comes.
        LogFormat::Text if screen.is_seen() => tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_file(config.source)
            .with_line_number(config.source)
            .with_writer(screen.clone())
            .boxed(),
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .event_format(Lines::text(config.source))
            .with_writer(screen.clone())
            .boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter(level))).init();
}

/// The libraries underneath speak up only about trouble.
fn filter(level: Level) -> EnvFilter {
    let quiet = if level >= Level::DEBUG { level } else { Level::ERROR };
    let ours = [
        "litestream",
        "litestream_config",
        "litestream_hydrate",
        "litestream_pageindex",
        "litestream_replicate",
        "litestream_storage",
    ];
    // The VFS logs what SQLite cannot say; here that is said with the failure itself.
    let vfs = if level >= Level::INFO { level.to_string() } else { "off".to_owned() };
    // The S3 client calls an error what is none: that it cannot mark a connection which our own HTTP client marks itself.
    let client = if level >= Level::DEBUG { level.to_string() } else { "off".to_owned() };
    let quiet = format!("{quiet},litestream_vfs={vfs},aws_smithy_runtime={client}");
    EnvFilter::new(ours.iter().fold(quiet, |filter, name| format!("{filter},{name}={level}")))
}

/// Standard error, where lines and what is drawn share a terminal. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    drawn: MultiProgress,
    seen: bool,
}

impl Screen {
    /// Standard error; nothing is drawn where that is no terminal.
    pub(crate) fn stderr() -> Self {
        let seen = io::stderr().is_terminal();
        let target = if seen { ProgressDrawTarget::stderr_with_hz(DRAWN) } else { ProgressDrawTarget::hidden() };
        Self { drawn: MultiProgress::with_draw_target(target), seen }
    }

    /// Whether somebody looks at it.
    pub(crate) const fn is_seen(&self) -> bool {
        self.seen
    }

    /// Where to draw.
    pub(crate) const fn drawn(&self) -> &MultiProgress {
        &self.drawn
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.drawn.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Screen {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
