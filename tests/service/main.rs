//! The program as a service manager sees it: what it says over `NOTIFY_SOCKET`, the sockets that it takes over, and what it
//! does on SIGHUP. A real systemd does the same in `.ci/service`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod manager;
mod reload;
mod sockets;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longest wait for anything: far more than it takes, and less than a test run may hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service manager, as far as a service can see one.
struct Manager {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { directory, socket }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command that tells this manager how it does.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.directory.path())
            .env("NOTIFY_SOCKET", self.path("notify"))
            .current_dir(self.directory.path());
        command
    }

    fn nws(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_nws"));
        command.args(args);
        command
    }

    /// The next message.
    fn message(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The first message that says this.
    fn wait_for(&self, line: &str) -> String {
        loop {
            let message = self.message();
            if message.lines().any(|said| said == line) {
                return message;
            }
        }
    }
}

/// A process of a test, ended with it, and its log.
struct Service {
    child: Child,
    log: Receiver<String>,
}

impl Service {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, log }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// The lines of the log up to one with these words.
    fn log_until(&self, words: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line with {words:?}: {lines:#?}"));
            let found = line.contains(words);
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    /// Waits for its end.
    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the process does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that a command writes when it is ready, read as JSON.
fn info(path: &Path) -> serde_json::Value {
    let start = Instant::now();
    loop {
        if let Ok(text) = std::fs::read(path) {
            return serde_json::from_slice(&text).unwrap();
        }
        assert!(start.elapsed() < PATIENCE, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads so many bytes.
fn read_exactly(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}
