//! A store that goes away for a while: requests stay few, everything shows it, and everything goes up afterwards, by itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use litestream_fixtures::s3::Down;

use super::Scene;
use super::daemon::Daemon;
use crate::metrics::samples;
use crate::process::wait_until;

/// The most requests a second for each database while the store is down.
const REQUESTS_A_SECOND: u64 = 2;
/// And so many beside, each: what a compaction that was under way reads at once, each tried some times.
const UNDER_WAY: u64 = 120;
/// How much younger than the outage the oldest commit may be that waits.
const SLACK: f64 = 8.0;
/// By when everything is up again: the longest pause between two tries, and time to upload.
const BACK: Duration = Duration::from_secs(120);

impl Scene {
    /// The applications go on, and are killed; the daemon lives.
    pub(super) fn outage(&mut self, time: Duration, number: u32) -> Result<()> {
        self.daemon.start(&self.store)?;
        for subject in &self.subjects {
            self.daemon.sync(&subject.path)?;
        }
        let down = if number.is_multiple_of(2) { Down::Silent } else { Down::Refuse };
        self.store.set_down(Some(down))?;
        let (start, before) = (Instant::now(), requests(&self.daemon.metrics()?));
        while start.elapsed() < time {
            self.happen(false)?;
        }
        let metrics = self.daemon.metrics()?;
        let (seconds, asked) = (start.elapsed().as_secs(), requests(&metrics) - before);
        let most = (UNDER_WAY + REQUESTS_A_SECOND * seconds) * self.subjects.len() as u64;
        ensure!(asked <= most, "{asked} requests in {seconds} s");
        let least = time.as_secs_f64() - SLACK;
        let mut shortest = f64::MAX;
        for status in self.daemon.status()? {
            let lag = status["lag_seconds"].as_f64().unwrap_or_default();
            ensure!(lag >= least, "without a store for {seconds} s the lag is {lag} s: {status}");
            ensure!(status["replicas"][0]["waiting"].as_u64() > Some(0), "nothing waits: {status}");
            ensure!(seconds < 30 || status["replicas"][0]["error"].is_string(), "nothing is wrong: {status}");
            shortest = shortest.min(lag);
        }
        let told = samples(&metrics, "litestream_replica_lag_seconds{").filter(|lag| *lag >= least).count();
        ensure!(told == self.subjects.len(), "the metrics tell of {told} lags of at least {least} s:\n{metrics}");
        self.store.set_down(None)?;
        println!(
            "replicate, outage {number} ({down:?}): {seconds} s without a store, {asked} requests, lag at least {shortest:.1} s"
        );
        Ok(())
    }
}

/// Nobody asks for it, and nobody writes any more.
pub(super) fn wait_for_the_rest(daemon: &mut Daemon) -> Result<()> {
    let start = Instant::now();
    wait_until("everything to go up by itself", BACK, || {
        daemon.check()?;
        let up = |status: &serde_json::Value| {
            let replica = &status["replicas"][0];
            replica["waiting"] == 0 && status["lag_seconds"] == 0.0 && replica["error"].is_null()
        };
        Ok(daemon.status()?.iter().all(up).then_some(()))
    })?;
    println!("replicate: everything was up {:.1} s after the writers paused", start.elapsed().as_secs_f64());
    Ok(())
}

/// All that was asked of the store, and all that was asked again.
fn requests(metrics: &str) -> u64 {
    let names = ["litestream_replica_operation_total{", "litestream_replica_operation_retries_total{"];
    names.iter().flat_map(|name| samples(metrics, name)).sum::<f64>() as u64
}
