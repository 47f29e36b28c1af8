//! An application as whoever has started it sees it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::app::Kind;

/// One writer of one database, however often it was killed.
pub(super) struct Actor {
    database: PathBuf,
    kind: Kind,
    writer: u32,
    life: Option<Life>,
    heard: Arc<Mutex<Heard>>,
    /// How many of its transactions are known to be in the replica.
    pub(super) durable: u64,
}

#[derive(Debug, Default)]
struct Heard {
    committed: u64,
    paused: bool,
    broken: Option<String>,
}

struct Life {
    child: Child,
    listener: Option<JoinHandle<()>>,
}

impl Drop for Life {
    fn drop(&mut self) {
        // Already ended: both are harmless.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Actor {
    pub(super) fn start(database: &Path, kind: Kind, writer: u32, seed: u64) -> Result<Self> {
        let (database, heard) = (database.to_owned(), Arc::default());
        let mut actor = Self { database, kind, writer, life: None, heard, durable: 0 };
        actor.again(seed)?;
        Ok(actor)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new life.
    pub(super) fn again(&mut self, seed: u64) -> Result<()> {
        let kind = self.kind.to_possible_value().context("a kind without a name")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("soak-app").arg(&self.database).arg(kind.get_name());
        command.arg(self.writer.to_string()).arg(seed.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start an application")?;
        let output = child.stdout.take().context("an application without output")?;
        let heard = self.heard.clone();
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                match line.split_once(' ').unwrap_or((&line, "")) {
                    ("committed", number) => heard.committed = number.parse().unwrap_or(heard.committed),
                    ("paused", _) => heard.paused = true,
                    ("broken", why) => heard.broken = Some(why.to_owned()),
                    _ => {}
                }
            }
        });
        self.life = Some(Life { child, listener: Some(listener) });
        Ok(())
    }

    /// Returns when all that it has said is heard.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.life = None;
        self.check()
    }

    pub(super) fn check(&mut self) -> Result<()> {
        let broken = self.heard().broken.clone();
        let name = self.database.display();
        ensure!(broken.is_none(), "{name}: an application is broken: {}", broken.unwrap_or_default());
        if let Some(life) = &mut self.life
            && let Some(status) = life.child.try_wait()?
        {
            ensure!(false, "{name}: an application has ended ({status})");
        }
        Ok(())
    }

    pub(super) fn committed(&self) -> u64 {
        self.heard().committed
    }

    pub(super) fn is_paused(&self) -> bool {
        self.heard().paused
    }

    pub(super) fn pause(&mut self) -> Result<()> {
        self.heard().paused = false;
        self.say("pause")
    }

    pub(super) fn go(&mut self) -> Result<()> {
        self.say("go")
    }

    fn say(&mut self, what: &str) -> Result<()> {
        let life = self.life.as_mut().context("an application that is dead")?;
        let stdin = life.child.stdin.as_mut().context("an application without input")?;
        Ok(writeln!(stdin, "{what}").and_then(|()| stdin.flush())?)
    }
}
