//! `.dump`: a database as SQL, in the form that the sqlite3 shell writes and reads.

use super::session::{Failure, Session};
use super::values::{identifier, quote};

/// Writes what tables that are LIKE `pattern` hold, and all that belongs to them, as it is at one moment.
pub(super) fn run(session: &mut Session, pattern: &str) -> Result<(), Failure> {
    // A transaction may be going on already.
    session.connection.execute_batch("SAVEPOINT litestream_dump")?;
    let written = write(session, pattern);
    let released = session.connection.execute_batch("RELEASE litestream_dump");
    written?;
    Ok(released?)
}

fn write(session: &mut Session, pattern: &str) -> Result<(), Failure> {
    let condition = "sql IS NOT NULL AND tbl_name LIKE ?1";
    let tables = entries(
        session,
        &format!("type = 'table' AND {condition} ORDER BY tbl_name = 'sqlite_sequence', rowid"),
        pattern,
    )?;
    let others = entries(
        session,
        &format!("type IN ('index', 'trigger', 'view') AND {condition} ORDER BY type COLLATE NOCASE DESC, rowid"),
        pattern,
    )?;
    session.say("PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;")?;
    let mut schema_is_open = false;
    for (name, sql) in tables {
        match name.as_str() {
            "sqlite_sequence" => session.say("DELETE FROM sqlite_sequence;")?,
            "sqlite_stat1" | "sqlite_stat4" => session.say("ANALYZE sqlite_schema;")?,
            _ if name.starts_with("sqlite_") => continue,
            // A virtual table is registered only: its shadow tables are tables of their own, and must not be made twice.
            _ if begins(&sql, "CREATE VIRTUAL TABLE") => {
                if !std::mem::replace(&mut schema_is_open, true) {
                    session.say("PRAGMA writable_schema=ON;")?;
                }
                let (name, sql) = (quote(&name), quote(&sql));
                session.say(&format!(
                    "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES('table',{name},{name},0,{sql});"
                ))?;
                continue;
            }
            // SQLite itself names shadow tables in quotes, and may have made them by then.
            _ if begins(&sql, "CREATE TABLE '") || begins(&sql, "CREATE TABLE \"") => {
                session.say(&format!("CREATE TABLE IF NOT EXISTS {};", &sql["CREATE TABLE ".len()..]))?;
            }
            _ => session.say(&format!("{sql};"))?,
        }
        rows(session, &name)?;
    }
    for (_, sql) in others {
        session.say(&format!("{sql};"))?;
    }
    if schema_is_open {
        session.say("PRAGMA writable_schema=OFF;")?;
    }
    session.say("COMMIT;")
}

/// Names and SQL from the main schema.
fn entries(session: &Session, condition: &str, pattern: &str) -> Result<Vec<(String, String)>, Failure> {
    let sql = format!("SELECT name, sql FROM main.sqlite_schema WHERE {condition}");
    let mut statement = session.connection.prepare(&sql)?;
    let rows = statement.query_map([pattern], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn begins(sql: &str, with: &str) -> bool {
    sql.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
}

/// A table's rows as INSERTs, one by one as they come.
fn rows(session: &mut Session, table: &str) -> Result<(), Failure> {
    let mut columns = Vec::new();
    let mut all = true;
    {
        let mut statement = session.connection.prepare("SELECT name, hidden FROM pragma_table_xinfo(?1, 'main')")?;
        let mut found = statement.query([table])?;
        while let Some(row) = found.next()? {
            // Generated columns cannot be inserted.
            if row.get::<_, i64>(1)? == 0 {
                columns.push(identifier(&row.get::<_, String>(0)?));
            } else {
                all = false;
            }
        }
    }
    let columns = columns.join(",");
    let into = if all { String::new() } else { format!("({columns})") };
    let start = format!("INSERT INTO {}{into} VALUES(", identifier(table));
    let mut statement = session.connection.prepare(&format!("SELECT {columns} FROM main.{}", identifier(table)))?;
    let count = statement.column_count();
    let mut found = statement.raw_query();
    let mut line = String::new();
    while let Some(row) = found.next()? {
        line.clear();
        line.push_str(&start);
        for column in 0..count {
            if column > 0 {
                line.push(',');
            }
            line.push_str(&session.values.literal(row.get_ref(column)?));
        }
        line.push_str(");");
        session.sink.line(&line)?;
    }
    Ok(())
}
