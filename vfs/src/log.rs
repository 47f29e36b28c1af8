//! The log of an extension: its own, since the host has none that could be asked. Never on stdout, which belongs to the host's output.

use std::fs::File;
use std::sync::{Mutex, Once};

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Sets the log up once: `LITESTREAM_LOG_LEVEL` (default `warn`), `LITESTREAM_LOG_FILE` (default: stderr).
///
/// A program that is linked with us and has a log of its own keeps that.
pub(crate) fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let level = std::env::var("LITESTREAM_LOG_LEVEL").unwrap_or_default();
        let level = match level.to_ascii_lowercase().as_str() {
            "trace" => LevelFilter::TRACE,
            "debug" => LevelFilter::DEBUG,
            "info" => LevelFilter::INFO,
            "error" => LevelFilter::ERROR,
            "off" => LevelFilter::OFF,
            _ => LevelFilter::WARN,
        };
        let file = std::env::var_os("LITESTREAM_LOG_FILE").filter(|path| !path.is_empty());
        let file = file.and_then(|path| File::options().create(true).append(true).open(path).ok());
        let writer = match file {
            Some(file) => BoxMakeWriter::new(Mutex::new(file)),
            None => BoxMakeWriter::new(std::io::stderr),
        };
        // The S3 client calls an error what is none: that it cannot mark a connection which our own HTTP client marks itself.
        let others = Targets::new().with_default(level).with_target("aws_smithy_runtime", LevelFilter::OFF);
        let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_target(false);
        // An error means that the program has a log already.
        let _ = tracing_subscriber::registry().with(lines.with_filter(others)).try_init();
    });
}
