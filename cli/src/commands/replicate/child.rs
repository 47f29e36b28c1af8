//! The program of `--exec`: it runs as long as we do, or rather we as long as it does.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use anyhow::Context;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::process::Command;

use super::{Signal, Signals, Words};

pub(super) struct Child {
    process: tokio::process::Child,
    /// Whether it was interrupted by a key of its terminal, as far as can be seen.
    interrupted: bool,
}

impl Child {
    /// Starts it with the limit on open files that we were started with: not all programs bear a high one.
    ///
    /// # Errors
    /// Why the program cannot be started.
    pub(super) fn start(words: &Words, descriptors: Rlimit) -> anyhow::Result<Self> {
        let Words { program, arguments } = words;
        let child = Command::new(program).args(arguments).spawn();
        let child = child.with_context(|| format!("cannot start {program:?}, the program to run"))?;
        let child = Self { process: child, interrupted: false };
        if let Err(error) = prlimit(child.pid(), Resource::Nofile, descriptors) {
            tracing::debug!(%error, "the program has our limit on open files");
        }
        tracing::info!(command = program, pid = child.process.id().unwrap_or_default(), "started");
        Ok(child)
    }

    /// Waits for its end, and hands on every signal until then. What it has committed is still to be uploaded.
    ///
    /// # Errors
    /// Why nobody can wait for it.
    pub(super) async fn wait(mut self, signals: &mut Signals) -> anyhow::Result<ExitCode> {
        loop {
            tokio::select! {
                status = self.process.wait() => {
                    let status = status.context("cannot wait for the program that runs")?;
                    tracing::info!(%status, "the program has ended");
                    return Ok(code(status));
                }
                signal = signals.next() => self.pass_on(signal),
            }
        }
    }

    /// It has an id as long as nobody has waited for it, so nobody else can have that.
    fn pid(&self) -> Option<Pid> {
        self.process.id().and_then(|id| Pid::from_raw(id.cast_signed()))
    }

    fn pass_on(&mut self, signal: Signal) {
        use rustix::process::{Signal as Native, kill_process};
        let native = match signal {
            Signal::Hangup => Native::HUP,
            Signal::Interrupt => Native::INT,
            Signal::Terminate => Native::TERM,
        };
        let Some(pid) = self.pid() else { return };
        if signal == Signal::Interrupt && sits_at_our_terminal() && !std::mem::replace(&mut self.interrupted, true) {
            // It had the key itself; a second one would make some programs end at once. Whoever sends one more means that, or it was no key.
            tracing::info!(%signal, "the program has had that from the terminal; once more, and it is passed on");
            return;
        }
        tracing::info!(%signal, "passing the signal on to the program");
        if let Err(error) = kill_process(pid, native) {
            tracing::warn!(%signal, %error, "cannot pass the signal on");
        }
    }
}

/// Whether the keys of a terminal go to our process group, which the program is in.
fn sits_at_our_terminal() -> bool {
    rustix::termios::tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// As a shell would tell it.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
