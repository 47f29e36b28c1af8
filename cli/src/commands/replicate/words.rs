//! A command line taken apart into words, as a shell does; but nothing is expanded, and no shell is run. It may hold secrets, so errors do not
//! repeat it.

use anyhow::bail;

/// A program and its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
}

impl Words {
    /// Quotes and backslashes mean what they do in a POSIX shell (Shell Command Language, 2.2).
    ///
    /// # Errors
    /// What a shell would be needed for.
    pub(super) fn parse(command: &str) -> anyhow::Result<Self> {
        let mut words = split(command)?.into_iter();
        let Some(program) = words.next() else { bail!("the command to run names no program") };
        Ok(Self { program, arguments: words.collect() })
    }
}

fn split(command: &str) -> anyhow::Result<Vec<String>> {
    const OPERATORS: [&str; 10] = ["|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1"];
    let mut words = Vec::new();
    let mut rest = command.chars();
    while let Some(first) = rest.find(|c| !c.is_whitespace()) {
        let mut word = String::new();
        let mut quoted = false;
        let mut next = Some(first);
        while let Some(c) = next.filter(|c| !c.is_whitespace()) {
            let after = rest.clone().next();
            quoted |= matches!(c, '\'' | '"') || c == '\\' && after != Some('\n');
            match c {
                '\'' => single(&mut rest, &mut word)?,
                '"' => double(&mut rest, &mut word)?,
                '\\' => match rest.next() {
                    Some('\n') => {}
                    Some(c) => word.push(c),
                    None => bail!("the command to run ends with a backslash"),
                },
                c => word.push(c),
            }
            next = rest.next();
        }
        if !quoted && OPERATORS.contains(&word.as_str()) {
            bail!(
                "the command to run: there is no shell to understand {word:?}: run one, as in `sh -c '…'`, or quote it"
            );
        }
        if quoted || !word.is_empty() {
            words.push(word);
        }
    }
    Ok(words)
}

fn single(rest: &mut std::str::Chars<'_>, word: &mut String) -> anyhow::Result<()> {
    for c in rest {
        if c == '\'' {
            return Ok(());
        }
        word.push(c);
    }
    bail!("the command to run: a ' is never closed")
}

fn double(rest: &mut std::str::Chars<'_>, word: &mut String) -> anyhow::Result<()> {
    while let Some(c) = rest.next() {
        match c {
            '"' => return Ok(()),
            '\\' => match rest.next() {
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some('\n') | None => {}
                Some(c) => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
    bail!("the command to run: a \" is never closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        for (command, words) in [
            ("myapp", &["myapp"][..]),
            ("  myapp  -p\t80\n", &["myapp", "-p", "80"]),
            ("sh -c 'echo \"a b\" | cat'", &["sh", "-c", "echo \"a b\" | cat"]),
            (r#"a "b c" d\ e"f"'g'"#, &["a", "b c", "d efg"]),
            (r#"a "" '' "\"\\\$\n""#, &["a", "", "", r#""\$\n"#]),
            ("a # b", &["a", "#", "b"]),
            ("get http://x/?a=1&b=2", &["get", "http://x/?a=1&b=2"]),
            ("a '|' \\&", &["a", "|", "&"]),
            ("a \\\n b", &["a", "b"]),
        ] {
            assert_eq!(split(command).unwrap(), words, "{command}");
        }
        for (command, problem) in [
            ("", "names no program"),
            ("a 'b", "never closed"),
            ("a \"b", "never closed"),
            ("a \\", "backslash"),
            ("a && b", "sh -c"),
            ("a > b", "sh -c"),
        ] {
            let error = Words::parse(command).unwrap_err().to_string();
            assert!(error.contains(problem), "{command}: {error}");
        }
    }
}
