//! Commands from a person at a terminal: editing, history, and two prompts.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Behavior, CompletionType, Config, Editor};

use super::complete::Completion;
use super::session::{Flow, Session, Source};
use super::splitter::Splitter;
use crate::output;

const PROMPT: &str = "litestream> ";
/// While something that was committed has not been uploaded.
const PENDING: &str = "litestream*> ";
const CONTINUED: &str = "   ...> ";
/// How many entries the history keeps.
const HISTORY: usize = 10_000;

/// Talks to the user until they leave.
pub(crate) fn run(session: &mut Session) -> anyhow::Result<()> {
    let config = Config::builder()
        .max_history_size(HISTORY)?
        .history_ignore_dups(true)?
        // As in shells: what begins with a space stays out of the history.
        .history_ignore_space(true)
        // The prompt is for the terminal, also where the results go elsewhere.
        .behavior(Behavior::PreferTerm)
        .completion_type(CompletionType::List)
        .build();
    let mut editor: Editor<Completion, FileHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Completion::default()));
    let history = history_path();
    if let Some(path) = &history {
        load(&mut editor, path);
    }
    let mut splitter = Splitter::default();
    let mut entry = String::new();
    loop {
        session.interrupts.reset();
        if let (Some(completion), Some(names)) = (editor.helper_mut(), session.new_names()) {
            completion.names = names;
        }
        let prompt = match splitter.is_blank() {
            false => CONTINUED,
            true if session.stat("transactions_pending") > 0 => PENDING,
            true => PROMPT,
        };
        let line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                (splitter, entry) = Default::default();
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Signal(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        if !entry.is_empty() {
            entry.push('\n');
        }
        entry.push_str(&line);
        session.interrupts.reset();
        // What is recalled may be of many lines.
        let mut flow = Flow::On;
        for line in line.lines() {
            flow = session.feed(&mut splitter, line, 1, Source::User);
            if flow == Flow::Quit || session.interrupts.asked() {
                break;
            }
        }
        if splitter.is_blank() || flow == Flow::Quit {
            remember(&mut editor, history.as_deref(), &std::mem::take(&mut entry));
        }
        if flow == Flow::Quit {
            return Ok(());
        }
    }
}

/// Where the history lies (<https://specifications.freedesktop.org/basedir-spec/latest/>).
fn history_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("litestream/vfs-shell_history"))
}

fn load(editor: &mut Editor<Completion, FileHistory>, path: &Path) {
    if !path.exists() {
        return;
    }
    if let Err(error) = editor.load_history(path) {
        output::note(&format!("cannot read the history {}: {error}", path.display()));
    }
}

/// Notes an entry at once, so that it survives the shell however that ends. The editor makes the file readable by its owner alone.
fn remember(editor: &mut Editor<Completion, FileHistory>, path: Option<&Path>, entry: &str) {
    if entry.trim().is_empty() || !editor.add_history_entry(entry).unwrap_or(false) {
        return;
    }
    let Some(path) = path else { return };
    if let Some(folder) = path.parent() {
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    }
    if let Err(error) = editor.append_history(path) {
        tracing::info!(%error, path = %path.display(), "cannot write the history");
    }
}
