//! Where the replicas lie: in real MinIO, or in a server in this process that can fail and go away.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use litestream_fixtures::s3::{Down, Faults, S3Options, S3Server};

use crate::litestream::Litestream;
use crate::minio::Minio;
use crate::process::run;
use crate::tools::{LITESTREAM, Tools};

const BUCKET: &str = "bkt";

pub(super) enum Store {
    Minio(Minio),
    Failing(Box<S3Server>),
}

impl Store {
    pub(super) fn start(tools: &Tools, failing: bool) -> Result<Self> {
        if !failing {
            return Ok(Self::Minio(Minio::start(&tools.minio()?, &[BUCKET])?));
        }
        let server = S3Server::start(S3Options::default())?;
        server.create_bucket(BUCKET);
        server.set_latency(Duration::from_millis(10));
        Ok(Self::Failing(Box::new(server)))
    }

    pub(super) fn url(&self, name: &str) -> String {
        let endpoint = match self {
            Self::Minio(minio) => minio.endpoint(),
            Self::Failing(server) => server.endpoint(),
        };
        format!("s3://{BUCKET}/{name}?endpoint={endpoint}&forcePathStyle=true")
    }

    pub(super) fn authorize(&self, command: &mut Command) {
        match self {
            Self::Minio(minio) => minio.authorize(command),
            Self::Failing(server) => crate::bench::subject::authorize(command, server),
        }
    }

    /// Has a share of requests go wrong, or none.
    pub(super) fn fail(&self, rate: f64, seed: u64) {
        if let Self::Failing(server) = self {
            server.set_faults(Faults {
                rate_503: rate / 3.0,
                rate_cut: rate / 3.0,
                rate_stall: rate / 3.0,
                stall_for: Duration::from_secs(3),
                seed,
                ..Faults::default()
            });
        }
    }

    pub(super) fn set_down(&self, down: Option<Down>) -> Result<()> {
        match self {
            Self::Minio(_) => Ok(()),
            Self::Failing(server) => Ok(server.set_down(down)?),
        }
    }
}

/// Both programs that restore.
pub(super) struct Restorers {
    pub(super) ours: PathBuf,
    pub(super) real: Litestream,
}

impl Restorers {
    pub(super) fn new(ours: &Path, tools: &Tools) -> Result<Self> {
        Ok(Self { ours: ours.to_owned(), real: tools.litestream(LITESTREAM)? })
    }

    /// Ours, checked by SQLite before it is there. Returns what it says.
    pub(super) fn ours(&self, store: &Store, url: &str, output: &Path) -> Result<serde_json::Value> {
        let mut command = crate::bench::subject::our_restore(&self.ours);
        store.authorize(&mut command);
        command.args(["--json", "--integrity-check", "full", "-o"]).arg(output).arg(url);
        Ok(serde_json::from_str(&run("our restore", &mut command)?)?)
    }

    pub(super) fn real(&self, store: &Store, url: &str, output: &Path) -> Result<()> {
        let mut command = self.real.command();
        command.env_remove("LITESTREAM_CONFIG");
        store.authorize(&mut command);
        command.arg("restore").arg("-o").arg(output).arg(url);
        run("litestream restore", &mut command).map(drop)
    }
}
