//! What a proxy is told about exits for other names than `.nostr`: which to use (`proxy.exit`), and for what
//! (`[[proxy.rule]]`). Choosing among them is in `choose.rs`.

use std::fmt;
use std::str::FromStr;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{NameError, NostrName, parse_name_or_key, text_of};
use crate::pattern::{Pattern, Ports};

/// The word for every exit that announces itself.
const ANY: &str = "any";

/// An exit by its key: `npub1…`, hex, or a `.nostr` name, which also tells its relays.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExitName(pub NostrName);

impl FromStr for ExitName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_name_or_key(text).map(Self)
    }
}

impl TryFrom<String> for ExitName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ExitName> for String {
    fn from(name: ExitName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for ExitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text_of(&self.0))
    }
}

/// Which exits are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exits {
    /// These, the preferred one first; none is the default.
    Listed(Vec<ExitName>),
    /// Whichever announces itself: a stranger.
    Any,
}

impl Default for Exits {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

impl Serialize for Exits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Listed(list) => list.serialize(serializer),
            Self::Any => serializer.serialize_str(ANY),
        }
    }
}

impl<'de> Deserialize<'de> for Exits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Exits;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list such as [\"npub1…\"], or \"any\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Exits, E> {
                if text == ANY {
                    return Ok(Exits::Any);
                }
                text.parse().map(|exit| Exits::Listed(vec![exit])).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Exits, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Exits::Listed)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Where a rule sends what it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Via {
    /// Through the exits of `proxy.exit`.
    Exit,
    /// From this machine, without any exit.
    Direct,
    /// Nowhere.
    Reject,
    /// Through this exit and no other.
    This(ExitName),
}

impl FromStr for Via {
    type Err = ViaError;

    fn from_str(text: &str) -> Result<Self, ViaError> {
        match text {
            "exit" => Ok(Self::Exit),
            "direct" => Ok(Self::Direct),
            "reject" => Ok(Self::Reject),
            other => other.parse().map(Self::This).map_err(ViaError),
        }
    }
}

/// A text is no way.
#[derive(Debug, thiserror::Error)]
#[error("is neither \"exit\", \"direct\", \"reject\" nor an exit's key: {0}")]
pub struct ViaError(NameError);

impl TryFrom<String> for Via {
    type Error = ViaError;

    fn try_from(text: String) -> Result<Self, ViaError> {
        text.parse()
    }
}

impl From<Via> for String {
    fn from(via: Via) -> Self {
        match via {
            Via::Exit => "exit".to_owned(),
            Via::Direct => "direct".to_owned(),
            Via::Reject => "reject".to_owned(),
            Via::This(exit) => exit.to_string(),
        }
    }
}

/// One `[[proxy.rule]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which hosts, as the client wrote them: names are not resolved for it.
    pub to: Pattern,
    /// Which ports; all, if none is named.
    #[serde(default, skip_serializing_if = "Ports::is_all")]
    pub ports: Ports,
    /// Where they are reached.
    pub via: Via,
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    #[test]
    fn exits_are_a_list_or_any() {
        let name = NostrName::new(Keys::generate().public_key(), []);
        let (npub, hex) = (name.npub(), name.public_key.to_hex());
        for text in [format!("[\"{npub}\"]"), format!("\"{npub}\""), format!("[\"{hex}\"]")] {
            let exits: Exits = serde_json::from_str(&text).unwrap();
            assert_eq!(exits, Exits::Listed(vec![ExitName(name.clone())]), "{text}");
            assert_eq!(serde_json::to_string(&exits).unwrap(), format!("[\"{npub}\"]"));
        }
        let any: Exits = serde_json::from_str("\"any\"").unwrap();
        assert_eq!((serde_json::to_string(&any).unwrap().as_str(), any), ("\"any\"", Exits::Any));
        for wrong in ["\"some\"", "[\"any\"]", "[\"npub1x\"]", "7"] {
            assert!(serde_json::from_str::<Exits>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rule_names_a_way() {
        let name = NostrName::new(Keys::generate().public_key(), []);
        for (text, via) in [
            ("exit", Via::Exit),
            ("direct", Via::Direct),
            ("reject", Via::Reject),
            (&name.npub(), Via::This(ExitName(name.clone()))),
        ] {
            assert_eq!(text.parse::<Via>().unwrap(), via);
            assert_eq!(String::from(via), text);
        }
        assert!("nowhere".parse::<Via>().unwrap_err().to_string().contains("\"direct\""));
    }
}
