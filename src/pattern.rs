//! What a rule speaks of, at a proxy (`[[proxy.rule]]`) and at a public exit (`[[exit.rule]]`): hosts by name or by
//! address, and ports. What happens to them is not decided here.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::addresses::Reserved;
use crate::destination::Host;

/// Which hosts a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// `*`: every host.
    Any,
    /// A name, and all names below it.
    Suffix(String),
    /// An address or a range of addresses.
    Net(IpNet),
}

/// Why a text is no pattern; a sentence that names it and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(Cow<'static, str>);

impl Pattern {
    /// Whether the rule is about this name.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Suffix(suffix) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Net(_) => false,
        }
    }

    /// Whether the rule is about this address.
    #[must_use]
    pub fn has_address(&self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Suffix(_) => false,
            Self::Net(net) => net.contains(&ip),
        }
    }

    /// Whether the rule was written with this reserved range in mind: it names the range or a part of it. `*`, a name
    /// and a range as wide as `0.0.0.0/0` speak of the open internet: whoever writes "port 22, wherever" does not mean
    /// the port 22 of the machine that the rule is for, and who owns a name chooses the address behind it.
    #[must_use]
    pub fn is_within(&self, reserved: &Reserved) -> bool {
        matches!(self, Self::Net(net) if reserved.net.contains(net))
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc()));
        }
        let wrong = |why: &str| {
            let way_out = "write \"*\", a name as example.com, or addresses as 10.0.0.0/8";
            Err(PatternError(format!("{text:?} {why}; {way_out}").into()))
        };
        if text.contains('/') {
            return wrong("is no range of addresses");
        }
        let name = text.strip_prefix("*.").or_else(|| text.strip_prefix('.')).unwrap_or(text);
        match Host::parse(name).canonical() {
            Host::Ip(ip) => Ok(Self::Net(ip.into())),
            Host::Name(name) if Host::is_plain_name(&name) => Ok(Self::Suffix(name)),
            Host::Name(_) => wrong("is neither a name nor an address"),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Suffix(name) => f.write_str(name),
            Self::Net(net) => write!(f, "{net}"),
        }
    }
}

/// Some of the ports, as ranges.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ports(Vec<(u16, u16)>);

/// All ports: what a rule is about that names none.
impl Default for Ports {
    fn default() -> Self {
        Self(vec![(1, u16::MAX)])
    }
}

impl Ports {
    /// These ports, which come in rising order, neighbours put together.
    #[must_use]
    pub fn compressed(ports: impl Iterator<Item = u16>) -> Self {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for port in ports {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
                _ => ranges.push((port, port)),
            }
        }
        Self(ranges)
    }

    /// Whether the port is one of them.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// Whether all ports are meant.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Each port or range as text, `80` or `8000-8999`.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
    }

    /// Reads ports and ranges, as [`Self::texts`] writes them.
    ///
    /// # Errors
    /// When one of them is neither.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        texts.into_iter().map(range).collect::<Result<_, _>>().map(Self)
    }
}

/// Reads `80` or `8000-8999`.
fn range(text: &str) -> Result<(u16, u16), PatternError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err(PatternError(format!("{text:?} is neither a port nor a range of ports as 8000-8999").into())),
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.texts())
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A port, or a range as text.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a port is a number of 1 to 65535, or a range as \"8000-8999\"")]
        enum Entry {
            Port(u16),
            Text(String),
        }
        let entries = Vec::<Entry>::deserialize(deserializer)?;
        let texts: Vec<String> = entries
            .into_iter()
            .map(|entry| match entry {
                Entry::Port(port) => port.to_string(),
                Entry::Text(text) => text,
            })
            .collect();
        if texts.is_empty() {
            return Err(serde::de::Error::custom("is empty; without it the rule is about every port"));
        }
        Self::parse(texts.iter().map(String::as_str)).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::reserved;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_covers_what_is_below_it_and_nothing_that_only_ends_alike() {
        for text in ["example.com", ".example.com", "*.example.com", "Example.COM."] {
            let pattern = pattern(text);
            assert!(pattern.has_name("example.com") && pattern.has_name("a.b.example.com"), "{text}");
            assert!(!pattern.has_name("badexample.com") && !pattern.has_name("example.com.evil"), "{text}");
            assert!(!pattern.has_address("10.0.0.1".parse().unwrap()));
            assert_eq!(pattern.to_string(), "example.com");
        }
    }

    #[test]
    fn addresses_are_covered_by_ranges_alone() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.9.9.9/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("[::1]", "::1/128"),
        ] {
            assert_eq!(pattern(text).to_string(), shown);
        }
        assert!(pattern("10.0.0.0/8").has_address("10.255.0.1".parse().unwrap()));
        assert!(!pattern("10.0.0.0/8").has_address("11.0.0.1".parse().unwrap()));
        assert!(!pattern("10.0.0.0/8").has_name("10.0.0.1.example"));
        assert!(pattern("*").has_name("x") && pattern("*").has_address("::1".parse().unwrap()));
    }

    #[test]
    fn only_a_part_of_a_reserved_range_is_within_it() {
        let private = reserved("10.0.0.1".parse().unwrap()).unwrap();
        for (text, within) in [
            ("10.0.0.0/8", true),
            ("10.0.0.1", true),
            ("0.0.0.0/0", false),
            ("8.0.0.0/6", false),
            ("*", false),
            ("a.b", false),
        ] {
            assert_eq!(pattern(text).is_within(&private), within, "{text}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_so() {
        for text in ["", "10.0.0.0/33", "a b", "http://a", "a/b", "bücher.example", "*.*"] {
            assert!(text.parse::<Pattern>().unwrap_err().to_string().contains("write \"*\""), "{text}");
        }
    }

    #[test]
    fn ports_are_numbers_and_ranges() {
        let ports: Ports = serde_json::from_str(r#"[80, "8000-8999", "22"]"#).unwrap();
        assert!([22, 80, 8000, 8999].into_iter().all(|port| ports.has(port)));
        assert!([21, 81, 7999, 9000].into_iter().all(|port| !ports.has(port)));
        assert_eq!(serde_json::to_string(&ports).unwrap(), r#"["80","8000-8999","22"]"#);
        assert!(Ports::default().has(1) && Ports::default().is_all());
        for text in ["[0]", r#"["9-8"]"#, r#"["-"]"#, r#"["http"]"#, "[70000]", "[[1]]"] {
            let error = serde_json::from_str::<Ports>(text).unwrap_err().to_string();
            assert!(error.contains("8000-8999"), "{text}: {error}");
        }
    }
}
