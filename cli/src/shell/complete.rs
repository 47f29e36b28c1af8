//! What Tab completes: dot-commands, their words, SQL's own words, and the names of tables and columns.

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::dot;
use super::print::Mode;

/// The words of SQL that are worth a key. Not all: those that begin or join what one asks of a database.
const KEYWORDS: [&str; 46] = [
    "ANALYZE",
    "AND",
    "ATTACH",
    "BETWEEN",
    "BEGIN",
    "BY",
    "CASE",
    "COMMIT",
    "CREATE",
    "CROSS",
    "DELETE",
    "DESC",
    "DETACH",
    "DISTINCT",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "FROM",
    "GROUP",
    "HAVING",
    "INDEX",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTO",
    "JOIN",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NATURAL",
    "OFFSET",
    "ORDER",
    "PRAGMA",
    "QUERY PLAN",
    "SELECT",
    "TABLE",
    "THEN",
    "UNION",
    "UPDATE",
    "USING",
    "VALUES",
    "WHEN",
    "WHERE",
    "WITH",
];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Completion {
    /// Tables and columns, as far as they are known.
    pub(super) names: Vec<String>,
}

impl Completion {
    /// Where the word before the cursor begins, and what it may become.
    fn candidates(&self, before: &str) -> (usize, Vec<String>) {
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
        let start =
            before.char_indices().rev().take_while(|(_, c)| is_word(*c)).last().map_or(before.len(), |(at, _)| at);
        let word = &before[start..];
        // A name that needs quotes is no word, and would not stay one.
        let names = || self.names.iter().map(String::as_str).filter(|name| name.chars().all(is_word));
        let matching = |words: &mut dyn Iterator<Item = &str>| -> Vec<String> {
            words.filter(|known| begins(known, word)).map(str::to_owned).collect()
        };
        let found = match before[..start].trim_start().strip_prefix('.') {
            Some("") => matching(&mut dot::names()),
            Some(command) => match command.trim_end() {
                "mode" => matching(&mut Mode::ALL.into_iter().map(Mode::name)),
                "echo" | "headers" | "timer" => matching(&mut ["on", "off"].into_iter()),
                "time" => matching(&mut ["latest", "yesterday", "today"].into_iter()),
                "dump" | "indexes" | "schema" | "tables" => matching(&mut names()),
                _ => Vec::new(),
            },
            None if word.is_empty() => Vec::new(),
            None => {
                let mut found = matching(&mut names());
                let lower = word.chars().all(|c| !c.is_uppercase());
                let keywords = KEYWORDS.iter().filter(|known| begins(known, word));
                found.extend(keywords.map(|known| if lower { known.to_lowercase() } else { (*known).to_owned() }));
                found
            }
        };
        (start, found)
    }
}

fn begins(known: &str, word: &str) -> bool {
    known.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

impl Completer for Completion {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.candidates(&line[..at]))
    }
}

impl Hinter for Completion {
    type Hint = String;
}

impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_follow_depends_on_what_stands_before() {
        let completion =
            Completion { names: vec!["orders".into(), "or else".into(), "Größe".into(), "on_time".into()] };
        let of = |before: &str| completion.candidates(before);
        assert_eq!(of(".ti"), (1, vec!["time".into(), "timer".into()]));
        assert_eq!(of(".mode j"), (6, vec!["json".into()]));
        assert_eq!(of(".timer o"), (7, vec!["on".into(), "off".into()]));
        assert_eq!(of(".schema o").1, ["orders", "on_time"]);
        assert_eq!(of("SELECT * FROM or"), (14, vec!["orders".into(), "order".into()]));
        assert_eq!(of("SEL").1, ["SELECT"]);
        assert_eq!(of("select grö"), (7, vec!["Größe".into()]));
        assert_eq!(of("select ").1, [""; 0]);
        assert_eq!(of(""), (0, vec![]));
    }
}
