//! What the shell must do at a terminal: edit, remember, complete, and survive Ctrl-C.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use litestream_fixtures::golden::golden_dir;
use litestream_fixtures::s3::{Down, S3Options, S3Server};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const PROMPT: &str = "litestream> ";
const ENDLESS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c;";

/// The shell, and the terminal that it runs in.
struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What has come and was not yet waited for.
    seen: Vec<u8>,
    child: Child,
}

impl Terminal {
    fn start(state: &Path) -> Self {
        let replica = format!("file://{}", golden_dir().join("levels/replica").display());
        Self::with(state, &[&replica], &[])
    }

    fn with(state: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let device = || File::options().read(true).write(true).open(&name).unwrap();
        // A terminal of one's own, which only a new session can have.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_litestream"), "vfs-shell"])
            .args(arguments)
            .envs(variables.iter().copied())
            .envs([("XDG_STATE_HOME", state.as_os_str()), ("TERM", "xterm".as_ref()), ("NO_COLOR", "1".as_ref())])
            .stdin(device())
            .stdout(device())
            .stderr(device())
            .spawn()
            .unwrap();
        let (sender, screen) = channel();
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keyboard, screen, seen: Vec::new(), child }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until a text has come, and gives all that came up to it.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        let found = self.look_for(text, Duration::from_secs(20));
        found.unwrap_or_else(|| panic!("no {text:?} but {:?}", String::from_utf8_lossy(&self.seen)))
    }

    fn look_for(&mut self, text: &str, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            if let Some(at) = seen.find(text) {
                let (before, behind) = seen.split_at(at + text.len());
                self.seen = behind.as_bytes().to_vec();
                return Some(before.to_owned());
            }
            self.seen.extend(self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?);
        }
    }

    fn leave(mut self) -> ExitStatus {
        self.press("\x04");
        self.child.wait().unwrap()
    }
}

#[test]
fn statements_may_have_many_lines_and_are_remembered() {
    let state = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(state.path());
    terminal.wait_for(PROMPT);
    terminal.press("SELECT 'a;',\r");
    terminal.wait_for("...> ");
    terminal.press("6 * 7 AS answer;\r");
    let shown = terminal.wait_for("| a;   |     42 |");
    assert!(shown.contains("| 'a;' | answer |"), "{shown}");
    terminal.wait_for(PROMPT);
    assert!(terminal.leave().success());

    let history = state.path().join("litestream/vfs-shell_history");
    assert_eq!(history.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut terminal = Terminal::start(state.path());
    terminal.wait_for(PROMPT);
    terminal.press("\x1b[A\r");
    terminal.wait_for("| a;   |     42 |");
    terminal.wait_for(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn ctrl_c_ends_the_query_or_the_line_and_not_the_shell() {
    let state = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(state.path());
    terminal.wait_for(PROMPT);
    terminal.press("SELECT half,\r");
    terminal.wait_for("...> ");
    terminal.press("of it\x03");
    terminal.wait_for(PROMPT);
    terminal.press(&format!("{ENDLESS} SELECT 'not wanted';\r"));
    // The editor gives the terminal back just before the query runs: what is pressed in between may be lost.
    terminal.wait_for("\x1b[?2004l");
    let interrupted = std::iter::repeat_with(|| {
        terminal.press("\x03");
        terminal.look_for("litestream: interrupted", Duration::from_secs(3))
    });
    let shown = interrupted.take(5).flatten().next().expect("the query ends");
    assert!(!shown.contains("| not wanted |"), "{shown}");
    terminal.wait_for(PROMPT);
    terminal.press("SELECT 'still ' || 'here';\r");
    terminal.wait_for("| still here ");
    terminal.wait_for(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn tab_completes_commands_and_names() {
    let state = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(state.path());
    terminal.wait_for(PROMPT);
    terminal.press(".tab\t\r");
    terminal.wait_for("_litestream_lock  _litestream_seq   t");
    terminal.wait_for(PROMPT);
    terminal.press("SELECT 1;\r");
    terminal.wait_for("| 1 |");
    terminal.wait_for(PROMPT);
    terminal.press("sel\t count(*) FROM _litestream_s\t;\r");
    terminal.wait_for("FROM _litestream_seq");
    terminal.wait_for("|        0 |");
    terminal.wait_for(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn a_request_to_end_leaves_the_terminal_as_it_was() {
    let state = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(state.path());
    let before = rustix::termios::tcgetattr(&terminal.keyboard).unwrap();
    terminal.wait_for(PROMPT);
    let raw = rustix::termios::tcgetattr(&terminal.keyboard).unwrap();
    assert_ne!(raw.local_modes, before.local_modes);
    Command::new("kill").arg(terminal.child.id().to_string()).status().unwrap();
    terminal.wait_for("litestream: terminated");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(1));
    assert_eq!(rustix::termios::tcgetattr(&terminal.keyboard).unwrap().local_modes, before.local_modes);
}

#[test]
fn the_prompt_marks_what_is_not_uploaded_and_leaving_waits_for_it() {
    let (state, server) = (tempfile::tempdir().unwrap(), S3Server::start(S3Options::default()).unwrap());
    server.create_bucket("bkt");
    let (url, buffer) = (format!("s3://bkt/db?endpoint={}", server.endpoint()), state.path().join("buffer"));
    let buffer = buffer.to_str().unwrap();
    let variables = [
        ("LITESTREAM_ACCESS_KEY_ID", server.access_key()),
        ("LITESTREAM_SECRET_ACCESS_KEY", server.secret_key()),
        ("LITESTREAM_CONFIG", ""),
    ];
    let arguments = ["--write", "--buffer", buffer, "--sync-interval", "1h", &url];
    let mut terminal = Terminal::with(state.path(), &arguments, &variables);
    terminal.wait_for(PROMPT);
    terminal.press("CREATE TABLE t(a);\r");
    terminal.wait_for("litestream*> ");
    terminal.press(".sync\r");
    terminal.wait_for("0000000000000001");
    terminal.wait_for(PROMPT);
    terminal.press("INSERT INTO t VALUES(1);\r");
    terminal.wait_for("litestream*> ");
    // One that is silent might still do what it was asked for.
    server.set_down(Some(Down::Refuse)).unwrap();
    terminal.press("\x04");
    terminal.wait_for("uploading; Ctrl-C ends this: what is not uploaded yet is kept in ");
    terminal.press("\x03");
    terminal.wait_for("litestream: interrupted; what is not uploaded yet is kept in ");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(1));
    server.set_down(None).unwrap();

    let mut terminal = Terminal::with(state.path(), &arguments, &variables);
    terminal.wait_for("one transaction was left in the write buffer");
    terminal.wait_for("litestream*> ");
    assert!(terminal.leave().success());
    assert!(server.object("bkt", "db/0000/0000000000000002-0000000000000002.ltx").is_some());
}
