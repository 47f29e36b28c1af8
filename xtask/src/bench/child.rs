//! A program that is measured, or killed on the way: how long it ran to the microsecond, and the most memory it had.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// The time between two looks at a running program.
const LOOK: Duration = Duration::from_micros(500);

/// What became of a program.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// From just before it was started until it ended.
    pub(crate) wall: Duration,
    /// The most memory it had in RAM at any time, in bytes; 0 where the system does not say.
    pub(crate) peak_memory: u64,
    /// Both outputs.
    pub(crate) said: String,
}

impl Finished {
    /// An error, with what the program said, unless it succeeded.
    pub(crate) fn succeeded(self, name: &str) -> Result<Finished> {
        if !self.status.success() {
            bail!("{name} failed ({}):\n{}", self.status, crate::process::tail(&self.said, 15));
        }
        Ok(self)
    }
}

/// Runs a program to its end.
///
/// # Errors
/// It cannot be started, or has not ended by the deadline; it is killed then.
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<Finished> {
    let mut expired = false;
    let finished = run_until(command, |elapsed| {
        expired = elapsed >= deadline;
        expired
    })?;
    if expired {
        bail!("still running after {} s:\n{}", deadline.as_secs(), crate::process::tail(&finished.said, 15));
    }
    Ok(finished)
}

/// Runs a program until `kill` says so, which is asked many times a second; then it gets SIGKILL.
///
/// # Errors
/// It cannot be started.
pub(crate) fn run_until(command: &mut Command, mut kill: impl FnMut(Duration) -> bool) -> Result<Finished> {
    let mut log = tempfile::tempfile().context("cannot make a log file")?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let start = Instant::now();
    let mut child = Killed(command.spawn().with_context(|| format!("cannot start {command:?}"))?);
    let pid = i32::try_from(child.0.id()).ok().and_then(Pid::from_raw).context("the child has no process id")?;

    // Waiting does not reap, so that the process id stays the child's until the end of this function.
    let (sender, ended) = channel();
    let waiter = std::thread::spawn(move || {
        let outcome = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        // The other side is gone only if it failed, and has said so.
        let _ = sender.send(start.elapsed());
        outcome
    });
    let mut peak_memory = 0;
    let mut killed = false;
    let wall = loop {
        match ended.recv_timeout(LOOK) {
            Ok(wall) => break wall,
            Err(RecvTimeoutError::Disconnected) => bail!("lost the child"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        peak_memory = peak_memory.max(high_water_mark(child.0.id()));
        if !killed && kill(start.elapsed()) {
            child.0.kill()?;
            killed = true;
        }
    };
    if let Ok(outcome) = waiter.join() {
        outcome.context("cannot wait for the child")?;
    }
    let status = child.0.wait()?;
    let mut said = Vec::new();
    std::io::Seek::rewind(&mut log)?;
    log.read_to_end(&mut said)?;
    Ok(Finished { status, wall, peak_memory, said: String::from_utf8_lossy(&said).into_owned() })
}

/// `VmHWM` of a process. It only grows, so the last look before the end has nearly all of it.
fn high_water_mark(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// A child that does not outlive its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Already ended: both are harmless.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_killed_when_told_and_its_memory_and_words_are_known() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; exec sleep 600"]);
        let finished = run_until(&mut command, |elapsed| elapsed > Duration::from_millis(50)).unwrap();
        assert!(!finished.status.success() && finished.wall >= Duration::from_millis(50));
        assert_eq!(finished.said, "ready\n");
        #[cfg(target_os = "linux")]
        assert!(finished.peak_memory > 100_000, "{}", finished.peak_memory);
    }

    #[test]
    fn a_program_that_does_not_end_is_an_error() {
        let error = run(Command::new("sleep").arg("600"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("still running after 0 s"), "{error}");
    }
}
