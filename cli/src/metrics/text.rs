//! Prometheus' text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.

use std::fmt::Write;

/// What `Content-Type` says.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
    Histogram,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// Text that grows.
#[derive(Debug, Default)]
pub(super) struct Text(pub(super) String);

impl Text {
    /// The lines before a metric's samples.
    pub(super) fn head(&mut self, name: &str, help: &str, kind: Kind) {
        let kind = kind.as_str();
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample. Numbers are written in full, so that none is rounded.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            escape(&mut self.0, value);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

fn escape(text: &mut String, value: &str) {
    if !value.contains(['\\', '"', '\n']) {
        return text.push_str(value);
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_numbers_are_whole() {
        let mut text = Text::default();
        text.head("a_total", "What it is", Kind::Counter);
        text.sample("a_total", &[], u64::MAX);
        text.sample("a_total", &[("db", "/a \"b\"\\c\n"), ("x", "ü")], 0.000_000_25);
        let expected = "# HELP a_total What it is\n# TYPE a_total counter\na_total 18446744073709551615\n\
                        a_total{db=\"/a \\\"b\\\"\\\\c\\n\",x=\"ü\"} 0.00000025\n";
        assert_eq!(text.0, expected);
    }
}
