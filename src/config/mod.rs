//! The configuration: what can be set, with its defaults. [`Sources`] reads it, layer over layer; `config/nws.toml`
//! is its commented form. Values are checked when they are read: a [`Config`] that exists can be run.
//!
//! Not here: the exit's secret key, which is no setting (see [`PrivateKey`] and `run::key`), and the flags of the
//! command line, which the command line lays over the result.

mod address;
pub mod book;
mod check;
mod direct;
mod dns;
mod dropin;
mod error;
mod logging;
mod public;
mod service;
mod source;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;

use bytesize::ByteSize;
use nostr::RelayUrl;
use serde::{Deserialize, Serialize};

use crate::direct::Plaintext;
use crate::exit::{AllowList, Rule as ExitRule};
use crate::limits::Limits;
use crate::name::Aliases;
use crate::proxy::Optimistic;
use crate::proxy::exits::{ExitName, Exits, Rule as ProxyRule};
use crate::relay::Upstream;

pub use self::address::{ListenAddr, Target};
pub use self::direct::{DialConfig, Range};
pub use self::dns::{DnsConfig, NameServer, TransparentConfig};
pub use self::dropin::DropIn;
pub use self::error::{ConfigError, Origin, ValueError};
pub use self::logging::{LogConfig, LogFilter, LogFormat};
pub use self::public::PublicConfig;
pub use self::service::{Service, Services, TlsPort, parse_port};
pub use self::source::{PRIVATE_KEY_VARIABLE, PrivateKey, SYSTEM_FILE, Settings, Sources};
pub use self::tls::{ExitTlsConfig, TrustConfig};

/// Everything that can be set in `nws.toml` and by `NWS_…` variables.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Relays for names that consist of a key alone, and for an exit that has no `exit.relays`.
    #[serde(deserialize_with = "address::relays")]
    pub relays: Vec<RelayUrl>,
    /// File of the address book, which `nws name` edits; without one it is `names.toml` beside the user's `nws.toml`.
    pub names_file: Option<PathBuf>,
    /// The client side: `nws proxy`.
    pub proxy: ProxyConfig,
    /// The server side: `nws exit`.
    pub exit: ExitConfig,
    /// The embedded relay: `nws relay`.
    pub relay: RelayConfig,
    /// Addresses for `.nostr` names, for programs that know no proxy.
    pub dns: DnsConfig,
    /// The connections to these addresses.
    pub transparent: TransparentConfig,
    /// Names that are kept: here, and in the address book once that has been read.
    pub names: Aliases,
    /// What relays are reached through.
    pub relay_proxy: RelayProxyConfig,
    /// Times, sizes and counts that bound what proxy and exit do.
    pub limits: Limits,
    /// What is logged.
    pub log: LogConfig,
}

impl Config {
    /// The relays that the exit listens on: its own, else the general ones.
    #[must_use]
    pub fn exit_relays(&self) -> &[RelayUrl] {
        if self.exit.relays.is_empty() { &self.relays } else { &self.exit.relays }
    }
}

/// Settings of the way to relays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayProxyConfig {
    /// A SOCKS5 proxy, which also resolves the names of the relays; without one they are reached directly.
    pub url: Option<Upstream>,
}

impl RelayProxyConfig {
    /// The proxy as links share it.
    #[must_use]
    pub fn upstream(&self) -> Option<Arc<Upstream>> {
        self.url.clone().map(Arc::new)
    }
}

/// Settings of `nws proxy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Where clients connect to; SOCKS5 and HTTP on each.
    pub listen: Vec<ListenAddr>,
    /// When clients are told of success before the exit has accepted.
    pub optimistic: Optimistic,
    /// Whether streams to different hosts share no session key.
    pub isolate_destinations: bool,
    /// The exits for names other than `.nostr`.
    pub exit: Exits,
    /// Exits that are never used.
    pub exclude: Vec<ExitName>,
    /// Where the relay lists of keys are looked up; none is the general relays.
    #[serde(deserialize_with = "address::relays")]
    pub lookup_relays: Vec<RelayUrl>,
    /// What goes where, before the exits.
    pub rule: Vec<ProxyRule>,
    /// File of a lasting key that proves to exits who their client is.
    pub identity: Option<PathBuf>,
    /// The exits that it is shown to.
    pub identity_for: Vec<ExitName>,
    /// Where exits reach this proxy beside the relays.
    pub public_address: Option<Target>,
    /// Where it listens for that; without it on the same port of all addresses.
    pub public_listen: Option<ListenAddr>,
    /// When old exits may be asked for a connection in clear.
    pub direct_plaintext: Plaintext,
    /// Which addresses that exits offer are dialled.
    pub dial_exits: DialConfig,
    /// The authority of this machine, for `https://….nostr` in browsers.
    pub trust: TrustConfig,
    /// File for scripts, written when the proxy is ready.
    pub info_file: Option<PathBuf>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddr::loopback(8882)],
            optimistic: Optimistic::default(),
            isolate_destinations: false,
            exit: Exits::default(),
            exclude: Vec::new(),
            lookup_relays: Vec::new(),
            rule: Vec::new(),
            identity: None,
            identity_for: Vec::new(),
            public_address: None,
            public_listen: None,
            direct_plaintext: Plaintext::default(),
            dial_exits: DialConfig::default(),
            trust: TrustConfig::default(),
            info_file: None,
        }
    }
}

/// Settings of `nws exit`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExitConfig {
    /// Relays that the exit listens on and that stand in its name.
    #[serde(deserialize_with = "address::relays")]
    pub relays: Vec<RelayUrl>,
    /// File of the secret key; without one it is `exit.key` in the state directory.
    pub key_file: Option<PathBuf>,
    /// Where connections go whose port has no service of its own; without it they are refused.
    pub target: Option<Target>,
    /// What is offered: the port that clients see, and where it leads.
    #[serde(deserialize_with = "service::services")]
    pub service: Services,
    /// Who may connect to services without a list of their own; without one everybody.
    pub allow: Option<AllowList>,
    /// Other hosts, and how the exit is found by those who look for one.
    pub public: PublicConfig,
    /// What a public exit connects to, before its defaults.
    pub rule: Vec<ExitRule>,
    /// Where proxies reach this exit beside the relays; they are told.
    pub public_address: Option<Target>,
    /// Where it listens for that; without it on the same port of all addresses.
    pub public_listen: Option<ListenAddr>,
    /// When old entries are connected to in clear.
    pub direct_plaintext: Plaintext,
    /// Which addresses that proxies offer are dialled.
    pub dial_back: DialConfig,
    /// The certificate of services with TLS.
    pub tls: ExitTlsConfig,
    /// File for scripts, written when the exit is ready.
    pub info_file: Option<PathBuf>,
}

/// Settings of `nws relay`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayConfig {
    /// Where the relay is reached.
    pub listen: ListenAddr,
    /// File for scripts, written when the relay is ready.
    pub info_file: Option<PathBuf>,
    /// Most connections at once.
    pub max_connections: usize,
    /// Most subscriptions of one connection; a proxy has one for each session.
    pub max_subscriptions: usize,
    /// Most events that one connection may publish in a minute; 0 is no limit, since a tunnel at 100 MB/s publishes
    /// some 200,000.
    pub events_per_minute: u32,
    /// Largest message of a client, at most 16 MiB. The largest NIP-44 event is some 90 KB: more serves no tunnel.
    pub max_message: ByteSize,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: ListenAddr::loopback(7777),
            info_file: None,
            max_connections: 1024,
            max_subscriptions: 500,
            events_per_minute: 0,
            max_message: ByteSize::kib(128),
        }
    }
}

#[cfg(test)]
mod tests;
