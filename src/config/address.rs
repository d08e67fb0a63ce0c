//! Addresses as they stand in settings and flags: `HOST:PORT` to listen on, `HOST:PORT` to connect to, lists of relays.
//! Nothing is resolved when they are read.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use nostr::RelayUrl;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::ValueError;
use crate::destination::{Destination, Host};
use crate::name::{NameError, parse_relay};

/// An address to listen on; port 0 takes a free one. A name is resolved when it is bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddr(Destination);

impl ListenAddr {
    /// This port on 127.0.0.1.
    #[must_use]
    pub const fn loopback(port: u16) -> Self {
        Self(Destination { host: Host::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)), port })
    }

    /// The address to bind; of a name, the first that it resolves to.
    ///
    /// # Errors
    ///
    /// The name does not resolve.
    pub async fn resolve(&self) -> io::Result<SocketAddr> {
        match &self.0.host {
            Host::Ip(ip) => Ok(SocketAddr::new(*ip, self.0.port)),
            Host::Name(name) => {
                let none = || io::Error::new(io::ErrorKind::NotFound, format!("the name {name} has no address"));
                tokio::net::lookup_host((name.as_str(), self.0.port)).await?.next().ok_or_else(none)
            }
        }
    }
}

/// An address to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target(Destination);

impl From<Target> for Destination {
    fn from(target: Target) -> Self {
        target.0
    }
}

impl FromStr for ListenAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        host_port(text).map(Self)
    }
}

impl FromStr for Target {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match host_port(text)? {
            Destination { port: 0, .. } => {
                Err(ValueError::new(format!("{text:?} has port 0, which nothing can be connected to")))
            }
            destination => Ok(Self(destination)),
        }
    }
}

/// What both kinds of address have in common.
macro_rules! address {
    ($name:ident) => {
        impl $name {
            /// The host: a name or an address.
            #[must_use]
            pub const fn host(&self) -> &Host {
                &self.0.host
            }

            /// The TCP port.
            #[must_use]
            pub const fn port(&self) -> u16 {
                self.0.port
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ValueError;

            fn try_from(text: String) -> Result<Self, ValueError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(address: $name) -> Self {
                address.to_string()
            }
        }
    };
}

address!(ListenAddr);
address!(Target);

/// Reads `HOST:PORT`, an IPv6 address in brackets.
fn host_port(text: &str) -> Result<Destination, ValueError> {
    let wrong = |why: &str| ValueError::new(format!("{text:?} {why}; write HOST:PORT, as 127.0.0.1:3000"));
    if text.contains("://") {
        return Err(wrong("is a URL"));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(ValueError::new(format!("{text:?} has no port; write [{text}]:PORT")));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong("has no number for its port"));
    }
    let port = port.parse().map_err(|_| wrong("has a port above 65535"))?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or_else(|| wrong("has an opening bracket only"))?;
            let ip = inner.parse::<Ipv6Addr>().map_err(|_| wrong("has no IPv6 address in its brackets"))?;
            Host::Ip(IpAddr::V6(ip))
        }
        None if host.is_empty() => return Err(wrong("has no host")),
        None if host.contains(':') => return Err(wrong("has an IPv6 address without brackets")),
        None => Host::parse(host),
    };
    if let Host::Name(name) = &host
        && !Host::is_plain_name(name)
    {
        return Err(wrong("has a host that is neither a name nor an address"));
    }
    Ok(Destination { host, port })
}

/// A relay as names know it too: one form for each URL, and a refusal that says what is wrong.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct CheckedRelay(RelayUrl);

impl TryFrom<String> for CheckedRelay {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        parse_relay(&text).map(Self)
    }
}

/// A list of relays, each checked.
pub(super) fn relays<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RelayUrl>, D::Error> {
    Vec::<CheckedRelay>::deserialize(deserializer).map(|list| list.into_iter().map(|relay| relay.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were_written() {
        for text in ["127.0.0.1:0", "[::1]:8882", "localhost:22", "web-1.internal:65535"] {
            assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
        }
        let target: Target = "localhost:22".parse().unwrap();
        assert_eq!((target.host(), target.port()), (&Host::Name("localhost".into()), 22));
    }

    #[tokio::test]
    async fn an_address_to_listen_on_is_resolved_when_it_is_bound() {
        for text in ["127.0.0.1:0", "[::1]:8882"] {
            let address = text.parse::<ListenAddr>().unwrap().resolve().await.unwrap();
            assert_eq!(address.to_string(), text);
        }
        let named = "localhost:7777".parse::<ListenAddr>().unwrap().resolve().await.unwrap();
        assert!(named.ip().is_loopback() && named.port() == 7777, "{named}");
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, why) in [
            ("localhost", "has no port"),
            ("3000", "has no port"),
            ("localhost:", "no number"),
            ("localhost:+1", "no number"),
            ("localhost:65536", "above 65535"),
            (":80", "has no host"),
            ("::1", "write [::1]:PORT"),
            ("::1%lo:80", "without brackets"),
            ("[::1:80", "opening bracket"),
            ("[web]:80", "no IPv6 address"),
            ("a b:80", "neither a name nor an address"),
            ("http://127.0.0.1:3000", "is a URL"),
            ("127.0.0.1:0", "port 0"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
