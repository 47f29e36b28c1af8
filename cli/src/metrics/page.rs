//! The whole page, a piece at a time, so that it is never in memory at once.

use bytes::Bytes;
use litestream_replicate::daemon::{Phase, Status};
use litestream_storage::Stores;

use super::families::FAMILIES;
use super::text::{Kind, Text};
use super::{operations, process};

/// How much is written before it is sent.
const CHUNK: usize = 64 << 10;
pub(super) const DATABASES: &str = "litestream_databases";

/// All samples. A metric's samples stand together, as the format wants it.
pub(super) struct Page {
    text: Text,
    all: Vec<Status>,
    family: usize,
    /// The next database of this family; none before its head.
    database: Option<usize>,
}

impl Page {
    /// Of all databases; without `idle`, only of those that change or that need attention.
    pub(super) fn new(started: jiff::Timestamp, mut all: Vec<Status>, stores: &Stores, idle: bool) -> Self {
        let mut text = Text::default();
        process::write(&mut text, started);
        count(&all, &mut text);
        operations::write(stores, &mut text);
        if !idle {
            all.retain(|status| !rests(status));
        }
        Self { text, all, family: 0, database: None }
    }
}

impl Iterator for Page {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.text.0.len() < CHUNK
            && !self.all.is_empty()
            && let Some(family) = FAMILIES.get(self.family)
        {
            let index = self.database.unwrap_or_else(|| {
                family.head(&mut self.text);
                0
            });
            self.database = Some(index + 1);
            match self.all.get(index) {
                Some(status) => family.samples(&mut self.text, status, &status.path.to_string_lossy()),
                None => {
                    self.family += 1;
                    self.database = None;
                }
            }
        }
        (!self.text.0.is_empty()).then(|| std::mem::take(&mut self.text.0).into())
    }
}

/// How many databases there are in each phase.
fn count(all: &[Status], text: &mut Text) {
    text.head(DATABASES, "Number of databases by what is being done with them", Kind::Gauge);
    for phase in [Phase::Stopped, Phase::Waiting, Phase::Starting, Phase::Live, Phase::Idle] {
        let count = all.iter().filter(|status| status.phase == phase).count();
        text.sample(DATABASES, &[("phase", phase.as_str())], count);
    }
}

/// Whether a database neither changes nor needs anybody's attention.
fn rests(status: &Status) -> bool {
    status.phase == Phase::Idle
        && status.error.is_none()
        && status.concern.is_none()
        && !status.disk_full
        && status.replicas.iter().all(|replica| replica.error.is_none() && !replica.fenced && replica.lag.is_zero())
}
