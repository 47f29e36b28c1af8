//! Where output goes: stdout, or a file for a while.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use super::values::visible;

/// See the module.
pub(crate) struct Sink {
    stdout: BufWriter<io::Stdout>,
    terminal: bool,
    file: Option<BufWriter<File>>,
    /// What the file is called.
    name: Option<String>,
    /// How many commands have still to end before the file is closed by itself.
    commands: Option<u8>,
}

impl Sink {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { stdout: BufWriter::with_capacity(64 << 10, stdout), terminal, file: None, name: None, commands: None }
    }

    /// Whether a person reads what is written now.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal && self.file.is_none()
    }

    /// What the output goes to.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("stdout")
    }

    /// Writes to a file from now on, for one command or until told otherwise.
    pub(crate) fn open(&mut self, path: &Path, once: bool) -> io::Result<()> {
        self.close()?;
        self.file = Some(BufWriter::with_capacity(64 << 10, File::create(path)?));
        self.name = Some(path.display().to_string());
        // The one that opens it, and the one it is for.
        self.commands = once.then_some(2);
        Ok(())
    }

    /// Writes to stdout again.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.name = None;
        self.commands = None;
        self.file.take().map_or(Ok(()), |mut file| file.flush())
    }

    /// Writes a line of text.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        if self.is_terminal() { writeln!(self, "{}", visible(text)) } else { writeln!(self, "{text}") }
    }

    /// A command has ended: everything is written, and a file that was for this command is closed.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.commands = self.commands.map(|left| left.saturating_sub(1));
        if self.commands == Some(0) {
            return self.close();
        }
        self.flush()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => self.stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.flush(),
            None => self.stdout.flush(),
        }
    }
}
