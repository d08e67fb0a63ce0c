//! The command line: what can be written, in words; what it means for the configuration; and the start of the command
//! that it names. `main` calls [`Cli::settings`] and [`dispatch`]; the work is in `run`.

mod args;
pub mod name;
mod reach;
mod start;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{LogFilter, Settings, Sources};
use crate::run::RunError;

pub use self::args::{
    CertArgs, DemoArgs, DoctorArgs, ExitArg, ExitArgs, ExitsArgs, NameArg, ProxyArgs, RelayArgs, ServiceArg, StoreArg,
    StoreArgs, TrustCommand, TrustDirectory,
};
pub use self::reach::{ConnectArgs, ForwardArg, ForwardArgs, ReachArgs};
pub use self::start::{complain, dispatch, print_name, refuse};

/// TCP over Nostr relays: reach a service by its key, with no public address and no DNS (NIP-74).
///
/// `nws exit` stands before a service, wherever it can reach a relay, and gives it a .nostr name. `nws proxy` is what
/// a browser, curl or ssh uses as its SOCKS5 or HTTP proxy to open such names. The two meet on any Nostr relay, which
/// sees encrypted messages only.
///
/// Begin with `nws demo`.
#[derive(Debug, Clone, Parser)]
#[command(name = "nws", version, propagate_version = true, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What stands below every help.
const AFTER_HELP: &str = "Configuration: /etc/nws/nws.toml, ~/.config/nws/nws.toml, NWS_... in the environment; \
                          flags come before all of them.\nExit codes: 0 success, 1 failure, 64 wrong usage, 78 wrong \
                          configuration.";

/// Flags that every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// Configuration file to read after the machine's and the user's; it must exist.
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// What to log: off, error, warn, info, debug or trace, also by module, as nws=debug,info.
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Global options", conflicts_with_all = ["verbose", "quiet"])]
    pub log: Option<LogFilter>,
    /// Log more: -v for what nws does, -vv for every message, -vvv for everything.
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Log less: -q for warnings and errors, -qq for errors, -qqq for nothing.
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options", conflicts_with = "verbose")]
    pub quiet: u8,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Give local programs a SOCKS5 and HTTP proxy that opens .nostr names.
    ///
    /// SOCKS5 and HTTP are spoken on the same port. Names that end in .nostr go through their relays to their exit;
    /// every other destination goes through a public exit that is configured, and is refused if there is none.
    Proxy(ProxyArgs),
    /// Offer local services under a .nostr name.
    ///
    /// The exit needs no public address and no open port: it connects to its relays, and serves whoever sends it
    /// messages there. It prints its name. Its secret key is made on first start and kept in a file;
    /// the environment variable NWS_PRIVATE_KEY (hex or nsec1...) takes its place where there is no disk.
    Exit(ExitArgs),
    /// Join standard input and output to a stream.
    ///
    /// For `ssh -o ProxyCommand='nws connect %h:%p'` and the like. An end of standard input is passed on, and what the
    /// other side still has to say is heard to its end; then the exit code is 0. It is 1 if there was no connection, or it
    /// broke.
    Connect(ConnectArgs),
    /// Lead local ports to destinations, for programs that know no proxy.
    Forward(ForwardArgs),
    /// List the public exits that announce themselves on relays.
    ///
    /// Anybody can announce an exit and call it what he likes: an exit sees where you go, and everything that is not
    /// encrypted. Use one whose key you have from its owner.
    Exits(ExitsArgs),
    /// Print the TLS certificate that an exit has published.
    ///
    /// It is looked for on the relays of the name, and believed if the exit's key has signed it: curl --cacert
    /// <(nws cert NAME) https://NAME/ then needs no --insecure. The fingerprint goes to standard error.
    Cert(CertArgs),
    /// Make every .nostr service https in this machine's browsers.
    ///
    /// A local authority, trusted by this machine's browsers for names that end in .nostr and for no others, lets the
    /// proxy (nws proxy --trust) end TLS itself, so that pages from .nostr names are secure contexts.
    #[command(subcommand)]
    Trust(TrustCommand),
    /// Run a small Nostr relay in memory.
    ///
    /// For a try, a test, or a tunnel of your own. It keeps nothing when it ends.
    Relay(RelayArgs),
    /// See it work: relay, page, exit and proxy in one process.
    ///
    /// Fetches a page and a large file through its own proxy, checks every byte, says what happened and how fast, and
    /// stays for you to try with the curl command that it prints.
    Demo(DemoArgs),
    /// Find out what does not work: configuration, clock, relays, exit.
    ///
    /// Each relay is looked at from its name to an event of full size that comes back; an exit is asked for a stream. One
    /// line for each, with a hint where it fails; the exit code is 1 then.
    Doctor(DoctorArgs),
    /// Check the configuration, without starting anything.
    Check,
    /// Make, read and keep .nostr names.
    Name(name::NameArgs),
}

impl Command {
    /// The word that names it on the command line.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Proxy(_) => "proxy",
            Self::Exit(_) => "exit",
            Self::Connect(_) => "connect",
            Self::Forward(_) => "forward",
            Self::Exits(_) => "exits",
            Self::Cert(_) => "cert",
            Self::Trust(_) => "trust",
            Self::Relay(_) => "relay",
            Self::Demo(_) => "demo",
            Self::Doctor(_) => "doctor",
            Self::Check => "check",
            Self::Name(_) => "name",
        }
    }
}

impl Command {
    /// Whether it has something to tell that the log would talk over, at the level that it has if nobody chose one.
    const fn speaks_itself(&self) -> bool {
        matches!(
            self,
            Self::Demo(_)
                | Self::Exits(_)
                | Self::Cert(_)
                | Self::Trust(_)
                | Self::Connect(_)
                | Self::Doctor(_)
                | Self::Check
                | Self::Name(_)
        )
    }
}

impl Cli {
    /// What files, environment and flags say together. It can be asked for again, to see what has changed.
    ///
    /// # Errors
    ///
    /// The configuration is wrong, or the flags leave something open that the command needs.
    pub fn settings(&self, sources: Sources) -> Result<Settings, RunError> {
        let sources = match &self.global.config {
            Some(path) => sources.required_file(path),
            None => sources,
        };
        let mut settings = sources.load()?;
        let steps = i16::from(self.global.verbose) - i16::from(self.global.quiet);
        let log = &mut settings.config.log;
        if let Some(filter) = self.global.log.clone().or_else(|| LogFilter::for_verbosity(steps)) {
            log.filter = filter;
        } else if self.command.speaks_itself() && log.filter == LogFilter::default() {
            // These tell their own story, and the log would talk over it.
            log.filter = LogFilter::for_verbosity(-1).unwrap_or_default();
        }
        match &self.command {
            Command::Proxy(args) => {
                args.apply(&mut settings.config)?;
                settings.fill_proxy(&sources)?;
            }
            Command::Doctor(args) => {
                args.apply(&mut settings.config);
                settings.fill_proxy(&sources)?;
            }
            Command::Exits(args) => {
                args.apply(&mut settings.config);
                settings.fill_proxy(&sources)?;
                ExitsArgs::check(&settings.config)?;
            }
            Command::Connect(ConnectArgs { reach, .. }) | Command::Forward(ForwardArgs { reach, .. }) => {
                reach.apply(&mut settings.config);
                settings.fill_proxy(&sources)?;
            }
            Command::Exit(args) => {
                args.apply(&mut settings)?;
                settings.fill_exit(&sources)?;
                args.add_tls(&mut settings.config.exit)?;
                ExitArgs::check(&settings.config)?;
            }
            Command::Cert(_) => settings.fill_proxy(&sources)?,
            Command::Trust(what) => {
                let configured = &mut settings.config.proxy.trust.directory;
                *configured = what.directory().cloned().or(configured.take());
            }
            Command::Relay(args) => args.apply(&mut settings.config),
            Command::Demo(_) | Command::Name(_) | Command::Check => {}
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests;
