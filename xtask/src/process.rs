//! Child processes and waiting: a process that dies with its owner and keeps its log, and waiting for a condition with a
//! deadline. Knows nothing of what runs.

use std::fs;
use std::io::{Seek, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

/// Asks `poll` again and again until it has an answer.
///
/// # Errors
/// `poll` failed, or had no answer before the deadline; `what` says what was waited for.
pub(crate) fn wait_until<T>(what: &str, deadline: Duration, mut poll: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = poll()? {
            return Ok(answer);
        }
        if start.elapsed() >= deadline {
            bail!("waited {} s in vain for: {what}", deadline.as_secs());
        }
        pause();
    }
}

/// The time between two looks at a condition.
#[allow(clippy::disallowed_methods, reason = "the one place that sleeps: between two looks at a condition")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// A running child. Its output goes to a temporary log; dropping it kills it and waits for it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: NamedTempFile,
}

impl Process {
    /// Starts `command`, without input, both outputs into the log.
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Result<Process> {
        let log = NamedTempFile::new().context("cannot make a log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.reopen()?)
            .stderr(log.reopen()?)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name: name.to_owned(), child, log })
    }

    /// Process id, for measuring it.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read(self.log.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// [`wait_until`], which ends at once if the process does, and whose errors carry the end of its log.
    pub(crate) fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut poll: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        wait_until(what, deadline, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) while waiting for: {what}", self.name);
            }
            poll()
        })
        .with_context(|| self.log_tail())
    }

    /// Waits until its log says this.
    pub(crate) fn wait_until_said(&mut self, part: &str, deadline: Duration) -> Result<()> {
        let log = self.log.path().to_owned();
        self.wait_until(&format!("its log to say {part:?}"), deadline, || {
            Ok(String::from_utf8_lossy(&fs::read(&log)?).contains(part).then_some(()))
        })
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait_until(&what, deadline, || Ok(self.child.try_wait()?)).with_context(|| self.log_tail())
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// # Errors
    /// It has ended; the error carries the end of its log.
    pub(crate) fn ensure_alive(&mut self, when: &str) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} has ended ({status}) {when}", self.name)).with_context(|| self.log_tail()),
        }
    }

    /// Sends a signal, and does not wait.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the child has no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot stop {}", self.name))
    }

    /// SIGTERM, then waits for it to end. Its exit code is returned, not judged.
    pub(crate) fn terminate(mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// SIGKILL. Returns all that it has ever said.
    pub(crate) fn kill(mut self) -> String {
        // Already ended: both are harmless.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.log()
    }

    fn log_tail(&self) -> String {
        format!("the log of {} ends with:\n{}", self.name, tail(&self.log(), 15))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended: both are harmless.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// It cannot be started, or fails; the error carries the end of what it said.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(anyhow!("{name} failed ({}):\n{}", output.status, tail(&String::from_utf8_lossy(&said), 15)))
}

/// How a command ended, and what it said where.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `command` to its end, with that input. Its exit code is returned, not judged.
///
/// # Errors
/// It cannot be started, or has not ended before the deadline; then it is killed, and the error carries what it said.
pub(crate) fn converse(name: &str, command: &mut Command, input: &str, deadline: Duration) -> Result<Said> {
    let (mut stdin, stdout, stderr) = (tempfile::tempfile()?, NamedTempFile::new()?, NamedTempFile::new()?);
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let child = command.stdin(stdin).stdout(stdout.reopen()?).stderr(stderr.reopen()?).spawn();
    let child = child.with_context(|| format!("cannot start {name}"))?;
    let read =
        |file: &NamedTempFile| -> Result<String> { Ok(String::from_utf8_lossy(&fs::read(file.path())?).into_owned()) };
    // Dropping it kills it.
    let mut process = Process { name: name.to_owned(), child, log: stderr };
    let status = process.wait(deadline)?;
    Ok(Said { status, stdout: read(&stdout)?, stderr: read(&process.log)? })
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_comes_is_an_error_that_names_it() {
        let error = wait_until("the sea to burn", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s in vain for: the sea to burn");
    }

    #[test]
    fn a_process_that_ends_early_is_noticed_and_its_log_shown() {
        let mut process = Process::spawn("sh", Command::new("sh").args(["-c", "echo oh no >&2; exit 3"])).unwrap();
        let error = process.wait_until("good news", Duration::from_secs(10), || Ok(None::<()>)).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("oh no") && text.contains("exit status: 3") && text.contains("good news"), "{text}");
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive() {
        let mut process = Process::spawn("sleep", Command::new("sleep").arg("600")).unwrap();
        process.ensure_alive("at once").unwrap();
        let mut process = Process::spawn("sh", Command::new("sh").args(["-c", "echo oh no >&2; exit 3"])).unwrap();
        process.wait(Duration::from_secs(10)).unwrap();
        let text = format!("{:#}", process.ensure_alive("while it was measured").unwrap_err());
        assert!(text.contains("oh no") && text.contains("exit status: 3") && text.contains("measured"), "{text}");
    }

    #[test]
    fn a_conversation_keeps_what_was_said_apart() {
        let mut cat = Command::new("sh");
        let said =
            converse("sh", cat.args(["-c", "cat; echo oh >&2; exit 3"]), "hello", Duration::from_secs(10)).unwrap();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("hello", "oh\n"));
        assert_eq!(said.status.code(), Some(3));
        let error = converse("sleep", Command::new("sleep").arg("600"), "", Duration::ZERO).unwrap_err();
        assert!(format!("{error:#}").contains("sleep to end"), "{error:#}");
    }

    #[test]
    fn dropping_a_process_ends_it() {
        let process = Process::spawn("sleep", Command::new("sleep").arg("600")).unwrap();
        let pid = Pid::from_raw(process.id().try_into().unwrap()).unwrap();
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
