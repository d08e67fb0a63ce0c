//! `[exit.public]`: whether an exit serves other hosts than its own, and how it makes itself known.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit::AllowList;

/// Settings of a public exit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublicConfig {
    /// Whether the exit connects to other hosts, and announces that it does.
    pub enabled: bool,
    /// Who may; without a list everybody.
    pub allow: Option<AllowList>,
    /// Time from one announcement to the next. The public Go program looks back 10 s.
    #[serde(with = "humantime_serde")]
    pub announce_interval: Duration,
    /// What the exit is called in lists.
    pub name: Option<String>,
    /// How its owner is reached, in words.
    pub contact: Option<String>,
}

impl Default for PublicConfig {
    fn default() -> Self {
        Self { enabled: false, allow: None, announce_interval: Duration::from_secs(10), name: None, contact: None }
    }
}
