//! `[dns]` and `[transparent]`: what lets programs open `.nostr` names that know no proxy.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::address::ListenAddr;
use super::error::ValueError;

/// The port of name servers (RFC 1035).
const DNS_PORT: u16 = 53;

/// Settings of the resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Where questions are answered, over UDP and TCP; nowhere by default.
    pub listen: Vec<ListenAddr>,
    /// Name servers for everything that is no `.nostr` name.
    pub forward: Vec<NameServer>,
    /// The range of addresses that stand for names.
    pub pool: Ipv4Net,
    /// File that remembers which address stands for which name; without one it is `addresses.json` in the state directory.
    pub state_file: Option<PathBuf>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        // The upper half of what is reserved for benchmarks (RFC 2544): nobody is reached there, no home or company uses
        // it as 10/8 or 192.168/16, no carrier and no VPN as 100.64/10, and programs that do alike take the lower half.
        let pool = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 16);
        Self { listen: Vec::new(), forward: Vec::new(), pool, state_file: None }
    }
}

/// Settings of the listener for redirected connections.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransparentConfig {
    /// Where connections are redirected to; nowhere by default.
    pub listen: Vec<ListenAddr>,
}

/// The address of a name server: an IP address, and a port if it is not 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameServer(pub SocketAddr);

impl FromStr for NameServer {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
        let address = alone.or_else(|_| text.parse::<SocketAddr>());
        address.map(Self).map_err(|_| {
            ValueError::new(format!("{text:?} is not the address of a name server; write 9.9.9.9 or 127.0.0.1:5353"))
        })
    }
}

impl TryFrom<String> for NameServer {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<NameServer> for String {
    fn from(server: NameServer) -> Self {
        server.to_string()
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.port() == DNS_PORT { self.0.ip().fmt(f) } else { self.0.fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_has_port_53_unless_it_says_otherwise() {
        for (text, address) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("::1", "[::1]:53"),
            ("[::1]:1", "[::1]:1"),
        ] {
            let server: NameServer = text.parse().unwrap();
            assert_eq!((server.0.to_string().as_str(), server.to_string().as_str()), (address, text));
        }
        for text in ["dns.example", "", "9.9.9.9:", "1.2.3"] {
            assert!(text.parse::<NameServer>().is_err(), "{text}");
        }
    }
}
