//! Where the replicas of the scenarios lie, and how both programs are called on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use litestream_fixtures::db::{checked_content_sha256, sha256_file};
use litestream_storage::config::ReplicaConfig;
use litestream_storage::{Level, RetryPolicy};
use ltx::Txid;
use serde::Deserialize;
use tempfile::TempDir;

use super::Arguments;
use super::live::Live;
use crate::litestream::{Litestream, Target, file_url, rfc3339};
use crate::minio::Minio;
use crate::process::{Process, run};
use crate::tools::{LITESTREAM, Tools};

const BUCKET: &str = "e2e";
/// A bucket of its own for each replica that lies at a bucket's root.
pub(super) const ROOT_BUCKET: &str = "e2e-root";

/// What a replica lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Backend {
    S3,
    File,
}

/// The programs, the object store, a folder for all else, and what was recorded so far.
#[derive(Debug)]
pub(super) struct World {
    pub(super) tools: Tools,
    litestream: Litestream,
    ours: PathBuf,
    store: Store,
    /// How long the scenarios that read for a time do so.
    pub(super) reading: Duration,
    work: TempDir,
    outputs: AtomicU32,
    /// One recording for each backend, made when the first scenario wants it.
    pub(super) live: BTreeMap<Backend, Live>,
    written: Vec<String>,
}

/// An S3 service.
#[derive(Debug)]
struct Store {
    endpoint: String,
    access_key_id: String,
    secret_access_key: String,
    bucket: String,
    folder: String,
    own: Option<Minio>,
}

/// One LTX file as a listing names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct File {
    pub(super) level: u8,
    min_txid: String,
    max_txid: String,
    pub(super) size: u64,
}

impl File {
    pub(super) fn begin(&self) -> Result<u64> {
        txid(&self.min_txid)
    }

    pub(super) fn end(&self) -> Result<u64> {
        txid(&self.max_txid)
    }

    /// Its path below a replica's folder.
    pub(super) fn path(&self) -> String {
        format!("ltx/{}/{}-{}.ltx", self.level, self.min_txid, self.max_txid)
    }
}

/// What our compaction reports.
#[derive(Debug, Deserialize)]
struct Step {
    action: String,
    #[serde(flatten)]
    file: File,
}

fn txid(text: &str) -> Result<u64> {
    text.parse::<Txid>().map(|txid| txid.0).ok().with_context(|| format!("{text} is no TXID"))
}

/// What our restore reports.
#[derive(Debug, Deserialize)]
struct Report {
    txid: String,
    timestamp: String,
}

/// A restored database: whole, checked by SQLite, and removed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Restored {
    /// Of the whole file.
    pub(super) bytes: String,
    /// Of what it holds.
    pub(super) content: String,
}

/// The same from ours, with what it says.
#[derive(Debug)]
pub(super) struct OurRestored {
    pub(super) database: Restored,
    pub(super) txid: u64,
    pub(super) time_ms: u64,
}

impl World {
    pub(super) fn new(arguments: &Arguments) -> Result<World> {
        let tools = Tools::new()?;
        let litestream = tools.litestream(LITESTREAM)?;
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("debug").join("litestream");
        let store = Store::new(arguments, &tools)?;
        let work = tempfile::Builder::new().prefix("e2e-").tempdir()?;
        let (outputs, live, written) = (AtomicU32::new(0), BTreeMap::new(), Vec::new());
        let reading = Duration::from_secs(arguments.seconds);
        Ok(World { tools, litestream, ours, store, reading, work, outputs, live, written })
    }

    /// A new, empty folder.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.work.path().join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// The folder for all else.
    pub(super) fn work(&self) -> &Path {
        self.work.path()
    }

    /// A path where no file is yet.
    pub(super) fn output(&self) -> PathBuf {
        let number = self.outputs.fetch_add(1, Ordering::Relaxed);
        self.work.path().join(format!("restored-{number}.db"))
    }

    /// The URL of a replica that is not there yet.
    pub(super) fn new_replica(&mut self, backend: Backend, name: &str) -> String {
        match backend {
            Backend::File => file_url(&self.work.path().join(format!("{name}-replica"))),
            Backend::S3 => {
                let Store { endpoint, bucket, folder, .. } = &self.store;
                let url = format!("s3://{bucket}/{folder}{name}?endpoint={endpoint}&forcePathStyle=true");
                self.written.push(url.clone());
                url
            }
        }
    }

    /// The URL of a bucket of our own without a path, to write to with the slash and to read from without. `None` in
    /// somebody else's store.
    pub(super) fn bucket_root(&self) -> Option<(String, String)> {
        self.store.own.as_ref()?;
        let url = |slash| format!("s3://{ROOT_BUCKET}{slash}?endpoint={}&forcePathStyle=true", self.store.endpoint);
        Some((url("/"), url("")))
    }

    /// A replica as a database: its URL, with the store's keys, as a `file:` URI of the VFS.
    pub(super) fn vfs_uri(&self, url: &str) -> String {
        let Store { access_key_id, secret_access_key, .. } = &self.store;
        let url = format!("{url}&accessKeyId={access_key_id}&secretAccessKey={secret_access_key}");
        let escape = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let url: String = url.bytes().map(escape).collect();
        format!("file:replica.db?vfs=litestream&replica_url={url}")
    }

    /// Starts real Litestream's daemon for one database, with the intervals of `global`, YAML lines.
    pub(super) fn replicate(&self, database: &Path, url: &str, global: &str) -> Result<Process> {
        let config = database.with_extension("yml");
        let yaml = format!(
            "{}\ndbs:\n  - path: {}\n    monitor-interval: 20ms\n    min-checkpoint-page-count: 200\n    replica:\n      \
             url: {url}\n      sync-interval: 20ms\n",
            global.trim_end(),
            database.display()
        );
        fs::write(&config, yaml)?;
        Process::spawn("litestream replicate", self.real().arg("replicate").arg("-config").arg(config))
    }

    /// One sync of a database by real Litestream.
    pub(super) fn replicate_once(&self, database: &Path, url: &str) -> Result<()> {
        run("litestream replicate -once", self.real().args(["replicate", "-once"]).arg(database).arg(url)).map(drop)
    }

    /// What lies in a replica, by real Litestream's word.
    pub(super) fn list(&self, url: &str) -> Result<Vec<File>> {
        let json = run("litestream ltx", self.real().args(["ltx", "-json", "-level", "all", url]))?;
        let mut files: Vec<File> = serde_json::from_str(&json).context("litestream ltx printed no list")?;
        files.sort();
        Ok(files)
    }

    /// What lies in a replica, by ours.
    pub(super) fn our_list(&self, url: &str) -> Result<Vec<File>> {
        let json = run("our ltx", self.our().args(["ltx", "--json", url]))?;
        let mut files: Vec<File> = serde_json::from_str(&json).context("our ltx printed no list")?;
        files.sort();
        Ok(files)
    }

    /// Our compaction, with nothing but the replica's URL. Returns what it made.
    pub(super) fn compact(&self, url: &str, flags: &[&str]) -> Result<Vec<File>> {
        let json = run("our compact", self.our().args(["compact", "--json"]).args(flags).arg(url))?;
        let steps: Vec<Step> = serde_json::from_str(&json).context("our compact printed no list")?;
        let made = steps.into_iter().filter(|step| step.action != "delete");
        let mut files: Vec<File> = made.map(|step| step.file).collect();
        files.sort();
        Ok(files)
    }

    /// Real Litestream's restore to a path.
    pub(super) fn restore_real_to(&self, url: &str, target: &Target, output: &Path) -> Result<()> {
        let mut command = self.real();
        command.arg("restore").arg("-o").arg(output);
        ask(&mut command, "-", target)?;
        run(&format!("litestream restore {target:?}"), command.arg(url)).map(drop)
    }

    /// Real Litestream's restore.
    pub(super) fn restore_real(&self, url: &str, target: &Target) -> Result<Restored> {
        let output = self.output();
        self.restore_real_to(url, target, &output)?;
        take(&output).with_context(|| format!("what litestream restored for {target:?}"))
    }

    /// Ours, with a full integrity check, to a path.
    pub(super) fn restore_ours_to(&self, url: &str, target: &Target, output: &Path) -> Result<(u64, u64)> {
        let mut command = self.our();
        command.args(["restore", "--json", "--integrity-check", "full", "-o"]).arg(output);
        ask(&mut command, "--", target)?;
        let json = run(&format!("our restore {target:?}"), command.arg(url))?;
        let report: Report = serde_json::from_str(&json).context("our restore printed no report")?;
        let time: jiff::Timestamp = report.timestamp.parse().context("our restore reported no time")?;
        Ok((txid(&report.txid)?, u64::try_from(time.as_millisecond())?))
    }

    /// Our restore.
    pub(super) fn restore_ours(&self, url: &str, target: &Target) -> Result<OurRestored> {
        let output = self.output();
        let (txid, time_ms) = self.restore_ours_to(url, target, &output)?;
        let database = take(&output).with_context(|| format!("what ours restored for {target:?}"))?;
        if let Target::Txid(asked) = target {
            ensure!(txid == *asked, "asked for TXID {asked:x}, our restore reports {txid:x}");
        }
        Ok(OurRestored { database, txid, time_ms })
    }

    /// Both restores, which must be equal to the byte.
    pub(super) fn restore_both(&self, url: &str, target: &Target) -> Result<OurRestored> {
        let (ours, real) = std::thread::scope(|scope| {
            let real = scope.spawn(|| self.restore_real(url, target));
            (self.restore_ours(url, target), real.join())
        });
        let real = real.map_err(|_| anyhow!("the restoring thread panicked"))?;
        let (ours, real) = (ours?, real?);
        ensure!(
            ours.database.bytes == real.bytes,
            "{target:?}: ours (TXID {:x}) and litestream restored different bytes; equal content: {}",
            ours.txid,
            ours.database.content == real.content
        );
        Ok(ours)
    }

    /// Removes what lies in somebody else's store. Our own goes as a whole.
    pub(super) fn clean_up(&mut self) -> Result<()> {
        if self.store.own.is_some() {
            return Ok(());
        }
        let urls = std::mem::take(&mut self.written);
        tokio::runtime::Runtime::new()?.block_on(async {
            for url in urls {
                let mut config = ReplicaConfig::from_url(&url)?;
                config.set("access-key-id", &self.store.access_key_id)?;
                config.set("secret-access-key", &self.store.secret_access_key)?;
                let replica = litestream_storage::open(&config, RetryPolicy::default()).await?;
                for level in (0..=9).filter_map(Level::new) {
                    let files = replica.level(level, Txid(0)).await?;
                    replica.delete(&files).await?;
                }
            }
            Ok(())
        })
    }

    /// Gives any command the keys of the store.
    pub(super) fn authorize(&self, command: &mut Command) {
        self.store.authorize(command);
    }

    fn real(&self) -> Command {
        let mut command = self.litestream.command();
        self.store.authorize(&mut command);
        command
    }

    /// Our program, with the keys of the store.
    pub(super) fn our(&self) -> Command {
        let mut command = Command::new(&self.ours);
        self.store.authorize(&mut command);
        command
    }
}

impl Store {
    fn new(arguments: &Arguments, tools: &Tools) -> Result<Store> {
        let Arguments { endpoint, access_key_id, secret_access_key, bucket, .. } = arguments;
        if let (Some(endpoint), Some(access_key_id), Some(secret_access_key), Some(bucket)) =
            (endpoint, access_key_id, secret_access_key, bucket)
        {
            return Ok(Store {
                endpoint: endpoint.clone(),
                access_key_id: access_key_id.clone(),
                secret_access_key: secret_access_key.clone(),
                bucket: bucket.clone(),
                folder: format!("litestream-e2e-{:016x}/", fastrand::u64(..)),
                own: None,
            });
        }
        let minio = Minio::start(&tools.minio()?, &[BUCKET, ROOT_BUCKET])?;
        Ok(Store {
            endpoint: minio.endpoint(),
            access_key_id: minio.access_key_id().to_owned(),
            secret_access_key: minio.secret_access_key().to_owned(),
            bucket: BUCKET.to_owned(),
            folder: String::new(),
            own: Some(minio),
        })
    }

    /// The keys, in the variables that both Litestreams read, and nothing of the caller's that could mislead them.
    fn authorize(&self, command: &mut Command) {
        command
            .env_remove("LITESTREAM_CONFIG")
            .env_remove("LOG_LEVEL")
            .env("LITESTREAM_ACCESS_KEY_ID", &self.access_key_id)
            .env("LITESTREAM_SECRET_ACCESS_KEY", &self.secret_access_key);
    }
}

/// Adds what a restore is asked for. Litestream's flags have one dash, ours two.
fn ask(command: &mut Command, dashes: &str, target: &Target) -> Result<()> {
    match target {
        Target::Latest => {}
        Target::Txid(txid) => {
            command.arg(format!("{dashes}txid")).arg(format!("{txid:016x}"));
        }
        Target::Time(at_ms) => {
            command.arg(format!("{dashes}timestamp")).arg(rfc3339(*at_ms)?);
        }
        Target::Index { .. } => bail!("Litestream 0.5 knows no generations"),
    }
    Ok(())
}

/// Hashes a restored database, and removes it.
fn take(path: &Path) -> Result<Restored> {
    let bytes = sha256_file(path)?;
    let content = checked_content_sha256(path)?;
    fs::remove_file(path)?;
    Ok(Restored { bytes, content })
}
