//! The programs that load our SQLite extension: the system's sqlite3 and Python, apsw, Node, Go; and valgrind.
//!
//! The system's own come from its packages where they are missing and this is Debian; the others go under `target/tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Tools, on_path};
use crate::process::{converse, run};

/// The apsw whose own SQLite is tested.
const APSW: &str = "3.54.1.0";
/// The Node of npm's `node` package, the oldest line that has `node:sqlite` without a flag.
const NODE: &str = "22.23.3";
/// Since then `node:sqlite` loads extensions.
const NODE_OLDEST: (u32, u32) = (22, 13);
const GO_BUILD: Duration = Duration::from_secs(600);

impl Tools {
    /// The system's `sqlite3` program.
    pub(crate) fn sqlite3(&self) -> Result<PathBuf> {
        system_program("sqlite3", "sqlite3")
    }

    /// The system's `valgrind`.
    pub(crate) fn valgrind(&self) -> Result<PathBuf> {
        system_program("valgrind", "valgrind")
    }

    /// The `go` program.
    pub(crate) fn go(&self) -> Result<PathBuf> {
        on_path("go").context("there is no Go on PATH: install Go 1.22 or later")
    }

    /// A Go program, built from `source` where `program` says. Go keeps what it compiled; a second time is short.
    ///
    /// # Errors
    /// There is no Go, no network or no C compiler, or it does not compile.
    pub(crate) fn build_go(&self, source: &Path, program: &Path) -> Result<()> {
        let mut command = Command::new(self.go()?);
        command.args(["build", "-o"]).arg(program).arg(".").current_dir(source).env("CGO_ENABLED", "1");
        let said = converse("go build", &mut command, "", GO_BUILD)?;
        ensure!(said.status.success(), "go build failed (is there a C compiler, and a network?):\n{}", said.stderr);
        Ok(())
    }

    /// The system's Python, whose sqlite3 module loads extensions (those of version managers often do not).
    pub(crate) fn system_python(&self) -> Result<PathBuf> {
        let fit = |python: &PathBuf| {
            let asks = "import sqlite3; sqlite3.connect(':memory:').enable_load_extension(True)";
            run("python3", Command::new(python).args(["-c", asks])).is_ok()
        };
        let candidates = || [Some(PathBuf::from("/usr/bin/python3")), on_path("python3")].into_iter().flatten();
        if let Some(python) = candidates().find(fit) {
            return Ok(python);
        }
        install_package("python3")?;
        candidates().find(fit).context("no Python here has a sqlite3 module that loads extensions")
    }

    /// That Python with apsw, in an environment of its own.
    pub(crate) fn python_with_apsw(&self) -> Result<PathBuf> {
        let folder = self.dir.join(format!("apsw-{APSW}"));
        let python = folder.join("bin").join("python");
        if python.is_file() {
            return Ok(python);
        }
        let system = self.system_python()?;
        if run("python3", Command::new(&system).args(["-c", "import ensurepip, venv"])).is_err() {
            install_package("python3-venv")?;
        }
        eprintln!("xtask: installing apsw {APSW} into target/tools");
        // An environment knows where it lies, so it is made where it stays, and marked complete by its last file.
        let building = tempfile::Builder::new().prefix("apsw-").tempdir_in(&self.dir)?;
        run("python3 -m venv", Command::new(&system).args(["-m", "venv", "--copies"]).arg(building.path()))?;
        let mut pip = Command::new(building.path().join("bin").join("python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]);
        run(&format!("pip install apsw=={APSW}"), pip.arg(format!("apsw=={APSW}")))
            .with_context(|| format!("cannot install apsw {APSW}; is there a network?"))?;
        // `python` itself finds its packages beside itself, wherever it lies.
        appear(building, &folder)?;
        Ok(python)
    }

    /// A Node that is new enough: the one on PATH, or npm's.
    pub(crate) fn node(&self) -> Result<PathBuf> {
        if let Some(node) = on_path("node").filter(|node| node_version(node).is_some_and(|is| is >= NODE_OLDEST)) {
            return Ok(node);
        }
        let folder = self.dir.join(format!("node-{NODE}"));
        let node = folder.join("node_modules").join("node").join("bin").join("node");
        if node.is_file() {
            return Ok(node);
        }
        let (major, minor) = NODE_OLDEST;
        let Some(npm) = on_path("npm") else {
            bail!("no Node {major}.{minor} or later on PATH, and no npm to install one: install either");
        };
        eprintln!("xtask: installing Node {NODE} into target/tools");
        let building = tempfile::Builder::new().prefix("node-").tempdir_in(&self.dir)?;
        let mut command = Command::new(npm);
        command.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(building.path());
        run(&format!("npm install node@{NODE}"), command.arg(format!("node@{NODE}")))
            .with_context(|| format!("cannot install Node {NODE}; is there a network?"))?;
        appear(building, &folder)?;
        if node_version(&node).is_none() {
            bail!("npm's node {NODE} left no program that runs at {}", node.display());
        }
        Ok(node)
    }
}

/// Gives a folder its name, once it is complete. Where another run was faster, its folder stays.
fn appear(building: tempfile::TempDir, folder: &Path) -> Result<()> {
    match fs::rename(building.path(), folder) {
        Ok(()) => {
            // It is no longer temporary.
            let _ = building.keep();
            Ok(())
        }
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot put {} in place", folder.display())),
    }
}

fn node_version(node: &Path) -> Option<(u32, u32)> {
    let said = run("node --version", Command::new(node).arg("--version")).ok()?;
    let mut numbers = said.trim().strip_prefix('v')?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn system_program(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = system_path(name) {
        return Ok(path);
    }
    install_package(package)?;
    system_path(name).with_context(|| format!("{package} is installed, but brought no {name}"))
}

/// The system's own goes before what version managers put on PATH.
fn system_path(name: &str) -> Option<PathBuf> {
    Some(Path::new("/usr/bin").join(name)).filter(|path| path.is_file()).or_else(|| on_path(name))
}

/// Installs a package of the system.
///
/// # Errors
/// This is no Debian, we are not root, or apt-get failed.
fn install_package(package: &str) -> Result<()> {
    let Some(apt_get) = on_path("apt-get").filter(|_| rustix::process::geteuid().is_root()) else {
        bail!("{package} is missing, and only root on Debian or Ubuntu could install it here: install it yourself");
    };
    eprintln!("xtask: installing {package} with apt-get");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(&apt_get);
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run(&format!("apt-get {}", arguments.join(" ")), &mut command)
    };
    apt(&["update", "--quiet"])?;
    apt(&["install", "--yes", "--quiet", "--no-install-recommends", package])?;
    Ok(())
}

/// The versions of the hosts, each started once.
pub(super) fn check(tools: &Tools) -> Result<()> {
    let version = |name: &str, program: PathBuf, argument: &str| -> Result<()> {
        let said = run(name, Command::new(program).arg(argument))?;
        println!("{name:<11} {}", said.lines().next().unwrap_or_default());
        Ok(())
    };
    version("sqlite3", tools.sqlite3()?, "--version")?;
    version("python3", tools.system_python()?, "--version")?;
    let asks = ["-c", "import apsw; print(apsw.apsw_version(), 'with SQLite', apsw.sqlite_lib_version())"];
    println!("apsw        {}", run("apsw", Command::new(tools.python_with_apsw()?).args(asks))?.trim());
    version("node", tools.node()?, "--version")?;
    version("go", tools.go()?, "version")?;
    version("valgrind", tools.valgrind()?, "--version")?;
    Ok(())
}
