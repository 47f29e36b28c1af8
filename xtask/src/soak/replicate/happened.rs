//! What has happened in a soak, and whether that is enough: one in which nobody wrote, or nobody was killed, shows nothing.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Options;
use super::daemon::Told;

/// In a second in which the applications write: so few would be a machine that does nothing else than to swap.
const TRANSACTIONS: f64 = 10.0;
/// The longest time between two kills of applications, and between two ends of the daemon, on the average. Five times what is to be expected.
const APP_KILL: Duration = Duration::from_secs(10);
const DAEMON_END: Duration = Duration::from_secs(20);
/// So much longer than the time between two pauses may be what passes from one to the next.
const SLOWNESS: u32 = 3;

/// What has happened so far, apart from what the daemon tells.
#[derive(Debug, Default)]
pub(super) struct Happened {
    /// Committed by the applications.
    pub(super) transactions: u64,
    pub(super) app_kills: u32,
    /// At which everything was as it should be.
    pub(super) pauses: u32,
    pub(super) restores: u32,
    /// How often the daemon was started where nothing had been committed meanwhile.
    pub(super) quiet_starts: u32,
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transactions, app_kills, pauses, restores, quiet_starts } = self;
        write!(
            f,
            "{transactions} transactions, {app_kills} applications killed, {pauses} pauses, {restores} restores, {quiet_starts} times taken up with nothing to capture"
        )
    }
}

impl Happened {
    /// Whether it is enough for the time that it took: so many pauses, and so much of everything between them.
    pub(super) fn judge(&self, options: &Options, told: &Told) -> Result<()> {
        let between = options.every + options.outage.unwrap_or_default();
        let least = (options.time.as_secs() / u64::from(SLOWNESS) / between.as_secs().max(1)).max(1);
        let Self { transactions, app_kills, pauses, restores, .. } = self;
        ensure!(u64::from(*pauses) >= least, "only {pauses} pauses, at least {least} were to be");
        let written = between.as_secs_f64() * f64::from(*pauses);
        let least = TRANSACTIONS * written;
        ensure!(*transactions as f64 >= least, "only {transactions} transactions in {written} s, at least {least}");
        let least = (written / APP_KILL.as_secs_f64()).floor().max(1.0);
        ensure!(f64::from(*app_kills) >= least, "only {app_kills} applications were killed, at least {least}");
        // While the store is away the daemon lives.
        let killing = options.every.as_secs_f64() * f64::from(*pauses);
        let (ends, least) = (told.kills + told.signals, (killing / DAEMON_END.as_secs_f64()).floor().max(1.0));
        ensure!(f64::from(ends) >= least, "the daemon was ended only {ends} times, at least {least}");
        ensure!(told.starts >= ends, "{ends} ends of the daemon and only {} starts", told.starts);
        ensure!(*restores >= 2 * pauses, "only {restores} restores at {pauses} pauses");
        ensure!(told.drills > 0, "no drill has passed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(seconds: u64, outage: Option<u64>) -> Options {
        let outage = outage.map(Duration::from_secs);
        Options { seed: 0, time: Duration::from_secs(seconds), every: Duration::from_secs(20), outage }
    }

    fn usual() -> (Happened, Told) {
        let happened =
            Happened { transactions: 500_000, app_kills: 250, pauses: 25, restores: 200, ..Happened::default() };
        (happened, Told { starts: 120, kills: 90, signals: 30, drills: 100, ..Told::default() })
    }

    #[test]
    fn what_usually_happens_is_enough() {
        let (happened, told) = usual();
        happened.judge(&options(600, None), &told).unwrap();
        happened.judge(&options(600, Some(60)), &told).unwrap();
    }

    #[test]
    fn a_soak_in_which_something_did_not_happen_fails() {
        let refused = |change: fn(&mut Happened, &mut Told), why: &str| {
            let (mut happened, mut told) = usual();
            change(&mut happened, &mut told);
            let error = happened.judge(&options(600, None), &told).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(|happened, told| (*happened, *told) = (Happened::default(), Told::default()), "pauses");
        refused(|happened, _| happened.pauses = 3, "pauses");
        refused(|happened, _| happened.transactions = 4_000, "transactions");
        refused(|happened, _| happened.app_kills = 20, "applications");
        refused(|_, told| (told.kills, told.signals) = (10, 5), "ended only 15 times");
        refused(|happened, _| happened.restores = 10, "restores");
        refused(|_, told| told.drills = 0, "drill");
    }

    #[test]
    fn however_short_a_soak_is_it_does_something() {
        let nothing = Happened { pauses: 1, ..Happened::default() };
        assert!(nothing.judge(&options(0, None), &Told::default()).is_err());
    }
}
