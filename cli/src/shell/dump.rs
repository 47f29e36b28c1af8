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
            "sqlite_stat1" => session.say("ANALYZE sqlite_schema;")?,
            // Not every SQLite has the other statistics; ANALYZE makes them anew.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rusqlite::Connection;

    use super::super::session::Place;
    use super::super::values::Values;
    use super::*;

    /// Everything that is hard to write down.
    const HARD: &str = "
        CREATE TABLE plain(id INTEGER PRIMARY KEY AUTOINCREMENT, value);
        INSERT INTO plain(value) VALUES (NULL), (-9223372036854775808), (0.1 + 0.2), (9e999), ('it''s' || char(10) || ';'),
            (x'00ff'), (CAST(x'610062' AS TEXT)), (CAST(x'ff' AS TEXT)), (''), (x''), ('日本');
        DELETE FROM plain WHERE id = 1;
        CREATE TABLE \"a \"\"b\"\"\"(\"select\" TEXT, twice GENERATED ALWAYS AS (\"select\" || \"select\"), third INT DEFAULT 3);
        INSERT INTO \"a \"\"b\"\"\"(\"select\") VALUES ('x'), ('y');
        CREATE TABLE rowless(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
        INSERT INTO rowless VALUES ('b', 1), ('a', 2);
        CREATE INDEX by_value ON plain(value) WHERE value IS NOT NULL;
        CREATE VIEW seen AS SELECT * FROM plain;
        CREATE TRIGGER noted AFTER INSERT ON rowless BEGIN INSERT INTO plain(value) VALUES (new.k); END;
        CREATE VIRTUAL TABLE words USING fts5(text);
        INSERT INTO words VALUES ('find me'), ('and not me');
        ANALYZE;";

    fn dumped(connection: Connection, pattern: &str) -> String {
        let place = Place { url: String::new(), at: None };
        let values = Values::new(Connection::open_in_memory().unwrap());
        let mut session = Session::new(connection, values, place, Arc::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        session.sink.open(file.path(), false).unwrap();
        assert!(run(&mut session, pattern).is_ok());
        session.sink.close().unwrap();
        std::fs::read_to_string(file.path()).unwrap()
    }

    /// What a query gives, value by value with its type.
    fn rows(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        let count = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..count).map(|at| Ok(format!("{:?}", row.get_ref(at)?))).collect();
        let rows: rusqlite::Result<Vec<Vec<String>>> = statement.query_map([], row).unwrap().collect();
        rows.unwrap().concat()
    }

    #[test]
    fn a_dump_makes_the_same_database() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.db");
        let source = || {
            let source = Connection::open_in_memory().unwrap();
            source.execute_batch(HARD).unwrap();
            source
        };
        let sql = dumped(source(), "%");
        Connection::open(&path).unwrap().execute_batch(&sql).unwrap();
        let (source, copy) = (source(), Connection::open(&path).unwrap());
        for query in [
            "SELECT type, name, sql FROM sqlite_schema WHERE sql NOT LIKE 'CREATE TABLE%' ORDER BY name",
            "SELECT name FROM sqlite_schema ORDER BY name",
            "SELECT *, typeof(value) FROM plain",
            "SELECT * FROM \"a \"\"b\"\"\"",
            "SELECT * FROM rowless",
            "SELECT * FROM sqlite_sequence",
            "SELECT * FROM sqlite_stat1 ORDER BY 1, 2",
            "SELECT * FROM words WHERE words MATCH 'find'",
            "PRAGMA integrity_check",
        ] {
            assert_eq!(rows(&copy, query), rows(&source, query), "{query}");
        }
    }

    #[test]
    fn a_pattern_chooses_tables_and_what_belongs_to_them() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(HARD).unwrap();
        let sql = dumped(connection, "rowl%");
        let expected = "PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\nCREATE TABLE rowless(k TEXT PRIMARY KEY, v) WITHOUT ROWID;\n\
                        INSERT INTO \"rowless\" VALUES('a',2);\nINSERT INTO \"rowless\" VALUES('b',1);\nCREATE TRIGGER noted";
        assert!(sql.starts_with(expected), "{sql}");
        assert!(!sql.contains("plain(id"), "{sql}");
    }
}
