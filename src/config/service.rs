//! The services of an exit: `80 = "127.0.0.1:3000"`, or a table where more is to be said than the target.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::Target;
use super::error::ValueError;
use crate::exit::AllowList;

/// Services by the port that clients see.
pub type Services = BTreeMap<u16, Service>;

/// What one port of an exit leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Where its connections go.
    pub target: Target,
    /// Who may connect; without a list, those of `exit.allow`.
    pub allow: Option<AllowList>,
    /// The port on which the same is offered with TLS, which the exit then ends itself. If it is the service's own port,
    /// it is offered with TLS only.
    pub tls: Option<TlsPort>,
}

impl From<Target> for Service {
    fn from(target: Target) -> Self {
        Self { target, allow: None, tls: None }
    }
}

/// The long form of a service. A setting that comes to it later goes here and into [`Service`], and the short form
/// is written only as long as nothing but the target is set.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    target: Target,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allow: Option<AllowList>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<TlsPort>,
}

/// A port that is written as a number or, like the ports of services, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "u16")]
pub struct TlsPort(pub u16);

impl From<TlsPort> for u16 {
    fn from(port: TlsPort) -> Self {
        port.0
    }
}

/// How a port may be written.
struct NumberOrText(String);

impl<'de> Deserialize<'de> for NumberOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = NumberOrText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, as 443")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<NumberOrText, E> {
                Ok(NumberOrText(text.to_owned()))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<NumberOrText, E> {
                Ok(NumberOrText(number.to_string()))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<NumberOrText, E> {
                Ok(NumberOrText(number.to_string()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl TryFrom<NumberOrText> for TlsPort {
    type Error = ValueError;

    fn try_from(NumberOrText(text): NumberOrText) -> Result<Self, ValueError> {
        parse_port(&text).map(Self)
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self { target, allow: None, tls: None } => target.serialize(serializer),
            Self { target, allow, tls } => {
                Table { target: target.clone(), allow: allow.clone(), tls: *tls }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, since an untagged enum would say "did not match any variant" and not what is wrong.
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Service;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("HOST:PORT or a table with the key target")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Service, E> {
                text.parse::<Target>().map(Service::from).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Service, A::Error> {
                let Table { target, allow, tls } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Service { target, allow, tls })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Reads the port of a service: 1 to 65535, in plain decimal so that no port can be written twice.
///
/// # Errors
///
/// The reason, with the text that is not such a port.
pub fn parse_port(text: &str) -> Result<u16, ValueError> {
    match text.parse::<u16>() {
        Ok(0) => Err(ValueError::new("a service cannot have port 0; ports are 1 to 65535")),
        Ok(port) if port.to_string() == text => Ok(port),
        _ => Err(ValueError::new(format!("{text:?} is not a port; ports are 1 to 65535"))),
    }
}

/// A port as the key of a table: keys are text in TOML.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Port(u16);

impl TryFrom<String> for Port {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        parse_port(&text).map(Self)
    }
}

/// The table of services.
pub(super) fn services<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Services, D::Error> {
    let table = BTreeMap::<Port, Service>::deserialize(deserializer)?;
    Ok(table.into_iter().map(|(port, service)| (port.0, service)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_spelling() {
        assert_eq!(parse_port("80"), Ok(80));
        assert_eq!(parse_port("65535"), Ok(65535));
        for text in ["0", "080", "+80", "65536", "-1", "http", "", " 80"] {
            assert!(parse_port(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn both_forms_are_read_and_the_short_one_is_written() {
        let short: Service = serde_json::from_str(r#""127.0.0.1:3000""#).unwrap();
        let long: Service = serde_json::from_str(r#"{ "target": "127.0.0.1:3000" }"#).unwrap();
        assert_eq!(short, long);
        assert_eq!(serde_json::to_string(&long).unwrap(), r#""127.0.0.1:3000""#);
        for port in [r#""443""#, "443"] {
            let with: Service =
                serde_json::from_str(&format!(r#"{{ "target": "127.0.0.1:3000", "tls": {port} }}"#)).unwrap();
            assert_eq!(with.tls, Some(TlsPort(443)));
            assert_eq!(serde_json::to_string(&with).unwrap(), r#"{"target":"127.0.0.1:3000","tls":443}"#);
        }
    }

    #[test]
    fn a_wrong_service_says_what_is_wrong() {
        for (text, why) in [
            (r#""127.0.0.1""#, "has no port"),
            (r#"{ "target": "127.0.0.1:0" }"#, "port 0"),
            (r#"{ "target": "127.0.0.1:1", "tagret": 1 }"#, "tagret"),
            (r#"{ "target": "127.0.0.1:1", "allow": ["me"] }"#, "entry 1 is no public key"),
            (r#"{ "target": "127.0.0.1:1", "tls": 0 }"#, "port 0"),
            (r#"{ "target": "127.0.0.1:1", "tls": -1 }"#, "not a port"),
            (r#"{ "target": "127.0.0.1:1", "tls": true }"#, "a port, as 443"),
            ("3000", "HOST:PORT or a table"),
        ] {
            let error = serde_json::from_str::<Service>(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
