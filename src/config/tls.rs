//! `[exit.tls]` and `[proxy.trust]`: the certificate that an exit shows, and whether a proxy ends TLS for `.nostr` names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Settings of the TLS that an exit ends itself, for services that have a `tls` port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExitTlsConfig {
    /// File of a certificate of the operator's own, in the place of one that is made.
    pub certificate: Option<PathBuf>,
    /// File of its key. Without it the certificate is published only, for a service that speaks TLS itself.
    pub key: Option<PathBuf>,
    /// Where a certificate that is made is kept with its key; without it `tls` in the state directory.
    pub directory: Option<PathBuf>,
    /// What the services behind speak (ALPN), the preferred one first.
    pub alpn: Vec<String>,
}

impl Default for ExitTlsConfig {
    fn default() -> Self {
        Self { certificate: None, key: None, directory: None, alpn: vec!["http/1.1".to_owned()] }
    }
}

/// Settings of the authority of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// Whether the proxy ends TLS for `https://….nostr` with a certificate of this authority.
    pub enabled: bool,
    /// The directory of `nws trust init`; without it `trust` in the state directory.
    pub directory: Option<PathBuf>,
}
