//! What is told of the process, as Prometheus' own libraries name it.

use std::fs;

use super::text::{Kind, Text};

pub(super) const BUILD: &str = "litestream_build_info";
pub(super) const STARTED: &str = "process_start_time_seconds";
pub(super) const MEMORY: &str = "process_resident_memory_bytes";
pub(super) const CPU: &str = "process_cpu_seconds_total";
pub(super) const OPEN: &str = "process_open_fds";
pub(super) const MOST: &str = "process_max_fds";

/// Writes what the system tells of us; what it does not tell is left out.
pub(super) fn write(text: &mut Text, started: jiff::Timestamp) {
    let mut gauge = |name: &str, help: &str, kind: Kind, value: Option<f64>| {
        if let Some(value) = value {
            text.head(name, help, kind);
            text.sample(name, &[], value);
        }
    };
    let cpu = "Total user and system CPU time spent in seconds.";
    gauge(CPU, cpu, Kind::Counter, cpu_seconds());
    gauge(MOST, "Maximum number of open file descriptors.", Kind::Gauge, most_descriptors());
    gauge(OPEN, "Number of open file descriptors.", Kind::Gauge, descriptors());
    gauge(MEMORY, "Resident memory size in bytes.", Kind::Gauge, resident());
    let since = started.as_millisecond() as f64 / 1000.0;
    gauge(STARTED, "Start time of the process since unix epoch in seconds.", Kind::Gauge, Some(since));
    text.head(BUILD, "The program that replicates", Kind::Gauge);
    text.sample(BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1);
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold anything; utime and stime are fields 14 and 15 of all.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn resident() -> Option<f64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages as f64 * rustix::param::page_size() as f64)
}

fn descriptors() -> Option<f64> {
    // The one that counts is not counted.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn most_descriptors() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
