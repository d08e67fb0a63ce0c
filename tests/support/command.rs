//! The `nws` binary as a child of a test: away from every configuration of the machine, its streams as async pipes, ended
//! with the test.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::soon;

/// Variables of the Go program, which stand for what ours leave open.
const GO_VARIABLES: [&str; 5] = ["NOSTR_RELAYS", "NOSTR_PRIVATE_KEY", "BACKEND_HOST", "PUBLIC", "PUBLIC_ADDRESS"];

/// `nws` with these arguments, at home in a directory of its own. A proxy that runs on this machine is not found.
pub fn nws(home: &Path, args: &[&str]) -> Command {
    let others = |name: &str| !name.starts_with("NWS_") && !GO_VARIABLES.contains(&name);
    let inherited = std::env::vars_os().filter(|(name, _)| name.to_str().is_none_or(others));
    let mut command = Command::new(env!("CARGO_BIN_EXE_nws"));
    command.env_clear().envs(inherited).env("HOME", home).current_dir(home).args(args);
    command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_STATE_HOME").env_remove("STATE_DIRECTORY");
    command.env_remove("JOURNAL_STREAM").env("NWS_PROXY__LISTEN", r#"["127.0.0.1:1"]"#);
    command
}

/// A running child.
pub struct Child {
    child: std::process::Child,
    /// Its standard input.
    pub stdin: Option<pipe::Sender>,
    /// Its standard output.
    pub stdout: Option<pipe::Receiver>,
    stderr: pipe::Receiver,
}

/// How a child ended, and what it has said.
pub struct Ended {
    /// Its exit code; none after a signal.
    pub code: Option<i32>,
    /// What is left of its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Child {
    /// Starts a command. Must be called inside a runtime.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stdin = child.stdin.take().map(|end| pipe::Sender::from_owned_fd(end.into()).expect("a pipe"));
        let stdout = child.stdout.take().map(|end| pipe::Receiver::from_owned_fd(end.into()).expect("a pipe"));
        let stderr = child.stderr.take().expect("it was asked for");
        Self { child, stdin, stdout, stderr: pipe::Receiver::from_owned_fd(stderr.into()).expect("a pipe") }
    }

    /// Writes all of it, ends its input, and waits for the outcome.
    pub async fn feed(mut self, input: Vec<u8>) -> Ended {
        let mut stdin = self.stdin.take().expect("its input");
        let writing = tokio::spawn(async move {
            // A process that has failed reads nothing, which its outcome tells better.
            let _ = stdin.write_all(&input).await;
        });
        let ended = self.end().await;
        writing.abort();
        ended
    }

    /// Waits for the end; its input stays as it is.
    pub async fn end(&mut self) -> Ended {
        let (mut stdout, mut stderr) = (Vec::new(), String::new());
        let out = self.stdout.take();
        let reading = async {
            if let Some(mut out) = out {
                out.read_to_end(&mut stdout).await.expect("its output");
            }
        };
        soon("the end of nws", async { tokio::join!(reading, self.stderr.read_to_string(&mut stderr)) })
            .await
            .1
            .expect("its errors");
        let status = self.wait().await;
        Ended { code: status.code(), stdout, stderr }
    }

    /// Reads a line of its output.
    pub async fn line(&mut self) -> String {
        let stdout = self.stdout.as_mut().expect("its output");
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(soon("a line of nws", stdout.read_u8()).await.expect("a line"));
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Reads lines of its errors up to one with this in it.
    pub async fn until_says(&mut self, words: &str) -> String {
        let mut line = Vec::new();
        loop {
            match soon(words, self.stderr.read_u8()).await.unwrap_or_else(|_| panic!("it never says {words:?}")) {
                b'\n' if String::from_utf8_lossy(&line).contains(words) => {
                    return String::from_utf8_lossy(&line).into_owned();
                }
                b'\n' => line.clear(),
                byte => line.push(byte),
            }
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends a signal by its name, as `HUP`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> ExitStatus {
        soon("the end of nws", async {
            loop {
                if let Some(status) = self.child.try_wait().expect("a child") {
                    return status;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
