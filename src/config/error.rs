//! What can be wrong with a configuration. Every error names the source (file or variable), the key and the reason,
//! and none repeats a secret key that was put in the wrong place.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use figment::error::{Actual, Kind};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file.
    File(PathBuf),
    /// An environment variable, by its name.
    Variable(String),
    /// A variable in a `.env` file.
    DotEnv {
        /// The file.
        path: PathBuf,
        /// The name of the variable.
        variable: String,
    },
    /// No layer sets it: the built-in default, in conflict with something that is set.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::DotEnv { path, variable } => write!(f, "{}: {variable}", path.display()),
            Self::Default => f.write_str("built-in default"),
        }
    }
}

/// Why there is no configuration to run with; the exit code is 78 (`EX_CONFIG`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{}: not valid TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line.
        reason: String,
    },
    /// A key is unknown, or its value impossible.
    #[error("{origin}: {key}: {reason}")]
    Value {
        /// The file or variable.
        origin: Origin,
        /// The key, dotted, as `proxy.listen`.
        key: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A `.env` file is malformed. What stands in the line is not repeated: it may be a secret.
    #[error("{}: line {line}: not of the form NAME=value; quote a value that has spaces in it", path.display())]
    DotEnv {
        /// The file.
        path: PathBuf,
        /// The line where what is wrong begins, counted from 1.
        line: usize,
    },
    /// An environment variable is not text.
    #[error("environment variable {0}: its value is not valid UTF-8")]
    NotText(String),
}

impl ConfigError {
    /// An error about one key.
    pub(super) fn value(origin: Origin, key: impl Into<String>, reason: &str) -> Self {
        Self::Value { origin, key: key.into(), reason: without_secrets(reason) }
    }

    /// An error of the TOML parser.
    pub(super) fn syntax(path: PathBuf, reason: &str) -> Self {
        Self::Syntax { path, reason: without_secrets(reason.trim_end()) }
    }

    /// An error of figment while it reads the merged layers.
    pub(super) fn from_figment(error: &figment::Error, origin: Origin) -> Self {
        Self::value(origin, error.path.join("."), &reason(&error.kind))
    }
}

/// Says in words what serde found wrong.
fn reason(kind: &Kind) -> String {
    match kind {
        Kind::Message(text) => text.clone(),
        Kind::UnknownField(_, known) => format!("unknown key; known here: {}", known.join(", ")),
        Kind::UnknownVariant(found, known) => format!("{found:?} is not one of: {}", known.join(", ")),
        Kind::InvalidType(Actual::Str(_), expected) => format!("is a string, must be {}", wanted(expected)),
        Kind::InvalidType(found, expected) => format!("is {}, must be {}", shown(found), wanted(expected)),
        Kind::InvalidValue(found, expected) => format!("{} is not {}", shown(found), wanted(expected)),
        other => other.to_string(),
    }
}

/// The value that was found, without serde's words for its type where the value says enough.
fn shown(found: &Actual) -> String {
    match found {
        Actual::Unsigned(n) => n.to_string(),
        Actual::Signed(n) => n.to_string(),
        Actual::Float(n) => n.to_string(),
        Actual::Bool(b) => b.to_string(),
        Actual::Str(s) => format!("{s:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// What the crates that parse sizes and durations expect, in the words of the manual.
fn wanted(expected: &str) -> Cow<'_, str> {
    match expected {
        "parsable string" | "an integer or string" | "integer overflow" => "a size such as \"64 KiB\"".into(),
        "a duration" => "a duration such as \"30s\"".into(),
        "a sequence" => "a list such as [\"…\", \"…\"]".into(),
        "u16" | "u32" | "u64" | "usize" => "a whole number in range".into(),
        other if other.starts_with("struct ") => "a section with keys of its own".into(),
        other => other.into(),
    }
}

/// The text with every secret key in bech32 cut out: a message may quote a line into which one was put by mistake.
pub(super) fn without_secrets(text: &str) -> String {
    const PREFIX: &str = "nsec1";
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = lower[at..].find(PREFIX) {
        let start = at + found;
        let end = lower[start..].find(|c: char| !c.is_ascii_alphanumeric()).map_or(text.len(), |n| start + n);
        out.push_str(&text[at..start]);
        out.push_str("<secret key>");
        at = end;
    }
    out.push_str(&text[at..]);
    out
}

/// Why a text is not the value that it should be; used by settings and by flags alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(Cow<'static, str>);

impl ValueError {
    /// An error with this reason, which names the value and the way out.
    pub(crate) fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_key_in_the_wrong_place_is_not_repeated() {
        assert_eq!(without_secrets("key = \"nsec1abc9\" and NSEC1XYZ"), "key = \"<secret key>\" and <secret key>");
        assert_eq!(without_secrets("nothing here"), "nothing here");
    }
}
