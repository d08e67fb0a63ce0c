//! `[proxy.dial_exits]` and `[exit.dial_back]`: which addresses that peers offer are dialled.

use serde::{Deserialize, Serialize};

use super::error::ValueError;
use crate::direct::{Families, Reachable};
use crate::pattern::{Pattern, Ports};

/// Ports that are dialled unless others are named: no well-known service is among them.
const PORTS: &str = "1024-65535";

/// A range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range(Pattern);

impl TryFrom<String> for Range {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match text.parse::<Pattern>() {
            Ok(range @ Pattern::Net(_)) => Ok(Self(range)),
            _ => Err(ValueError::new(format!("{text:?} is no address and no range such as 10.0.0.0/8"))),
        }
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.0.to_string()
    }
}

/// Settings of what is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DialConfig {
    /// Whether anything is.
    pub enabled: bool,
    /// Which ports.
    pub ports: Ports,
    /// Which kinds of addresses.
    pub families: Families,
    /// Ranges of private or other reserved addresses that are dialled, too.
    pub private: Vec<Range>,
}

impl Default for DialConfig {
    fn default() -> Self {
        let ports = Ports::parse([PORTS]).unwrap_or_default();
        Self { enabled: false, ports, families: Families::Any, private: Vec::new() }
    }
}

impl DialConfig {
    /// What may be dialled, if anything may.
    #[must_use]
    pub fn reachable(self) -> Option<Reachable> {
        let Self { enabled, ports, families, private } = self;
        enabled.then(|| Reachable { ports, families, private: private.into_iter().map(|range| range.0).collect() })
    }
}
