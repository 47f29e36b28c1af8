//! Signals: which of them end the daemon, and which are the child's.

use std::fmt;
use std::io;

use tokio::signal::unix::{self, SignalKind, signal};

/// What somebody wants from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Hangup,
    Interrupt,
    Terminate,
}

impl Signal {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// Leaves all as it is. Nothing is lost: what was captured and what was not is found by the next start.
    pub(super) fn exit_at_once(self) -> ! {
        tracing::warn!(signal = %self, "ending at once; the replicas may not be up to date");
        std::process::exit(i32::from(128 + self.number()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "hung up",
            Self::Interrupt => "interrupted",
            Self::Terminate => "terminated",
        })
    }
}

/// From its creation on, no signal ends the process by itself.
pub(super) struct Signals {
    /// Not listened to where somebody wants it to be ignored, as `nohup` does.
    hangup: Option<unix::Signal>,
    interrupt: unix::Signal,
    terminate: unix::Signal,
    /// Whether there is a child, whose the hangups are.
    child: bool,
    /// How many signals to end there were.
    ends: u32,
}

impl Signals {
    pub(super) fn new(child: bool) -> io::Result<Self> {
        Ok(Self {
            hangup: if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            child,
            ends: 0,
        })
    }

    /// The next signal of any kind. May be dropped and asked for again.
    pub(super) async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let signal = tokio::select! {
            _ = hangup => Signal::Hangup,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        };
        if signal != Signal::Hangup {
            self.ends += 1;
        }
        signal
    }

    /// The next signal that is meant to end us.
    pub(super) async fn end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            // A child may read its configuration anew; we do not.
            if signal != Signal::Hangup || !self.child {
                return signal;
            }
        }
    }

    /// A signal to end, after the one that has begun the end; where nobody has sent one yet, the second.
    pub(super) async fn last(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if signal != Signal::Hangup && self.ends >= 2 {
                return signal;
            }
            tracing::info!(%signal, "bringing the replicas up to date; the next signal ends it at once");
        }
    }
}

/// Whether we were started with SIGHUP ignored (proc(5), `SigIgn`).
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
