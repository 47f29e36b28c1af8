//! Commands that come from arguments, a pipe or a file.

use std::io::BufRead;

use super::session::{Flow, Session, Source};
use super::splitter::Splitter;

/// Runs one argument.
pub(crate) fn run_text(session: &mut Session, text: &str) -> Flow {
    let mut splitter = Splitter::default();
    for (number, line) in text.lines().enumerate() {
        if session.feed(&mut splitter, line, number + 1, Source::User) == Flow::Quit {
            return Flow::Quit;
        }
    }
    session.feed_end(&mut splitter, Source::User)
}

/// Runs all lines of a pipe or file, as long as nobody interrupts.
pub(crate) fn run_lines(session: &mut Session, mut reader: impl BufRead, name: &str) -> Flow {
    let mut splitter = Splitter::default();
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                session.complain(&format!("{name}, line {number}: {error}"));
                return Flow::Quit;
            }
        }
        let Ok(line) = std::str::from_utf8(&bytes) else {
            session.complain(&format!("{name}, line {number}: this is no UTF-8 text"));
            return Flow::Quit;
        };
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if session.feed(&mut splitter, line, number, Source::Lines(name)) == Flow::Quit {
            return Flow::Quit;
        }
        if session.interrupts.asked() {
            return Flow::On;
        }
    }
    session.feed_end(&mut splitter, Source::Lines(name))
}
