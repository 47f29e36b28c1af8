//! The log of an extension: its own, since the host has none that could be asked. Never on stdout, which belongs to the host's output.

use std::fs::File;
use std::sync::{Mutex, Once};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

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
        let log = tracing_subscriber::fmt().with_max_level(level).with_writer(writer).with_ansi(false);
        // An error means that the program has a log already.
        let _ = log.with_target(false).try_init();
    });
}
