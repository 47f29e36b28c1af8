//! Queries over a replica in a store that fails: each is right, or ends with an error in bounded time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use litestream_fixtures::s3::{Faults, S3Options, S3Server};
use rusqlite::{Connection, OpenFlags};

use super::{FAULTY, Tally};
use crate::bench::subject;

/// How many queries one connection makes; each connection opens anew, with faults of another seed.
const PER_CONNECTION: u32 = 20;
/// How long one query, or one open, may take.
const SLOWEST: Duration = Duration::from_secs(60);

pub(super) fn queries(count: u32, seed: u64, tally: &mut Tally) -> Result<()> {
    ensure!(litestream_vfs::register(rusqlite::ffi::sqlite3_auto_extension), "cannot register the VFS");
    drop(Connection::open_in_memory()?);
    let folder = subject::scratch()?;
    let server = S3Server::start(S3Options::default())?;
    let source = folder.path().join("source.db");
    tokio::runtime::Runtime::new()?.block_on(async {
        let replica = subject::replica_on(&server).await?;
        subject::small_files(&source, &replica).await
    })?;
    let truth = Connection::open(&source)?;
    let rows: u32 = truth.query_row("SELECT max(id) FROM t0", [], |row| row.get(0))?;
    let keys = format!("&accessKeyId={}&secretAccessKey={}", server.access_key(), server.secret_key());
    let url = (subject::s3_url(&server) + &keys).replace('&', "%26").replace('?', "%3F").replace('=', "%3D");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut right, mut errors, mut slowest) = (0, 0, Duration::ZERO);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    for number in 0..count / PER_CONNECTION {
        let rate = FAULTY / 3.0;
        let stall_for = Duration::from_secs(60);
        let seed = seed.wrapping_mul(1_000).wrapping_add(u64::from(number));
        server.set_faults(Faults {
            rate_503: rate,
            rate_cut: rate,
            rate_stall: rate,
            stall_for,
            seed,
            ..Faults::default()
        });
        let start = Instant::now();
        let opened = Connection::open_with_flags(format!("file:x.db?vfs=litestream&replica_url={url}"), flags);
        slowest = slowest.max(start.elapsed());
        let Ok(connection) = opened else {
            errors += PER_CONNECTION;
            continue;
        };
        for _ in 0..PER_CONNECTION {
            let (from, kind) = (random.u32(1..=rows), random.u32(0..3));
            let sql = match kind {
                0 => format!("SELECT key || number FROM t0 WHERE id = {from}"),
                1 => format!(
                    "SELECT count(*) || sum(number) || sum(length(body)) FROM t0 WHERE id BETWEEN {from} AND {from} + 200"
                ),
                _ => format!(
                    "SELECT group_concat(id) FROM (SELECT id FROM t0 WHERE key > '{:x}' ORDER BY key LIMIT 20)",
                    random.u8(..)
                ),
            };
            let expected: Option<String> = truth.query_row(&sql, [], |row| row.get(0)).with_context(|| sql.clone())?;
            let start = Instant::now();
            let found = connection.query_row(&sql, [], |row| row.get::<_, Option<String>>(0));
            let time = start.elapsed();
            slowest = slowest.max(time);
            let outcome = match found {
                Ok(found) if found == expected => {
                    right += 1;
                    Ok(())
                }
                Ok(found) => Err(anyhow::anyhow!("{found:?} instead of {expected:?}")),
                Err(error) => {
                    errors += 1;
                    let why: String = connection.query_row("SELECT litestream_error()", [], |row| row.get(0))?;
                    if why.is_empty() { Err(error.into()) } else { Ok(()) }
                }
            };
            let outcome = outcome.and_then(|()| {
                ensure!(time <= SLOWEST, "took {:.1} s", time.as_secs_f64());
                Ok(())
            });
            tally.add(&sql, outcome);
        }
    }
    println!(
        "queries under faults: {right} right, {errors} ended with an error; slowest {:.1} s",
        slowest.as_secs_f64()
    );
    ensure!(right > count / 2, "only {right} of {count} queries were answered");
    Ok(())
}
