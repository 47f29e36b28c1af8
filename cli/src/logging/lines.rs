//! Log lines for programs: `time=… level=… msg=… key=value`, or the same as JSON. The names and the order are Litestream's.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// One line an event.
pub(super) struct Lines {
    json: bool,
    /// With the place in the program.
    source: bool,
}

impl Lines {
    pub(super) const fn text(source: bool) -> Self {
        Self { json: false, source }
    }

    pub(super) const fn json(source: bool) -> Self {
        Self { json: true, source }
    }

    fn line(&self, time: jiff::Timestamp, metadata: &Metadata<'_>, said: Said) -> String {
        let mut pairs = vec![
            ("time", Value::Text(time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())),
            ("level", Value::Text(metadata.level().to_string())),
        ];
        if let (true, Some(file)) = (self.source, metadata.file()) {
            let line = metadata.line().unwrap_or_default();
            pairs.push(("source", Value::Text(format!("{file}:{line}"))));
        }
        pairs.push(("msg", Value::Text(said.message)));
        pairs.extend(said.fields);
        let mut line = String::new();
        for (key, value) in pairs {
            let between = match (line.is_empty(), self.json) {
                (true, true) => "{",
                (true, false) => "",
                (false, true) => ",",
                (false, false) => " ",
            };
            line.push_str(between);
            match (value, self.json) {
                (Value::Text(text), true) => line.push_str(&format!("{}:{}", quoted(key), quoted(&text))),
                (Value::Bare(text), true) => line.push_str(&format!("{}:{text}", quoted(key))),
                (Value::Text(text), false) if needs_quotes(&text) => line.push_str(&format!("{key}={}", quoted(&text))),
                (Value::Text(text) | Value::Bare(text), false) => line.push_str(&format!("{key}={text}")),
            }
        }
        if self.json {
            line.push('}');
        }
        line
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        writeln!(writer, "{}", self.line(jiff::Timestamp::now(), event.metadata(), said))
    }
}

enum Value {
    Text(String),
    /// A number or a truth value.
    Bare(String),
}

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Said {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::Text(text) | Value::Bare(text)) => self.message = text,
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON knows no others.
        let text = value.to_string();
        self.put(field, if value.is_finite() { Value::Bare(text) } else { Value::Text(text) });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.put(field, Value::Text(text));
    }
}

fn needs_quotes(text: &str) -> bool {
    text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(lines: Lines) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(lines).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let path = std::path::Path::new("/a b.db");
            tracing::info!(db = %path.display(), txid = 7u64, well = true, why = "a \"b\"\nc", kind = "s3", "went up");
        });
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_is_one_event() {
        let text = logged(Lines::text(false));
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.starts_with("time=2") && time.ends_with('Z'), "{time}");
        assert_eq!(
            rest,
            "level=INFO msg=\"went up\" db=\"/a b.db\" txid=7 well=true why=\"a \\\"b\\\"\\nc\" kind=s3\n"
        );
        assert!(logged(Lines::text(true)).contains(" source=cli/src/logging/lines.rs:"));
    }

    #[test]
    fn json_says_the_same() {
        let text = logged(Lines::json(false));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["msg"], "went up");
        assert_eq!((&value["txid"], &value["well"]), (&7.into(), &true.into()));
        assert_eq!(value["why"], "a \"b\"\nc");
        assert!(text.starts_with("{\"time\":\"2") && text.ends_with("}\n"), "{text}");
    }
}
