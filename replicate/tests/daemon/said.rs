//! What was said of databases, in warnings and errors: also what a status shows for a moment only.

use std::fmt::Debug;
use std::path::Path;
use std::sync::{Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

static SAID: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// One of them, and which database it is about.
#[derive(Clone, Default)]
struct Line {
    path: String,
    why: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "path" => self.path = format!("{value:?}"),
            "why" => self.why = format!("{value:?}"),
            _ => {}
        }
    }
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if !line.why.is_empty() {
            SAID.lock().unwrap().push(line);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// From now on what is said is kept.
pub(crate) fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| tracing::subscriber::set_global_default(Lines).unwrap());
}

/// Why a database is not well, in the order in which it was said.
pub(crate) fn said(path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    let said = SAID.lock().unwrap();
    said.iter().filter(|line| line.path == path).map(|line| line.why.clone()).collect()
}
