//! The processes under test: started, waited for and ended here, and what the system says of their CPU time and memory.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nws::run::info::Info;
use tokio::time::sleep;

use crate::Outcome;
use crate::options::Options;

/// Longest time for a process to get ready.
const READY: Duration = Duration::from_secs(15);
/// Longest time for a process to end by itself once it is asked to.
const GOODBYE: Duration = Duration::from_secs(3);
/// Clock ticks a second of /proc/PID/stat: what Linux shows to programs on every architecture we build for.
pub(crate) const TICKS: f64 = 100.0;

/// A child process; it is killed when dropped.
pub(crate) struct Process {
    /// How the tables call it.
    pub(crate) label: &'static str,
    child: Child,
    log: PathBuf,
}

/// Where binaries lie and files go.
pub(crate) struct Places {
    nws: PathBuf,
    nostr_rs_relay: PathBuf,
    directory: tempfile::TempDir,
}

impl Places {
    pub(crate) fn new(options: &Options) -> Outcome<Self> {
        let nws = options.nws.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_nws").into());
        let cached = || {
            let home = std::env::var_os("HOME").unwrap_or_default();
            Path::new(&home).join(".cache/nws-ci/bin/nostr-rs-relay")
        };
        let nostr_rs_relay = options.relay_binary.clone().unwrap_or_else(cached);
        Ok(Self { nws, nostr_rs_relay, directory: tempfile::Builder::new().prefix("nws-bench-").tempdir()? })
    }

    /// Starts `nws` and waits until it says where it is.
    pub(crate) async fn nws(&self, label: &'static str, arguments: &[String]) -> Outcome<(Process, Info)> {
        let info = self.unused(label, "json");
        let mut command = Command::new(&self.nws);
        command.args(["--log", "warn"]).args(arguments).arg("--info-file").arg(&info).stdin(Stdio::null());
        command.env("NWS_PRIVATE_KEY", nostr::Keys::generate().secret_key().to_secret_hex());
        let mut process = self.start(label, command)?;
        process.wait_until(|| info.exists()).await?;
        Ok((process, serde_json::from_slice(&fs::read(&info)?)?))
    }

    /// Starts nostr-rs-relay as it is shipped, its database in memory.
    pub(crate) async fn nostr_rs_relay(&self) -> Outcome<(Process, SocketAddr)> {
        if !self.nostr_rs_relay.exists() {
            let path = self.nostr_rs_relay.display();
            return Err(
                format!("no nostr-rs-relay at {path}: .ci/run builds it, or name it with --relay-binary").into()
            );
        }
        // It cannot tell which port it took.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = self.unused("nostr-rs-relay", "toml");
        let network = format!("[network]\naddress = \"127.0.0.1\"\nport = {}\n", address.port());
        fs::write(&config, network + "\n[database]\nin_memory = true\n")?;
        let mut command = Command::new(&self.nostr_rs_relay);
        command
            .arg("--config")
            .arg(&config)
            .arg("--db")
            .arg(self.directory.path())
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null());
        let mut process = self.start("relay", command)?;
        process.wait_until(|| TcpStream::connect(address).is_ok()).await?;
        Ok((process, address))
    }

    /// Starts the backend as a process of its own, which ends with this one: where it and the clients would together
    /// need more open files than one process gets.
    pub(crate) async fn backend(&self) -> Outcome<(Process, Vec<(u16, SocketAddr)>)> {
        let file = self.unused("backend", "json");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--backend").arg(&file).stdin(Stdio::piped());
        let mut process = self.start("backend", command)?;
        process.wait_until(|| file.exists()).await?;
        Ok((process, serde_json::from_slice(&fs::read(&file)?)?))
    }

    fn start(&self, label: &'static str, mut command: Command) -> Outcome<Process> {
        let log = self.unused(label, "log");
        let output = File::create(&log)?;
        // The user's own settings must not shape what is measured; bounds may be tried out with NWS_LIMITS__….
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("NWS_") && !text.starts_with("NWS_LIMITS__") {
                command.env_remove(&name);
            }
        }
        let child = command
            .env("XDG_CONFIG_HOME", self.directory.path())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", command.get_program().display()))?;
        Ok(Process { label, child, log })
    }

    /// A file name in the run's own directory.
    fn unused(&self, label: &str, ending: &str) -> PathBuf {
        self.directory.path().join(format!("{label}-{:x}.{ending}", fastrand::u64(..)))
    }
}

impl Process {
    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads so far, in user mode and in the kernel, in seconds.
    pub(crate) fn cpu(&self) -> Outcome<f64> {
        cpu_of(self.id()).map_err(|error| self.ended(&error))
    }

    /// Memory in MiB that is resident now, and the most that ever was.
    pub(crate) fn memory(&self) -> Outcome<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map(|kib| kib / 1024.0)
        };
        let both = field("VmRSS:").zip(field("VmHWM:"));
        both.ok_or_else(|| self.ended(&"no memory is shown"))
    }

    fn ended(&self, why: &dyn std::fmt::Display) -> Box<dyn std::error::Error + Send + Sync> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        format!("{} has ended ({why}); its log: {}", self.label, log.trim()).into()
    }

    async fn wait_until(&mut self, ready: impl Fn() -> bool) -> Outcome<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.ended(&status));
            }
            if start.elapsed() > READY {
                return Err(format!("{} is not ready within {} s", self.label, READY.as_secs()).into());
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < GOODBYE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// CPU time of a process in seconds.
pub(crate) fn cpu_of(pid: u32) -> Result<f64, String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| error.to_string())?;
    // The name stands in parentheses and may hold blanks; utime and stime are the 14th and 15th field.
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = behind_name.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    ticks.sum::<Result<f64, _>>().map(|ticks| ticks / TICKS).map_err(|error| error.to_string())
}
