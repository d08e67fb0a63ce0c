//! Where a stream is to go: a host, as a client or a peer wrote it, and a port. Nothing is resolved here.

use std::fmt;
use std::net::IpAddr;

/// Longest name of a host (RFC 1035 section 2.3.4).
pub const HOST_NAME_MAX: usize = 253;

/// The host of a destination, as the client wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name; a proxy never resolves it.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

impl Host {
    /// Reads a host as it stands in a URL or in `CONNECT`: a name, an IPv4 address, or an IPv6 address in brackets.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        bare.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Ip)
    }

    /// The host in the one form that rules and policies look at: lower case, without the dot of the DNS root, and an
    /// address where a name is one in disguise (`2130706433`, `0x7f.1`, `0177.0.0.1`: system resolvers take these for
    /// 127.0.0.1, and so do URLs by the WHATWG's rules, which are followed here).
    #[must_use]
    pub fn canonical(&self) -> Self {
        let Self::Name(name) = self else { return self.clone() };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Ok(ip) = name.trim_matches(['[', ']']).parse() {
            return Self::Ip(ip);
        }
        match url::Host::parse(&name) {
            Ok(url::Host::Ipv4(ip)) => Self::Ip(IpAddr::V4(ip)),
            _ => Self::Name(name),
        }
    }

    /// Whether a name may be given to a resolver: letters, digits, hyphens, underscores and dots, and not too long.
    /// International names come as `xn--…`, and everything else means something only to some resolvers.
    #[must_use]
    pub fn is_plain_name(name: &str) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        !name.is_empty() && name.len() <= HOST_NAME_MAX && name.bytes().all(plain)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

/// Host and port that a client wants to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Cuts a port off the end of a destination on the wire: `host:port`, `[v6]:port`, or a host alone (an IPv6 address
/// without brackets has no port). A port that is no number is the error.
///
/// # Errors
/// The text behind the colon when it is no port.
pub fn split_port(text: &str) -> Result<(&str, Option<u16>), &str> {
    if text.parse::<IpAddr>().is_ok() || text.ends_with(']') {
        return Ok((text, None));
    }
    match text.rsplit_once(':') {
        Some((host, port)) => port.parse().map(|port| (host, Some(port))).map_err(|_| port),
        None => Ok((text, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_disguise_are_addresses() {
        for text in
            ["127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "017700000001", "127.0.0.1."]
        {
            let canonical = Host::parse(text).canonical();
            assert_eq!(canonical, Host::Ip("127.0.0.1".parse().unwrap()), "{text}");
        }
        assert_eq!(Host::parse("[::1]").canonical(), Host::Ip("::1".parse().unwrap()));
        assert_eq!(Host::Name("::1".into()).canonical(), Host::Ip("::1".parse().unwrap()));
        assert_eq!(Host::parse("WWW.Example.COM.").canonical(), Host::Name("www.example.com".into()));
        assert_eq!(Host::parse("127.0.0.1.example").canonical(), Host::Name("127.0.0.1.example".into()));
        assert_eq!(Host::parse("999.0.0.1").canonical(), Host::Name("999.0.0.1".into()));
    }

    #[test]
    fn a_port_is_cut_off_where_there_is_one() {
        assert_eq!(split_port("a.example:80"), Ok(("a.example", Some(80))));
        assert_eq!(split_port("[::1]:80"), Ok(("[::1]", Some(80))));
        assert_eq!(split_port("[::1]"), Ok(("[::1]", None)));
        assert_eq!(split_port("::1"), Ok(("::1", None)));
        assert_eq!(split_port("a.example"), Ok(("a.example", None)));
        assert_eq!(split_port("a.example:x"), Err("x"));
        assert_eq!(split_port("a.example:65536"), Err("65536"));
    }

    #[test]
    fn only_plain_names_go_to_a_resolver() {
        assert!(Host::is_plain_name("a-b_c.example.com"));
        for name in ["", "fe80::1%eth0", "a b", "a/b", "bücher.example", "a\0b", &"x".repeat(254)] {
            assert!(!Host::is_plain_name(name), "{name:?}");
        }
    }
}
