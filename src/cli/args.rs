//! The flags of the commands that stay up, and how they change the configuration: a flag replaces what every other
//! layer says. No flag takes a secret key: everyone on a machine can read command lines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use nostr::RelayUrl;

use crate::config::{Config, ExitConfig, ListenAddr, Service, Settings, Target, TlsPort, ValueError, parse_port};
use crate::name::{NameError, NostrName, parse_relay};
use crate::proxy::Optimistic;
use crate::proxy::exits::{ExitName, Exits};
use crate::run::RunError;
use crate::run::trust::Stores;

/// Flags of `nws proxy`.
#[derive(Debug, Clone, Default, Args)]
pub struct ProxyArgs {
    /// Address to listen on, for SOCKS5 and HTTP alike; may be given several times. Port 0 takes a free port.
    /// [default: 127.0.0.1:8882]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Vec<ListenAddr>,
    /// Relay for names that consist of a key alone; may be given several times. Without a scheme, wss:// is assumed.
    #[arg(long = "relay", value_name = "URL", value_parser = parse_relay)]
    pub relays: Vec<RelayUrl>,
    /// When to tell a client of success before the exit has answered, which saves a round trip: auto (its service has
    /// accepted a connection within the last minute), always or never. [default: auto]
    #[arg(long, value_name = "WHEN", value_parser = parse_optimistic)]
    pub optimistic: Option<Optimistic>,
    /// Public exit for names other than .nostr, by its key (npub1..., hex or a .nostr name), or "any": whichever
    /// announces itself on the relays, a stranger. May be given several times, the preferred one first.
    #[arg(long = "exit", value_name = "NPUB")]
    pub exits: Vec<ExitArg>,
    /// End TLS on port 443 of .nostr names with certificates of this machine's own authority (nws trust init), so that
    /// every .nostr service is https in a browser. The exit's certificate is checked.
    #[arg(long)]
    pub trust: bool,
    /// Once ready, write a JSON file with the process id and the addresses bound.
    #[arg(long, value_name = "PATH")]
    pub info_file: Option<PathBuf>,
}

impl ProxyArgs {
    /// Lays the flags over the configuration.
    ///
    /// # Errors
    ///
    /// `any` beside the key of an exit.
    pub fn apply(&self, config: &mut Config) -> Result<(), RunError> {
        let keys = self.exits.iter().filter_map(|arg| match arg {
            ExitArg::Key(exit) => Some(exit.clone()),
            ExitArg::Any => None,
        });
        let keys: Vec<_> = keys.collect();
        match (self.exits.len() - keys.len(), keys.len()) {
            (0, 0) => {}
            (0, _) => config.proxy.exit = Exits::Listed(keys),
            (_, 0) => config.proxy.exit = Exits::Any,
            _ => return Err(RunError::Usage("--exit is either any or the keys of exits; give one of both".to_owned())),
        }
        replace(&mut config.proxy.listen, &self.listen);
        replace(&mut config.relays, &self.relays);
        config.proxy.optimistic = self.optimistic.unwrap_or(config.proxy.optimistic);
        replace_some(&mut config.proxy.info_file, self.info_file.as_ref());
        config.proxy.trust.enabled |= self.trust;
        Ok(())
    }
}

/// The port of the web without TLS.
const HTTP: u16 = 80;

/// The port of the web with TLS.
const HTTPS: u16 = 443;

/// Flags of `nws exit`.
#[derive(Debug, Clone, Default, Args)]
#[command(override_usage = "nws exit --relay <URL>... --service <PORT=HOST:PORT>... [OPTIONS]\n       \
                            nws exit --relay <URL>... --target <HOST:PORT> [OPTIONS]\n       \
                            nws exit --relay <URL>... --public [OPTIONS]")]
pub struct ExitArgs {
    /// Relay to listen on, part of the exit's name; may be given several times. Without a scheme, wss:// is assumed.
    #[arg(long = "relay", value_name = "URL", value_parser = parse_relay)]
    pub relays: Vec<RelayUrl>,
    /// Service: the port that clients see, and where its connections go, as 80=127.0.0.1:3000; may be given several
    /// times. Nothing else can be reached through the exit, unless it is public.
    #[arg(long = "service", value_name = "PORT=HOST:PORT", conflicts_with = "target")]
    pub services: Vec<ServiceArg>,
    /// One target for all ports that clients ask for, instead of services.
    #[arg(long, value_name = "HOST:PORT")]
    pub target: Option<Target>,
    /// Offer with TLS on port 443 what is on port 80, too, with a certificate that the exit makes and publishes.
    #[arg(long)]
    pub tls: bool,
    /// Serve other hosts, too, and announce it: the open internet on ports 80 and 443, or what the configuration's
    /// [[exit.rule]] say. Whoever finds the exit may use it, and sites see this machine's address.
    #[arg(long)]
    pub public: bool,
    /// File of the exit's secret key, made on first start. [default: nws/exit.key in the state directory]
    #[arg(long, value_name = "PATH")]
    pub key_file: Option<PathBuf>,
    /// Once ready, write a JSON file with the process id, the exit's name, npub and relays.
    #[arg(long, value_name = "PATH")]
    pub info_file: Option<PathBuf>,
}

impl ExitArgs {
    /// Lays the flags over the settings.
    ///
    /// # Errors
    ///
    /// A port with two services.
    pub fn apply(&self, settings: &mut Settings) -> Result<(), RunError> {
        let exit = &mut settings.config.exit;
        replace(&mut exit.relays, &self.relays);
        replace_some(&mut exit.info_file, self.info_file.as_ref());
        exit.public.enabled |= self.public;
        if let Some(path) = &self.key_file {
            exit.key_file = Some(path.clone());
            settings.private_key = None;
        }
        // What is offered is exactly what the flags say: a forgotten line of some file must not add to it.
        if let Some(target) = &self.target {
            exit.target = Some(target.clone());
            exit.service.clear();
        }
        if !self.services.is_empty() {
            exit.target = None;
            exit.service = BTreeMap::new();
            for ServiceArg { port, service } in &self.services {
                if exit.service.insert(*port, service.clone()).is_some() {
                    return Err(RunError::Usage(format!("port {port} has two services; give --service {port}=… once")));
                }
            }
        }
        Ok(())
    }

    /// Offers port 80, or the one target for all ports, with TLS as well, if that is wanted: once every source has been
    /// heard.
    ///
    /// # Errors
    ///
    /// There is neither, or port 443 is taken.
    pub fn add_tls(&self, exit: &mut ExitConfig) -> Result<(), RunError> {
        if !self.tls {
            return Ok(());
        }
        if exit.service.get(&HTTPS).is_some_and(|service| service.tls.is_none()) {
            let reason = "--tls is for port 443, which is a service without TLS already (exit.service)";
            return Err(RunError::Usage(reason.to_owned()));
        }
        if exit.service.values().any(|service| service.tls == Some(TlsPort(HTTPS))) {
            return Ok(());
        }
        match (exit.service.get_mut(&HTTP), &exit.target) {
            (Some(service), _) => service.tls = Some(TlsPort(HTTPS)),
            (None, Some(target)) => {
                let service = Service { tls: Some(TlsPort(HTTPS)), ..target.clone().into() };
                exit.service.insert(HTTPS, service);
            }
            (None, None) => {
                let way_out = "give --service 80=HOST:PORT or --target HOST:PORT, too";
                return Err(RunError::Usage(format!("--tls finds nothing on port 80 to offer; {way_out}")));
            }
        }
        Ok(())
    }

    /// Checks that an exit has what it needs, once every source has been heard.
    ///
    /// # Errors
    ///
    /// No relay, or nothing to offer.
    pub fn check(config: &Config) -> Result<(), RunError> {
        if config.exit_relays().is_empty() {
            let way_out = "give --relay URL, or set exit.relays in the configuration";
            return Err(RunError::Usage(format!("no relay to listen on; {way_out}")));
        }
        if config.exit.service.is_empty() && config.exit.target.is_none() && !config.exit.public.enabled {
            let way_out = "give --service PORT=HOST:PORT or --public, or set exit.service in the configuration";
            return Err(RunError::Usage(format!("nothing to offer; {way_out}")));
        }
        Ok(())
    }
}

/// Flags of `nws relay`.
#[derive(Debug, Clone, Default, Args)]
pub struct RelayArgs {
    /// Address to listen on. Port 0 takes a free port. [default: 127.0.0.1:7777]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<ListenAddr>,
    /// Once ready, write a JSON file with the process id and the address bound.
    #[arg(long, value_name = "PATH")]
    pub info_file: Option<PathBuf>,
}

impl RelayArgs {
    /// Lays the flags over the configuration.
    pub fn apply(&self, config: &mut Config) {
        if let Some(listen) = &self.listen {
            config.relay.listen = listen.clone();
        }
        replace_some(&mut config.relay.info_file, self.info_file.as_ref());
    }
}

/// Flags of `nws demo`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct DemoArgs {
    /// End after the check, with exit code 0 if all went well and 1 if not, instead of staying until Ctrl-C.
    #[arg(long)]
    pub once: bool,
}

/// The value of `--exit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitArg {
    /// Whichever announces itself.
    Any,
    /// This one.
    Key(ExitName),
}

impl FromStr for ExitArg {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "any" { Ok(Self::Any) } else { text.parse().map(Self::Key) }
    }
}

/// Flags of `nws exits`.
#[derive(Debug, Clone, Default, Args)]
pub struct ExitsArgs {
    /// Relay to look on; may be given several times. Without a scheme, wss:// is assumed.
    #[arg(long = "relay", value_name = "URL", value_parser = parse_relay)]
    pub relays: Vec<RelayUrl>,
    /// How long to listen for announcements; the Go program's come every 10 s, and relays keep none of them.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_duration)]
    pub wait: Duration,
    /// Open a stream to each exit and measure how long its answer takes. No connection is made behind it.
    #[arg(long)]
    pub probe: bool,
    /// Write JSON.
    #[arg(long)]
    pub json: bool,
}

impl ExitsArgs {
    /// Lays the flags over the configuration.
    pub fn apply(&self, config: &mut Config) {
        replace(&mut config.relays, &self.relays);
    }

    /// Checks that there is somewhere to look, once every source has been heard.
    ///
    /// # Errors
    ///
    /// No relay.
    pub fn check(config: &Config) -> Result<(), RunError> {
        if config.relays.is_empty() {
            let way_out = "give --relay URL, or set relays in the configuration";
            return Err(RunError::Usage(format!("no relay to look for exits on; {way_out}")));
        }
        Ok(())
    }
}

/// Flags of `nws doctor`.
#[derive(Debug, Clone, Default, Args)]
pub struct DoctorArgs {
    /// The exit to ask, by its .nostr name, npub or a name that is kept; with a port, whether it accepts it.
    #[arg(value_name = "NAME[:PORT]")]
    pub name: Option<String>,
    /// Relay to look at, and to ask for a name that consists of a key alone; may be given several times. Without a
    /// scheme, wss:// is assumed.
    #[arg(long = "relay", value_name = "URL", value_parser = parse_relay)]
    pub relays: Vec<RelayUrl>,
}

impl DoctorArgs {
    /// Lays the flags over the configuration.
    pub fn apply(&self, config: &mut Config) {
        replace(&mut config.relays, &self.relays);
    }
}

/// Flags of `nws cert`.
#[derive(Debug, Clone, Args)]
pub struct CertArgs {
    /// The exit's .nostr name, in any form.
    #[arg(value_name = "NAME")]
    pub name: NameArg,
    /// Relay to look on instead of those of the name; may be given several times. Without a scheme, wss:// is assumed.
    #[arg(long = "relay", value_name = "URL", value_parser = parse_relay)]
    pub relays: Vec<RelayUrl>,
    /// Longest time to wait for the relays.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub wait: Duration,
}

impl CertArgs {
    /// The relays to look on, once every source has been heard: those of the flags, of the name, or of the configuration.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn relays<'a>(&'a self, config: &'a Config) -> Result<&'a [RelayUrl], RunError> {
        let found =
            [&self.relays, &self.name.name.relays, &config.relays].into_iter().find(|relays| !relays.is_empty());
        let way_out = "give --relay URL, or set relays in the configuration";
        found.map(Vec::as_slice).ok_or_else(|| RunError::Usage(format!("the name carries no relay; {way_out}")))
    }
}

/// What `nws trust` does.
#[derive(Debug, Clone, Subcommand)]
pub enum TrustCommand {
    /// Make the authority, and say how it is installed.
    Init(TrustDirectory),
    /// Put its certificate into the stores of the system and of browsers.
    ///
    /// Says what was done and what could not be. The system's store needs root; browsers' need certutil.
    Install(StoreArgs),
    /// Take its certificate out of these stores again.
    Remove(StoreArgs),
}

/// Where the authority is kept.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustDirectory {
    /// Directory of the authority. [default: nws/trust in the state directory]
    #[arg(long, value_name = "PATH")]
    pub directory: Option<PathBuf>,
}

/// Which stores are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct StoreArgs {
    /// Where the authority is kept.
    #[command(flatten)]
    pub directory: TrustDirectory,
    /// Only this store; may be given several times. [default: system and browsers]
    #[arg(long = "store", value_name = "STORE")]
    pub stores: Vec<StoreArg>,
    /// Another NSS database, by its directory, such as a Firefox profile; may be given several times. Without --store
    /// it is the only one.
    #[arg(long, value_name = "PATH")]
    pub nss: Vec<PathBuf>,
}

impl StoreArgs {
    /// Which stores they mean.
    #[must_use]
    pub fn stores(&self) -> Stores {
        let all = self.stores.is_empty() && self.nss.is_empty();
        let has = |store| all || self.stores.contains(&store);
        Stores { system: has(StoreArg::System), browsers: has(StoreArg::Browsers), nss: self.nss.clone() }
    }
}

/// The value of `--store`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreArg {
    /// That of the system, which most programs look at.
    System,
    /// Those of Chromium and Firefox in the home directory.
    Browsers,
}

impl TrustCommand {
    /// Where the authority is kept, as far as the flags say.
    #[must_use]
    pub const fn directory(&self) -> Option<&PathBuf> {
        match self {
            Self::Init(directory) => directory.directory.as_ref(),
            Self::Install(args) | Self::Remove(args) => args.directory.directory.as_ref(),
        }
    }
}

/// A `.nostr` name, and how it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameArg {
    /// As it was written.
    pub text: String,
    /// What it says.
    pub name: NostrName,
}

impl FromStr for NameArg {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(Self { text: text.to_owned(), name: text.parse()? })
    }
}

/// Reads a duration as the configuration has it.
fn parse_duration(text: &str) -> Result<Duration, String> {
    use serde::de::IntoDeserializer;
    let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
    humantime_serde::deserialize::<Duration, _>(text)
        .ok()
        .filter(|duration| *duration <= LONGEST_WAIT)
        .ok_or_else(|| "write a duration such as 3s or 1m, one hour at most".to_owned())
}

/// Longest time that is waited for announcements.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// The value of `--service`: `PORT=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceArg {
    /// The port that clients see.
    pub port: u16,
    /// Where it leads.
    pub service: Service,
}

impl FromStr for ServiceArg {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (port, target) = text.split_once('=').ok_or_else(|| {
            let way_out = "write PORT=HOST:PORT, as 80=127.0.0.1:3000";
            ValueError::new(format!("{text:?} does not say both the port that clients see and the target; {way_out}"))
        })?;
        Ok(Self { port: parse_port(port)?, service: target.parse::<Target>()?.into() })
    }
}

/// The value of `--optimistic`, in the words of the configuration.
fn parse_optimistic(text: &str) -> Result<Optimistic, ValueError> {
    let word = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    serde::Deserialize::deserialize(word)
        .map_err(|_| ValueError::new(format!("{text:?} is not one of auto, always and never")))
}

/// A list of flags replaces the configured list.
fn replace<T: Clone>(configured: &mut Vec<T>, flags: &[T]) {
    if !flags.is_empty() {
        *configured = flags.to_vec();
    }
}

/// A flag replaces the configured value.
fn replace_some(configured: &mut Option<PathBuf>, flag: Option<&PathBuf>) {
    if let Some(path) = flag {
        *configured = Some(path.clone());
    }
}
