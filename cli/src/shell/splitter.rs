//! Where one SQL statement ends and the next begins.
//!
//! The rules are those of `sqlite3_complete()` (<https://www.sqlite.org/c3ref/complete.html>): a statement ends at a semicolon that is not
//! within a string, a name or a comment; `CREATE TRIGGER` ends at `;END;`. Lines are looked at once, as they come, however long the statement.

/// Collects lines and gives statements.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    text: String,
    /// How far `text` has been looked at.
    scanned: usize,
    state: State,
    within: Within,
    /// The line that `scanned` is in, from 1; 0 before the first.
    line: usize,
    /// Where the statement begins that is going on, and in which line.
    began: Option<(usize, usize)>,
}

/// A statement.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Its text from its first word on.
    pub(crate) text: String,
    /// The line that its first word is in, from 1.
    pub(crate) line: usize,
}

/// What a line can leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Code,
    Comment,
    /// Until this byte. A doubled one ends and begins again, which comes to the same.
    Quotes(u8),
}

/// How far the statement has come: the states of `sqlite3_complete()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Normal,
    Explain,
    Create,
    Trigger,
    /// In a trigger's body, behind a semicolon.
    Semicolon,
    /// In a trigger's body, behind `;END`.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Semicolon,
    Space,
    Other,
    Explain,
    Create,
    Temporary,
    Trigger,
    End,
}

impl Splitter {
    /// Takes the next line, without its line feed.
    pub(crate) fn push(&mut self, line: &str) {
        // What `next` has given is in front.
        let done = self.began.map_or(self.scanned, |(at, _)| at);
        self.text.drain(..done);
        self.scanned -= done;
        self.began = self.began.map(|(at, line)| (at - done, line));
        self.text.push_str(line);
        self.text.push('\n');
        self.line += 1;
    }

    /// Takes note of a line that is no SQL.
    pub(crate) fn skip(&mut self) {
        self.line += 1;
    }

    /// The next statement that is complete.
    pub(crate) fn next(&mut self) -> Option<Statement> {
        while self.scanned < self.text.len() {
            let at = self.scanned;
            let token = self.token();
            if self.began.is_none() && !matches!(token, Token::Space | Token::Semicolon) {
                self.began = Some((at, self.line));
            }
            self.state = after(self.state, token);
            if self.state == State::Start
                && token == Token::Semicolon
                && let Some(statement) = self.take()
            {
                return Some(statement);
            }
        }
        None
    }

    /// What is left at the end, if it is more than comments. Everything begins anew behind it.
    pub(crate) fn rest(&mut self) -> Option<Statement> {
        let rest = self.take();
        let line = self.line;
        *self = Self { line, ..Self::default() };
        rest
    }

    /// Whether the next line begins something new.
    pub(crate) fn is_blank(&self) -> bool {
        self.began.is_none() && self.within == Within::Code && self.scanned == self.text.len()
    }

    fn take(&mut self) -> Option<Statement> {
        let (at, line) = self.began.take()?;
        Some(Statement { text: self.text[at..self.scanned].trim_end().to_owned(), line })
    }

    /// The token at `scanned`, which moves behind it. No token but those of [`Within`] goes on in the next line.
    fn token(&mut self) -> Token {
        let bytes = &self.text.as_bytes()[self.scanned..];
        let (len, token) = match self.within {
            Within::Comment => match find(bytes, b"*/") {
                Some(at) => {
                    self.within = Within::Code;
                    (at + 2, Token::Space)
                }
                None => (bytes.len(), Token::Space),
            },
            Within::Quotes(close) => match find(bytes, &[close]) {
                Some(at) => {
                    self.within = Within::Code;
                    (at + 1, Token::Other)
                }
                None => (bytes.len(), Token::Other),
            },
            Within::Code => match bytes {
                [b';', ..] => (1, Token::Semicolon),
                [b'-', b'-', ..] => (find(bytes, b"\n").unwrap_or(bytes.len()), Token::Space),
                [b'/', b'*', ..] => {
                    self.within = Within::Comment;
                    (2, Token::Space)
                }
                [b'[', ..] => {
                    self.within = Within::Quotes(b']');
                    (1, Token::Other)
                }
                [quote @ (b'\'' | b'"' | b'`'), ..] => {
                    self.within = Within::Quotes(*quote);
                    (1, Token::Other)
                }
                [byte, ..] if is_word(*byte) => {
                    let len = bytes.iter().position(|byte| !is_word(*byte)).unwrap_or(bytes.len());
                    (len, word(&bytes[..len]))
                }
                [byte, ..] if byte.is_ascii_whitespace() || *byte == b'\x0b' => (1, Token::Space),
                // A byte order mark is worth no statement, as SQLite sees it too.
                [0xef, 0xbb, 0xbf, ..] => (3, Token::Space),
                _ => (1, Token::Other),
            },
        };
        self.scanned += len;
        token
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// SQLite's `IdChar`: every byte beyond ASCII is part of a word.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

fn word(word: &[u8]) -> Token {
    match word.to_ascii_lowercase().as_slice() {
        b"create" => Token::Create,
        b"trigger" => Token::Trigger,
        b"temp" | b"temporary" => Token::Temporary,
        b"explain" => Token::Explain,
        b"end" => Token::End,
        _ => Token::Other,
    }
}

fn after(state: State, token: Token) -> State {
    match (state, token) {
        (state, Token::Space) => state,
        (State::Trigger | State::Semicolon, Token::Semicolon) => State::Semicolon,
        (State::Semicolon, Token::End) => State::End,
        (State::End, Token::Semicolon) => State::Start,
        (State::Trigger | State::Semicolon | State::End, _) => State::Trigger,
        (_, Token::Semicolon) => State::Start,
        (State::Start, Token::Explain) => State::Explain,
        (State::Start | State::Explain, Token::Create) => State::Create,
        // EXPLAIN QUERY PLAN CREATE …
        (State::Explain, Token::Other) => State::Explain,
        (State::Create, Token::Temporary) => State::Create,
        (State::Create, Token::Trigger) => State::Trigger,
        _ => State::Normal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All statements of a text that comes line by line, and what is left.
    fn split(text: &str) -> (Vec<String>, Option<String>) {
        let mut splitter = Splitter::default();
        let mut statements = Vec::new();
        for line in text.lines() {
            splitter.push(line);
            while let Some(statement) = splitter.next() {
                statements.push(statement.text);
            }
        }
        (statements, splitter.rest().map(|rest| rest.text))
    }

    #[test]
    fn statements_end_at_semicolons() {
        assert_eq!(
            split("SELECT 1; SELECT 2;\n;;\n  select\n3"),
            (vec!["SELECT 1;".into(), "SELECT 2;".into()], Some("select\n3".into()))
        );
        assert_eq!(split(""), (vec![], None));
        assert_eq!(split(" ;\n; -- nothing;\n/* nor here; */ ;"), (vec![], None));
    }

    #[test]
    fn semicolons_in_quotes_and_comments_are_none() {
        for whole in [
            "SELECT 'a;b', \"c;d\", [e;f], `g;h`;",
            "SELECT 'it''s;', 'two\nlines;';",
            "SELECT 1 -- no; 'end\n;",
            "SELECT 1 /* no;\n ' still;\n*/ + 2;",
            "SELECT 1 /*/ ; */;",
            "SELECT 5 - -1 / 2;",
            "SELECT 'ü;', ü;",
        ] {
            assert_eq!(split(whole), (vec![whole.to_owned()], None), "{whole}");
        }
        assert_eq!(split("SELECT 'open;").1.as_deref(), Some("SELECT 'open;"));
        assert_eq!(split("SELECT 1 /* open;").1.as_deref(), Some("SELECT 1 /* open;"));
        assert_eq!(split("/* only open;"), (vec![], None));
    }

    #[test]
    fn a_trigger_ends_with_end() {
        let trigger = "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN\n  DELETE FROM t;\n  SELECT CASE WHEN 1 THEN 2 END;\n\
                       /* ; */ END;";
        let text = format!("{trigger} SELECT 1;");
        assert_eq!(split(&text).0, [trigger, "SELECT 1;"]);
        assert_eq!(split("EXPLAIN CREATE TRIGGER x BEGIN SELECT 1;").0, [""; 0]);
        assert_eq!(split("CREATE TABLE trigger(a); END;").0, ["CREATE TABLE trigger(a);", "END;"]);
        assert_eq!(split("BEGIN; END; EXPLAIN QUERY PLAN SELECT 1;").0.len(), 3);
    }

    #[test]
    fn lines_are_counted_from_the_first_word() {
        let mut splitter = Splitter::default();
        splitter.skip();
        for line in ["-- a comment", "  SELECT", "1;", "SELECT 2; SELECT", "3;"] {
            splitter.push(line);
            while let Some(Statement { text, line }) = splitter.next() {
                let expected = [("SELECT\n1;", 3), ("SELECT 2;", 5), ("SELECT\n3;", 5)];
                assert!(expected.contains(&(text.as_str(), line)), "{text} {line}");
            }
        }
        assert!(splitter.is_blank());
        splitter.push("/*");
        assert!(splitter.next().is_none() && !splitter.is_blank());
    }

    /// All short texts of the alphabet that matters: what is found does not depend on how much comes at once.
    #[test]
    fn line_by_line_is_as_good_as_at_once() {
        let pieces = ["create ", "trigger ", "temp ", "end", ";", "explain ", "x ", "'", "--", "\n", "/*", "*/", " "];
        let mut checked = 0;
        for code in 0..pieces.len().pow(5) {
            let mut rest = code;
            let text: String = (0..5)
                .map(|_| {
                    let piece = pieces[rest % pieces.len()];
                    rest /= pieces.len();
                    piece
                })
                .collect();
            let mut splitter = Splitter::default();
            let mut seen = 0;
            for line in text.lines() {
                splitter.push(line);
                while splitter.next().is_some() {
                    seen += 1;
                }
            }
            // In one line or in many is the same, as long as no comment ends with its line.
            if !text.contains("--") {
                let mut at_once = Splitter::default();
                at_once.push(&text);
                let count = std::iter::from_fn(|| at_once.next()).count();
                assert_eq!(count, seen, "{text:?}");
                checked += 1;
            }
        }
        assert!(checked > 100_000);
    }
}
