//! YAML as a tree of plain texts, with the line of each.
//!
//! Which type a text has is for the key to say, not for YAML: `secret-access-key: 0123` keeps its zero, `permissions: 0600`
//! is octal, and `enabled: yes` a boolean. So scalars are kept as they are written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Spanned};

/// A place in the file and what stands there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    /// From 1.
    pub(crate) line: u64,
}

/// What stands at a place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    /// Keys may repeat; each with its own node.
    Map(Vec<(String, Node)>),
}

impl Value {
    /// For messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a section",
        }
    }
}

/// Parses one YAML document. Messages never quote the text, which may hold credentials.
pub(crate) fn parse(text: &str) -> Result<Node, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    Ok(node(raw, text))
}

/// A value as the YAML library types it, before it is turned back into text.
enum Raw {
    Null,
    /// A boolean or number.
    Typed,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(String, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, text: &str) -> Node {
    let line = raw.referenced.line();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Text(text),
        Raw::Typed => {
            // Where an alias stands, the text is at the anchor.
            let span = raw.defined.span();
            let written = span.byte_offset().zip(span.byte_len()).and_then(|(start, length)| {
                let start = usize::try_from(start).ok()?;
                text.get(start..start.checked_add(usize::try_from(length).ok()?)?)
            });
            Value::Text(written.unwrap_or_default().trim().to_owned())
        }
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, text)).collect()),
        Raw::Map(entries) => Value::Map(entries.into_iter().map(|(key, item)| (key, node(item, text))).collect()),
    };
    Node { value, line }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a section")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".into(),
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
            Value::Map(entries) => {
                let entries: Vec<_> = entries.iter().map(|(key, node)| format!("{key}: {}", show(node))).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }

    #[test]
    fn scalars_stay_as_they_are_written() {
        for (yaml, expected) in [
            ("a: 0600", r#"{a: "0600"}"#),
            ("a: 0o600", r#"{a: "0o600"}"#),
            (
                "a: 012345678901234567890123456789012345678901234567890",
                r#"{a: "012345678901234567890123456789012345678901234567890"}"#,
            ),
            ("a: 1e3 # x", r#"{a: "1e3"}"#),
            ("a: 1_000", r#"{a: "1_000"}"#),
            ("a: on", r#"{a: "on"}"#),
            ("a: 'yes'", r#"{a: "yes"}"#),
            ("a: -1", r#"{a: "-1"}"#),
            ("a: 1.50", r#"{a: "1.50"}"#),
            ("a: 2026-01-01", r#"{a: "2026-01-01"}"#),
            ("ä: ö # ü\nb: 010", r#"{ä: "ö", b: "010"}"#),
            ("a: \"x\\ty\"", r#"{a: "x\ty"}"#),
            ("a: |\n  one\n  two\n", r#"{a: "one\ntwo\n"}"#),
            ("a:\nb: ~\nc: null\nd: ''", r#"{a: null, b: null, c: null, d: ""}"#),
            ("a: [1, {b: 02}]", r#"{a: ["1", {b: "02"}]}"#),
            (
                "x: &x {n: 07, m: 1}\ny: *x\nz: {<<: *x, m: 2}",
                r#"{x: {n: "07", m: "1"}, y: {n: "07", m: "1"}, z: {m: "2", n: "07"}}"#,
            ),
            ("1: a\ntrue: b", r#"{1: "a", true: "b"}"#),
            ("", "null"),
            ("# nothing\n", "null"),
            ("a: 1\na: 2", r#"{a: "1", a: "2"}"#),
            ("- 08\n- 0x1F", r#"["08", "0x1F"]"#),
        ] {
            assert_eq!(show(&parse(yaml).unwrap()), expected, "{yaml}");
        }
    }

    #[test]
    fn lines() {
        let Value::Map(entries) = parse("a: 1\n\nb:\n  - x\n  - y\n").unwrap().value else { panic!() };
        assert_eq!(entries[0].1.line, 1);
        let Value::List(items) = &entries[1].1.value else { panic!() };
        assert_eq!((items[0].line, items[1].line), (4, 5));
    }

    #[test]
    fn broken_yaml_says_where_and_quotes_nothing() {
        for yaml in
            ["a: [hunter2\n", "a: hunter2: x", "secret: hunter2\n\tb: 1\n", "a: b\n--- \nc: d\n", "a: *nowhere\n"]
        {
            let error = parse(yaml).unwrap_err();
            assert!(error.contains("line") && !error.contains("hunter2"), "{yaml}: {error}");
        }
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
                    g: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(parse(bomb).is_err());
    }
}
