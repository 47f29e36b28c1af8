//! A MinIO server of our own: loopback only, free ports, an empty temporary folder, gone when dropped.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::Process;

/// A running MinIO server.
#[derive(Debug)]
pub(crate) struct Minio {
    process: Process,
    address: SocketAddr,
    // Dropped after the process, which writes there.
    _data: TempDir,
}

impl Minio {
    /// How long it may take to answer. It needs a second or two; a busy machine more.
    const READY: Duration = Duration::from_secs(60);

    /// Starts the program at `binary` with these buckets, and waits until it is ready.
    pub(crate) fn start(binary: &Path, buckets: &[&str]) -> Result<Minio> {
        // Between finding a free port and MinIO's taking it, somebody else may: then MinIO ends at once.
        let mut attempts = 3;
        loop {
            match Minio::start_once(binary, buckets) {
                Ok(minio) => return Ok(minio),
                Err(error) if attempts == 1 => return Err(error),
                Err(_) => attempts -= 1,
            }
        }
    }

    /// `http://127.0.0.1:PORT`, for path-style requests.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn access_key_id(&self) -> &'static str {
        "fixture"
    }

    pub(crate) fn secret_access_key(&self) -> &'static str {
        "fixture-secret"
    }

    /// What real Litestream and ours take, for `PATH` in `BUCKET`.
    pub(crate) fn url(&self, bucket: &str, path: &str) -> String {
        format!("s3://{bucket}/{path}?endpoint={}&forcePathStyle=true", self.endpoint())
    }

    /// Gives a command the keys, in the variables that both Litestreams read.
    pub(crate) fn authorize(&self, command: &mut Command) {
        command
            .env("LITESTREAM_ACCESS_KEY_ID", self.access_key_id())
            .env("LITESTREAM_SECRET_ACCESS_KEY", self.secret_access_key());
    }

    /// Process id, for measuring it.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    fn start_once(binary: &Path, buckets: &[&str]) -> Result<Minio> {
        let data = tempfile::tempdir()?;
        for bucket in buckets {
            // A folder at the top of MinIO's data is a bucket.
            fs::create_dir(data.path().join(bucket))?;
        }
        let (address, console) = free_addresses()?;
        let mut command = Command::new(binary);
        command
            .arg("server")
            .arg(data.path())
            .args(["--address", &address.to_string(), "--console-address", &console.to_string(), "--quiet"])
            .env("MINIO_ROOT_USER", "fixture")
            .env("MINIO_ROOT_PASSWORD", "fixture-secret")
            // Never asks the network for a newer version of itself.
            .env("MINIO_UPDATE", "off")
            .env("MINIO_BROWSER", "off");
        let mut process = Process::spawn("minio", &mut command)?;
        process.wait_until("MinIO to be live", Minio::READY, || Ok(is_live(address).then_some(())))?;
        Ok(Minio { process, address, _data: data })
    }
}

/// Two ports of the loopback interface that nobody listens on.
fn free_addresses() -> Result<(SocketAddr, SocketAddr)> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback interface");
    // Both are held while the second is chosen, so they differ.
    let (first, second) = (listen()?, listen()?);
    Ok((first.local_addr()?, second.local_addr()?))
}

/// Whether `GET /minio/health/live` answers 200.
fn is_live(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let timeout = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(b"GET /minio/health/live HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(&status[8..] == b" 200")
    };
    ask().unwrap_or(false)
}
