//! `$VAR` and `${VAR}` in the text of the configuration file, replaced before it is parsed.
//!
//! The rules are those of Go's `os.Expand`, which Litestream uses: a name of letters, digits and underscores, or a single
//! one of `*#$@!?-` and the digits; what is not set becomes nothing. Because that eats parts of passwords like `pa$$word`,
//! everything that became nothing outside comments is reported.

/// The expanded text, and a warning for each variable outside comments that is not set.
pub(crate) fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> (String, Vec<String>) {
    let mut out = String::with_capacity(text.len());
    let mut warnings = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        expand_line(line, number + 1, env, &mut out, &mut warnings);
    }
    (out, warnings)
}

fn expand_line(
    line: &str,
    number: usize,
    env: &dyn Fn(&str) -> Option<String>,
    out: &mut String,
    warnings: &mut Vec<String>,
) {
    let mut rest = line;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, written) = variable(rest);
        let comment = in_comment(&line[..line.len() - rest.len() - 1]);
        match name {
            Name::None => out.push('$'),
            Name::Broken => {
                if !comment {
                    warnings.push(format!(
                        "line {number}: `${{` without a name and `}}` is removed: write ${{NAME}}, or use -no-expand-env"
                    ));
                }
            }
            Name::Variable(name) => {
                let value = if name == "PID" { Some(std::process::id().to_string()) } else { env(name) };
                if value.is_none() && !comment {
                    warnings.push(format!(
                        "line {number}: the environment variable `{name}` is not set and becomes nothing: set it, or use \
                         -no-expand-env if the dollar sign is meant"
                    ));
                }
                out.push_str(&value.unwrap_or_default());
            }
        }
        rest = &rest[written..];
    }
    out.push_str(rest);
}

enum Name<'a> {
    /// The dollar sign stands for itself.
    None,
    /// Braces that are empty or never closed.
    Broken,
    Variable(&'a str),
}

/// What follows a dollar sign, and how many bytes it takes.
fn variable(rest: &str) -> (Name<'_>, usize) {
    let special = |c: char| matches!(c, '*' | '#' | '$' | '@' | '!' | '?' | '-') || c.is_ascii_digit();
    match rest.chars().next() {
        Some('{') => {
            // Go looks for the brace in the whole file; a name does not go over the end of a line.
            let end = rest.find(['}', '\n']).filter(|end| rest.as_bytes()[*end] == b'}');
            match end {
                None => (Name::Broken, 1),
                Some(1) => (Name::Broken, 2),
                Some(end) => (Name::Variable(&rest[1..end]), end + 1),
            }
        }
        Some(c) if special(c) => (Name::Variable(&rest[..1]), 1),
        _ => {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            if end == 0 { (Name::None, 0) } else { (Name::Variable(&rest[..end]), end) }
        }
    }
}

/// Whether what follows on the line is a comment. A `#` inside quotes is taken for one too: that only costs a warning.
fn in_comment(before: &str) -> bool {
    before.trim_start().starts_with('#') || before.contains(" #") || before.contains("\t#")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> (String, usize) {
        let env = |name: &str| match name {
            "A" => Some("one".to_owned()),
            "B_2" => Some("two".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let (out, warnings) = expand(text, &env);
        (out, warnings.len())
    }

    /// The expected texts are what Go's `os.Expand` gives.
    #[test]
    fn as_go_does() {
        for (text, expected, warnings) in [
            ("", "", 0),
            ("plain", "plain", 0),
            ("$A", "one", 0),
            ("${A}x$B_2-$A", "onextwo-one", 0),
            ("$Ax", "", 1),
            ("${Ax}", "", 1),
            ("$EMPTY", "", 0),
            ("a $ b", "a $ b", 0),
            ("cost: 5$", "cost: 5$", 0),
            ("pa$$word", "paword", 1),
            ("$1$", "$", 1),
            ("${}", "", 1),
            ("${A", "A", 1),
            ("ä$A", "äone", 0),
            ("$ä", "$ä", 0),
        ] {
            assert_eq!(run(text), (expected.to_owned(), warnings), "{text}");
        }
        assert_eq!(run("$PID").0, std::process::id().to_string());
    }

    #[test]
    fn comments_are_not_warned_about() {
        assert_eq!(run("# set $X\na: $A # or $Y\n  # ${Z\n").1, 0);
        let (_, warnings) = expand("a: b\nc: $X", &|_| None);
        assert!(warnings[0].starts_with("line 2: the environment variable `X` is not set"), "{warnings:?}");
    }
}
