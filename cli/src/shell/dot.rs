//! Dot-commands: `.tables`, `.mode`, `.time`…

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use litestream_storage::config::{nearest, parse_bool};
use unicode_width::UnicodeWidthStr;

use super::print::Mode;
use super::session::{Failure, Flow, Session};
use super::values::identifier;
use super::{dump, script};

/// How deep scripts may read scripts.
const DEPTH: usize = 16;
/// How wide a line of `.tables` may become.
const WIDTH: usize = 80;

type Done = Result<Flow, Failure>;

/// A command: its name, what may follow, what it does.
struct Command {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&mut Session, &[String]) -> Done,
}

const fn command(
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&mut Session, &[String]) -> Done,
) -> Command {
    Command { name, arguments, help, run }
}

static COMMANDS: [Command; 24] = [
    command("databases", "", "the databases that are open, and where they are", databases),
    command("dump", "[TABLE]", "the database as SQL; names may be LIKE patterns", dump_sql),
    command("echo", "on|off", "repeat each command before its output", echo),
    command("exit", "", "leave", quit),
    command("headers", "on|off", "show the columns' names", headers),
    command("help", "", "this list", help),
    command("indexes", "[TABLE]", "the names of indexes", indexes),
    command("lag", "", "by how many seconds the database is behind its replica", lag),
    command("mode", "MODE", "list, table, box, csv, json, line, column, tabs or markdown", mode),
    command("nullvalue", "TEXT", "what to write for NULL", null_value),
    command("once", "FILE", "write the next command's output to a file", once),
    command("output", "[FILE]", "write to a file from now on, or to the screen again", output),
    command("quit", "", "leave", quit),
    command("read", "FILE", "run the commands of a file", read),
    command("schema", "[PATTERN]", "the CREATE statements", schema),
    command("separator", "TEXT", "what stands between columns in list, csv and tabs", separator),
    command("show", "", "these settings", show),
    command("stats", "", "requests, bytes and cache hits so far", stats),
    command("sync", "", "upload what was committed, wait for it, and tell the transaction", sync),
    command("tables", "[PATTERN]", "the names of tables and views", tables),
    command("time", "[TIME|TXID|latest]", "travel: '5 minutes ago', RFC 3339, a TXID; or say where we are", time),
    command("timer", "on|off", "tell each statement's time, requests and bytes", timer),
    command("txid", "", "the transaction that is seen", txid),
    command("version", "", "the versions of this program and of SQLite", version),
];

/// The commands' names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|command| command.name)
}

/// Runs a line that begins with a dot.
pub(crate) fn run(session: &mut Session, line: &str) -> Done {
    let words = words(line.strip_prefix('.').unwrap_or(line)).map_err(Failure::Text)?;
    let Some((name, arguments)) = words.split_first() else { return usage("a command's name is missing") };
    let command = find(name).map_err(Failure::Text)?;
    let most = command.arguments.split_whitespace().count();
    let least = if command.arguments.starts_with('[') { 0 } else { most };
    // A time may be written without quotes: .time 5 minutes ago
    let joined = [arguments.join(" ")];
    let arguments = if command.name == "time" && !arguments.is_empty() { &joined } else { arguments };
    if arguments.len() < least || arguments.len() > most {
        return usage(format!("usage: .{} {}", command.name, command.arguments).trim_end());
    }
    (command.run)(session, arguments)
}

fn usage<T>(text: &str) -> Result<T, Failure> {
    Err(Failure::Text(text.to_owned()))
}

/// The command that is meant: by its name, or by a beginning that only one has.
fn find(name: &str) -> Result<&'static Command, String> {
    let folded = name.to_ascii_lowercase();
    // sqlite3 has these names, too.
    let folded = match folded.as_str() {
        "header" => "headers",
        "indices" => "indexes",
        "q" => "quit",
        folded => folded,
    };
    if let Some(command) = COMMANDS.iter().find(|command| command.name == folded) {
        return Ok(command);
    }
    let mut beginning = COMMANDS.iter().filter(|command| !folded.is_empty() && command.name.starts_with(folded));
    match (beginning.next(), beginning.next()) {
        (Some(command), None) => Ok(command),
        (Some(one), Some(other)) => Err(format!(".{name} could be .{} or .{}: write more of it", one.name, other.name)),
        _ => {
            let hint = match nearest(folded, names()) {
                Some(near) => format!("did you mean .{near}?"),
                None => "see .help".to_owned(),
            };
            Err(format!("unknown command .{name}: {hint}"))
        }
    }
}

/// Takes a line apart at spaces. `'…'` holds a word together, and so does `"…"`, in which `\t`, `\n`, `\r`, `\\` and `\"` mean what they mean
/// in C, as they do outside of quotes.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(first) = chars.peek().copied() else { return Ok(words) };
        let quote = chars.next_if(|c| matches!(c, '\'' | '"'));
        let mut word = String::new();
        loop {
            match (chars.next(), quote) {
                (None, Some(_)) => return Err(format!("the quote {first} is not closed")),
                (None, None) => break,
                (Some(c), Some(quote)) if c == quote => {
                    // SQL's way to write a quote.
                    if quote == '\'' && chars.next_if_eq(&quote).is_some() {
                        word.push(quote);
                        continue;
                    }
                    break;
                }
                (Some(c), None) if c.is_whitespace() => break,
                (Some('\\'), None | Some('"')) => match chars.next() {
                    Some('t') => word.push('\t'),
                    Some('n') => word.push('\n'),
                    Some('r') => word.push('\r'),
                    Some(c @ ('\\' | '"' | '\'')) => word.push(c),
                    Some(c) => word.extend(['\\', c]),
                    None => word.push('\\'),
                },
                (Some(c), _) => word.push(c),
            }
        }
        words.push(word);
    }
}

fn help(session: &mut Session, _: &[String]) -> Done {
    for Command { name, arguments, help, .. } in &COMMANDS {
        session.say(&format!("{:<28}{help}", format!(".{name} {arguments}")))?;
    }
    session.say("Anything else is SQL, and ends with a semicolon. Other databases go by their URI:")?;
    session.say("ATTACH 'file:copy.db?vfs=unix' AS copy;  -- a local one")?;
    session.say("ATTACH 'file:x?vfs=litestream&replica_url=s3://BUCKET/PATH&at=yesterday' AS old;")?;
    Ok(Flow::On)
}

fn quit(_: &mut Session, _: &[String]) -> Done {
    Ok(Flow::Quit)
}

fn switch(argument: &str) -> Result<bool, Failure> {
    parse_bool(argument).map_err(|_| Failure::Text(format!("{argument:?}: write on or off")))
}

fn echo(session: &mut Session, arguments: &[String]) -> Done {
    session.echo = switch(&arguments[0])?;
    Ok(Flow::On)
}

fn timer(session: &mut Session, arguments: &[String]) -> Done {
    session.timer = switch(&arguments[0])?;
    Ok(Flow::On)
}

fn headers(session: &mut Session, arguments: &[String]) -> Done {
    session.format.headers = Some(switch(&arguments[0])?);
    Ok(Flow::On)
}

fn null_value(session: &mut Session, arguments: &[String]) -> Done {
    session.format.null = Some(arguments[0].clone());
    Ok(Flow::On)
}

fn separator(session: &mut Session, arguments: &[String]) -> Done {
    session.format.separator = Some(arguments[0].clone());
    Ok(Flow::On)
}

fn mode(session: &mut Session, arguments: &[String]) -> Done {
    let name = arguments[0].to_ascii_lowercase();
    let names = Mode::ALL.map(Mode::name);
    let Some(mode) =
        Mode::ALL.into_iter().find(|mode| mode.name() == name || mode.name() == name.trim_end_matches('s'))
    else {
        let hint = match nearest(&name, names) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", names.join(", ")),
        };
        return usage(&format!("unknown mode {name}: {hint}"));
    };
    session.format.mode = Some(mode);
    // A separator belongs to the mode that it was set in.
    session.format.separator = None;
    Ok(Flow::On)
}

fn show(session: &mut Session, _: &[String]) -> Done {
    let on = |value| if value { "on" } else { "off" };
    let (format, terminal) = (&session.format, session.sink.is_terminal());
    let settings = [
        ("replica", session.place.url.clone()),
        ("buffer", session.buffer().unwrap_or_else(|| "none: reading only".to_owned())),
        ("mode", format.mode(terminal).name().to_owned()),
        ("headers", on(format.headers(terminal)).to_owned()),
        ("nullvalue", format!("{:?}", format.null(terminal))),
        ("separator", format!("{:?}", format.separator(terminal))),
        ("timer", on(session.timer).to_owned()),
        ("echo", on(session.echo).to_owned()),
        ("output", session.sink.name().to_owned()),
    ];
    for (name, value) in settings {
        session.say(&format!("{name:>10}: {value}"))?;
    }
    Ok(Flow::On)
}

fn version(session: &mut Session, _: &[String]) -> Done {
    let ours = env!("CARGO_PKG_VERSION");
    session.say(&format!("litestream {ours}, SQLite {}", rusqlite::version()))?;
    Ok(Flow::On)
}

fn output(session: &mut Session, arguments: &[String]) -> Done {
    match arguments.first() {
        Some(path) => open_output(session, path, false),
        None => {
            session.sink.close()?;
            Ok(Flow::On)
        }
    }
}

fn once(session: &mut Session, arguments: &[String]) -> Done {
    open_output(session, &arguments[0], true)
}

fn open_output(session: &mut Session, path: &str, once: bool) -> Done {
    let opened = session.sink.open(Path::new(path), once);
    opened.map_err(|error| Failure::Text(format!("cannot write to {path}: {error}")))?;
    Ok(Flow::On)
}

fn read(session: &mut Session, arguments: &[String]) -> Done {
    let path = &arguments[0];
    if session.depth >= DEPTH {
        return usage(&format!("{path}: scripts read each other more than {DEPTH} deep"));
    }
    let file = File::open(path).map_err(|error| Failure::Text(format!("cannot read {path}: {error}")))?;
    session.depth += 1;
    let flow = script::run_lines(session, BufReader::new(file), path);
    session.depth -= 1;
    Ok(flow)
}

fn txid(session: &mut Session, _: &[String]) -> Done {
    let txid = session.pragma("litestream_txid", None)?;
    session.say(&txid)?;
    Ok(Flow::On)
}

fn sync(session: &mut Session, _: &[String]) -> Done {
    let txid = session.pragma("litestream_sync", None)?;
    session.say(&txid)?;
    Ok(Flow::On)
}

fn lag(session: &mut Session, _: &[String]) -> Done {
    let lag = session.pragma("litestream_lag", None)?;
    session.say(&lag)?;
    Ok(Flow::On)
}

fn stats(session: &mut Session, _: &[String]) -> Done {
    let stats = session.pragma("litestream_stats", None)?;
    let width = stats.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in stats.lines().filter_map(|line| line.split_once(' ')) {
        session.say(&format!("{name:<width$}  {value}"))?;
    }
    Ok(Flow::On)
}

fn time(session: &mut Session, arguments: &[String]) -> Done {
    if let (Some(at), false) = (&session.place.at, arguments.is_empty()) {
        return usage(&format!("this shell was opened --at {at:?} and stays there: start one without it to travel"));
    }
    let time = session.pragma("litestream_time", arguments.first().map(String::as_str))?;
    let txid = session.pragma("litestream_txid", None)?;
    session.names_known = false;
    session.say(&format!("{time} {txid}"))?;
    Ok(Flow::On)
}

/// The schemas of the connection, and the files behind them.
pub(super) fn schemas(session: &Session) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = session.connection.prepare("PRAGMA database_list")?;
    statement.query_map([], |row| Ok((row.get(1)?, row.get::<_, Option<String>>(2)?.unwrap_or_default())))?.collect()
}

fn databases(session: &mut Session, _: &[String]) -> Done {
    for (name, file) in schemas(session)? {
        let place = if name == "main" { session.place.url.clone() } else { file };
        session.say(format!("{name}: {place}").trim_end())?;
    }
    Ok(Flow::On)
}

/// What a query finds in every schema's `sqlite_schema`.
fn in_schemas(
    session: &Session,
    columns: &str,
    condition: &str,
    pattern: Option<&String>,
) -> Result<Vec<(String, String)>, Failure> {
    let pattern = pattern.map_or("%", String::as_str);
    let mut found = Vec::new();
    for (schema, _) in schemas(session)? {
        let sql = format!("SELECT {columns} FROM {}.sqlite_schema WHERE {condition}", identifier(&schema));
        let mut statement = session.connection.prepare(&sql)?;
        let rows = statement.query_map([pattern], |row| row.get::<_, String>(0))?;
        for row in rows {
            found.push((schema.clone(), row?));
        }
    }
    Ok(found)
}

/// Names, those of other schemas with the schema in front.
fn qualified(found: Vec<(String, String)>) -> Vec<String> {
    let name = |(schema, name): (String, String)| if schema == "main" { name } else { format!("{schema}.{name}") };
    found.into_iter().map(name).collect()
}

fn tables(session: &mut Session, arguments: &[String]) -> Done {
    let condition =
        "type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name LIKE ?1 ORDER BY name";
    let names = qualified(in_schemas(session, "name", condition, arguments.first())?);
    list(session, &names)
}

fn indexes(session: &mut Session, arguments: &[String]) -> Done {
    let names =
        qualified(in_schemas(session, "name", "type = 'index' AND tbl_name LIKE ?1 ORDER BY name", arguments.first())?);
    list(session, &names)
}

/// Names, in columns for people and one a line for programs.
fn list(session: &mut Session, names: &[String]) -> Done {
    let width = names.iter().map(|name| name.width()).max().unwrap_or(0) + 2;
    let columns = if session.sink.is_terminal() { (WIDTH / width).max(1) } else { 1 };
    let height = names.len().div_ceil(columns);
    for line in 0..height {
        let mut text = String::new();
        for name in names.iter().skip(line).step_by(height.max(1)) {
            text.push_str(name);
            text.extend(std::iter::repeat_n(' ', width - name.width()));
        }
        session.say(text.trim_end())?;
    }
    Ok(Flow::On)
}

fn schema(session: &mut Session, arguments: &[String]) -> Done {
    let condition = "sql IS NOT NULL AND (name LIKE ?1 OR tbl_name LIKE ?1) ORDER BY rowid";
    for (_, sql) in in_schemas(session, "sql", condition, arguments.first())? {
        session.say(&format!("{sql};"))?;
    }
    Ok(Flow::On)
}

fn dump_sql(session: &mut Session, arguments: &[String]) -> Done {
    dump::run(session, arguments.first().map_or("%", String::as_str))?;
    Ok(Flow::On)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_held_together_by_quotes() {
        let of = |line: &str| words(line).unwrap();
        assert_eq!(of("mode  json "), ["mode", "json"]);
        assert_eq!(of(r#"separator "\t" '\t' \t"#), ["separator", "\t", "\\t", "\t"]);
        assert_eq!(of("nullvalue ''"), ["nullvalue", ""]);
        assert_eq!(of(r#"x 'it''s' "a \"b\"" c\d"#), ["x", "it's", "a \"b\"", "c\\d"]);
        assert!(words("x 'open").unwrap_err().contains("not closed"));
        assert!(of("").is_empty());
    }

    #[test]
    fn commands_are_found_by_unambiguous_beginnings() {
        let name = |given: &str| find(given).map(|command| command.name);
        assert_eq!(name("tables"), Ok("tables"));
        assert_eq!(name("TAB"), Ok("tables"));
        assert_eq!(name("q"), Ok("quit"));
        assert_eq!(name("header"), Ok("headers"));
        assert_eq!(name("time"), Ok("time"));
        assert_eq!(name("tabels").unwrap_err(), "unknown command .tabels: did you mean .tables?");
        assert_eq!(name("frobnicate").unwrap_err(), "unknown command .frobnicate: see .help");
        assert_eq!(name("").unwrap_err(), "unknown command .: see .help");
        assert!(name("s").unwrap_err().contains("could be"));
        assert!(COMMANDS.is_sorted_by_key(|command| command.name));
    }
}
